"""Pasting rendered objects into photographs.

Alpha compositing, visibility, and whether an object belongs where it was put. Depth maps are z in
camera units, NaN where nothing is known or hit. A surface whose depth is unknown hides nothing.
"""

from collections.abc import Iterable

import numpy as np

from sam3d_jax.render.colour import linear_to_srgb8, srgb_to_linear


def paste(image_HW3: np.ndarray, layers: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
  """An sRGB uint8 image under layers, the farthest first.

  A layer is a linear colour over black (H, W, 3) and its coverage (H, W). Blends in linear light
  and rounds once: pixels that no layer covers keep their exact values.
  """
  encoded = image_HW3 / np.float32(255)
  linear = srgb_to_linear(encoded)
  for colour_HW3, alpha_HW in layers:
    # Colours are over black, i.e. already multiplied by their coverage (Porter & Duff 1984, over).
    left_of_photo = 1 - alpha_HW[..., None]
    linear = colour_HW3 + left_of_photo * linear
  return linear_to_srgb8(linear)


def limited(
  colour_HW3: np.ndarray, alpha_HW: np.ndarray, whole_HW: np.ndarray, visible_HW: np.ndarray
):
  """A layer cut to the visible part of its object.

  Border pixels, covered in part but not at their centre, follow their neighbours.
  """
  around = grow(visible_HW)
  keep = np.where(whole_HW, visible_HW, around)
  colour = np.where(keep[..., None], colour_HW3, 0)
  alpha = np.where(keep, alpha_HW, 0)
  return colour, alpha


def in_front(depth_HW: np.ndarray, scene_HW: np.ndarray) -> np.ndarray:
  """The z-buffer: where an object is hit and no known part of the scene is nearer, (H, W) bool."""
  # comparisons with NaN are False: an unknown scene hides nothing
  with np.errstate(invalid="ignore"):
    hidden = scene_HW < depth_HW
  return np.isfinite(depth_HW) & ~hidden


def support(
  depth_HW: np.ndarray, scene_HW: np.ndarray, *, band: float, tolerance: float = 0.0
) -> float:
  """Share of the object's lowest pixels before which the scene lies: it stands on or in something.

  Args:
    depth_HW: of the whole object, whatever hides it.
    band: the lowest rows that count, as a part of the object's height.
    tolerance: the scene may be farther by this part of the depth; 0 asks for it to be nearer.
  """
  has_object = np.isfinite(depth_HW).any(1)
  rows = np.flatnonzero(has_object)
  if not len(rows):
    return 0.0

  # The lowest band of the object's rows.
  first = rows[0]
  last = rows[-1] + 1
  height = last - first
  count = max(1, round(band * height))
  lowest = slice(last - count, last)
  depth = depth_HW[lowest]
  hit = np.isfinite(depth)
  # Comparisons with NaN are False: an unknown scene supports nothing.
  with np.errstate(invalid="ignore"):
    nearer = scene_HW[lowest] < depth * (1 + tolerance)
  supported = nearer & hit
  return float(supported.sum() / hit.sum())


def hidden_contour(
  visible_HW: np.ndarray, depth_HW: np.ndarray, scene_HW: np.ndarray, *, margin: float
) -> float:
  """Share of the visible part's contour before which something stands.

  Its outside is nearer there by more than `margin` of the depth. The contour is the visible pixels
  with a neighbour (of four) inside the image that is not visible.
  """
  # Of a padded array: above, below, left and right of every pixel.
  around = [
    (slice(0, -2), slice(1, -1)),
    (slice(2, None), slice(1, -1)),
    (slice(1, -1), slice(0, -2)),
    (slice(1, -1), slice(2, None)),
  ]

  # The contour; beyond the image there is no outside.
  outside = np.pad(~visible_HW, 1, constant_values=False)
  beside_outside = np.any([outside[at] for at in around], axis=0)
  contour = visible_HW & beside_outside
  if not contour.any():
    return 0.0

  # The nearest of the scene beside each pixel, whatever of it is known and outside.
  known = np.where(np.isfinite(scene_HW), scene_HW, np.inf)
  outer_depth = np.where(visible_HW, np.inf, known)
  padded = np.pad(outer_depth, 1, constant_values=np.inf)
  nearest = np.min([padded[at] for at in around], axis=0)
  limit = depth_HW[contour] * (1 - margin)
  clearly_nearer = nearest[contour] < limit
  return float(clearly_nearer.mean())


def grow(mask_HW: np.ndarray) -> np.ndarray:
  """The mask and its eight neighbours."""
  # A margin of one pixel, so that every shift is a cut-out of it.
  padded = np.pad(mask_HW, 1)
  height, width = mask_HW.shape
  shifted = []
  for row in range(3):
    for column in range(3):
      shifted.append(padded[row : row + height, column : column + width])
  return np.any(shifted, axis=0)
