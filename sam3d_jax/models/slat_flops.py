"""Model FLOPs of the SLAT autoencoder in closed form, counted as in `flops`.

A sample is an object of SAMPLE_VOXELS voxels; products with weights are linear in them.
"""

from sam3d_jax.models import flexicubes
from sam3d_jax.models.flops import Cost, Part
from sam3d_jax.models.gaussians import CHANNELS
from sam3d_jax.models.slat_encoder import SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig
from sam3d_jax.models.slat_mesh import SlatMeshConfig
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.models.slat_vae import SlatVAEConfig

SAMPLE_VOXELS = 32_768  # of the objects that training takes, the largest
# A voxel of a surface shares its window of 8^3 with that many, counted on 32 129 voxels; surfaces
# grow with the square of the window's side.
PARTNERS = 121
PARTNERS_WINDOW = 8


def trunk(channels: int, cfg: TrunkConfig) -> Part:
  """The first layer and the blocks."""
  width, voxels = cfg.width, SAMPLE_VOXELS
  hidden = int(width * cfg.mlp_ratio)
  partners = PARTNERS * (cfg.window / PARTNERS_WINDOW) ** 2
  block = Part(
    weights=8 * voxels * width**2 + 4 * voxels * width * hidden,
    mixing=4 * voxels * partners * width,
  )
  return block * cfg.depth + Part(2 * voxels * channels * width)


def head(channels: int, cfg: TrunkConfig) -> Part:
  """The last layer."""
  return Part(2 * SAMPLE_VOXELS * cfg.width * channels)


def encoder(cfg: SlatEncoderConfig) -> Part:
  """From features to mean and log variance."""
  return trunk(cfg.features, cfg.trunk) + head(2 * cfg.latent_channels, cfg.trunk)


def gaussian(cfg: SlatGaussianConfig) -> Part:
  """From latents to Gaussians."""
  return trunk(cfg.latent_channels, cfg.trunk) + head(CHANNELS * cfg.gaussians, cfg.trunk)


def slat_vae(cfg: SlatVAEConfig, *, plain: bool) -> Cost:
  """Encoder and Gaussian decoder, which have one form only."""
  del plain
  parts = {"encoder": encoder(cfg.encoder), "gaussian": gaussian(cfg.gaussian)}
  return Cost(parts=parts, before={"gaussian": "encoder"})


def slat_gaussian(cfg: SlatGaussianConfig, *, plain: bool) -> Cost:
  """A Gaussian decoder alone."""
  del plain
  return Cost(parts={"gaussian": gaussian(cfg)})


def mesh(cfg: SlatMeshConfig, *, plain: bool) -> Part:
  """From latents to cubes.

  plain: the first convolution of a block has 27 taps at each child; executed it has 8, since the
  children of a voxel are equal there.
  """
  total = trunk(cfg.latent_channels, cfg.trunk)
  channels, cells = cfg.trunk.width, SAMPLE_VOXELS
  for out in cfg.up_channels:
    children = 8 * cells
    first_taps = 27 if plain else 8
    first = 2 * children * first_taps * channels * out
    second = 2 * children * 27 * out**2
    around = 2 * cells * channels * out
    total = total + Part(first + second + around)
    channels, cells = out, children
  return total + Part(2 * cells * channels * flexicubes.CHANNELS)


def slat_mesh(cfg: SlatMeshConfig, *, plain: bool) -> Cost:
  """A mesh decoder alone."""
  return Cost(parts={"mesh": mesh(cfg, plain=plain)})
