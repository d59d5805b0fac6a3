"""Pictures on meshes: decoded, at most MAX_TEXTURE a side, colours and alpha apart."""

import dataclasses

import numpy as np
from PIL import Image

from sam3d_jax.errors import Refused
from sam3d_jax.files import images

MAX_PIXELS = 100_000_000  # of a picture as it is stored
MAX_TEXTURE = 4096  # pixels a side; larger textures are reduced on the way in


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
    image = _loaded(data)
    alpha = None
    if _is_transparent(image):
      alpha = _reduced(image.convert("RGBA").getchannel("A"))
    rgb = _reduced(image.convert("RGB"))
  except MemoryError:
    raise
  # Pillow raises many kinds of errors on broken bytes; none of them is the disk's, which was read
  except Exception as error:
    raise Refused("unreadable", f"texture {name} cannot be decoded: {error}") from error
  return Texture(rgb, alpha)


def _loaded(data: bytes) -> Image.Image:
  """A decoded image of eight bits a channel."""
  return images.to_eight_bit(images.open_bytes(data, MAX_PIXELS))


def _is_transparent(image: Image.Image) -> bool:
  bands = image.getbands()
  has_channel = "A" in bands or "a" in bands
  return has_channel or "transparency" in image.info


def _reduced(image: Image.Image) -> np.ndarray:
  """Pixels of an image, at most MAX_TEXTURE a side."""
  longer = max(image.size)
  if longer > MAX_TEXTURE:
    ratio = MAX_TEXTURE / longer
    sides = [max(1, round(side * ratio)) for side in image.size]
    image = image.resize(sides)
  return np.asarray(image)
