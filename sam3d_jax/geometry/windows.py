"""Square windows onto a photo: the object's crop and the whole picture.

The arithmetic of boxes is the published one, down to what is truncated.
"""

from typing import NamedTuple

import numpy as np

BOX_FACTOR = 1.2  # side of the crop over the longer side of the mask's box


class MaskError(ValueError):
  """The mask is empty or too small to crop around."""


class Window(NamedTuple):
  """A square piece of an image plane, in whole pixels; it may reach beyond the image.

  `box` (x1, y1, x2, y2) is what was asked for, the square (x, y, side) contains it. Images and
  masks are zero wherever the window leaves the image or the box; point maps tell the two apart
  (`resizing.cut`).
  """

  box: tuple[int, int, int, int]
  x: int
  y: int
  side: int


def mask_box(
  mask_HW, box_factor: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[int, int, int, int]:
  """Box (x1, y1, x2, y2) around the non-zero pixels, its sides `box_factor` times the longer side.

  The published arithmetic: a side is the difference of the last and the first index, and corners
  are truncated towards zero.

  Args:
    mask_HW: any dtype.
    box_factor: size of the box.
    shift: moves the box by this fraction of its side, (right, down).

  Raises:
    MaskError: no pixel is set, or the mask spans fewer than 3 x 3 pixels.
  """
  # The tight box of the object: its first and last row and column.
  rows = np.flatnonzero(mask_HW.any(1))
  columns = np.flatnonzero(mask_HW.any(0))
  if not len(rows):
    raise MaskError("the mask is empty")
  top = int(rows[0])
  bottom = int(rows[-1])
  left = int(columns[0])
  right = int(columns[-1])
  width = right - left
  height = bottom - top
  if width < 2 or height < 2:
    raise MaskError(
      f"the mask spans {width + 1} x {height + 1} pixels; a crop needs at least 3 x 3"
    )

  # A square about the box's centre, moved by the shift.
  size = int(max(width, height) * box_factor)
  shift_x, shift_y = shift
  centre_x = (left + right) / 2 + shift_x * size
  centre_y = (top + bottom) / 2 + shift_y * size
  half = size // 2
  return (
    int(centre_x - half),
    int(centre_y - half),
    int(centre_x + half),
    int(centre_y + half),
  )


def crop_window(
  mask_HW,
  *,
  box_factor: float = BOX_FACTOR,
  padding: float = 0.0,
  shift: tuple[float, float] = (0.0, 0.0),
) -> Window:
  """The square around the mask; `padding` extends it on every side by that fraction of its side.
  Raises MaskError.
  """
  # The smallest square with the box in its middle, then the padding.
  x1, y1, x2, y2 = mask_box(mask_HW, box_factor, shift)
  width = x2 - x1
  height = y2 - y1
  side = max(width, height)
  extend = int(side * padding)
  return Window(
    box=(x1, y1, x2, y2),
    x=x1 - (side - width) // 2 - extend,
    y=y1 - (side - height) // 2 - extend,
    side=side + 2 * extend,
  )


def square_window(height: int, width: int) -> Window:
  """The whole image, centred in a square."""
  side = max(height, width)
  return Window(
    box=(0, 0, width, height),
    x=-((side - width) // 2),
    y=-((side - height) // 2),
    side=side,
  )
