"""ss_decoder.yaml and ss_encoder.yaml: the structure VAE, from our configuration and back."""

from collections.abc import Mapping
from typing import Any

from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.torch_bridge.yaml_files import TARGETS, Settings, at, require


def decoder_yaml(cfg: StructureVAEConfig, settings: Settings) -> dict:
  """ss_decoder.yaml."""
  return {
    "_target_": TARGETS["decoder"],
    "out_channels": 1,
    "latent_channels": cfg.latent_channels,
    "num_res_blocks": cfg.res_blocks,
    "num_res_blocks_middle": cfg.middle_blocks,
    "channels": list(reversed(cfg.channels)),
    "reshape_input_to_cube": False,
    "use_fp16": settings.half,
  }


def encoder_yaml(cfg: StructureVAEConfig, settings: Settings) -> dict:
  """ss_encoder.yaml."""
  return {
    "_target_": TARGETS["encoder"],
    "in_channels": 1,
    "latent_channels": cfg.latent_channels,
    "num_res_blocks": cfg.res_blocks,
    "num_res_blocks_middle": cfg.middle_blocks,
    "channels": list(cfg.channels),
    "sample_posterior": False,
    "use_fp16": settings.half,
  }


def structure_vae_section(
  tree: Mapping[str, Any], file: str, *, latent_resolution: int
) -> dict[str, Any]:
  """The `model` section of the structure VAE whose decoder a ss_decoder.yaml describes."""
  implemented = {
    "_target_": TARGETS["decoder"],
    "out_channels": 1,
    "norm_type": "layer",
    "reshape_input_to_cube": False,
  }
  require(tree, implemented, file)
  # the decoder's levels run from coarse to fine, ours from fine to coarse
  channels = tuple(reversed(at(tree, "channels", file)))
  # every level of the decoder but the first doubles the resolution
  resolution = latent_resolution * 2 ** (len(channels) - 1)
  return {
    "name": "structure_vae",
    "resolution": resolution,
    "latent_channels": at(tree, "latent_channels", file),
    "channels": channels,
    "res_blocks": at(tree, "num_res_blocks", file),
    "middle_blocks": tree.get("num_res_blocks_middle", 2),
  }
