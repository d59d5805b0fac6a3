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
  rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
  if not len(rows):
    raise MaskError("the mask is empty")
  top, bottom, left, right = (int(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
  if right - left < 2 or bottom - top < 2:
    raise MaskError(
      f"the mask spans {right - left + 1} x {bottom - top + 1} pixels; a crop needs at least 3 x 3"
    )
  size = int(max(right - left, bottom - top) * box_factor)
  centre_x, centre_y = (left + right) / 2 + shift[0] * size, (top + bottom) / 2 + shift[1] * size
  half = size // 2
  return int(centre_x - half), int(centre_y - half), int(centre_x + half), int(centre_y + half)


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
  x1, y1, x2, y2 = mask_box(mask_HW, box_factor, shift)
  width, height = x2 - x1, y2 - y1
  side = max(width, height)
  extend = int(side * padding)
  return Window(
    (x1, y1, x2, y2),
    x1 - (side - width) // 2 - extend,
    y1 - (side - height) // 2 - extend,
    side + 2 * extend,
  )


def square_window(height: int, width: int) -> Window:
  """The whole image, centred in a square."""
  side = max(height, width)
  return Window((0, 0, width, height), -((side - width) // 2), -((side - height) // 2), side)


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
  index = np.arange(window.side) if index is None else index
  rows, columns = index + window.y, index + window.x
  (r0, r1), (c0, c1) = (
    _span(rows, max(0, y1), min(height, y2)),
    _span(columns, max(0, x1), min(width, x2)),
  )
  seen = (rows[r0:r1], columns[c0:c1])
  pixels = (
    array.at(*seen)
    if isinstance(array, Enlarged)
    else _gather(_gather(array, seen[0], 0), seen[1], 1)
  )
  pixels = pixels if convert is None else convert(pixels)
  out = np.full((len(index), len(index), array.shape[2]), beyond_box, pixels.dtype)
  (b0, b1), (d0, d1) = _span(rows, y1, y2), _span(columns, x1, x2)
  out[b0:b1, d0:d1] = outside
  out[r0:r1, c0:c1] = pixels
  return out


def _span(index, low: int, high: int) -> tuple[int, int]:
  """Range of positions of an ascending index whose values are in [low, high)."""
  start, stop = np.searchsorted(index, (low, high))
  return int(start), max(int(start), int(stop))


def _gather(array, index, axis: int):
  """np.take, as a view where the index is a run."""
  if len(index) and index[-1] - index[0] + 1 == len(index):
    run = slice(int(index[0]), int(index[-1]) + 1)
    return array[run] if axis == 0 else array[:, run]
  return np.take(array, index, axis=axis)


def resize_nearest(array, window: Window, size: int, *, through: int | None = None, **fills):
  """The window resized to size x size by nearest neighbour; fills as in `cut`.

  through: a size in between that it is resized to first. The two resizes are one reading: their
  index maps are composed, and the picture in between is never made.
  """
  if through is None:
    index = nearest_index(window.side, size)
  else:
    index = nearest_index(window.side, through)[nearest_index(through, size)]
  return cut(array, window, index, **fills)


def resize_image(image_HWC, window: Window, size: int, *, interpolation: str = "bilinear"):
  """The window resized to size x size with antialiasing. uint8 stays uint8 (rounded), float becomes
  float32 (exact).
  """
  square = cut(image_HWC, window)
  if image_HWC.dtype == np.uint8:
    if interpolation == "bilinear" and window.side <= size:
      # Enlarging needs no antialiasing, and OpenCV does the same sums eight times faster; shrinking
      # by it would alias.
      return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR).reshape(
        size, size, -1
      )
    return np.asarray(Image.fromarray(square).resize((size, size), INTERPOLATIONS[interpolation]))
  return resize_float(square, (size, size), interpolation)


def resize_float(array_HWC, shape: tuple[int, int], interpolation: str = "bilinear"):
  """(H, W, C) float -> (*shape, C) float32 with antialiasing, every channel at full precision."""
  array_HWC = array_HWC.astype(np.float32)
  if array_HWC.shape[:2] == tuple(shape):
    return array_HWC
  resize = lambda plane: Image.fromarray(np.ascontiguousarray(plane)).resize(
    shape[::-1], INTERPOLATIONS[interpolation]
  )
  return np.stack(
    [np.asarray(resize(array_HWC[..., c])) for c in range(array_HWC.shape[-1])], axis=-1
  )


def resize_pointmap(pointmap_HW3, shape: tuple[int, int]):
  """Point map resized (bilinear, antialiased) to an image's size; unknown points count as zero and
  stay unknown (nearest).
  """
  if pointmap_HW3.shape[:2] == tuple(shape):
    return pointmap_HW3
  unknown = np.isnan(pointmap_HW3)
  out = resize_float(np.where(unknown, 0, pointmap_HW3), shape)
  rows, columns = (nearest_index(n, m) for n, m in zip(pointmap_HW3.shape[:2], shape, strict=True))
  out[unknown.any(-1)[rows[:, None], columns]] = np.nan
  return out


class Enlarged:
  """A point map as `resize_pointmap` enlarges it, computed only at the pixels that are read."""

  def __init__(self, pointmap_HW3, shape: tuple[int, int]):
    self.unknown_HW = np.isnan(pointmap_HW3).any(-1)
    self.points_HW3 = np.where(np.isnan(pointmap_HW3), np.float32(0), pointmap_HW3)
    self.shape = (*shape, 3)

  def at(self, rows, columns):
    """(len(rows), len(columns), 3) points at rows and columns of the enlarged map, NaN where
    unknown.
    """
    out = self._between(self.points_HW3, rows, 0)
    out = self._between(out, columns, 1)
    near = [
      nearest_index(n, m)[index]
      for n, m, index in zip(self.unknown_HW.shape, self.shape, (rows, columns), strict=False)
    ]
    out[self.unknown_HW[near[0][:, None], near[1]]] = np.nan
    return out

  def _between(self, array, index, axis: int):
    """Linear interpolation at pixel centres along an axis; beyond the outermost centres the value
    stays.
    """
    size = array.shape[axis]
    place = np.clip((index + 0.5) * (size / self.shape[axis]) - 0.5, 0, size - 1)
    low = np.minimum(place.astype(np.int64), max(size - 2, 0))
    part = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    first = np.take(array, low, axis)
    step = np.take(array, np.minimum(low + 1, size - 1), axis)
    step -= first
    step *= part
    step += first
    return step


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
  if pointmap_HW3 is None and {"pointmap", "rgb_pointmap"} & set(streams):
    raise ValueError(f"streams {streams} need a point map, and there is none")
  if not np.issubdtype(mask_HW.dtype, np.floating):
    mask_HW = (mask_HW != 0).astype(np.uint8)
  crop = crop_window(mask_HW, box_factor=box_factor, padding=padding, shift=shift)
  photo = square_window(*mask_HW.shape)
  out = {}
  for name, window in (("image", crop), ("rgb_image", photo)):
    if name in streams:
      out[name] = resize_image(image_HW3, window, image_size, interpolation=interpolation)
  for name, window in (("mask", crop), ("rgb_image_mask", photo)):
    if name in streams:
      out[name] = resize_nearest(mask_HW[..., None], window, image_size)
  if pointmap_HW3 is None:
    return out
  pointmap_HW3 = pointmap_HW3.astype(np.float32, copy=False)
  moments = normaliser.scale_shift(pointmap_HW3, mask_HW)
  convert = lambda points: normaliser.apply(points, moments) if normalise_pointmap else points
  through = image_size if resize_twice else None
  if "pointmap" in streams:
    fills = {"outside": pointmap_fill, "beyond_box": np.nan}
    if pointmap_HW3.shape[:2] == mask_HW.shape:
      out["pointmap"] = resize_nearest(
        pointmap_HW3, crop, pointmap_size, through=through, convert=convert, **fills
      )
    else:  # resampled to the photo's pixels after normalisation: unknown points count as zero there
      enlarges = all(n <= m for n, m in zip(pointmap_HW3.shape, mask_HW.shape, strict=False))
      resampled = (Enlarged if enlarges else resize_pointmap)(convert(pointmap_HW3), mask_HW.shape)
      out["pointmap"] = resize_nearest(resampled, crop, pointmap_size, through=through, **fills)
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
  return out | {"pointmap_scale": moments.scale, "pointmap_shift": moments.shift}
