"""From the voxels of objects and what a photo says of them to structured latents."""

import functools

import jax
import jax.numpy as jnp

from sam3d_jax.batch import Conditioning
from sam3d_jax.geometry.packing import PackedVoxels
from sam3d_jax.models import latent_statistics
from sam3d_jax.models.texture import TextureModel
from sam3d_jax.models.texture_flow import LATENT
from sam3d_jax.objectives import draws, examples, paths
from sam3d_jax.sampling import generate
from sam3d_jax.sampling.generate import SamplerConfig


def sample_texture(
  model: TextureModel,
  cond: Conditioning,
  voxels: PackedVoxels,
  key_RK2: jax.Array,
  cfg: SamplerConfig,
) -> jax.Array:
  """Structured latents as decoders read them, (R, V, C) float32, zero in the padding.

  Pure; jit it with `cfg` static. R rows of up to K objects on V slots.

  Args:
    model: a model with a step embedder is fed d = 0, or d = 1 / steps in shortcut mode
      (paths.step_size).
    cond: streams (R, K, ...), encoded once.
    voxels: with neighbours, the level of half the resolution, and pooling (packing.Tables).
    key_RK2: uint32, one key an object; its noise depends on that and on its voxels, not on the row
      or its neighbours (draws.raw_keys makes keys from a seed).
    cfg: the sampler. Of the published pipeline: 25 steps, rescale_t 1, guidance 1.

  Raises:
    ValueError: shortcut mode with a model that has no step embedder.
  """
  normalised = sample_normalised(
    model,
    cond,
    voxels,
    key_RK2,
    cfg,
  )
  latents_RVC = latent_statistics.denormalise(normalised[LATENT], model.cfg.statistics)
  valid_RV1 = voxels.fine.valid_RV[..., None]
  return jnp.where(valid_RV1, latents_RVC, 0.0)


def sample_normalised(
  model: TextureModel,
  cond: Conditioning,
  voxels: PackedVoxels,
  key_RK2: jax.Array,
  cfg: SamplerConfig,
) -> dict[str, jax.Array]:
  """Latents as the flow model sees them, name -> (R, V, C); arguments as in `sample_texture`."""
  generate.check_step_embedder(model, cfg)
  # the condition, and noise that depends on each object alone
  tokens_RKSD = model.encode(cond)
  keys_RK = draws.wrap_keys(key_RK2)
  channels = {LATENT: len(model.cfg.statistics.mean)}
  noise = examples.voxel_noise(keys_RK, voxels.fine, channels)

  # from noise to data
  return generate.integrate_noise(
    functools.partial(model.velocity, voxels=voxels),
    noise,
    tokens_RKSD,
    cfg,
    d=paths.step_size(model, (cfg.step_size(),)),
  )
