"""Linear light and sRGB (IEC 61966-2-1)."""

import numpy as np


def srgb_to_linear(encoded: np.ndarray) -> np.ndarray:
  """Linear float32 of sRGB values in 0..1."""
  # A straight line near black, a power above it.
  encoded = np.asarray(encoded, np.float32)
  is_dark = encoded <= 0.04045
  dark = encoded / 12.92
  base = (encoded + 0.055) / 1.055
  bright = base**2.4
  linear = np.where(is_dark, dark, bright)
  return linear.astype(np.float32)


def linear_to_srgb8(linear: np.ndarray) -> np.ndarray:
  """uint8 sRGB of linear values, cut to 0..1."""
  # The same two pieces, inverted.
  linear = np.clip(linear, 0.0, 1.0)
  is_dark = linear <= 0.0031308
  dark = 12.92 * linear
  power = np.power(linear, 1 / 2.4)
  bright = 1.055 * power - 0.055
  encoded = np.where(is_dark, dark, bright)
  return np.rint(encoded * 255).astype(np.uint8)
