"""Image metrics of rendered views: PSNR and SSIM of pictures in 0..1, channels last."""

import numpy as np


def psnr(image_HWC: np.ndarray, truth_HWC: np.ndarray) -> float:
  """Peak signal-to-noise ratio in dB at peak 1; infinite for equal pictures."""
  image = np.asarray(image_HWC, np.float64)
  difference = image - truth_HWC
  error = np.square(difference).mean()
  if error == 0:
    return float(np.inf)
  # 10 log10(peak^2 / error), of a peak of 1.
  decibel = -10 * np.log10(error)
  return float(decibel)


def ssim(image_HWC: np.ndarray, truth_HWC: np.ndarray) -> float:
  """Structural similarity (Wang et al. 2004), mean over channels.

  Gaussian window of sigma 1.5 cut at 11 x 11, K1 0.01, K2 0.03. Raises ValueError for pictures
  smaller than the window.
  """
  # Slow to import, and needed here only.
  from skimage.metrics import structural_similarity

  size = truth_HWC.shape[:2]
  if min(size) < 11:
    raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {size}")
  # The covariance is the population's, as Wang et al. define it.
  similarity = structural_similarity(
    np.asarray(image_HWC, np.float64),
    np.asarray(truth_HWC, np.float64),
    data_range=1.0,
    channel_axis=-1,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
  )
  return float(similarity)
