"""The Texture & Refinement flow model: structured latents on the active voxels of objects.

arXiv 2511.16624, appendix C. A U around a transformer: residual blocks of submanifold convolutions
at the voxels' resolution (64^3) and, after pooling, at half of it; there the blocks of adaLN
self-attention among an object's voxels, cross-attention to its condition tokens, adaLN MLP; then
the mirrored residual blocks, each of which also reads what its mirror image gave.

Objects lie packed in rows (geometry/packing.py). Every object has its own time, tokens and
modulation, and none sees another. Precision is that of geometry_flow.py: time embedding,
modulation, norms, softmax and the residual stream are fp32, matrix products run in `cfg.dtype`.

Dimension letters: R rows, V slots of a row, T slots at half the resolution, K objects that a row
holds at most, S condition tokens of an object.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.geometry.packing import PackedVoxels, VoxelLevel
from sam3d_jax.models import sparse
from sam3d_jax.models.attention import check_backend
from sam3d_jax.models.attention_layers import CrossAttention
from sam3d_jax.models.geometry_flow import OUTPUT_EPS, StreamBlock
from sam3d_jax.models.layers import (
  Dense,
  TimestepEmbedder,
  layer_norm,
  position_sincos,
)
from sam3d_jax.models.packed_attention import Segments, attend_packed, attend_packed_cross
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import SparseResBlock
from sam3d_jax.models.sparse_up import UpResBlock
from sam3d_jax.models.stack import REMAT_POLICIES, Stack, operand, rematerialise

LATENT = "slat"  # name of the one latent
COARSENING = 2  # voxels along a side of a token's voxel


@dataclasses.dataclass(frozen=True)
class TextureFlowConfig:
  """The defaults are the published model.

  width, depth, heads, mlp_ratio: the transformer; the head dimension is width / heads.
  cond_width: width of the condition tokens.
  resolution: voxels lie in a grid of resolution^3.
  latent_channels: channels of a voxel's latent.
  io_width: of the residual blocks at the voxels' resolution.
  io_blocks: residual blocks on the way down, and on the way up.
  qk_rms_norm: RMS norm of queries and keys in self-attention.
  shortcut: has an embedder for the step size d.
  time_scale: t and d are multiplied by it before their sinusoids.
  remat: rematerialisation policy of a transformer block, one of stack.REMAT_POLICIES; with any but
    "none" a residual block keeps its input alone.
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
  resolution: int = 64
  latent_channels: int = 8
  io_width: int = 128
  io_blocks: int = 2
  qk_rms_norm: bool = True
  shortcut: bool = False
  time_scale: float = 1000.0
  remat: str = "none"
  unroll: bool = False
  attention: str = "auto"
  dtype: str = "bfloat16"

  def __post_init__(self):
    # sizes
    sections.check_positive(self, "depth", "mlp_ratio", "cond_width", "latent_channels")
    sections.check_positive(self, "io_width", "io_blocks", "time_scale", "resolution")
    sections.check_divides(self, "heads", "width")
    # how it is computed
    sections.check_choice(self, "remat", REMAT_POLICIES)
    sections.check_dtype(self)
    check_backend(self)

  @property
  def down_widths(self) -> tuple[tuple[int, int], ...]:
    """Channels in and out of each residual block on the way down; the last one is pooled."""
    same = ((self.io_width, self.io_width),) * (self.io_blocks - 1)
    return (*same, (self.io_width, self.width))

  @property
  def up_widths(self) -> tuple[tuple[int, int], ...]:
    """Channels in and out of each residual block on the way up, the first one from half the
    resolution; in counts both the features and those of the mirror image.
    """
    same = ((2 * self.io_width, self.io_width),) * (self.io_blocks - 1)
    return ((2 * self.width, self.io_width), *same)


class TextureFlow(nnx.Module):
  """Velocity of the latents of all voxels at a time t, given voxels and condition tokens."""

  def __init__(self, cfg: TextureFlowConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    dtype = jnp.dtype(cfg.dtype)

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

    # latents into the width of the residual blocks, and these down to half the resolution
    self.proj_in = Dense(
      cfg.latent_channels,
      cfg.io_width,
      rngs=rngs,
    )
    self.in_blocks = nnx.List()
    for channels, out_channels in cfg.down_widths:
      block = SparseResBlock(
        channels,
        out_channels,
        cfg.width,
        rngs=rngs,
        dtype=dtype,
      )
      self.in_blocks.append(block)

    # the transformer
    def transformer_block(rngs: nnx.Rngs) -> TextureBlock:
      return TextureBlock(cfg, rngs=rngs)

    self.blocks = Stack(
      transformer_block,
      cfg.depth,
      rngs=rngs,
      remat=cfg.remat,
      unroll=cfg.unroll,
    )

    # and up again, the first block from half the resolution; the last projection starts at zero
    self.out_blocks = nnx.List()
    for number, (channels, out_channels) in enumerate(cfg.up_widths):
      make = SparseResBlock if number else UpResBlock
      block = make(
        channels,
        out_channels,
        cfg.width,
        rngs=rngs,
        dtype=dtype,
      )
      self.out_blocks.append(block)
    self.proj_out = Dense(
      cfg.io_width,
      cfg.latent_channels,
      rngs=rngs,
      zero=True,
    )

  def __call__(self, x_RVC, t_RK, tokens_RKSD, voxels: PackedVoxels, d_RK=None):
    """Velocities (R, V, C) fp32, zero in the padding.

    x_RVC: latents at time t; what the padding holds is not read. t_RK: time in [0, 1] of each
    object, 0 noise, 1 data, or one for all, (1,). tokens_RKSD: condition tokens of each object.
    voxels: with neighbours, the level of half the resolution, and pooling. d_RK: step size in
    [0, 1] of a shortcut model, as t_RK; None leaves its embedding out, which is not the same as
    d = 0. Raises ValueError for a d that the model has no embedder for.
    """
    if d_RK is not None and self.step is None:
      raise ValueError(
        "a step size d was given, but the model has no embedder for it: set shortcut=True"
      )
    # what modulates every block
    mod_RKD = self.modulation(t_RK, d_RK, tokens_RKSD.shape[:2])

    # down
    skips = self.down(x_RVC, mod_RKD, voxels)
    *_, coarse = skips

    # among the voxels of half the resolution
    h_RTD = coarse.feats_RVC + position_table(voxels.coarse, self.cfg.width)
    h_RTD = self.blocks(h_RTD, mod_RKD, tokens_RKSD, voxels.coarse)
    h = coarse.of(h_RTD)

    # up, and out
    h = self.up(h, skips, mod_RKD, voxels)
    normed_RVC = layer_norm(h.feats_RVC, OUTPUT_EPS)
    return h.of(self.proj_out(normed_RVC)).feats_RVC

  def modulation(self, t_RK, d_RK, objects: tuple[int, int]):
    """Embedding (R, K, D) of the time, and of the step size if one is given; objects: (R, K)."""
    scale = self.cfg.time_scale
    mod_RKD = embed_times(self.time, t_RK * scale, objects)
    if d_RK is None:
      return mod_RKD
    return mod_RKD + embed_times(self.step, d_RK * scale, objects)

  def down(self, x_RVC, mod_RKD, voxels: PackedVoxels) -> list[SparseTensor]:
    """What each residual block on the way down gives; the last one is at half the resolution."""
    # of the padding only zeros: it may hold anything
    x = SparseTensor(x_RVC, voxels.fine)
    x = x.of(x_RVC)
    h = x.of(self.proj_in(x.feats_RVC))

    given = []
    *level_blocks, last = self.in_blocks
    for block in level_blocks:
      h = self.residual(block, h, mod_RKD)
      given.append(h)

    # the last one works on pooled voxels
    pooled_RTC = sparse.pooled(h.feats_RVC, voxels.pooling)
    pooled = SparseTensor(pooled_RTC, voxels.coarse)
    h = self.residual(last, pooled, mod_RKD)
    return [*given, h]

  def up(self, h, skips: list[SparseTensor], mod_RKD, voxels: PackedVoxels) -> SparseTensor:
    """From half the resolution to that of the voxels; each block also reads its mirror image's
    result.
    """
    *level_skips, coarse_skip = skips
    first, *level_blocks = self.out_blocks

    # the first one leads to the voxels' resolution
    h_RTC = jnp.concatenate([h.feats_RVC, coarse_skip.feats_RVC], axis=-1)
    h = self.residual(first, h.of(h_RTC), voxels, mod_RKD)

    for block, skip in zip(level_blocks, reversed(level_skips), strict=True):
      both_RVC = jnp.concatenate([h.feats_RVC, skip.feats_RVC], axis=-1)
      h = self.residual(block, h.of(both_RVC), mod_RKD)
    return h

  def residual(self, block: SparseResBlock, x: SparseTensor, *given) -> SparseTensor:
    """One residual block, called as `block(x, *given)`."""
    graph, params = nnx.split(block)

    def of_features(params, feats_RVC, given):
      module = nnx.merge(graph, params)
      return module(x.of(feats_RVC), *given)

    # Where memory counts only its input is kept: its arrays are as long as the voxels are many.
    policy = "none"
    if self.cfg.remat != "none":
      policy = "full"
    compute = rematerialise(of_features, policy, looped=False)
    return compute(params, x.feats_RVC, given)


def embed_times(embedder: TimestepEmbedder, t, objects: tuple[int, int]):
  """Embeddings (R, K, D) of one time for each object, (R, K), or of one for all, (1,)."""
  t = jnp.asarray(t, jnp.float32)
  embedded_ND = embedder(t.reshape(-1))
  if t.ndim == 1:
    return jnp.broadcast_to(embedded_ND, (*objects, embedded_ND.shape[-1]))
  return embedded_ND.reshape(*objects, -1)


def position_table(level: VoxelLevel, width: int):
  """Sin/cos of the coordinates of each slot, (R, T, D) fp32."""
  rows, slots, axes = level.coords_RV3.shape
  places_N3 = level.coords_RV3.reshape(rows * slots, axes)
  table_ND = position_sincos(places_N3, width)
  return table_ND.reshape(rows, slots, width)


class TextureBlock(nnx.Module):
  """One block: a modulation for each object, and the stream of voxels."""

  def __init__(self, cfg: TextureFlowConfig, *, rngs: nnx.Rngs):
    # Zero at the start: every block begins as the identity but for cross-attention.
    self.adaln = Dense(
      cfg.width,
      (6, cfg.width),
      rngs=rngs,
      zero=True,
    )
    self.stream = StreamBlock(
      cfg,
      absorb_kv=False,
      cross=PackedCrossAttention,
      rngs=rngs,
    )
    self.attention = cfg.attention

  def __call__(self, x_RTD, mod_RKD, tokens_RKSD, level: VoxelLevel):
    """(R, T, D) fp32, in and out."""
    # adaLN-zero of DiT (Peebles & Xie 2023): shift, scale, gate, twice; each object's at its slots
    active_RKD = jax.nn.silu(mod_RKD)
    six_RK6D = self.adaln(active_RKD)
    each_RKD = jnp.unstack(six_RK6D, axis=2)
    modulation = [sparse.per_slot(m_RKD, level) for m_RKD in each_RKD]

    # the voxels of an object look at each other and at its own tokens
    segments = Segments(level.object_RV, level.valid_RV)
    q, k, v = self.stream.project(x_RTD, modulation)
    attended_RTHK = attend_packed(
      q,
      k,
      v,
      segments,
      segments,
      backend=self.attention,
      objects=level.count_RK.shape[1],
    )
    return self.stream.finish(
      x_RTD,
      attended_RTHK,
      tokens_RKSD,
      modulation,
      segments,
    )


class PackedCrossAttention(CrossAttention):
  """Attention of the voxels of packed objects (R, T, D) to the tokens of their own object
  (R, K, S, D).
  """

  def __call__(self, x_RTD, tokens_RKSD, segments: Segments):
    q_RTHK = operand(self.q(x_RTD))
    # the keys' bias cancels in the softmax, the values' passes through it: weights sum to one
    k, v = self.kv.parts(tokens_RKSD, biased=(False, False))
    attended_RTHK = attend_packed_cross(
      q_RTHK,
      k,
      v,
      segments,
      backend=self.attention,
    )
    v_bias_HK = self.kv.bias[...][1]
    return self.out.of_sum(attended_RTHK, v_bias_HK)
