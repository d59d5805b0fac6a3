"""The Geometry flow model: a Mixture of Transformers over shape and layout tokens.

arXiv 2511.16624, appendix C.

Two parameter sets ("streams"): `shape` for the structure latent, `layout` shared by rotation,
translation, scale and translation scale. Every block is adaLN self-attention, cross-attention to
the condition tokens, adaLN MLP; the modulation is shared by both streams. Shape tokens attend to
themselves only. Layout tokens attend to layout and shape tokens without sending a gradient into the
latter, so each stream can be trained or frozen apart from the other.

Precision: parameters, time embedding, modulation, norms, softmax and the residual stream are fp32;
matrix products run in `cfg.dtype`. The residual stream is fp32 because 3 additions in each of 24
blocks would otherwise each round the whole state to 8 bits; it costs bandwidth in fused
element-wise operations only. The condition tokens enter every block in the dtype that they arrive
in, which is also that of the sum of their gradients over blocks.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax.batch import LATENTS, LAYOUT_LATENTS
from sam3d_jax.models.attention import BACKENDS, attend, attend_few, attend_rows
from sam3d_jax.models.layers import (
  MLP,
  Dense,
  HeadRMSNorm,
  LayerNorm,
  TimestepEmbedder,
  grid_positions,
  layer_norm,
  position_sincos,
)
from sam3d_jax.models.stack import REMAT_POLICIES, Stack, operand
from sam3d_jax.models.volumes import (
  depth_to_space,
  grid_to_tokens,
  space_to_depth,
  tokens_to_grid,
)

STREAMS = ("shape", "layout")
LAYOUT_CHANNELS = {"rotation": 6, "translation": 3, "scale": 3, "translation_scale": 1}
BLOCK_EPS = 1e-6  # layer norms inside the blocks
OUTPUT_EPS = 1e-5  # layer norm before each latent's output projection


@dataclasses.dataclass(frozen=True)
class GeometryFlowConfig:
  """The defaults are the published model.

  width, depth, heads, mlp_ratio: the transformer; the head dimension is width / heads.
  cond_width: width of the condition tokens.
  shape_resolution: the structure latent has shape_resolution^3 cells.
  latent_channels: channels of a cell.
  patch: cells along a side of a shape token, which carries the channels of its patch^3 cells; the
    published model has 1.
  qk_rms_norm: RMS norm of queries and keys in self-attention.
  shortcut: has an embedder for the step size d.
  time_scale: t and d are multiplied by it before their sinusoids.
  absorb_layout_kv: fold the layout stream's cross-attention key and value projections into its few
    queries and outputs.
  remat: rematerialisation policy of a block, one of stack.REMAT_POLICIES.
  unroll: trace the blocks one after the other instead of as a loop: longer compilation, less
    copying.
  attention: attention backend, one of attention.BACKENDS.
  dtype: compute dtype of the blocks.
  """

  width: int = 1024
  depth: int = 24
  heads: int = 16
  mlp_ratio: float = 4.0
  cond_width: int = 1024
  shape_resolution: int = 16
  latent_channels: int = 8
  patch: int = 1
  qk_rms_norm: bool = True
  shortcut: bool = True
  time_scale: float = 1000.0
  absorb_layout_kv: bool = True
  remat: str = "none"
  unroll: bool = False
  attention: str = "auto"
  dtype: str = "bfloat16"

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
    if self.shape_resolution % self.patch:
      raise ValueError(
        f"shape_resolution={self.shape_resolution} is not a multiple of patch={self.patch}"
      )
    if self.remat not in REMAT_POLICIES:
      raise ValueError(f"remat={self.remat!r} is not one of {REMAT_POLICIES}")
    if self.attention not in BACKENDS:
      raise ValueError(f"attention={self.attention!r} is not one of {BACKENDS}")

  @property
  def token_resolution(self) -> int:
    """Side of the grid of shape tokens."""
    return self.shape_resolution // self.patch

  @property
  def token_channels(self) -> int:
    """Channels of the structure latent that a shape token carries."""
    return self.latent_channels * self.patch**3

  def latent_shapes(self) -> dict[str, tuple[int, int]]:
    """Latent name -> (rows, channels)."""
    return {"shape": (self.shape_resolution**3, self.latent_channels)} | {
      k: (1, c) for k, c in LAYOUT_CHANNELS.items()
    }


class GeometryFlow(nnx.Module):
  """Velocity of all five latents at a time t, given condition tokens."""

  def __init__(self, cfg: GeometryFlowConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.time = TimestepEmbedder(cfg.width, rngs=rngs)
    self.step = TimestepEmbedder(cfg.width, rngs=rngs, zero=True) if cfg.shortcut else None
    self.latents = nnx.Dict(
      {"shape": LatentProjection(cfg.token_channels, cfg.width, learned_positions=0, rngs=rngs)}
      | {
        name: LatentProjection(channels, cfg.width, learned_positions=1, rngs=rngs)
        for name, channels in LAYOUT_CHANNELS.items()
      }
    )
    self.blocks = Stack(
      lambda rngs: MoTBlock(cfg, rngs=rngs),
      cfg.depth,
      rngs=rngs,
      remat=cfg.remat,
      unroll=cfg.unroll,
    )

  def __call__(self, x, t_B, tokens_BSD, d_B=None):
    """Velocities, latent name -> (B, n, c) fp32.

    x: latent name -> (B, n, c), all five. t_B: time in [0, 1], 0 noise, 1 data, shape (B,) or (1,).
    tokens_BSD: condition tokens. d_B: step size in [0, 1] of a shortcut model, shape (B,) or (1,);
    None leaves its embedding out, which is not the same as d = 0. Raises ValueError for missing or
    misshapen latents and for a d that the model has no embedder for.
    """
    self._check(x)
    if d_B is not None and self.step is None:
      raise ValueError(
        "a step size d was given, but the model has no embedder for it: set shortcut=True"
      )
    mod_BD = self.time(t_B * self.cfg.time_scale)
    if d_B is not None:
      mod_BD = mod_BD + self.step(d_B * self.cfg.time_scale)
    streams = self.blocks(self.embed(x), mod_BD, tokens_BSD)
    return self.readout(streams)

  def embed(self, x):
    """Latents to streams: stream name -> (B, L, D) fp32."""
    table_LD = position_sincos(grid_positions(self.cfg.token_resolution), self.cfg.width)
    layout = [self.latents[k].embed(x[k]) for k in LAYOUT_LATENTS]
    return {
      "shape": self.latents["shape"].embed(pack_cells(x["shape"], self.cfg.patch), table_LD),
      "layout": jnp.concatenate(layout, axis=1),
    }

  def readout(self, streams):
    """Streams to velocities: latent name -> (B, n, c) fp32."""
    rows = jnp.split(streams["layout"], len(LAYOUT_LATENTS), axis=1)
    tokens = {"shape": streams["shape"], **dict(zip(LAYOUT_LATENTS, rows, strict=True))}
    velocity = {name: self.latents[name].readout(tokens[name]) for name in LATENTS}
    return velocity | {"shape": unpack_cells(velocity["shape"], self.cfg.patch)}

  def _check(self, x):
    expected = self.cfg.latent_shapes()
    if set(x) != set(expected):
      raise ValueError(f"latents {sorted(x)} were given, the model needs {sorted(expected)}")
    for name, shape in expected.items():
      if x[name].shape[1:] != shape:
        raise ValueError(
          f"latent {name!r} has shape {x[name].shape}, the model needs (B, {shape[0]}, {shape[1]})"
        )


def pack_cells(z_BLC, patch: int):
  """Cells (B, L, C) of a structure latent to tokens of patch^3 cells: (B, L / p^3, C p^3)."""
  if patch == 1:
    return z_BLC
  return grid_to_tokens(space_to_depth(tokens_to_grid(z_BLC), patch))


def unpack_cells(x_BLC, patch: int):
  """The inverse of `pack_cells`."""
  if patch == 1:
    return x_BLC
  return grid_to_tokens(depth_to_space(tokens_to_grid(x_BLC), patch))


class LatentProjection(nnx.Module):
  """One latent into and out of the model width.

  `position` (L, D) is learned for `learned_positions` tokens, on the scale of a sin/cos table;
  with none, a table is given.
  """

  def __init__(self, channels: int, width: int, *, learned_positions: int, rngs: nnx.Rngs):
    self.proj_in = Dense(channels, width, rngs=rngs)
    self.proj_out = Dense(width, channels, rngs=rngs)
    position = jax.random.normal(rngs.params(), (learned_positions, width)) * math.sqrt(0.5)
    self.position = nnx.Param(position) if learned_positions else None

  def embed(self, x_BLC, table_LD=None):
    return self.proj_in(x_BLC) + (table_LD if self.position is None else self.position[...])

  def readout(self, h_BLD):
    return self.proj_out(layer_norm(h_BLD, OUTPUT_EPS))


class MoTBlock(nnx.Module):
  """One block: a shared modulation and two streams."""

  def __init__(self, cfg: GeometryFlowConfig, *, rngs: nnx.Rngs):
    self.adaln = Dense(cfg.width, (6, cfg.width), rngs=rngs, zero=True)
    self.shape = StreamBlock(cfg, absorb_kv=False, rngs=rngs)
    self.layout = StreamBlock(cfg, absorb_kv=cfg.absorb_layout_kv, rngs=rngs)
    self.attention = cfg.attention

  def __call__(self, x, mod_BD, tokens_BSD):
    """Stream name -> (B, L, D) fp32, in and out; mod_BD: time embedding, (B, D) or (1, D)."""
    modulation = modulations(self.adaln, mod_BD)
    q, k, v = {}, {}, {}
    for s in STREAMS:
      q[s], k[s], v[s] = getattr(self, s).project(x[s], modulation)
    attended = mot_attend(q, k, v, backend=self.attention)
    return {s: getattr(self, s).finish(x[s], attended[s], tokens_BSD, modulation) for s in STREAMS}


def mot_attend(q, k, v, *, backend: str):
  """Self-attention of both streams, stream name -> (B, L, H, K).

  Shape sees shape; layout sees layout and shape. The layout's view of shape keys and values sends
  no gradient back into the shape stream.
  """
  seen_k, seen_v = jax.lax.stop_gradient((k["shape"], v["shape"]))
  return {
    "shape": attend(q["shape"], k["shape"], v["shape"], backend=backend),
    "layout": attend_few(q["layout"], (k["layout"], seen_k), (v["layout"], seen_v)),
  }


def modulations(adaln: Dense, mod_BD):
  """Shift, scale and gate of self-attention, then of the MLP: six arrays (B, 1, D) fp32."""
  return tuple(m_BD[:, None] for m_BD in jnp.unstack(adaln(jax.nn.silu(mod_BD)), axis=1))


class StreamBlock(nnx.Module):
  """One stream in one block: all but the modulation and the attention between streams."""

  def __init__(self, cfg: GeometryFlowConfig, *, absorb_kv: bool, rngs: nnx.Rngs):
    self.dtype = dtype = jnp.dtype(cfg.dtype)
    self.self_attn = SelfAttention(
      cfg.width, cfg.heads, qk_rms_norm=cfg.qk_rms_norm, dtype=dtype, rngs=rngs
    )
    self.cross_norm = LayerNorm(cfg.width, eps=BLOCK_EPS)
    self.cross_attn = CrossAttention(
      cfg.width,
      cfg.cond_width,
      cfg.heads,
      absorb_kv=absorb_kv,
      dtype=dtype,
      attention=cfg.attention,
      rngs=rngs,
    )
    self.mlp = MLP(cfg.width, int(cfg.width * cfg.mlp_ratio), dtype=dtype, rngs=rngs)

  def project(self, x_BLD, modulation):
    """Queries, keys and values of the self-attention, each (B, L, H, K)."""
    shift, scale, *_ = modulation
    return self.self_attn.project(operand(modulate(x_BLD, shift, scale), self.dtype))

  def finish(self, x_BLD, attended_BLHK, tokens_BSD, modulation):
    """The rest of the block, given the attended values of its self-attention."""
    _, _, attn_gate, mlp_shift, mlp_scale, mlp_gate = modulation
    x_BLD = operand(x_BLD + attn_gate * self.self_attn.out(attended_BLHK))
    # what the photo says
    queries_BLD = operand(self.cross_norm(x_BLD), self.dtype)
    x_BLD = operand(x_BLD + self.cross_attn(queries_BLD, tokens_BSD))
    # feed-forward
    h_BLD = operand(modulate(x_BLD, mlp_shift, mlp_scale), self.dtype)
    return x_BLD + mlp_gate * self.mlp(h_BLD)


def modulate(x_BLD, shift_B1D, scale_B1D):
  """Parameter-free layer norm, then the modulation's scale and shift, in fp32."""
  return layer_norm(x_BLD, BLOCK_EPS) * (1 + scale_B1D) + shift_B1D


class SelfAttention(nnx.Module):
  """Projections of a self-attention.

  `qkv/kernel` is (D, 3, H, K) and `out/kernel` (H, K, D), so that heads can be sharded.
  """

  def __init__(self, width: int, heads: int, *, qk_rms_norm: bool, dtype, rngs: nnx.Rngs):
    head_dim = width // heads
    self.qkv = Dense(width, (3, heads, head_dim), dtype=dtype, rngs=rngs)
    self.out = Dense((heads, head_dim), width, dtype=dtype, rngs=rngs)
    self.q_norm = HeadRMSNorm(heads, head_dim) if qk_rms_norm else None
    self.k_norm = HeadRMSNorm(heads, head_dim) if qk_rms_norm else None

  def project(self, x_BLD):
    """Queries, keys and values, each (B, L, H, K)."""
    q, k, v = self.qkv.parts(x_BLD)
    if self.q_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    return operand(q), operand(k), operand(v)


class CrossAttention(nnx.Module):
  """Attention of x (B, L, D) to condition tokens (B, S, D).

  `absorb_kv` chooses between two forms of the same function. With weights w = softmax_S(q . k),
  k = W_k c + b_k and v = W_v c + b_v, the absorbed form uses q . k = (W_k^T q) . c + q . b_k, whose
  last term is the same for all tokens and drops out of the softmax, and
  sum_S w v = W_v (sum_S w c) + b_v. It never projects the tokens: cheaper while there are fewer
  queries than D / H.
  """

  def __init__(
    self,
    width: int,
    cond_width: int,
    heads: int,
    *,
    absorb_kv: bool,
    dtype,
    attention: str,
    rngs: nnx.Rngs,
    qk_rms_norm: bool = False,
  ):
    if absorb_kv and qk_rms_norm:
      raise ValueError(
        "absorb_kv needs keys that are linear in the tokens: qk_rms_norm rules it out"
      )
    head_dim = width // heads
    self.q = Dense(width, (heads, head_dim), dtype=dtype, rngs=rngs)
    self.kv = Dense(cond_width, (2, heads, head_dim), dtype=dtype, rngs=rngs)
    self.out = Dense((heads, head_dim), width, dtype=dtype, rngs=rngs)
    self.q_norm = HeadRMSNorm(heads, head_dim) if qk_rms_norm else None
    self.k_norm = HeadRMSNorm(heads, head_dim) if qk_rms_norm else None
    self.absorb_kv, self.dtype, self.attention = absorb_kv, dtype, attention

  def __call__(self, x_BLD, tokens_BSD):
    q_BLHK = operand(self.q(x_BLD))
    v_bias_HK = self.kv.bias[...][1]
    if self.absorb_kv:
      attended_BLHK = self._attend_absorbed(q_BLHK, tokens_BSD.astype(self.dtype))
      return self.out.of_sum(attended_BLHK, v_bias_HK)
    normed = self.q_norm is not None
    # without a norm the keys' bias cancels in the softmax
    k, v = self.kv.parts(tokens_BSD, biased=(normed, False))
    if normed:
      q_BLHK, k = self.q_norm(q_BLHK), self.k_norm(k)
    attended_BLHK = attend(q_BLHK, k, v, backend=self.attention)
    return self.out.of_sum(attended_BLHK, v_bias_HK)

  def _attend_absorbed(self, q_BLHK, tokens_BSD):
    k_kernel_DHK, v_kernel_DHK = jnp.unstack(self.kv.kernel[...].astype(self.dtype), axis=1)
    queries_BLHD = jnp.einsum("blhk,dhk->blhd", q_BLHK, k_kernel_DHK)
    rows_BRD = queries_BLHD.reshape(len(queries_BLHD), -1, tokens_BSD.shape[-1])
    scale = q_BLHK.shape[-1] ** -0.5
    mixed_BRD = attend_rows(rows_BRD, (tokens_BSD,), (tokens_BSD,), scale=scale)
    mixed_BLHD = mixed_BRD.reshape(queries_BLHD.shape)
    return jnp.einsum("blhd,dhk->blhk", mixed_BLHD, v_kernel_DHK)
