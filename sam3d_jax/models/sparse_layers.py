"""Layers over sparse voxel tensors, as the Texture & Refinement models are built of them.

Layers that treat each voxel alone (Dense, LayerNorm, MLP) and the flow model's blocks are those of
the dense models: features are (B, V, C). Here is what looks at other voxels. Parameters are fp32;
products run in `dtype`, norms and statistics in fp32.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax.models import sparse
from sam3d_jax.models.attention import attend
from sam3d_jax.models.geometry_flow import BLOCK_EPS, SelfAttention
from sam3d_jax.models.layers import MLP, Dense, LayerNorm, layer_norm
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.structure_vae import fan_in_uniform

GROUP_EPS = 1e-5


class SubmanifoldConv(nnx.Module):
  """3x3x3 convolution at the active voxels, fp32 out.

  `kernel` is (3, 3, 3, C_in, C_out) over (x, y, z), `bias` (C_out,).
  """

  def __init__(
    self,
    channels: int,
    out_channels: int,
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    bias: bool = True,
    zero: bool = False,
  ):
    shape = (3, 3, 3, channels, out_channels)
    kernel = jnp.zeros(shape, jnp.float32) if zero else fan_in_uniform(rngs.params(), shape)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(jnp.zeros(out_channels, jnp.float32)) if bias else None
    self.dtype = dtype

  def __call__(self, x: SparseTensor, neighbours_TBV) -> SparseTensor:
    kernel = self.kernel[...].astype(self.dtype)
    taps = kernel.reshape(27, *kernel.shape[3:])
    y = sparse.submanifold_conv(x.feats_BVC.astype(self.dtype), taps, neighbours_TBV)
    if self.bias is not None:
      y = y + self.bias[...]
    return x.of(y)


class SparseGroupNorm(nnx.Module):
  """Group norm over the voxels of each sample, with gain and shift per channel."""

  def __init__(self, groups: int, channels: int):
    self.groups = groups
    self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

  def __call__(self, x: SparseTensor) -> SparseTensor:
    y = sparse.group_norm(x, self.groups, GROUP_EPS) * self.scale[...] + self.bias[...]
    return x.of(y.astype(x.feats_BVC.dtype))


class SparseResBlock(nnx.Module):
  """Residual block, the time embedding as scale and shift (in that order) of its second norm.

  The last convolution starts at zero. It works on voxels that are already down- or upsampled, whose
  neighbours it is given; `skip` changes the width.
  """

  def __init__(
    self, channels: int, out_channels: int, mod_width: int, *, rngs: nnx.Rngs, dtype=jnp.float32
  ):
    self.norm1 = LayerNorm(channels, eps=BLOCK_EPS)
    self.conv1 = SubmanifoldConv(channels, out_channels, rngs=rngs, dtype=dtype)
    self.conv2 = SubmanifoldConv(out_channels, out_channels, rngs=rngs, dtype=dtype, zero=True)
    self.mod = Dense(mod_width, (2, out_channels), rngs=rngs)
    if channels == out_channels:
      self.skip = None
    else:
      self.skip = Dense(channels, out_channels, rngs=rngs, dtype=dtype)

  def __call__(self, x: SparseTensor, neighbours_TBV, mod_BD) -> SparseTensor:
    scale_BC, shift_BC = jnp.unstack(self.mod(jax.nn.silu(mod_BD)), axis=1)
    h = self.conv1(x.of(jax.nn.silu(self.norm1(x.feats_BVC))), neighbours_TBV)
    modulated = layer_norm(h.feats_BVC, BLOCK_EPS) * (1 + scale_BC[:, None]) + shift_BC[:, None]
    h = self.conv2(h.of(jax.nn.silu(modulated)), neighbours_TBV)
    shortcut = x.feats_BVC if self.skip is None else self.skip(x.feats_BVC)
    return x.of(h.feats_BVC + shortcut)


class SparseSelfAttention(nnx.Module):
  """Self-attention within a sample, or within the windows of `groups`."""

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    rngs: nnx.Rngs,
    qk_rms_norm: bool = False,
    dtype=jnp.float32,
    attention: str = "auto",
  ):
    self.projections = SelfAttention(width, heads, qk_rms_norm=qk_rms_norm, dtype=dtype, rngs=rngs)
    self.attention = attention

  def __call__(
    self, x: SparseTensor, groups: sparse.Groups | None = None, window: int | None = None
  ):
    """Features (B, V, D) to add.

    groups, window: from `sparse.windows(x, window, shift)`; None: the whole sample.
    """
    q, k, v = self.projections.project(x.feats_BVC)
    if groups is None:
      attended = attend(q, k, v, backend=self.attention, key_count_B=x.count_B)
    else:
      attended = sparse.attend_in_windows(q, k, v, groups, window)
    return self.projections.out(attended)


class WindowBlock(nnx.Module):
  """Pre-norm transformer block of the latent autoencoders.

  Attention in windows, then an MLP; norms without affine.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    window: int,
    *,
    rngs: nnx.Rngs,
    mlp_ratio: float = 4.0,
    dtype=jnp.float32,
  ):
    self.attn = SparseSelfAttention(width, heads, rngs=rngs, dtype=dtype)
    self.mlp = MLP(width, int(width * mlp_ratio), rngs=rngs, dtype=dtype)
    self.window = window

  def __call__(self, x: SparseTensor, groups: sparse.Groups) -> SparseTensor:
    """groups: `sparse.windows(x, window, shift)`, shift 0 in even blocks, window // 2 in odd."""
    normed = x.of(layer_norm(x.feats_BVC, BLOCK_EPS))
    x = x.of(x.feats_BVC + self.attn(normed, groups, self.window))
    return x.of(x.feats_BVC + self.mlp(layer_norm(x.feats_BVC, BLOCK_EPS)))
