"""SLAT autoencoder: DINOv2 features of voxels -> latents of 8 channels -> 32 Gaussians a voxel.

    python -m launch.inspect --config configs/vae_slat.py --release_keys

The model alone: what it is exchanged as. It has no training section.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("train_vae")
  c.model = base.slat_vae_model()
  return base.finish(c, variant)
