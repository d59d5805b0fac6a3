"""Synthetic annotated items: a procedural object, distorted candidates, an informed judge.

The object stands on a floor before a wall, both made up. The items exercise every builder of
annotations without a download; nobody looked at them, and their records say so. The judge compares
candidates by voxel IoU with the object and rates the best 1 + 4 IoU. In every fourth item all
candidates are bad and an artist's mesh is there; in every fifth the best comes from another
generator.

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
from sam3d_jax import sections
from sam3d_jax.geometry.pose import Pose

OWN, OTHER = "sam3d/synthetic", "retrieval/synthetic"
VIEW = ViewConfig(elevation_deg=(5.0, 40.0), fill=(0.45, 0.7), scale=(0.3, 1.2))
TIE = 0.02  # voxel IoU that the judge cannot tell apart
FAR = 1.6  # distance of the wall over that of the object
VERSION = 2  # raise it when the same configuration gives other items


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """Which items, and how large."""

  seed: int = 0
  count: int = 24
  families: tuple[str, ...] = ()  # of procedural objects; empty: all
  image_size: int = 160  # pixels a side
  candidates: int = 4  # of each item

  def __post_init__(self):
    sections.check_positive(self, "image_size", "candidates")


def write_item(folder: pathlib.Path, index: int, config: SyntheticConfig) -> pathlib.Path:
  """Writes item `index`, a pure function of the configuration; returns its annotation file."""
  # the object
  rng = np.random.default_rng([config.seed, index, 3])
  scene = procedural.make_scene(config.seed, index, config.families)
  source = f"procedural/{config.seed}/{index}"
  asset = assets.from_scene(scene, source=source, up="z", license="CC0-1.0")

  # the photo; the order of the draws decides its bytes
  low, high = np.log(VIEW.scale)
  scale = float(np.exp(rng.uniform(low, high)))
  reaches = np.linalg.norm(asset.mesh.vertices, axis=1)
  viewpoint, azimuth = random_view(
    rng,
    VIEW,
    image_size=config.image_size,
    radius=float(reaches.max()),
    scale=scale,
  )
  lights = lighting.random_lights(rng, lighting.LightConfig(), azimuth)
  image, mask, points = _photo(asset, viewpoint, lights, rng)
  camera, pose = viewpoint

  # what is proposed, and what the judge says
  by_artist = index % 4 == 3
  with tempfile.TemporaryDirectory() as scratch:
    truth = pathlib.Path(scratch) / "truth.stl"
    exact = trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces, process=False)
    exact.export(truth)
    proposals, scores = _candidates(
      asset,
      truth,
      pose,
      config.candidates,
      rng,
      all_bad=by_artist,
      best_from_elsewhere=index % 5 == 4,
    )
    chain = choices.from_scores(scores, tie=TIE)
    best_iou = max(scores.values())
    artist = None
    if by_artist:
      artist = write.Proposal("artist", mesh=truth, pose=pose)

    return write.from_arrays(
      folder,
      image,
      mask,
      proposals,
      chain,
      pointmap_HW3=points,
      mask_full_HW=mask,
      camera=(camera.fx, camera.fy, camera.cx, camera.cy),
      rating=round(1 + 4 * best_iou, 1),
      artist=artist,
      license="CC0-1.0",
      note="synthetic: procedural object, distorted candidates, choices by voxel IoU",
    )


def _photo(
  asset: assets.Asset, viewpoint: Viewpoint, lights: lighting.Lights, rng
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Image, mask and point map of the object on a floor, before a wall that faces the camera."""
  # the object
  scene = render.Scene(asset.mesh, asset.source)
  shown = render.render(scene, viewpoint, lights, samples=1)
  height, width = shown.mask_HW.shape

  # floor and wall are a ramp between two colours
  top, bottom = rng.uniform(60, 200, (2, 3))
  part = np.linspace(0, 1, height)
  part = part[:, None, None]
  ramp = np.round((1 - part) * top + part * bottom)
  wall = np.broadcast_to(ramp, (height, width, 3))
  image = render.over(shown.lit_HW3, shown.alpha_HW, wall)

  # where the object is not, rays meet the floor that it stands on or the wall
  columns = np.arange(width) + 0.5
  rows = np.arange(height) + 0.5
  u, v = np.meshgrid(columns, rows)
  rays_HW3 = rays(viewpoint.camera, u, v)
  wall_depth = FAR * viewpoint.pose.translation[2]
  floor_depth_HW = _floor_depth(asset, viewpoint.pose, rays_HW3)
  depth_HW = np.minimum(floor_depth_HW, wall_depth)
  behind_HW3 = rays_HW3 * depth_HW[..., None]
  is_object = shown.mask_HW[..., None]
  points = np.where(is_object, shown.pointmap_HW3, behind_HW3)
  return image, shown.mask_HW, points.astype(np.float32)


def _floor_depth(asset: assets.Asset, pose: Pose, rays_HW3: np.ndarray) -> np.ndarray:
  """(H, W) depth at which rays meet the plane under the object; infinite where they never do."""
  up_3 = pose.rotation[:, 2]
  lowest = np.array([0.0, 0.0, asset.mesh.vertices[:, 2].min()])
  foot_3 = pose.rotation @ (pose.scale * lowest) + pose.translation
  height = up_3 @ foot_3  # of the floor along `up`, below the camera
  slope_HW = rays_HW3 @ up_3
  is_met = slope_HW * height > 0
  return np.where(is_met, height / np.where(is_met, slope_HW, 1.0), np.inf)


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
  least = 1.0 if all_bad else 0.0
  proposals, scores = {}, {}
  for number in rng.permutation(count):
    name = f"c{number}"
    elsewhere = best_from_elsewhere and number == 0
    generator = OTHER if elsewhere else OWN

    # the object itself, with its pose
    strength = 0.25 * number + least
    if strength == 0:
      proposals[name] = write.Proposal(generator, mesh=truth, pose=pose)
      scores[name] = 1.0
      continue

    # a distorted shape, the more the higher its number
    distorted = _distorted(vertices, strength, rng)
    voxels = voxelize.voxelize(distorted, faces)
    proposals[name] = write.Proposal(generator, voxels=voxels)
    scores[name] = _iou(voxels, true_voxels)
  return proposals, scores


def _distorted(vertices_V3: np.ndarray, strength: float, rng) -> np.ndarray:
  """The shape stretched along random axes and bent by a wave, in the unit cube again."""
  # stretched
  stretch = np.exp(strength * rng.uniform(-1, 1, 3))
  out = vertices_V3 * stretch

  # bent: each axis by a wave along the next one
  along = out[:, [1, 2, 0]]
  phase = rng.uniform(0, 1, 3)
  wave = np.sin(2 * np.pi * (along + phase))
  out = out + 0.2 * strength * wave

  # in the unit cube again
  low, high = out.min(0), out.max(0)
  side = (high - low).max()
  centred = (out - (low + high) / 2) / side
  return np.clip(centred, -0.5, 0.5)


def _iou(a_N3: np.ndarray, b_N3: np.ndarray) -> float:
  """Intersection over union of two sets of voxels."""
  side = voxelize.RESOLUTION
  grids = np.zeros((2, side, side, side), bool)
  for grid, voxels in zip(grids, (a_N3, b_N3), strict=True):
    grid[tuple(voxels.T)] = True

  a, b = grids
  joint = (a & b).sum()
  either = (a | b).sum()
  return float(joint / either)
