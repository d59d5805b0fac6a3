"""Index arithmetic of pixel grids."""

import numpy as np


def nearest_index(size_in: int, size_out: int) -> np.ndarray:
  """Source index of every output position of a nearest resize, floor(i * size_in / size_out).

  The ratio is rounded to fp32 first, as in the published code: some indices differ from those of
  exact arithmetic.
  """
  # PyTorch's nearest interpolation computes its ratio in fp32, too.
  ratio = np.float32(size_in) / np.float32(size_out)
  position = np.arange(size_out, dtype=np.float32)
  index = np.floor(position * ratio)
  index = index.astype(np.int64)
  # Rounding can point one past the last index.
  return np.minimum(index, size_in - 1)
