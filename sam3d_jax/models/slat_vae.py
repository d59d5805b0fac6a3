"""The SLAT autoencoder as it is trained: encoder with Gaussian decoder, or one decoder on latents
that are there. Every part has the same parameter paths wherever it is.
"""

import dataclasses

from flax import nnx

from sam3d_jax.models.slat_encoder import SlatEncoder, SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig, SlatGaussianDecoder
from sam3d_jax.models.slat_mesh import SlatMeshConfig, SlatMeshDecoder
from sam3d_jax.sections import FieldError


@dataclasses.dataclass(frozen=True)
class SlatVAEConfig:
  """Encoder and Gaussian decoder of one kind of latents."""

  encoder: SlatEncoderConfig = SlatEncoderConfig()
  gaussian: SlatGaussianConfig = SlatGaussianConfig()

  def __post_init__(self):
    for name in ("latent_channels", "resolution"):
      encoded = getattr(self.encoder, name)
      decoded = getattr(self.gaussian, name)
      if encoded != decoded:
        raise FieldError(f"gaussian.{name} = {decoded} is not encoder.{name} = {encoded}")


class SlatVAE(nnx.Module):
  """Encoder and Gaussian decoder."""

  def __init__(self, cfg: SlatVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.encoder = SlatEncoder(cfg.encoder, rngs=rngs)
    self.gaussian = SlatGaussianDecoder(cfg.gaussian, rngs=rngs)


class SlatGaussianModel(nnx.Module):
  """A Gaussian decoder alone."""

  def __init__(self, cfg: SlatGaussianConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.gaussian = SlatGaussianDecoder(cfg, rngs=rngs)


class SlatMeshModel(nnx.Module):
  """A mesh decoder alone."""

  def __init__(self, cfg: SlatMeshConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.mesh = SlatMeshDecoder(cfg, rngs=rngs)
