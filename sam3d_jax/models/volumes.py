"""Layers over dense cubic grids, channels last, and the orders in which their cells lie."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.platform import target_platform

PACKED_PRODUCT = 8  # C_in * C_out up to which packing makes a convolution faster on a CPU


class Conv3D(nnx.Module):
  """Convolution of odd `size`, stride 1, zero padding to the same extent.

  `kernel` is (s, s, s, C_in, C_out), `bias` (C_out,).
  """

  def __init__(
    self,
    channels: int,
    out_channels: int,
    *,
    size: int = 3,
    dtype=jnp.float32,
    zero: bool = False,
    rngs: nnx.Rngs,
  ):
    # Channels last, as XLA's DHWIO.
    shape = (size, size, size, channels, out_channels)
    if zero:
      kernel = jnp.zeros(shape, jnp.float32)
    else:
      kernel = fan_in_uniform(rngs.params(), shape)
    bias = jnp.zeros(out_channels, jnp.float32)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(bias)
    self.dtype = dtype

  def __call__(self, x_BXYZC):
    kernel = self.kernel[...].astype(self.dtype)
    bias = self.bias[...].astype(self.dtype)
    x_BXYZC = x_BXYZC.astype(self.dtype)
    return conv3d(x_BXYZC, kernel) + bias


class Downsample3D(nnx.Module):
  """Convolution of size 2 and stride 2, (B, X, Y, Z, C) -> (B, X/2, Y/2, Z/2, C_out).

  One product per patch, since patches do not overlap.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    shape = (2, 2, 2, channels, out_channels)
    kernel = fan_in_uniform(rngs.params(), shape)
    bias = jnp.zeros(out_channels, jnp.float32)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(bias)
    self.dtype = dtype

  def __call__(self, x_BXYZC):
    x_BXYZC = x_BXYZC.astype(self.dtype)
    # A patch of 2^3 voxels is one row of a product.
    patches = space_to_depth(x_BXYZC, 2)
    kernel = self.kernel[...].astype(self.dtype)
    kernel = kernel.reshape(patches.shape[-1], -1)
    bias = self.bias[...].astype(self.dtype)
    return patches @ kernel + bias


class Upsample3D(nnx.Module):
  """Convolution and pixel shuffle, (B, X, Y, Z, C) -> (B, 2 X, 2 Y, 2 Z, C_out).

  `kernel` (3, 3, 3, C, 8 C_out) and `bias` (8 C_out,) are in the published order of a pixel
  shuffle, C_out slowest.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    wide = 8 * out_channels  # the 2^3 voxels that one becomes
    shape = (3, 3, 3, channels, wide)
    kernel = fan_in_uniform(rngs.params(), shape)
    bias = jnp.zeros(wide, jnp.float32)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(bias)
    self.dtype = dtype

  def __call__(self, x_BXYZC):
    kernel = self.kernel[...].astype(self.dtype)
    # Published order in the parameters, ours in the arithmetic.
    kernel = channels_fastest(kernel, 2)
    bias = self.bias[...].astype(self.dtype)
    bias = channels_fastest(bias, 2)
    x_BXYZC = x_BXYZC.astype(self.dtype)
    h = conv3d(x_BXYZC, kernel) + bias
    return depth_to_space(h, 2)


def fan_in_uniform(key, shape):
  """A convolution kernel (*size, C_in, C_out), uniform with variance 1 / fan-in."""
  fan_in = math.prod(shape[:-1])
  # A uniform law on [-b, b] has variance b^2 / 3.
  bound = math.sqrt(3.0 / fan_in)
  return jax.random.uniform(
    key,
    shape,
    jnp.float32,
    minval=-bound,
    maxval=bound,
  )


def conv3d(x_BXYZC, kernel):
  """Zero-padded 3-D convolution of stride 1, the kernel (s, s, s, C_in, C_out) of odd size s.

  XLA's 3-D convolution is slow on CPUs, so there the same numbers are computed another way: narrow
  ones on packed voxels, the others plane by plane (narrow nets on two cores: 30 against 6 GFLOP/s
  forward, 27 against 4.5 with gradients).
  """
  # accelerators have good convolutions of their own
  if target_platform() != "cpu":
    return jax.lax.conv_general_dilated(
      x_BXYZC,
      kernel,
      (1, 1, 1),
      "SAME",
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  # a few channels do not fill a vector register: eight voxels of them do
  products = math.prod(kernel.shape[3:])
  narrow = kernel.shape[0] == 3 and products <= PACKED_PRODUCT
  even = all(n % 2 == 0 for n in x_BXYZC.shape[1:4])
  if narrow and even:
    cells = space_to_depth(x_BXYZC, 2)
    packed = _conv3d_by_planes(cells, pack_kernel(kernel))
    return depth_to_space(packed, 2)
  return _conv3d_by_planes(x_BXYZC, kernel)


def _conv3d_by_planes(x_BXYZC, kernel):
  """The convolution as a sum of s 2-D convolutions over shifted planes."""
  # Planes join the batch; each tap along x is a 2-D convolution.
  batch, planes, *extent = x_BXYZC.shape
  size = kernel.shape[0]
  none = (0, 0)
  margin = (size // 2, size // 2)
  padded = jnp.pad(x_BXYZC, (none, margin, none, none, none))
  # a sum over the taps across planes
  out = 0.0
  for i in range(size):
    shifted = padded[:, i : i + planes]
    plane = shifted.reshape(batch * planes, *extent)
    out = out + jax.lax.conv_general_dilated(
      plane,
      kernel[i],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  channels_out = kernel.shape[-1]
  return out.reshape(
    batch,
    planes,
    *extent[:-1],
    channels_out,
  )


def pack_kernel(kernel):
  """The kernel (3, 3, 3, C, C_out) as one (3, 3, 3, 8 C, 8 C_out) on voxels packed by
  `space_to_depth(., 2)`.

  Eight times the multiplications, seven of eight by zero, yet six times faster on a CPU where C and
  C_out are a few: the packed product is wide enough for its vector units. Along one axis, input
  voxel d of cell a - 1 meets output voxel e of cell 0 through tap 2 (a - 1) + d - e + 1.
  """
  channels, out_channels = kernel.shape[3:]
  # which tap an input voxel d of a cell meets an output voxel e through
  cell, d, e = np.meshgrid(
    np.arange(3),
    np.arange(2),
    np.arange(2),
    indexing="ij",
  )
  tap = 2 * (cell - 1) + d - e + 1
  is_tap = tap[..., None] == np.arange(3)  # (cell, d, e, tap)
  taps = jnp.asarray(is_tap, kernel.dtype)
  # along all three axes at once
  packed = jnp.einsum(
    "adet,bfgu,chiv,tuvmn->abcdfhmegin",
    taps,
    taps,
    taps,
    kernel,
  )
  return packed.reshape(
    3,
    3,
    3,
    8 * channels,
    8 * out_channels,
  )


def space_to_depth(x_BXYZC, factor: int):
  """Patches of factor^3 voxels to channels: x, y, z within the patch, then the old channel, which
  stays the fastest index.

  A pixel shuffle as published has the channel slowest. Moving it would put two voxels where vector
  units want channels, so the parameters are put in this order instead (`channels_fastest`).
  """
  b, *grid, c = x_BXYZC.shape
  x, y, z = (n // factor for n in grid)
  # every axis as patches and places within one
  patches = x_BXYZC.reshape(
    (b, x, factor, y, factor, z, factor, c),
  )
  # the places of all three axes behind the patches
  gathered = patches.transpose(
    (0, 1, 3, 5, 2, 4, 6, 7),
  )
  channels = factor**3 * c
  return gathered.reshape(b, x, y, z, channels)


def depth_to_space(x_BXYZC, factor: int):
  """The inverse of `space_to_depth`."""
  b, *grid, c = x_BXYZC.shape
  x, y, z = grid
  channels = c // factor**3
  # channels as places within a patch, one number an axis
  patches = x_BXYZC.reshape(
    (b, x, y, z, factor, factor, factor, channels),
  )
  # each axis's place behind its patch
  spread = patches.transpose(
    (0, 1, 4, 2, 5, 3, 6, 7),
  )
  return spread.reshape(
    b,
    x * factor,
    y * factor,
    z * factor,
    channels,
  )


def channels_fastest(x, factor: int):
  """(..., C factor^3) of a published pixel shuffle, in the order of `depth_to_space`.

  The published order has the channel slowest. Any further axes lead.
  """
  lead = x.shape[:-1]
  # The factor^3 places are the fastest index as published.
  published = x.reshape(*lead, -1, factor**3)
  swapped = published.swapaxes(-1, -2)
  return swapped.reshape(x.shape)


def grid_to_tokens(z_BxyzC):
  """Latent grid (B, x, y, z, C) to tokens (B, L, C), x slowest, z fastest."""
  # The order of memory is the order of tokens.
  batch, *_, channels = z_BxyzC.shape
  return z_BxyzC.reshape(batch, -1, channels)


def tokens_to_grid(z_BLC):
  """Tokens (B, L, C) to the cubic latent grid (B, x, y, z, C).

  Raises ValueError if L is not a cube.
  """
  batch, length, channels = z_BLC.shape
  # Rounded: a cube root is not exact in floating point.
  side = round(length ** (1 / 3))
  if side**3 != length:
    raise ValueError(f"{length} tokens are not a cubic grid")
  return z_BLC.reshape(batch, side, side, side, channels)
