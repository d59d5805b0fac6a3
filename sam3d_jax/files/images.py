"""Reading the pictures that users bring, in the forms in which they come: images, masks, labels.

Every refusal is an InputError that names the file; `what` says in its message what the file was to
be. Point maps: pointmaps.py; a photo with all that belongs to it: photos.py.

Photos: the EXIF orientation is applied; grey, palette, CMYK and float photos become RGB; 16 bits
become 8 (of 16-bit RGB Pillow keeps the upper byte); an alpha channel is dropped from the colours,
and is the mask if no other is given. Masks: one object each, of the photo's size: 1-bit, grey
(above half of the largest value is object), palette (any index but 0), with an alpha channel that
is not opaque (then alpha counts), or a .npy array (H, W). Label maps: one object for each id but 0.
"""

import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sam3d_jax.errors import InputError

MAX_PIXELS = 200_000_000
MIN_SIDE = 8  # pixels of a photo
MIN_SPAN = 3  # pixels of a mask, each way: the crop's arithmetic needs them
RESERVED = ("scene", "preview", "layout", "points", "pointmap")  # names of our own files
HALF = 0.5  # of the largest value: above it a soft mask is object
MAX_SOFT = 0.5  # share of a mask's non-zero pixels that may be neither object nor background
MAX_IDS = 1000  # of a label map


def open_image(path: str | pathlib.Path, what: str) -> Image.Image:
  """A decoded image, upright. `what` is for messages. Raises InputError."""
  try:
    with warnings.catch_warnings():
      # MAX_PIXELS is the limit here
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
          raise InputError(
            f"{what} {path} has {image.width} x {image.height} pixels; make it smaller (at most "
            f"{MAX_PIXELS:,} pixels)"
          )
        # MPO: a phone's photo with a second picture behind it
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
          raise InputError(
            f"{what} {path} is animated or has pages ({image.n_frames}); save the one picture that "
            "is meant"
          )
        image.load()
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # which the copy forgets
        return upright
  except FileNotFoundError as error:
    raise InputError(f"{what} {path}: no such file") from error
  except IsADirectoryError as error:
    raise InputError(f"{what} {path} is a folder: give the file") from error
  except UnidentifiedImageError as error:
    raise InputError(f"{what} {path}: not an image in a known format") from error
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    raise InputError(
      f"{what} {path} has too many pixels; make it smaller (at most {MAX_PIXELS:,} pixels)"
    ) from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, EOFError) as error:
    raise InputError(f"{what} {path}: cannot be decoded ({error}); save it again") from error


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
  image = to_eight_bit(open_image(path, what))
  if min(image.size) < MIN_SIDE:
    raise InputError(
      f"{what} {path} is {image.width} x {image.height} pixels; at least {MIN_SIDE} each way are "
      "needed"
    )
  alpha = None
  if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    alpha = None if alpha.min() == 255 else alpha
  return np.asarray(image.convert("RGB")), alpha


def read_mask(path: str | pathlib.Path, size: tuple[int, int], what: str = "mask") -> np.ndarray:
  """(H, W) bool mask of one object for a photo of `size` (H, W)."""
  name = f"{what} {path}"
  values = (
    read_mask_array(path, name)
    if pathlib.Path(path).suffix == ".npy"
    else mask_values(open_image(path, what), name)
  )
  check_size(values, size, name)
  return check_mask(binarise(values, name), name)


def read_mask_array(path: str | pathlib.Path, name: str) -> np.ndarray:
  """(H, W) of a .npy file, leading or trailing axes of length 1 taken off."""
  try:
    values = np.load(path, allow_pickle=False)
  except FileNotFoundError as error:
    raise InputError(f"{name}: no such file") from error
  except (OSError, ValueError, EOFError) as error:
    raise InputError(f"{name}: not a .npy file of plain numbers ({error})") from error
  if (
    not isinstance(values, np.ndarray)
    or values.dtype.kind not in "buif"
    or np.squeeze(values).ndim != 2
  ):
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
  if (height, width) != tuple(size):
    turned = (
      "; the photo was turned upright by its EXIF orientation, turn the mask too"
      if (width, height) == tuple(size)
      else ""
    )
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
  paths, alpha: np.ndarray | None, size: tuple[int, int], photo: str
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
    masks[free_name(pathlib.Path(path).stem, masks)] = read_mask(path, size)
  return masks


def free_name(stem: str, taken) -> str:
  """`stem`, or stem_2, stem_3, ... if it is taken or one of our own file names."""
  name, number = stem, 1
  while name in taken or name in RESERVED:
    number += 1
    name = f"{stem}_{number}"
  return name


def read_labels(
  path: str | pathlib.Path, size: tuple[int, int], ids: list[int] | None = None
) -> dict[str, np.ndarray]:
  """Object name ("id_<n>") -> mask from a label map.

  A pixel's id is its grey value (8, 16 or 32 bit), its palette index, or R + 256 G + 65536 B of a
  colour image (COCO panoptic's rule); .npy arrays of integers too. 0 is background. Regions that
  are smaller than a mask may be are left out unless `ids` names them.

  ids: those to take; None for all.
  """
  name = f"label map {path}"
  values = (
    read_mask_array(path, name)
    if pathlib.Path(path).suffix == ".npy"
    else label_values(open_image(path, "label map"), name)
  )
  if values.dtype.kind not in "ui":
    raise InputError(f"{name} holds {values.dtype} values; ids are integers")
  check_size(values, size, name)
  present = [int(v) for v in np.unique(values) if v > 0]
  missing = sorted(set(ids or ()) - set(present))
  if missing:
    known = ", ".join(map(str, present[:20])) + (", ..." if len(present) > 20 else "")
    raise InputError(
      f"{name} has no id {', '.join(map(str, missing))}; it has {known or 'none besides 0'}"
    )
  if ids is None and len(present) > MAX_IDS:
    raise InputError(
      f"{name} has {len(present)} ids: more than {MAX_IDS} are not taken for objects. Choose some "
      "with --ids"
    )
  masks = {f"id_{i}": values == i for i in (present if ids is None else ids)}
  if ids is None:
    masks = {n: m for n, m in masks.items() if min(span(m)) >= MIN_SPAN}
  if not masks:
    raise InputError(
      f"{name} marks no object: no id besides 0 spans {MIN_SPAN} x {MIN_SPAN} pixels"
    )
  return {n: check_mask(m, f"{name}: {n}") for n, m in masks.items()}


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
