"""From a photo, a mask and a point map to the model's inputs, on the host. Every function is
deterministic.

The object's crop and the whole photo are both square `Window`s onto the photo: `crop_window` and
`square_window`. Resizing reads through the window, so nothing is padded or copied that the output
does not need. Resizing rules are the published ones: images bilinear with antialiasing, masks and
point maps nearest.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.normalisers import Normaliser, ObjectCentric

cv2.setNumThreads(1)  # the loader's own threads keep the cores busy

BOX_FACTOR = 1.2  # side of the crop over the longer side of the mask's box
# both antialiased when shrinking
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class MaskError(ValueError):
  """The mask is empty or too small to crop around."""


class Window(NamedTuple):
  """A square piece of an image plane, in whole pixels; it may reach beyond the image.

  `box` (x1, y1, x2, y2) is what was asked for, the square (x, y, side) contains it. Images and
  masks are zero wherever the window leaves the image or the box; point maps tell the two apart (see
  `cut`).
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
  rows = np.flatnonzero(mask_HW.any(1))
  columns = np.flatnonzero(mask_HW.any(0))
  if not len(rows):
    raise MaskError("the mask is empty")
  top, bottom = int(rows[0]), int(rows[-1])
  left, right = int(columns[0]), int(columns[-1])
  width = right - left
  height = bottom - top
  if width < 2 or height < 2:
    raise MaskError(
      f"the mask spans {width + 1} x {height + 1} pixels; a crop needs at least 3 x 3"
    )

  # A square about the box's centre, moved by the shift.
  size = int(max(width, height) * box_factor)
  centre_x = (left + right) / 2 + shift[0] * size
  centre_y = (top + bottom) / 2 + shift[1] * size
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
  if index is None:
    index = np.arange(window.side)
  rows = index + window.y
  columns = index + window.x

  # The pixels that lie in the image and in the box.
  r0, r1 = _span(rows, max(0, y1), min(height, y2))
  c0, c1 = _span(columns, max(0, x1), min(width, x2))
  seen_rows = rows[r0:r1]
  seen_columns = columns[c0:c1]
  if isinstance(array, Enlarged):
    pixels = array.at(seen_rows, seen_columns)
  else:
    band = _gather(array, seen_rows, 0)
    pixels = _gather(band, seen_columns, 1)
  if convert is not None:
    pixels = convert(pixels)

  # Fills from the outside in: beyond the box, outside the image, the image.
  size = len(index)
  out = np.full((size, size, array.shape[2]), beyond_box, pixels.dtype)
  b0, b1 = _span(rows, y1, y2)
  d0, d1 = _span(columns, x1, x2)
  out[b0:b1, d0:d1] = outside
  out[r0:r1, c0:c1] = pixels
  return out


def _span(index, low: int, high: int) -> tuple[int, int]:
  """Range of positions of an ascending index whose values are in [low, high)."""
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
    first = nearest_index(window.side, through)
    second = nearest_index(through, size)
    index = first[second]
  return cut(array, window, index, **fills)


def resize_image(image_HWC, window: Window, size: int, *, interpolation: str = "bilinear"):
  """The window resized to size x size with antialiasing. uint8 stays uint8 (rounded), float becomes
  float32 (exact).
  """
  square = cut(image_HWC, window)
  shape = (size, size)
  if image_HWC.dtype != np.uint8:
    return resize_float(square, shape, interpolation)
  if interpolation == "bilinear" and window.side <= size:
    # Enlarging needs no antialiasing, and OpenCV does the same sums eight times faster; shrinking
    # by it would alias.
    enlarged = cv2.resize(square, shape, interpolation=cv2.INTER_LINEAR)
    return enlarged.reshape(size, size, -1)
  resized = Image.fromarray(square).resize(shape, INTERPOLATIONS[interpolation])
  return np.asarray(resized)


def resize_float(array_HWC, shape: tuple[int, int], interpolation: str = "bilinear"):
  """(H, W, C) float -> (*shape, C) float32 with antialiasing, every channel at full precision."""
  array_HWC = array_HWC.astype(np.float32)
  if array_HWC.shape[:2] == tuple(shape):
    return array_HWC

  # Pillow keeps the precision of single float planes only; its sizes are (width, height).
  height, width = shape
  planes = []
  for c in range(array_HWC.shape[-1]):
    plane = np.ascontiguousarray(array_HWC[..., c])
    resized = Image.fromarray(plane).resize((width, height), INTERPOLATIONS[interpolation])
    planes.append(np.asarray(resized))
  return np.stack(planes, axis=-1)


def resize_pointmap(pointmap_HW3, shape: tuple[int, int]):
  """Point map resized (bilinear, antialiased) to an image's size; unknown points count as zero and
  stay unknown (nearest).
  """
  height, width = pointmap_HW3.shape[:2]
  if (height, width) == tuple(shape):
    return pointmap_HW3
  unknown = np.isnan(pointmap_HW3)
  filled = np.where(unknown, 0, pointmap_HW3)
  out = resize_float(filled, shape)

  # Unknown again where the nearest point of the map is.
  rows = nearest_index(height, shape[0])
  columns = nearest_index(width, shape[1])
  unknown_HW = unknown.any(-1)
  out[unknown_HW[rows[:, None], columns]] = np.nan
  return out


class Enlarged:
  """A point map as `resize_pointmap` enlarges it, computed only at the pixels that are read."""

  def __init__(self, pointmap_HW3, shape: tuple[int, int]):
    unknown = np.isnan(pointmap_HW3)
    zero = np.float32(0)
    self.unknown_HW = unknown.any(-1)
    self.points_HW3 = np.where(unknown, zero, pointmap_HW3)
    self.shape = (*shape, 3)

  def at(self, rows, columns):
    """(len(rows), len(columns), 3) points at rows and columns of the enlarged map, NaN where
    unknown.
    """
    out = self._between(self.points_HW3, rows, 0)
    out = self._between(out, columns, 1)

    # Unknown where the nearest point of the map is.
    height, width = self.unknown_HW.shape
    near_rows = nearest_index(height, self.shape[0])[rows]
    near_columns = nearest_index(width, self.shape[1])[columns]
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
    low = np.minimum(place.astype(np.int64), max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    along = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    part = (place - low).astype(np.float32).reshape(along)

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
  enlarges = height <= shape[0] and width <= shape[1]
  if enlarges:
    return Enlarged(pointmap_HW3, shape)
  return resize_pointmap(pointmap_HW3, shape)


def preprocess(
  image_HW3,
  mask_HW,
  pointmap_HW3=None,
  *,
  image_size: int,
  pointmap_size: int,
  streams: tuple[str, ...],
  resize_twice: bool = True,
  normalise_pointmap: bool = True,
  normaliser: Normaliser = ObjectCentric(),
  box_factor: float = BOX_FACTOR,
  padding: float = 0.0,
  shift: tuple[float, float] = (0.0, 0.0),
  pointmap_fill: float = 0.0,
  interpolation: str = "bilinear",
) -> dict[str, np.ndarray]:
  """The conditioning streams of one object.

  Args:
    image_HW3: photo, uint8 (streams come out uint8, the fast path) or float in 0..1 (streams come
    out float32, exact).
    mask_HW: bool or integer (non-zero is object; streams come out uint8 0/1) or float in 0..1
    (streams come out float).
    pointmap_HW3: camera-frame points, NaN where unknown, of the photo's or another size; None if
    there is none.
    image_size: side of the image and mask streams.
    pointmap_size: side of the point-map streams.
    streams: which fields of sam3d_jax.batch.Conditioning to make.
    resize_twice: point maps are resized to image_size and from there to pointmap_size, as published
    (other source pixels than in one resize).
    normalise_pointmap: give the point maps in the normaliser's units; the scale and shift are
    computed either way.
    normaliser: see sam3d_jax/geometry/normalisers.py.
    box_factor, padding, shift: see `crop_window`.
    pointmap_fill: value of point maps outside the photo. The published 0 is the object's centre;
    NaN would say "unknown".
    interpolation: of images, "bilinear" or "bicubic".

  Returns:
    stream -> array without batch axis, and with a point map also `pointmap_scale` and
    `pointmap_shift`, (3,) float32.

  Raises:
    MaskError: empty or tiny mask. ValueError: sizes of image and mask differ, or a point-map stream
    without a point map.
  """
  if image_HW3.shape[:2] != mask_HW.shape:
    raise ValueError(f"the image is {image_HW3.shape[:2]}, its mask {mask_HW.shape}")
  wants_pointmap = {"pointmap", "rgb_pointmap"} & set(streams)
  if pointmap_HW3 is None and wants_pointmap:
    raise ValueError(f"streams {streams} need a point map, and there is none")
  if not np.issubdtype(mask_HW.dtype, np.floating):
    mask_HW = (mask_HW != 0).astype(np.uint8)

  # The object's crop and the whole photo, as image and as mask.
  crop = crop_window(
    mask_HW,
    box_factor=box_factor,
    padding=padding,
    shift=shift,
  )
  photo = square_window(*mask_HW.shape)
  out = {}
  for name, window in (("image", crop), ("rgb_image", photo)):
    if name in streams:
      out[name] = resize_image(
        image_HW3,
        window,
        image_size,
        interpolation=interpolation,
      )
  for name, window in (("mask", crop), ("rgb_image_mask", photo)):
    if name in streams:
      out[name] = resize_nearest(mask_HW[..., None], window, image_size)
  if pointmap_HW3 is None:
    return out

  # What makes the point map independent of the scene's unit.
  pointmap_HW3 = pointmap_HW3.astype(np.float32, copy=False)
  moments = normaliser.scale_shift(pointmap_HW3, mask_HW)
  out["pointmap_scale"] = moments.scale
  out["pointmap_shift"] = moments.shift
  through = image_size if resize_twice else None

  def convert(points):
    """The points in the units that are asked for."""
    if not normalise_pointmap:
      return points
    return normaliser.apply(points, moments)

  # The object's part: beyond the crop's box nothing is known.
  if "pointmap" in streams:
    fills = {"outside": pointmap_fill, "beyond_box": np.nan}
    if pointmap_HW3.shape[:2] == mask_HW.shape:
      source = pointmap_HW3
      fills["convert"] = convert
    else:
      # Resampled to the photo's pixels after normalisation: unknown points count as zero there.
      source = resampled(convert(pointmap_HW3), mask_HW.shape)
    out["pointmap"] = resize_nearest(
      source,
      crop,
      pointmap_size,
      through=through,
      **fills,
    )

  # The whole map.
  if "rgb_pointmap" in streams:
    out["rgb_pointmap"] = resize_nearest(
      pointmap_HW3,
      square_window(*pointmap_HW3.shape[:2]),
      pointmap_size,
      through=through,
      convert=convert,
      outside=pointmap_fill,
      beyond_box=pointmap_fill,
    )
  return out
