"""From a photo, a mask and a point map to the model's inputs, on the host.

Every function is deterministic. The object's crop and the whole photo are both square windows onto
the photo (sam3d_jax/geometry/windows.py), read and resized in one go
(sam3d_jax/geometry/resizing.py).
"""

import numpy as np

from sam3d_jax.geometry.normalisers import Normaliser, ObjectCentric
from sam3d_jax.geometry.resizing import resampled, resize_image, resize_nearest
from sam3d_jax.geometry.windows import BOX_FACTOR, crop_window, square_window


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
  # What cannot be made is refused before anything is.
  if image_HW3.shape[:2] != mask_HW.shape:
    raise ValueError(f"the image is {image_HW3.shape[:2]}, its mask {mask_HW.shape}")
  wants_pointmap = {"pointmap", "rgb_pointmap"} & set(streams)
  if pointmap_HW3 is None and wants_pointmap:
    raise ValueError(f"streams {streams} need a point map, and there is none")
  # Masks of integers and booleans become 0/1; soft masks stay soft.
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
  # Masks by nearest neighbour: they stay 0/1.
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
