"""The Gaussian decoder: SLAT latents to Gaussians, several a voxel (arXiv 2412.01506 §3.1)."""

import dataclasses

from flax import nnx

from sam3d_jax import sections
from sam3d_jax.models import gaussians
from sam3d_jax.models.gaussians import Activations, RawGaussians
from sam3d_jax.models.layers import Dense
from sam3d_jax.models.slat_trunk import SlatTrunk, TrunkConfig, slat_output
from sam3d_jax.models.sparse import SparseTensor


@dataclasses.dataclass(frozen=True)
class SlatGaussianConfig:
  """The defaults are the published decoder.

  gaussians: of a voxel; 32, and 4 in the small one. latent_channels: of a voxel's latent.
  resolution: voxels along a side of the grid.
  """

  trunk: TrunkConfig = TrunkConfig()
  activations: Activations = Activations()
  gaussians: int = 32
  latent_channels: int = 8
  resolution: int = 64

  def __post_init__(self):
    sections.check_positive(self, "gaussians", "latent_channels", "resolution")

  @property
  def first_offsets(self):
    """Where the Gaussians of a voxel start, (G, 3) fp32, a table in the published files."""
    return gaussians.first_offsets(self.gaussians, self.activations.reach)


class SlatGaussianDecoder(nnx.Module):
  """Latents (R, V, C), as encoded, to the numbers of Gaussians (R, V, 14 G) fp32."""

  def __init__(self, cfg: SlatGaussianConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.trunk = SlatTrunk(cfg.latent_channels, cfg.trunk, rngs=rngs)
    # from zero, as published: all Gaussians start alike
    channels = gaussians.CHANNELS * cfg.gaussians
    self.proj_out = Dense(cfg.trunk.width, channels, rngs=rngs, zero=True)

  def __call__(self, x: SparseTensor) -> SparseTensor:
    return slat_output(self.trunk(x), self.proj_out)

  def gaussians(self, out: SparseTensor) -> RawGaussians:
    """The Gaussians (R, V, G, .) that `__call__` gave the numbers of; those of padding mean
    nothing.
    """
    return gaussians.split(
      out.feats_RVC,
      out.level.coords_RV3,
      self.cfg.first_offsets,
      self.cfg.resolution,
      self.cfg.activations,
    )
