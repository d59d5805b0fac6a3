"""Bytes that one sample keeps between its forward and its backward pass, in closed form.

Counted from shapes: which arrays of a layer each rematerialisation policy keeps, and what computing
one layer again takes on top. An estimate: compilers fuse some of it away and pad the rest;
docs/planning.md holds it against compiled programs.
"""

from collections.abc import Collection, Mapping
import dataclasses

import jax.numpy as jnp

from sam3d_jax.models.conditioning import IMAGE_STREAMS, MASK_STREAMS, ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.models.texture import TextureConfig

FP32 = 4


@dataclasses.dataclass(frozen=True)
class Activations:
  """Of one sample.

  layers: of the stack that a policy is about. kept: policy -> bytes of a layer that stay until its
  backward pass. again: bytes of the one layer that is being computed again and differentiated.
  rest: bytes outside the stack.
  """

  layers: int
  kept: Mapping[str, float]
  again: float
  rest: float

  def of(self, policy: str) -> float:
    """Bytes with a rematerialisation policy; '' for a model without."""
    kept = self.kept[policy]
    return self.layers * kept + self.again + self.rest


def padded(channels: int, lanes: int) -> float:
  """How many times larger an array gets whose last axis is filled up to a multiple of `lanes`."""
  filled = -(-channels // lanes) * lanes
  return filled / channels


def block(
  tokens: int, width: int, hidden: int, seen: int, heads: int, itemsize: int, lanes: int
) -> dict[str, float]:
  """Policy -> bytes that a transformer block keeps.

  tokens: of the stream. hidden: width of the feed-forward. seen: condition tokens that it attends
  to; 0: it has no cross-attention. itemsize: of the products' results.
  """
  # one array of each kind; only what leaves an attention kernel is padded
  narrow = tokens * width * itemsize
  wide = tokens * width * FP32  # the residual stream, norms
  headed = narrow * padded(width // heads, lanes)
  inner = tokens * hidden * itemsize
  keys_and_values = 2 * seen * width * itemsize
  attentions = 2 if seen else 1

  # what enters the block; what attention gives
  full = wide
  attention = full + attentions * headed
  if lanes > 1:
    # the kernel's own result beside the one that is tagged
    attention += attentions * headed
  # queries, keys, values; what leaves attention and the feed-forward
  arrays = (2 + attentions) + (1 + attentions)
  products = arrays * narrow + keys_and_values + inner
  dots = attention + products
  # what products read: normed inputs and queries, sums of the residual stream, GELU
  operands = dots + (3 + attentions) * narrow + attentions * wide + inner
  # every step of norms, modulation, gates and GELU in fp32
  steps = (7 + 2 * attentions) * wide + 2 * inner * FP32 / itemsize
  return {
    "full": full,
    "attention": attention,
    "dots": dots,
    "operands": operands,
    "none": operands + steps,
  }


def geometry(cfg: GeometryConfig, *, trained: Collection[str], lanes: int) -> Activations:
  """Of the Geometry model.

  trained: parts with a trained parameter, as models/flops.py names them. lanes: that the last axis
  of an array is filled up to: 128 on TPUs, 1 elsewhere.
  """
  flow = cfg.flow
  tokens = flow.token_resolution**3
  hidden = int(flow.width * flow.mlp_ratio)
  kept = block(
    tokens=tokens,
    width=flow.width,
    hidden=hidden,
    seen=cfg.condition.tokens,
    heads=flow.heads,
    itemsize=jnp.dtype(flow.dtype).itemsize,
    lanes=lanes,
  )
  return Activations(
    layers=flow.depth,
    kept=kept,
    # the feed-forward and its gradient in fp32, the most that lives at a time
    again=2 * tokens * hidden * FP32,
    rest=condition(cfg.condition, trained, lanes),
  )


def condition(cfg: ConditionConfig, trained: Collection[str], lanes: int) -> float:
  """Bytes of the condition encoder: projections, and image encoders that are trained."""
  # SwiGLU: input, two maps, their product and its gradient; output
  widths = 4 * cfg.hidden + 4 * cfg.width
  total = cfg.tokens * widths * jnp.dtype(cfg.dtype).itemsize
  for name, streams in (("image", IMAGE_STREAMS), ("mask", MASK_STREAMS)):
    inputs = len(set(streams) & set(cfg.streams))
    if f"condition/{name}_encoder" in trained:
      total += inputs * encoder(cfg.dino, lanes)
  return total


def encoder(cfg: DinoConfig, lanes: int) -> float:
  """Bytes of a trained image encoder for one image."""
  kept = block(
    tokens=1 + cfg.registers + (cfg.input_size // cfg.patch) ** 2,
    width=cfg.width,
    hidden=int(cfg.width * cfg.mlp_ratio),
    seen=0,
    heads=cfg.heads,
    itemsize=jnp.dtype(cfg.dtype).itemsize,
    lanes=lanes,
  )
  return cfg.depth * kept[cfg.remat]


def texture(cfg: TextureConfig, *, trained: Collection[str], lanes: int) -> Activations:
  """Of a row of the Texture & Refinement model; arguments as in `geometry`."""
  flow, row = cfg.flow, cfg.row
  itemsize = jnp.dtype(flow.dtype).itemsize
  hidden = int(flow.width * flow.mlp_ratio)
  kept = block(
    tokens=row.coarse,
    width=flow.width,
    hidden=hidden,
    seen=row.objects * cfg.condition.tokens,
    heads=flow.heads,
    itemsize=itemsize,
    lanes=lanes,
  )

  # residual blocks: their input, and what is between it and the result
  *level_down, last = flow.down_widths
  first, *level_up = flow.up_widths
  blocks = [(row.voxels, *widths) for widths in (*level_down, *level_up)]
  # of the first one up only what comes of its first convolution is as long as the voxels
  out = first[-1]
  blocks += [(row.coarse, *last), (row.coarse, *first), (row.voxels - row.coarse, 0, out)]
  inputs = 0.0
  between = 0.0
  largest = 0.0
  for slots, c_in, c_out in blocks:
    inputs += slots * c_in * FP32
    # norm and activation of the input; result, norm, modulation and activation between the two
    # convolutions, result of the second
    arrays = slots * (c_in * (FP32 + itemsize) + c_out * (4 * FP32 + itemsize))
    between += arrays
    largest = max(largest, arrays)

  # any policy but "none" computes all of a block again, one block after the other
  again = max(kept["none"], largest)
  kept["none"] += between / flow.depth
  return Activations(
    layers=flow.depth,
    kept=kept,
    again=again,
    rest=inputs + row.objects * condition(cfg.condition, trained, lanes),
  )


def structure_vae(cfg: StructureVAEConfig, *, trained: Collection[str], lanes: int) -> Activations:
  """Of the structure VAE, which has no policies; arguments as in `geometry`."""
  del trained, lanes  # the compiler lays voxels along the lanes
  itemsize = jnp.dtype(cfg.dtype).itemsize
  side = cfg.resolution // cfg.patch

  # A residual block: norm, activation and convolution, twice. Encoder and decoder are alike.
  of_block = 6
  total = 0.0
  for channels in cfg.channels:
    arrays = 1 + of_block * cfg.res_blocks
    total += 2 * arrays * side**3 * channels * itemsize
    coarsest = side**3 * channels * itemsize
    side //= 2
  total += 2 * of_block * cfg.middle_blocks * coarsest
  return Activations(layers=0, kept={"": 0.0}, again=0.0, rest=total)
