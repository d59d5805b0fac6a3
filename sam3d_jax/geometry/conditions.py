"""From photo, mask and point map to what a model looks at: the one road there.

Training, photos, datasets, evaluation sets and previews all come by here, so that an object looks
the same to a model wherever it comes from. On the host and without JAX, because reading processes
do it.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from sam3d_jax.batch import Conditioning
from sam3d_jax.geometry import preprocessing, windows

STREAMS = Conditioning._fields
POINTMAP_STREAMS = ("pointmap", "rgb_pointmap")


@dataclasses.dataclass(frozen=True)
class InputConfig:
  """The form in which a model reads its inputs.

  image_size, pointmap_size: pixels a side of the images and masks, and of the point maps, that are
  delivered. resize_twice: point maps are resized by way of image_size, as published. streams: the
  fields of Conditioning to deliver.
  """

  image_size: int = 518
  pointmap_size: int = 256
  resize_twice: bool = True
  streams: tuple[str, ...] = STREAMS


class Condition(NamedTuple):
  """What a model is told about one object.

  streams: float or uint8 arrays without batch axis. scale, shift: (3,) float32 of the point map's
  normalisation, which the layout latents are relative to; None without a point map.
  """

  streams: Conditioning
  scale: np.ndarray | None
  shift: np.ndarray | None


def condition(
  image_HW3: np.ndarray,
  mask_HW: np.ndarray,
  pointmap_HW3: np.ndarray | None,
  form: InputConfig,
  *,
  box_factor: float = windows.BOX_FACTOR,
  shift: tuple[float, float] = (0.0, 0.0),
) -> Condition:
  """The condition of one object of a photo.

  Without a point map its streams are NaN, which is to say unknown, in every place; the model then
  drops their tokens, as it does in training.

  Args:
    image_HW3: uint8 photo.
    mask_HW: bool or integer, of the photo's size; non-zero is object.
    pointmap_HW3: camera-frame points, NaN where unknown, of any size with the photo's aspect; None
      if there is none.
    form: what the model reads.
    box_factor, shift: of the crop, see windows.crop_window.

  Raises:
    windows.MaskError: the mask is empty or too small to crop around.
  """
  # Streams of point maps can only be made from one.
  streams = form.streams
  if pointmap_HW3 is None:
    streams = tuple(name for name in streams if name not in POINTMAP_STREAMS)
  # Only the streams that the model reads are made.
  made = preprocessing.preprocess(
    image_HW3,
    mask_HW,
    pointmap_HW3,
    image_size=form.image_size,
    pointmap_size=form.pointmap_size,
    resize_twice=form.resize_twice,
    streams=streams,
    box_factor=box_factor,
    shift=shift,
  )

  # The others are unknown everywhere.
  side = form.pointmap_size
  unknown = np.full((side, side, 3), np.nan, np.float32)
  delivered = {name: made.get(name, unknown) for name in form.streams}

  # Scale and shift are there only with a point map.
  return Condition(
    streams=Conditioning(**delivered),
    scale=made.get("pointmap_scale"),
    shift=made.get("pointmap_shift"),
  )
