"""Folding low-rank adapters into the kernels they adapt, array by array, for export."""

from collections.abc import Mapping

import numpy as np

from sam3d_jax.models.lora import adapted, adapted_kernels, factor_paths
from sam3d_jax.models.parameters import LazyParams


def merge(
  params: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], scale: float
) -> LazyParams:
  """The parameters with kernel + scale * lora_a @ lora_b for every adapted kernel, without factors.

  Shapes as in `models.lora`. Raises InputError for a factor without its partner or kernel, or whose
  shape does not fit.
  """
  kernels = adapted_kernels(shapes)

  def make(path: str) -> np.ndarray:
    if path not in kernels:
      return params[path]
    # the kernel first: files hold its factors right after it
    kernel = np.asarray(params[path])
    a_path, b_path = kernels[path]
    a = np.asarray(params[a_path])
    b = np.asarray(params[b_path])
    return adapted(kernel, a, b, scale)

  factors = set(factor_paths(shapes))
  left = {path: shape for path, shape in shapes.items() if path not in factors}
  return LazyParams(left, make)
