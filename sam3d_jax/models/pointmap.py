"""Point-map encoder: every 8 x 8 window of points becomes one token.

Points are projected to the width, a learned token stands in for unknown ones, and one pre-norm
transformer block runs inside each window over [CLS, points]; the CLS row, plus the window's
position embedding, is the token.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax.geometry import remap as remap_lib
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.models import dinov2, layers

NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class PointmapConfig:
  """Size and behaviour of the encoder; the defaults are the published ones."""

  width: int = 512
  input_size: int = 256  # point maps are resized to this side (nearest)
  # to the images' size first and from there to input_size, as published; the host does both
  resize_twice: bool = True
  patch: int = 8  # window side
  heads: int = 16
  mlp_ratio: float = 2.0
  remap: str = "linear"
  # compute only the CLS row of the block, which is all that is used, in closed form; same result
  # for less work
  cls_only: bool = True
  drop_token: bool = False  # has the parameter that replaces every window of a dropped point map
  dtype: str = "bfloat16"

  def __post_init__(self):
    if self.remap not in remap_lib.REMAPS:
      raise ValueError(f"PointmapConfig.remap={self.remap!r} is not one of {remap_lib.REMAPS}")
    if self.input_size % self.patch:
      raise ValueError(
        f"PointmapConfig.input_size={self.input_size} is not a multiple of patch={self.patch}"
      )
    if self.width % self.heads:
      raise ValueError(f"PointmapConfig.width={self.width} is not a multiple of heads={self.heads}")

  @property
  def tokens(self) -> int:
    """Tokens that one point map becomes."""
    return (self.input_size // self.patch) ** 2


class WindowBlock(nnx.Module):
  """Pre-norm transformer block without layer scale; only its first row's output is used."""

  def __init__(self, cfg: PointmapConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(cfg.dtype)
    self.norm1 = layers.LayerNorm(cfg.width, eps=NORM_EPS)
    self.attn = dinov2.SelfAttention(cfg.width, cfg.heads, rngs=rngs, dtype=dtype)
    self.norm2 = layers.LayerNorm(cfg.width, eps=NORM_EPS)
    self.mlp = dinov2.Mlp(cfg.width, int(cfg.width * cfg.mlp_ratio), rngs=rngs, dtype=dtype)

  def attend(self, x_WLD):
    """(windows, L, D) -> (windows, D): the self-attention's output in the first row."""
    return self.attn(self.norm1(x_WLD))[:, 0]

  @jax.default_matmul_precision("float32")
  def values_closed(self, features_WLF, basis_FD, first_D, position_LD):
    """What `attn.out` gets in `attend`, computed without the rows: (windows, H, K) fp32.

    The rows of a window are [first, features @ basis + position].

    With one query a head, q·(W_k y) = (W_k^T q)·y and sum_l w_l W_v y_l = W_v (sum_l w_l y_l); the
    key bias cancels in the softmax and the value bias passes through it. Here the query is the same
    in every window, and what is left after the norm,

        y_l = (f_l @ M + p_l) / std_l * scale + bias    with M and p centred over D,

    is linear in the few features of a point but for std_l, whose square is a quadratic form:

        |f_l @ M + p_l|² = f G f^T + 2 f·(M p_l) + |p_l|²    with G = M M^T.

    So M, p and q meet once for all windows, and a window costs L H numbers instead of L D. Products
    are small and in true fp32: coordinates have a large range.
    """
    scale_D, shift_D = self.norm1.scale[...], self.norm1.bias[...]
    basis_FD, position_LD = centred(basis_FD), centred(position_LD)

    # the norm's divisor of every row, from the quadratic form
    gram_FF = basis_FD @ basis_FD.T
    cross_LF = position_LD @ basis_FD.T
    square_WL = (
      jnp.einsum("wlf,fg,wlg->wl", features_WLF, gram_FF, features_WLF)
      + 2 * jnp.einsum("wlf,lf->wl", features_WLF, cross_LF)
      + jnp.square(position_LD).sum(-1)
    )
    # rounding may leave less than nothing
    inverse_std_WL = jax.lax.rsqrt(jnp.maximum(square_WL, 0.0) / len(first_D) + NORM_EPS)
    inverse_std_WL1 = inverse_std_WL[:, :, None]

    # the one query, carried over to the side of the rows
    q_DHK, k_DHK, v_DHK = jnp.unstack(self.attn.qkv.kernel[...], axis=1)
    q_bias, _, v_bias = jnp.unstack(self.attn.qkv.bias[...])
    first_D = self.norm1(first_D)
    q_HK = (jnp.einsum("d,dhk->hk", first_D, q_DHK) + q_bias) * q_DHK.shape[-1] ** -0.5
    query_HD = jnp.einsum("hk,dhk->hd", q_HK, k_DHK)

    # attention weights of the first row and of the points
    along_HD = query_HD * scale_D
    projected_WLH = jnp.einsum("wlf,fh->wlh", features_WLF, basis_FD @ along_HD.T)
    projected_WLH = projected_WLH + position_LD @ along_HD.T
    logits_WLH = projected_WLH * inverse_std_WL1 + query_HD @ shift_D
    of_first_WLH = jnp.broadcast_to(query_HD @ first_D, (len(features_WLF), 1, len(query_HD)))
    weights_WLH = jax.nn.softmax(jnp.concatenate([of_first_WLH, logits_WLH], axis=1), axis=1)
    of_first_WH, by_std_WLH = weights_WLH[:, 0], weights_WLH[:, 1:] * inverse_std_WL1

    # the weighted sum of values, term by term of y_l
    def value(rows_ND):
      return jnp.einsum("nd,dhk->nhk", rows_ND, v_DHK)

    value_shift_HK, value_first_HK = value(jnp.stack([shift_D, first_D]))
    mixed_WHF = jnp.einsum("wlh,wlf->whf", by_std_WLH, features_WLF)
    return (
      jnp.einsum("wlh,lhk->whk", by_std_WLH, value(position_LD * scale_D))
      + jnp.einsum("whf,fhk->whk", mixed_WHF, value(basis_FD * scale_D))
      + value_shift_HK
      + of_first_WH[:, :, None] * (value_first_HK - value_shift_HK)
      + v_bias
    )

  def finish(self, first_D, attended_WD):
    """The rest of the block for the first row: (windows, D)."""
    x_WD = first_D + attended_WD
    return x_WD + self.mlp(self.norm2(x_WD))


def centred(x_ND):
  """Rows without their mean, which a layer norm takes away."""
  return x_ND - x_ND.mean(-1, keepdims=True)


class PointmapEncoder(nnx.Module):
  """Point map -> one token a window. No gradient flows to the coordinates."""

  def __init__(self, cfg: PointmapConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    side = cfg.input_size // cfg.patch

    def normal(*shape: int) -> nnx.Param:
      return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))

    # fp32: coordinates have a large range, and bf16 would round them to 8 bits before the first
    # product.
    self.point_proj = layers.Dense(3, cfg.width, rngs=rngs, dtype=jnp.float32)
    self.invalid_token = normal(cfg.width)
    self.dropped_token = normal(cfg.width) if cfg.drop_token else None
    self.cls_token = normal(cfg.width)
    self.pos_embed = normal(cfg.width, side, side)
    self.pos_embed_window = normal(1 + cfg.patch**2, cfg.width)
    self.block = WindowBlock(cfg, rngs=rngs)

  def __call__(self, points_BHW3, valid_BHW=None, drop_B=None):
    """Encodes point maps.

    Args:
      points_BHW3: (B, H, W, 3) camera-frame points of any size; a point with a non-finite
      coordinate is unknown.
      valid_BHW: (B, input_size, input_size) bool, which points are known after the resize; by
      default those that are finite.
      drop_B: (B,) bool, true where the whole point map is replaced by the dropped token (needs
      `drop_token`).

    Returns:
      (B, cfg.tokens, D) in the compute dtype, windows row by row.
    """
    cfg = self.cfg
    side = cfg.input_size // cfg.patch
    points_BHW3 = resize_nearest(points_BHW3.astype(jnp.float32), cfg.input_size)
    if valid_BHW is None:
      valid_BHW = jnp.isfinite(points_BHW3).all(-1)
    points_WL3 = windows(points_BHW3, cfg.patch)
    valid_WL = windows(valid_BHW[..., None], cfg.patch)[..., 0]
    # the block's first row, which is all that is used of it
    position_LD = self.pos_embed_window[...]
    first_D = self.cls_token[...] + position_LD[0]
    if cfg.cls_only:
      features_WLF, basis_FD = self.features(points_WL3, valid_WL)
      values_WHK = self.block.values_closed(features_WLF, basis_FD, first_D, position_LD[1:])
      attended_WD = self.block.attn.out(values_WHK)
    else:
      x_WLD = self.embed_points(points_WL3, valid_WL) + position_LD[1:].astype(cfg.dtype)
      rows_W1D = jnp.broadcast_to(first_D.astype(cfg.dtype), (len(x_WLD), 1, cfg.width))
      attended_WD = self.block.attend(jnp.concatenate([rows_W1D, x_WLD], axis=1))
    tokens_WD = self.block.finish(first_D.astype(cfg.dtype), attended_WD)
    tokens_BSD = tokens_WD.reshape(-1, side * side, cfg.width)
    if drop_B is not None:
      if self.dropped_token is None:
        raise ValueError("drop_B was given, but the encoder was built without drop_token=True")
      dropped_D = self.dropped_token[...].astype(tokens_BSD.dtype)
      tokens_BSD = jnp.where(drop_B[:, None, None], dropped_D, tokens_BSD)
    window_position_SD = self.pos_embed[...].reshape(cfg.width, -1).T
    return tokens_BSD + window_position_SD.astype(tokens_BSD.dtype)

  @jax.default_matmul_precision("float32")
  def embed_points(self, points, valid):
    """(..., 3), (...) bool -> (..., D), unknown points replaced by the learned token."""
    features, basis_FD = self.features(points, valid)
    return (features @ basis_FD).astype(self.cfg.dtype)

  def features(self, points, valid):
    """(..., 3), (...) bool -> features (..., 5) and their basis (5, D) fp32.

    Their product is the embedding. The features are the remapped point, one for a known point, and
    one for an unknown one.
    """
    points, valid = jax.lax.stop_gradient(points), valid[..., None]
    # Zeroed before the remap (which may not accept NaN) and again after it (log 0 would reach the
    # kernel's gradient as 0 * inf).
    remapped = remap_lib.remap(jnp.where(valid, points, 0.0), self.cfg.remap)
    points = jnp.where(valid, remapped, 0.0)
    known = valid.astype(jnp.float32)
    kernel_3D, bias_D = self.point_proj.kernel[...], self.point_proj.bias[...]
    basis_FD = jnp.concatenate([kernel_3D, bias_D[None], self.invalid_token[...][None]])
    return jnp.concatenate([points, known, 1 - known], axis=-1), basis_FD


def windows(x_BHWD, side: int):
  """(B, H, W, D) -> (B * windows, side², D), both row by row."""
  batch, height, width, dim = x_BHWD.shape
  x = x_BHWD.reshape(batch, height // side, side, width // side, side, dim)
  return x.swapaxes(2, 3).reshape(-1, side * side, dim)


def resize_nearest(points_BHW3, size: int):
  """Nearest resize: output i reads input floor(i * n / size)."""
  height, width = points_BHW3.shape[1:3]
  if (height, width) == (size, size):
    return points_BHW3
  return points_BHW3[:, nearest_index(height, size)][:, :, nearest_index(width, size)]
