"""Point-map encoder: every 8 x 8 window of points becomes one token.

Points are projected to the width, a learned token stands in for unknown ones, and one pre-norm
transformer block runs inside each window over [CLS, points]; the CLS row, plus the window's
position embedding, is the token.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax import sections
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
    sections.check_positive(self, "mlp_ratio")
    sections.check_divides(self, "heads", "width")
    sections.check_divides(self, "patch", "input_size")
    sections.check_choice(self, "remap", remap_lib.REMAPS)
    sections.check_dtype(self)

  @property
  def tokens(self) -> int:
    """Tokens that one point map becomes."""
    # One token a window.
    return (self.input_size // self.patch) ** 2


class WindowBlock(nnx.Module):
  """Pre-norm transformer block without layer scale; only its first row's output is used."""

  def __init__(self, cfg: PointmapConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(cfg.dtype)
    width = cfg.width
    self.norm1 = layers.LayerNorm(width, eps=NORM_EPS)
    self.attn = dinov2.SelfAttention(
      width,
      cfg.heads,
      rngs=rngs,
      dtype=dtype,
    )
    self.norm2 = layers.LayerNorm(width, eps=NORM_EPS)
    self.mlp = dinov2.Mlp(
      width,
      int(width * cfg.mlp_ratio),
      rngs=rngs,
      dtype=dtype,
    )

  def attend(self, x_WLD):
    """(windows, L, D) -> (windows, D): the self-attention's output in the first row."""
    # The whole block, as published; `values_closed` is the same for less.
    normed_WLD = self.norm1(x_WLD)
    attended_WLD = self.attn(normed_WLD)
    return attended_WLD[:, 0]

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
    scale_D = self.norm1.scale[...]
    shift_D = self.norm1.bias[...]
    basis_FD = centred(basis_FD)
    position_LD = centred(position_LD)

    # the norm's divisor of every row, from the quadratic form
    gram_FF = basis_FD @ basis_FD.T
    cross_LF = position_LD @ basis_FD.T
    feature_terms_WL = jnp.einsum(
      "wlf,fg,wlg->wl",
      features_WLF,
      gram_FF,
      features_WLF,
    )
    cross_terms_WL = jnp.einsum("wlf,lf->wl", features_WLF, cross_LF)
    square_WL = feature_terms_WL + 2 * cross_terms_WL
    square_WL = square_WL + jnp.square(position_LD).sum(-1)
    # rounding may leave less than nothing
    floored_WL = jnp.maximum(square_WL, 0.0)
    variance_WL = floored_WL / len(first_D)
    inverse_std_WL = jax.lax.rsqrt(variance_WL + NORM_EPS)
    inverse_std_WL1 = inverse_std_WL[:, :, None]

    # the one query, carried over to the side of the rows
    q_DHK, k_DHK, v_DHK = jnp.unstack(self.attn.qkv.kernel[...], axis=1)
    q_bias, _, v_bias = jnp.unstack(self.attn.qkv.bias[...])
    first_D = self.norm1(first_D)
    q_HK = jnp.einsum("d,dhk->hk", first_D, q_DHK) + q_bias
    q_HK = q_HK * q_DHK.shape[-1] ** -0.5
    query_HD = jnp.einsum("hk,dhk->hd", q_HK, k_DHK)

    # logits of the points
    along_HD = query_HD * scale_D
    basis_FH = basis_FD @ along_HD.T
    projected_WLH = jnp.einsum("wlf,fh->wlh", features_WLF, basis_FH)
    projected_WLH = projected_WLH + position_LD @ along_HD.T
    normed_WLH = projected_WLH * inverse_std_WL1
    logits_WLH = normed_WLH + query_HD @ shift_D

    # attention weights of the first row, which is the same in every window, and of the points
    count, heads = len(features_WLF), len(query_HD)
    of_first_WLH = jnp.broadcast_to(
      query_HD @ first_D,
      (count, 1, heads),
    )
    logits_WLH = jnp.concatenate([of_first_WLH, logits_WLH], axis=1)
    weights_WLH = jax.nn.softmax(logits_WLH, axis=1)
    of_first_WH = weights_WLH[:, 0]
    by_std_WLH = weights_WLH[:, 1:] * inverse_std_WL1

    # the weighted sum of values, term by term of y_l
    def value(rows_ND):
      return jnp.einsum("nd,dhk->nhk", rows_ND, v_DHK)

    shift_and_first_ND = jnp.stack([shift_D, first_D])
    value_shift_HK, value_first_HK = value(shift_and_first_ND)
    mixed_WHF = jnp.einsum("wlh,wlf->whf", by_std_WLH, features_WLF)
    of_positions_WHK = jnp.einsum(
      "wlh,lhk->whk",
      by_std_WLH,
      value(position_LD * scale_D),
    )
    of_features_WHK = jnp.einsum(
      "whf,fhk->whk",
      mixed_WHF,
      value(basis_FD * scale_D),
    )
    values_WHK = of_positions_WHK + of_features_WHK + value_shift_HK
    # the weights sum to one, so the first row's takes its part of the shift away
    of_first_WH1 = of_first_WH[:, :, None]
    of_first_WHK = of_first_WH1 * (value_first_HK - value_shift_HK)
    return values_WHK + of_first_WHK + v_bias

  def finish(self, first_D, attended_WD):
    """The rest of the block for the first row: (windows, D)."""
    x_WD = first_D + attended_WD
    normed_WD = self.norm2(x_WD)
    return x_WD + self.mlp(normed_WD)


def centred(x_ND):
  """Rows without their mean, which a layer norm takes away."""
  # A layer norm subtracts the mean of a sum, which is the sum of the means.
  return x_ND - x_ND.mean(-1, keepdims=True)


class PointmapEncoder(nnx.Module):
  """Point map -> one token a window. No gradient flows to the coordinates."""

  def __init__(self, cfg: PointmapConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    side = cfg.input_size // cfg.patch

    def normal(*shape: int) -> nnx.Param:
      draw = jax.random.normal(rngs.params(), shape, jnp.float32)
      return nnx.Param(0.02 * draw)

    # fp32: coordinates have a large range, and bf16 would round them to 8 bits before the first
    # product.
    self.point_proj = layers.Dense(
      3,
      cfg.width,
      rngs=rngs,
      dtype=jnp.float32,
    )

    # what stands in for an unknown point, and for a whole map
    self.invalid_token = normal(cfg.width)
    if cfg.drop_token:
      self.dropped_token = normal(cfg.width)
    else:
      self.dropped_token = None

    # a window: its first row, its place in the map, and places in it
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

    # points by window, and which are known
    points_BHW3 = points_BHW3.astype(jnp.float32)
    points_BHW3 = resize_nearest(points_BHW3, cfg.input_size)
    if valid_BHW is None:
      valid_BHW = jnp.isfinite(points_BHW3).all(-1)
    points_WL3 = windows(points_BHW3, cfg.patch)
    valid_WL1 = windows(valid_BHW[..., None], cfg.patch)
    valid_WL = valid_WL1[..., 0]

    # the block's first row, which is all that is used of it
    position_LD = self.pos_embed_window[...]
    first_D = self.cls_token[...] + position_LD[0]
    if cfg.cls_only:
      features_WLF, basis_FD = self.features(points_WL3, valid_WL)
      values_WHK = self.block.values_closed(
        features_WLF,
        basis_FD,
        first_D,
        position_LD[1:],
      )
      attended_WD = self.block.attn.out(values_WHK)
    else:
      x_WLD = self.embed_points(points_WL3, valid_WL)
      x_WLD = x_WLD + position_LD[1:].astype(cfg.dtype)
      rows_W1D = jnp.broadcast_to(
        first_D.astype(cfg.dtype),
        (len(x_WLD), 1, cfg.width),
      )
      rows_WLD = jnp.concatenate([rows_W1D, x_WLD], axis=1)
      attended_WD = self.block.attend(rows_WLD)
    tokens_WD = self.block.finish(first_D.astype(cfg.dtype), attended_WD)
    tokens_BSD = tokens_WD.reshape(-1, side * side, cfg.width)
    dtype = tokens_BSD.dtype

    # maps that are left out
    if drop_B is not None:
      if self.dropped_token is None:
        raise ValueError("drop_B was given, but the encoder was built without drop_token=True")
      dropped_D = self.dropped_token[...].astype(dtype)
      drop_B11 = drop_B[:, None, None]
      tokens_BSD = jnp.where(drop_B11, dropped_D, tokens_BSD)

    # where each window lies
    places_DHW = self.pos_embed[...]
    window_position_SD = places_DHW.reshape(cfg.width, -1).T
    return tokens_BSD + window_position_SD.astype(dtype)

  @jax.default_matmul_precision("float32")
  def embed_points(self, points, valid):
    """(..., 3), (...) bool -> (..., D), unknown points replaced by the learned token."""
    # In true fp32: coordinates have a large range.
    features, basis_FD = self.features(points, valid)
    embedding = features @ basis_FD
    return embedding.astype(self.cfg.dtype)

  def features(self, points, valid):
    """(..., 3), (...) bool -> features (..., 5) and their basis (5, D) fp32.

    Their product is the embedding. The features are the remapped point, one for a known point, and
    one for an unknown one.
    """
    points = jax.lax.stop_gradient(points)
    valid = valid[..., None]

    # Zeroed before the remap (which may not accept NaN) and again after it (log 0 would reach the
    # kernel's gradient as 0 * inf).
    finite = jnp.where(valid, points, 0.0)
    remapped = remap_lib.remap(finite, self.cfg.remap)
    points = jnp.where(valid, remapped, 0.0)
    known = valid.astype(jnp.float32)

    # the projection and the token of unknown points as rows of one matrix
    kernel_3D = self.point_proj.kernel[...]
    bias_D = self.point_proj.bias[...]
    invalid_D = self.invalid_token[...]
    basis_FD = jnp.concatenate([kernel_3D, bias_D[None], invalid_D[None]])
    features = jnp.concatenate([points, known, 1 - known], axis=-1)
    return features, basis_FD


def windows(x_BHWD, side: int):
  """(B, H, W, D) -> (B * windows, side², D), both row by row."""
  batch, height, width, dim = x_BHWD.shape
  rows = height // side
  columns = width // side
  # Rows and columns, each as windows and places within one.
  x = x_BHWD.reshape(
    batch,
    rows,
    side,
    columns,
    side,
    dim,
  )
  x = x.swapaxes(2, 3)
  return x.reshape(-1, side * side, dim)


def resize_nearest(points_BHW3, size: int):
  """Nearest resize: output i reads input floor(i * n / size)."""
  height, width = points_BHW3.shape[1:3]
  if (height, width) == (size, size):
    return points_BHW3
  # Static indices: a gather, no arithmetic on coordinates.
  rows = nearest_index(height, size)
  columns = nearest_index(width, size)
  return points_BHW3[:, rows][:, :, columns]
