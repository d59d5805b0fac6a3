"""The yaml files of a release folder, from our configuration and back.

The published pipeline builds its modules from these with Hydra (`_target_` names a class, the rest
are constructor arguments). Written are network arguments and sampling settings; arguments that only
matter to training elsewhere keep their defaults.
"""

from collections.abc import Mapping
from typing import Any

from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import InputError
from sam3d_jax.models.conditioning import STREAMS, ConditionConfig
from sam3d_jax.models.dinov2 import DinoConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.geometry_flow import GeometryFlowConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.torch_bridge.names_conditioning import stream_groups
from sam3d_jax.torch_bridge.names_geometry import LATENT_NAMES, STREAM_NAMES

BACKBONE = "sam3d_objects.model.backbone."
GENERATOR = BACKBONE + "generator."
TDFY = BACKBONE + "tdfy_dit.models."
EMBEDDER = BACKBONE + "dit.embedder."
DATASET = "sam3d_objects.data.dataset.tdfy."
TARGETS = {
  "shortcut": GENERATOR + "shortcut.model.ShortCut",
  "flow_matching": GENERATOR + "flow_matching.model.FlowMatching",
  "guidance": GENERATOR
  + "classifier_free_guidance.ClassifierFreeGuidanceWithExternalUnconditionalProbability",
  "flow": TDFY + "mot_sparse_structure_flow.SparseStructureFlowTdfyWrapper",
  "latent": TDFY + "mm_latent.Latent",
  "learnt_position": TDFY + "mm_latent.LearntPositionEmbedder",
  "shape_position": TDFY + "mm_latent.ShapePositionEmbedder",
  "fuser": EMBEDDER + "embedder_fuser.EmbedderFuser",
  "dino": EMBEDDER + "dino.Dino",
  "pointmap": EMBEDDER + "pointmap.PointPatchEmbed",
  "decoder": TDFY + "sparse_structure_vae.SparseStructureDecoderTdfyWrapper",
  "encoder": TDFY + "sparse_structure_vae.SparseStructureEncoderTdfyWrapper",
  "pipeline": "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap",
}
# shape's are configured
LATENT_CHANNELS = {"rotation": 6, "translation": 3, "scale": 3, "translation_scale": 1}
# width, depth, heads of dinov2_vit?14
DINO_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
CUSTOM_DINO = "custom"  # a size that torch.hub does not know


def generator_yaml(cfg: GeometryConfig, *, sampler: Mapping[str, Any], half: bool) -> dict:
  """ss_generator.yaml. half: the module holds its blocks in fp16, as an fp16 file stores them."""
  flow = cfg.flow
  generator = {
    "_target_": TARGETS["shortcut" if flow.shortcut else "flow_matching"],
    "inference_steps": sampler["steps"],
    "rescale_t": sampler["rescale_t"],
    "sigma_min": 0.0,
    "time_scale": flow.time_scale,
    "reverse_fn": {
      "_target_": TARGETS["guidance"],
      "backbone": _backbone(flow, half),
      "interval": _interval(sampler, flow),
      "p_unconditional": 0.1,
      "strength": sampler["guidance"],
      "unconditional_handling": "add_flag",
    },
  }
  return {
    "module": {
      "condition_embedder": {"backbone": _fuser(cfg.condition)},
      "generator": {"backbone": generator},
    }
  }


def _interval(sampler: Mapping[str, Any], flow: GeometryFlowConfig) -> list[float] | None:
  return None if sampler["interval"] is None else [t * flow.time_scale for t in sampler["interval"]]


def _backbone(flow: GeometryFlowConfig, half: bool) -> dict:
  latents = {}
  for name in sorted(LATENTS, key=lambda n: LATENT_NAMES[n]):
    if name == "shape":
      position = {
        "_target_": TARGETS["shape_position"],
        "model_channels": flow.width,
        "patch_size": 1,
        "resolution": flow.shape_resolution,
      }
    else:
      position = {
        "_target_": TARGETS["learnt_position"],
        "model_channels": flow.width,
        "token_len": 1,
      }
    channels = flow.latent_channels if name == "shape" else LATENT_CHANNELS[name]
    latents[LATENT_NAMES[name]] = {
      "_target_": TARGETS["latent"],
      "in_channels": channels,
      "model_channels": flow.width,
      "pos_embedder": position,
    }
  return {
    "_target_": TARGETS["flow"],
    "cond_channels": flow.cond_width,
    "condition_embedder": None,
    "force_zeros_cond": True,
    "in_channels": flow.latent_channels,
    "is_shortcut_model": flow.shortcut,
    "latent_mapping": latents,
    "latent_share_transformer": {
      STREAM_NAMES["layout"]: [LATENT_NAMES[n] for n in LATENTS if n != "shape"]
    },
    "mlp_ratio": flow.mlp_ratio,
    "model_channels": flow.width,
    "num_blocks": flow.depth,
    "num_heads": flow.heads,
    "out_channels": flow.latent_channels,
    "patch_size": 1,
    "pe_mode": "ape",
    "qk_rms_norm": flow.qk_rms_norm,
    "resolution": flow.shape_resolution,
    "use_checkpoint": False,
    "use_fp16": half,
  }


def _fuser(cfg: ConditionConfig) -> dict:
  embedders = [
    [_dino(cfg.dino), _streams(cfg, "image", "rgb_image")],
    [_dino(cfg.dino), _streams(cfg, "mask", "rgb_image_mask")],
  ]
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
  dropped = [[["pointmap", "rgb_pointmap"], 1.0]] if cfg.pointmap is not None else None
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
  """Stream and group pairs; an encoder whose streams are not in use is still built, so that its
  weights have a place.
  """
  groups = stream_groups(cfg.streams)
  return [[name, groups[name]] for name in names if name in groups]


def dino_hub_name(cfg: DinoConfig) -> str:
  """The torch.hub name of an encoder's size, or CUSTOM_DINO."""
  sizes = {v: k for k, v in DINO_SIZES.items()}
  size = sizes.get((cfg.width, cfg.depth, cfg.heads))
  if size is None or cfg.patch != 14 or cfg.mlp_ratio != 4 or cfg.registers not in (0, 4):
    return CUSTOM_DINO
  return f"dinov2_vit{size}14" + ("_reg" if cfg.registers else "")


def _dino(cfg: DinoConfig) -> dict:
  name = dino_hub_name(cfg)
  out = {
    "_target_": TARGETS["dino"],
    "dino_model": name,
    "input_size": cfg.input_size,
    "normalize_images": True,
  }
  if cfg.prenorm:
    out["prenorm_features"] = True
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


def decoder_yaml(cfg: StructureVAEConfig, *, half: bool) -> dict:
  """ss_decoder.yaml."""
  return {
    "_target_": TARGETS["decoder"],
    "out_channels": 1,
    "latent_channels": cfg.latent_channels,
    "num_res_blocks": cfg.res_blocks,
    "num_res_blocks_middle": cfg.middle_blocks,
    "channels": list(reversed(cfg.channels)),
    "reshape_input_to_cube": False,
    "use_fp16": half,
  }


def encoder_yaml(cfg: StructureVAEConfig, *, half: bool) -> dict:
  """ss_encoder.yaml."""
  return {
    "_target_": TARGETS["encoder"],
    "in_channels": 1,
    "latent_channels": cfg.latent_channels,
    "num_res_blocks": cfg.res_blocks,
    "num_res_blocks_middle": cfg.middle_blocks,
    "channels": list(cfg.channels),
    "sample_posterior": False,
    "use_fp16": half,
  }


def pipeline_yaml(
  cfg: GeometryConfig,
  files: Mapping[str, str],
  *,
  sampler: Mapping[str, Any],
  half: bool,
  base: Mapping[str, Any] | None,
) -> dict:
  """pipeline.yaml.

  files: part -> checkpoint file name, of every part in the folder. base: the pipeline.yaml of the
  folder that parts were taken over from, whose settings for the second stage, depth model and
  preprocessing are kept.
  """
  prepared = preprocessor(cfg.condition.dino.input_size, pointmap_side(cfg))
  out = {
    "dtype": "float16" if half else "bfloat16",
    "version": "sam3d_jax",
    "ss_condition_input_mapping": [],
    "ss_preprocessor": prepared,
    "pose_decoder_name": "ScaleShiftInvariant",
    "downsample_ss_dist": 1,
    "depth_model": {
      "_target_": "sam3d_objects.pipeline.depth_models.moge.MoGe",
      "model": {
        "_target_": "moge.model.v1.MoGeModel.from_pretrained",
        "pretrained_model_name_or_path": "Ruicheng/moge-vitl",
      },
    },
  }
  out = {"_target_": TARGETS["pipeline"], **out, **(base or {})}
  for key in [k for k in out if k.endswith(("_config_path", "_ckpt_path"))]:
    del out[key]
  for part, file in files.items():
    out |= {f"{part}_config_path": f"{part}.yaml", f"{part}_ckpt_path": file}
  return out | {
    "ss_preprocessor": prepared,
    "ss_inference_steps": sampler["steps"],
    "ss_rescale_t": sampler["rescale_t"],
    "ss_cfg_strength": sampler["guidance"],
    "ss_cfg_interval": _interval(sampler, cfg.flow),
  }


def pointmap_side(cfg: GeometryConfig) -> int:
  """Side to which the published preprocessor resizes point maps, before their encoder does.

  The images' side, as published; a model that was trained without that step gets point maps which
  its encoder's resize leaves as they are.
  """
  pointmap = cfg.condition.pointmap
  once = pointmap is not None and not pointmap.resize_twice
  return pointmap.input_size if once else cfg.condition.dino.input_size


def resizes_twice(pipeline: Mapping[str, Any] | None, geometry: Mapping[str, Any]) -> bool:
  """Whether a pipeline.yaml resizes point maps to another side than their encoder does."""
  transform = ((pipeline or {}).get("ss_preprocessor") or {}).get("pointmap_transform") or {}
  steps = [step for step in transform.get("transforms", ()) if isinstance(step, Mapping)]
  sides = [step["size"] for step in steps if "size" in step]
  images = geometry["condition"]["dino"]["input_size"]
  return not sides or sides[-1] == images


def preprocessor(size: int, pointmap_side: int) -> dict:
  """How the published pipeline prepares photo, mask and point map.

  Crop around the mask with margin, pad to a square, resize to `size`, point maps to `pointmap_side`.
  """
  crop = {
    "_partial_": True,
    "_target_": DATASET + "img_and_mask_transforms.crop_around_mask_with_padding",
    "box_size_factor": 1.2,
    "padding_factor": 0.0,
  }
  same = {
    "_partial_": True,
    "_target_": DATASET + "img_and_mask_transforms.resize_all_to_same_size",
  }
  pad = {"_partial_": True, "_target_": DATASET + "img_processing.pad_to_square_centered"}

  def compose(size: int, **options) -> dict:
    resize = {"_target_": "torchvision.transforms.Resize", "size": size, **options}
    return {"_target_": "torchvision.transforms.Compose", "transforms": [pad, resize]}

  return {
    "_target_": DATASET + "preprocessor.PreProcessor",
    "img_mask_joint_transform": [],
    "img_mask_pointmap_joint_transform": [same, crop],
    "img_transform": compose(size),
    "mask_transform": compose(size, interpolation=0),
    "pointmap_transform": compose(pointmap_side, interpolation=0),
    "normalize_pointmap": True,
    "pointmap_normalizer": {
      "_target_": DATASET + "img_and_mask_transforms.ObjectCentricSSI",
      "allow_scale_and_shift_override": True,
      "use_scene_scale": True,
    },
  }


def obstacles(cfg: GeometryConfig) -> list[str]:
  """Why the published classes could not build and strictly load a model of this configuration;
  empty if they can.
  """
  condition, found = cfg.condition, []
  if len(condition.streams) == 1:
    found.append(
      f"{condition.streams[0]} is the only stream: the published fuser then has 2 rows of group "
      "embedding, the model has 3"
    )
  if dino_hub_name(condition.dino) == CUSTOM_DINO:
    dino = condition.dino
    found.append(
      f"torch.hub has no DINOv2 of width {dino.width}, depth {dino.depth}, heads {dino.heads}, "
      f"patch {dino.patch}"
    )
  if condition.pointmap is not None and (
    condition.pointmap.heads,
    condition.pointmap.mlp_ratio,
  ) != (16, 2.0):
    found.append("the published point-map encoder has 16 heads and MLP ratio 2")
  if condition.width != max(
    condition.dino.width, condition.pointmap.width if condition.pointmap else 0
  ):
    found.append(
      f"the published fuser's width is that of its widest encoder, the model's is {condition.width}"
    )
  if (cfg.flow.shape_resolution, cfg.flow.latent_channels) != (16, 8):
    found.append(
      "the published pipeline has 16^3 structure latents with 8 channels, the model "
      f"{cfg.flow.shape_resolution}^3 with {cfg.flow.latent_channels}"
    )
  return found


def at(node: Any, path: str, file: str) -> Any:
  """The value at a dotted path of a yaml tree. Raises InputError naming file and key."""
  for part in path.split("."):
    try:
      node = node[int(part) if isinstance(node, list) else part]
    except (KeyError, IndexError, TypeError, ValueError) as error:
      raise InputError(f"{file} has no {path}") from error
  return node


def require(node: Mapping[str, Any], expected: Mapping[str, Any], file: str) -> None:
  """Raises InputError if an argument is given and is not the one value this implementation covers."""
  wrong = [
    f"{k} = {node[k]!r} (only {v!r} is implemented)"
    for k, v in expected.items()
    if k in node and node[k] != v
  ]
  if wrong:
    raise InputError(f"{file}: {'; '.join(wrong)}")


def geometry_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `model` section of our configuration that a ss_generator.yaml describes."""
  generator = at(tree, "module.generator.backbone", file)
  backbone = at(generator, "reverse_fn.backbone", file)
  require(generator, {"sigma_min": 0.0, "reversed_timestamp": False}, file)
  require(
    backbone,
    {
      "pe_mode": "ape",
      "share_mod": False,
      "qk_rms_norm_cross": False,
      "patch_size": 1,
      "force_zeros_cond": True,
    },
    file,
  )
  latents = at(backbone, "latent_mapping", file)
  if set(latents) != set(LATENT_NAMES.values()):
    raise InputError(
      f"{file}: latent_mapping has {', '.join(latents)}, not {', '.join(LATENT_NAMES.values())}"
    )
  width = at(backbone, "model_channels", file)
  flow = {
    "width": width,
    "depth": at(backbone, "num_blocks", file),
    "heads": backbone.get("num_heads") or width // backbone.get("num_head_channels", 64),
    "mlp_ratio": float(backbone.get("mlp_ratio", 4)),
    "cond_width": at(backbone, "cond_channels", file),
    "shape_resolution": at(latents, "shape.pos_embedder.resolution", file),
    "latent_channels": at(latents, "shape.in_channels", file),
    "qk_rms_norm": backbone.get("qk_rms_norm", False),
    "shortcut": backbone.get("is_shortcut_model", False),
    "time_scale": float(generator.get("time_scale", 1000.0)),
  }
  fuser = at(tree, "module.condition_embedder.backbone", file)
  return {"name": "geometry", "flow": flow, "condition": _condition_section(fuser, file)}


def _condition_section(fuser: Mapping[str, Any], file: str) -> dict[str, Any]:
  require(
    fuser,
    {
      "_target_": TARGETS["fuser"],
      "use_pos_embedding": "learned",
      "projection_pre_norm": True,
      "compression_projection_multiplier": 0,
      "force_drop_modalities": None,
    },
    file,
  )
  embedders = at(fuser, "embedder_list", file)
  kinds = [e[0]["_target_"] for e in embedders]
  if kinds not in ([TARGETS["dino"]] * 2, [TARGETS["dino"]] * 2 + [TARGETS["pointmap"]]):
    raise InputError(
      f"{file}: embedder_list is {', '.join(kinds)}; expected two Dinos, then perhaps a "
      "PointPatchEmbed"
    )
  dinos = [_dino_section(e[0], file) for e in embedders[:2]]
  if dinos[0] != dinos[1]:
    raise InputError(
      f"{file}: the image and the mask encoder differ in size: {dinos[0]}, {dinos[1]}"
    )
  used = dict(pair for e in embedders for pair in e[1])
  expected = stream_groups(list(used))
  if _numbered(used) != _numbered(expected):
    raise InputError(
      f"{file}: the streams' position groups are {used}, only such as {expected} are implemented"
    )
  pointmap = None
  if len(embedders) == 3:
    node = embedders[2][0]
    pointmap = {
      "width": node.get("embed_dim", 768),
      "input_size": node.get("input_size", 256),
      "patch": node.get("patch_size", 8),
      "remap": node.get("remap_output", "exp"),
      "drop_token": node.get("dropout_prob", 0.0) > 0,
    }
  return {
    "width": max(dinos[0]["width"], pointmap["width"] if pointmap else 0),
    "hidden_multiplier": float(fuser.get("projection_net_hidden_dim_multiplier", 4.0)),
    "streams": tuple(s for s in STREAMS if s in used),
    "dino": dinos[0],
    "pointmap": pointmap,
  }


def _numbered(groups: Mapping[str, str]) -> dict[str, int]:
  """Stream -> number of its group, counted by first appearance, as the published module does."""
  order = list(dict.fromkeys(groups.values()))
  return {stream: order.index(group) for stream, group in groups.items()}


def _dino_section(node: Mapping[str, Any], file: str) -> dict[str, Any]:
  require(node, {"normalize_images": True, "prune_network": False}, file)
  kwargs, name = dict(node.get("backbone_kwargs") or {}), node.get("dino_model", "dinov2_vitb14")
  section = {
    "input_size": node.get("input_size", 224),
    "prenorm": node.get("prenorm_features", False),
    "image_size": kwargs.get("img_size", 518),
  }
  if name == CUSTOM_DINO:
    return section | {
      "width": kwargs["embed_dim"],
      "depth": kwargs["depth"],
      "heads": kwargs["num_heads"],
      "mlp_ratio": float(kwargs["mlp_ratio"]),
      "patch": kwargs["patch_size"],
      "registers": kwargs["num_register_tokens"],
    }
  known = {
    f"dinov2_vit{size}14{reg}": (*dims, 4 if reg else 0)
    for size, dims in DINO_SIZES.items()
    for reg in ("", "_reg")
  }
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


def sampler_section(
  generator_tree: Mapping[str, Any], pipeline: Mapping[str, Any] | None, file: str
) -> dict[str, Any]:
  """Sampling settings of stage 1: those of pipeline.yaml over the pipeline's own defaults; without
  one, the generator's.
  """
  generator = at(generator_tree, "module.generator.backbone", file)
  scale = float(generator.get("time_scale", 1000.0))
  if pipeline is not None:
    read = {
      "steps": pipeline.get("ss_inference_steps", 25),
      "rescale_t": pipeline.get("ss_rescale_t", 3),
      "guidance": pipeline.get("ss_cfg_strength", 7),
      "interval": pipeline.get("ss_cfg_interval", [0, 500]),
    }
  else:
    guidance = at(generator, "reverse_fn", file)
    read = {
      "steps": generator.get("inference_steps", 100),
      "rescale_t": generator.get("rescale_t", 1.0),
      "guidance": guidance.get("strength", 3.0),
      "interval": guidance.get("interval"),
    }
  interval = None if read["interval"] is None else tuple(float(t) / scale for t in read["interval"])
  return {
    "steps": int(read["steps"]),
    "rescale_t": float(read["rescale_t"]),
    "guidance": float(read["guidance"]),
    "interval": interval,
  }


def structure_vae_section(
  tree: Mapping[str, Any], file: str, *, latent_resolution: int
) -> dict[str, Any]:
  """The `model` section of the structure VAE whose decoder a ss_decoder.yaml describes."""
  require(
    tree,
    {
      "_target_": TARGETS["decoder"],
      "out_channels": 1,
      "norm_type": "layer",
      "reshape_input_to_cube": False,
    },
    file,
  )
  channels = tuple(reversed(at(tree, "channels", file)))
  return {
    "name": "structure_vae",
    "resolution": latent_resolution * 2 ** (len(channels) - 1),
    "latent_channels": at(tree, "latent_channels", file),
    "channels": channels,
    "res_blocks": at(tree, "num_res_blocks", file),
    "middle_blocks": tree.get("num_res_blocks_middle", 2),
  }
