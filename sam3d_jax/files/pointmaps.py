"""Reading point maps and depth maps in the forms in which they come: the one reader of the photo
command and the data builders.

    .npy, .npz   points (H, W, 3) or depth (H, W). In a .npz: `pointmap` or `points` or `depth` (or
                 its only array), and if it is there `intrinsics` or `K` (3 x 3, or fx fy cx cy) and
                 `mask` or `valid` (H, W; zero: unknown)
    .exr         channels X Y Z are points, Z without X and Y is depth; of a file of nothing else, R
                 G B are points, or depth where they are equal (exr.py; `channels` chooses)
    .png, .tiff  one channel is depth: 16-bit integers (multiples of `depth_unit`, 0 unknown) or
                 32-bit floats

Depth is z, not distance; it needs intrinsics, in pixels of the depth map. Integers count in
`depth_unit`, floats are taken as they are. What comes out is float32 in the project's camera frame
(x left, y up, z forward) with NaN where a point is unknown: not finite, or not in front of the
camera. Every refusal is an InputError that names the file and the fix.
"""

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from sam3d_jax.errors import InputError
from sam3d_jax.files import arrays, blame, camera_files, exr, images
from sam3d_jax.files.camera_files import Intrinsics, Stated
from sam3d_jax.geometry import cameras

FRAMES = tuple(cameras.AXES)
DEPTH_UNIT = 0.001  # 16-bit depth maps count millimetres
AGAINST = -0.8  # correlation with the pixels below which points run the wrong way
# the same, of either sign, above which three channels are points: without a name that says so, and
# with one
ALONG = 0.9
WEAKLY_ALONG = 0.3
MAX_LENGTH_ERROR = 0.01  # of a direction in half precision
MAX_FIT_ERROR = 0.02  # of the width: beyond it the points are not those of a pinhole camera
# names of arrays in a .npz
POINT_NAMES = ("pointmap", "points")
DEPTH_NAMES = ("depth",)
CAMERA_NAMES = ("intrinsics", "K")
VALID_NAMES = ("mask", "valid")


class PointMap(NamedTuple):
  """Points and the camera that sees them."""

  points_HW3: np.ndarray  # float32, x left, y up, z forward, NaN unknown
  # of the map's size: as given, else fitted; None where no pinhole camera explains the points
  camera: cameras.Camera | None


def read_pointmap(
  path: str | pathlib.Path,
  *,
  intrinsics: Stated | None = None,
  intrinsics_name: str = "",
  photo_camera: cameras.Camera | None = None,
  frame: str = "pytorch3d",
  depth_unit: float = DEPTH_UNIT,
  channels: Sequence[str] = (),
  what: str = "point map",
) -> PointMap:
  """Reads a file of any of the forms above.

  Args:
    path: the file; what it is, is told from its content where possible.
    intrinsics: of a depth map, in its pixels, or a camera of a picture of any size with its aspect;
      they go before those in the file. For points they replace the fitted camera.
    intrinsics_name: how messages name where they are from.
    photo_camera: of the whole photo that the map shows, at any size: where no intrinsics are given
      its own, scaled to the map, take their place.
    frame: camera frame of the points in the file, one of FRAMES.
    depth_unit: length of one integer step.
    channels: of an OpenEXR file, by their whole names: one of depth, or three of points.
    what: how messages name the input.

  Raises:
    InputError: anything that keeps the file from being a point map.
    OSError: the disk failed, or the file may not be read.
  """
  name = f"{what} {path}"
  values, found, valid = read_arrays(pathlib.Path(path), name, channels)
  return from_array(
    values,
    valid,
    found=found,
    intrinsics=intrinsics,
    intrinsics_name=intrinsics_name,
    photo_camera=photo_camera,
    frame=frame,
    depth_unit=depth_unit,
    name=name,
  )


def from_array(
  values: np.ndarray,
  valid: np.ndarray | None = None,
  *,
  found: Stated | None = None,
  intrinsics: Stated | None = None,
  intrinsics_name: str = "",
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
    intrinsics, intrinsics_name, photo_camera, frame, depth_unit: as in read_pointmap.
    name: how messages name the input.

  Raises:
    InputError: anything that keeps the values from being a point map.
  """
  if frame not in FRAMES:
    raise InputError(f"{name}: frame {frame!r} is not one of {', '.join(FRAMES)}")

  # intrinsics in pixels of the map, whosever they are
  is_map = values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in (1, 3))
  if is_map:
    size = values.shape[:2]
    if intrinsics is not None:
      whose = f"{name}, {intrinsics_name}" if intrinsics_name else name
      intrinsics = camera_files.of_picture(intrinsics, size, whose)
    elif photo_camera is not None:
      height, width = size
      scaled = cameras.resized(photo_camera, width, height)
      intrinsics = Intrinsics(*scaled[:4])
    elif found is not None:
      intrinsics = camera_files.of_picture(found, size, name)

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

  # what is known of them, and the camera that sees them
  points = forget(points, valid, frame, name)
  check_frame(points, frame, name)
  if intrinsics is None:
    return PointMap(points, pinhole(points))
  height, width = points.shape[:2]
  camera = cameras.Camera(*intrinsics, width, height)
  return PointMap(points, camera)


def unproject(depth_HW: np.ndarray, intrinsics: Intrinsics | None, name: str) -> np.ndarray:
  """Points of a depth map. Raises InputError without intrinsics."""
  height, width = depth_HW.shape
  if intrinsics is None:
    raise InputError(
      f"{name} is a depth map ({width} x {height}): give the camera's fx,fy,cx,cy in its pixels "
      "(--intrinsics), or a point map"
    )
  camera = cameras.Camera(*intrinsics, width, height)
  return cameras.pointmap_from_depth(depth_HW, camera).astype(np.float32)


def forget(
  points_HW3: np.ndarray, valid_HW: np.ndarray | None, frame: str, name: str
) -> np.ndarray:
  """NaN where a point is not finite, not valid, or not in front of the camera.

  Raises InputError if little is left.
  """
  # where there is a point
  finite = np.isfinite(points_HW3).all(-1)
  if valid_HW is not None:
    if valid_HW.shape != finite.shape:
      raise InputError(f"{name}: its mask is {valid_HW.shape}, its points {finite.shape}")
    finite &= valid_HW > 0
  if not finite.any():
    raise InputError(f"{name} holds no finite point")

  # in front of the camera, as most have to be
  with np.errstate(invalid="ignore"):
    in_front = points_HW3[..., 2] > 0
  known = finite & in_front
  count = finite.sum()
  behind = count - known.sum()
  if behind * 2 > count:
    choices = " | ".join(FRAMES)
    raise InputError(
      f"{name}: {behind} of {count} points lie behind the camera in the frame {frame!r}; depth "
      f"must be positive. Name the frame of the file (--pointmap_frame {choices})"
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
  path: pathlib.Path, name: str, channels: Sequence[str] = ()
) -> tuple[np.ndarray, Stated | None, np.ndarray | None]:
  """(points or depths as stored, intrinsics in the file, validity mask in the file)."""
  # What the file is, is told from how it begins.
  try:
    with path.open("rb") as file:
      head = file.read(8)
  except FileNotFoundError as error:
    raise InputError(f"{name}: no such file") from error
  except OSError as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"{name}: {error.strerror}") from error

  if head.startswith(exr.MAGIC):
    return read_exr(path, name, channels), None, None
  if channels:
    raise InputError(
      f"{name} has no named channels, which only OpenEXR has: leave --pointmap_channels "
      f"{','.join(channels)} out"
    )
  if head.startswith((arrays.NPY_MAGIC, arrays.ZIP_MAGIC)):
    loaded = arrays.read_arrays(path, name)
    if isinstance(loaded, np.ndarray):
      return loaded, None, None
    return from_npz(loaded, name)
  return read_depth_image(path, name), None, None


def from_npz(
  held: dict[str, np.ndarray], name: str
) -> tuple[np.ndarray, Stated | None, np.ndarray | None]:
  """What `read_arrays` gives, from the arrays of a .npz."""
  values = first_of(held, POINT_NAMES)
  if values is None:
    values = first_of(held, DEPTH_NAMES)
  if values is None:
    # an array of any name will do if there is only one
    rest = [n for n in held if n not in CAMERA_NAMES + VALID_NAMES]
    if len(rest) != 1:
      raise InputError(
        f"{name} holds arrays {', '.join(held) or '(none)'}; name the point map `pointmap`, a "
        "depth map `depth`"
      )
    values = held[rest[0]]

  # what it says of its camera
  camera_files.refuse_distortion(held, name)
  camera = first_of(held, CAMERA_NAMES)
  intrinsics = None
  if camera is not None:
    intrinsics = camera_files.to_intrinsics(camera, name)
    size = camera_files.stated_size(held, name)
    if size is None:
      size = camera_files.listed_size(held, intrinsics, name)
    if size is not None:
      intrinsics = cameras.Camera(*intrinsics, *size)
  return values, intrinsics, first_of(held, VALID_NAMES)


def first_of(held: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
  """The array of the first of these names that is there."""
  for name in names:
    if name in held:
      return held[name]
  return None


def read_exr(path: pathlib.Path, name: str, channels: Sequence[str]) -> np.ndarray:
  """(H, W, 3) or (H, W) of an OpenEXR file. Raises InputError, also for three channels that are
  colours, directions or points of the world by what they hold.
  """
  found = exr.read(path, name, channels)
  if channels or found.values.ndim == 2:
    return found.values
  listed = ",".join(found.channels)
  choose = f"if they are points of the camera all the same: --pointmap_channels {listed}"
  if are_directions(found.values):
    raise InputError(
      f"{name}: its channels {listed} have length 1 everywhere, as normals have; {choose}"
    )
  least = WEAKLY_ALONG if found.is_told else ALONG
  if not run_across(found.values, least):
    raise InputError(
      f"{name}: its channels {listed} do not run across the picture as the points of a camera do; "
      f"are they colours, or points of the world? {choose}"
    )
  return found.values


def are_directions(values_HW3: np.ndarray) -> bool:
  """Whether all finite vectors have length 1, as far as half precision tells."""
  vectors = values_HW3.astype(np.float64)
  lengths = np.linalg.norm(vectors, axis=-1)
  finite = lengths[np.isfinite(lengths)]
  if not len(finite):
    return False
  error = np.abs(finite - 1)
  return bool(error.max() < MAX_LENGTH_ERROR)


def run_across(values_HW3: np.ndarray, least: float) -> bool:
  """Whether x / z follows the columns and y / z the rows, in any frame, as a pinhole camera's do or
  with a correlation of `least`; True with too few points to tell.
  """
  points = values_HW3.astype(np.float32)
  for frame in FRAMES:
    seen = cameras.convert_frame(points, frame, "pytorch3d")
    if pinhole(seen) is not None:
      return True

  # no pinhole camera: a strong trend will do, in front of the camera or behind it
  in_front = np.abs(points[..., 2:])
  seen = np.concatenate([points[..., :2], in_front], -1)
  try:
    across, down = cameras.pixel_trend(seen)
  except ValueError:
    return True
  return min(abs(across), abs(down)) > least


def read_depth_image(path: pathlib.Path, name: str) -> np.ndarray:
  """(H, W) uint16, int32 or float32 depths of a PNG or TIFF."""
  try:
    # an open file: see images.open_upright
    with open(path, "rb") as file, Image.open(file, formats=images.formats()) as image:
      images.check_pixels(image)
      image.load()
      mode, form, values = image.mode, image.format, np.asarray(image)
  except UnidentifiedImageError as error:
    raise InputError(f"{name}: not a .npy, .npz, .exr, .png or .tiff file") from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"{name}: cannot be decoded ({error})") from error
  if not mode.startswith(("I", "F")) or form == "JPEG":
    raise InputError(
      f"{name} is a {form} image of mode {mode}: a depth image has one channel of 16-bit integers "
      "or 32-bit floats"
    )
  return values
