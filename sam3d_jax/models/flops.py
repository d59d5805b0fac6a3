"""Model FLOPs of one training sample in closed form: the numerator of MFU.

Only products are counted, 2 FLOP a multiply-add, from shapes. "Plain" is the arithmetic of the
published form: the layout stream projects every condition token, the point-map encoder computes all
rows of its block. It is the fixed reference, so a saving of arithmetic shows as speed and not as
lower utilisation. "Executed" is what the configured forms compute (absorb_layout_kv, cls_only, the
layout stream's queries against all heads at once). Recomputation in the backward pass never counts.

A trained part costs three forward passes (forward, gradient of inputs, gradient of weights); a
frozen one with nothing trained before it costs one; a frozen one that passes a gradient on costs
two for products with weights and three for products of activations.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import itertools
import re

from sam3d_jax.models import conditioning
from sam3d_jax.models.conditioning import ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.geometry_flow import LAYOUT_CHANNELS, GeometryFlowConfig
from sam3d_jax.models.pointmap import PointmapConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.models.texture import TextureConfig


@dataclasses.dataclass(frozen=True)
class Part:
  """Forward FLOPs of a part of a model for one sample."""

  weights: float  # products with weights
  mixing: float = 0.0  # products of activations with each other (attention)

  def __add__(self, other: "Part") -> "Part":
    return Part(
      weights=self.weights + other.weights,
      mixing=self.mixing + other.mixing,
    )

  def __mul__(self, n: float) -> "Part":
    return Part(
      weights=n * self.weights,
      mixing=n * self.mixing,
    )

  @property
  def forward(self) -> float:
    return self.weights + self.mixing

  def training(self, *, trained: bool, passes_gradient: bool) -> float:
    """FLOPs of a forward and the backward pass that it needs."""
    # Forward, gradient of inputs, gradient of weights.
    if trained:
      return 3 * self.forward
    # Weights need no gradient, but both operands of a mixing product do.
    if passes_gradient:
      return 2 * self.weights + 3 * self.mixing
    return self.forward


@dataclasses.dataclass(frozen=True)
class Cost:
  """Forward FLOPs of a model for one sample, and how its parts hang together.

  parts: name -> FLOPs; a part's name is the prefix of its parameters unless `paths` says otherwise.
  streams: of them, those that predict from condition tokens; an objective may run them more than
  once, the others encode what is looked at once. unconditional: name -> FLOPs of a stream in a pass
  that looks at nothing. paths: part -> regular expression of its parameters. before: part ->
  regular expression of the parts whose gradient passes through it.
  """

  parts: Mapping[str, Part]
  streams: tuple[str, ...] = ()
  unconditional: Mapping[str, Part] = dataclasses.field(default_factory=dict)
  paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
  before: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def trained(self, parameters: Iterable[str]) -> set[str]:
    """Parts of which at least one of the parameters (paths) is trained."""
    parameters = list(parameters)
    found = set()
    for part in self.parts:
      # by default a part's name is the prefix of its parameters
      own = self.paths.get(part, f"{part}/.*")
      pattern = re.compile(own)
      if any(pattern.fullmatch(path) for path in parameters):
        found.add(part)
    return found

  def passes_gradient(self, part: str, trained: Iterable[str]) -> bool:
    """Whether the gradient of a trained part passes through this one."""
    behind = self.before.get(part, "")
    pattern = re.compile(behind)
    return any(pattern.fullmatch(other) for other in trained)


@dataclasses.dataclass(frozen=True)
class Passes:
  """How an objective runs a model on one sample.

  trained: part -> passes with a gradient, where that is not one. forward: FLOPs of the passes
  without gradient: targets, references.
  """

  trained: Mapping[str, int] = dataclasses.field(default_factory=dict)
  forward: float = 0.0


def transformer_block(tokens: int, width: int, hidden: int) -> Part:
  """Self-attention and feed-forward: 8 T D^2 + 4 T D F, and 4 T^2 D."""
  # q, k, v, out; the two maps of the feed-forward
  projections = 8 * tokens * width**2
  feed_forward = 4 * tokens * width * hidden
  return Part(
    weights=projections + feed_forward,
    mixing=4 * tokens**2 * width,
  )


def dino(cfg: DinoConfig) -> Part:
  """One image."""
  width = cfg.width
  hidden = int(width * cfg.mlp_ratio)
  # The patch embedding is a product over the pixels of each patch.
  patches = (cfg.input_size // cfg.patch) ** 2
  tokens = 1 + cfg.registers + patches
  pixels = 3 * cfg.patch**2  # of a patch, all channels
  embed = Part(2 * patches * pixels * width)
  block = transformer_block(tokens, width, hidden)
  return embed + block * cfg.depth


def pointmap(cfg: PointmapConfig, *, plain: bool) -> Part:
  """One point map."""
  d = cfg.width
  window = 1 + cfg.patch**2
  hidden = int(d * cfg.mlp_ratio)
  if plain or not cfg.cls_only:
    # Every point is projected, every window a transformer block of its own.
    points = cfg.input_size**2
    embed = Part(2 * points * 3 * d)
    block = transformer_block(window, d, hidden)
    return embed + block * cfg.tokens
  # of the rest (WindowBlock.values_closed) values meet positions, once a head
  block = Part(
    weights=2 * d**2 + 4 * d * hidden,
    mixing=2 * window * d,
  )
  return block * cfg.tokens


def condition(cfg: ConditionConfig, *, plain: bool) -> dict[str, Part]:
  """Parts of the condition encoder, by the prefix of their parameters."""

  def count(streams):
    """How many of the streams are read."""
    return len(set(streams) & set(cfg.streams))

  def projection(encoder):
    """SwiGLU of all tokens of one input: two maps up, one to the common width."""
    widths = 2 * encoder.width + cfg.width
    products = encoder.tokens * cfg.hidden * widths
    return Part(2 * products)

  parts = {}
  images = {
    "image": conditioning.IMAGE_STREAMS,
    "mask": conditioning.MASK_STREAMS,
  }
  for name, streams in images.items():
    # An encoder runs once for each of its streams.
    inputs = count(streams)
    parts[f"condition/{name}_encoder"] = dino(cfg.dino) * inputs
    parts[f"condition/{name}_projection"] = projection(cfg.dino) * inputs

  # there may be no point-map encoder at all
  inputs = count(conditioning.POINTMAP_STREAMS)
  if inputs:
    encoder = pointmap(cfg.pointmap, plain=plain)
    parts["condition/pointmap_encoder"] = encoder * inputs
    parts["condition/pointmap_projection"] = projection(cfg.pointmap) * inputs
  return parts


def flow(cfg: GeometryFlowConfig, cond_tokens: int, *, plain: bool) -> dict[str, Part]:
  """The two streams of the flow model (the time embedding and the modulation, 0.01 %, count with
  the shape stream).
  """
  d = cfg.width
  c = cfg.cond_width
  m = cond_tokens
  hidden = int(d * cfg.mlp_ratio)
  tokens = cfg.token_resolution**3
  layout = len(LAYOUT_CHANNELS)

  def linears(n):
    """q, k, v, out, cross q, cross out; feed-forward."""
    return 12 * n * d**2 + 4 * n * d * hidden

  # a block of the shape stream, which attends to itself and to the condition
  cross_kv = 4 * m * c * d
  modulation = 12 * d**2
  shape = Part(
    weights=linears(tokens) + cross_kv + modulation,
    mixing=4 * tokens * (tokens + m) * d,
  )

  # a block of the layout stream, which attends to both streams and to the condition
  heads_at_once = cfg.heads  # all heads in one product: attend_few
  if plain:
    heads_at_once = 1
  seen = layout + tokens
  pose = Part(
    weights=linears(layout),
    mixing=4 * layout * seen * d * heads_at_once,
  )
  if plain or not cfg.absorb_layout_kv:
    pose += Part(
      weights=cross_kv,
      mixing=4 * layout * m * d,
    )
  else:
    # queries and results go through the projections instead of the condition tokens
    pose += Part(
      weights=4 * layout * c * d,
      mixing=4 * layout * cfg.heads * m * c,
    )

  # into and out of the width, and the embedders of time and step size
  embedders = 1
  if cfg.shortcut:
    embedders = 2
  # Sinusoids, 256 numbers, then two linear layers.
  embedder = 2 * 256 * d + 2 * d**2
  shape_ends = Part(4 * tokens * cfg.token_channels * d + embedders * embedder)
  layout_channels = sum(LAYOUT_CHANNELS.values())
  layout_ends = Part(4 * layout_channels * d)
  # The ends of a stream count once, its blocks `depth` times.
  return {
    "flow/shape": shape * cfg.depth + shape_ends,
    "flow/layout": pose * cfg.depth + layout_ends,
  }


def structure_coders(cfg: StructureVAEConfig) -> dict[str, Part]:
  """Encoder and decoder; a convolution of size k costs 2 k^3 C_in C_out a voxel."""

  def conv(side, c_in, c_out, k=3):
    """A convolution over side^3 voxels: k^3 taps, each a product."""
    places = side**3
    taps = k**3
    return Part(2 * places * taps * c_in * c_out)

  # The side of each level, finest first.
  cells = cfg.resolution // cfg.patch
  sides = [cells // 2**i for i in range(len(cfg.channels))]
  voxels = cfg.patch**3  # of a cell of the finest level
  finest = cfg.channels[0]
  top = cfg.channels[-1]
  side = sides[-1]

  # the residual blocks, which both have: two convolutions each
  middle = conv(side, top, top) * (2 * cfg.middle_blocks)
  levels = Part(0.0)
  for s, c in zip(sides, cfg.channels, strict=True):
    level = conv(s, c, c)
    levels = levels + level * (2 * cfg.res_blocks)

  # from voxels to latent, mean and log variance of it, and back
  from_voxels = conv(sides[0], voxels, finest)
  to_moments = conv(side, top, 2 * cfg.latent_channels)
  encoder = from_voxels + levels + middle + to_moments
  from_latent = conv(side, cfg.latent_channels, top)
  to_logits = conv(sides[0], finest, voxels)
  decoder = from_latent + levels + middle + to_logits

  # between the levels
  widths = itertools.pairwise(cfg.channels)
  for coarse_side, (c, c_next) in zip(sides[1:], widths, strict=True):
    encoder = encoder + conv(coarse_side, c, c_next, k=2)
    decoder = decoder + conv(coarse_side, c_next, 8 * c)
  return {"encoder": encoder, "decoder": decoder}


def geometry(cfg: GeometryConfig, *, plain: bool) -> Cost:
  """The Geometry model: condition encoder and the two streams."""
  streams = flow(cfg.flow, cfg.condition.tokens, plain=plain)
  # without condition a stream sees one zero token in place of all
  # In the published form the unconditional pass has all tokens, too.
  unconditional = streams
  if not plain:
    unconditional = flow(cfg.flow, 1, plain=False)
  return Cost(
    parts=condition(cfg.condition, plain=plain) | streams,
    streams=tuple(streams),
    unconditional=unconditional,
    paths={
      "flow/shape": r"flow/(blocks/layer/(shape|adaln)|latents/shape|time|step)/.*",
      "flow/layout": r"flow/(blocks/layer/layout|latents/(?!shape)[^/]*)/.*",
    },
    before={
      "flow/shape": r"condition/.*",
      "flow/layout": r"condition/.*",
      "condition/image_projection": "condition/image_encoder",
      "condition/mask_projection": "condition/mask_encoder",
      "condition/pointmap_projection": "condition/pointmap_encoder",
    },
  )


def structure_vae(cfg: StructureVAEConfig, *, plain: bool) -> Cost:
  """The structure VAE, which has one form only."""
  del plain
  return Cost(parts=structure_coders(cfg), before={"decoder": "encoder"})


def sparse_conv(voxels: int, c_in: int, c_out: int) -> Part:
  """A 3x3x3 convolution at the active voxels; a neighbour that is missing is multiplied too."""
  taps = 27
  return Part(2 * voxels * taps * c_in * c_out)


def sparse_res_block(voxels: int, c_in: int, c_out: int, *, mod_width: int, objects: int) -> Part:
  """Two convolutions, the modulation of each object, and the way around where widths differ."""
  convolutions = sparse_conv(voxels, c_in, c_out) + sparse_conv(voxels, c_out, c_out)
  block = convolutions + Part(2 * objects * mod_width * 2 * c_out)
  if c_in != c_out:
    block += Part(2 * voxels * c_in * c_out)
  return block


def texture_flow(cfg: TextureConfig, cond_tokens: int, *, plain: bool) -> Part:
  """The flow over a row that equal objects fill."""
  flow, row = cfg.flow, cfg.row
  d = flow.width
  hidden = int(d * flow.mlp_ratio)
  V, T, K = row.voxels, row.coarse, row.objects

  # a block of the transformer: q, k, v, out, cross q, cross out; feed-forward
  linears = 12 * T * d**2 + 4 * T * d * hidden
  cross_kv = 4 * K * cond_tokens * flow.cond_width * d
  modulation = 12 * K * d**2
  # a voxel meets those of its own object, and the tokens of that
  block = Part(
    weights=linears + cross_kv + modulation,
    mixing=4 * T * (T / K + cond_tokens) * d,
  )

  # the residual blocks: the last one down is at half the resolution
  ends = Part(4 * V * flow.latent_channels * flow.io_width)
  *level, last = flow.down_widths
  for c_in, c_out in (*level, *flow.up_widths):
    ends += sparse_res_block(V, c_in, c_out, mod_width=d, objects=K)
  ends += sparse_res_block(T, *last, mod_width=d, objects=K)
  if not plain:
    # the first one up multiplies coarse voxels and gathers what comes out (sparse_up.py)
    c_in, c_out = flow.up_widths[0]
    ends += (sparse_conv(1, c_in, c_out) + Part(2 * c_in * c_out)) * (T - V)

  # embedders of time and step size: sinusoids, 256 numbers, then two linear layers
  embedders = 2 if flow.shortcut else 1
  ends += Part(embedders * K * (2 * 256 * d + 2 * d**2))
  return block * flow.depth + ends


def texture(cfg: TextureConfig, *, plain: bool) -> Cost:
  """The Texture & Refinement model; a sample is a row, which `cfg.row.objects` equal objects
  fill.
  """
  encoders = {}
  for name, part in condition(cfg.condition, plain=plain).items():
    encoders[name] = part * cfg.row.objects
  flow_part = texture_flow(cfg, cfg.condition.tokens, plain=plain)
  # without condition it sees one zero token in place of all; in the published form all of them
  unconditional = flow_part
  if not plain:
    unconditional = texture_flow(cfg, 1, plain=False)
  return Cost(
    parts=encoders | {"flow": flow_part},
    streams=("flow",),
    unconditional={"flow": unconditional},
    before={
      "flow": r"condition/.*",
      "condition/image_projection": "condition/image_encoder",
      "condition/mask_projection": "condition/mask_encoder",
    },
  )
