"""Textures as the renderer samples them: a pyramid of sizes, bilinear within each."""

import numpy as np
from PIL import Image

from sam3d_jax.render.colour import srgb_to_linear

SRGB_TO_LINEAR = srgb_to_linear(np.arange(256) / 255.0)  # of every byte


def pyramid(texture_HW3: np.ndarray | None) -> list[np.ndarray] | None:
  """Box-filtered halvings of an sRGB texture, full size first; None where there is none."""
  if texture_HW3 is None:
    return None
  # Down to a few texels, which are the colour of the whole.
  levels = [texture_HW3]
  last = texture_HW3
  while min(last.shape[:2]) > 4:
    height, width = last.shape[:2]
    image = Image.fromarray(last)
    halved = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    last = np.asarray(halved)
    levels.append(last)
  return levels


def bilinear(texture_HW3: np.ndarray, uv_N2: np.ndarray) -> np.ndarray:
  """Linear colours (N, 3) at texture coordinates (origin lower left, repeating)."""
  # The texel up and left of each point.
  height, width = texture_HW3.shape[:2]
  u = uv_N2[:, 0]
  v = uv_N2[:, 1]
  x = u * width - 0.5
  y = (1 - v) * height - 0.5
  column = np.floor(x).astype(int)
  row = np.floor(y).astype(int)

  def texel(down: int, right: int) -> np.ndarray:
    at_row = (row + down) % height
    at_column = (column + right) % width
    encoded = texture_HW3[at_row, at_column]
    return SRGB_TO_LINEAR[encoded]

  # The four around it, by how far the point lies from the first.
  right = (x - column)[:, None]
  down = (y - row)[:, None]
  right = right.astype(np.float32)
  down = down.astype(np.float32)
  left = 1 - right
  top = texel(0, 0) * left + texel(0, 1) * right
  bottom = texel(1, 0) * left + texel(1, 1) * right
  return top * (1 - down) + bottom * down
