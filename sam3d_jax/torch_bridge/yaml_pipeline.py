"""pipeline.yaml: what the published pipeline is made of, how it prepares photos and samples."""

from collections.abc import Mapping
from typing import Any

from sam3d_jax.models.conditioning import ConditionConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.torch_bridge.yaml_files import DATASET, TARGET, TARGETS, Settings, at, only_called
from sam3d_jax.torch_bridge.yaml_geometry import CUSTOM_DINO, dino_hub_name, interval_yaml

PAD = {"_partial_": True, "_target_": DATASET + "img_processing.pad_to_square_centered"}
# What the published pipeline does where pipeline.yaml does not say, in both stages.
PIPELINE_SAMPLER = {
  "ss": {"inference_steps": 25, "rescale_t": 3, "cfg_strength": 7, "cfg_interval": [0, 500]},
  "slat": {"inference_steps": 25, "rescale_t": 3, "cfg_strength": 5, "cfg_interval": [0, 500]},
}


def pipeline_yaml(
  cfg: GeometryConfig,
  files: Mapping[str, str],
  settings: Settings,
  base: Mapping[str, Any] | None,
) -> dict:
  """pipeline.yaml of a first stage; arguments as in `frame`, and its model."""
  return frame(files, settings, base) | geometry_settings(cfg, settings)


def frame(
  files: Mapping[str, str], settings: Settings, base: Mapping[str, Any] | None
) -> dict[str, Any]:
  """What pipeline.yaml says of no single model.

  files: part -> checkpoint file name, of every part in the folder that the pipeline knows. base:
  the pipeline.yaml of the folder that parts were taken over from, whose settings for what is not
  made here, the depth model and preprocessing are kept.
  """
  # What a published pipeline has, or the one that parts were taken over from.
  out = {
    "_target_": TARGETS["pipeline"],
    "dtype": "float16" if settings.half else "bfloat16",
    "version": "sam3d_jax",
    "ss_condition_input_mapping": [],
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
  # Settings of another class than the pipeline's mean nothing to it.
  kept = base or {}
  if kept.get(TARGET, TARGETS["pipeline"]) != TARGETS["pipeline"]:
    kept = {}
  out |= only_called(kept)

  # The files are those of this folder, not of the one that settings come from.
  for key in list(out):
    if key.endswith(("_config_path", "_ckpt_path")):
      del out[key]
  for part, file in files.items():
    out[f"{part}_config_path"] = f"{part}.yaml"
    out[f"{part}_ckpt_path"] = file
  return out


def geometry_settings(cfg: GeometryConfig, settings: Settings) -> dict[str, Any]:
  """What pipeline.yaml says of the first stage."""
  sampler = settings.sampler
  return {
    "ss_preprocessor": preprocessor(cfg.condition.dino.input_size, pointmap_side(cfg)),
    "ss_inference_steps": sampler["steps"],
    "ss_rescale_t": sampler["rescale_t"],
    "ss_cfg_strength": sampler["guidance"],
    "ss_cfg_interval": interval_yaml(sampler, cfg.flow),
  }


def pointmap_side(cfg: GeometryConfig) -> int:
  """Side to which the published preprocessor resizes point maps, before their encoder does.

  The images' side, as published; a model that was trained without that step gets point maps which
  its encoder's resize leaves as they are.
  """
  pointmap = cfg.condition.pointmap
  if pointmap is not None and not pointmap.resize_twice:
    return pointmap.input_size
  return cfg.condition.dino.input_size


def resizes_twice(pipeline: Mapping[str, Any] | None, geometry: Mapping[str, Any]) -> bool:
  """Whether a pipeline.yaml resizes point maps to another side than their encoder does."""
  prepared = (pipeline or {}).get("ss_preprocessor") or {}
  transform = prepared.get("pointmap_transform") or {}

  # the last resize decides; a pipeline that does not say does as published
  side = None
  for step in transform.get("transforms", ()):
    if isinstance(step, Mapping) and "size" in step:
      side = step["size"]
  images = geometry["condition"]["dino"]["input_size"]
  return side is None or side == images


def compose(size: int, **options) -> dict:
  """To a square, then to a side of `size`."""
  resize = {"_target_": "torchvision.transforms.Resize", "size": size, **options}
  return {"_target_": "torchvision.transforms.Compose", "transforms": [PAD, resize]}


def photo_transforms(size: int) -> tuple[dict, dict, dict]:
  """Crop around the mask with margin; photo and mask, each on its own, to a square of `size`."""
  crop = {
    "_partial_": True,
    "_target_": DATASET + "img_and_mask_transforms.crop_around_mask_with_padding",
    "box_size_factor": 1.2,
    "padding_factor": 0.0,
  }
  return crop, compose(size), compose(size, interpolation=0)


def preprocessor(size: int, pointmap_side: int) -> dict:
  """How the published pipeline prepares photo, mask and point map.

  Crop around the mask with margin, pad to a square, resize to `size`, point maps to
  `pointmap_side`.
  """
  # photo, mask and point map together come to one size before the crop
  same = {
    "_partial_": True,
    "_target_": DATASET + "img_and_mask_transforms.resize_all_to_same_size",
  }
  crop, image, mask = photo_transforms(size)
  return {
    "_target_": DATASET + "preprocessor.PreProcessor",
    "img_mask_joint_transform": [],
    "img_mask_pointmap_joint_transform": [same, crop],
    "img_transform": image,
    "mask_transform": mask,
    "pointmap_transform": compose(pointmap_side, interpolation=0),
    "normalize_pointmap": True,
    "pointmap_normalizer": {
      "_target_": DATASET + "img_and_mask_transforms.ObjectCentricSSI",
      "allow_scale_and_shift_override": True,
      "use_scene_scale": True,
    },
  }


def obstacles(cfg: GeometryConfig) -> list[str]:
  """Why the published classes could not build and strictly load such a model; empty if they can."""
  found = condition_obstacles(cfg.condition)
  flow = cfg.flow

  # the latents, which the published decoder and second stage read
  if (flow.shape_resolution, flow.latent_channels) != (16, 8):
    found.append(
      "the published pipeline has 16^3 structure latents with 8 channels, the model "
      f"{flow.shape_resolution}^3 with {flow.latent_channels}"
    )
  return found


def condition_obstacles(condition: ConditionConfig) -> list[str]:
  """What of a condition encoder the published classes do not have."""
  dino, pointmap = condition.dino, condition.pointmap
  found = []
  if len(condition.streams) == 1:
    found.append(
      f"{condition.streams[0]} is the only stream: the published fuser then has 2 rows of group "
      "embedding, the model has 3"
    )
  if dino_hub_name(dino) == CUSTOM_DINO:
    found.append(
      f"torch.hub has no DINOv2 of width {dino.width}, depth {dino.depth}, heads {dino.heads}, "
      f"patch {dino.patch}"
    )
  if pointmap is not None and (pointmap.heads, pointmap.mlp_ratio) != (16, 2.0):
    found.append("the published point-map encoder has 16 heads and MLP ratio 2")
  widest = dino.width
  if pointmap is not None:
    widest = max(widest, pointmap.width)
  if condition.width != widest:
    found.append(
      f"the published fuser's width is that of its widest encoder, the model's is {condition.width}"
    )
  return found


def sampler_section(
  generator_tree: Mapping[str, Any],
  pipeline: Mapping[str, Any] | None,
  file: str,
  *,
  stage: str = "ss",
) -> dict[str, Any]:
  """Sampling settings of a stage, "ss" or "slat".

  Those of pipeline.yaml over the pipeline's own defaults; without one, the generator's.
  """
  generator = at(generator_tree, "module.generator.backbone", file)
  if pipeline is not None:
    said = {}
    for key, default in PIPELINE_SAMPLER[stage].items():
      said[key] = pipeline.get(f"{stage}_{key}", default)
    read = {
      "steps": said["inference_steps"],
      "rescale_t": said["rescale_t"],
      "guidance": said["cfg_strength"],
      "interval": said["cfg_interval"],
    }
  else:
    guidance = at(generator, "reverse_fn", file)
    read = {
      "steps": generator.get("inference_steps", 100),
      "rescale_t": generator.get("rescale_t", 1.0),
      "guidance": guidance.get("strength", 3.0),
      "interval": guidance.get("interval"),
    }

  # Published intervals count time up to `time_scale`, ours up to one.
  interval = read["interval"]
  scale = float(generator.get("time_scale", 1000.0))
  if interval is not None:
    interval = tuple(float(t) / scale for t in interval)
  return {
    "steps": int(read["steps"]),
    "rescale_t": float(read["rescale_t"]),
    "guidance": float(read["guidance"]),
    "interval": interval,
  }
