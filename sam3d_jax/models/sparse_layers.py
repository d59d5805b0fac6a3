"""Layers over sparse voxel tensors, as the Texture & Refinement models are built of them.

Layers that treat each voxel alone (Dense, LayerNorm, MLP) and the flow model's blocks are those of
the dense models: features are (B, V, C). Here is what looks at other voxels. Parameters are fp32;
products run in `dtype`, norms and statistics in fp32.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax.models import sparse, sparse_windows
from sam3d_jax.models.attention import attend
from sam3d_jax.models.attention_layers import SelfAttention
from sam3d_jax.models.geometry_flow import BLOCK_EPS
from sam3d_jax.models.layers import MLP, Dense, LayerNorm, layer_norm
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.volumes import fan_in_uniform

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
    # A block whose last convolution is zero starts as the identity.
    if zero:
      kernel = jnp.zeros(shape, jnp.float32)
    else:
      kernel = fan_in_uniform(rngs.params(), shape)
    self.kernel = nnx.Param(kernel)
    if bias:
      self.bias = nnx.Param(jnp.zeros(out_channels, jnp.float32))
    else:
      self.bias = None
    self.dtype = dtype

  def __call__(self, x: SparseTensor, neighbours_TBV) -> SparseTensor:
    # 27 taps, in the order of the neighbours
    kernel = self.kernel[...].astype(self.dtype)
    taps_TIO = kernel.reshape(27, *kernel.shape[3:])
    feats_BVI = x.feats_BVC.astype(self.dtype)
    y_BVO = sparse.submanifold_conv(
      feats_BVI,
      taps_TIO,
      neighbours_TBV,
    )
    if self.bias is not None:
      y_BVO = y_BVO + self.bias[...]
    return x.of(y_BVO)


class SparseGroupNorm(nnx.Module):
  """Group norm over the voxels of each sample, with gain and shift per channel."""

  def __init__(self, groups: int, channels: int):
    self.groups = groups
    gain = jnp.ones(channels, jnp.float32)
    shift = jnp.zeros(channels, jnp.float32)
    self.scale = nnx.Param(gain)
    self.bias = nnx.Param(shift)

  def __call__(self, x: SparseTensor) -> SparseTensor:
    dtype = x.feats_BVC.dtype
    # Statistics in fp32; the result is as wide as the features were.
    normed = sparse.group_norm(x, self.groups, GROUP_EPS)
    y = normed * self.scale[...] + self.bias[...]
    return x.of(y.astype(dtype))


class SparseResBlock(nnx.Module):
  """Residual block, the time embedding as scale and shift (in that order) of its second norm.

  The last convolution starts at zero. It works on voxels that are already down- or upsampled, whose
  neighbours it is given; `skip` changes the width.
  """

  def __init__(
    self, channels: int, out_channels: int, mod_width: int, *, rngs: nnx.Rngs, dtype=jnp.float32
  ):
    self.norm1 = LayerNorm(channels, eps=BLOCK_EPS)
    self.conv1 = SubmanifoldConv(
      channels,
      out_channels,
      rngs=rngs,
      dtype=dtype,
    )
    self.conv2 = SubmanifoldConv(
      out_channels,
      out_channels,
      rngs=rngs,
      dtype=dtype,
      zero=True,
    )
    # Two vectors a sample, scale and shift.
    self.mod = Dense(
      mod_width,
      (2, out_channels),
      rngs=rngs,
    )
    if channels == out_channels:
      self.skip = None
    else:
      self.skip = Dense(
        channels,
        out_channels,
        rngs=rngs,
        dtype=dtype,
      )

  def __call__(self, x: SparseTensor, neighbours_TBV, mod_BD) -> SparseTensor:
    # of the time
    active_BD = jax.nn.silu(mod_BD)
    scale_BC, shift_BC = jnp.unstack(self.mod(active_BD), axis=1)

    # first convolution
    normed = self.norm1(x.feats_BVC)
    active = x.of(jax.nn.silu(normed))
    h = self.conv1(active, neighbours_TBV)

    # second convolution, modulated
    normed = layer_norm(h.feats_BVC, BLOCK_EPS)
    modulated = normed * (1 + scale_BC[:, None])
    modulated = modulated + shift_BC[:, None]
    active = h.of(jax.nn.silu(modulated))
    h = self.conv2(active, neighbours_TBV)

    shortcut = x.feats_BVC
    if self.skip is not None:
      shortcut = self.skip(shortcut)
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
    self.projections = SelfAttention(
      width,
      heads,
      qk_rms_norm=qk_rms_norm,
      dtype=dtype,
      rngs=rngs,
    )
    self.attention = attention

  def __call__(
    self, x: SparseTensor, groups: sparse.Groups | None = None, window: int | None = None
  ):
    """Features (B, V, D) to add.

    groups, window: from `sparse_windows.windows(x, window, shift)`; None: the whole sample.
    """
    # Padding is kept out by count, or by belonging to no window.
    q, k, v = self.projections.project(x.feats_BVC)
    if groups is None:
      attended = attend(
        q,
        k,
        v,
        backend=self.attention,
        key_count_B=x.count_B,
      )
    else:
      attended = sparse_windows.attend_in_windows(
        q,
        k,
        v,
        groups,
        window,
      )
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
    self.attn = SparseSelfAttention(
      width,
      heads,
      rngs=rngs,
      dtype=dtype,
    )
    self.mlp = MLP(
      width,
      int(width * mlp_ratio),
      rngs=rngs,
      dtype=dtype,
    )
    self.window = window

  def __call__(self, x: SparseTensor, groups: sparse.Groups) -> SparseTensor:
    """groups: of `sparse_windows.windows(x, window, shift)`.

    The shift is 0 in even blocks and window // 2 in odd ones.
    """
    # attention
    normed = layer_norm(x.feats_BVC, BLOCK_EPS)
    attended = self.attn(
      x.of(normed),
      groups,
      self.window,
    )
    x = x.of(x.feats_BVC + attended)
    # feed-forward
    normed = layer_norm(x.feats_BVC, BLOCK_EPS)
    return x.of(x.feats_BVC + self.mlp(normed))
