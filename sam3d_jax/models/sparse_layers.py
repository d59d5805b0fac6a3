"""Layers over sparse voxel tensors, as the Texture & Refinement models are built of them.

Layers that treat each voxel alone (Dense, LayerNorm, MLP) are those of the dense models: features
are (R, V, C), rows of packed objects (models/sparse.py). Here is what looks at other voxels or
differs from object to object. Parameters are fp32; products run in `dtype`, norms and statistics in
fp32.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax.geometry.packing import WindowOrder
from sam3d_jax.models import sparse
from sam3d_jax.models.attention_layers import SelfAttention
from sam3d_jax.models.geometry_flow import BLOCK_EPS
from sam3d_jax.models.layers import MLP, Dense, LayerNorm, layer_norm
from sam3d_jax.models.packed_attention import (
  Segments,
  attend_packed,
  attend_sorted_windows,
  by_slot,
  by_window,
)
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

  def __call__(self, x: SparseTensor) -> SparseTensor:
    """Raises ValueError for a level without a table of neighbours."""
    neighbours_R27V = x.level.neighbours_R27V
    if neighbours_R27V is None:
      raise ValueError("a convolution needs the neighbours: pack with Tables(neighbours=True)")
    # 27 taps, in the order of the neighbours
    kernel = self.kernel[...].astype(self.dtype)
    taps_TIO = kernel.reshape(27, *kernel.shape[3:])
    feats_RVI = x.feats_RVC.astype(self.dtype)
    y_RVO = sparse.submanifold_conv(
      feats_RVI,
      taps_TIO,
      neighbours_R27V,
    )
    if self.bias is not None:
      y_RVO = y_RVO + self.bias[...]
    return x.of(y_RVO)


class SparseGroupNorm(nnx.Module):
  """Group norm over the voxels of each object, with gain and shift per channel."""

  def __init__(self, groups: int, channels: int):
    self.groups = groups
    gain = jnp.ones(channels, jnp.float32)
    shift = jnp.zeros(channels, jnp.float32)
    self.scale = nnx.Param(gain)
    self.bias = nnx.Param(shift)

  def __call__(self, x: SparseTensor) -> SparseTensor:
    dtype = x.feats_RVC.dtype
    # Statistics in fp32; the result is as wide as the features were.
    normed = sparse.group_norm(x, self.groups, GROUP_EPS)
    y = normed * self.scale[...] + self.bias[...]
    return x.of(y.astype(dtype))


class SparseResBlock(nnx.Module):
  """Residual block, the time embedding as scale and shift (in that order) of its second norm.

  The last convolution starts at zero. It works on voxels that are already down- or upsampled;
  `skip` changes the width.
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
    # Two vectors an object, scale and shift.
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

  def __call__(self, x: SparseTensor, mod_RKD) -> SparseTensor:
    """mod_RKD: what modulates each object."""
    # first convolution
    normed = self.norm1(x.feats_RVC)
    active = x.of(jax.nn.silu(normed))
    h = self.conv1(active)

    shortcut = x.feats_RVC
    if self.skip is not None:
      shortcut = self.skip(shortcut)
    return self.modulated(h, shortcut, mod_RKD)

  def modulated(self, h: SparseTensor, shortcut_RVC, mod_RKD) -> SparseTensor:
    """The second half: from the result of the first convolution and the way around."""
    # of the time of each object, at its slots
    active_RKD = jax.nn.silu(mod_RKD)
    scale_RKC, shift_RKC = jnp.unstack(self.mod(active_RKD), axis=2)
    scale_RVC = sparse.per_slot(scale_RKC, h.level)
    shift_RVC = sparse.per_slot(shift_RKC, h.level)

    # second convolution, modulated
    normed = layer_norm(h.feats_RVC, BLOCK_EPS)
    modulated = normed * (1 + scale_RVC) + shift_RVC
    active = h.of(jax.nn.silu(modulated))
    second = self.conv2(active)
    return h.of(second.feats_RVC + shortcut_RVC)


class SparseSelfAttention(nnx.Module):
  """Self-attention within an object, or within windows of it."""

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

  def __call__(self, x: SparseTensor, order: WindowOrder | None = None):
    """Features (R, V, D) to add. order: one of the level's `windows`; None: the whole object."""
    if order is None:
      q, k, v = self.projections.project(x.feats_RVC)
      own = Segments(x.level.object_RV, x.level.valid_RV)
      attended = attend_packed(
        q,
        k,
        v,
        own,
        own,
        backend=self.attention,
        objects=x.level.count_RK.shape[1],
      )
      return self.projections.out(attended)

    # sorted once, before there are queries, keys and values of it
    sorted_RVC = by_window(x.feats_RVC, order)
    q, k, v = self.projections.project(sorted_RVC)
    attended = attend_sorted_windows(
      q,
      k,
      v,
      order,
      backend=self.attention,
    )
    return by_slot(self.projections.out(attended), order)


class WindowBlock(nnx.Module):
  """Pre-norm transformer block of the latent autoencoders.

  Attention in windows, then an MLP; norms without affine.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    rngs: nnx.Rngs,
    mlp_ratio: float = 4.0,
    dtype=jnp.float32,
    attention: str = "auto",
  ):
    self.attn = SparseSelfAttention(
      width,
      heads,
      rngs=rngs,
      dtype=dtype,
      attention=attention,
    )
    self.mlp = MLP(
      width,
      int(width * mlp_ratio),
      rngs=rngs,
      dtype=dtype,
    )

  def __call__(self, x: SparseTensor, order: WindowOrder) -> SparseTensor:
    """order: the level's first window order in even blocks, its second, shifted, in odd ones."""
    # attention
    normed = layer_norm(x.feats_RVC, BLOCK_EPS)
    attended = self.attn(x.of(normed), order)
    x = x.of(x.feats_RVC + attended)
    # feed-forward
    normed = layer_norm(x.feats_RVC, BLOCK_EPS)
    return x.of(x.feats_RVC + self.mlp(normed))
