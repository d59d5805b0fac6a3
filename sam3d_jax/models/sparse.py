"""Sparse voxel tensors with static shapes: neighbours, convolution, pooling, groups.

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
    # Voxels come first, padding after them.
    rows = self.coords_BV3.shape[1]
    return jnp.arange(rows) < self.count_B[:, None]

  def of(self, feats_BVC) -> "SparseTensor":
    """The same voxels with other features, zero in the padding."""
    valid_BV1 = self.valid_BV[..., None]
    cleared_BVC = jnp.where(valid_BV1, feats_BVC, 0)
    return self._replace(feats_BVC=cleared_BVC)


def pack(feats_NC, coords_N4, batch: int, size: int) -> SparseTensor:
  """From the published form, one list with coordinates (sample, x, y, z), to rows of `size`.

  The order within a sample is kept. Host side (NumPy). Raises ValueError for a sample with more
  than `size` voxels or coordinates outside 0..MAX_COORDINATE.
  """
  feats_NC = np.asarray(feats_NC)
  coords_N4 = np.asarray(coords_N4)
  sample_N = coords_N4[:, 0]
  xyz_N3 = coords_N4[:, 1:]

  # what does not fit
  if len(xyz_N3):
    lowest, highest = xyz_N3.min(), xyz_N3.max()
    if not (lowest >= 0 and highest <= MAX_COORDINATE):
      raise ValueError(
        f"voxel coordinates {lowest}..{highest} are not within 0..{MAX_COORDINATE}",
      )
  # A sample number beyond the batch makes this longer than the batch.
  count_B = np.bincount(sample_N, minlength=batch).astype(np.int32)
  if len(count_B) > batch or count_B.max(initial=0) > size:
    raise ValueError(f"samples of {count_B.tolist()} voxels do not fit into {batch} rows of {size}")

  # a row for each sample, its voxels first
  channels = feats_NC.shape[1]
  feats_BVC = np.zeros((batch, size, channels), feats_NC.dtype)
  coords_BV3 = np.zeros((batch, size, 3), np.int32)
  for b, count in enumerate(count_B):
    of_sample_N = sample_N == b
    feats_BVC[b, :count] = feats_NC[of_sample_N]
    coords_BV3[b, :count] = xyz_N3[of_sample_N]
  return SparseTensor(
    feats_BVC=jnp.asarray(feats_BVC),
    coords_BV3=jnp.asarray(coords_BV3),
    count_B=jnp.asarray(count_B),
  )


def unpack(x: SparseTensor) -> tuple[np.ndarray, np.ndarray]:
  """The published form: features (N, C) and coordinates (N, 4), sample by sample. Host side."""
  feats_BVC = np.asarray(x.feats_BVC)
  coords_BV3 = np.asarray(x.coords_BV3)
  count_B = np.asarray(x.count_B)
  feats = []
  coords = []
  for b, count in enumerate(count_B):
    # The batch column of the published form.
    sample_N1 = np.full((count, 1), b, np.int32)
    xyz_N3 = coords_BV3[b, :count]
    rows_N4 = np.concatenate([sample_N1, xyz_N3], axis=1)
    feats.append(feats_BVC[b, :count])
    coords.append(rows_N4)
  return np.concatenate(feats), np.concatenate(coords)


def voxel_keys(coords_BV3, valid_BV):
  """One integer a voxel, ordered as (x, y, z); NO_VOXEL in the padding.

  A step of one along an axis adds a constant.
  """
  # with a margin, so that a step below 0 is no voxel of the row before
  shifted = coords_BV3 + 1
  x, y, z = jnp.unstack(shifted, axis=-1)
  rows_BV = x * SIDE + y
  keys_BV = rows_BV * SIDE + z
  return jnp.where(valid_BV, keys_BV, NO_VOXEL)


def neighbours(x: SparseTensor):
  """Where the 27 neighbours of each voxel are, in the order of TAPS.

  (27, B, V) rows of its own sample, V where there is none. Made once for a set of coordinates and
  used by all its convolutions. Memory does not depend on the resolution: the keys are sorted and
  searched, no dense grid is made.
  """
  # what a step to each neighbour adds to a key
  strides = np.array([SIDE * SIDE, SIDE, 1])
  steps_T = (TAPS @ strides).astype(np.int32)

  def sample(keys_V):
    voxels = len(keys_V)
    order_V = jnp.argsort(keys_V).astype(jnp.int32)
    sorted_V = keys_V[order_V]
    # the key that a neighbour would have; padding has none
    is_padding_V = keys_V == NO_VOXEL
    wanted_TV = jnp.where(is_padding_V, -1, keys_V + steps_T[:, None])
    # where it would lie, and whether it does
    # A bisection a neighbour: 27 V log V comparisons, no table of the grid.
    place_TV = jnp.searchsorted(sorted_V, wanted_TV)
    at_TV = jnp.minimum(place_TV, voxels - 1)
    found_TV = sorted_V[at_TV] == wanted_TV
    return jnp.where(found_TV, order_V[at_TV], voxels)

  keys_BV = voxel_keys(x.coords_BV3, x.valid_BV)
  return jax.vmap(sample, out_axes=1)(keys_BV)


def gather(x_BVC, index_BW):
  """Rows of each sample by index, zero where the index is V."""

  def sample(x_VC, index_W):
    # The index V lies outside and reads as zero.
    rows = x_VC.at[index_W]
    return rows.get(mode="fill", fill_value=0)

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
    term_BVO = jnp.einsum(
      "bvi,io->bvo",
      seen_BVI,
      kernel_IO,
      preferred_element_type=jnp.float32,
    )
    return sum_BVO + term_BVO, None

  # Summed in fp32, tap after tap.
  batch, voxels = x_BVI.shape[:2]
  channels_out = kernel_TIO.shape[-1]
  zero_BVO = jnp.zeros((batch, voxels, channels_out), jnp.float32)
  taps = (neighbours_TBV, kernel_TIO)
  sum_BVO, _ = jax.lax.scan(tap, zero_BVO, taps)
  return sum_BVO


def _conv_forward(x_BVI, kernel_TIO, neighbours_TBV):
  out_BVO = _conv(x_BVI, kernel_TIO, neighbours_TBV)
  return out_BVO, (x_BVI, kernel_TIO, neighbours_TBV)


def _conv_backward(residuals, grad_BVO):
  x_BVI, kernel_TIO, neighbours_TBV = residuals
  grad_BVO = grad_BVO.astype(x_BVI.dtype)

  # of the features: the same convolution with every offset reversed
  reversed_TOI = kernel_TIO[::-1].swapaxes(1, 2)
  x_bar = _conv(grad_BVO, reversed_TOI, neighbours_TBV)

  # of the kernel: what each tap saw, times what came of it
  def kernel_tap(_, index_BV):
    seen_BVI = gather(x_BVI, index_BV)
    bar_IO = jnp.einsum(
      "bvi,bvo->io",
      seen_BVI,
      grad_BVO,
      preferred_element_type=jnp.float32,
    )
    return None, bar_IO

  _, kernel_bar = jax.lax.scan(kernel_tap, None, neighbours_TBV)

  # rows are integers and have none
  no_gradient = np.zeros(neighbours_TBV.shape, jax.dtypes.float0)
  return (
    x_bar.astype(x_BVI.dtype),
    kernel_bar.astype(kernel_TIO.dtype),
    no_gradient,
  )


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
    voxels = len(keys_V)
    # equal keys side by side, padding last
    order_V = jnp.argsort(keys_V, stable=True).astype(jnp.int32)
    sorted_V = keys_V[order_V]
    valid_V = sorted_V != NO_VOXEL
    # a group begins where the key changes
    head_1 = jnp.ones(1, bool)
    changes = sorted_V[1:] != sorted_V[:-1]
    first_V = jnp.concatenate([head_1, changes]) & valid_V
    number_V = jnp.cumsum(first_V) - 1
    rank_V = jnp.where(valid_V, number_V, voxels).astype(jnp.int32)
    # the way back
    place_V = jnp.arange(voxels, dtype=jnp.int32)
    at_order_V = jnp.zeros_like(order_V).at[order_V]
    inverse_V = at_order_V.set(place_V, unique_indices=True)
    return Groups(
      order_BV=order_V,
      inverse_BV=inverse_V,
      rank_BV=rank_V,
      count_B=first_V.sum(dtype=jnp.int32),
    )

  keys_BV = voxel_keys(cells_BV3, valid_BV)
  return jax.vmap(sample)(keys_BV)


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
  if size is None:
    size = voxels
  # Sorted by parent, siblings lie side by side: a sum by segments.
  groups = group_by(x.coords_BV3 // factor, x.valid_BV)

  def sample(feats_VC, coords_V3, order_V, rank_V, inverse_V, count):
    exists_V = rank_V < voxels
    ids_V = jnp.where(exists_V, rank_V, size)  # out of range: dropped

    def add(x):
      return jax.ops.segment_sum(
        x,
        ids_V,
        size,
        indices_are_sorted=True,
      )

    # sums and members of each coarse voxel
    sorted_VC = feats_VC[order_V].astype(jnp.float32)
    sums_SC = add(sorted_VC)
    members_S = add(jnp.ones(voxels, jnp.float32))
    # where it lies
    coarse_V3 = coords_V3[order_V] // factor
    at_S3 = jnp.zeros((size, 3), jnp.int32).at[ids_V]
    coords_S3 = at_S3.set(coarse_V3, mode="drop")
    # its features, unless some did not fit
    fits = count <= size
    divisor_S1 = members_S[:, None] + 1
    feats_SC = jnp.where(fits, sums_SC / divisor_S1, jnp.nan)
    return feats_SC.astype(feats_VC.dtype), coords_S3, rank_V[inverse_V]

  feats, coords, parent_BV = jax.vmap(sample)(
    x.feats_BVC,
    x.coords_BV3,
    groups.order_BV,
    groups.rank_BV,
    groups.inverse_BV,
    groups.count_B,
  )
  count_B = jnp.minimum(groups.count_B, size)
  coarse = SparseTensor(feats, coords, count_B)
  return coarse, jnp.where(x.valid_BV, parent_BV, size)


def upsample(coarse: SparseTensor, parent_BV, like: SparseTensor) -> SparseTensor:
  """Every voxel of `like` gets its parent's features.

  `parent_BV` is what `downsample` of `like` returned.
  """
  # Padding has the row `size`, which reads as zero.
  feats_BVC = gather(coarse.feats_BVC, parent_BV)
  return like.of(feats_BVC)


def subdivide(x: SparseTensor) -> SparseTensor:
  """Each voxel becomes its 8 halves with its features, voxel by voxel: (B, 8 V, C)."""
  batch, voxels, _ = x.feats_BVC.shape
  # A voxel at x covers 2 x and 2 x + 1 at twice the resolution.
  doubled_BV13 = 2 * x.coords_BV3[:, :, None]
  halves_BV83 = doubled_BV13 + CHILDREN.astype(np.int32)
  coords = halves_BV83.reshape(batch, 8 * voxels, 3)
  return SparseTensor(
    feats_BVC=jnp.repeat(x.feats_BVC, 8, axis=1),
    coords_BV3=coords,
    count_B=8 * x.count_B,
  )


def group_norm(x: SparseTensor, groups: int, eps: float):
  """Per sample and group of channels, over all voxels of the sample.

  (B, V, C) fp32 without gain, zero in the padding.
  """
  b, v, c = x.feats_BVC.shape
  # Groups are runs of channels, as in PyTorch's GroupNorm.
  width = c // groups
  feats = x.feats_BVC.astype(jnp.float32)
  values = feats.reshape(b, v, groups, width)
  valid = x.valid_BV[:, :, None, None]
  # numbers that a mean is of; one where a sample has no voxel
  members_B = jnp.maximum(x.count_B * width, 1)
  members = members_B.astype(jnp.float32)[:, None, None, None]

  # padding counts for nothing
  existing = jnp.where(valid, values, 0)
  mean = existing.sum((1, 3), keepdims=True) / members
  centred = jnp.where(valid, values - mean, 0)
  squares = jnp.square(centred)
  variance = squares.sum((1, 3), keepdims=True) / members
  inverse_std = jax.lax.rsqrt(variance + eps)
  normed = centred * inverse_std
  return normed.reshape(b, v, c)
