"""Convolutions where every voxel of a packed row is a brick of s x s x s children.

A subdivision keeps all eight children of a voxel, so children lie in dense bricks, and the parents'
table of 27 neighbours says everything: a brick with a halo of one cell is gathered in three pieces,
then the convolution is a dense one. A table of the children's own neighbours would be 64 times as
long, and every convolution would gather each child 27 times instead of 3.4 times.

Parents are taken in chunks, so that halos never exist all at once. Derivatives are written by hand:
that of the features is a convolution again (missing neighbours are mutual), so nothing scatters.

Dimension letters: R rows, V slots of a row (parents), M slots of a chunk, x y z cells of a brick, C
channels in, O channels out, P the eight parities (x, y, z) of a child, z fastest.
"""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry.packing import VoxelLevel
from sam3d_jax.geometry.voxel_tables import CHILDREN
from sam3d_jax.models import sparse
from sam3d_jax.models.platform import target_platform
from sam3d_jax.models.sparse_layers import GROUP_EPS
from sam3d_jax.models.stack import unrolling

CHUNK = 2048  # parents whose halos exist at once
NDHWC = ("NDHWC", "DHWIO", "NDHWC")


def halo(x_VxyzC, index_27M):
  """Bricks of the parents whose neighbours are given, with one cell around: (M, s+2, s+2, s+2, C).

  index_27M: in the order of voxel_tables.TAPS, V where there is none, which reads as zero.
  """
  slots, side, _, _, channels = x_VxyzC.shape
  # of each position along an axis: in the brick below, here or above, and where in it
  position = np.arange(side + 2) - 1
  step = position // side + 1
  local = position % side
  step_xy = (3 * step[:, None] + step).reshape(-1)
  local_xy = (side * local[:, None] + local).reshape(-1)

  def lines(cells_VxyE, step_z: int):
    """(M, (s+2)^2, E): a line of each, from the bricks one lower, equal or higher along z."""
    brick_ML = index_27M[3 * step_xy + step_z].T
    flat = cells_VxyE.reshape(slots * side * side, -1)
    return flat.at[brick_ML * side * side + local_xy].get(mode="fill", fill_value=0)

  shape = (index_27M.shape[1], side + 2, side + 2)
  last = x_VxyzC[:, :, :, -1]
  first = x_VxyzC[:, :, :, 0]
  own = x_VxyzC.reshape(slots, side, side, side * channels)
  below = lines(last, 0).reshape(*shape, 1, channels)
  middle = lines(own, 1).reshape(*shape, side, channels)
  above = lines(first, 2).reshape(*shape, 1, channels)
  return jnp.concatenate([below, middle, above], axis=3)


def valid_conv(x_MxyzC, kernel):
  """Dense convolution without padding, fp32 out; kernel (k, k, k, C, O)."""
  if target_platform() != "cpu" or unrolling():
    return jax.lax.conv_general_dilated(
      x_MxyzC,
      kernel,
      (1, 1, 1),
      "VALID",
      dimension_numbers=NDHWC,
      preferred_element_type=jnp.float32,
    )
  # XLA's 3-D convolutions are slow on CPUs: a product for each tap
  size = kernel.shape[0]
  side = x_MxyzC.shape[1] - size + 1

  def tap(offset, kernel_CO):
    seen = _window(x_MxyzC, offset, side)
    return jnp.einsum("mxyzc,co->mxyzo", seen, kernel_CO, preferred_element_type=jnp.float32)

  out_shape = (len(x_MxyzC), side, side, side, kernel.shape[-1])
  taps = (_offsets(size), kernel.reshape(size**3, *kernel.shape[3:]))
  return _summed(tap, out_shape, taps)


def valid_conv_kernel_gradient(x_MxyzC, grad_MxyzO, size: int):
  """Of the kernel of `valid_conv`: (k, k, k, C, O) fp32."""
  side = grad_MxyzO.shape[1]

  def tap(offset):
    seen = _window(x_MxyzC, offset, side)
    return jnp.einsum("mxyzc,mxyzo->co", seen, grad_MxyzO, preferred_element_type=jnp.float32)

  bars = _mapped(tap, _offsets(size))
  return bars.reshape(size, size, size, *bars.shape[1:])


def _offsets(size: int) -> np.ndarray:
  """(size^3, 3) taps of a kernel, x slowest."""
  return np.stack(np.unravel_index(np.arange(size**3), (size,) * 3), axis=1).astype(np.int32)


def _window(x_MxyzC, offset, side: int):
  """Cells from `offset` on, (M, side, side, side, C)."""
  begin = (0, *offset, 0)
  extent = (len(x_MxyzC), side, side, side, x_MxyzC.shape[-1])
  return jax.lax.dynamic_slice(x_MxyzC, begin, extent)


def _mapped(fn, *arrays):
  """`fn` of each entry of arrays, one after the other, stacked."""

  def step(_, entries):
    return None, fn(*entries)

  _, results = jax.lax.scan(step, None, arrays, unroll=unrolling())
  return results


def _summed(fn, shape, arrays):
  """The sum of `fn` of each entry of arrays, fp32."""

  def step(total, entries):
    return total + fn(*entries), None

  total, _ = jax.lax.scan(step, jnp.zeros(shape, jnp.float32), arrays, unroll=unrolling())
  return total


def _chunked(neighbours_27V):
  """The table in chunks of parents, (chunks, 27, M)."""
  slots = neighbours_27V.shape[1]
  size = math.gcd(slots, CHUNK)
  return neighbours_27V.reshape(27, slots // size, size).swapaxes(0, 1)


def _by_rows(fn):
  """`fn` for each row: no gather leaves its row, rows may be cut over devices."""

  @functools.wraps(fn)
  def rows(x, kernel, neighbours_R27V, *others):
    batched = (0, None, 0) + (0,) * len(others)
    return jax.vmap(fn, in_axes=batched)(x, kernel, neighbours_R27V, *others)

  return rows


# --------------------------------------------------------------------------------------------------
# Convolution of bricks
# --------------------------------------------------------------------------------------------------


@jax.custom_vjp
def brick_conv(x_RVxyzC, kernel, neighbours_R27V):
  """3x3x3 cross-correlation over the children of active parents, (R, V, s, s, s, O) fp32."""
  return _by_rows(_conv)(x_RVxyzC, kernel, neighbours_R27V)


def _conv(x_VxyzC, kernel, neighbours_27V):
  def chunk(index_27M):
    return valid_conv(halo(x_VxyzC, index_27M), kernel)

  out = _mapped(chunk, _chunked(neighbours_27V))
  return out.reshape(len(x_VxyzC), *out.shape[2:])


def _conv_kernel_gradient(x_VxyzC, _, neighbours_27V, grad_VxyzO):
  table = _chunked(neighbours_27V)
  grads = grad_VxyzO.reshape(*table.shape[::2], *grad_VxyzO.shape[1:])

  def chunk(index_27M, grad_MxyzO):
    return valid_conv_kernel_gradient(halo(x_VxyzC, index_27M), grad_MxyzO, 3)

  shape = (3, 3, 3, x_VxyzC.shape[-1], grad_VxyzO.shape[-1])
  return _summed(chunk, shape, (table, grads))


def _conv_forward(x_RVxyzC, kernel, neighbours_R27V):
  return brick_conv(x_RVxyzC, kernel, neighbours_R27V), (x_RVxyzC, kernel, neighbours_R27V)


def _conv_backward(residuals, grad_RVxyzO):
  x_RVxyzC, kernel, neighbours_R27V = residuals
  grad_RVxyzO = grad_RVxyzO.astype(x_RVxyzC.dtype)
  # of the features: every offset reversed
  reversed_kernel = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
  x_bar = _by_rows(_conv)(grad_RVxyzO, reversed_kernel, neighbours_R27V)
  kernel_bar = _by_rows(_conv_kernel_gradient)(x_RVxyzC, kernel, neighbours_R27V, grad_RVxyzO)
  return (
    x_bar.astype(x_RVxyzC.dtype),
    kernel_bar.sum(0).astype(kernel.dtype),
    np.zeros(neighbours_R27V.shape, jax.dtypes.float0),
  )


brick_conv.defvjp(_conv_forward, _conv_backward)


# --------------------------------------------------------------------------------------------------
# Convolution of bricks that were just subdivided
# --------------------------------------------------------------------------------------------------

# Along an axis a child's three taps fall on two cells of the coarse grid, and those that fall on
# the same cell add up. (2 parities, 2 cells, 3 taps): an even child has its lower neighbour in the
# cell below, an odd one its upper neighbour in the cell above.
MERGED_TAPS = np.array(
  [
    [[1, 0, 0], [0, 1, 1]],
    [[1, 1, 0], [0, 0, 1]],
  ],
  np.float32,
)


def merged_kernels(kernel):
  """(3, 3, 3, C, O) as a kernel over undivided cells for each parity: (8, 2, 2, 2, C, O)."""
  merged = jnp.einsum(
    "pai,qbj,rck,ijkxo->pqrabcxo",
    MERGED_TAPS,
    MERGED_TAPS,
    MERGED_TAPS,
    kernel,
    precision=jax.lax.Precision.HIGHEST,
  )
  return merged.reshape(8, *merged.shape[3:])


@jax.custom_vjp
def subdividing_conv(x_RVxyzC, kernels_P222CO, neighbours_R27V):
  """Subdivides each cell into eight copies, then a 3x3x3 convolution: 64 products a cell, not 216.

  (R, V, s, s, s, C) to (R, V, s, s, s, 8, O) fp32; kernels as from `merged_kernels`.
  """
  return _by_rows(_subdividing)(x_RVxyzC, kernels_P222CO, neighbours_R27V)


def _subdividing(x_VxyzC, kernels_P222CO, neighbours_27V):
  side = x_VxyzC.shape[1]

  def chunk(index_27M):
    around = halo(x_VxyzC, index_27M)

    def parity(offset, kernel):
      # an odd child sees one cell further
      return valid_conv(_window(around, offset, side + 1), kernel)

    return _mapped(parity, CHILDREN.astype(np.int32), kernels_P222CO)

  out = _mapped(chunk, _chunked(neighbours_27V))
  # (chunks, 8, M, s, s, s, O)
  out = jnp.moveaxis(out, 1, -2)
  return out.reshape(len(x_VxyzC), *out.shape[2:])


def _subdividing_gradient(grad_VxyzPO, kernels_P222CO, neighbours_27V):
  """Of the features: each parity's derivative, convolved with its kernel reversed."""
  slots, side, _, _, parities, channels = grad_VxyzPO.shape
  together = grad_VxyzPO.reshape(slots, side, side, side, parities * channels)
  reversed_kernels = kernels_P222CO[:, ::-1, ::-1, ::-1].swapaxes(4, 5)

  def chunk(index_27M):
    around = halo(together, index_27M)
    around = around.reshape(*around.shape[:-1], parities, channels)
    of_parity = jnp.moveaxis(around, -2, 0)

    def parity(offset, kernel, seen):
      return valid_conv(_window(seen, 1 - offset, side + 1), kernel)

    shape = (len(around), side, side, side, kernels_P222CO.shape[4])
    each = (CHILDREN.astype(np.int32), reversed_kernels, of_parity)
    return _summed(parity, shape, each)

  out = _mapped(chunk, _chunked(neighbours_27V))
  return out.reshape(slots, *out.shape[2:])


def _subdividing_kernel_gradient(x_VxyzC, _, neighbours_27V, grad_VxyzPO):
  side = x_VxyzC.shape[1]
  table = _chunked(neighbours_27V)
  grads = grad_VxyzPO.reshape(*table.shape[::2], *grad_VxyzPO.shape[1:])

  def chunk(index_27M, grad_MxyzPO):
    around = halo(x_VxyzC, index_27M)

    def parity(offset, grad_MxyzO):
      return valid_conv_kernel_gradient(_window(around, offset, side + 1), grad_MxyzO, 2)

    of_parity = jnp.moveaxis(grad_MxyzPO, -2, 0)
    return _mapped(parity, CHILDREN.astype(np.int32), of_parity)

  shape = (8, 2, 2, 2, x_VxyzC.shape[-1], grad_VxyzPO.shape[-1])
  return _summed(chunk, shape, (table, grads))


def _subdividing_forward(x_RVxyzC, kernels_P222CO, neighbours_R27V):
  residuals = (x_RVxyzC, kernels_P222CO, neighbours_R27V)
  return subdividing_conv(*residuals), residuals


def _subdividing_backward(residuals, grad_RVxyzPO):
  x_RVxyzC, kernels, neighbours_R27V = residuals
  grad_RVxyzPO = grad_RVxyzPO.astype(x_RVxyzC.dtype)
  x_bar = _by_rows(_subdividing_gradient)(grad_RVxyzPO, kernels, neighbours_R27V)
  kernels_bar = _by_rows(_subdividing_kernel_gradient)(
    x_RVxyzC, kernels, neighbours_R27V, grad_RVxyzPO
  )
  return (
    x_bar.astype(x_RVxyzC.dtype),
    kernels_bar.sum(0).astype(kernels.dtype),
    np.zeros(neighbours_R27V.shape, jax.dtypes.float0),
  )


subdividing_conv.defvjp(_subdividing_forward, _subdividing_backward)


def children_in_place(x_RVxyzPC):
  """(R, V, s, s, s, 8, C), children beside their cell, as bricks (R, V, 2s, 2s, 2s, C)."""
  rows, slots, side, _, _, _, channels = x_RVxyzPC.shape
  split = x_RVxyzPC.reshape(rows, slots, side, side, side, 2, 2, 2, channels)
  # each axis's parity behind its cell
  joined = split.transpose(0, 1, 2, 5, 3, 6, 4, 7, 8)
  return joined.reshape(rows, slots, 2 * side, 2 * side, 2 * side, channels)


def copied(x_RVxyzC):
  """Each cell eight times: (R, V, s, s, s, C) to (R, V, 2s, 2s, 2s, C)."""
  eight = jnp.broadcast_to(x_RVxyzC[..., None, :], (*x_RVxyzC.shape[:-1], 8, x_RVxyzC.shape[-1]))
  return children_in_place(eight)


# --------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------


class BrickGroupNorm(nnx.Module):
  """Group norm over all cells of each object, with gain and shift per channel; fp32 out."""

  def __init__(self, groups: int, channels: int):
    self.groups = groups
    self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

  def __call__(self, x_RVxyzC, level: VoxelLevel):
    """level: of the parents."""
    rows, slots, side, *_, channels = x_RVxyzC.shape
    cells = side**3
    width = channels // self.groups
    feats = x_RVxyzC.astype(jnp.float32).reshape(rows, slots, cells, channels)

    def mean(values_RVNC):
      """Over an object's cells and a group's channels, at each of its slots and channels."""
      means_RKC = sparse.object_means(values_RVNC.mean(2), level)
      grouped = means_RKC.reshape(*means_RKC.shape[:2], self.groups, width)
      repeated_RKC = jnp.repeat(grouped.mean(-1), width, axis=-1)
      return sparse.per_slot(repeated_RKC, level)[:, :, None]

    centred = feats - mean(feats)
    variance = mean(jnp.square(centred))
    normed = centred * jax.lax.rsqrt(variance + GROUP_EPS)
    y = normed * self.scale[...] + self.bias[...]
    return y.reshape(x_RVxyzC.shape)
