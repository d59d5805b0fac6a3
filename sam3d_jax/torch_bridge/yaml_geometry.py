"""ss_generator.yaml: flow model and condition encoder, from our configuration and back."""

from collections.abc import Mapping
from typing import Any

from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import InputError
from sam3d_jax.models.conditioning import STREAMS, ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.geometry_flow import GeometryFlowConfig
from sam3d_jax.torch_bridge.names_conditioning import stream_groups
from sam3d_jax.torch_bridge.names_geometry import LATENT_NAMES, STREAM_NAMES
from sam3d_jax.torch_bridge.yaml_files import TARGETS, Settings, at, require

# shape's are configured
LATENT_CHANNELS = {"rotation": 6, "translation": 3, "scale": 3, "translation_scale": 1}
# width, depth, heads of dinov2_vit?14
DINO_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
CUSTOM_DINO = "custom"  # a size that torch.hub does not know


def generator_yaml(cfg: GeometryConfig, settings: Settings) -> dict:
  """ss_generator.yaml."""
  flow, sampler = cfg.flow, settings.sampler

  # the flow model inside guidance, guidance inside the generator
  guided = {
    "_target_": TARGETS["guidance"],
    "backbone": _backbone(flow, settings.half),
    "interval": interval_yaml(sampler, flow),
    "p_unconditional": 0.1,
    "strength": sampler["guidance"],
    "unconditional_handling": "add_flag",
  }
  return flow_module(cfg, sampler, guided)


def flow_module(cfg, sampler: Mapping[str, Any], guided: Mapping[str, Any]) -> dict:
  """What builds a flow model of either stage: its generator, and the embedder of its condition.

  cfg: of the model, with `flow` and `condition`. guided: the flow model inside guidance.
  """
  kind = "shortcut" if cfg.flow.shortcut else "flow_matching"
  generator = {
    "_target_": TARGETS[kind],
    "inference_steps": sampler["steps"],
    "rescale_t": sampler["rescale_t"],
    "sigma_min": 0.0,
    "time_scale": cfg.flow.time_scale,
    "reverse_fn": guided,
  }
  module = {
    "condition_embedder": {"backbone": fuser_yaml(cfg.condition)},
    "generator": {"backbone": generator},
  }
  return {"module": module}


def interval_yaml(sampler: Mapping[str, Any], flow: GeometryFlowConfig) -> list[float] | None:
  """The times between which guidance acts, counted up to `time_scale` as published."""
  interval = sampler["interval"]
  if interval is None:
    return None
  return [t * flow.time_scale for t in interval]


def _backbone(flow: GeometryFlowConfig, half: bool) -> dict:
  """The flow model."""
  by_published_name = sorted(LATENTS, key=LATENT_NAMES.__getitem__)
  latents = {LATENT_NAMES[name]: _latent(name, flow) for name in by_published_name}
  layout = [LATENT_NAMES[name] for name in LATENTS if name != "shape"]
  return {
    "_target_": TARGETS["flow"],
    "cond_channels": flow.cond_width,
    "condition_embedder": None,
    "force_zeros_cond": True,
    "in_channels": flow.latent_channels,
    "is_shortcut_model": flow.shortcut,
    "latent_mapping": latents,
    "latent_share_transformer": {STREAM_NAMES["layout"]: layout},
    "mlp_ratio": flow.mlp_ratio,
    "model_channels": flow.width,
    "num_blocks": flow.depth,
    "num_heads": flow.heads,
    "out_channels": flow.latent_channels,
    "patch_size": flow.patch,
    "pe_mode": "ape",
    "qk_rms_norm": flow.qk_rms_norm,
    "resolution": flow.shape_resolution,
    "use_checkpoint": False,
    "use_fp16": half,
  }


def _latent(name: str, flow: GeometryFlowConfig) -> dict:
  """How one latent enters the transformer: a grid of tokens for the shape, one token otherwise."""
  if name == "shape":
    channels = flow.latent_channels
    position = {
      "_target_": TARGETS["shape_position"],
      "model_channels": flow.width,
      "patch_size": flow.patch,
      "resolution": flow.shape_resolution,
    }
  else:
    channels = LATENT_CHANNELS[name]
    position = {
      "_target_": TARGETS["learnt_position"],
      "model_channels": flow.width,
      "token_len": 1,
    }
  return {
    "_target_": TARGETS["latent"],
    "in_channels": channels,
    "model_channels": flow.width,
    "pos_embedder": position,
  }


def fuser_yaml(cfg: ConditionConfig) -> dict:
  """The condition encoder: encoders with their streams, and how they are joined."""
  embedders = [
    [_dino(cfg.dino), _streams(cfg, "image", "rgb_image")],
    [_dino(cfg.dino), _streams(cfg, "mask", "rgb_image_mask")],
  ]

  # Point maps, which training drops now and then and inference may lack.
  dropped = None
  if cfg.pointmap is not None:
    pointmap = {
      "_target_": TARGETS["pointmap"],
      "embed_dim": cfg.pointmap.width,
      "input_size": cfg.pointmap.input_size,
      "patch_size": cfg.pointmap.patch,
      "remap_output": cfg.pointmap.remap,
    }
    if cfg.pointmap.drop_token:
      pointmap["dropout_prob"] = 0.1
    embedders.append([pointmap, _streams(cfg, "pointmap", "rgb_pointmap")])
    dropped = [[["pointmap", "rgb_pointmap"], 1.0]]
  return {
    "_target_": TARGETS["fuser"],
    "drop_modalities_weight": dropped,
    "dropout_prob": 0.1 if dropped else 0.0,
    "embedder_list": embedders,
    "force_drop_modalities": None,
    "freeze": True,
    "projection_net_hidden_dim_multiplier": cfg.hidden_multiplier,
    "use_pos_embedding": "learned",
  }


def _streams(cfg: ConditionConfig, *names: str) -> list[list[str]]:
  """Pairs of stream and group.

  An encoder whose streams are not in use is still built, so that its weights have a place.
  """
  groups = stream_groups(cfg.streams)
  return [[name, groups[name]] for name in names if name in groups]


def dino_hub_name(cfg: DinoConfig) -> str:
  """The torch.hub name of an encoder's size, or CUSTOM_DINO."""
  dimensions = (cfg.width, cfg.depth, cfg.heads)
  if cfg.patch == 14 and cfg.mlp_ratio == 4:
    for name, known in _hub_models().items():
      if known == (*dimensions, cfg.registers):
        return name
  return CUSTOM_DINO


def _hub_models() -> dict[str, tuple[int, int, int, int]]:
  """Width, depth, heads and registers of torch.hub's models on patches of 14 pixels."""
  models = {}
  for size, dimensions in DINO_SIZES.items():
    models[f"dinov2_vit{size}14"] = (*dimensions, 0)
    models[f"dinov2_vit{size}14_reg"] = (*dimensions, 4)
  return models


def _dino(cfg: DinoConfig) -> dict:
  """An image encoder: by name where torch.hub knows its size."""
  name = dino_hub_name(cfg)
  out = {
    "_target_": TARGETS["dino"],
    "dino_model": name,
    "input_size": cfg.input_size,
    "normalize_images": True,
  }
  if cfg.prenorm:
    out["prenorm_features"] = True

  # What the name does not say: the size of one that torch.hub does not know, and the image side
  # that position embeddings were made for.
  kwargs = {}
  if name == CUSTOM_DINO:
    kwargs = {
      "embed_dim": cfg.width,
      "depth": cfg.depth,
      "num_heads": cfg.heads,
      "mlp_ratio": cfg.mlp_ratio,
      "patch_size": cfg.patch,
      "num_register_tokens": cfg.registers,
    }
  if kwargs or cfg.image_size != 518:
    out["backbone_kwargs"] = {**kwargs, "img_size": cfg.image_size, "pretrained": False}
  return out


def geometry_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `model` section of our configuration that a ss_generator.yaml describes."""
  generator = at(tree, "module.generator.backbone", file)
  backbone = at(generator, "reverse_fn.backbone", file)

  # Only what is implemented here is accepted.
  require(generator, {"sigma_min": 0.0, "reversed_timestamp": False}, file)
  implemented = {
    "pe_mode": "ape",
    "share_mod": False,
    "qk_rms_norm_cross": False,
    "force_zeros_cond": True,
  }
  require(backbone, implemented, file)
  latents = at(backbone, "latent_mapping", file)
  known = LATENT_NAMES.values()
  if set(latents) != set(known):
    raise InputError(f"{file}: latent_mapping has {', '.join(latents)}, not {', '.join(known)}")

  # Where an argument is left out, the published class has a default.
  width = at(backbone, "model_channels", file)
  heads = backbone.get("num_heads") or width // backbone.get("num_head_channels", 64)
  flow = {
    "width": width,
    "depth": at(backbone, "num_blocks", file),
    "heads": heads,
    "mlp_ratio": float(backbone.get("mlp_ratio", 4)),
    "cond_width": at(backbone, "cond_channels", file),
    "patch": backbone.get("patch_size", 1),
    "shape_resolution": at(latents, "shape.pos_embedder.resolution", file),
    "latent_channels": at(latents, "shape.in_channels", file),
    "qk_rms_norm": backbone.get("qk_rms_norm", False),
    "shortcut": backbone.get("is_shortcut_model", False),
    "time_scale": float(generator.get("time_scale", 1000.0)),
  }
  fuser = at(tree, "module.condition_embedder.backbone", file)
  condition = condition_section(fuser, file)
  return {"name": "geometry", "flow": flow, "condition": condition}


def condition_section(fuser: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `condition` section that a fuser describes."""
  implemented = {
    "_target_": TARGETS["fuser"],
    "use_pos_embedding": "learned",
    "projection_pre_norm": True,
    "compression_projection_multiplier": 0,
    "force_drop_modalities": None,
  }
  require(fuser, implemented, file)

  # Two image encoders of one size, then perhaps one of point maps.
  embedders = at(fuser, "embedder_list", file)
  kinds = [network["_target_"] for network, _ in embedders]
  two = [TARGETS["dino"], TARGETS["dino"]]
  three = [*two, TARGETS["pointmap"]]
  if kinds not in (two, three):
    raise InputError(
      f"{file}: embedder_list is {', '.join(kinds)}; expected two Dinos, then perhaps a "
      "PointPatchEmbed"
    )
  image, mask = (_dino_section(network, file) for network, _ in embedders[:2])
  if image != mask:
    raise InputError(f"{file}: the image and the mask encoder differ in size: {image}, {mask}")

  # The groups decide which row of the group embedding a stream reads.
  used = {}
  for _, streams in embedders:
    used |= dict(streams)
  expected = stream_groups(list(used))
  if _numbered(used) != _numbered(expected):
    raise InputError(
      f"{file}: the streams' position groups are {used}, only such as {expected} are implemented"
    )

  pointmap = None
  widest = image["width"]
  if len(embedders) == 3:
    network, _ = embedders[2]
    pointmap = {
      "width": network.get("embed_dim", 768),
      "input_size": network.get("input_size", 256),
      "patch": network.get("patch_size", 8),
      "remap": network.get("remap_output", "exp"),
      "drop_token": network.get("dropout_prob", 0.0) > 0,
    }
    widest = max(widest, pointmap["width"])
  return {
    "width": widest,
    "hidden_multiplier": float(fuser.get("projection_net_hidden_dim_multiplier", 4.0)),
    "streams": tuple(stream for stream in STREAMS if stream in used),
    "dino": image,
    "pointmap": pointmap,
  }


def _numbered(groups: Mapping[str, str]) -> dict[str, int]:
  """Stream -> number of its group, counted by first appearance, as the published module does."""
  order = list(dict.fromkeys(groups.values()))
  return {stream: order.index(group) for stream, group in groups.items()}


def _dino_section(node: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `dino` section that an image encoder describes."""
  require(node, {"normalize_images": True, "prune_network": False}, file)
  name = node.get("dino_model", "dinov2_vitb14")
  kwargs = dict(node.get("backbone_kwargs") or {})
  section = {
    "input_size": node.get("input_size", 224),
    "prenorm": node.get("prenorm_features", False),
    "image_size": kwargs.get("img_size", 518),
  }

  # a size that is spelt out
  if name == CUSTOM_DINO:
    return section | {
      "width": kwargs["embed_dim"],
      "depth": kwargs["depth"],
      "heads": kwargs["num_heads"],
      "mlp_ratio": float(kwargs["mlp_ratio"]),
      "patch": kwargs["patch_size"],
      "registers": kwargs["num_register_tokens"],
    }

  # one that is named
  known = _hub_models()
  if name not in known:
    raise InputError(f"{file}: dino_model {name!r} is not one of {', '.join(known)}")
  width, depth, heads, registers = known[name]
  return section | {
    "width": width,
    "depth": depth,
    "heads": heads,
    "mlp_ratio": 4.0,
    "patch": 14,
    "registers": registers,
  }
