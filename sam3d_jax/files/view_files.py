"""Camera files with a place: intrinsics, the size of the picture, and where the camera stands.

    {"width": 512, "height": 512, "fx": 600, "fy": 600, "cx": 256, "cy": 256,
     "world_to_camera": [[...], [...], [...], [0, 0, 0, 1]]}

`world_to_camera` acts on columns and leads from the coordinates of the file that is looked at to
OpenCV's camera (x right, y down, z forward). Intrinsics may have any form of camera_files.py; the
centre of the top left pixel is (0.5, 0.5).
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import camera_files, texts
from sam3d_jax.files.camera_files import Stated
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.pose import Pose

KEY = "world_to_camera"
TURN_TOLERANCE = 1e-3  # of a rotation's products with itself


class View(NamedTuple):
  """A camera and where it stands."""

  intrinsics: Stated  # a Camera where the file states the size of the picture
  pose: Pose  # from the coordinates of what is looked at to the project's camera frame


def read(path: str | pathlib.Path, what: str = "--camera") -> View:
  """The view of a camera file.

  Raises:
    InputError: no such file, or no camera of a known place; names file, key and remedy.
    OSError: the disk failed, or the file may not be read.
  """
  path = pathlib.Path(path)
  name = f"{what} {path}"
  if not path.is_file():
    raise InputError(f"{name}: no such file")
  try:
    data = texts.read_json(path)
  except ValueError as error:
    raise InputError(f"{name}: not JSON ({error})") from error
  if not isinstance(data, dict) or KEY not in data:
    raise InputError(
      f"{name} has no {KEY}: give the 4 x 4 matrix to OpenCV's camera (x right, y down, z forward)"
    )
  try:
    intrinsics = camera_files.from_data(data, name)
  except (TypeError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{name}: its intrinsics are no numbers ({error})") from error
  return View(intrinsics, _pose(data[KEY], name))


def _pose(matrix: Any, name: str) -> Pose:
  """From OpenCV's matrix. Raises InputError for one that is no rotation with a translation."""
  try:
    values = np.array(matrix, np.float64)
  except (TypeError, ValueError) as error:
    raise InputError(f"{name}: {KEY} is no matrix of numbers ({error})") from error
  if values.shape != (4, 4):
    raise InputError(f"{name}: {KEY} has shape {values.shape}, 4 x 4 is needed")
  if not np.isfinite(values).all():
    raise InputError(f"{name}: {KEY} holds NaN or infinity")
  if not np.allclose(values[3], (0, 0, 0, 1)):
    raise InputError(
      f"{name}: the last row of {KEY} is {values[3].tolist()}, not 0 0 0 1: it acts on columns, so "
      "the translation is its last column"
    )
  turn = values[:3, :3]
  is_orthonormal = np.allclose(turn @ turn.T, np.eye(3), atol=TURN_TOLERANCE)
  if not is_orthonormal or np.linalg.det(turn) < 0:
    raise InputError(
      f"{name}: the 3 x 3 part of {KEY} is no rotation (orthonormal, determinant 1): scale what is "
      "looked at, not the camera"
    )

  # Points come out in OpenCV's frame; the project's has x and y turned round.
  return Pose(
    rotation=cameras.convert_frame(turn.T, "opencv", "pytorch3d").T,
    translation=cameras.convert_frame(values[:3, 3], "opencv", "pytorch3d"),
    scale=np.ones(3),
  )
