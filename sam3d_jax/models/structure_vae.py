"""The structure VAE: occupancy on a cubic grid to a coarse latent grid and back.

arXiv 2411.07136 §3, with the sizes of SAM 3D.

Channels last throughout. Parameters are fp32; convolutions of the residual and resampling blocks
run in `cfg.dtype`, norms and the first and last convolutions in fp32.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.models.layers import LayerNorm
from sam3d_jax.models.volumes import (
  Conv3D,
  Downsample3D,
  Upsample3D,
  depth_to_space,
  space_to_depth,
)
from sam3d_jax.sections import FieldError

NORM_EPS = 1e-5


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
    sections.check_positive(self, "resolution", "latent_channels", "patch")
    sections.check_not_negative(self, "res_blocks", "middle_blocks")
    sections.check_dtype(self)
    if not self.channels or min(self.channels) < 1:
      raise FieldError(f"channels = {self.channels}: give a positive width for each level")

    # every level after the first halves the grid
    if self.resolution % self.downsampling:
      of_patches = ""
      if self.patch > 1:
        of_patches = f" on patches of {self.patch}"
      multiple = max(1, round(self.resolution / self.downsampling)) * self.downsampling
      raise FieldError(
        f"resolution = {self.resolution} is not a multiple of {self.downsampling}, the factor of "
        f"{len(self.channels)} levels{of_patches}; the nearest that is is {multiple}"
      )

  @property
  def downsampling(self) -> int:
    """Voxels per latent cell along an axis."""
    halvings = len(self.channels) - 1
    return self.patch * 2**halvings

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
    self.patch = cfg.patch
    self.dtype = jnp.dtype(cfg.dtype)
    voxels = cfg.patch**3  # of a cell of the finest level
    top = cfg.channels[-1]
    # Occupancy in, one channel a voxel of a cell.
    self.conv_in = Conv3D(voxels, cfg.channels[0], rngs=rngs)
    # finest level first
    levels = []
    next_channels = (*cfg.channels[1:], None)
    for c, c_next in zip(cfg.channels, next_channels, strict=True):
      level = EncoderLevel(
        c,
        c_next,
        cfg.res_blocks,
        dtype=self.dtype,
        rngs=rngs,
      )
      levels.append(level)
    self.levels = nnx.List(levels)
    self.middle = middle_blocks(
      cfg,
      dtype=self.dtype,
      rngs=rngs,
    )
    # Mean and log variance come out side by side.
    moments = 2 * cfg.latent_channels
    self.norm_out = LayerNorm(top, eps=NORM_EPS)
    self.conv_out = Conv3D(top, moments, rngs=rngs)

  def __call__(self, occupancy_BXYZ):
    cells_BXYZC = occupancy_BXYZ.astype(jnp.float32)[..., None]
    if self.patch > 1:
      cells_BXYZC = space_to_depth(cells_BXYZC, self.patch)
    # down to the latent grid
    h = self.conv_in(cells_BXYZC).astype(self.dtype)
    for block in (*self.levels, *self.middle):
      h = block(h)
    # the posterior, in fp32
    normed = self.norm_out(h.astype(jnp.float32))
    active = jax.nn.silu(normed)
    moments = self.conv_out(active)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, logvar


class StructureDecoder(nnx.Module):
  """Latent (B, x, y, z, C) to occupancy logits (B, X, Y, Z) fp32.

  A voxel is occupied where its logit is positive.
  """

  def __init__(self, cfg: StructureVAEConfig, *, rngs: nnx.Rngs):
    self.patch = cfg.patch
    self.dtype = jnp.dtype(cfg.dtype)
    voxels = cfg.patch**3  # of a cell of the finest level
    channels = cfg.channels[::-1]
    # The encoder mirrored: widest first.
    self.conv_in = Conv3D(cfg.latent_channels, channels[0], rngs=rngs)
    self.middle = middle_blocks(
      cfg,
      dtype=self.dtype,
      rngs=rngs,
    )
    # coarsest level first
    levels = []
    next_channels = (*channels[1:], None)
    for c, c_next in zip(channels, next_channels, strict=True):
      level = DecoderLevel(
        c,
        c_next,
        cfg.res_blocks,
        dtype=self.dtype,
        rngs=rngs,
      )
      levels.append(level)
    self.levels = nnx.List(levels)
    self.norm_out = LayerNorm(channels[-1], eps=NORM_EPS)
    self.conv_out = Conv3D(channels[-1], voxels, rngs=rngs)

  def __call__(self, z_BxyzC):
    # up to the finest cells
    h = self.conv_in(z_BxyzC.astype(jnp.float32))
    h = h.astype(self.dtype)
    for block in (*self.middle, *self.levels):
      h = block(h)
    # one logit a voxel, in fp32
    normed = self.norm_out(h.astype(jnp.float32))
    active = jax.nn.silu(normed)
    logits = self.conv_out(active)
    if self.patch > 1:
      logits = depth_to_space(logits, self.patch)
    return logits[..., 0]


def middle_blocks(cfg: StructureVAEConfig, *, dtype, rngs: nnx.Rngs) -> nnx.List:
  """The residual blocks at the coarsest level."""
  # As wide as the coarsest level.
  top = cfg.channels[-1]
  return res_blocks(
    cfg.middle_blocks,
    top,
    dtype=dtype,
    rngs=rngs,
  )


def res_blocks(count: int, channels: int, *, dtype, rngs: nnx.Rngs) -> nnx.List:
  """`count` residual blocks of one width."""
  blocks = nnx.List()
  for _ in range(count):
    block = ResBlock3D(channels, channels, dtype=dtype, rngs=rngs)
    blocks.append(block)
  return blocks


class EncoderLevel(nnx.Module):
  """`count` residual blocks, then a halving to the next level's width if there is one."""

  def __init__(
    self,
    channels: int,
    next_channels: int | None,
    count: int,
    *,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.blocks = res_blocks(
      count,
      channels,
      dtype=dtype,
      rngs=rngs,
    )
    if next_channels is None:
      self.downsample = None
    else:
      self.downsample = Downsample3D(
        channels,
        next_channels,
        dtype=dtype,
        rngs=rngs,
      )

  def __call__(self, x_BXYZC):
    for block in self.blocks:
      x_BXYZC = block(x_BXYZC)
    if self.downsample is None:
      return x_BXYZC
    return self.downsample(x_BXYZC)


class DecoderLevel(nnx.Module):
  """`count` residual blocks, then a doubling of the side to the next width if there is one."""

  def __init__(
    self,
    channels: int,
    next_channels: int | None,
    count: int,
    *,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.blocks = res_blocks(
      count,
      channels,
      dtype=dtype,
      rngs=rngs,
    )
    if next_channels is None:
      self.upsample = None
    else:
      self.upsample = Upsample3D(
        channels,
        next_channels,
        dtype=dtype,
        rngs=rngs,
      )

  def __call__(self, x_BXYZC):
    for block in self.blocks:
      x_BXYZC = block(x_BXYZC)
    if self.upsample is None:
      return x_BXYZC
    return self.upsample(x_BXYZC)


class ResBlock3D(nnx.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))).

  The second convolution starts at zero; a 1x1x1 `skip` changes the width.
  """

  def __init__(self, channels: int, out_channels: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
    # Norms over channels, each voxel by itself.
    self.norm1 = LayerNorm(channels, eps=NORM_EPS)
    self.norm2 = LayerNorm(out_channels, eps=NORM_EPS)
    self.conv1 = Conv3D(
      channels,
      out_channels,
      dtype=dtype,
      rngs=rngs,
    )
    self.conv2 = Conv3D(
      out_channels,
      out_channels,
      dtype=dtype,
      zero=True,
      rngs=rngs,
    )
    if channels == out_channels:
      self.skip = None
    else:
      self.skip = Conv3D(
        channels,
        out_channels,
        size=1,
        dtype=dtype,
        rngs=rngs,
      )

  def __call__(self, x_BXYZC):
    # two convolutions
    normed = self.norm1(x_BXYZC)
    h = self.conv1(jax.nn.silu(normed))
    normed = self.norm2(h)
    h = self.conv2(jax.nn.silu(normed))
    # and the way around them
    shortcut = x_BXYZC
    if self.skip is not None:
      shortcut = self.skip(x_BXYZC)
    return h + shortcut
