"""What a mesh looks like and where it is, in numbers to compare."""

import numpy as np

from data_pipelines.synth import camera, lighting, render, voxelize
from data_pipelines.synth.assets import Asset
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.render.colour import linear_to_srgb8

SIZE = 64


def occupancy(asset: Asset, resolution: int = 64) -> np.ndarray:
  """(R, R, R) bool of an asset's surface voxels."""
  grid = np.zeros((resolution,) * 3, bool)
  voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces, resolution)
  grid[tuple(voxels.T)] = True
  return grid


def voxel_iou(one: Asset, two: Asset) -> float:
  a, b = occupancy(one), occupancy(two)
  return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def unlit_view(asset: Asset, azimuth_deg: float = 20.0, elevation_deg: float = 30.0) -> render.View:
  """The object alone, two of its sizes away."""
  rotation = camera.look_at(*np.radians([azimuth_deg, elevation_deg, 0.0]))
  lens = Camera(1.2 * SIZE, 1.2 * SIZE, SIZE / 2, SIZE / 2, SIZE, SIZE)
  viewpoint = camera.viewpoint(lens, rotation, np.array([0.0, 0.0, 2.0]), 1.0)
  lights = lighting.Lights(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3)))
  return render.render(render.Scene(asset.mesh), viewpoint, lights, samples=1)


def colour(asset: Asset) -> np.ndarray:
  """(3,) the sRGB base colour that most of the object has, 0..255."""
  view = unlit_view(asset)
  shown = linear_to_srgb8(view.delit_HW3[view.alpha_HW == 1])
  return np.median(shown, axis=0)
