"""Reading the pictures that users bring, in the forms in which they come: images, masks, labels.

Every refusal is an InputError that names the file; `what` says in its message what the file was to
be. Point maps: pointmaps.py; a photo with all that belongs to it: photos.py.

Photos: the EXIF orientation is applied; grey, palette, CMYK and float photos become RGB; 16 bits
become 8 (of 16-bit RGB Pillow keeps the upper byte); an alpha channel is dropped from the colours,
and is the mask if no other is given. Masks: one object each, of the photo's size: 1-bit, grey
(above half of the largest value is object), palette (any index but 0), with an alpha channel that
is not opaque (then alpha counts), or a .npy array (H, W). Label maps: one object for each id but 0.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import pathlib
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from scipy import ndimage

from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import arrays, blame

MAX_PIXELS = 200_000_000
MIN_SIDE = 8  # pixels of a photo
MIN_SPAN = 3  # pixels of a mask, each way: the crop's arithmetic needs them
ORIENTATION_TAG = 0x0112  # of EXIF
# formats whose further pictures belong to the first: a phone's photo with what was taken beside it
FIRST_OF_SEVERAL = ("MPO", "HEIF")
# formats that Pillow hands to Ghostscript, or to Windows
RUNS_PROGRAMS = ("EPS", "WMF")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
INSTALL_HEIF = "pip install -r requirements-heif.txt"
AVIF_BRANDS = (b"avif", b"avis")
POSTSCRIPT_HEADS = (b"%!PS", b"\xc5\xd0\xd3\xc6")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef")
JXL_HEADS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
SIDEWAYS = (5, 6, 7, 8)  # of these orientations width and height change places
MASK_ORIENTATIONS = ("upright", "stored")
RESERVED = ("scene", "preview", "layout", "points", "pointmap")  # names of our own files
HALF = 0.5  # of the largest value: above it a soft mask is object
MAX_SOFT = 0.5  # share of a mask's non-zero pixels that may be neither object nor background
MAX_IDS = 1000  # of a label map


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


def open_image(path: str | pathlib.Path, what: str) -> Image.Image:
  """A decoded image, upright. `what` is for messages. Raises InputError; OSError of the disk."""
  upright, _ = open_upright(path, what)
  return upright


def open_upright(path: str | pathlib.Path, what: str) -> tuple[Image.Image, int | None]:
  """A decoded image, upright, and the EXIF orientation that its pixels have in the file, None where
  it states none.

  Raises:
    InputError: no image that is read, by name and with the remedy.
    OSError: the disk failed, or the file may not be read.
  """
  try:
    with warnings.catch_warnings():
      # MAX_PIXELS is the limit here
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      # Of a file that it opens itself Pillow maps TIFF that lies on its side in the wrong shape.
      with open(path, "rb") as file, Image.open(file, formats=formats()) as image:
        if image.width * image.height > MAX_PIXELS:
          raise InputError(
            f"{what} {path} has {image.width} x {image.height} pixels; make it smaller (at most "
            f"{MAX_PIXELS:,} pixels)"
          )
        is_several = getattr(image, "n_frames", 1) > 1
        if is_several and image.format not in FIRST_OF_SEVERAL:
          raise InputError(
            f"{what} {path} is animated or has pages ({image.n_frames}); save the one picture that "
            "is meant"
          )
        # before it is decoded, because TIFF is turned and forgets it then
        orientation = image.getexif().get(ORIENTATION_TAG)
        image.load()
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # which the copy forgets
        return upright, orientation
  except FileNotFoundError as error:
    raise InputError(f"{what} {path}: no such file") from error
  except IsADirectoryError as error:
    raise InputError(f"{what} {path} is a folder: give the file") from error
  except UnidentifiedImageError as error:
    raise InputError(f"{what} {path}: {why_unknown(path)}") from error
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    raise InputError(
      f"{what} {path} has too many pixels; make it smaller (at most {MAX_PIXELS:,} pixels)"
    ) from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, EOFError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(f"{what} {path}: cannot be decoded ({error}); save it again") from error


@functools.cache
def formats() -> tuple[str, ...]:
  """The formats that Pillow may read here: all that it knows, HEIF where its plug-in is installed,
  but none that it hands to another program.
  """
  register_heif()
  Image.init()
  return tuple(name for name in Image.OPEN if name not in RUNS_PROGRAMS)


@functools.cache
def register_heif() -> bool:
  """Whether HEIC can be read: adds its plug-in to Pillow's formats if it is installed."""
  try:
    import pillow_heif  # optional: requirements-heif.txt
  except ImportError:
    return False
  pillow_heif.register_heif_opener()
  return True


def why_unknown(path: str | pathlib.Path) -> str:
  """What to say of a file in which Pillow finds no picture, with the remedy if one is known."""
  suffix = pathlib.Path(path).suffix.lower()
  with open(path, "rb") as file:
    head = file.read(16)
  brand = head[8:12] if head[4:8] == b"ftyp" else b""
  if brand in AVIF_BRANDS:
    if features.check("avif"):
      return "an AVIF picture that cannot be decoded; save it again"
    return "AVIF is not read by this Pillow: pip install 'pillow>=11.3', or save it as PNG"
  if brand in HEIF_BRANDS or suffix in HEIF_SUFFIXES:
    if register_heif():
      return "a HEIC picture that cannot be decoded; save it again"
    return f"HEIC is read with a plug-in: {INSTALL_HEIF}; or save it as JPEG or PNG"
  if head.startswith(POSTSCRIPT_HEADS):
    return "PostScript (EPS) is a program, no picture, and is not run; save it as PNG"
  if suffix in RAW_SUFFIXES:
    return "a camera's raw file is not read; develop it to JPEG or PNG"
  if head.startswith(JXL_HEADS):
    return "JPEG XL is not read; save it as JPEG or PNG"
  return "not an image in a known format"


def to_eight_bit(image: Image.Image) -> Image.Image:
  """16-bit, 32-bit and float grey as 8-bit grey: 65535 -> 255, floats in 0..1 -> 0..255; values
  that fit in 8 bits stay.
  """
  if not image.mode.startswith(("I", "F")):
    return image
  values = np.nan_to_num(np.asarray(image, np.float64))
  if image.mode.startswith("F") and values.max() <= 1:
    values = values * 255
  elif values.max() > 255:
    values = values / 257
  return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def read_image(
  path: str | pathlib.Path, what: str = "photo"
) -> tuple[np.ndarray, np.ndarray | None]:
  """(H, W, 3) uint8 and the alpha channel (H, W) uint8, None if there is none or it is opaque
  everywhere.
  """
  picture = read_picture(path, what)
  return picture.image_HW3, picture.alpha_HW


class Picture(NamedTuple):
  """A picture, upright: (H, W, 3) uint8; its alpha (H, W) uint8, None if it is opaque everywhere;
  the EXIF orientation that its pixels have in the file.
  """

  image_HW3: np.ndarray
  alpha_HW: np.ndarray | None
  orientation: int


def read_picture(path: str | pathlib.Path, what: str = "photo") -> Picture:
  """A picture as 8-bit RGB. Raises InputError; OSError of the disk."""
  opened, orientation = open_upright(path, what)
  image = to_eight_bit(opened)
  if min(image.size) < MIN_SIDE:
    raise InputError(
      f"{what} {path} is {image.width} x {image.height} pixels; at least {MIN_SIDE} each way are "
      "needed"
    )
  alpha = None
  if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    alpha = None if alpha.min() == 255 else alpha
  return Picture(np.asarray(image.convert("RGB")), alpha, orientation or 1)


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
  name = f"{what} {path}"
  if pathlib.Path(path).suffix == ".npy":
    values = read_mask_array(path, name)
    orientation = None
  else:
    image, orientation = open_upright(path, what)
    values = mask_values(image, name)
  frame = frame_of(frame)
  values = turn_upright(values, frame, name, states_its_own=orientation is not None)
  check_size(values, frame.size, name)
  return check_mask(binarise(values, name), name)


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
  if turn is None or frame.masks == "upright" or states_its_own:
    return values_HW
  if frame.masks == "stored":
    return turn(values_HW)

  # The sizes tell if they fit only one of the two.
  height, width = frame.size
  stored = (width, height) if frame.orientation in SIDEWAYS else (height, width)
  fits_upright = values_HW.shape == (height, width)
  if values_HW.shape != stored:
    return values_HW
  turned = turn(values_HW)
  if not fits_upright:
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
  values = arrays.read_arrays(path, name)
  is_array = isinstance(values, np.ndarray)
  if not is_array or values.dtype.kind not in "buif" or np.squeeze(values).ndim != 2:
    raise InputError(f"{name}: one H x W array of booleans or numbers is needed")
  return np.squeeze(values)


def mask_values(image: Image.Image, name: str) -> np.ndarray:
  """(H, W) numbers of a mask image; see the module's text."""
  if image.mode == "P" and "transparency" not in image.info and not is_grey_ramp(image):
    index = np.asarray(image)
    if len(np.unique(index)) > 2:
      raise InputError(
        f"{name} is a palette image with {len(np.unique(index))} indices: give it as --labels if "
        "each is an object"
      )
    return index > 0
  if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
    return np.asarray(image)
  alpha = np.asarray(image.convert("RGBA"))[..., 3]
  return alpha if alpha.min() < 255 else np.asarray(image.convert("RGB")).max(-1)


def is_mask_like(image: Image.Image) -> bool:
  """Whether the values of a picture are those of the mask of one object."""
  try:
    binarise(mask_values(image, "mask"), "mask")
  except InputError:
    return False
  return True


def is_grey_ramp(image: Image.Image) -> bool:
  """Whether a palette only spells out grey values, index by index."""
  palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
  used = np.unique(np.asarray(image))
  return bool((palette[used] == used[:, None]).all())


def binarise(
  values_HW: np.ndarray, name: str, fix: str = "If each value is an object, give it as --labels"
) -> np.ndarray:
  """Object where a value is above half of the largest. Raises InputError, ending in `fix`, for what
  is not the mask of one object.
  """
  if values_HW.dtype == bool:
    return values_HW
  if values_HW.dtype.kind == "f" and not np.isfinite(values_HW).all():
    raise InputError(f"{name} holds values that are not finite")
  if values_HW.min() < 0:
    raise InputError(f"{name} holds negative values; 0 is background (of logits, give logits > 0)")
  top = float(values_HW.max())
  if top == 0:
    return np.zeros(values_HW.shape, bool)
  present, counts = np.unique(values_HW[values_HW > 0], return_counts=True)
  middle = counts[(present > 0.1 * top) & (present < 0.9 * top)].sum()
  steps = values_HW.dtype.kind in "ui" and top < 64 and len(present) > 1
  if steps or middle > MAX_SOFT * counts.sum():
    raise InputError(
      f"{name} has {len(present)} values besides 0, up to {top:g}: neither black-and-white nor a "
      "mask with "
      f"soft edges. {fix}"
    )
  return values_HW > HALF * top


def check_size(values_HW: np.ndarray, size: tuple[int, int], name: str) -> None:
  """Raises InputError if a mask is not of the photo's size."""
  height, width = values_HW.shape[:2]
  if (height, width) == tuple(size):
    return
  turned = ""
  if (width, height) == tuple(size):
    turned = "; the photo was turned upright by its EXIF orientation, turn the mask too"
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
  rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
  return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def read_masks(
  paths, alpha: np.ndarray | None, frame: Frame | tuple[int, int], photo: str
) -> dict[str, np.ndarray]:
  """Object name -> mask. Names are those of the mask files, numbered where they repeat; "object"
  for the alpha channel.
  """
  if not paths:
    if alpha is None:
      raise InputError(
        f"photo {photo}: it has no alpha channel that marks the object; give --mask FILE or "
        "--labels FILE "
        "(of --images: a folder DIR/<name> with image.* and masks)"
      )
    name = f"photo {photo}: its alpha channel"
    return {"object": check_mask(binarise(alpha, name, "Give --mask FILE"), name)}
  masks: dict[str, np.ndarray] = {}
  for path in paths:
    masks[free_name(pathlib.Path(path).stem, masks)] = read_mask(path, frame)
  return masks


def free_name(stem: str, taken) -> str:
  """`stem`, or stem_2, stem_3, ... if it is taken or one of our own file names."""
  name, number = stem, 1
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
    image, orientation = open_upright(path, "label map")
    values = label_values(image, name)
  if values.dtype.kind not in "ui":
    raise InputError(f"{name} holds {values.dtype} values; ids are integers")
  frame = frame_of(frame)
  values = turn_upright(values, frame, name, states_its_own=orientation is not None)
  check_size(values, frame.size, name)

  # Which there are, and which are wanted.
  known, places = np.unique(values, return_inverse=True)
  boxes = ndimage.find_objects(places.reshape(values.shape) + 1)
  spans = {}
  for number, (rows, columns) in zip(known.tolist(), boxes, strict=True):
    if number > 0:
      spans[number] = min(rows.stop - rows.start, columns.stop - columns.start)
  present = list(spans)
  missing = sorted(set(ids or ()) - set(present))
  if missing:
    listed = ", ".join(map(str, present[:20])) + (", ..." if len(present) > 20 else "")
    raise InputError(
      f"{name} has no id {', '.join(map(str, missing))}; it has {listed or 'none besides 0'}"
    )
  if ids is None and len(present) > MAX_IDS:
    raise InputError(
      f"{name} has {len(present)} ids: more than {MAX_IDS} are not taken for objects. Choose some "
      "with --ids"
    )

  # Without a choice, those that are large enough.
  chosen = ids
  if ids is None:
    chosen = [number for number in present if spans[number] >= MIN_SPAN]
  if not chosen:
    raise InputError(
      f"{name} marks no object: no id besides 0 spans {MIN_SPAN} x {MIN_SPAN} pixels"
    )
  masks = LabelMasks(values, {f"id_{number}": number for number in chosen})
  # Only these can be no masks, and looking at each costs the time of a pass over the photo.
  is_everywhere = len(known) == 1
  for object_name, number in masks.ids.items():
    if is_everywhere or spans[number] < MIN_SPAN:
      check_mask(masks[object_name], f"{name}: {object_name}")
  return masks


def label_values(image: Image.Image, name: str) -> np.ndarray:
  """(H, W) integer ids of a label image."""
  if image.format in ("JPEG", "MPO"):
    raise InputError(f"{name} is a JPEG, which blurs ids: save it as PNG")
  if image.mode == "F":
    raise InputError(f"{name} holds floats; ids are integers")
  if image.mode == "1":
    return np.asarray(image).astype(np.uint8)
  if image.mode in ("P", "L") or image.mode.startswith("I"):
    return np.asarray(image)
  rgb = np.asarray(image.convert("RGB")).astype(np.int64)
  return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
