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
    self.placed, self.convention = placed, "ScaleShiftInvariant"


def solid() -> np.ndarray:
  """An L-shaped object, unlike itself from every side."""
  grid = np.zeros((24, 24, 24), bool)
  grid[2:22, 8:14, 6:12] = True
  grid[2:8, 8:14, 6:20] = True
  return grid


def known_pose(seed: int = 3) -> Pose:
  rotation = tiny_dataset.random_rotation(np.random.default_rng(seed)).astype(np.float64)
  return Pose(rotation, np.array([0.25, 0.1, 2.5]), np.full(3, 0.8))


def photo_of(caster, where: Pose, *, pointmap: bool = True) -> Photo:
  """The photo of a posed object before a wall, with its exact mask and point map."""
  hits = caster.cast(where, CAMERA)
  mask = hits.face_HW >= 0
  depth = np.where(mask, hits.depth_HW, 4.0)
  image = np.repeat(np.where(mask, 200, 60).astype(np.uint8)[..., None], 3, -1)
  points = cameras.pointmap_from_depth(depth, CAMERA).astype(np.float32)
  return Photo(image, {"thing": mask}, points if pointmap else None, CAMERA, "given")


def candidate_of(
  photo: Photo, where: Pose, *, placed: bool = True, index: int = 0, name: str = "thing"
) -> Candidate:
  """A sample that has exactly this shape and pose, in the form in which a model gives it."""
  form = InputConfig(image_size=16, pointmap_size=16, streams=())
  condition = conditions.condition(photo.image_HW3, photo.masks[name], photo.pointmap_HW3, form)
  scale, shift = np.ones(3, np.float32), np.zeros(3, np.float32)
  if condition.scale is not None:
    scale, shift = condition.scale, condition.shift
  latents = {k: np.asarray(v) for k, v in pose.encode_latents(where, scale, shift).items()}
  drawn = Prediction(solid(), latents, where.rotation)
  return Candidate(photo, name, index, condition, Weights(placed), drawn)


def write_results(
  folder: pathlib.Path,
  drawn: list[Candidate],
  *,
  refine: bool = False,
  reward: Reward | None = None,
) -> dict:
  settings = {"seed": 0, "sampler": {"steps": 1}, "weights": {}}
  choice = Choice(0, len(drawn), reward, refine)
  scene_of(drawn, choice, settings, contextlib.nullcontext).save(folder)
  return json.loads((folder / "layout.json").read_text())
