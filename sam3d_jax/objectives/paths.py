"""The time convention, stated once: t = 0 is noise, t = 1 is data, t lies in [0, 1]; the velocity
points from noise to data.

Nothing outside this module writes `1 - t`. Latents are dictionaries of arrays (B, tokens,
channels); a time `t_B` holds one value a sample, shared by all its latents. Where several objects
share a row, latents are (R, V, channels) and times are given for each slot, (R, V)
(objectives/examples.py). Everything here computes in fp32.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import Conditioning

Latents = Mapping[str, jax.Array]


class VelocityModel(Protocol):
  """What objectives and samplers need of a model."""

  step_conditioned: bool  # whether the model has an embedder for the step size d

  def encode(self, cond: Conditioning, drop_pointmap_B: jax.Array | None = None) -> jax.Array:
    """Condition tokens (B, S, D)."""

  def velocity(
    self, x: Latents, t_B: jax.Array, tokens_BSD: jax.Array, d_B: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """Velocity of every latent; t and d are (B,) or (1,)."""


def step_size(model: VelocityModel, d) -> jax.Array | None:
  """The step size to feed `model.velocity`: `d` if the model has a step embedder, else None
  (nothing to feed).

  A model with a step embedder sees d = 0 wherever no step size is meant, in pre-training as in
  plain sampling: the published sampler adds the embedding of d = 0 even without shortcuts, so
  leaving it out in training would make the two disagree.
  """
  if not model.step_conditioned:
    return None
  # A model with the embedder always gets a number, also 0.
  return jnp.asarray(d, jnp.float32)


def per_sample(values_B: jax.Array, like: jax.Array) -> jax.Array:
  """(B,) or (1,) values with trailing axes added so that they broadcast against `like` (B, ...).

  Values of more axes, as those of each slot (R, V), are aligned with the first ones of `like`.
  """
  values_B = jnp.asarray(values_B, jnp.float32)
  trailing = (1,) * (like.ndim - values_B.ndim)
  return values_B.reshape(*values_B.shape, *trailing)


def interpolate(
  noise: Latents, data: Latents, t_B: jax.Array, *, sigma_min: float = 0.0
) -> dict[str, jax.Array]:
  """x_t = (1 - (1 - sigma_min) t) noise + t data (Lipman et al. 2023, eq. 22; rectified flow for
  sigma_min = 0).
  """

  x_t = {}
  for name, x1 in data.items():
    x0 = noise[name]
    t = per_sample(t_B, x1)
    # A straight line from noise to data; sigma_min is the noise left at its end.
    x_t[name] = (1.0 - (1.0 - sigma_min) * t) * x0 + t * x1
  return x_t


def target_velocity(
  noise: Latents, data: Latents, *, sigma_min: float = 0.0
) -> dict[str, jax.Array]:
  """The path's derivative in t, v = data - (1 - sigma_min) noise (Lipman et al. 2023, eq. 23)."""
  v = {}
  for name, x1 in data.items():
    v[name] = x1 - (1.0 - sigma_min) * noise[name]
  return v


def advance(x: Latents, velocity: Latents, d_B: jax.Array) -> dict[str, jax.Array]:
  """One straight step of length d: x + d v."""
  moved = {}
  for name, start in x.items():
    d = per_sample(d_B, start)
    # Euler's step, of any length: shortcut models jump by it.
    moved[name] = start + d * velocity[name]
  return moved


def lognormal_time(normal_B: jax.Array, *, mean: float, std: float) -> jax.Array:
  """t = sigmoid(mean + std n) for standard normal n: the logit-normal law of Esser et al. 2024
  (§3.1).

  A negative mean favours noisy times.
  """
  return jax.nn.sigmoid(mean + std * normal_B)


def latest_start(d_B: jax.Array) -> jax.Array:
  """The last time from which a step of length d still ends on the path."""
  return jnp.maximum(1.0 - d_B, 0.0)


def time_grid(steps: int, rescale_t: float = 1.0, *, reverse: bool = False) -> np.ndarray:
  """Times (steps + 1,) that a sampler visits, from 0 to 1, float64 and static.

  t = u / (1 + (r - 1)(1 - u)) for u = k / steps: r > 1 puts more steps near the noise (Esser et al.
  2024, eq. 23). r = 0, like r = 1, leaves the grid uniform. `reverse` gives 1 - t, for models
  trained with the opposite time convention, whose noise lies at 1.
  """
  if steps < 1:
    raise ValueError(f"steps = {steps}: a sampler needs at least one step")
  # Uniform, unless it is to be denser near the noise.
  u = np.arange(steps + 1) / steps
  t = u
  if rescale_t:
    t = u / (1.0 + (rescale_t - 1.0) * (1.0 - u))
  if reverse:
    t = 1.0 - t
  return t


TIME_WEIGHTS = {
  "uniform": lambda t_B: jnp.ones_like(t_B),
  # favours the early times that decide the global structure; mean 1 for uniform t
  "noisy": lambda t_B: 2.0 * (1.0 - t_B),
  # favours the late times that decide detail; mean 1 for uniform t
  "clean": lambda t_B: 2.0 * t_B,
}


def time_weight(name: str, t_B: jax.Array) -> jax.Array:
  """w(t) by name, (B,). Raises ValueError for an unknown name."""
  if name not in TIME_WEIGHTS:
    known = ", ".join(TIME_WEIGHTS)
    raise ValueError(f"time weight {name!r} is not one of {known}")
  return TIME_WEIGHTS[name](t_B)


def bucketed(
  name: str,
  values_B: jax.Array,
  t_B: jax.Array,
  *,
  buckets: int = 5,
  counted_B: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Splits the batch mean of `values_B` over equal buckets of time, on the device, as scalars that
  survive averaging over steps.

  `<name>_sum/<k>` is the sum of the values in bucket k over B (the sums add up to the mean),
  `<name>_share/<k>` the share of samples there. `bucket_means` turns their averages into the mean
  of each bucket; a mean on the device would be undefined for an empty one. `counted_B`: (B,) bool,
  samples that are in no bucket where it is false; None: all are in one.
  """
  # Who is where; t = 1 belongs to the last bucket.
  index_B = (t_B * buckets).astype(jnp.int32)
  index_B = jnp.clip(index_B, 0, buckets - 1)
  inside_BK = jax.nn.one_hot(index_B, buckets, dtype=jnp.float32)
  if counted_B is not None:
    inside_BK = inside_BK * counted_B[:, None]

  # Means over the whole batch: those of a bucket alone would divide by zero where it is empty.
  values_BK = values_B[:, None] * inside_BK
  sums_K = values_BK.mean(0)
  shares_K = inside_BK.mean(0)

  # One scalar a bucket, as metrics are averaged over steps and written.
  metrics = {}
  for k in range(buckets):
    metrics[f"{name}_sum/{k}"] = sums_K[k]
  for k in range(buckets):
    metrics[f"{name}_share/{k}"] = shares_K[k]
  return metrics


def bucket_means(metrics: Mapping[str, Any], name: str) -> dict[str, float]:
  """Mean of each time bucket, `<name>/<k>`, from (averaged) metrics of `bucketed`; buckets without
  a sample are left out.
  """
  # Sum over B by share of B is the mean of a bucket.
  means = {}
  prefix = f"{name}_sum/"
  for key, total in metrics.items():
    if not key.startswith(prefix):
      continue
    bucket = key.removeprefix(prefix)
    # Averages over steps weigh a step by how many samples it has there.
    share = float(metrics[f"{name}_share/{bucket}"])
    if share > 0:
      means[f"{name}/{bucket}"] = float(total) / share
  return means
