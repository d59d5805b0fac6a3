"""Training loss of the structure VAE: reconstruction of the occupancy grid plus a KL term (arXiv
2412.01506 §3.2, appendix).
"""

from typing import Any

import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.batch import StructureBatch
from sam3d_jax.objectives import draws


def dice_loss(logits_BXYZ: jax.Array, occupancy_BXYZ: jax.Array) -> jax.Array:
  """1 - (2 |p y| + 1) / (|p| + |y| + 1) per sample, (B,), p = sigmoid(logits) (Milletari et al.
  2016, with add-one smoothing).
  """
  p = jax.nn.sigmoid(logits_BXYZ)
  y = occupancy_BXYZ
  # The added ones make the loss of two empty grids 0 rather than undefined.
  shared_B = 2.0 * per_sample_sum(p * y) + 1.0
  total_B = per_sample_sum(p) + per_sample_sum(y) + 1.0
  return 1.0 - shared_B / total_B


def binary_cross_entropy(logits_BXYZ: jax.Array, occupancy_BXYZ: jax.Array) -> jax.Array:
  """Mean over voxels of -y log p - (1 - y) log(1 - p) per sample, (B,)."""
  # max(l, 0) - l y + log(1 + exp(-|l|)), in the logits l: no logarithm of a rounded 0 is taken.
  positive = jnp.maximum(logits_BXYZ, 0.0)
  linear = positive - logits_BXYZ * occupancy_BXYZ
  size = jnp.abs(logits_BXYZ)
  loss = linear + jnp.log1p(jnp.exp(-size))
  flat = loss.reshape(loss.shape[0], -1)
  return flat.mean(-1)


RECONSTRUCTIONS = {"dice": dice_loss, "bce": binary_cross_entropy}


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
  """KL(N(mean, exp(logvar)) || N(0, 1)), mean over latent elements per sample, (B,)."""
  # Kingma & Welling 2014, appendix B.
  second_moment = jnp.square(mean) + jnp.exp(logvar)
  kl = 0.5 * (second_moment - logvar - 1.0)
  flat = kl.reshape(kl.shape[0], -1)
  return flat.mean(-1)


def occupancy_metrics(logits_BXYZ: jax.Array, occupancy_BXYZ: jax.Array) -> dict[str, jax.Array]:
  """`iou` (intersection over union of occupied voxels, 1 where both are empty) and `accuracy`,
  averaged over samples.
  """
  # A logit of 0 is a probability of one half.
  guess = logits_BXYZ > 0
  truth = occupancy_BXYZ > 0.5

  # Two grids that are both empty agree.
  union_B = per_sample_sum(guess | truth)
  somewhere_B = union_B > 0
  shared_B = per_sample_sum(guess & truth)
  share_B = shared_B / jnp.maximum(union_B, 1)
  iou_B = jnp.where(somewhere_B, share_B, 1.0)

  # Accuracy is of all voxels, empty ones included.
  return {
    "iou": iou_B.mean(),
    "accuracy": (guess == truth).mean(),
  }


def per_sample_sum(values: jax.Array) -> jax.Array:
  """Sum over everything but the batch, (B,)."""
  flat = values.reshape(values.shape[0], -1)
  return flat.sum(-1)


def check(settings: Any, model_config: Any, rows: int) -> None:
  """Raises FieldError for settings of `structure_autoencoder` that cannot work."""
  del model_config, rows
  sections.check_choice(settings, "reconstruction", RECONSTRUCTIONS)
  sections.check_not_negative(settings, "kl_weight")


def structure_autoencoder(
  model,
  frozen,
  batch: StructureBatch,
  key: jax.Array,
  *,
  reconstruction: str = "dice",
  kl_weight: float = 1e-3,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Reconstruction (`dice` or `bce`) + kl_weight * KL, with one draw of the latent per example.

  `model` has `.encoder(occupancy_BXYZ) -> (mean, logvar)` and `.decoder(latent) -> logits_BXYZ`;
  `frozen` is not used. Returns the loss and `vae/reconstruction`, `vae/kl`, `vae/iou`,
  `vae/accuracy`. Raises ValueError for an unknown reconstruction.
  """
  del frozen
  if reconstruction not in RECONSTRUCTIONS:
    known = ", ".join(RECONSTRUCTIONS)
    raise ValueError(f"reconstruction {reconstruction!r} is not one of {known}")
  reconstruction_loss = RECONSTRUCTIONS[reconstruction]

  # The posterior; its statistics are fp32, whatever the encoder computes in.
  occupancy_BXYZ = jnp.asarray(batch.occupancy, jnp.float32)
  mean, logvar = model.encoder(occupancy_BXYZ)
  mean = mean.astype(jnp.float32)
  logvar = logvar.astype(jnp.float32)

  # One draw from it for each example (the reparameterisation of Kingma & Welling 2014), rebuilt.
  keys_B = draws.example_keys(key, batch.key)
  deviation = jnp.exp(0.5 * logvar)
  normal = draws.normal(keys_B, "latent", mean.shape[1:])
  latent = mean + deviation * normal
  logits_BXYZ = model.decoder(latent)
  logits_BXYZ = logits_BXYZ.astype(jnp.float32)

  # The two terms.
  rebuilt = reconstruction_loss(logits_BXYZ, occupancy_BXYZ).mean()
  kl = kl_divergence(mean, logvar).mean()

  # The loss's own numbers, and those that people can read.
  metrics = {
    "vae/reconstruction": rebuilt,
    "vae/kl": kl,
  }
  readable = occupancy_metrics(logits_BXYZ, occupancy_BXYZ)
  for name, value in readable.items():
    metrics[f"vae/{name}"] = value
  loss = rebuilt + kl_weight * kl
  return loss, metrics
