"""Random objects of voxels, packed, and their convolution written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry import packing, voxel_tables
from sam3d_jax.models.sparse import SparseTensor

# compiling is all that takes time here
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIDE = 8
ALL_TABLES = packing.Tables(resolution=SIDE, neighbours=True, pooled=True, window=4)


def voxels(rng, count: int, side: int = SIDE) -> np.ndarray:
  """Distinct random voxels of a grid, in random order."""
  cell_V = rng.permutation(side**3)[:count]
  places = np.unravel_index(cell_V, (side,) * 3)
  return np.stack(places, axis=-1).astype(np.int32)


def packed(
  rng, counts=(9, 4), tables: packing.Tables = ALL_TABLES, shape=None, rows=None
) -> packing.Packed:
  """Random objects of so many voxels, in rows."""
  objects = []
  for count in counts:
    coords = voxels(rng, count, tables.resolution)
    objects.append(packing.object_tables(coords, tables))
  return packing.pack(objects, shape, rows)


def tensor(rng, found: packing.Packed, channels: int = 2) -> SparseTensor:
  """Random features at the voxels, zero in the padding."""
  feats = []
  for place in found.places:
    feats.append(rng.standard_normal((place.count, channels)).astype(np.float32))
  return SparseTensor(jnp.asarray(found.fill(feats)), jax.tree.map(jnp.asarray, found.voxels.fine))


def dense_grids(x: SparseTensor, side: int = SIDE):
  """(R, K, side, side, side, C), a grid for each object; zero where there is no voxel."""
  rows, objects = x.level.count_RK.shape
  channels = x.feats_RVC.shape[-1]
  grid = jnp.zeros((rows, objects, side, side, side, channels))
  # padding adds nothing
  return grid.at[grid_index(x)].add(x.of(x.feats_RVC).feats_RVC)


def grid_index(x: SparseTensor) -> tuple:
  """Where each slot lies in `dense_grids`."""
  row = jnp.arange(len(x.feats_RVC))[:, None]
  place = jnp.moveaxis(x.level.coords_RV3, -1, 0)
  return row, x.level.object_RV, *place


def brute_force_conv(feats_VI: np.ndarray, coords_V3: np.ndarray, weight) -> np.ndarray:
  """y[p] = sum over d of weight[:, d + 1] @ x[p + d], voxel by voxel; weight (out, 3, 3, 3, in)."""
  voxel_at = {tuple(place): v for v, place in enumerate(coords_V3.tolist())}
  out_VO = np.zeros((len(feats_VI), weight.shape[0]))
  for (x, y, z), v in voxel_at.items():
    for tap, (dx, dy, dz) in enumerate(voxel_tables.TAPS.tolist()):
      neighbour = voxel_at.get((x + dx, y + dy, z + dz))
      if neighbour is not None:
        kernel_OI = weight.reshape(len(weight), 27, -1)[:, tap]
        out_VO[v] += kernel_OI @ feats_VI[neighbour]
  return out_VO
