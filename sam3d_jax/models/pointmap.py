"""Point-map encoder: every 8 x 8 window of points becomes one token.

Points are projected to the width, a learned token stands in for unknown ones, and one pre-norm transformer block runs inside each
window over [CLS, points]; the CLS row, plus the window's position embedding, is the token.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax.geometry import remap as remap_lib
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.models import dinov2, layers
from sam3d_jax.models.attention import product

NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class PointmapConfig:
  """Size and behaviour of the encoder; the defaults are the published ones."""

  width: int = 512
  input_size: int = 256  # point maps are resized to this side (nearest)
  patch: int = 8  # window side
  heads: int = 16
  mlp_ratio: float = 2.0
  remap: str = "linear"
  cls_only: bool = True  # compute only the CLS row of the block, which is all that is used; same result for less work
  drop_token: bool = False  # has the parameter that replaces every window of a dropped point map
  dtype: str = "bfloat16"

  def __post_init__(self):
    if self.remap not in remap_lib.REMAPS:
      raise ValueError(f"PointmapConfig.remap={self.remap!r} is not one of {remap_lib.REMAPS}")
    if self.input_size % self.patch:
      raise ValueError(f"PointmapConfig.input_size={self.input_size} is not a multiple of patch={self.patch}")
    if self.width % self.heads:
      raise ValueError(f"PointmapConfig.width={self.width} is not a multiple of heads={self.heads}")

  @property
  def tokens(self) -> int:
    """Tokens that one point map becomes."""
    return (self.input_size // self.patch) ** 2


class WindowBlock(nnx.Module):
  """Pre-norm transformer block without layer scale, of which only the first row's output is used."""

  def __init__(self, cfg: PointmapConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(cfg.dtype)
    self.norm1 = layers.LayerNorm(cfg.width, eps=NORM_EPS)
    self.attn = dinov2.SelfAttention(cfg.width, cfg.heads, rngs=rngs, dtype=dtype)
    self.norm2 = layers.LayerNorm(cfg.width, eps=NORM_EPS)
    self.mlp = dinov2.Mlp(cfg.width, int(cfg.width * cfg.mlp_ratio), rngs=rngs, dtype=dtype)
    self.cls_only = cfg.cls_only

  def __call__(self, first_D, x_WLD):
    """(D,), (windows, L, D) -> (windows, D): the first row of the block's output for the rows [first, *x] of every window."""
    if self.cls_only:
      attended_WD = self.attend_first(self.norm1(first_D), self.norm1(x_WLD))
    else:
      rows_WLD = jnp.concatenate([jnp.broadcast_to(first_D, (len(x_WLD), 1, len(first_D))), x_WLD], axis=1)
      attended_WD = self.attn(self.norm1(rows_WLD))[:, 0]
    x_WD = first_D + attended_WD
    return x_WD + self.mlp(self.norm2(x_WD))

  def attend_first(self, first_D, y_WLD):
    """Self-attention output of the first row alone; that row is the same in every window, and so is its query.

    With a single query a head, q·(W_k y) = (W_k^T q)·y and sum_l w_l W_v y_l = W_v (sum_l w_l y_l): keys and values are never
    projected, which leaves 2 D² + 2 L H D products a window instead of (2 L + 2) D². The key bias shifts all logits of a head
    alike and cancels in the softmax; the value bias passes through because the weights sum to one.
    """
    dtype = y_WLD.dtype
    kernel_DHK = [kernel.astype(dtype) for kernel in jnp.unstack(self.attn.qkv.kernel[...], axis=1)]
    bias_HK = [bias.astype(dtype) for bias in jnp.unstack(self.attn.qkv.bias[...])]
    q_HK = jnp.einsum("d,dhk->hk", first_D, kernel_DHK[0]) + bias_HK[0]
    query_HD = jnp.einsum("hk,dhk->hd", q_HK * q_HK.shape[-1] ** -0.5, kernel_DHK[1])
    logits_WLH = product("wld,hd->wlh", y_WLD, query_HD)
    of_first_WLH = jnp.broadcast_to(product("d,hd->h", first_D, query_HD), (len(y_WLD), 1, len(query_HD)))
    weights_WLH = jax.nn.softmax(jnp.concatenate([of_first_WLH, logits_WLH], axis=1), axis=1).astype(dtype)
    pooled_WHD = jnp.einsum("wlh,wld->whd", weights_WLH[:, 1:], y_WLD) + weights_WLH[:, 0, :, None] * first_D
    return self.attn.out(jnp.einsum("whd,dhk->whk", pooled_WHD, kernel_DHK[2]) + bias_HK[2])


class PointmapEncoder(nnx.Module):
  """Point map -> one token a window. No gradient flows to the coordinates."""

  def __init__(self, cfg: PointmapConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    side = cfg.input_size // cfg.patch
    normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))
    # fp32: coordinates have a large range, and bf16 would round them to 8 bits before the first product.
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
      points_BHW3: (B, H, W, 3) camera-frame points of any size; a point with a non-finite coordinate is unknown.
      valid_BHW: (B, input_size, input_size) bool, which points are known after the resize; by default those that are finite.
      drop_B: (B,) bool, true where the whole point map is replaced by the dropped token (needs `drop_token`).

    Returns:
      (B, cfg.tokens, D) in the compute dtype, windows row by row.
    """
    cfg = self.cfg
    side = cfg.input_size // cfg.patch
    points_BHW3 = resize_nearest(points_BHW3.astype(jnp.float32), cfg.input_size)
    if valid_BHW is None:
      valid_BHW = jnp.isfinite(points_BHW3).all(-1)
    # Cut into windows while there are three numbers a point, not `width`.
    x_WLD = self.embed_points(windows(points_BHW3, cfg.patch), windows(valid_BHW[..., None], cfg.patch)[..., 0])
    position_LD = self.pos_embed_window[...].astype(x_WLD.dtype)
    first_D = self.cls_token[...].astype(x_WLD.dtype) + position_LD[0]
    tokens_BSD = self.block(first_D, x_WLD + position_LD[1:]).reshape(-1, side * side, cfg.width)
    if drop_B is not None:
      if self.dropped_token is None:
        raise ValueError("drop_B was given, but the encoder was built without drop_token=True")
      tokens_BSD = jnp.where(drop_B[:, None, None], self.dropped_token[...].astype(tokens_BSD.dtype), tokens_BSD)
    return tokens_BSD + self.pos_embed[...].reshape(cfg.width, -1).T.astype(tokens_BSD.dtype)

  def embed_points(self, points, valid):
    """(..., 3), (...) bool -> (..., D), unknown points replaced by the learned token."""
    points, valid = jax.lax.stop_gradient(points), valid[..., None]
    # Zeroed before the remap (which may not accept NaN) and again after it (log 0 would reach the kernel's gradient as 0 * inf).
    points = jnp.where(valid, remap_lib.remap(jnp.where(valid, points, 0.0), self.cfg.remap), 0.0)
    return jnp.where(valid, self.point_proj(points), self.invalid_token[...]).astype(self.cfg.dtype)


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
