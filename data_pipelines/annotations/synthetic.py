"""Synthetic annotated items: a procedural object, distorted candidates, an informed judge.

The object stands before a made-up backdrop. The items exercise every builder of annotations without
a download; nobody looked at them, and their records say so. The judge compares candidates by voxel
IoU with the object and rates the best 1 + 4 IoU. In every fourth item all candidates are bad and an
artist's mesh is there; in every fifth the best comes from another generator.

`python -m launch.make_examples items` writes some to look at, or to copy the layout from.
"""

import dataclasses
import pathlib
import tempfile

import numpy as np
import trimesh

from data_pipelines.annotations import choices, write
from data_pipelines.synth import assets, lighting, procedural, render, voxelize
from data_pipelines.synth.camera import ViewConfig, Viewpoint, random_view, rays
from sam3d_jax.geometry.pose import Pose

OWN, OTHER = "sam3d/synthetic", "retrieval/synthetic"
VIEW = ViewConfig(elevation_deg=(5.0, 40.0), fill=(0.45, 0.7), scale=(0.3, 1.2))
TIE = 0.02  # voxel IoU that the judge cannot tell apart
FAR = 1.6  # distance of the backdrop over that of the object


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """Which items, and how large."""

  seed: int = 0
  count: int = 24
  families: tuple[str, ...] = ()  # of procedural objects; empty: all
  image_size: int = 160  # pixels a side
  candidates: int = 4  # of each item


def write_item(folder: pathlib.Path, index: int, config: SyntheticConfig) -> pathlib.Path:
  """Writes item `index`, a pure function of the configuration; returns its annotation file."""
  rng = np.random.default_rng([config.seed, index, 3])
  scene = procedural.make_scene(config.seed, index, config.families)
  asset = assets.from_scene(
    scene, source=f"procedural/{config.seed}/{index}", up="z", license="CC0-1.0"
  )

  # the photo; the order of the draws decides its bytes
  low, high = np.log(VIEW.scale)
  scale = float(np.exp(rng.uniform(low, high)))
  radius = float(np.linalg.norm(asset.mesh.vertices, axis=1).max())
  viewpoint, azimuth = random_view(
    rng, VIEW, image_size=config.image_size, radius=radius, scale=scale
  )
  lights = lighting.random_lights(rng, lighting.LightConfig(), azimuth)
  image, mask, points = _photo(asset, viewpoint, lights, rng)
  camera, pose = viewpoint

  # what is proposed, and what the judge says
  by_artist = index % 4 == 3
  with tempfile.TemporaryDirectory() as scratch:
    truth = pathlib.Path(scratch) / "truth.stl"
    trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces, process=False).export(truth)
    proposals, scores = _candidates(
      asset,
      truth,
      pose,
      config.candidates,
      rng,
      all_bad=by_artist,
      best_from_elsewhere=index % 5 == 4,
    )
    artist = write.Proposal("artist", mesh=truth, pose=pose) if by_artist else None
    return write.from_arrays(
      folder,
      image,
      mask,
      proposals,
      choices.from_scores(scores, tie=TIE),
      pointmap_HW3=points,
      mask_full_HW=mask,
      camera=(camera.fx, camera.fy, camera.cx, camera.cy),
      rating=round(1 + 4 * max(scores.values()), 1),
      artist=artist,
      license="CC0-1.0",
      note="synthetic: procedural object, distorted candidates, choices by voxel IoU",
    )


def _photo(
  asset: assets.Asset, viewpoint: Viewpoint, lights: lighting.Lights, rng
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Image, mask and point map of the object before a wall that faces the camera."""
  shown = render.render(render.Scene(asset.mesh, asset.source), viewpoint, lights, samples=1)
  height, width = shown.mask_HW.shape

  # the wall is a ramp between two colours
  ramp = np.linspace(0, 1, height)[:, None, None]
  top, bottom = rng.uniform(60, 200, (2, 3))
  wall = np.broadcast_to(np.round((1 - ramp) * top + ramp * bottom), (height, width, 3))
  image = render.over(shown.lit_HW3, shown.alpha_HW, wall)

  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  behind = rays(viewpoint.camera, u, v) * (FAR * viewpoint.pose.translation[2])
  points = np.where(shown.mask_HW[..., None], shown.pointmap_HW3, behind)
  return image, shown.mask_HW, points.astype(np.float32)


def _candidates(
  asset: assets.Asset,
  truth: pathlib.Path,
  pose: Pose,
  count: int,
  rng,
  *,
  all_bad: bool,
  best_from_elsewhere: bool,
) -> tuple[dict[str, write.Proposal], dict[str, float]]:
  """(proposals in random order, their voxel IoU with the object).

  The first is the object itself unless all are to be bad.
  """
  vertices, faces = asset.mesh.vertices, asset.mesh.faces
  true_voxels = voxelize.voxelize(vertices, faces)
  proposals, scores = {}, {}
  for number in rng.permutation(count):
    name = f"c{number}"
    strength = 0.25 * number + (1.0 if all_bad else 0.0)
    generator = OTHER if best_from_elsewhere and number == 0 else OWN
    if strength == 0:
      proposals[name] = write.Proposal(generator, mesh=truth, pose=pose)
      scores[name] = 1.0
      continue
    voxels = voxelize.voxelize(_distorted(vertices, strength, rng), faces)
    proposals[name] = write.Proposal(generator, voxels=voxels)
    scores[name] = _iou(voxels, true_voxels)
  return proposals, scores


def _distorted(vertices_V3: np.ndarray, strength: float, rng) -> np.ndarray:
  """The shape stretched along random axes and bent by a wave, in the unit cube again."""
  out = vertices_V3 * np.exp(strength * rng.uniform(-1, 1, 3))
  out = out + 0.2 * strength * np.sin(2 * np.pi * (out[:, [1, 2, 0]] + rng.uniform(0, 1, 3)))
  low, high = out.min(0), out.max(0)
  return np.clip((out - (low + high) / 2) / (high - low).max(), -0.5, 0.5)


def _iou(a_N3: np.ndarray, b_N3: np.ndarray) -> float:
  grids = np.zeros((2, *(voxelize.RESOLUTION,) * 3), bool)
  for grid, voxels in zip(grids, (a_N3, b_N3), strict=True):
    grid[tuple(voxels.T)] = True
  return float((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())
