"""The SLAT encoder: image features of an object's voxels to its structured latents.

Each voxel comes with DINOv2 features, averaged over the views that see it, and gets the mean and
the log variance of its latent (arXiv 2412.01506 §3.1).
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.models.layers import Dense
from sam3d_jax.models.slat_trunk import SlatTrunk, TrunkConfig, slat_output
from sam3d_jax.models.sparse import SparseTensor


@dataclasses.dataclass(frozen=True)
class SlatEncoderConfig:
  """The defaults are the published encoder.

  features: channels of a voxel's image features. latent_channels: of a voxel's latent. resolution:
  voxels along a side of the grid.
  """

  trunk: TrunkConfig = TrunkConfig()
  features: int = 1024
  latent_channels: int = 8
  resolution: int = 64

  def __post_init__(self):
    sections.check_positive(self, "features", "latent_channels", "resolution")


class Posterior(NamedTuple):
  """Normal distributions of the latents of packed voxels."""

  mean_RVC: jax.Array
  logvar_RVC: jax.Array

  def sample(self, noise_RVC):
    """Latents drawn with standard normal `noise_RVC`."""
    std_RVC = jnp.exp(0.5 * self.logvar_RVC)
    return self.mean_RVC + std_RVC * noise_RVC


class SlatEncoder(nnx.Module):
  """Features (R, V, features) to the posterior of the latents, both (R, V, C) fp32, zero in the
  padding.
  """

  def __init__(self, cfg: SlatEncoderConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.trunk = SlatTrunk(cfg.features, cfg.trunk, rngs=rngs)
    # mean and log variance side by side; from zero, as published
    moments = 2 * cfg.latent_channels
    self.proj_out = Dense(cfg.trunk.width, moments, rngs=rngs, zero=True)

  def __call__(self, x: SparseTensor) -> Posterior:
    moments = slat_output(self.trunk(x), self.proj_out)
    mean_RVC, logvar_RVC = jnp.split(moments.feats_RVC, 2, axis=-1)
    return Posterior(mean_RVC, logvar_RVC)
