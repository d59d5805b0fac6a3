"""Reading point maps and depth maps in the forms in which they come: the one reader of the photo
command and the data builders.

    .npy, .npz   points (H, W, 3) or depth (H, W). In a .npz: `pointmap` or `points` or `depth` (or
                 its only array), and if it is there `intrinsics` or `K` (3 x 3, or fx fy cx cy) and
                 `mask` or `valid` (H, W; zero: unknown)
    .exr         channels X Y Z or R G B are points; one channel, or Z, Y or R alone, is depth
    .png, .tiff  one channel is depth: 16-bit integers (multiples of `depth_unit`, 0 unknown) or
                 32-bit floats

Depth is z, not distance; it needs intrinsics, in pixels of the depth map. Integers count in
`depth_unit`, floats are taken as they are. What comes out is float32 in the project's camera frame
(x left, y up, z forward) with NaN where a point is unknown: not finite, or not in front of the
camera. Every refusal is an InputError that names the file and the fix.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from sam3d_jax.errors import InputError
from sam3d_jax.files import arrays, images
from sam3d_jax.geometry import cameras

FRAMES = tuple(cameras.AXES)
DEPTH_UNIT = 0.001  # 16-bit depth maps count millimetres
AGAINST = -0.8  # correlation with the pixels below which points run the wrong way
MAX_FIT_ERROR = 0.02  # of the width: beyond it the points are not those of a pinhole camera
EXR_MAGIC = b"\x76\x2f\x31\x01"
# names of arrays in a .npz
POINT_NAMES = ("pointmap", "points")
DEPTH_NAMES = ("depth",)
CAMERA_NAMES = ("intrinsics", "K")
VALID_NAMES = ("mask", "valid")


class Intrinsics(NamedTuple):
  """Pixels of the map that they belong to; the centre of the top left pixel is (0.5, 0.5)."""

  fx: float
  fy: float
  cx: float
  cy: float


class PointMap(NamedTuple):
  """Points and the camera that sees them."""

  points_HW3: np.ndarray  # float32, x left, y up, z forward, NaN unknown
  # of the map's size: as given, else fitted; None where no pinhole camera explains the points
  camera: cameras.Camera | None


def read_pointmap(
  path: str | pathlib.Path,
  *,
  intrinsics: Intrinsics | None = None,
  photo_camera: cameras.Camera | None = None,
  frame: str = "pytorch3d",
  depth_unit: float = DEPTH_UNIT,
  what: str = "point map",
) -> PointMap:
  """Reads a file of any of the forms above.

  Args:
    path: the file; what it is, is told from its content where possible.
    intrinsics: of a depth map, in its pixels; they go before those in the file. For points they
      replace the fitted camera.
    photo_camera: of the whole photo that the map shows, at any size: where no intrinsics are given
      its own, scaled to the map, take their place.
    frame: camera frame of the points in the file, one of FRAMES.
    depth_unit: length of one integer step.
    what: how messages name the input.

  Raises:
    InputError: anything that keeps the file from being a point map.
  """
  name = f"{what} {path}"
  values, found, valid = read_arrays(pathlib.Path(path), name)
  return from_array(
    values,
    valid,
    found=found,
    intrinsics=intrinsics,
    photo_camera=photo_camera,
    frame=frame,
    depth_unit=depth_unit,
    name=name,
  )


def from_array(
  values: np.ndarray,
  valid: np.ndarray | None = None,
  *,
  found: Intrinsics | None = None,
  intrinsics: Intrinsics | None = None,
  photo_camera: cameras.Camera | None = None,
  frame: str = "pytorch3d",
  depth_unit: float = DEPTH_UNIT,
  name: str = "point map",
) -> PointMap:
  """The point map of H x W x 3 points or H x W depths, as read_pointmap makes it of a file's.

  Args:
    values: of real numbers.
    valid: (H, W), non-zero where the values mean something; None: wherever they are finite.
    found: intrinsics that come with the values.
    intrinsics, photo_camera, frame, depth_unit: as in read_pointmap.
    name: how messages name the input.

  Raises:
    InputError: anything that keeps the values from being a point map.
  """
  if frame not in FRAMES:
    raise InputError(f"{name}: frame {frame!r} is not one of {', '.join(FRAMES)}")
  if intrinsics is None and photo_camera is not None and values.ndim >= 2:
    height, width = values.shape[:2]
    intrinsics = Intrinsics(*cameras.resized(photo_camera, width, height)[:4])
  intrinsics = intrinsics or found

  # lengths: integers count in the depth unit, floats are taken as they are
  if values.dtype.kind not in "uif":
    raise InputError(f"{name} holds values of type {values.dtype}; give real numbers")
  unit = np.float32(depth_unit) if values.dtype.kind in "ui" else np.float32(1)
  values = values.astype(np.float32) * unit

  # points, whichever of the two the file holds
  if values.ndim == 3 and values.shape[-1] == 1:
    values = values[..., 0]
  if values.ndim == 2 and min(values.shape) > 1:
    points = unproject(values, intrinsics, name)
  elif values.ndim == 3 and values.shape[-1] == 3 and min(values.shape[:2]) > 1:
    points = cameras.convert_frame(values, frame, "pytorch3d")
  else:
    hint = ""
    if values.ndim == 3 and values.shape[0] == 3:
      hint = "; it looks like 3 x H x W: move the first axis to the end"
    raise InputError(
      f"{name} has shape {values.shape}: H x W x 3 points or H x W depths are needed{hint}"
    )
  points = forget(points, valid, frame, name)
  check_frame(points, frame, name)
  height, width = points.shape[:2]
  camera = cameras.Camera(*intrinsics, width, height) if intrinsics else pinhole(points)
  return PointMap(points, camera)


def unproject(depth_HW: np.ndarray, intrinsics: Intrinsics | None, name: str) -> np.ndarray:
  """Points of a depth map. Raises InputError without intrinsics."""
  if intrinsics is None:
    raise InputError(
      f"{name} is a depth map ({depth_HW.shape[1]} x {depth_HW.shape[0]}): give the camera's "
      "fx,fy,cx,cy in its pixels "
      "(--intrinsics), or a point map"
    )
  height, width = depth_HW.shape
  camera = cameras.Camera(*intrinsics, width, height)
  return cameras.pointmap_from_depth(depth_HW, camera).astype(np.float32)


def forget(
  points_HW3: np.ndarray, valid_HW: np.ndarray | None, frame: str, name: str
) -> np.ndarray:
  """NaN where a point is not finite, not valid, or not in front of the camera.

  Raises InputError if little is left.
  """
  finite = np.isfinite(points_HW3).all(-1)
  if valid_HW is not None:
    if valid_HW.shape != finite.shape:
      raise InputError(f"{name}: its mask is {valid_HW.shape}, its points {finite.shape}")
    finite &= valid_HW > 0
  if not finite.any():
    raise InputError(f"{name} holds no finite point")
  with np.errstate(invalid="ignore"):
    known = finite & (points_HW3[..., 2] > 0)
  if known.sum() * 2 < finite.sum():
    raise InputError(
      f"{name}: {finite.sum() - known.sum()} of {finite.sum()} points lie behind the camera in the "
      f"frame {frame!r}; "
      f"depth must be positive. Name the frame of the file (--pointmap_frame {' | '.join(FRAMES)})"
    )
  return np.where(known[..., None], points_HW3, np.float32(np.nan))


def check_frame(points_HW3: np.ndarray, frame: str, name: str) -> None:
  """Raises InputError if the points plainly run against a frame, as those of another one do."""
  try:
    trends = cameras.pixel_trend(points_HW3)
  except ValueError:
    return  # too few points to tell
  against = [trend < AGAINST for trend in trends]
  if not any(against):
    return
  # the frame in which they would run the right way
  x, y, z = cameras.AXES[frame]
  axes = (-x if against[0] else x, -y if against[1] else y, z)
  fits = [name for name, known in cameras.AXES.items() if known == axes]
  fix = "is the picture mirrored?"
  if fits:
    fix = f"they fit {fits[0]}: add --pointmap_frame {fits[0]}"
  raise InputError(
    f"{name}: its points run against the frame {frame!r} (x left, y up, z forward is pytorch3d); "
    f"{fix}"
  )


def pinhole(points_HW3: np.ndarray) -> cameras.Camera | None:
  """The fitted camera, None if there is none that explains the points."""
  try:
    camera, error = cameras.fit_camera(points_HW3)
  except ValueError:
    return None
  return camera if error <= MAX_FIT_ERROR * camera.width else None


def read_arrays(
  path: pathlib.Path, name: str
) -> tuple[np.ndarray, Intrinsics | None, np.ndarray | None]:
  """(points or depths as stored, intrinsics in the file, validity mask in the file)."""
  # What the file is, is told from how it begins.
  try:
    with path.open("rb") as file:
      head = file.read(8)
  except FileNotFoundError as error:
    raise InputError(f"{name}: no such file") from error
  except OSError as error:
    if not arrays.is_of_the_input(error):
      raise
    raise InputError(f"{name}: {error.strerror}") from error

  if head.startswith(EXR_MAGIC):
    return read_exr(path, name), None, None
  if head.startswith((arrays.NPY_MAGIC, arrays.ZIP_MAGIC)):
    loaded = arrays.read_arrays(path, name)
    if isinstance(loaded, np.ndarray):
      return loaded, None, None
    return from_npz(loaded, name)
  return read_depth_image(path, name), None, None


def from_npz(arrays: dict[str, np.ndarray], name: str):
  """What `read_arrays` gives, from the arrays of a .npz."""
  values = first_of(arrays, POINT_NAMES)
  if values is None:
    values = first_of(arrays, DEPTH_NAMES)
  if values is None:
    # an array of any name will do if there is only one
    rest = [n for n in arrays if n not in CAMERA_NAMES + VALID_NAMES]
    if len(rest) != 1:
      raise InputError(
        f"{name} holds arrays {', '.join(arrays) or '(none)'}; name the point map `pointmap`, a "
        "depth map `depth`"
      )
    values = arrays[rest[0]]
  camera, valid = first_of(arrays, CAMERA_NAMES), first_of(arrays, VALID_NAMES)
  intrinsics = None if camera is None else to_intrinsics(camera, name)
  return values, intrinsics, valid


def first_of(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
  """The array of the first of these names that is there."""
  for name in names:
    if name in arrays:
      return arrays[name]
  return None


def read_exr(path: pathlib.Path, name: str) -> np.ndarray:
  """(H, W, 3) or (H, W) from the first part of an OpenEXR file."""
  import OpenEXR  # needed for this one format

  pixels = {}
  try:
    with OpenEXR.File(str(path), separate_channels=True) as file:
      for key, channel in file.channels().items():
        pixels[key.rpartition(".")[2].upper()] = np.array(channel.pixels)
  # the library raises RuntimeError, TypeError or ValueError with its own text
  except Exception as error:
    raise InputError(f"{name}: cannot be decoded as OpenEXR ({error})") from error
  for triple in ("XYZ", "RGB"):
    if all(c in pixels for c in triple):
      return np.stack([pixels[c] for c in triple], -1)
  for single in ("Z", "DEPTH", "Y", "R", *pixels):
    if single in pixels and (len(pixels) == 1 or single in ("Z", "DEPTH")):
      return pixels[single]
  raise InputError(
    f"{name} has channels {', '.join(pixels)}; X Y Z or R G B for points, or Z for depth, are "
    "needed"
  )


def read_depth_image(path: pathlib.Path, name: str) -> np.ndarray:
  """(H, W) uint16, int32 or float32 depths of a PNG or TIFF."""
  try:
    with Image.open(path, formats=images.formats()) as image:
      image.load()
      mode, form, values = image.mode, image.format, np.asarray(image)
  except UnidentifiedImageError as error:
    raise InputError(f"{name}: not a .npy, .npz, .exr, .png or .tiff file") from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    if not arrays.is_of_the_input(error):
      raise
    raise InputError(f"{name}: cannot be decoded ({error})") from error
  if not mode.startswith(("I", "F")) or form == "JPEG":
    raise InputError(
      f"{name} is a {form} image of mode {mode}: a depth image has one channel of 16-bit integers "
      "or 32-bit floats"
    )
  return values


def parse_intrinsics(text: str, what: str = "--intrinsics") -> Intrinsics:
  """Intrinsics from "fx,fy,cx,cy", or from a file.

  The file is .json (keys fx fy cx cy, or a 3 x 3 `intrinsics` or `K`), .npy, or text numbers.
  Raises InputError.
  """
  name = f"{what} {text}"
  try:
    return to_intrinsics(_stated_numbers(text), name)
  except InputError:
    raise
  except (OSError, ValueError, KeyError, TypeError) as error:
    if not arrays.is_of_the_input(error):
      raise
    raise InputError(
      f"{name}: give fx,fy,cx,cy in pixels, or a .json, .npy or text file with these or a 3 x 3 "
      f"matrix ({error})"
    ) from error


def _stated_numbers(text: str) -> np.ndarray:
  """The numbers of "fx,fy,cx,cy" or of the file of that name."""
  path = pathlib.Path(text)
  if not path.is_file():
    return np.array([float(v) for v in text.split(",")])
  if path.suffix == ".npy":
    return arrays.read_arrays(path, f"--intrinsics {path}")
  if path.suffix != ".json":
    return np.array([float(v) for v in path.read_text().replace(",", " ").split()])
  found = json.loads(path.read_text())
  if isinstance(found, dict) and any(name in found for name in CAMERA_NAMES):
    found = first_of(found, CAMERA_NAMES)
  if isinstance(found, dict):
    found = [found[k] for k in Intrinsics._fields]
  return np.array(found, float)


def to_intrinsics(values: np.ndarray, name: str) -> Intrinsics:
  """From a 3 x 3 matrix (or its nine numbers) or from fx fy cx cy. Raises InputError."""
  if not np.issubdtype(np.asarray(values).dtype, np.number):
    raise InputError(f"{name}: intrinsics are not numbers")
  flat = np.asarray(values, np.float64).ravel()
  if flat.size == 9:
    if abs(flat[8] - 1) > 1e-6 or np.abs(flat[[1, 3, 6, 7]]).max() > 1e-6 * max(1.0, abs(flat[0])):
      raise InputError(f"{name}: not a pinhole matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    flat = flat[[0, 4, 2, 5]]
  if flat.size != 4 or not np.isfinite(flat).all() or min(flat[:2]) <= 0:
    raise InputError(
      f"{name}: {flat.size} numbers {flat.tolist()}; fx, fy, cx, cy in pixels with positive fx and "
      "fy are needed"
    )
  return Intrinsics(*(float(v) for v in flat))
