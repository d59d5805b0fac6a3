"""How the examples of a batch lie in its arrays: one a row, or several objects packed into a row.

An objective is written for N examples, each with a key, a time, and whether it has a latent. What
differs is where their numbers go: a row of its own, or the slots of an object. `of(batch)` knows.

Dimension letters: N examples, B rows of one example, R rows of packed objects, K objects that a row
holds at most (N = R K, with places that no object takes), V slots of a row.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sam3d_jax.batch import PACKED
from sam3d_jax.geometry.packing import VoxelLevel
from sam3d_jax.models import sparse
from sam3d_jax.objectives import draws
from sam3d_jax.objectives.paths import Latents, VelocityModel

# (x, t, tokens, d) -> latent name -> velocity
Velocity = Callable[..., dict[str, jax.Array]]


class Rows:
  """One example a row: latents are (B, tokens, channels)."""

  def __init__(self, batch: Any):
    self.content_N2 = batch.key

  def noise(self, keys_N: jax.Array, latents: Latents) -> dict[str, jax.Array]:
    """Standard normals in the form of the latents, by the examples' keys."""
    shapes = {name: x.shape[1:] for name, x in latents.items()}
    return draws.noise(keys_N, shapes)

  def flat(self, values: jax.Array) -> jax.Array:
    """A value of each example as batches hold them, (B,), as (N,)."""
    return values

  def flat_parts(self, values: jax.Array) -> jax.Array:
    """The same of the P parts of a batch, (P, B), as (P, N)."""
    return values

  def arranged(self, values_N: jax.Array) -> jax.Array:
    """A value of each example as models take them, (B,)."""
    return values_N

  def spread(self, values_N: jax.Array) -> jax.Array:
    """A value of each example where `paths` looks for it, (B,)."""
    return values_N

  def exists(self, present: Mapping[str, jax.Array]) -> None:
    """Every row is an example: nothing to leave out."""
    del present

  def errors(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error of each example, (N,)."""
    return squared_error(prediction, target)

  def velocity(self, model: VelocityModel) -> Velocity:
    """The model's velocity; t and d as `arranged` gives them."""
    return model.velocity


class Packed:
  """Several objects a row: latents are (R, V, channels) on the slots of `batch.voxels.fine`."""

  def __init__(self, batch: Any):
    rows, objects, words = batch.key.shape
    self.shape = (rows, objects)
    self.content_N2 = batch.key.reshape(rows * objects, words)
    self.voxels = batch.voxels

  def noise(self, keys_N: jax.Array, latents: Latents) -> dict[str, jax.Array]:
    """Standard normals in the form of the latents, by the objects' keys and the coordinates."""
    channels = {name: x.shape[-1] for name, x in latents.items()}
    keys_RK = keys_N.reshape(self.shape)
    return voxel_noise(keys_RK, self.voxels.fine, channels)

  def flat(self, values: jax.Array) -> jax.Array:
    """A value of each object as batches hold them, (R, K), as (N,)."""
    return values.reshape(-1)

  def flat_parts(self, values: jax.Array) -> jax.Array:
    """The same of the P parts of a batch, (P, R, K), as (P, N)."""
    return values.reshape(len(values), -1)

  def arranged(self, values_N: jax.Array) -> jax.Array:
    """A value of each object as models take them, (R, K)."""
    return values_N.reshape(self.shape)

  def spread(self, values_N: jax.Array) -> jax.Array:
    """A value of each object at all of its slots, (R, V) fp32."""
    values_RK1 = values_N.reshape(*self.shape, 1).astype(jnp.float32)
    return sparse.per_slot(values_RK1, self.voxels.fine)[..., 0]

  def exists(self, present: Mapping[str, jax.Array]) -> jax.Array:
    """(N,) bool, whether a place of a row is taken by an object that has a latent.

    present: latent name -> (N,).
    """
    return functools.reduce(jnp.logical_or, present.values())

  def errors(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error of each object, a mean over its voxels and channels, (N,) fp32; 0 where there
    is no object.
    """
    error_RVC = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    per_voxel_RV1 = jnp.square(error_RVC).mean(-1, keepdims=True)
    # a mean of its own for each object: a large one weighs as much as a small one
    means_RK1 = sparse.object_means(per_voxel_RV1, self.voxels.fine)
    return means_RK1.reshape(-1)

  def velocity(self, model: VelocityModel) -> Velocity:
    """The model's velocity on these voxels; t and d as `arranged` gives them."""
    return functools.partial(model.velocity, voxels=self.voxels)


def of(batch: Any) -> Rows | Packed:
  """How the examples of this batch lie."""
  if type(batch) in PACKED:
    return Packed(batch)
  return Rows(batch)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Mean over everything but the batch of |prediction - target|^2, (B,), in fp32."""
  # In fp32: the differences are small against what is subtracted.
  prediction = prediction.astype(jnp.float32)
  target = target.astype(jnp.float32)
  error = prediction - target
  squared = jnp.square(error)
  flat_BN = squared.reshape(error.shape[0], -1)
  return flat_BN.mean(-1)


def voxel_noise(
  keys_RK: jax.Array, level: VoxelLevel, channels: Mapping[str, int]
) -> dict[str, jax.Array]:
  """Standard normal latents on voxels: name -> (R, V, channels), zero in the padding.

  keys_RK: one typed key an object. An object gets the same noise wherever it lies.
  """
  valid_RV1 = level.valid_RV[..., None]
  latents = {}
  for name, count in channels.items():
    # named as in draws.noise
    normal_RVC = draws.voxel_normal(
      keys_RK,
      f"noise/{name}",
      level.coords_RV3,
      level.object_RV,
      count,
    )
    latents[name] = jnp.where(valid_RV1, normal_RVC, 0.0)
  return latents
