"""Random sparse tensors, and their convolution written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models import sparse

# compiling is all that takes time here
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

downsample = _jit(sparse.downsample, static_argnames="size")


def tensor(rng, counts=(9, 4), side=4, channels=2, padding=3) -> sparse.SparseTensor:
  """Distinct random voxels in random order, with random features."""
  along = np.arange(side)
  axes = np.meshgrid(along, along, along, indexing="ij")
  grid = np.stack(axes, axis=-1).reshape(-1, 3)

  # rows of (sample, x, y, z)
  coords = []
  for sample, count in enumerate(counts):
    order = rng.permutation(len(grid))
    places = grid[order[:count]]
    samples = np.full((count, 1), sample)
    rows = np.concatenate([samples, places], axis=1)
    coords.append(rows)

  normal = rng.standard_normal((sum(counts), channels))
  feats = normal.astype(np.float32)
  size = max(counts) + padding
  return sparse.pack(feats, np.concatenate(coords), len(counts), size)


def dense_grid(x: sparse.SparseTensor, side: int):
  """(B, side, side, side, C), zero where there is no voxel."""
  batch, channels = len(x.count_B), x.feats_BVC.shape[-1]
  grid = jnp.zeros((batch, side, side, side, channels))
  sample = jnp.arange(batch)[:, None]
  place = jnp.moveaxis(x.coords_BV3, -1, 0)
  # padding adds nothing
  feats_BVC = jnp.where(x.valid_BV[..., None], x.feats_BVC, 0)
  return grid.at[sample, *place].add(feats_BVC)


def brute_force_conv(tensor: sparse.SparseTensor, weight) -> np.ndarray:
  """y[p] = sum over d of weight[:, d + 1] @ x[p + d], voxel by voxel; weight (out, 3, 3, 3, in)."""
  feats, coords = sparse.unpack(tensor)
  row_of = {tuple(place): row for row, place in enumerate(coords.tolist())}
  out = np.zeros((len(feats), weight.shape[0]))
  for (sample, x, y, z), row in row_of.items():
    for dx, dy, dz in np.ndindex(3, 3, 3):
      neighbour = row_of.get((sample, x + dx - 1, y + dy - 1, z + dz - 1))
      if neighbour is not None:
        out[row] += weight[:, dx, dy, dz] @ feats[neighbour]
  return out
