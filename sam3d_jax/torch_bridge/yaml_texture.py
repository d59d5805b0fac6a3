"""slat_generator.yaml: flow model and condition encoder of the second stage, from our configuration
and back, and what pipeline.yaml says of that stage.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.models import latent_statistics
from sam3d_jax.models.texture import TextureConfig
from sam3d_jax.models.texture_flow import COARSENING, TextureFlowConfig
from sam3d_jax.torch_bridge.yaml_files import DATASET, TARGETS, Settings, at, require
from sam3d_jax.torch_bridge.yaml_geometry import condition_section, flow_module, interval_yaml
from sam3d_jax.torch_bridge.yaml_pipeline import condition_obstacles, photo_transforms

# Statistics written in one file with five digits and in another with eight are the same.
SAME_STATISTICS = 1e-3
# what the published pipeline takes where pipeline.yaml has none
DEFAULT_STATISTICS = "trellis"


def generator_yaml(cfg: TextureConfig, settings: Settings) -> dict:
  """slat_generator.yaml."""
  flow, sampler = cfg.flow, settings.sampler

  # the flow model inside guidance, guidance inside the generator
  guided = {
    "_target_": TARGETS["plain_guidance"],
    "backbone": _backbone(flow, settings.half),
    "p_unconditional": 0.0,
    "strength": sampler["guidance"],
    "unconditional_handling": "add_flag",
  }
  interval = interval_yaml(sampler, flow)
  if interval is not None:
    guided["interval"] = interval
  return flow_module(cfg, sampler, guided)


def _backbone(flow: TextureFlowConfig, half: bool) -> dict:
  """The flow model."""
  out = {
    "_target_": TARGETS["texture_flow"],
    "cond_channels": flow.cond_width,
    "condition_embedder": None,
    "force_zeros_cond": True,
    "in_channels": flow.latent_channels,
    "io_block_channels": [flow.io_width],
    "mlp_ratio": flow.mlp_ratio,
    "model_channels": flow.width,
    "num_blocks": flow.depth,
    "num_heads": flow.heads,
    "num_io_res_blocks": flow.io_blocks,
    "out_channels": flow.latent_channels,
    "patch_size": COARSENING,
    "pe_mode": "ape",
    "qk_rms_norm": flow.qk_rms_norm,
    "resolution": flow.resolution,
    "use_fp16": half,
  }
  if flow.shortcut:
    out["is_shortcut_model"] = True
  return out


def texture_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `model` section that a slat_generator.yaml describes, but for the latents' statistics."""
  generator = at(tree, "module.generator.backbone", file)
  backbone = at(generator, "reverse_fn.backbone", file)

  # Only what is implemented here is accepted.
  require(generator, {"sigma_min": 0.0, "reversed_timestamp": False}, file)
  implemented = {
    "_target_": TARGETS["texture_flow"],
    "pe_mode": "ape",
    "share_mod": False,
    "qk_rms_norm_cross": False,
    "force_zeros_cond": True,
    "use_skip_connection": True,
    "patch_size": COARSENING,
  }
  require(backbone, implemented, file)
  io_channels = at(backbone, "io_block_channels", file)
  if len(io_channels) != 1:
    raise InputError(f"{file}: io_block_channels = {io_channels}: only one level is implemented")

  # Where an argument is left out, the published class has a default.
  width = at(backbone, "model_channels", file)
  flow = {
    "width": width,
    "depth": at(backbone, "num_blocks", file),
    "heads": backbone.get("num_heads") or width // backbone.get("num_head_channels", 64),
    "mlp_ratio": float(backbone.get("mlp_ratio", 4)),
    "cond_width": at(backbone, "cond_channels", file),
    "resolution": at(backbone, "resolution", file),
    "latent_channels": at(backbone, "in_channels", file),
    "io_width": io_channels[0],
    "io_blocks": backbone.get("num_io_res_blocks", 2),
    "qk_rms_norm": backbone.get("qk_rms_norm", False),
    "shortcut": backbone.get("is_shortcut_model", False),
    "time_scale": float(generator.get("time_scale", 1000.0)),
  }
  fuser = at(tree, "module.condition_embedder.backbone", file)
  return {"name": "texture", "flow": flow, "condition": condition_section(fuser, file)}


def statistics_section(pipeline: Mapping[str, Any] | None) -> str | dict[str, list[float]]:
  """`latent_statistics` of a pipeline.yaml: the name of a published set, or mean and std.

  Without a pipeline.yaml they are the release's.
  """
  if pipeline is None:
    return "release"
  mean, std = pipeline.get("slat_mean"), pipeline.get("slat_std")
  if mean is None or std is None:
    return DEFAULT_STATISTICS
  stated = latent_statistics.LatentStatistics(mean=tuple(mean), std=tuple(std))
  for name, published in latent_statistics.PUBLISHED.items():
    if same_statistics(stated, published):
      return name
  return {"mean": list(mean), "std": list(std)}


def same_statistics(
  one: latent_statistics.LatentStatistics, other: latent_statistics.LatentStatistics
) -> bool:
  """Whether two sets differ by no more than the digits that they are written with."""
  if len(one.mean) != len(other.mean):
    return False
  same_mean = np.allclose(one.mean, other.mean, rtol=0, atol=SAME_STATISTICS)
  same_std = np.allclose(one.std, other.std, rtol=0, atol=SAME_STATISTICS)
  return same_mean and same_std


def pipeline_settings(cfg: TextureConfig, settings: Settings) -> dict[str, Any]:
  """What pipeline.yaml says of the second stage."""
  sampler = settings.sampler
  return {
    "slat_condition_input_mapping": [],
    "slat_preprocessor": preprocessor(cfg.condition.dino.input_size),
    "slat_inference_steps": sampler["steps"],
    "slat_rescale_t": sampler["rescale_t"],
    "slat_cfg_strength": sampler["guidance"],
    "slat_cfg_interval": interval_yaml(sampler, cfg.flow),
    "slat_mean": list(cfg.statistics.mean),
    "slat_std": list(cfg.statistics.std),
  }


def preprocessor(size: int) -> dict:
  """How the published pipeline prepares photo and mask for the second stage, which sees no point
  maps.
  """
  crop, image, mask = photo_transforms(size)
  return {
    "_target_": DATASET + "preprocessor.PreProcessor",
    "img_mask_joint_transform": [crop],
    "img_transform": image,
    "mask_transform": mask,
  }


def obstacles(cfg: TextureConfig) -> list[str]:
  """Why the published classes could not build and strictly load such a model; empty if they can."""
  found = condition_obstacles(cfg.condition)
  flow = cfg.flow
  if (flow.resolution, flow.latent_channels) != (64, 8):
    found.append(
      "the published pipeline has latents of 8 channels on 64^3 voxels, the model "
      f"{flow.latent_channels} on {flow.resolution}^3"
    )
  return found
