"""Masks and label maps as users bring them.

Masks: one object each, of the photo's size: 1-bit, grey (above half of the largest value is
object), palette (any index but 0), with an alpha channel that is not opaque (then alpha counts), or
a .npy array (H, W). Label maps: one object for each id but 0. Beside a photo that EXIF turns they
are upright, or lie as the photo's pixels in its file and are turned with it.

Every refusal is an InputError that names the file.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
import dataclasses
import pathlib
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image
from scipy import ndimage

from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import arrays, images

MIN_SPAN = 3  # pixels of a mask, each way: the crop's arithmetic needs them
RESERVED = ("scene", "preview", "layout", "points", "pointmap")  # names of our own files
HALF = 0.5  # of the largest value: above it a soft mask is object
MAX_SOFT = 0.5  # share of a mask's non-zero pixels that may be neither object nor background
MAX_IDS = 1000  # of a label map
SHOWN_IDS = 20  # of those that there are, where one is missing
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations of which width and height change places
MASK_ORIENTATIONS = ("upright", "stored")


def half_turn(values: np.ndarray) -> np.ndarray:
  return np.rot90(values, 2)


def turn_right(values: np.ndarray) -> np.ndarray:
  return np.rot90(values, -1)


def transverse(values: np.ndarray) -> np.ndarray:
  """Mirrored at the diagonal from bottom left to top right."""
  return half_turn(values).T


# How pixels are turned upright, by the EXIF orientation that they have in the file.
TURNS = {
  2: np.fliplr,
  3: half_turn,
  4: np.flipud,
  5: np.transpose,
  6: turn_right,
  7: transverse,
  8: np.rot90,
}


class Frame(NamedTuple):
  """What masks and label maps have to fit.

  size: (H, W) of the photo, upright. orientation: EXIF's, of the photo's pixels in its file. masks:
  "upright" if masks are, "stored" if they lie as the photo's pixels in its file, None if nobody has
  said so.
  """

  size: tuple[int, int]
  orientation: int = 1
  masks: str | None = None


def read_mask(
  path: str | pathlib.Path, frame: Frame | tuple[int, int], what: str = "mask"
) -> np.ndarray:
  """(H, W) bool mask of one object for a photo of this frame, or of this size (H, W).

  Raises InputError; OSError of the disk. Warns (InputNote) where it was turned as the photo was.
  """
  # The numbers in the file.
  name = f"{what} {path}"
  if pathlib.Path(path).suffix == ".npy":
    values = read_mask_array(path, name)
    orientation = None
  else:
    image, orientation = images.open_upright(path, what)
    values = unlike(image, frame)
    if values is None:
      values = mask_values(image, name)

  # Upright, of the photo's size, of two values.
  frame = frame_of(frame)
  values = turn_upright(values, frame, name, states_its_own=orientation is not None)
  check_size(values, frame.size, name)
  mask = binarise(values, name)
  return check_mask(mask, name)


def unlike(image: Image.Image, frame: Frame | tuple[int, int]) -> np.ndarray | None:
  """Of a picture that has more pixels than the photo, zeros of its shape, which take no memory: it
  is refused by its size, and need not be converted. None for any other.
  """
  height, width = frame_of(frame).size
  if image.width * image.height <= height * width:
    return None
  return np.broadcast_to(np.uint8(0), (image.height, image.width))


def frame_of(frame: Frame | tuple[int, int]) -> Frame:
  """The frame itself, or that of an upright photo of a size (H, W)."""
  return frame if isinstance(frame, Frame) else Frame(frame)


def turn_upright(
  values_HW: np.ndarray, frame: Frame, name: str, *, states_its_own: bool = False
) -> np.ndarray:
  """A mask or label map, turned as its photo was where it lies as the photo's pixels in the file.

  Whether it does, is said (`frame.masks`) or told by the sizes. states_its_own: its file has an
  EXIF orientation of its own, by which it is upright already.

  Raises InputError where neither tells. Warns (InputNote) where the sizes told.
  """
  turn = TURNS.get(frame.orientation)
  is_upright = frame.masks == "upright" or states_its_own
  if turn is None or is_upright:
    return values_HW
  if frame.masks == "stored":
    return turn(values_HW)

  # The sizes tell if they fit only one of the two.
  height, width = frame.size
  stored = (width, height) if frame.orientation in SIDEWAYS else (height, width)
  if values_HW.shape != stored:
    return values_HW
  turned = turn(values_HW)
  if values_HW.shape != (height, width):
    warnings.warn(
      f"{name} has the size of the photo before its EXIF orientation {frame.orientation}: it is "
      "turned upright with the photo",
      InputNote,
      stacklevel=2,
    )
    return turned

  # A mask that is its own turned image needs no answer.
  if np.array_equal(turned, values_HW):
    return values_HW
  raise InputError(
    f"{name}: the photo was turned upright by its EXIF orientation {frame.orientation}, and the "
    f"size {width} x {height} does not tell whether the mask is upright too. Say "
    "--mask_orientation upright, or stored if it lies as the photo's pixels in the file; or save "
    "the photo upright, without EXIF orientation"
  )


def read_mask_array(path: str | pathlib.Path, name: str) -> np.ndarray:
  """(H, W) of a .npy file, leading or trailing axes of length 1 taken off."""
  held = arrays.read_arrays(path, name)
  is_numbers = isinstance(held, np.ndarray) and held.dtype.kind in "buif"
  if is_numbers:
    values = np.squeeze(held)
    if values.ndim == 2:
      return values
  raise InputError(f"{name}: one H x W array of booleans or numbers is needed")


def mask_values(image: Image.Image, name: str) -> np.ndarray:
  """(H, W) numbers of a mask image; see the module's text."""
  # A palette's indices, unless its colours say more.
  is_palette = image.mode == "P" and "transparency" not in image.info
  if is_palette and not is_grey_ramp(image):
    index = np.asarray(image)
    count = len(np.unique(index))
    if count > 2:
      raise InputError(
        f"{name} is a palette image with {count} indices: give it as --labels if each is an object"
      )
    return index > 0

  # Grey values; else the alpha channel; else the brightest colour.
  if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
    return np.asarray(image)
  rgba = np.asarray(image.convert("RGBA"))
  alpha = rgba[..., 3]
  if alpha.min() < 255:
    return alpha
  rgb = np.asarray(image.convert("RGB"))
  return rgb.max(-1)


def is_mask_like(image: Image.Image) -> bool:
  """Whether the values of a picture are those of the mask of one object."""
  try:
    values = mask_values(image, "mask")
    binarise(values, "mask")
  except InputError:
    return False
  return True


def is_grey_ramp(image: Image.Image) -> bool:
  """Whether a palette only spells out grey values, index by index."""
  colours = np.array(image.getpalette("RGB"))
  palette = colours.reshape(-1, 3)
  used = np.unique(np.asarray(image))
  is_grey = palette[used] == used[:, None]
  return bool(is_grey.all())


def binarise(
  values_HW: np.ndarray, name: str, fix: str = "If each value is an object, give it as --labels"
) -> np.ndarray:
  """Object where a value is above half of the largest. Raises InputError, ending in `fix`, for what
  is not the mask of one object.
  """
  # Numbers that a mask can have.
  kind = values_HW.dtype.kind
  if values_HW.dtype == bool:
    return values_HW
  if kind == "f" and not np.isfinite(values_HW).all():
    raise InputError(f"{name} holds values that are not finite")
  if values_HW.min() < 0:
    raise InputError(f"{name} holds negative values; 0 is background (of logits, give logits > 0)")
  top = float(values_HW.max())
  if top == 0:
    return np.zeros(values_HW.shape, bool)

  # Between black and white there are soft edges at most; a few small integers are ids.
  positive = values_HW[values_HW > 0]
  present, counts = np.unique(positive, return_counts=True)
  is_middle = (present > 0.1 * top) & (present < 0.9 * top)
  middle = counts[is_middle].sum()
  are_ids = kind in "ui" and top < 64 and len(present) > 1
  if are_ids or middle > MAX_SOFT * counts.sum():
    raise InputError(
      f"{name} has {len(present)} values besides 0, up to {top:g}: neither black-and-white nor a "
      f"mask with soft edges. {fix}"
    )
  return values_HW > HALF * top


def check_size(values_HW: np.ndarray, size: tuple[int, int], name: str) -> None:
  """Raises InputError if a mask is not of the photo's size."""
  height, width = values_HW.shape[:2]
  if (height, width) == tuple(size):
    return
  turned = ""
  if (width, height) == tuple(size):
    turned = "; it lies on its side, as if the photo had lost its EXIF orientation: turn it"
  raise InputError(
    f"{name} is {width} x {height} but the photo is {size[1]} x {size[0]}; give a mask of the "
    f"photo's size{turned}"
  )


def check_mask(mask_HW: np.ndarray, name: str) -> np.ndarray:
  """The mask. Raises InputError if it is empty, covers everything, or spans too few pixels."""
  if not mask_HW.any():
    raise InputError(f"{name} is empty: no pixel is marked as object")
  if mask_HW.all():
    raise InputError(
      f"{name} covers the whole photo: mark the object only (object pixels white or opaque)"
    )
  width, height = span(mask_HW)
  if min(width, height) < MIN_SPAN:
    raise InputError(
      f"{name} spans {width} x {height} pixels; at least {MIN_SPAN} x {MIN_SPAN} are needed"
    )
  return mask_HW


def span(mask_HW: np.ndarray) -> tuple[int, int]:
  """(width, height) in pixels of the box around a mask that is not empty."""
  rows = np.flatnonzero(mask_HW.any(1))
  columns = np.flatnonzero(mask_HW.any(0))
  width = np.ptp(columns) + 1
  height = np.ptp(rows) + 1
  return int(width), int(height)


def read_masks(
  paths: Sequence[str | pathlib.Path],
  alpha: np.ndarray | None,
  frame: Frame | tuple[int, int],
  photo: str,
) -> dict[str, np.ndarray]:
  """Object name -> mask. Names are those of the mask files, numbered where they repeat; "object"
  for the alpha channel, which is the mask without files.
  """
  masks: dict[str, np.ndarray] = {}
  for path in paths:
    name = free_name(pathlib.Path(path).stem, masks)
    masks[name] = read_mask(path, frame)
  if masks:
    return masks

  if alpha is None:
    raise InputError(
      f"photo {photo}: it has no alpha channel that marks the object; give --mask FILE or --labels "
      "FILE (of --images: a folder DIR/<name> with image.* and masks)"
    )
  name = f"photo {photo}: its alpha channel"
  mask = binarise(alpha, name, "Give --mask FILE")
  return {"object": check_mask(mask, name)}


def free_name(stem: str, taken: Container[str]) -> str:
  """`stem`, or stem_2, stem_3, ... if it is taken or one of our own file names."""
  name = stem
  number = 1
  while name in taken or name in RESERVED:
    number += 1
    name = f"{stem}_{number}"
  return name


@dataclasses.dataclass(frozen=True)
class LabelMasks(Mapping[str, np.ndarray]):
  """Object name -> (H, W) bool mask of a label map, made when it is asked for: a map may have many
  objects, and all their masks at once more bytes than there are.
  """

  values_HW: np.ndarray
  ids: Mapping[str, int]

  def __getitem__(self, name: str) -> np.ndarray:
    return self.values_HW == self.ids[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.ids)

  def __len__(self) -> int:
    return len(self.ids)


def read_labels(
  path: str | pathlib.Path,
  frame: Frame | tuple[int, int],
  ids: list[int] | None = None,
) -> LabelMasks:
  """Object name ("id_<n>") -> mask from a label map.

  A pixel's id is its grey value (8, 16 or 32 bit), its palette index, or R + 256 G + 65536 B of a
  colour image (COCO panoptic's rule); .npy arrays of integers too. 0 is background. Regions that
  are smaller than a mask may be are left out unless `ids` names them.

  ids: those to take; None for all.
  """
  # The ids of the pixels, upright, of the photo's size.
  name = f"label map {path}"
  if pathlib.Path(path).suffix == ".npy":
    values = read_mask_array(path, name)
    orientation = None
  else:
    image, orientation = images.open_upright(path, "label map")
    values = unlike(image, frame)
    if values is None:
      values = label_values(image, name)
  if values.dtype.kind not in "ui":
    raise InputError(f"{name} holds {values.dtype} values; ids are integers")
  frame = frame_of(frame)
  values = turn_upright(values, frame, name, states_its_own=orientation is not None)
  check_size(values, frame.size, name)

  # Which there are, the shorter side of each, and which are wanted.
  sides = shorter_sides(values)
  missing = sorted(set(ids or ()) - set(sides))
  if missing:
    first = ", ".join(map(str, list(sides)[:SHOWN_IDS])) or "none besides 0"
    more = ", ..." if len(sides) > SHOWN_IDS else ""
    raise InputError(f"{name} has no id {', '.join(map(str, missing))}; it has {first}{more}")
  if ids is None and len(sides) > MAX_IDS:
    raise InputError(
      f"{name} has {len(sides)} ids: more than {MAX_IDS} are not taken for objects. Choose some "
      "with --ids"
    )

  # Without a choice, those that are large enough.
  chosen = ids
  if ids is None:
    chosen = [number for number, side in sides.items() if side >= MIN_SPAN]
  if not chosen:
    raise InputError(
      f"{name} marks no object: no id besides 0 spans {MIN_SPAN} x {MIN_SPAN} pixels"
    )
  masks = LabelMasks(values, {f"id_{number}": number for number in chosen})

  # Only small ones, and one that is everywhere, are no masks; a look at each would cost the time of
  # a pass over the photo.
  for object_name, number in masks.ids.items():
    if sides[number] < MIN_SPAN or number == values.min():
      check_mask(masks[object_name], f"{name}: {object_name}")
  return masks


def shorter_sides(ids_HW: np.ndarray) -> dict[int, int]:
  """The shorter side in pixels of the box around each id but 0, in the order of ids."""
  known, places = np.unique(ids_HW, return_inverse=True)
  numbered = places.reshape(ids_HW.shape) + 1
  boxes = ndimage.find_objects(numbered)
  sides = {}
  for number, (rows, columns) in zip(known.tolist(), boxes, strict=True):
    if number > 0:
      height = rows.stop - rows.start
      width = columns.stop - columns.start
      sides[number] = min(width, height)
  return sides


def label_values(image: Image.Image, name: str) -> np.ndarray:
  """(H, W) integer ids of a label image."""
  if image.format in ("JPEG", "MPO"):
    raise InputError(f"{name} is a JPEG, which blurs ids: save it as PNG")
  if image.mode == "F":
    raise InputError(f"{name} holds floats; ids are integers")

  # Grey values and palette indices are ids; of colours, COCO's rule.
  if image.mode == "1":
    return np.asarray(image).astype(np.uint8)
  if image.mode in ("P", "L") or image.mode.startswith("I"):
    return np.asarray(image)
  rgb = np.asarray(image.convert("RGB")).astype(np.int64)
  red, green, blue = np.moveaxis(rgb, -1, 0)
  return red + 256 * green + 65536 * blue
