"""The structure VAE: occupancy on a cubic grid to a coarse latent grid and back.

arXiv 2411.07136 §3, with the sizes of SAM 3D.

Channels last throughout. Parameters are fp32; convolutions of the residual and resampling blocks
run in `cfg.dtype`, norms and the first and last convolutions in fp32.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.layers import LayerNorm
from sam3d_jax.models.platform import target_platform

NORM_EPS = 1e-5
PACKED_PRODUCT = 8  # C_in * C_out up to which packing makes a convolution faster on a CPU


@dataclasses.dataclass(frozen=True)
class StructureVAEConfig:
  """The defaults are the published model.

  resolution: side of the occupancy grid; the latent grid's is resolution / downsampling.
  latent_channels: channels of the latent.
  channels: width of each level, finest first (the decoder runs them backwards).
  res_blocks, middle_blocks: residual blocks of a level, and between encoder levels and latent.
  patch: voxels along a side of a cell of the finest level, which sees its patch^3 voxels as
    channels. The published model has 1; a small model on a CPU saves the full resolution.
  dtype: compute dtype of the convolutions inside blocks.
  """

  resolution: int = 64
  latent_channels: int = 8
  channels: tuple[int, ...] = (32, 128, 512)
  res_blocks: int = 2
  middle_blocks: int = 2
  patch: int = 1
  dtype: str = "float32"

  def __post_init__(self):
    # a configuration file may hold a list
    object.__setattr__(self, "channels", tuple(self.channels))
    if self.resolution % self.downsampling:
      raise ValueError(
        f"resolution={self.resolution} is not a multiple of {self.downsampling}, the factor of "
        f"{len(self.channels)} levels" + (f" on patches of {self.patch}" if self.patch > 1 else "")
      )

  @property
  def downsampling(self) -> int:
    """Voxels per latent cell along an axis."""
    return self.patch * 2 ** (len(self.channels) - 1)

  @property
  def latent_resolution(self) -> int:
    return self.resolution // self.downsampling


class StructureVAE(nnx.Module):
  """Encoder and decoder."""

  def __init__(self, cfg: StructureVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.encoder = StructureEncoder(cfg, rngs=rngs)
    self.decoder = StructureDecoder(cfg, rngs=rngs)


class StructureEncoder(nnx.Module):
  """Occupancy (B, X, Y, Z), 0 or 1, to the posterior's mean and log variance.

  Both are (B, x, y, z, C) fp32.
  """

  def __init__(self, cfg: StructureVAEConfig, *, rngs: nnx.Rngs):
    top = cfg.channels[-1]
    self.patch, self.dtype = cfg.patch, jnp.dtype(cfg.dtype)
    self.conv_in = Conv3D(cfg.patch**3, cfg.channels[0], rngs=rngs)
    next_channels = (*cfg.channels[1:], None)
    self.levels = nnx.List(
      [
        EncoderLevel(c, c_next, cfg.res_blocks, dtype=self.dtype, rngs=rngs)
        for c, c_next in zip(cfg.channels, next_channels, strict=True)
      ]
    )
    self.middle = middle_blocks(cfg, dtype=self.dtype, rngs=rngs)
    self.norm_out = LayerNorm(top, eps=NORM_EPS)
    self.conv_out = Conv3D(top, 2 * cfg.latent_channels, rngs=rngs)

  def __call__(self, occupancy_BXYZ):
    cells_BXYZC = occupancy_BXYZ.astype(jnp.float32)[..., None]
    if self.patch > 1:
      cells_BXYZC = space_to_depth(cells_BXYZC, self.patch)
    h = self.conv_in(cells_BXYZC).astype(self.dtype)
    for block in (*self.levels, *self.middle):
      h = block(h)
    h = jax.nn.silu(self.norm_out(h.astype(jnp.float32)))
    mean, logvar = jnp.split(self.conv_out(h), 2, axis=-1)
    return mean, logvar


class StructureDecoder(nnx.Module):
  """Latent (B, x, y, z, C) to occupancy logits (B, X, Y, Z) fp32.

  A voxel is occupied where its logit is positive.
  """

  def __init__(self, cfg: StructureVAEConfig, *, rngs: nnx.Rngs):
    channels = cfg.channels[::-1]
    self.patch, self.dtype = cfg.patch, jnp.dtype(cfg.dtype)
    self.conv_in = Conv3D(cfg.latent_channels, channels[0], rngs=rngs)
    self.middle = middle_blocks(cfg, dtype=self.dtype, rngs=rngs)
    next_channels = (*channels[1:], None)
    self.levels = nnx.List(
      [
        DecoderLevel(c, c_next, cfg.res_blocks, dtype=self.dtype, rngs=rngs)
        for c, c_next in zip(channels, next_channels, strict=True)
      ]
    )
    self.norm_out = LayerNorm(channels[-1], eps=NORM_EPS)
    self.conv_out = Conv3D(channels[-1], cfg.patch**3, rngs=rngs)

  def __call__(self, z_BxyzC):
    h = self.conv_in(z_BxyzC.astype(jnp.float32)).astype(self.dtype)
    for block in (*self.middle, *self.levels):
      h = block(h)
    h = jax.nn.silu(self.norm_out(h.astype(jnp.float32)))
    logits = self.conv_out(h)
    if self.patch > 1:
      logits = depth_to_space(logits, self.patch)
    return logits[..., 0]


def middle_blocks(cfg: StructureVAEConfig, *, dtype, rngs: nnx.Rngs) -> nnx.List:
  """The residual blocks at the coarsest level."""
  top = cfg.channels[-1]
  return nnx.List([ResBlock3D(top, top, dtype=dtype, rngs=rngs) for _ in range(cfg.middle_blocks)])


class EncoderLevel(nnx.Module):
  """Residual blocks, then a halving to the next level's width if there is one."""

  def __init__(
    self, channels: int, next_channels: int | None, res_blocks: int, *, dtype, rngs: nnx.Rngs
  ):
    self.blocks = nnx.List(
      [ResBlock3D(channels, channels, dtype=dtype, rngs=rngs) for _ in range(res_blocks)]
    )
    if next_channels is None:
      self.downsample = None
    else:
      self.downsample = Downsample3D(channels, next_channels, dtype=dtype, rngs=rngs)

  def __call__(self, x_BXYZC):
    for block in self.blocks:
      x_BXYZC = block(x_BXYZC)
    return x_BXYZC if self.downsample is None else self.downsample(x_BXYZC)


class DecoderLevel(nnx.Module):
  """Residual blocks, then a doubling of the side to the next level's width, if there is one."""

  def __init__(
    self, channels: int, next_channels: int | None, res_blocks: int, *, dtype, rngs: nnx.Rngs
  ):
    self.blocks = nnx.List(
      [ResBlock3D(channels, channels, dtype=dtype, rngs=rngs) for _ in range(res_blocks)]
    )
    if next_channels is None:
      self.upsample = None
    else:
      self.upsample = Upsample3D(channels, next_channels, dtype=dtype, rngs=rngs)

  def __call__(self, x_BXYZC):
    for block in self.blocks:
      x_BXYZC = block(x_BXYZC)
    return x_BXYZC if self.upsample is None else self.upsample(x_BXYZC)


class ResBlock3D(nnx.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))).

  The second convolution starts at zero; a 1x1x1 `skip` changes the width.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    self.norm1 = LayerNorm(channels, eps=NORM_EPS)
    self.norm2 = LayerNorm(out_channels, eps=NORM_EPS)
    self.conv1 = Conv3D(channels, out_channels, dtype=dtype, rngs=rngs)
    self.conv2 = Conv3D(out_channels, out_channels, dtype=dtype, zero=True, rngs=rngs)
    if channels == out_channels:
      self.skip = None
    else:
      self.skip = Conv3D(channels, out_channels, size=1, dtype=dtype, rngs=rngs)

  def __call__(self, x_BXYZC):
    h = self.conv1(jax.nn.silu(self.norm1(x_BXYZC)))
    h = self.conv2(jax.nn.silu(self.norm2(h)))
    shortcut = x_BXYZC if self.skip is None else self.skip(x_BXYZC)
    return h + shortcut


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
    shape = (size, size, size, channels, out_channels)
    kernel = jnp.zeros(shape, jnp.float32) if zero else fan_in_uniform(rngs.params(), shape)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(jnp.zeros(out_channels, jnp.float32))
    self.dtype = dtype

  def __call__(self, x_BXYZC):
    kernel = self.kernel[...].astype(self.dtype)
    bias = self.bias[...].astype(self.dtype)
    return conv3d(x_BXYZC.astype(self.dtype), kernel) + bias


class Downsample3D(nnx.Module):
  """Convolution of size 2 and stride 2, (B, X, Y, Z, C) -> (B, X/2, Y/2, Z/2, C_out).

  One product per patch, since patches do not overlap.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    self.kernel = nnx.Param(fan_in_uniform(rngs.params(), (2, 2, 2, channels, out_channels)))
    self.bias = nnx.Param(jnp.zeros(out_channels, jnp.float32))
    self.dtype = dtype

  def __call__(self, x_BXYZC):
    patches = space_to_depth(x_BXYZC.astype(self.dtype), 2)
    kernel = self.kernel[...].astype(self.dtype).reshape(patches.shape[-1], -1)
    bias = self.bias[...].astype(self.dtype)
    return patches @ kernel + bias


class Upsample3D(nnx.Module):
  """Convolution and pixel shuffle, (B, X, Y, Z, C) -> (B, 2 X, 2 Y, 2 Z, C_out).

  `kernel` (3, 3, 3, C, 8 C_out) and `bias` (8 C_out,) are in the published order of a pixel
  shuffle, C_out slowest.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    self.kernel = nnx.Param(fan_in_uniform(rngs.params(), (3, 3, 3, channels, 8 * out_channels)))
    self.bias = nnx.Param(jnp.zeros(8 * out_channels, jnp.float32))
    self.dtype = dtype

  def __call__(self, x_BXYZC):
    kernel = channels_fastest(self.kernel[...].astype(self.dtype), 2)
    bias = channels_fastest(self.bias[...].astype(self.dtype), 2)
    h = conv3d(x_BXYZC.astype(self.dtype), kernel) + bias
    return depth_to_space(h, 2)


def fan_in_uniform(key, shape):
  """A convolution kernel (*size, C_in, C_out), uniform with variance 1 / fan-in."""
  bound = math.sqrt(3.0 / math.prod(shape[:-1]))
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def conv3d(x_BXYZC, kernel):
  """Zero-padded 3-D convolution of stride 1, the kernel (s, s, s, C_in, C_out) of odd size s.

  XLA's 3-D convolution is slow on CPUs, so there the same numbers are computed another way: narrow
  ones on packed voxels, the others plane by plane (narrow nets on two cores: 30 against 6 GFLOP/s
  forward, 27 against 4.5 with gradients).
  """
  # accelerators have good convolutions of their own
  if target_platform() != "cpu":
    return jax.lax.conv_general_dilated(
      x_BXYZC, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
  # a few channels do not fill a vector register: eight voxels of them do
  narrow = kernel.shape[0] == 3 and math.prod(kernel.shape[3:]) <= PACKED_PRODUCT
  even = all(n % 2 == 0 for n in x_BXYZC.shape[1:4])
  if narrow and even:
    packed = _conv3d_by_planes(space_to_depth(x_BXYZC, 2), pack_kernel(kernel))
    return depth_to_space(packed, 2)
  return _conv3d_by_planes(x_BXYZC, kernel)


def _conv3d_by_planes(x_BXYZC, kernel):
  """The convolution as a sum of s 2-D convolutions over shifted planes."""
  batch, planes, *extent = x_BXYZC.shape
  size = kernel.shape[0]
  margin = (size // 2, size // 2)
  padded = jnp.pad(x_BXYZC, ((0, 0), margin, (0, 0), (0, 0), (0, 0)))
  out = 0.0  # a sum over the taps across planes
  for i in range(size):
    plane = padded[:, i : i + planes].reshape(batch * planes, *extent)
    out = out + jax.lax.conv_general_dilated(
      plane, kernel[i], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  return out.reshape(batch, planes, *extent[:-1], kernel.shape[-1])


def pack_kernel(kernel):
  """The kernel (3, 3, 3, C, C_out) as one (3, 3, 3, 8 C, 8 C_out) on voxels packed by
  `space_to_depth(., 2)`.

  Eight times the multiplications, seven of eight by zero, yet six times faster on a CPU where C and
  C_out are a few: the packed product is wide enough for its vector units. Along one axis, input
  voxel d of cell a - 1 meets output voxel e of cell 0 through tap 2 (a - 1) + d - e + 1.
  """
  cell, d, e = np.meshgrid(np.arange(3), np.arange(2), np.arange(2), indexing="ij")
  taps = (2 * (cell - 1) + d - e + 1)[..., None] == np.arange(3)  # (cell, d, e, tap)
  taps = jnp.asarray(taps, kernel.dtype)
  packed = jnp.einsum("adet,bfgu,chiv,tuvmn->abcdfhmegin", taps, taps, taps, kernel)
  return packed.reshape(3, 3, 3, 8 * kernel.shape[3], 8 * kernel.shape[4])


def space_to_depth(x_BXYZC, factor: int):
  """Patches of factor^3 voxels to channels: x, y, z within the patch, then the old channel, which
  stays the fastest index.

  A pixel shuffle as published has the channel slowest. Moving it would put two voxels where vector
  units want channels, so the parameters are put in this order instead (`channels_fastest`).
  """
  b, *grid, c = x_BXYZC.shape
  x, y, z = (n // factor for n in grid)
  patches = x_BXYZC.reshape(b, x, factor, y, factor, z, factor, c)
  return patches.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, x, y, z, factor**3 * c)


def depth_to_space(x_BXYZC, factor: int):
  """The inverse of `space_to_depth`."""
  b, x, y, z, c = x_BXYZC.shape
  patches = x_BXYZC.reshape(b, x, y, z, factor, factor, factor, c // factor**3)
  return patches.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(
    b, x * factor, y * factor, z * factor, c // factor**3
  )


def channels_fastest(x, factor: int):
  """(..., C factor^3) of a published pixel shuffle, in the order of `depth_to_space`.

  The published order has the channel slowest. Any further axes lead.
  """
  return x.reshape(*x.shape[:-1], -1, factor**3).swapaxes(-1, -2).reshape(x.shape)


def grid_to_tokens(z_BxyzC):
  """Latent grid (B, x, y, z, C) to tokens (B, L, C), x slowest, z fastest."""
  return z_BxyzC.reshape(z_BxyzC.shape[0], -1, z_BxyzC.shape[-1])


def tokens_to_grid(z_BLC):
  """Tokens (B, L, C) to the cubic latent grid (B, x, y, z, C).

  Raises ValueError if L is not a cube.
  """
  side = round(z_BLC.shape[1] ** (1 / 3))
  if side**3 != z_BLC.shape[1]:
    raise ValueError(f"{z_BLC.shape[1]} tokens are not a cubic grid")
  return z_BLC.reshape(z_BLC.shape[0], side, side, side, z_BLC.shape[-1])
