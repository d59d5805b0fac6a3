"""Training loss of the structure VAE: reconstruction of the occupancy grid plus a KL term (arXiv
2412.01506 §3.2, appendix).
"""

import jax
import jax.numpy as jnp

from sam3d_jax.batch import StructureBatch
from sam3d_jax.objectives import draws


def dice_loss(logits_BXYZ: jax.Array, occupancy_BXYZ: jax.Array) -> jax.Array:
  """1 - (2 |p y| + 1) / (|p| + |y| + 1) per sample, (B,), p = sigmoid(logits) (Milletari et al.
  2016, with add-one smoothing).
  """
  p, y = jax.nn.sigmoid(logits_BXYZ), occupancy_BXYZ
  total = lambda a: a.reshape(a.shape[0], -1).sum(-1)
  return 1.0 - (2.0 * total(p * y) + 1.0) / (total(p) + total(y) + 1.0)


def binary_cross_entropy(logits_BXYZ: jax.Array, occupancy_BXYZ: jax.Array) -> jax.Array:
  """Mean over voxels of -y log p - (1 - y) log(1 - p) per sample, (B,)."""
  loss = (
    jnp.maximum(logits_BXYZ, 0.0)
    - logits_BXYZ * occupancy_BXYZ
    + jnp.log1p(jnp.exp(-jnp.abs(logits_BXYZ)))
  )
  return loss.reshape(loss.shape[0], -1).mean(-1)


RECONSTRUCTIONS = {"dice": dice_loss, "bce": binary_cross_entropy}


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
  """KL(N(mean, exp(logvar)) || N(0, 1)), mean over latent elements per sample, (B,)."""
  kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - logvar - 1.0)
  return kl.reshape(kl.shape[0], -1).mean(-1)


def occupancy_metrics(logits_BXYZ: jax.Array, occupancy_BXYZ: jax.Array) -> dict[str, jax.Array]:
  """`iou` (intersection over union of occupied voxels, 1 where both are empty) and `accuracy`,
  averaged over samples.
  """
  guess, truth = logits_BXYZ > 0, occupancy_BXYZ > 0.5
  count = lambda a: a.reshape(a.shape[0], -1).sum(-1)
  union = count(guess | truth)
  iou_B = jnp.where(union > 0, count(guess & truth) / jnp.maximum(union, 1), 1.0)
  return {"iou": iou_B.mean(), "accuracy": (guess == truth).mean()}


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
    raise ValueError(
      f"reconstruction {reconstruction!r} is not one of {', '.join(RECONSTRUCTIONS)}"
    )
  occupancy_BXYZ = jnp.asarray(batch.occupancy, jnp.float32)
  mean, logvar = (a.astype(jnp.float32) for a in model.encoder(occupancy_BXYZ))
  keys_B = draws.example_keys(key, batch.key)
  latent = mean + jnp.exp(0.5 * logvar) * draws.normal(keys_B, "latent", mean.shape[1:])
  logits_BXYZ = model.decoder(latent).astype(jnp.float32)
  rebuilt = RECONSTRUCTIONS[reconstruction](logits_BXYZ, occupancy_BXYZ).mean()
  kl = kl_divergence(mean, logvar).mean()
  metrics = {"vae/reconstruction": rebuilt, "vae/kl": kl}
  metrics |= {f"vae/{k}": v for k, v in occupancy_metrics(logits_BXYZ, occupancy_BXYZ).items()}
  return rebuilt + kl_weight * kl, metrics
