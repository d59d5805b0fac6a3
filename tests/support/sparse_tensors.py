"""Random sparse tensors, and their convolution written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models import sparse

_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


downsample = _jit(sparse.downsample, static_argnames="size")


def tensor(rng, counts=(9, 4), side=4, channels=2, padding=3) -> sparse.SparseTensor:
  """Distinct random voxels in random order, with random features."""
  grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
  coords = [
    np.concatenate([np.full((n, 1), b), grid[rng.permutation(len(grid))[:n]]], axis=1)
    for b, n in enumerate(counts)
  ]
  feats = rng.standard_normal((sum(counts), channels)).astype(np.float32)
  return sparse.pack(feats, np.concatenate(coords), len(counts), max(counts) + padding)


def dense_grid(x: sparse.SparseTensor, side: int):
  """(B, side, side, side, C), zero where there is no voxel."""
  grid = jnp.zeros((len(x.count_B), side, side, side, x.feats_BVC.shape[-1]))
  b = jnp.arange(len(x.count_B))[:, None]
  return grid.at[b, *jnp.moveaxis(x.coords_BV3, -1, 0)].add(
    jnp.where(x.valid_BV[..., None], x.feats_BVC, 0)
  )


def brute_force_conv(x: sparse.SparseTensor, weight) -> np.ndarray:
  """y[p] = sum over d of weight[:, d + 1] @ x[p + d], voxel by voxel; weight (out, 3, 3, 3, in)."""
  feats, coords = sparse.unpack(x)
  rows = {tuple(c): i for i, c in enumerate(coords.tolist())}
  out = np.zeros((len(feats), weight.shape[0]))
  for i, (b, *p) in enumerate(coords.tolist()):
    for d in np.ndindex(3, 3, 3):
      j = rows.get((b, *(a + s - 1 for a, s in zip(p, d, strict=True))))
      if j is not None:
        out[i] += weight[:, *d] @ feats[j]
  return out
