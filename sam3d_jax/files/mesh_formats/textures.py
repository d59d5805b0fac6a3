"""Pictures on meshes: decoded, at most MAX_TEXTURE a side, colours and alpha apart."""

import dataclasses
import io

import numpy as np
from PIL import Image

from sam3d_jax.errors import Refused
from sam3d_jax.files.images import to_eight_bit

MAX_TEXTURE = 4096  # pixels a side; larger textures are reduced on the way in
# What is decoded, the usual first. Not all that Pillow knows: some (EPS) run other programs.
FORMATS = (
  "PNG",
  "JPEG",
  "BMP",
  "GIF",
  "PPM",
  "WEBP",
  "AVIF",
  "DDS",
  "JPEG2000",
  "MPO",
  "PCX",
  "PSD",
  "SGI",
  "TGA",
  "TIFF",
)


@dataclasses.dataclass(frozen=True)
class Texture:
  """A decoded picture; row 0 on top."""

  rgb_HW3: np.ndarray  # uint8 sRGB
  alpha_HW: np.ndarray | None  # uint8; None where the picture has no transparency


def decode(data: bytes, name: str) -> Texture:
  """Colours and alpha of an image file, palettes with transparent entries included.

  Raises Refused (unreadable) with `name` in it.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.load()
    # 16 bits become 8
    image = to_eight_bit(image)
    alpha = None
    if _is_transparent(image):
      alpha = _reduced(image.convert("RGBA").getchannel("A"))
    return Texture(_reduced(image.convert("RGB")), alpha)
  except MemoryError:
    raise
  # Pillow raises many kinds of errors on broken bytes; none of them is the disk's, which was read
  except Exception as error:
    raise Refused("unreadable", f"texture {name} cannot be decoded: {error}") from error


def _is_transparent(image: Image.Image) -> bool:
  has_channel = any(band in ("A", "a") for band in image.getbands())
  return has_channel or "transparency" in image.info


def _reduced(image: Image.Image) -> np.ndarray:
  """Pixels of an image, at most MAX_TEXTURE a side."""
  if max(image.size) > MAX_TEXTURE:
    ratio = MAX_TEXTURE / max(image.size)
    image = image.resize([max(1, round(side * ratio)) for side in image.size])
  return np.asarray(image)
