"""Small Gaussian decoder: SLAT latents of 8 channels -> 4 Gaussians a voxel.

    python -m launch.inspect --config configs/vae_slat_gaussian.py --release_keys

The model alone: what it is exchanged as. It has no training section.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("train_vae")
  c.model = base.slat_gaussian_model()
  return base.finish(c, variant)
