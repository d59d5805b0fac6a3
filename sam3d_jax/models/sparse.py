"""Sparse voxel tensors with static shapes: neighbours, convolution, pooling, windows.

Everything runs under `jit` and has gradients. A batch holds the active voxels of each sample in its
own row, padded to a common V: (B, V, C) features, (B, V, 3) coordinates and a count of the valid
ones, which come first. The published code joins all samples into one list with a batch column
instead. With rows, a batch is cut over a mesh like any other, no search or gather leaves its
sample, and the blocks of the dense models serve unchanged.

Rows beyond the count hold zeros; every operation that adds something (a bias, a shift) clears them
again through `SparseTensor.of`. Voxels of a sample are distinct, in any order, with coordinates in
0..MAX_COORDINATE.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.attention import SAVED_NAME, attend_xla

# base of the voxel keys: x * SIDE^2 + y * SIDE + z, with a margin of one voxel, fits int32
SIDE = 1024
MAX_COORDINATE = SIDE - 3
NO_VOXEL = np.iinfo(np.int32).max  # key of padding: sorts last
# (27, 3) offsets, x slowest
TAPS = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
# (8, 3) of a voxel halved, x slowest
CHILDREN = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


class SparseTensor(NamedTuple):
  """Active voxels of a batch: features, integer (x, y, z), and how many rows are no padding."""

  feats_BVC: jax.Array
  coords_BV3: jax.Array
  count_B: jax.Array

  @property
  def valid_BV(self):
    """True where a row is a voxel."""
    return jnp.arange(self.coords_BV3.shape[1]) < self.count_B[:, None]

  def of(self, feats_BVC) -> "SparseTensor":
    """The same voxels with other features, zero in the padding."""
    return self._replace(feats_BVC=jnp.where(self.valid_BV[..., None], feats_BVC, 0))


def pack(feats_NC, coords_N4, batch: int, size: int) -> SparseTensor:
  """From the published form, one list with coordinates (sample, x, y, z), to rows of `size`.

  The order within a sample is kept. Host side (NumPy). Raises ValueError for a sample with more
  than `size` voxels or coordinates outside 0..MAX_COORDINATE.
  """
  feats_NC, coords_N4 = np.asarray(feats_NC), np.asarray(coords_N4)
  xyz_N3 = coords_N4[:, 1:]
  if len(xyz_N3) and not (0 <= xyz_N3.min() and xyz_N3.max() <= MAX_COORDINATE):
    raise ValueError(
      f"voxel coordinates {xyz_N3.min()}..{xyz_N3.max()} are not within 0..{MAX_COORDINATE}"
    )
  feats_BVC = np.zeros((batch, size, feats_NC.shape[1]), feats_NC.dtype)
  coords_BV3 = np.zeros((batch, size, 3), np.int32)
  count_B = np.bincount(coords_N4[:, 0], minlength=batch).astype(np.int32)
  if len(count_B) > batch or count_B.max(initial=0) > size:
    raise ValueError(f"samples of {count_B.tolist()} voxels do not fit into {batch} rows of {size}")
  for b in range(batch):
    of_sample_N = coords_N4[:, 0] == b
    feats_BVC[b, : count_B[b]] = feats_NC[of_sample_N]
    coords_BV3[b, : count_B[b]] = xyz_N3[of_sample_N]
  return SparseTensor(jnp.asarray(feats_BVC), jnp.asarray(coords_BV3), jnp.asarray(count_B))


def unpack(x: SparseTensor) -> tuple[np.ndarray, np.ndarray]:
  """The published form: features (N, C) and coordinates (N, 4), sample by sample. Host side."""
  feats_BVC, coords_BV3 = np.asarray(x.feats_BVC), np.asarray(x.coords_BV3)
  feats, coords = [], []
  for b, count in enumerate(np.asarray(x.count_B)):
    sample_N1 = np.full((count, 1), b, np.int32)
    feats.append(feats_BVC[b, :count])
    coords.append(np.concatenate([sample_N1, coords_BV3[b, :count]], axis=1))
  return np.concatenate(feats), np.concatenate(coords)


def voxel_keys(coords_BV3, valid_BV):
  """One integer a voxel, ordered as (x, y, z); NO_VOXEL in the padding.

  A step of one along an axis adds a constant.
  """
  x, y, z = jnp.unstack(coords_BV3 + 1, axis=-1)
  return jnp.where(valid_BV, (x * SIDE + y) * SIDE + z, NO_VOXEL)


def neighbours(x: SparseTensor):
  """Where the 27 neighbours of each voxel are, in the order of TAPS.

  (27, B, V) rows of its own sample, V where there is none. Made once for a set of coordinates and
  used by all its convolutions. Memory does not depend on the resolution: the keys are sorted and
  searched, no dense grid is made.
  """
  steps = (TAPS @ np.array([SIDE * SIDE, SIDE, 1])).astype(np.int32)

  def sample(keys_V):
    order_V = jnp.argsort(keys_V).astype(jnp.int32)
    sorted_V = keys_V[order_V]
    wanted_TV = jnp.where(keys_V == NO_VOXEL, -1, keys_V + steps[:, None])
    at_TV = jnp.minimum(jnp.searchsorted(sorted_V, wanted_TV), len(keys_V) - 1)
    return jnp.where(sorted_V[at_TV] == wanted_TV, order_V[at_TV], len(keys_V))

  return jax.vmap(sample, out_axes=1)(voxel_keys(x.coords_BV3, x.valid_BV))


def gather(x_BVC, index_BW):
  """Rows of each sample by index, zero where the index is V."""

  def sample(x_VC, index_W):
    return x_VC.at[index_W].get(mode="fill", fill_value=0)

  return jax.vmap(sample)(x_BVC, index_BW)


@jax.custom_vjp
def submanifold_conv(x_BVI, kernel_TIO, neighbours_TBV):
  """3x3x3 cross-correlation at the active voxels only, fp32 out.

  y[p] = sum over offsets d of x[p + d] @ kernel[d]. One tap at a time, so that the 27 gathered
  copies of x never exist together. The gradient gathers too, where automatic differentiation would
  scatter: q is p's neighbour at d exactly if p is q's at -d, and -d is tap 26 - d.
  """
  return _conv(x_BVI, kernel_TIO, neighbours_TBV)


def _conv(x_BVI, kernel_TIO, neighbours_TBV):
  def tap(sum_BVO, one):
    index_BV, kernel_IO = one
    seen_BVI = gather(x_BVI, index_BV)
    term_BVO = jnp.einsum("bvi,io->bvo", seen_BVI, kernel_IO, preferred_element_type=jnp.float32)
    return sum_BVO + term_BVO, None

  zero = jnp.zeros((*x_BVI.shape[:2], kernel_TIO.shape[-1]), jnp.float32)
  return jax.lax.scan(tap, zero, (neighbours_TBV, kernel_TIO))[0]


def _conv_forward(x_BVI, kernel_TIO, neighbours_TBV):
  return _conv(x_BVI, kernel_TIO, neighbours_TBV), (x_BVI, kernel_TIO, neighbours_TBV)


def _conv_backward(residuals, grad_BVO):
  x_BVI, kernel_TIO, neighbours_TBV = residuals
  grad_BVO = grad_BVO.astype(x_BVI.dtype)
  x_bar = _conv(grad_BVO, kernel_TIO[::-1].swapaxes(1, 2), neighbours_TBV)

  def kernel_tap(_, index_BV):
    seen_BVI = gather(x_BVI, index_BV)
    return None, jnp.einsum("bvi,bvo->io", seen_BVI, grad_BVO, preferred_element_type=jnp.float32)

  kernel_bar = jax.lax.scan(kernel_tap, None, neighbours_TBV)[1]
  no_gradient = np.zeros(neighbours_TBV.shape, jax.dtypes.float0)
  return x_bar.astype(x_BVI.dtype), kernel_bar.astype(kernel_TIO.dtype), no_gradient


submanifold_conv.defvjp(_conv_forward, _conv_backward)


class Groups(NamedTuple):
  """Voxels of each sample sorted so that those of one group lie together.

  A group is a coarse voxel or a window; groups are in (x, y, z) order.
  """

  order_BV: jax.Array  # row of the sorted position
  inverse_BV: jax.Array  # sorted position of the row
  rank_BV: jax.Array  # group number of the sorted position, V in the padding
  count_B: jax.Array  # number of groups


def group_by(cells_BV3, valid_BV) -> Groups:
  """Sorts voxels by the cell they lie in; within a cell their order is kept."""

  def sample(keys_V):
    order_V = jnp.argsort(keys_V, stable=True).astype(jnp.int32)
    sorted_V = keys_V[order_V]
    valid_V = sorted_V != NO_VOXEL
    first_V = jnp.concatenate([jnp.ones(1, bool), sorted_V[1:] != sorted_V[:-1]]) & valid_V
    rank_V = jnp.where(valid_V, jnp.cumsum(first_V) - 1, len(keys_V)).astype(jnp.int32)
    place_V = jnp.arange(len(keys_V), dtype=jnp.int32)
    inverse_V = jnp.zeros_like(order_V).at[order_V].set(place_V, unique_indices=True)
    return Groups(order_V, inverse_V, rank_V, first_V.sum(dtype=jnp.int32))

  return jax.vmap(sample)(voxel_keys(cells_BV3, valid_BV))


def downsample(
  x: SparseTensor, factor: int = 2, *, size: int | None = None
) -> tuple[SparseTensor, jax.Array]:
  """Coarser voxels (coordinates // factor) with SUM / (COUNT + 1) of the features, in (x, y, z)
  order, and each voxel's parent row.

  The published pooling starts its mean from a zero that it counts as one more member; weights are
  trained for that. size: rows of the result, by default V. With more coarse voxels than that all
  its features become NaN, rather than some being lost.
  """
  voxels = x.coords_BV3.shape[1]
  size = voxels if size is None else size
  groups = group_by(x.coords_BV3 // factor, x.valid_BV)

  def sample(feats_VC, coords_V3, order_V, rank_V, inverse_V, count):
    ids_V = jnp.where(rank_V < voxels, rank_V, size)  # out of range: dropped

    def add(x):
      return jax.ops.segment_sum(x, ids_V, size, indices_are_sorted=True)

    sums_SC = add(feats_VC[order_V].astype(jnp.float32))
    members_S = add(jnp.ones(voxels, jnp.float32))
    coarse_V3 = coords_V3[order_V] // factor
    coords_S3 = jnp.zeros((size, 3), jnp.int32).at[ids_V].set(coarse_V3, mode="drop")
    feats_SC = jnp.where(count <= size, sums_SC / (members_S[:, None] + 1), jnp.nan)
    return feats_SC.astype(feats_VC.dtype), coords_S3, rank_V[inverse_V]

  feats, coords, parent_BV = jax.vmap(sample)(
    x.feats_BVC, x.coords_BV3, groups.order_BV, groups.rank_BV, groups.inverse_BV, groups.count_B
  )
  coarse = SparseTensor(feats, coords, jnp.minimum(groups.count_B, size))
  return coarse, jnp.where(x.valid_BV, parent_BV, size)


def upsample(coarse: SparseTensor, parent_BV, like: SparseTensor) -> SparseTensor:
  """Every voxel of `like` gets its parent's features.

  `parent_BV` is what `downsample` of `like` returned.
  """
  return like.of(gather(coarse.feats_BVC, parent_BV))


def subdivide(x: SparseTensor) -> SparseTensor:
  """Each voxel becomes its 8 halves with its features, voxel by voxel: (B, 8 V, C)."""
  b, v, c = x.feats_BVC.shape
  coords = (2 * x.coords_BV3[:, :, None] + CHILDREN.astype(np.int32)).reshape(b, 8 * v, 3)
  return SparseTensor(jnp.repeat(x.feats_BVC, 8, axis=1), coords, 8 * x.count_B)


def windows(x: SparseTensor, window: int, shift: int = 0) -> Groups:
  """Which voxels attend to each other: those of one cell (coordinate + shift) // window.

  Made once for all blocks of one shift.
  """
  return group_by((x.coords_BV3 + shift) // window, x.valid_BV)


def attend_in_windows(q_BVHK, k_BVHK, v_BVHK, groups: Groups, window: int):
  """Attention of each voxel to the voxels of its window, (B, V, H, K); exact, with static shapes.

  Sorted by window, a voxel's partners lie fewer than window^3 positions away. So a block of that
  many queries needs the keys of its own block and of the two beside it, masked to equal windows: 3
  V window^3 products instead of V^2, block after block.
  """
  voxels, reach = q_BVHK.shape[1], window**3
  q, k, v = (gather(x, groups.order_BV) for x in (q_BVHK, k_BVHK, v_BVHK))
  if voxels <= 3 * reach:
    same = (groups.rank_BV[:, :, None] == groups.rank_BV[:, None])[:, None]
    out = attend_xla(q, k, v, mask=same)
  else:
    out = _attend_nearby(q, k, v, groups.rank_BV, reach)
  return gather(out, groups.inverse_BV)


def _attend_nearby(q_BVHK, k_BVHK, v_BVHK, rank_BV, block: int):
  """Attention to equal ranks, which lie in the query's own block or in one beside it."""
  voxels = q_BVHK.shape[1]
  blocks = -(-voxels // block)
  tail = blocks * block - voxels

  def pad(x, before, after, value=0):
    margins = ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, margins, constant_values=value)

  # whole blocks of queries; a block of keys more on either side. Ranks of padding meet none.
  q, query_rank = pad(q_BVHK, 0, tail), pad(rank_BV, 0, tail, voxels)
  k, v = pad(k_BVHK, block, block + tail), pad(v_BVHK, block, block + tail)
  key_rank = pad(rank_BV, block, block + tail, -1)

  @jax.checkpoint
  def one(start):
    def near(x, length):
      return jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)

    of_query = near(query_rank, block)[:, :, None]
    of_key = near(key_rank, 3 * block)[:, None]
    same = (of_query == of_key)[:, None]
    return attend_xla(near(q, block), near(k, 3 * block), near(v, 3 * block), mask=same)

  out = jax.lax.map(one, jnp.arange(blocks) * block)  # (blocks, B, block, H, K)
  out_BVHK = jnp.moveaxis(out, 0, 1).reshape(len(q), blocks * block, *q.shape[2:])[:, :voxels]
  return jax.ad_checkpoint.checkpoint_name(out_BVHK, SAVED_NAME)


def group_norm(x: SparseTensor, groups: int, eps: float):
  """Per sample and group of channels, over all voxels of the sample.

  (B, V, C) fp32 without gain, zero in the padding.
  """
  b, v, c = x.feats_BVC.shape
  values = x.feats_BVC.astype(jnp.float32).reshape(b, v, groups, c // groups)
  valid = x.valid_BV[:, :, None, None]
  members = jnp.maximum(x.count_B * (c // groups), 1).astype(jnp.float32)[:, None, None, None]
  mean = jnp.where(valid, values, 0).sum((1, 3), keepdims=True) / members
  centred = jnp.where(valid, values - mean, 0)
  variance = jnp.square(centred).sum((1, 3), keepdims=True) / members
  return (centred * jax.lax.rsqrt(variance + eps)).reshape(b, v, c)
