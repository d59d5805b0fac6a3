"""Poses of accepted meshes: where to start, how well a pose fits the mask, points to pose on.

A pose takes the mesh, in its unit cube and z up, to the photo's camera (x left, y up, z forward):
p = R (scale x) + translation.
"""

from collections.abc import Mapping
import functools
import io
import math
import pathlib
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.engine.blobs import Blobs
from data_pipelines.engine.tables import Photo
from data_pipelines.synth import assets
from sam3d_jax.geometry import cameras, rotations
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import raycast
from sam3d_jax.render.raycast import Caster

MAX_POINTS = 100_000  # that a page gets
CASTERS = 16  # meshes that are kept ready for rays
UPRIGHT = (math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0)  # z up to y up, facing the camera
AWAY = 2.0  # where an object starts without a point map, in lengths of itself


def camera_of(photo: Photo) -> cameras.Camera:
  """The photo's camera; one that nothing told is assumed."""
  if photo.camera is None:
    return cameras.assumed_camera(photo.width, photo.height)
  lengths = (photo.camera[key] for key in ("fx", "fy", "cx", "cy"))
  return cameras.Camera(*lengths, photo.width, photo.height)


def from_json(stored: Mapping[str, Any]) -> Pose:
  """A stored pose; its one scale is that of all three axes."""
  rotation = rotations.quaternion_to_matrix(np.asarray(stored["rotation"]))
  scale_3 = np.broadcast_to(np.asarray(stored["scale"], np.float64), (3,))
  return Pose(rotation, np.asarray(stored["translation"]), scale_3)


def to_json(where: Pose) -> dict[str, Any]:
  """The inverse of `from_json`; three scales become their mean."""
  return {
    "rotation": rotations.matrix_to_quaternion(np.asarray(where.rotation)).tolist(),
    "translation": np.asarray(where.translation, np.float64).tolist(),
    "scale": float(np.mean(where.scale)),
  }


def points_of(blobs: Blobs, digest: str) -> np.ndarray:
  """The point map (H, W, 3) of a kept .npz."""
  with np.load(io.BytesIO(blobs.read(digest)), allow_pickle=False) as held:
    return held["pointmap"]


def mask_of(blobs: Blobs, digest: str) -> np.ndarray:
  """A kept mask, (H, W) bool."""
  return np.asarray(Image.open(io.BytesIO(blobs.read(digest)), formats=("PNG",))) > 127


def start(blobs: Blobs, photo: Photo, mask: str) -> dict[str, Any]:
  """Upright, where the object's points are and as large as they reach; in front without points."""
  mask_HW = mask_of(blobs, mask)
  camera = camera_of(photo)
  if photo.pointmap is not None:
    points_HW3 = points_of(blobs, photo.pointmap)
    rows = np.arange(points_HW3.shape[0]) * mask_HW.shape[0] // points_HW3.shape[0]
    columns = np.arange(points_HW3.shape[1]) * mask_HW.shape[1] // points_HW3.shape[1]
    own_P3 = points_HW3[mask_HW[rows[:, None], columns]]
    own_P3 = own_P3[np.isfinite(own_P3).all(-1)]
    if len(own_P3):
      low, high = np.percentile(own_P3, (5, 95), axis=0)
      return _stated((low + high) / 2, max(float((high - low).max()), 1e-3))

  # as large as the mask at a distance of twice its size
  y, x = np.nonzero(mask_HW)
  depth = AWAY
  centre = ((camera.cx - x.mean()) / camera.fx, (camera.cy - y.mean()) / camera.fy, 1.0)
  reach = max(np.ptp(x) / camera.fx, np.ptp(y) / camera.fy)
  return _stated(np.asarray(centre) * depth, max(float(reach) * depth, 1e-3))


def _stated(translation: np.ndarray, scale: float) -> dict[str, Any]:
  return {
    "rotation": list(UPRIGHT),
    "translation": [float(value) for value in translation],
    "scale": scale,
  }


def mask_iou(
  blobs: Blobs, mesh: str, suffix: str, photo: Photo, mask: str, pose: Mapping[str, Any]
) -> float:
  """IoU of the posed mesh's silhouette and the mask."""
  caster = _caster(blobs, mesh, suffix)
  return float(raycast.mask_iou(caster, from_json(pose), mask_of(blobs, mask), camera_of(photo)))


@functools.lru_cache(CASTERS)
def _caster(blobs: Blobs, digest: str, suffix: str) -> Caster:
  """A kept mesh in its unit cube, ready for rays. Raises Refused for one that is none."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"mesh{suffix}"
    path.write_bytes(blobs.read(digest))
    return Caster(assets.load(path).mesh)


def packed_points(blobs: Blobs, photo: Photo) -> bytes:
  """Points with their colours as a page takes them: count, x y z as float32, r g b as bytes."""
  if photo.pointmap is None:
    return np.uint32(0).tobytes()
  points_HW3 = points_of(blobs, photo.pointmap)
  image = Image.open(io.BytesIO(blobs.read(photo.image)), formats=("PNG", "JPEG")).convert("RGB")
  colours_HW3 = np.asarray(image.resize(points_HW3.shape[1::-1], Image.Resampling.BILINEAR))
  known_HW = np.isfinite(points_HW3).all(-1)
  points_P3, colours_P3 = points_HW3[known_HW], colours_HW3[known_HW]
  every = -(-len(points_P3) // MAX_POINTS) or 1
  points_P3, colours_P3 = points_P3[::every], colours_P3[::every]
  count = np.uint32(len(points_P3))
  return count.tobytes() + points_P3.astype("<f4").tobytes() + colours_P3.tobytes()
