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
from typing import Any

from sam3d_jax.models import conditioning
from sam3d_jax.models.conditioning import ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.geometry_flow import LAYOUT_CHANNELS, GeometryFlowConfig
from sam3d_jax.models.pointmap import PointmapConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig


@dataclasses.dataclass(frozen=True)
class Part:
  """Forward FLOPs of a part of a model for one sample: products with weights, products of
  activations with each other (attention).
  """

  weights: float
  mixing: float = 0.0

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
  tokens, layout = cfg.shape_resolution**3, len(LAYOUT_CHANNELS)
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
    4 * tokens * cfg.latent_channels * d + (2 if cfg.shortcut else 1) * (2 * 256 * d + 2 * d**2)
  )
  return {
    "flow/shape": shape * cfg.depth + ends,
    "flow/layout": pose * cfg.depth + Part(4 * sum(LAYOUT_CHANNELS.values()) * d),
  }


def structure_vae(cfg: StructureVAEConfig) -> dict[str, Part]:
  """Encoder and decoder; a convolution of size k costs 2 k^3 C_in C_out a voxel."""
  conv = lambda side, c_in, c_out, k=3: Part(2 * side**3 * k**3 * c_in * c_out)
  sides = [cfg.resolution // 2**i for i in range(len(cfg.channels))]
  top, side = cfg.channels[-1], sides[-1]
  middle = conv(side, top, top) * (2 * cfg.middle_blocks)
  levels = Part(0.0)
  for s, c in zip(sides, cfg.channels, strict=True):
    levels = levels + conv(s, c, c) * (2 * cfg.res_blocks)
  encoder = (
    conv(sides[0], 1, cfg.channels[0]) + levels + middle + conv(side, top, 2 * cfg.latent_channels)
  )
  decoder = (
    conv(side, cfg.latent_channels, top) + levels + middle + conv(sides[0], cfg.channels[0], 1)
  )
  for i, (c, c_next) in enumerate(itertools.pairwise(cfg.channels)):
    encoder = encoder + conv(sides[i + 1], c, c_next, k=2)
    decoder = decoder + conv(sides[i + 1], c_next, 8 * c)
  return {"encoder": encoder, "decoder": decoder}


PREFIXES = {
  "flow/shape": r"flow/(blocks/layer/(shape|adaln)|latents/shape|time|step)/.*",
  "flow/layout": r"flow/(blocks/layer/layout|latents/(?!shape)[^/]*)/.*",
}
BEFORE = {  # part -> parts whose gradient passes through it
  "flow/shape": r"condition/.*",
  "flow/layout": r"condition/.*",
  "condition/image_projection": "condition/image_encoder",
  "condition/mask_projection": "condition/mask_encoder",
  "condition/pointmap_projection": "condition/pointmap_encoder",
  "decoder": "encoder",
}


def per_sample(
  model_config: Any, objective: Mapping[str, Any], trainable: Iterable[str], *, plain: bool = True
) -> float:
  """Training FLOPs of one sample (of one pair for preference alignment).

  model_config: typed configuration of the model.  objective: the `objective` section.  trainable:
  paths of the trained parameters. plain: the fixed reference count; False counts what the
  configured forms compute.
  """
  trainable = list(trainable)
  if isinstance(model_config, StructureVAEConfig):
    parts, times, extra = structure_vae(model_config), {}, {}
  else:
    assert isinstance(model_config, GeometryConfig), type(model_config)
    tokens = model_config.condition.tokens
    parts = condition(model_config.condition, plain=plain) | flow(
      model_config.flow, tokens, plain=plain
    )
    # sees one zero token in place of all
    unconditional = parts if plain else flow(model_config.flow, 1, plain=False)
    times, extra = objective_passes(objective, parts, unconditional, plain=plain)
  trained = {
    p for p in parts if any(re.fullmatch(PREFIXES.get(p, f"{p}/.*"), path) for path in trainable)
  }
  total = sum(extra.values())
  for name, part in parts.items():
    passes = any(re.fullmatch(BEFORE.get(name, ""), p) for p in trained)
    total += times.get(name, 1) * part.training(trained=name in trained, passes_gradient=passes)
    if (
      objective["name"] == "dpo"
      and not plain
      and name not in trained
      and name.startswith("condition/")
    ):
      total += part.forward  # the reference encodes the frozen streams once more
    elif objective["name"] == "dpo" and name in trained and name.startswith("condition/"):
      total += part.forward  # the reference has its own
  return total


def objective_passes(
  objective: Mapping[str, Any],
  parts: Mapping[str, Part],
  unconditional: Mapping[str, Part],
  *,
  plain: bool,
) -> tuple[dict[str, int], dict[str, float]]:
  """(part -> trained passes where not one, part -> FLOPs of passes without gradient) of an
  objective.
  """
  streams = [p for p in parts if p.startswith("flow/")]
  if objective["name"] == "dpo":  # winner and loser, by the model and by the reference
    return dict.fromkeys(streams, 2), {p: 2 * parts[p].forward for p in streams}
  # two steps for the targets of a share of the rows, guided ones with a second pass
  if objective["name"] == "shortcut":
    share, guided = objective["consistency_fraction"], objective.get("guided_fraction", 1.0)
    return {}, {
      p: 2 * share * (parts[p].forward + guided * unconditional[p].forward) for p in streams
    }
  return {}, {}
