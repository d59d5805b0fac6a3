"""The step up in resolution: a residual block on voxels that have what their coarse voxel has.

Its norm, its first convolution and the way around see equal features in all children of a coarse
voxel. So they are computed once a coarse voxel, a quarter of the arithmetic, and what is gathered
are the few channels that come out (128 in the published model), not the many that go in (2 048).
"""

import jax
import jax.numpy as jnp

from sam3d_jax.geometry.packing import PackedVoxels, Pooling
from sam3d_jax.models import sparse
from sam3d_jax.models.sparse import SparseTensor, gather, no_gradient
from sam3d_jax.models.sparse_layers import SparseResBlock
from sam3d_jax.models.stack import unrolling


class UpResBlock(SparseResBlock):
  """SparseResBlock of the spread features, with its parameters and its result."""

  def __call__(self, coarse: SparseTensor, voxels: PackedVoxels, mod_RKD) -> SparseTensor:
    """From features at half the resolution to the voxels' own. mod_RKD: as of SparseResBlock."""
    # up to the first convolution, and the way around: at half the resolution
    active_RTC = jax.nn.silu(self.norm1(coarse.feats_RVC))
    active = coarse.of(active_RTC)
    shortcut_RTC = coarse.feats_RVC
    if self.skip is not None:
      shortcut_RTC = self.skip(shortcut_RTC)

    # the first convolution leads to the voxels
    fine = SparseTensor(sparse.spread(shortcut_RTC, voxels.pooling), voxels.fine)
    h = fine.of(self._spread_conv(active, voxels))
    return self.modulated(h, fine.feats_RVC, mod_RKD)

  def _spread_conv(self, active: SparseTensor, voxels: PackedVoxels):
    """conv1 of the spread features, (R, V, C) fp32."""
    conv = self.conv1
    kernel = conv.kernel[...].astype(conv.dtype)
    taps_TIO = kernel.reshape(27, *kernel.shape[3:])
    y_RVO = spread_conv(
      active.feats_RVC.astype(conv.dtype),
      taps_TIO,
      voxels.fine.neighbours_R27V,
      voxels.pooling,
    )
    return y_RVO + conv.bias[...]


@jax.custom_vjp
def spread_conv(x_RTI, kernel_TIO, neighbours_R27V, pooling: Pooling):
  """submanifold_conv(spread(x)), fp32 out: each tap is multiplied before it is gathered.

  y[p] = sum over offsets d of (x @ kernel[d])[parent of p + d].
  """
  return _conv(x_RTI, kernel_TIO, neighbours_R27V, pooling)


def _conv(x_RTI, kernel_TIO, neighbours_R27V, pooling):
  parent_RV = pooling.parent_RV
  rows, coarse_slots = x_RTI.shape[:2]
  slots = parent_RV.shape[1]
  # a neighbour that is missing has the parent that reads as zero
  no_parent_R1 = jnp.full((rows, 1), coarse_slots, parent_RV.dtype)
  parents_RV = jnp.concatenate([parent_RV, no_parent_R1], axis=1)

  def tap(sum_RVO, one):
    index_RV, kernel_IO = one
    told_RTO = jnp.einsum(
      "rti,io->rto",
      x_RTI,
      kernel_IO,
      preferred_element_type=jnp.float32,
    )
    parent_of_neighbour_RV = jnp.take_along_axis(parents_RV, index_RV, axis=1)
    return sum_RVO + gather(told_RTO, parent_of_neighbour_RV), None

  # Summed in fp32, tap after tap.
  zero_RVO = jnp.zeros((rows, slots, kernel_TIO.shape[-1]), jnp.float32)
  taps = (neighbours_R27V.swapaxes(0, 1), kernel_TIO)
  sum_RVO, _ = jax.lax.scan(tap, zero_RVO, taps, unroll=unrolling())
  return sum_RVO


def _conv_forward(x_RTI, kernel_TIO, neighbours_R27V, pooling):
  out_RVO = _conv(x_RTI, kernel_TIO, neighbours_R27V, pooling)
  return out_RVO, (x_RTI, kernel_TIO, neighbours_R27V, pooling)


def _conv_backward(residuals, grad_RVO):
  x_RTI, kernel_TIO, neighbours_R27V, pooling = residuals
  rows, coarse_slots, _ = x_RTI.shape
  slots, channels_out = grad_RVO.shape[1:]
  children_RW = pooling.children_RT8.reshape(rows, coarse_slots * 8)
  no_slot_R1 = jnp.full((rows, 1), slots, neighbours_R27V.dtype)

  # Of a tap: what the children of a coarse voxel told, each to its neighbour on the other side.
  # q is p's neighbour at d exactly if p is q's at -d, and -d is tap 26 - d.
  def tap(x_bar, one):
    opposite_RV, kernel_IO = one
    table_RV = jnp.concatenate([opposite_RV, no_slot_R1], axis=1)
    told_RW = jnp.take_along_axis(table_RV, children_RW, axis=1)
    by_child = gather(grad_RVO, told_RW).reshape(rows, coarse_slots, 8, channels_out)
    sums_RTO = by_child.sum(2).astype(x_RTI.dtype)

    to_x_RTI = jnp.einsum(
      "rto,io->rti",
      sums_RTO,
      kernel_IO,
      preferred_element_type=jnp.float32,
    )
    kernel_bar_IO = jnp.einsum(
      "rti,rto->io",
      x_RTI,
      sums_RTO,
      preferred_element_type=jnp.float32,
    )
    return x_bar + to_x_RTI, kernel_bar_IO

  taps = (neighbours_R27V[:, ::-1].swapaxes(0, 1), kernel_TIO)
  zero_RTI = jnp.zeros(x_RTI.shape, jnp.float32)
  x_bar, kernel_bar = jax.lax.scan(tap, zero_RTI, taps, unroll=unrolling())
  return (
    x_bar.astype(x_RTI.dtype),
    kernel_bar.astype(kernel_TIO.dtype),
    no_gradient(neighbours_R27V),
    jax.tree.map(no_gradient, pooling),
  )


spread_conv.defvjp(_conv_forward, _conv_backward)
