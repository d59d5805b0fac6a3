"""slat_encoder.yaml, slat_decoder_gs.yaml, slat_decoder_mesh.yaml: the parts of the SLAT
autoencoder, from our configurations and back.
"""

from collections.abc import Mapping
from typing import Any

from sam3d_jax.models.gaussians import Activations
from sam3d_jax.models.slat_encoder import SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig
from sam3d_jax.models.slat_mesh import SlatMeshConfig
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.torch_bridge.yaml_files import TARGETS, Settings, at, require

HEAD_DIM = 64  # where a yaml leaves out the number of heads
# published attribute of a Gaussian -> by what its raw numbers are multiplied; rotation's is
# configured
RATES = {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0}
# published setting -> ours
ACTIVATIONS = {
  "voxel_size": "reach",
  "scaling_bias": "scale_bias",
  "opacity_bias": "opacity_bias",
  "3d_filter_kernel_size": "smallest_scale",
  "2d_filter_kernel_size": "screen_kernel",
}
# what is implemented here of a trunk
IMPLEMENTED = {"attn_mode": "swin", "pe_mode": "ape", "qk_rms_norm": False}


def encoder_yaml(cfg: SlatEncoderConfig, settings: Settings) -> dict:
  """slat_encoder.yaml."""
  return {
    "_target_": TARGETS["slat_encoder"],
    "in_channels": cfg.features,
    "latent_channels": cfg.latent_channels,
    "resolution": cfg.resolution,
    **_trunk(cfg.trunk, settings),
  }


def gaussian_yaml(cfg: SlatGaussianConfig, settings: Settings) -> dict:
  """slat_decoder_gs.yaml and slat_decoder_gs_4.yaml."""
  representation = {
    "lr": {**RATES, "_rotation": cfg.activations.rotation_rate},
    "num_gaussians": cfg.gaussians,
    "perturb_offset": True,
    "scaling_activation": "softplus",
  }
  for published, ours in ACTIVATIONS.items():
    representation[published] = getattr(cfg.activations, ours)
  return {
    "_target_": TARGETS["slat_gaussian"],
    "latent_channels": cfg.latent_channels,
    "representation_config": representation,
    "resolution": cfg.resolution,
    **_trunk(cfg.trunk, settings),
  }


def mesh_yaml(cfg: SlatMeshConfig, settings: Settings) -> dict:
  """slat_decoder_mesh.yaml."""
  return {
    "_target_": TARGETS["slat_mesh"],
    "latent_channels": cfg.latent_channels,
    "representation_config": {"use_color": True},
    "resolution": cfg.resolution,
    **_trunk(cfg.trunk, settings),
  }


def mesh_obstacles(cfg: SlatMeshConfig) -> list[str]:
  """What of a mesh decoder the published class does not have."""
  published = published_up_channels(cfg.trunk.width)
  if cfg.up_channels == published:
    return []
  return [
    f"the published mesh decoder of width {cfg.trunk.width} subdivides to {published}, the model "
    f"to {cfg.up_channels}"
  ]


def published_up_channels(width: int) -> tuple[int, int]:
  """Widths after the two subdivisions of the published mesh decoder."""
  return width // 4, width // 8


def _trunk(cfg: TrunkConfig, settings: Settings) -> dict:
  """The arguments of the trunk."""
  return {
    "attn_mode": "swin",
    "mlp_ratio": cfg.mlp_ratio,
    "model_channels": cfg.width,
    "num_blocks": cfg.depth,
    "num_heads": cfg.heads,
    "use_fp16": settings.half,
    "window_size": cfg.window,
  }


def trunk_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `trunk` section that a yaml of any part describes."""
  require(tree, IMPLEMENTED, file)
  width = at(tree, "model_channels", file)
  return {
    "width": width,
    "depth": at(tree, "num_blocks", file),
    "heads": tree.get("num_heads") or width // tree.get("num_head_channels", HEAD_DIM),
    "mlp_ratio": float(tree.get("mlp_ratio", 4)),
    "window": tree.get("window_size", 8),
  }


def encoder_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `encoder` section that a slat_encoder.yaml describes."""
  require(tree, {"_target_": TARGETS["slat_encoder"]}, file)
  return {
    "features": at(tree, "in_channels", file),
    "latent_channels": at(tree, "latent_channels", file),
    "resolution": at(tree, "resolution", file),
    "trunk": trunk_section(tree, file),
  }


def gaussian_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `gaussian` section that a yaml of a Gaussian decoder describes."""
  require(tree, {"_target_": TARGETS["slat_gaussian"]}, file)
  representation = at(tree, "representation_config", file)
  implemented = {"perturb_offset": True, "scaling_activation": "softplus"}
  require(representation, implemented, file)
  rates = dict(at(representation, "lr", file))
  rotation_rate = rates.pop("_rotation", 1.0)
  require(rates, RATES, file)

  # settings that are left out are those of our defaults, which are the published ones
  activations = {"rotation_rate": float(rotation_rate)}
  for published, ours in ACTIVATIONS.items():
    default = getattr(Activations, ours)
    activations[ours] = float(representation.get(published, default))
  return {
    "gaussians": at(representation, "num_gaussians", file),
    "latent_channels": at(tree, "latent_channels", file),
    "resolution": at(tree, "resolution", file),
    "activations": activations,
    "trunk": trunk_section(tree, file),
  }


def mesh_section(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
  """The `mesh` section that a slat_decoder_mesh.yaml describes."""
  require(tree, {"_target_": TARGETS["slat_mesh"]}, file)
  # without colours there are 53 channels a cube, not 101
  representation = at(tree, "representation_config", file)
  require({"use_color": False, **representation}, {"use_color": True}, file)
  trunk = trunk_section(tree, file)
  return {
    "up_channels": published_up_channels(trunk["width"]),
    "latent_channels": at(tree, "latent_channels", file),
    "resolution": at(tree, "resolution", file),
    "trunk": trunk,
  }
