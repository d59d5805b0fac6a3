"""An object at a known pose, its photo, and what a perfect model gives for it."""

import contextlib
import json
import pathlib

import numpy as np

from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import cameras, conditions, pose
from sam3d_jax.geometry.conditions import InputConfig
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.predictor import Prediction
from sam3d_jax.inference.reconstruction import Choice, scene_of
from sam3d_jax.inference.rewards import Reward
from tests.support import tiny_dataset

CAMERA = cameras.Camera(300.0, 310.0, 150.0, 90.0, 320, 200)


class Weights:
  """What a Candidate asks of a predictor."""

  def __init__(self, placed: bool):
    self.placed = placed
    self.convention = "ScaleShiftInvariant"


def solid() -> np.ndarray:
  """An L-shaped object, unlike itself from every side."""
  grid = np.zeros((24, 24, 24), bool)
  grid[2:22, 8:14, 6:12] = True
  grid[2:8, 8:14, 6:20] = True
  return grid


def known_pose(seed: int = 3) -> Pose:
  rng = np.random.default_rng(seed)
  rotation = tiny_dataset.random_rotation(rng).astype(np.float64)
  translation = np.array([0.25, 0.1, 2.5])
  return Pose(rotation, translation, np.full(3, 0.8))


def photo_of(caster, where: Pose, *, pointmap: bool = True) -> Photo:
  """The photo of a posed object before a wall, with its exact mask and point map."""
  hits = caster.cast(where, CAMERA)
  mask_HW = hits.face_HW >= 0
  grey_HW = np.where(mask_HW, 200, 60).astype(np.uint8)
  image_HW3 = np.repeat(grey_HW[..., None], 3, -1)
  points_HW3 = None
  if pointmap:
    depth_HW = np.where(mask_HW, hits.depth_HW, 4.0)
    points_HW3 = cameras.pointmap_from_depth(depth_HW, CAMERA).astype(np.float32)
  return Photo(image_HW3, {"thing": mask_HW}, points_HW3, CAMERA, "given")


def candidate_of(
  photo: Photo, where: Pose, *, placed: bool = True, index: int = 0, name: str = "thing"
) -> Candidate:
  """A sample that has exactly this shape and pose, in the form in which a model gives it."""
  form = InputConfig(image_size=16, pointmap_size=16, streams=())
  condition = conditions.condition(photo.image_HW3, photo.masks[name], photo.pointmap_HW3, form)

  # Layout latents are relative to the points, where there are any.
  scale, shift = condition.scale, condition.shift
  if scale is None:
    scale, shift = np.ones(3, np.float32), np.zeros(3, np.float32)
  encoded = pose.encode_latents(where, scale, shift)
  latents = {key: np.asarray(value) for key, value in encoded.items()}
  drawn = Prediction(solid(), latents, where.rotation)
  return Candidate(photo, name, index, condition, Weights(placed), drawn)


def write_results(
  folder: pathlib.Path,
  drawn: list[Candidate],
  *,
  refine: bool = False,
  reward: Reward | None = None,
) -> dict:
  """Saves the scene of one photo's samples; what layout.json says."""
  settings = {"seed": 0, "sampler": {"steps": 1}, "weights": {}}
  choice = Choice(0, len(drawn), reward, refine)
  scene = scene_of(drawn, choice, settings, contextlib.nullcontext)
  scene.save(folder)
  layout = (folder / "layout.json").read_text()
  return json.loads(layout)
