"""Intrinsics in the forms in which they come: numbers, matrices, JSON, NumPy and text files.

    text     fx,fy,cx,cy on the command line; four numbers, or a 3 x 3 or 4 x 4 matrix, in a file;
             or cameras.txt of COLMAP with one camera
    .npy     the same numbers
    .json    a list of these, or an object with fx fy cx cy (or fl_x fl_y, ppx ppy), or with a
    .npz     matrix under `intrinsics`, `K`, `camera_matrix`, ...: nested, flat, by rows or by
             columns, or {"data": [...]}; `width` and `height` (or w, h) say of which picture

Where a file states the size of its picture, the intrinsics are scaled to the picture they are used
for. Lens distortion is refused: all cameras here are pinhole cameras.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import Any, NamedTuple
import warnings

import numpy as np

from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import arrays, blame, texts
from sam3d_jax.geometry import cameras

# names of a matrix
MATRIX_NAMES = (
  "intrinsics",
  "K",
  "camera_matrix",
  "cameraMatrix",
  "intrinsic_matrix",
  "intrinsicMatrix",
  "intrinsic",
  "cam_K",
  "mtx",
)
# other names of fx, fy, cx, cy
OTHER_NAMES = {"fx": ("fl_x",), "fy": ("fl_y",), "cx": ("ppx",), "cy": ("ppy",)}
# names of the width and the height of the picture
SIZE_NAMES = (
  ("width", "height"),
  ("w", "h"),
  ("image_width", "image_height"),
  ("imageWidth", "imageHeight"),
)
# names of both in a list, in either order
SIZE_LIST_NAMES = ("image_size", "imageSize", "resolution", "image_resolution", "imageResolution")
# names of what a lens does, radial, tangential and thin prism
DISTORTION_NAMES = (
  *("k1", "k2", "k3", "k4", "k5", "k6"),
  *("p1", "p2", "s1", "s2", "s3", "s4"),
  "coeffs",
  "D",
)
# dist_coeffs, distCoeffs, distortion_coefficients, radial_distortion, ...
DISTORTION_WORD = re.compile(r"^dist$|dist_?coef|distortion", re.IGNORECASE)
MAX_BYTES = 1 << 24  # of a file of text or JSON
MAX_COEFFICIENTS = 14  # of a lens; an array of more numbers is something else
MODEL_NAMES = ("camera_model", "distortion_model", "model")
# words of models that are no pinhole, also where all coefficients are 0
OTHER_MODELS = ("fisheye", "equirect", "equidistant", "spherical", "panorama", "omni", "kannala")
# COLMAP's models that have, or may have, no distortion -> how many numbers are focal lengths and
# how many follow the centre as coefficients
COLMAP_MODELS = {
  "SIMPLE_PINHOLE": (1, 0),
  "PINHOLE": (2, 0),
  "SIMPLE_RADIAL": (1, 1),
  "RADIAL": (1, 2),
  "OPENCV": (2, 4),
}
# a line of cameras.txt: number, model, width, height, parameters
COLMAP_LINE = re.compile(r"\d+\s+[A-Z][A-Z_0-9]*\s+\d+\s+\d+\s")
UNDISTORT = "undistort the photo and its depth map (cv2.undistort) and give the new matrix"
ASPECT_TOLERANCE = 0.02  # between the size that is stated and the picture's
FAR_OFF = 0.2  # of a side: principal points farther from the centre deserve a note


class Intrinsics(NamedTuple):
  """Pixels of the picture that they belong to; the centre of the top left pixel is (0.5, 0.5)."""

  fx: float
  fy: float
  cx: float
  cy: float


# A camera where the size of the picture is stated.
Stated = Intrinsics | cameras.Camera


def parse_intrinsics(text: str, what: str = "--intrinsics") -> Stated:
  """Intrinsics from "fx,fy,cx,cy", or from a file of a form above.

  Returns:
    A camera if the file states the size of its picture, else intrinsics of an unknown size.
  Raises:
    InputError: no intrinsics of a pinhole camera, by file and key.
    OSError: the disk failed, or the file may not be read.
  """
  name = f"{what} {text}"
  try:
    return _parse(text, name)
  except InputError:
    raise
  # one object in another, without end
  except RecursionError as error:
    raise InputError(f"{name}: its matrix is nested too deeply") from error
  except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(
      f"{name}: give fx,fy,cx,cy in pixels, or a .json, .npy or text file with these or a 3 x 3 "
      f"matrix ({error})"
    ) from error


def _parse(text: str, name: str) -> Stated:
  """As parse_intrinsics, with the errors of what it reads with."""
  # Numbers on the command line.
  path = pathlib.Path(text)
  if not path.is_file():
    try:
      numbers = [float(word) for word in text.split(",")]
    except ValueError as error:
      raise ValueError("no such file, and no numbers with commas between them") from error
    return to_intrinsics(np.array(numbers), name)

  # A file, by its suffix; spreadsheets begin texts with a byte order mark.
  if path.suffix in (".npy", ".npz"):
    loaded = arrays.read_arrays(path, name)
    return from_data(loaded, name)
  if path.stat().st_size > MAX_BYTES:
    raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
  text = texts.read(path)
  if path.suffix == ".json":
    return from_data(texts.parse_json(text), name)
  lines = [line.strip() for line in text.splitlines()]
  lines = [line for line in lines if line and not line.startswith("#")]
  if any(COLMAP_LINE.match(line) for line in lines):
    return from_colmap(lines, name)
  words = text.replace(",", " ").split()
  numbers = [float(word) for word in words]
  return to_intrinsics(np.array(numbers), name)


def from_colmap(lines: list[str], name: str) -> cameras.Camera:
  """The camera of a cameras.txt, comments left out.

  Raises InputError for several cameras and for models of other lenses, ValueError for numbers that
  are none.
  """
  if len(lines) != 1:
    raise InputError(
      f"{name} is a cameras.txt of COLMAP with {len(lines)} cameras: keep the line of this photo's"
    )
  _, model, width, height, *numbers = lines[0].split()
  if model not in COLMAP_MODELS:
    raise InputError(f"{name}: {model} is no pinhole camera: {UNDISTORT}")
  focals, coefficients = COLMAP_MODELS[model]
  expected = focals + 2 + coefficients
  if len(numbers) != expected:
    raise InputError(f"{name}: {model} has {expected} numbers, here are {len(numbers)}")
  values = [float(number) for number in numbers]
  if any(values[focals + 2 :]):
    raise InputError(f"{name}: {model} has lens distortion that is not 0: {UNDISTORT}")

  # one focal length stands for both
  fx, fy = values[0], values[focals - 1]
  cx, cy = values[focals : focals + 2]
  found = to_intrinsics(np.array([fx, fy, cx, cy]), name)
  return cameras.Camera(*found, int(width), int(height))


def from_data(data: Any, name: str) -> Stated:
  """From what a .json, .npy or .npz file holds: numbers, or a mapping as above.

  Raises InputError, and ValueError or TypeError for numbers that are none.
  """
  if not isinstance(data, Mapping):
    return to_intrinsics(np.array(data, float), name)
  refuse_distortion(data, name)
  size = stated_size(data, name)

  # A matrix under one of its names, or the four numbers.
  key = next((key for key in MATRIX_NAMES if key in data), None)
  if key is None:
    numbers = four_numbers(data, name)
    found = to_intrinsics(np.array(numbers, float), name)
  else:
    held = data[key]
    if isinstance(held, Mapping) and "data" in held:
      held = held["data"]
    found = from_data(held, f"{name}: {key}")

  # A size that is stated nearer to the numbers goes before one farther out.
  if isinstance(found, cameras.Camera):
    return found
  if size is None:
    size = listed_size(data, found, name)
  if size is None:
    return found
  return cameras.Camera(*found, *size)


def four_numbers(data: Mapping[str, Any], name: str) -> list[Any]:
  """fx, fy, cx and cy of a mapping. Raises InputError naming those that it lacks."""
  numbers = []
  lacking = []
  for field in Intrinsics._fields:
    known = [key for key in (field, *OTHER_NAMES[field]) if key in data]
    if known:
      numbers.append(data[known[0]])
    else:
      lacking.append(field)
  if lacking:
    held = ", ".join(map(str, data)) or "nothing"
    raise InputError(
      f"{name} has no {', '.join(lacking)}, it has {held}: give fx, fy, cx and cy in pixels, or a "
      "3 x 3 matrix as K"
    )
  return numbers


def stated_size(data: Mapping[str, Any], name: str) -> tuple[int, int] | None:
  """(width, height) of the picture that a mapping's intrinsics belong to, None if it states none.

  Raises InputError for a size that is none.
  """
  for pair in SIZE_NAMES:
    values = [data[key] for key in pair if key in data]
    if not values:
      continue
    try:
      width, height = (int(value) for value in values)
    except (TypeError, ValueError):
      width = height = 0
    if min(width, height) < 1:
      shown = ", ".join(f"{key} = {data.get(key)!r}" for key in pair)
      raise InputError(f"{name}: {shown}: give width and height of the picture in pixels")
    return width, height
  return None


def listed_size(data: Mapping[str, Any], found: Intrinsics, name: str) -> tuple[int, int] | None:
  """(width, height) of a mapping that has them in a list, None if it has not: in the order in which
  the principal point is nearer to the centre.

  Raises InputError for a list of anything else.
  """
  for key in SIZE_LIST_NAMES:
    if key not in data:
      continue
    sides = coefficients(data[key])
    if len(sides) != 2 or min(sides) < 1:
      raise InputError(f"{name}: {key} = {data[key]!r}: give width and height in pixels")
    first, second = (int(side) for side in sides)
    as_listed = abs(first / 2 - found.cx) + abs(second / 2 - found.cy)
    turned = abs(second / 2 - found.cx) + abs(first / 2 - found.cy)
    return (first, second) if as_listed <= turned else (second, first)
  return None


def refuse_distortion(data: Mapping[str, Any], name: str) -> None:
  """Raises InputError where a mapping states a lens that is no pinhole."""
  # Coefficients other than 0.
  for key, held in data.items():
    is_named = key in DISTORTION_NAMES or DISTORTION_WORD.search(str(key))
    values = coefficients(held) if is_named else []
    if len(values) <= MAX_COEFFICIENTS and any(values):
      shown = ", ".join(f"{value:g}" for value in values)
      raise InputError(
        f"{name}: {key} = {shown} is lens distortion, which is not read: {UNDISTORT}"
      )

  # Models that are no pinhole whatever their coefficients.
  for key in MODEL_NAMES:
    model = str(data.get(key, "")).lower()
    if any(word in model for word in OTHER_MODELS):
      raise InputError(f"{name}: {key} = {data[key]} is no pinhole camera: {UNDISTORT}")
  is_fisheye = data.get("is_fisheye")
  if isinstance(is_fisheye, bool) and is_fisheye:
    raise InputError(f"{name}: is_fisheye = True is no pinhole camera: {UNDISTORT}")


def coefficients(held: Any) -> list[float]:
  """The numbers of a value, however they are nested; names of models and the like are none."""
  if isinstance(held, Mapping):
    inner = [held["data"]] if "data" in held else list(held.values())
    return [number for value in inner for number in coefficients(value)]
  values = np.asarray(held)
  if values.dtype.kind not in "uif":
    return []
  return values.ravel().tolist()


def to_intrinsics(values: np.ndarray, name: str) -> Intrinsics:
  """From a 3 x 3 matrix (or its nine numbers, by rows or columns), a 4 x 4 one that has nothing
  more, or from fx fy cx cy. Raises InputError.
  """
  if not np.issubdtype(np.asarray(values).dtype, np.number):
    raise InputError(f"{name}: intrinsics are not numbers")
  flat = np.asarray(values, np.float64).ravel()

  # Of a 4 x 4 matrix that only pads one of 3 x 3, that one.
  if flat.size == 16:
    padded = flat.reshape(4, 4)
    has_last_row = np.array_equal(padded[3], (0, 0, 0, 1))
    if has_last_row and not padded[:3, 3].any():
      flat = padded[:3, :3].ravel()

  # Of a matrix its four numbers, if it has no others.
  if flat.size == 9:
    matrix = flat.reshape(3, 3)
    # Column by column the last row is where the last column would be, and that is empty.
    is_by_columns = not matrix[:2, 2].any() and matrix[2, :2].all()
    if is_by_columns:
      matrix = matrix.T
    (fx, skew, cx), (shear, fy, cy), (left, below, one) = matrix
    rest = max(abs(skew), abs(shear), abs(left), abs(below))
    if abs(one - 1) > 1e-6 or rest > 1e-6 * max(1.0, abs(fx)):
      raise InputError(f"{name}: not a pinhole matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    flat = np.array([fx, fy, cx, cy])

  if flat.size != 4 or not np.isfinite(flat).all() or min(flat[:2]) <= 0:
    raise InputError(
      f"{name}: {flat.size} numbers {flat.tolist()}; fx, fy, cx, cy in pixels with positive fx and "
      "fy are needed"
    )
  return Intrinsics(*flat.tolist())


def of_picture(stated: Stated, size: tuple[int, int], name: str) -> Intrinsics:
  """Intrinsics in pixels of a picture of a size (height, width): scaled to it if the size that they
  belong to is stated.

  Raises InputError for intrinsics of another picture: another aspect is stated, or the principal
  point lies outside. Warns (InputNote) of one that is far from the centre.
  """
  # Scaled, if both pictures show the same.
  height, width = size
  if isinstance(stated, cameras.Camera):
    wanted = width * stated.height / stated.width
    allowed = max(1.0, ASPECT_TOLERANCE * wanted)
    if abs(height - wanted) > allowed:
      raise InputError(
        f"{name}: its intrinsics are of a picture of {stated.width} x {stated.height}, it is used "
        f"for one of {width} x {height}, which has another aspect; give those of the whole picture"
      )
    stated = cameras.resized(stated, width, height)
  found = Intrinsics(*stated[:4])

  # A principal point that is not in the picture is one of another picture.
  remedy = (
    f"give fx, fy, cx, cy in pixels of {width} x {height}, or a .json file that states the size of "
    'their picture: {"K": ..., "width": ..., "height": ...}'
  )
  shown = f"the principal point cx, cy = {found.cx:g}, {found.cy:g}"
  is_inside = 0 <= found.cx <= width and 0 <= found.cy <= height
  if not is_inside:
    raise InputError(f"{name}: {shown} lies outside the picture of {width} x {height}: {remedy}")
  is_relative = max(found.cx, found.cy) <= 1 and min(width, height) > 2
  if is_relative:
    raise InputError(
      f"{name}: {shown} lies in the first pixel of {width} x {height}; are these shares of the "
      f"picture's sides? {remedy}"
    )

  # One far from the centre may be right, of a crop.
  across = abs(found.cx / width - 0.5)
  down = abs(found.cy / height - 0.5)
  if max(across, down) > FAR_OFF:
    warnings.warn(
      f"{name}: {shown} lies far from the centre of {width} x {height}; if the intrinsics are of "
      f"another size, {remedy}",
      InputNote,
      stacklevel=2,
    )
  return found
