"""Reading what users bring: photos and masks in the forms in which they come (point maps: pointmaps.py). Every refusal is an
InputError that names the file; `what` says in its message what the file was to be, such as the flag that named it.

Conversions: the EXIF orientation is applied; grey, palette and CMYK photos become RGB; 16-bit grey is scaled to 8 bit; an alpha
channel is dropped from the colours.
"""

import os
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sam3d_jax.errors import InputError


def open_image(path: str | os.PathLike, what: str) -> Image.Image:
  """A decoded image, upright. `what` is for messages."""
  try:
    with Image.open(path) as image:
      image.load()
      return ImageOps.exif_transpose(image)
  except FileNotFoundError as error:
    raise InputError(f"{what} {path}: no such file") from error
  except UnidentifiedImageError as error:
    raise InputError(f"{what} {path}: not an image in a known format") from error
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow reports broken files in these ways
    raise InputError(f"{what} {path}: cannot be decoded ({error})") from error


def to_eight_bit(image: Image.Image) -> Image.Image:
  """16-bit and 32-bit grey as 8-bit grey: 65535 -> 255; values that fit in 8 bits stay. Other modes are returned as they are."""
  if not image.mode.startswith(("I", "F")):
    return image
  values = np.asarray(image, np.float64)
  return Image.fromarray(np.clip(np.round(values / 257 if values.max() > 255 else values), 0, 255).astype(np.uint8))


def read_photo(path: str | os.PathLike, what: str = "photo") -> tuple[np.ndarray, np.ndarray | None]:
  """(H, W, 3) uint8 and the alpha channel (H, W) uint8, None if there is none or it is opaque everywhere."""
  image = to_eight_bit(open_image(path, what))
  alpha = None
  if "A" in image.getbands() or "transparency" in image.info:
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    alpha = None if alpha.min() == 255 else alpha
  return np.asarray(image.convert("RGB")), alpha


def read_mask(path: str | os.PathLike, size: tuple[int, int], what: str = "mask") -> np.ndarray:
  """(H, W) bool mask of one object for a photo of `size` (H, W).

  A mask file is grey (above half of its largest value is object) or has an alpha channel that is not opaque (then alpha counts).
  """
  image = to_eight_bit(open_image(path, what))
  if (image.height, image.width) != tuple(size):
    raise InputError(f"{what} {path} is {image.width} x {image.height} but the photo is {size[1]} x {size[0]}; "
                     "give a mask of the photo's size")
  alpha = np.asarray(image.convert("RGBA"))[..., 3]
  values = alpha if alpha.min() < 255 else np.asarray(image.convert("RGB")).max(-1)
  return check_mask(values > values.max() / 2, f"{what} {path}")


def check_mask(mask_HW: np.ndarray, name: str) -> np.ndarray:
  """The mask itself. Raises InputError if it is empty, covers everything, or spans less than 3 x 3 pixels."""
  if not mask_HW.any():
    raise InputError(f"{name} is empty: no pixel is marked as object")
  if mask_HW.all():
    raise InputError(f"{name} covers the whole photo: mark the object only (object pixels white or opaque)")
  rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
  if np.ptp(rows) < 2 or np.ptp(columns) < 2:
    raise InputError(f"{name} spans {np.ptp(columns) + 1} x {np.ptp(rows) + 1} pixels; at least 3 x 3 are needed")
  return mask_HW


def read_masks(paths: list[str], alpha: np.ndarray | None, size: tuple[int, int]) -> dict[str, np.ndarray]:
  """Object name -> mask. Names are those of the mask files, numbered where they repeat; "object" for the alpha channel."""
  if not paths:
    if alpha is None:
      raise InputError("give --mask FILE: the photo has no alpha channel that marks the object")
    return {"object": check_mask(alpha > 127, "the photo's alpha channel")}
  masks: dict[str, np.ndarray] = {}
  for path in paths:
    stem = name = pathlib.Path(path).stem
    number = 1
    while name in masks or name in ("scene", "preview"):
      number += 1
      name = f"{stem}_{number}"
    masks[name] = read_mask(path, size, "--mask")
  return masks
