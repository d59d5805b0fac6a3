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

from sam3d_jax import sections
from sam3d_jax.batch import LATENTS, LAYOUT_LATENTS
from sam3d_jax.models.attention import attend, attend_few, check_backend
from sam3d_jax.models.attention_layers import CrossAttention, SelfAttention
from sam3d_jax.models.layers import (
  MLP,
  Dense,
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
    # sizes
    sections.check_positive(self, "depth", "mlp_ratio", "cond_width", "latent_channels")
    sections.check_positive(self, "time_scale")
    sections.check_divides(self, "heads", "width")
    sections.check_divides(self, "patch", "shape_resolution")
    # how it is computed
    sections.check_choice(self, "remat", REMAT_POLICIES)
    sections.check_dtype(self)
    check_backend(self)

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
    cells = self.shape_resolution**3
    shapes = {"shape": (cells, self.latent_channels)}
    for name, channels in LAYOUT_CHANNELS.items():
      shapes[name] = (1, channels)
    return shapes


class GeometryFlow(nnx.Module):
  """Velocity of all five latents at a time t, given condition tokens."""

  def __init__(self, cfg: GeometryFlowConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg

    # embedders of time and step size
    self.time = TimestepEmbedder(cfg.width, rngs=rngs)
    if cfg.shortcut:
      self.step = TimestepEmbedder(
        cfg.width,
        rngs=rngs,
        zero=True,
      )
    else:
      self.step = None

    # each latent into and out of the width
    latents = {}
    latents["shape"] = LatentProjection(
      cfg.token_channels,
      cfg.width,
      learned_positions=0,
      rngs=rngs,
    )
    for name, channels in LAYOUT_CHANNELS.items():
      latents[name] = LatentProjection(
        channels,
        cfg.width,
        learned_positions=1,
        rngs=rngs,
      )
    self.latents = nnx.Dict(latents)

    # the transformer
    def block(rngs: nnx.Rngs) -> MoTBlock:
      return MoTBlock(cfg, rngs=rngs)

    self.blocks = Stack(
      block,
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
    # what modulates every block
    scale = self.cfg.time_scale
    mod_BD = self.time(t_B * scale)
    if d_B is not None:
      mod_BD = mod_BD + self.step(d_B * scale)
    # latents in, velocities out
    streams = self.embed(x)
    streams = self.blocks(streams, mod_BD, tokens_BSD)
    return self.readout(streams)

  def embed(self, x):
    """Latents to streams: stream name -> (B, L, D) fp32."""
    cfg = self.cfg
    # Fixed positions of the grid's tokens; layout tokens learn theirs.
    grid_L3 = grid_positions(cfg.token_resolution)
    table_LD = position_sincos(grid_L3, cfg.width)
    # one row a latent
    layout = []
    for name in LAYOUT_LATENTS:
      row_B1D = self.latents[name].embed(x[name])
      layout.append(row_B1D)
    # tokens of the grid
    cells_BLC = pack_cells(x["shape"], cfg.patch)
    shape_BLD = self.latents["shape"].embed(cells_BLC, table_LD)
    return {
      "shape": shape_BLD,
      "layout": jnp.concatenate(layout, axis=1),
    }

  def readout(self, streams):
    """Streams to velocities: latent name -> (B, n, c) fp32."""
    # A row of the layout stream belongs to one latent.
    rows = jnp.split(
      streams["layout"],
      len(LAYOUT_LATENTS),
      axis=1,
    )
    tokens = dict(zip(LAYOUT_LATENTS, rows, strict=True))
    tokens["shape"] = streams["shape"]
    velocity = {}
    for name in LATENTS:
      projection = self.latents[name]
      velocity[name] = projection.readout(tokens[name])
    velocity["shape"] = unpack_cells(velocity["shape"], self.cfg.patch)
    return velocity

  def _check(self, x):
    # Names first: a missing latent has no shape.
    expected = self.cfg.latent_shapes()
    if set(x) != set(expected):
      raise ValueError(f"latents {sorted(x)} were given, the model needs {sorted(expected)}")
    for name, shape in expected.items():
      given = x[name].shape
      if given[1:] != shape:
        tokens, channels = shape
        raise ValueError(
          f"latent {name!r} has shape {given}, the model needs (B, {tokens}, {channels})"
        )


def pack_cells(z_BLC, patch: int):
  """Cells (B, L, C) of a structure latent to tokens of patch^3 cells: (B, L / p^3, C p^3)."""
  if patch == 1:
    return z_BLC
  # Through the grid, where neighbours are neighbours.
  cells = tokens_to_grid(z_BLC)
  packed = space_to_depth(cells, patch)
  return grid_to_tokens(packed)


def unpack_cells(x_BLC, patch: int):
  """The inverse of `pack_cells`."""
  if patch == 1:
    return x_BLC
  packed = tokens_to_grid(x_BLC)
  cells = depth_to_space(packed, patch)
  return grid_to_tokens(cells)


class LatentProjection(nnx.Module):
  """One latent into and out of the model width.

  `position` (L, D) is learned for `learned_positions` tokens, on the scale of a sin/cos table;
  with none, a table is given.
  """

  def __init__(self, channels: int, width: int, *, learned_positions: int, rngs: nnx.Rngs):
    self.proj_in = Dense(channels, width, rngs=rngs)
    self.proj_out = Dense(width, channels, rngs=rngs)
    # drawn in either case, so that what is drawn after it does not depend on it
    normal = jax.random.normal(rngs.params(), (learned_positions, width))
    position = normal * math.sqrt(0.5)
    if learned_positions:
      self.position = nnx.Param(position)
    else:
      self.position = None

  def embed(self, x_BLC, table_LD=None):
    # In fp32: a few channels only.
    projected_BLD = self.proj_in(x_BLC)
    if self.position is None:
      return projected_BLD + table_LD
    return projected_BLD + self.position[...]

  def readout(self, h_BLD):
    normed_BLD = layer_norm(h_BLD, OUTPUT_EPS)
    return self.proj_out(normed_BLD)


class MoTBlock(nnx.Module):
  """One block: a shared modulation and two streams."""

  def __init__(self, cfg: GeometryFlowConfig, *, rngs: nnx.Rngs):
    # Zero at the start: every block begins as the identity but for cross-attention.
    self.adaln = Dense(
      cfg.width,
      (6, cfg.width),
      rngs=rngs,
      zero=True,
    )
    self.shape = StreamBlock(
      cfg,
      absorb_kv=False,
      rngs=rngs,
    )
    self.layout = StreamBlock(
      cfg,
      absorb_kv=cfg.absorb_layout_kv,
      rngs=rngs,
    )
    self.attention = cfg.attention

  def __call__(self, x, mod_BD, tokens_BSD):
    """Stream name -> (B, L, D) fp32, in and out; mod_BD: time embedding, (B, D) or (1, D)."""
    modulation = modulations(self.adaln, mod_BD)
    blocks = {"shape": self.shape, "layout": self.layout}

    # each stream by itself, up to its queries, keys and values
    q, k, v = {}, {}, {}
    for s, block in blocks.items():
      q[s], k[s], v[s] = block.project(x[s], modulation)

    # where they meet
    attended = mot_attend(
      q,
      k,
      v,
      backend=self.attention,
    )

    # each stream by itself again
    out = {}
    for s, block in blocks.items():
      out[s] = block.finish(
        x[s],
        attended[s],
        tokens_BSD,
        modulation,
      )
    return out


def mot_attend(q, k, v, *, backend: str):
  """Self-attention of both streams, stream name -> (B, L, H, K).

  Shape sees shape; layout sees layout and shape. The layout's view of shape keys and values sends
  no gradient back into the shape stream.
  """
  # the shape stream can be trained apart from the layout stream
  seen_k, seen_v = jax.lax.stop_gradient((k["shape"], v["shape"]))
  shape_BLHK = attend(
    q["shape"],
    k["shape"],
    v["shape"],
    backend=backend,
  )
  layout_BLHK = attend_few(
    q["layout"],
    (k["layout"], seen_k),
    (v["layout"], seen_v),
  )
  return {"shape": shape_BLHK, "layout": layout_BLHK}


def modulations(adaln: Dense, mod_BD):
  """Shift, scale and gate of self-attention, then of the MLP: six arrays (B, 1, D) fp32."""
  # adaLN-zero of DiT (Peebles & Xie 2023): shift, scale, gate, twice.
  active_BD = jax.nn.silu(mod_BD)
  six_B6D = adaln(active_BD)
  each = jnp.unstack(six_B6D, axis=1)
  return tuple(m_BD[:, None] for m_BD in each)


class StreamBlock(nnx.Module):
  """One stream in one block: all but the modulation and the attention between its tokens.

  cfg: of a flow model with blocks like these. cross: the kind of its cross-attention.
  """

  def __init__(
    self,
    cfg,
    *,
    absorb_kv: bool,
    cross: type[CrossAttention] = CrossAttention,
    rngs: nnx.Rngs,
  ):
    self.dtype = jnp.dtype(cfg.dtype)
    self.self_attn = SelfAttention(
      cfg.width,
      cfg.heads,
      qk_rms_norm=cfg.qk_rms_norm,
      dtype=self.dtype,
      rngs=rngs,
    )
    self.cross_norm = LayerNorm(cfg.width, eps=BLOCK_EPS)
    self.cross_attn = cross(
      cfg.width,
      cfg.cond_width,
      cfg.heads,
      absorb_kv=absorb_kv,
      dtype=self.dtype,
      attention=cfg.attention,
      rngs=rngs,
    )
    self.mlp = MLP(
      cfg.width,
      int(cfg.width * cfg.mlp_ratio),
      dtype=self.dtype,
      rngs=rngs,
    )

  def project(self, x_BLD, modulation):
    """Queries, keys and values of the self-attention, each (B, L, H, K)."""
    # The first two of the six are the attention's.
    shift, scale, *_ = modulation
    h_BLD = modulate(x_BLD, shift, scale)
    h_BLD = operand(h_BLD, self.dtype)
    return self.self_attn.project(h_BLD)

  def finish(self, x_BLD, attended_BLHK, tokens_BSD, modulation, *whose):
    """The rest of the block, given the attended values of its self-attention.

    whose: what the cross-attention takes after the tokens, where it has to tell objects apart.
    """
    _, _, attn_gate, mlp_shift, mlp_scale, mlp_gate = modulation
    # what the other tokens say
    seen_BLD = self.self_attn.out(attended_BLHK)
    x_BLD = operand(x_BLD + attn_gate * seen_BLD)
    # what the photo says
    queries_BLD = self.cross_norm(x_BLD)
    queries_BLD = operand(queries_BLD, self.dtype)
    told_BLD = self.cross_attn(queries_BLD, tokens_BSD, *whose)
    x_BLD = operand(x_BLD + told_BLD)
    # feed-forward
    h_BLD = modulate(x_BLD, mlp_shift, mlp_scale)
    h_BLD = operand(h_BLD, self.dtype)
    return x_BLD + mlp_gate * self.mlp(h_BLD)


def modulate(x_BLD, shift_B1D, scale_B1D):
  """Parameter-free layer norm, then the modulation's scale and shift, in fp32."""
  # With zero scale and shift, as at the start, it is the plain norm.
  normed_BLD = layer_norm(x_BLD, BLOCK_EPS)
  return normed_BLD * (1 + scale_B1D) + shift_B1D
