"""Folding low-rank adapters into the kernels they adapt (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from collections.abc import Mapping
import math

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.torch_bridge.load import LazyParams

FACTORS = ("lora_a", "lora_b")


def factor_paths(paths) -> list[str]:
  """Those of the paths that are low-rank factors."""
  return [p for p in paths if p.rpartition("/")[2] in FACTORS]


def merge(params: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], scale: float) -> LazyParams:
  """The parameters with kernel + scale * lora_a @ lora_b in place of every adapted kernel, and without the factors.

  Beside a kernel (*d_in, *d_out) lie lora_a (*d_in, r) and lora_b (r, *d_out), all three with a leading layer axis in a stack.
  Raises InputError for a factor without its partner or kernel, or whose shape does not fit.
  """
  adapted = {}
  for path in factor_paths(shapes):
    module = path.rpartition("/")[0]
    needed = [f"{module}/{name}" for name in ("kernel", *FACTORS)]
    missing = [p for p in needed if p not in shapes]
    if missing:
      raise InputError(f"{path} cannot be merged: the checkpoint has no {', '.join(missing)}")
    _layers(module, *(shapes[p] for p in needed))
    adapted[needed[0]] = needed[1:]

  def make(path: str) -> np.ndarray:
    if path not in adapted:
      return params[path]
    kernel, (a, b) = np.asarray(params[path]), (np.asarray(params[p]) for p in adapted[path])
    layers = _layers(path, kernel.shape, a.shape, b.shape)
    rank = a.shape[-1]
    delta = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
    return kernel + np.float32(scale) * delta.reshape(kernel.shape)

  factors = set(factor_paths(shapes))
  return LazyParams({p: s for p, s in shapes.items() if p not in factors}, make)


def _layers(name: str, kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> int:
  """Layers of a stack (1 if there is no layer axis); raises InputError unless the three shapes fit."""
  rank = a[-1]
  if b[0] == rank and (*a[:-1], *b[1:]) == tuple(kernel):
    return 1
  if len(b) > 1 and a[0] == b[0] == kernel[0] and b[1] == rank and (*a[:-1], *b[2:]) == tuple(kernel):
    return math.prod(kernel[:1])
  raise InputError(f"{name}: factors {tuple(a)} and {tuple(b)} do not fit the kernel {tuple(kernel)}")
