"""Operations over the voxels of packed objects: convolution, pooling, norms, values per object.

A batch holds several objects a row (`geometry/packing.py`): features (R, V, C), and a level that
says whose each slot is, which slots are padding and where the neighbours lie. The published code
joins all objects into one list with a batch column instead; with rows, a batch is cut over a mesh
like any other and no gather leaves its row.

Padding holds zeros; every operation that adds something (a bias, a shift) clears it again through
`SparseTensor.of`. Nothing of an object reaches another one, and sums over an object run over whole
blocks of its own slots, in one order wherever it lies: its result is the same in every bit.

Everything runs under `jit` and has gradients that gather; none scatters voxel rows, which
accelerators serialise.

Dimension letters: R rows, V slots of a row, T slots at half the resolution, K objects of a row, N
blocks of a row, C channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry.packing import BLOCK, Pooling, VoxelLevel
from sam3d_jax.geometry.voxel_tables import CHILDREN
from sam3d_jax.models.platform import target_platform
from sam3d_jax.models.stack import unrolling

CPU_CHANNELS = 256  # up to which a convolution goes by blocks on a CPU


class SparseTensor(NamedTuple):
  """Features of the voxels of a packed batch at one resolution, and where they are."""

  feats_RVC: jax.Array
  level: VoxelLevel

  def of(self, feats_RVC) -> "SparseTensor":
    """The same voxels with other features, zero in the padding."""
    valid_RV1 = self.level.valid_RV[..., None]
    return self._replace(feats_RVC=jnp.where(valid_RV1, feats_RVC, 0))


def gather(x_RVC, index_RW):
  """Slots of each row by index, zero where the index is V."""

  def row(x_VC, index_W):
    # The index V lies outside and reads as zero.
    return x_VC.at[index_W].get(mode="fill", fill_value=0)

  return jax.vmap(row)(x_RVC, index_RW)


# --------------------------------------------------------------------------------------------------
# Convolution
# --------------------------------------------------------------------------------------------------


@jax.custom_vjp
def submanifold_conv(x_RVI, kernel_TIO, neighbours_R27V):
  """3x3x3 cross-correlation at the active voxels only, fp32 out.

  y[p] = sum over offsets d of x[p + d] @ kernel[d]. The gradient gathers too, where automatic
  differentiation would scatter: q is p's neighbour at d exactly if p is q's at -d, and -d is tap
  26 - d.
  """
  return _conv(x_RVI, kernel_TIO, neighbours_R27V)


def _conv(x_RVI, kernel_TIO, neighbours_R27V):
  if _goes_by_blocks(x_RVI.shape[-1]):
    return _conv_by_blocks(x_RVI, kernel_TIO, neighbours_R27V)

  # One tap at a time, summed in fp32: the 27 gathered copies of x never exist together.
  def tap(sum_RVO, one):
    index_RV, kernel_IO = one
    seen_RVI = gather(x_RVI, index_RV)
    term_RVO = jnp.einsum(
      "rvi,io->rvo",
      seen_RVI,
      kernel_IO,
      preferred_element_type=jnp.float32,
    )
    return sum_RVO + term_RVO, None

  rows, slots = x_RVI.shape[:2]
  channels_out = kernel_TIO.shape[-1]
  zero_RVO = jnp.zeros((rows, slots, channels_out), jnp.float32)
  taps = (neighbours_R27V.swapaxes(0, 1), kernel_TIO)
  sum_RVO, _ = jax.lax.scan(tap, zero_RVO, taps, unroll=unrolling())
  return sum_RVO


def _goes_by_blocks(channels: int) -> bool:
  """On a CPU, whose caches hold a block of slots and a kernel of few channels.

  Not where loops are written out to be counted: there are more blocks than taps.
  """
  return target_platform() == "cpu" and channels <= CPU_CHANNELS and not unrolling()


def _conv_by_blocks(x_RVI, kernel_TIO, neighbours_R27V):
  """What all taps of a block of slots see side by side, in one product."""
  rows, slots, channels = x_RVI.shape
  channels_out = kernel_TIO.shape[-1]
  kernel_WO = kernel_TIO.reshape(27 * channels, channels_out)

  def block(_, index_RB27):
    out_RBO = jnp.einsum(
      "rbw,wo->rbo",
      _seen(x_RVI, index_RB27),
      kernel_WO,
      preferred_element_type=jnp.float32,
    )
    return None, out_RBO

  index_NRB27 = _blocks(neighbours_R27V.swapaxes(1, 2))
  _, out_NRBO = jax.lax.scan(block, None, index_NRB27)
  return out_NRBO.swapaxes(0, 1).reshape(rows, slots, channels_out)


def _seen(x_RVI, index_RB27):
  """What the taps of some slots see, side by side: (R, B, 27 I)."""
  rows, some, taps = index_RB27.shape
  seen = gather(x_RVI, index_RB27.reshape(rows, some * taps))
  return seen.reshape(rows, some, taps * x_RVI.shape[-1])


def _blocks(x_RV):
  """Rows (R, V, ...) by blocks, (N, R, BLOCK, ...)."""
  rows, slots = x_RV.shape[:2]
  blocks = x_RV.reshape(rows, slots // BLOCK, BLOCK, *x_RV.shape[2:])
  return blocks.swapaxes(0, 1)


def _conv_forward(x_RVI, kernel_TIO, neighbours_R27V):
  out_RVO = _conv(x_RVI, kernel_TIO, neighbours_R27V)
  return out_RVO, (x_RVI, kernel_TIO, neighbours_R27V)


def _conv_backward(residuals, grad_RVO):
  x_RVI, kernel_TIO, neighbours_R27V = residuals
  grad_RVO = grad_RVO.astype(x_RVI.dtype)

  # of the features: the same convolution with every offset reversed
  reversed_TOI = kernel_TIO[::-1].swapaxes(1, 2)
  x_bar = _conv(grad_RVO, reversed_TOI, neighbours_R27V)

  # of the kernel: what each tap saw, times what came of it
  if _goes_by_blocks(x_RVI.shape[-1]):
    kernel_bar = _kernel_bar_by_blocks(x_RVI, grad_RVO, neighbours_R27V)
  else:
    kernel_bar = _kernel_bar(x_RVI, grad_RVO, neighbours_R27V)
  return (
    x_bar.astype(x_RVI.dtype),
    kernel_bar.reshape(kernel_TIO.shape).astype(kernel_TIO.dtype),
    no_gradient(neighbours_R27V),
  )


def _kernel_bar(x_RVI, grad_RVO, neighbours_R27V):
  """(27, I, O), one tap at a time."""

  def tap(_, index_RV):
    seen_RVI = gather(x_RVI, index_RV)
    bar_IO = jnp.einsum(
      "rvi,rvo->io",
      seen_RVI,
      grad_RVO,
      preferred_element_type=jnp.float32,
    )
    return None, bar_IO

  taps = neighbours_R27V.swapaxes(0, 1)
  _, kernel_bar = jax.lax.scan(tap, None, taps, unroll=unrolling())
  return kernel_bar


def _kernel_bar_by_blocks(x_RVI, grad_RVO, neighbours_R27V):
  """(27 I, O), one block of slots at a time."""
  channels, channels_out = x_RVI.shape[-1], grad_RVO.shape[-1]

  def block(sum_WO, one):
    index_RB27, grad_RBO = one
    term_WO = jnp.einsum(
      "rbw,rbo->wo",
      _seen(x_RVI, index_RB27),
      grad_RBO,
      preferred_element_type=jnp.float32,
    )
    return sum_WO + term_WO, None

  blocks = (_blocks(neighbours_R27V.swapaxes(1, 2)), _blocks(grad_RVO))
  zero_WO = jnp.zeros((27 * channels, channels_out), jnp.float32)
  sum_WO, _ = jax.lax.scan(block, zero_WO, blocks)
  return sum_WO


submanifold_conv.defvjp(_conv_forward, _conv_backward)


def no_gradient(index):
  """The cotangent of an array of integers."""
  return np.zeros(index.shape, jax.dtypes.float0)


# --------------------------------------------------------------------------------------------------
# Resolutions
# --------------------------------------------------------------------------------------------------


@jax.custom_vjp
def pooled(x_RVC, pooling: Pooling):
  """SUM / (COUNT + 1) of the children of each coarse voxel: (R, T, C).

  The published pooling starts its mean from a zero that it counts as one more member; weights are
  trained for that.
  """
  rows, _, channels = x_RVC.shape
  slots = pooling.children_RT8.shape[1]
  children_RW = pooling.children_RT8.reshape(rows, slots * 8)
  children_RTC8 = gather(x_RVC, children_RW).reshape(rows, slots, 8, channels)
  sums_RTC = children_RTC8.astype(jnp.float32).sum(2)
  mean_RTC = sums_RTC / _divisor(x_RVC.shape[1], pooling)
  return mean_RTC.astype(x_RVC.dtype)


def _divisor(slots: int, pooling: Pooling):
  """Children of each coarse voxel, and one: (R, T, 1) fp32."""
  exists_RT8 = pooling.children_RT8 != slots
  return 1 + exists_RT8.sum(-1, keepdims=True).astype(jnp.float32)


def _pooled_forward(x_RVC, pooling):
  return pooled(x_RVC, pooling), pooling


def _pooled_backward(pooling, grad_RTC):
  slots = pooling.parent_RV.shape[1]
  share_RTC = grad_RTC.astype(jnp.float32) / _divisor(slots, pooling)
  x_bar = gather(share_RTC, pooling.parent_RV)
  return x_bar.astype(grad_RTC.dtype), jax.tree.map(no_gradient, pooling)


pooled.defvjp(_pooled_forward, _pooled_backward)


@jax.custom_vjp
def spread(coarse_RTC, pooling: Pooling):
  """Every voxel gets its parent's features: (R, V, C)."""
  return gather(coarse_RTC, pooling.parent_RV)


def _spread_forward(coarse_RTC, pooling):
  return spread(coarse_RTC, pooling), pooling


def _spread_backward(pooling, grad_RVC):
  rows, slots, _ = pooling.children_RT8.shape
  children_RW = pooling.children_RT8.reshape(rows, slots * 8)
  gathered = gather(grad_RVC, children_RW)
  children_RT8C = gathered.reshape(rows, slots, 8, grad_RVC.shape[-1])
  sums_RTC = children_RT8C.astype(jnp.float32).sum(2)
  return sums_RTC.astype(grad_RVC.dtype), jax.tree.map(no_gradient, pooling)


spread.defvjp(_spread_forward, _spread_backward)


def subdivided_level(level: VoxelLevel) -> VoxelLevel:
  """The level in which each voxel is its 8 halves, one after the other: 8 V slots, no tables."""
  rows, slots = level.object_RV.shape
  # A voxel at x covers 2 x and 2 x + 1 at twice the resolution.
  doubled_RV13 = 2 * level.coords_RV3[:, :, None]
  halves_RV83 = doubled_RV13 + CHILDREN.astype(np.int32)
  return VoxelLevel(
    coords_RV3=halves_RV83.reshape(rows, 8 * slots, 3),
    object_RV=jnp.repeat(level.object_RV, 8, axis=1),
    valid_RV=jnp.repeat(level.valid_RV, 8, axis=1),
    start_RK=8 * level.start_RK,
    count_RK=8 * level.count_RK,
  )


# --------------------------------------------------------------------------------------------------
# Objects
# --------------------------------------------------------------------------------------------------


def per_slot(values_RKC, level: VoxelLevel):
  """A value of each object at each of its slots: (R, V, C).

  Objects are whole blocks, so one lookup a block is enough; as a product with zeros and ones its
  gradient is a product as well.
  """
  rows, slots = level.object_RV.shape
  objects, channels = values_RKC.shape[1:]
  # Objects begin with blocks.
  of_block_RN = level.object_RV[:, ::BLOCK]
  of_object_RNK = jax.nn.one_hot(of_block_RN, objects, dtype=values_RKC.dtype)
  per_block_RNC = jnp.einsum(
    "rnk,rkc->rnc",
    of_object_RNK,
    values_RKC,
    precision=jax.lax.Precision.HIGHEST,
  )
  shape = (rows, slots // BLOCK, BLOCK, channels)
  repeated = jnp.broadcast_to(per_block_RNC[:, :, None], shape)
  return repeated.reshape(rows, slots, channels)


def object_sums(x_RVC, level: VoxelLevel):
  """Sum over the voxels of each object: (R, K, C) fp32.

  Block by block, then over the blocks of an object counted from its own first one: the order of the
  terms is that of an object alone.
  """
  rows, slots, channels = x_RVC.shape
  count = slots // BLOCK
  valid_RV1 = level.valid_RV[..., None]
  existing = jnp.where(valid_RV1, x_RVC.astype(jnp.float32), 0)
  blocks_RN = existing.reshape(rows, count, BLOCK, channels)
  sums_RNC = blocks_RN.sum(2)

  # the same position for the same block of an object, zero beyond its last
  first_RK = level.start_RK // BLOCK
  own_RK = -(-level.count_RK // BLOCK)
  step_N = jnp.arange(count)
  is_own_RKN = step_N < own_RK[..., None]
  index_RKN = jnp.where(is_own_RKN, first_RK[..., None] + step_N, count)
  lined_up_RWC = gather(sums_RNC, index_RKN.reshape(rows, -1))
  lined_up_RKNC = lined_up_RWC.reshape(*index_RKN.shape, channels)
  return lined_up_RKNC.sum(2)


def object_means(x_RVC, level: VoxelLevel):
  """Mean over the voxels of each object: (R, K, C) fp32, 0 where there is no object."""
  members_RK = jnp.maximum(level.count_RK, 1)
  return object_sums(x_RVC, level) / members_RK[..., None]


def group_norm(x: SparseTensor, groups: int, eps: float):
  """Per object and group of channels, over all voxels of the object.

  (R, V, C) fp32 without gain.
  """
  # Groups are runs of channels, as in PyTorch's GroupNorm.
  width = x.feats_RVC.shape[-1] // groups
  feats = x.feats_RVC.astype(jnp.float32)

  def mean(values_RVC):
    """Over an object's voxels and a group's channels, at each of its slots and channels."""
    means_RKC = object_means(values_RVC, x.level)
    grouped = means_RKC.reshape(*means_RKC.shape[:2], groups, width)
    repeated_RKC = jnp.repeat(grouped.mean(-1), width, axis=-1)
    return per_slot(repeated_RKC, x.level)

  centred = feats - mean(feats)
  variance = mean(jnp.square(centred))
  return centred * jax.lax.rsqrt(variance + eps)
