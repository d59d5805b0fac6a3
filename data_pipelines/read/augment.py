"""Read-time augmentations of mid-training: mask boundary, blur by down- and up-sampling, light and
colour, crop jitter.

All randomness comes from the generator that is passed in; the loader makes one per (seed, step,
example key). Every draw happens whether or not its augmentation applies, so that changing one
probability leaves the others' draws as they were.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry.windows import BOX_FACTOR

CHANCES = ("erode", "dilate", "blur", "colour", "light")  # probabilities of an AugmentConfig
FRACTIONS = ("brightness", "contrast", "saturation", "light_range", "shift")
RANGES = {"kernel": (1, np.inf), "blur_scale": (0, 1), "box_factor": (1, np.inf)}  # their limits
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Probabilities and ranges; the zero defaults of the probabilities change nothing.

  erode, dilate: probabilities of eroding or dilating the mask by a square of `kernel` pixels
  (inclusive range). blur: probability of shrinking the photo by a factor in `blur_scale` and
  enlarging it again. colour: probability of changing brightness, contrast and saturation, each by a
  factor in 1 +- its range. light: probability of a linear ramp of light across the photo, between 1
  - light_range and 1 + light_range. box_factor: range of the crop's side over the mask's box.
  shift: largest shift of the crop, as a fraction of its side.
  """

  erode: float = 0.0
  dilate: float = 0.0
  kernel: tuple[int, int] = (2, 5)
  blur: float = 0.0
  blur_scale: tuple[float, float] = (0.05, 0.95)
  colour: float = 0.0
  brightness: float = 0.2
  contrast: float = 0.2
  saturation: float = 0.2
  light: float = 0.0
  light_range: float = 0.3
  box_factor: tuple[float, float] = (BOX_FACTOR, BOX_FACTOR)
  shift: float = 0.0

  def __post_init__(self):
    # probabilities
    # Checked with the configuration, before any data is opened.
    for name in CHANCES:
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ConfigError(f"data.augment.{name} = {value}: it must be a probability")
    either = self.erode + self.dilate
    if either > 1:
      raise ConfigError(f"data.augment.erode + dilate = {either}: together at most 1")

    # ranges
    for name, (lowest, highest) in RANGES.items():
      low, high = getattr(self, name)
      ascends = lowest <= low <= high <= highest
      if not ascends or high <= 0:
        raise ConfigError(
          f"data.augment.{name} = {(low, high)}: it must be a range (low, high) within "
          f"{lowest}..{highest}"
        )
    for name in FRACTIONS:
      value = getattr(self, name)
      if not 0 <= value < 1:
        raise ConfigError(f"data.augment.{name} = {value}: it must lie in [0, 1)")

  @property
  def active(self) -> bool:
    """Whether anything can change."""
    happens = any(getattr(self, name) != 0 for name in CHANCES)
    low, high = self.box_factor
    resizes = (low, high) != (BOX_FACTOR, BOX_FACTOR)
    moves = self.shift != 0
    return happens or resizes or moves


class Augmented(NamedTuple):
  """An augmented photo and mask, and the crop to take from them.

  box_factor, shift: arguments of sam3d_jax.geometry.windows.crop_window.
  """

  image: np.ndarray
  mask: np.ndarray
  box_factor: float
  shift: tuple[float, float]


def augment(image_HW3, mask_HW, rng: np.random.Generator, cfg: AugmentConfig) -> Augmented:
  """Draws and applies all augmentations. image_HW3 is uint8, mask_HW bool or uint8; both keep dtype
  and size.
  """
  # every draw, whether or not it is used
  chance_mask, chance_blur, chance_colour, chance_light = rng.random(4)
  smallest, largest = cfg.kernel
  kernel = int(rng.integers(smallest, largest + 1))
  blur_scale = rng.uniform(*cfg.blur_scale)
  reach_3 = (cfg.brightness, cfg.contrast, cfg.saturation)
  deviation_3 = rng.uniform(-1, 1, 3)
  brightness, contrast, saturation = 1 + deviation_3 * reach_3
  angle = rng.uniform(0, 2 * np.pi)
  gain = rng.uniform(0, cfg.light_range)
  box_factor = rng.uniform(*cfg.box_factor)
  shift_x, shift_y = rng.uniform(-cfg.shift, cfg.shift, 2)

  # the mask: one number decides between shrinking and growing
  if chance_mask < cfg.erode:
    mask_HW = erode(mask_HW, kernel)
  elif chance_mask < cfg.erode + cfg.dilate:
    mask_HW = dilate(mask_HW, kernel)

  # the photo
  if chance_blur < cfg.blur:
    image_HW3 = resample_blur(image_HW3, blur_scale)
  if chance_colour < cfg.colour:
    image_HW3 = adjust_colour(image_HW3, brightness, contrast, saturation)
  if chance_light < cfg.light:
    image_HW3 = light_ramp(image_HW3, angle, gain)

  return Augmented(
    image_HW3,
    mask_HW,
    box_factor=float(box_factor),
    shift=(float(shift_x), float(shift_y)),
  )


def dilate(mask_HW, kernel: int):
  """Grows the mask by a kernel x kernel square."""
  return _morph(mask_HW, kernel, ndimage.maximum_filter)


def erode(mask_HW, kernel: int):
  """Shrinks the mask by a kernel x kernel square; a mask that would fall below 3 x 3 pixels stays
  as it is.
  """
  # a crop needs 3 x 3 pixels (windows.mask_box)
  out = _morph(mask_HW, kernel, ndimage.minimum_filter)
  box = _box(out)
  if box is None:
    return mask_HW
  top, bottom, left, right = box
  is_low = bottom - top < 2
  is_narrow = right - left < 2
  return mask_HW if is_low or is_narrow else out


def _morph(mask_HW, kernel: int, filter_fn):
  """Filters the mask's box and a margin around it, which is all that can change."""
  box = _box(mask_HW)
  if box is None:
    return mask_HW
  top, bottom, left, right = box
  # slices end at the picture's border by themselves, but must not begin below 0
  first_row = max(0, top - kernel)
  first_column = max(0, left - kernel)
  rows = slice(first_row, bottom + kernel + 1)
  columns = slice(first_column, right + kernel + 1)
  out = mask_HW.copy()
  out[rows, columns] = filter_fn(
    mask_HW[rows, columns],
    size=kernel,
    mode="nearest",
  )
  return out


def _box(mask_HW) -> tuple[int, int, int, int] | None:
  """(top, bottom, left, right) of the pixels that are set, all inclusive; None if none is."""
  in_row = mask_HW.any(1)
  in_column = mask_HW.any(0)
  rows = np.flatnonzero(in_row)
  columns = np.flatnonzero(in_column)
  if not len(rows):
    return None
  return rows[0], rows[-1], columns[0], columns[-1]


def resample_blur(image_HW3, scale: float):
  """Shrinks a uint8 image by `scale` (bilinear, antialiased) and enlarges it to its size again."""
  height, width = image_HW3.shape[:2]
  small_height = int(height * scale)
  small_width = int(width * scale)
  small_height = max(1, small_height)
  small_width = max(1, small_width)

  # Pillow takes width before height
  # Pillow's bilinear widens its support when it shrinks: no aliasing.
  how = Image.Resampling.BILINEAR
  image = Image.fromarray(image_HW3)
  small = image.resize((small_width, small_height), how)
  blurred = small.resize((width, height), how)
  return np.asarray(blurred)


def adjust_colour(image_HW3, brightness: float, contrast: float, saturation: float):
  """Multiplies brightness, contrast about the mean luma, and saturation about each pixel's luma: a
  matrix and an offset.
  """
  # the mean luma of the brightened photo, from every fourth pixel of every fourth row
  sample_HW3 = image_HW3[::4, ::4]
  sample_P3 = sample_HW3.reshape(-1, 3)
  sample_P3 = sample_P3.astype(np.float32)
  mean_3 = sample_P3.mean(0)
  mean_luma = float(mean_3 @ LUMA)
  mean = mean_luma * brightness

  # saturation first, then brightness and contrast: all linear, so one matrix
  colour_33 = np.eye(3, dtype=np.float32)
  grey_33 = np.broadcast_to(LUMA[:, None], (3, 3))
  kept_33 = saturation * colour_33
  faded_33 = (1 - saturation) * grey_33
  saturate_33 = kept_33 + faded_33
  matrix_33 = brightness * contrast * saturate_33
  matrix_33 = matrix_33.astype(np.float32)

  # what contrast takes away comes back at the mean
  offset = np.float32((1 - contrast) * mean)
  pixels_P3 = image_HW3.reshape(-1, 3)
  pixels_P3 = pixels_P3.astype(np.float32)
  changed_P3 = pixels_P3 @ matrix_33 + offset
  rounded_P3 = _to_uint8(changed_P3)
  return rounded_P3.reshape(image_HW3.shape)


def light_ramp(image_HW3, angle: float, gain: float):
  """Multiplies the image by a linear ramp from 1 - gain to 1 + gain along direction `angle`
  (radians, from right to down).
  """
  # coordinates in -1..1 along the direction
  height, width = image_HW3.shape[:2]
  x_W = np.linspace(-1, 1, width, dtype=np.float32)
  y_H = np.linspace(-1, 1, height, dtype=np.float32)
  right = np.cos(angle)
  down = np.sin(angle)
  across_W = np.float32(right) * x_W
  downward_H = np.float32(down) * y_H
  along_HW = across_W[None, :] + downward_H[:, None]

  # the corners get the whole gain
  reach = abs(right) + abs(down)
  slope = np.float32(gain / reach)
  ramp_HW = 1 + slope * along_HW
  lit_HW3 = image_HW3 * ramp_HW[..., None]
  return _to_uint8(lit_HW3)


def _to_uint8(image):
  """Rounds and clips in place of the float array."""
  # In place: pictures are the largest arrays of a row.
  np.rint(image, out=image)
  np.clip(image, 0, 255, out=image)
  return image.astype(np.uint8)
