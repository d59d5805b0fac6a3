"""Pictures and point maps seen through a window and resized, on the host.

Resizing reads through the window (sam3d_jax/geometry/windows.py), so nothing is padded or copied
that the output does not need. The rules are the published ones: images bilinear with antialiasing,
masks and point maps nearest.
"""

import cv2
import numpy as np
from PIL import Image

from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.windows import Window

cv2.setNumThreads(1)  # the loader's own threads keep the cores busy

# both antialiased when shrinking
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def cut(
  array, window: Window, index=None, *, outside: float = 0.0, beyond_box: float = 0.0, convert=None
):
  """What is seen through a window.

  Args:
    array: (H, W, C), or an Enlarged point map.
    window: the square to read.
    index: ascending positions in 0..side along both axes, default all of them.
    outside: value inside the window's box where there is no image.
    beyond_box: value outside the box.
    convert: function of the (h, w, C) pixels that are read, applied before they are placed among
    the fills.

  Returns:
    (len(index), len(index), C).
  """
  height, width = array.shape[:2]
  x1, y1, x2, y2 = window.box
  # Positions within the window, turned into rows and columns of the image.
  if index is None:
    index = np.arange(window.side)
  rows = index + window.y
  columns = index + window.x

  # The pixels that lie in the image and in the box.
  top, bottom = max(0, y1), min(height, y2)
  left, right = max(0, x1), min(width, x2)
  r0, r1 = _span(rows, top, bottom)
  c0, c1 = _span(columns, left, right)
  seen_rows = rows[r0:r1]
  seen_columns = columns[c0:c1]
  if isinstance(array, Enlarged):
    pixels = array.at(seen_rows, seen_columns)
  else:
    band = _gather(array, seen_rows, 0)
    pixels = _gather(band, seen_columns, 1)
  # Only what is read is converted, which can cost more than reading it.
  if convert is not None:
    pixels = convert(pixels)

  # Fills from the outside in: beyond the box, outside the image, the image.
  size = len(index)
  shape = (size, size, array.shape[2])
  out = np.full(shape, beyond_box, pixels.dtype)
  b0, b1 = _span(rows, y1, y2)
  d0, d1 = _span(columns, x1, x2)
  out[b0:b1, d0:d1] = outside
  out[r0:r1, c0:c1] = pixels
  return out


def _span(index, low: int, high: int) -> tuple[int, int]:
  """Range of positions of an ascending index whose values are in [low, high)."""
  # A bisection each: the index ascends.
  start, stop = np.searchsorted(index, (low, high))
  start = int(start)
  stop = int(stop)
  return start, max(start, stop)


def _gather(array, index, axis: int):
  """np.take, as a view where the index is a run."""
  if not len(index):
    return np.take(array, index, axis=axis)

  # Ascending positions are a run if they are as many as they span.
  first = int(index[0])
  stop = int(index[-1]) + 1
  is_run = stop - first == len(index)
  if not is_run:
    return np.take(array, index, axis=axis)
  run = slice(first, stop)
  return array[run] if axis == 0 else array[:, run]


def resize_nearest(array, window: Window, size: int, *, through: int | None = None, **fills):
  """The window resized to size x size by nearest neighbour; fills as in `cut`.

  through: a size in between that it is resized to first. The two resizes are one reading: their
  index maps are composed, and the picture in between is never made.
  """
  if through is None:
    index = nearest_index(window.side, size)
  else:
    # The index map of a resize after a resize is one map.
    first = nearest_index(window.side, through)
    second = nearest_index(through, size)
    index = first[second]
  return cut(array, window, index, **fills)


def resize_image(image_HWC, window: Window, size: int, *, interpolation: str = "bilinear"):
  """The window resized to size x size with antialiasing. uint8 stays uint8 (rounded), float becomes
  float32 (exact).
  """
  # The window at full size; outside is black.
  square = cut(image_HWC, window)
  shape = (size, size)
  # Floats keep their precision, plane by plane.
  if image_HWC.dtype != np.uint8:
    return resize_float(square, shape, interpolation)
  if interpolation == "bilinear" and window.side <= size:
    # Enlarging needs no antialiasing, and OpenCV does the same sums eight times faster; shrinking
    # by it would alias.
    enlarged = cv2.resize(square, shape, interpolation=cv2.INTER_LINEAR)
    return enlarged.reshape(size, size, -1)
  picture = Image.fromarray(square)
  resized = picture.resize(shape, INTERPOLATIONS[interpolation])
  return np.asarray(resized)


def resize_float(array_HWC, shape: tuple[int, int], interpolation: str = "bilinear"):
  """(H, W, C) float -> (*shape, C) float32 with antialiasing, every channel at full precision."""
  array_HWC = array_HWC.astype(np.float32)
  # Nothing to resize: the values stay exact.
  if array_HWC.shape[:2] == tuple(shape):
    return array_HWC

  # Pillow keeps the precision of single float planes only; its sizes are (width, height).
  height, width = shape
  planes = []
  for c in range(array_HWC.shape[-1]):
    plane = np.ascontiguousarray(array_HWC[..., c])
    picture = Image.fromarray(plane)
    resized = picture.resize((width, height), INTERPOLATIONS[interpolation])
    planes.append(np.asarray(resized))
  return np.stack(planes, axis=-1)


def resize_pointmap(pointmap_HW3, shape: tuple[int, int]):
  """Point map resized (bilinear, antialiased) to an image's size; unknown points count as zero and
  stay unknown (nearest).
  """
  height, width = pointmap_HW3.shape[:2]
  if (height, width) == tuple(shape):
    return pointmap_HW3
  # Zeros enter the sums of neighbours, as in the published code.
  unknown = np.isnan(pointmap_HW3)
  filled = np.where(unknown, 0, pointmap_HW3)
  out = resize_float(filled, shape)

  # Unknown again where the nearest point of the map is.
  rows = nearest_index(height, shape[0])
  columns = nearest_index(width, shape[1])
  unknown_HW = unknown.any(-1)
  unknown_there = unknown_HW[rows[:, None], columns]
  out[unknown_there] = np.nan
  return out


class Enlarged:
  """A point map as `resize_pointmap` enlarges it, computed only at the pixels that are read."""

  def __init__(self, pointmap_HW3, shape: tuple[int, int]):
    unknown = np.isnan(pointmap_HW3)
    # The same filling as in `resize_pointmap`.
    zero = np.float32(0)
    self.unknown_HW = unknown.any(-1)
    self.points_HW3 = np.where(unknown, zero, pointmap_HW3)
    self.shape = (*shape, 3)

  def at(self, rows, columns):
    """(len(rows), len(columns), 3) points at rows and columns of the enlarged map, NaN where
    unknown.
    """
    # Separable: rows first, then columns of what is left.
    out = self._between(self.points_HW3, rows, 0)
    out = self._between(out, columns, 1)

    # Unknown where the nearest point of the map is.
    height, width = self.unknown_HW.shape
    tall, wide, _ = self.shape
    nearest_rows = nearest_index(height, tall)
    nearest_columns = nearest_index(width, wide)
    near_rows = nearest_rows[rows]
    near_columns = nearest_columns[columns]
    unknown = self.unknown_HW[near_rows[:, None], near_columns]
    out[unknown] = np.nan
    return out

  def _between(self, array, index, axis: int):
    """Linear interpolation at pixel centres along an axis; beyond the outermost centres the value
    stays.
    """
    # The place of every pixel centre between two centres of the map.
    size = array.shape[axis]
    ratio = size / self.shape[axis]
    place = (index + 0.5) * ratio - 0.5
    place = np.clip(place, 0, size - 1)

    # The two around it; the last one has the same neighbour as the one before.
    last_pair = max(size - 2, 0)
    whole = place.astype(np.int64)
    low = np.minimum(whole, last_pair)
    high = np.minimum(low + 1, size - 1)
    part = (place - low).astype(np.float32)
    along = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    part = part.reshape(along)

    # first + part (second - first), in place
    first = np.take(array, low, axis)
    value = np.take(array, high, axis)
    value -= first
    value *= part
    value += first
    return value


def resampled(pointmap_HW3, shape: tuple[int, int]):
  """A point map at an image's size, as something that `cut` reads: enlarging is done lazily."""
  height, width = pointmap_HW3.shape[:2]
  # Shrinking is antialiased: every point takes part in it anyway.
  enlarges = height <= shape[0] and width <= shape[1]
  if enlarges:
    return Enlarged(pointmap_HW3, shape)
  return resize_pointmap(pointmap_HW3, shape)
