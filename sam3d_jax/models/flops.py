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


@dataclasses.dataclass(frozen=True)
class Part:
  """Forward FLOPs of a part of a model for one sample."""

  weights: float  # products with weights
  mixing: float = 0.0  # products of activations with each other (attention)

  def __add__(self, other: "Part") -> "Part":
    return Part(self.weights + other.weights, self.mixing + other.mixing)

  def __mul__(self, n: float) -> "Part":
    return Part(n * self.weights, n * self.mixing)

  @property
  def forward(self) -> float:
    return self.weights + self.mixing

  def training(self, *, trained: bool, passes_gradient: bool) -> float:
    """FLOPs of a forward and the backward pass that it needs."""
    if trained:
      return 3 * self.forward
    return 2 * self.weights + 3 * self.mixing if passes_gradient else self.forward


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
      pattern = re.compile(self.paths.get(part, f"{part}/.*"))
      if any(pattern.fullmatch(path) for path in parameters):
        found.add(part)
    return found

  def passes_gradient(self, part: str, trained: Iterable[str]) -> bool:
    """Whether the gradient of a trained part passes through this one."""
    pattern = re.compile(self.before.get(part, ""))
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
  return Part(8 * tokens * width**2 + 4 * tokens * width * hidden, 4 * tokens**2 * width)


def dino(cfg: DinoConfig) -> Part:
  """One image."""
  patches = (cfg.input_size // cfg.patch) ** 2
  tokens = 1 + cfg.registers + patches
  embed = Part(2 * patches * 3 * cfg.patch**2 * cfg.width)
  return embed + transformer_block(tokens, cfg.width, int(cfg.width * cfg.mlp_ratio)) * cfg.depth


def pointmap(cfg: PointmapConfig, *, plain: bool) -> Part:
  """One point map."""
  d, window, hidden = cfg.width, 1 + cfg.patch**2, int(cfg.width * cfg.mlp_ratio)
  if plain or not cfg.cls_only:
    return Part(2 * cfg.input_size**2 * 3 * d) + transformer_block(window, d, hidden) * cfg.tokens
  # of the rest (WindowBlock.values_closed) values meet positions, once a head
  block = Part(2 * d**2 + 4 * d * hidden, 2 * window * d)
  return block * cfg.tokens


def condition(cfg: ConditionConfig, *, plain: bool) -> dict[str, Part]:
  """Parts of the condition encoder, by the prefix of their parameters."""
  counts = {
    name: sum(s in cfg.streams for s in streams)
    for name, streams in (
      ("image", conditioning.IMAGE_STREAMS),
      ("mask", conditioning.MASK_STREAMS),
      ("pointmap", conditioning.POINTMAP_STREAMS),
    )
  }
  projection = lambda tokens, width: Part(2 * tokens * cfg.hidden * (2 * width + cfg.width))
  parts = {}
  for name in ("image", "mask"):
    parts[f"condition/{name}_encoder"] = dino(cfg.dino) * counts[name]
    parts[f"condition/{name}_projection"] = (
      projection(cfg.dino.tokens, cfg.dino.width) * counts[name]
    )
  if counts["pointmap"]:
    parts["condition/pointmap_encoder"] = pointmap(cfg.pointmap, plain=plain) * counts["pointmap"]
    parts["condition/pointmap_projection"] = (
      projection(cfg.pointmap.tokens, cfg.pointmap.width) * counts["pointmap"]
    )
  return parts


def flow(cfg: GeometryFlowConfig, cond_tokens: int, *, plain: bool) -> dict[str, Part]:
  """The two streams of the flow model (the time embedding and the modulation, 0.01 %, count with
  the shape stream).
  """
  d, c, hidden, m = cfg.width, cfg.cond_width, int(cfg.width * cfg.mlp_ratio), cond_tokens
  tokens, layout = cfg.token_resolution**3, len(LAYOUT_CHANNELS)
  # q, k, v, out, cross q, cross out; feed-forward
  linears = lambda n: 12 * n * d**2 + 4 * n * d * hidden
  cross_kv = 4 * m * c * d
  shape = Part(linears(tokens) + cross_kv + 12 * d**2, 4 * tokens * (tokens + m) * d)
  # all heads in one product: attend_few
  pose = Part(linears(layout), 4 * layout * (layout + tokens) * d * (1 if plain else cfg.heads))
  if plain or not cfg.absorb_layout_kv:
    pose += Part(cross_kv, 4 * layout * m * d)
  else:
    pose += Part(4 * layout * c * d, 4 * layout * cfg.heads * m * c)
  ends = Part(
    4 * tokens * cfg.token_channels * d + (2 if cfg.shortcut else 1) * (2 * 256 * d + 2 * d**2)
  )
  return {
    "flow/shape": shape * cfg.depth + ends,
    "flow/layout": pose * cfg.depth + Part(4 * sum(LAYOUT_CHANNELS.values()) * d),
  }


def structure_coders(cfg: StructureVAEConfig) -> dict[str, Part]:
  """Encoder and decoder; a convolution of size k costs 2 k^3 C_in C_out a voxel."""
  conv = lambda side, c_in, c_out, k=3: Part(2 * side**3 * k**3 * c_in * c_out)
  sides = [cfg.resolution // cfg.patch // 2**i for i in range(len(cfg.channels))]
  voxels = cfg.patch**3  # of a cell of the finest level
  top, side = cfg.channels[-1], sides[-1]
  middle = conv(side, top, top) * (2 * cfg.middle_blocks)
  levels = Part(0.0)
  for s, c in zip(sides, cfg.channels, strict=True):
    levels = levels + conv(s, c, c) * (2 * cfg.res_blocks)
  encoder = (
    conv(sides[0], voxels, cfg.channels[0])
    + levels
    + middle
    + conv(side, top, 2 * cfg.latent_channels)
  )
  decoder = (
    conv(side, cfg.latent_channels, top) + levels + middle + conv(sides[0], cfg.channels[0], voxels)
  )
  for i, (c, c_next) in enumerate(itertools.pairwise(cfg.channels)):
    encoder = encoder + conv(sides[i + 1], c, c_next, k=2)
    decoder = decoder + conv(sides[i + 1], c_next, 8 * c)
  return {"encoder": encoder, "decoder": decoder}


def geometry(cfg: GeometryConfig, *, plain: bool) -> Cost:
  """The Geometry model: condition encoder and the two streams."""
  streams = flow(cfg.flow, cfg.condition.tokens, plain=plain)
  # without condition a stream sees one zero token in place of all
  unconditional = streams if plain else flow(cfg.flow, 1, plain=False)
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
