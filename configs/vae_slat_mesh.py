"""Mesh decoder: SLAT latents of 8 channels -> cubes of a grid of 256^3, for FlexiCubes.

    python -m launch.inspect --config configs/vae_slat_mesh.py --release_keys

The model alone: what it is exchanged as. It has no training section.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("train_vae")
  c.model = base.slat_mesh_model()
  return base.finish(c, variant)
