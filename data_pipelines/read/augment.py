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
from sam3d_jax.geometry.preprocessing import BOX_FACTOR

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
    for name in ("erode", "dilate", "blur", "colour", "light"):
      if not 0 <= getattr(self, name) <= 1:
        raise ConfigError(f"data.augment.{name} = {getattr(self, name)}: it must be a probability")
    if self.erode + self.dilate > 1:
      raise ConfigError(
        f"data.augment.erode + dilate = {self.erode + self.dilate}: together at most 1"
      )
    for name, lowest, highest in (
      ("kernel", 1, np.inf),
      ("blur_scale", 0, 1),
      ("box_factor", 1, np.inf),
    ):
      low, high = getattr(self, name)
      if not lowest <= low <= high <= highest or high <= 0:
        raise ConfigError(
          f"data.augment.{name} = {(low, high)}: it must be a range (low, high) within "
          f"{lowest}..{highest}"
        )
    for name in ("brightness", "contrast", "saturation", "light_range", "shift"):
      if not 0 <= getattr(self, name) < 1:
        raise ConfigError(f"data.augment.{name} = {getattr(self, name)}: it must lie in [0, 1)")

  @property
  def active(self) -> bool:
    """Whether anything can change."""
    still = all(
      getattr(self, name) == 0 for name in ("erode", "dilate", "blur", "colour", "light", "shift")
    )
    return not (still and tuple(self.box_factor) == (BOX_FACTOR, BOX_FACTOR))


class Augmented(NamedTuple):
  """An augmented photo and mask, and the crop to take from them (arguments of
  transforms.preprocess).
  """

  image: np.ndarray
  mask: np.ndarray
  box_factor: float
  shift: tuple[float, float]


def augment(image_HW3, mask_HW, rng: np.random.Generator, cfg: AugmentConfig) -> Augmented:
  """Draws and applies all augmentations. image_HW3 is uint8, mask_HW bool or uint8; both keep dtype
  and size.
  """
  chance = dict(zip(("mask", "blur", "colour", "light"), rng.random(4), strict=True))
  kernel = int(rng.integers(cfg.kernel[0], cfg.kernel[1] + 1))
  blur_scale = rng.uniform(*cfg.blur_scale)
  factors = 1 + rng.uniform(-1, 1, 3) * (cfg.brightness, cfg.contrast, cfg.saturation)
  angle, gain = rng.uniform(0, 2 * np.pi), rng.uniform(0, cfg.light_range)
  box_factor, shift = rng.uniform(*cfg.box_factor), rng.uniform(-cfg.shift, cfg.shift, 2)
  if chance["mask"] < cfg.erode:
    mask_HW = erode(mask_HW, kernel)
  elif chance["mask"] < cfg.erode + cfg.dilate:
    mask_HW = dilate(mask_HW, kernel)
  if chance["blur"] < cfg.blur:
    image_HW3 = resample_blur(image_HW3, blur_scale)
  if chance["colour"] < cfg.colour:
    image_HW3 = adjust_colour(image_HW3, *factors)
  if chance["light"] < cfg.light:
    image_HW3 = light_ramp(image_HW3, angle, gain)
  return Augmented(image_HW3, mask_HW, float(box_factor), (float(shift[0]), float(shift[1])))


def dilate(mask_HW, kernel: int):
  """Grows the mask by a kernel x kernel square."""
  return _morph(mask_HW, kernel, ndimage.maximum_filter)


def erode(mask_HW, kernel: int):
  """Shrinks the mask by a kernel x kernel square; a mask that would fall below 3 x 3 pixels stays
  as it is.
  """
  out = _morph(mask_HW, kernel, ndimage.minimum_filter)
  rows, columns = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
  vanishes = len(rows) == 0 or rows[-1] - rows[0] < 2 or columns[-1] - columns[0] < 2
  return mask_HW if vanishes else out


def _morph(mask_HW, kernel, filter_fn):
  """Filters the mask's box and a margin around it, which is all that can change."""
  rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
  if not len(rows):
    return mask_HW
  box = (
    slice(max(0, rows[0] - kernel), rows[-1] + kernel + 1),
    slice(max(0, columns[0] - kernel), columns[-1] + kernel + 1),
  )
  out = mask_HW.copy()
  out[box] = filter_fn(mask_HW[box], size=kernel, mode="nearest")
  return out


def resample_blur(image_HW3, scale: float):
  """Shrinks a uint8 image by `scale` (bilinear, antialiased) and enlarges it to its size again."""
  height, width = image_HW3.shape[:2]
  small = Image.fromarray(image_HW3).resize(
    (max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BILINEAR
  )
  return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def adjust_colour(image_HW3, brightness: float, contrast: float, saturation: float):
  """Multiplies brightness, contrast about the mean luma, and saturation about each pixel's luma: a
  matrix and an offset.
  """
  mean = float(image_HW3[::4, ::4].reshape(-1, 3).astype(np.float32).mean(0) @ LUMA) * brightness
  to_grey = np.broadcast_to(LUMA[:, None], (3, 3))
  matrix = (
    brightness * contrast * (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * to_grey)
  ).astype(np.float32)
  out = image_HW3.reshape(-1, 3).astype(np.float32) @ matrix + np.float32((1 - contrast) * mean)
  return _to_uint8(out).reshape(image_HW3.shape)


def light_ramp(image_HW3, angle: float, gain: float):
  """Multiplies the image by a linear ramp from 1 - gain to 1 + gain along direction `angle`
  (radians, from right to down).
  """
  height, width = image_HW3.shape[:2]
  x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
  reach = abs(np.cos(angle)) + abs(np.sin(angle))
  ramp = 1 + np.float32(gain / reach) * (
    np.float32(np.cos(angle)) * x[None, :] + np.float32(np.sin(angle)) * y[:, None]
  )
  return _to_uint8(image_HW3 * ramp[..., None])


def _to_uint8(image):
  return np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8)
