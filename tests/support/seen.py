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
  mesh = asset.mesh
  voxels = voxelize.voxelize(mesh.vertices, mesh.faces, resolution)
  grid[tuple(voxels.T)] = True
  return grid


def voxel_iou(one: Asset, two: Asset) -> float:
  a = occupancy(one)
  b = occupancy(two)
  shared = np.count_nonzero(a & b)
  union = np.count_nonzero(a | b)
  return shared / union


def unlit_view(asset: Asset, azimuth_deg: float = 20.0, elevation_deg: float = 30.0) -> render.View:
  """The object alone, two of its sizes away."""
  # From a fixed side, through the middle of a square picture.
  azimuth, elevation, roll = np.radians([azimuth_deg, elevation_deg, 0.0])
  rotation = camera.look_at(azimuth, elevation, roll)
  middle = SIZE / 2
  focal = 1.2 * SIZE
  lens = Camera(
    fx=focal,
    fy=focal,
    cx=middle,
    cy=middle,
    width=SIZE,
    height=SIZE,
  )
  place = np.array([0.0, 0.0, 2.0])
  viewpoint = camera.viewpoint(lens, rotation, place, 1.0)

  # Ambient light alone.
  none = np.zeros((0, 3))
  lights = lighting.Lights(np.ones(3), none, none)
  scene = render.Scene(asset.mesh)
  return render.render(
    scene,
    viewpoint,
    lights,
    samples=1,
  )


def colour(asset: Asset) -> np.ndarray:
  """(3,) the sRGB base colour that most of the object has, 0..255."""
  view = unlit_view(asset)
  # Whole pixels only: at the rim the background shines through.
  whole = view.alpha_HW == 1
  shown = linear_to_srgb8(view.delit_HW3[whole])
  return np.median(shown, axis=0)
