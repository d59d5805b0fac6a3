"""Laws of the structure autoencoder's objective."""

import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.batch import StructureBatch
from sam3d_jax.objectives import autoencoder
from tests.support.tiny_objectives import (
  KEY,
  geometry_batch,
  quick_jit,
  rows,
)


def test_dice_is_zero_for_a_perfect_and_near_one_for_a_disjoint_guess():
  occupancy = jnp.zeros((1, 4, 4, 4)).at[:, :2].set(1.0)
  sure = 50.0 * (2 * occupancy - 1)
  (perfect,) = autoencoder.dice_loss(sure, occupancy)
  (disjoint,) = autoencoder.dice_loss(-sure, occupancy)
  assert float(perfect) == pytest.approx(0.0, abs=1e-6)
  # 32 + 32 voxels, none shared.
  assert float(disjoint) == pytest.approx(1 - 1 / 65)


def test_binary_cross_entropy_equals_its_definition():
  logits = np.asarray([-2.0, 0.5, 3.0])
  y = np.asarray([0.0, 1.0, 0.0])
  p = 1 / (1 + np.exp(-logits))
  expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
  (loss,) = autoencoder.binary_cross_entropy(
    jnp.asarray(logits, jnp.float32).reshape(1, 1, 1, 3),
    jnp.asarray(y, jnp.float32).reshape(1, 1, 1, 3),
  )
  assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_binary_cross_entropy_stays_finite():
  voxel = jnp.ones((1, 1, 1, 1))
  (loss,) = autoencoder.binary_cross_entropy(1000.0 * voxel, 0.0 * voxel)
  assert float(loss) == 1000.0


def test_divergence_from_the_standard_normal_is_zero_at_it_and_half_the_squared_mean_beside_it():
  zero = jnp.zeros((1, 3))
  two = jnp.full((1, 3), 2.0)
  (at_it,) = autoencoder.kl_divergence(zero, zero)
  (beside_it,) = autoencoder.kl_divergence(two, zero)
  assert float(at_it) == 0.0
  assert float(beside_it) == pytest.approx(2.0)


def test_occupancy_metrics_count_voxels():
  # One voxel of three is shared; the second grid is empty on both sides.
  empty = jnp.zeros((2, 1, 1, 4))
  truth = empty.at[0, 0, 0, :2].set(1.0)
  guess = empty.at[0, 0, 0, 1:3].set(1.0)
  logits = jnp.where(guess > 0, 1.0, -1.0)
  metrics = autoencoder.occupancy_metrics(logits, truth)
  assert float(metrics["iou"]) == pytest.approx((1 / 3 + 1) / 2)
  assert float(metrics["accuracy"]) == pytest.approx(6 / 8)


class Halves:
  """A posterior N(1, 1) of two numbers, the first of which fills the grid."""

  @staticmethod
  def encoder(occupancy_BXYZ):
    shape = (len(occupancy_BXYZ), 2)
    return jnp.ones(shape), jnp.zeros(shape)

  @staticmethod
  def decoder(latent_BC):
    first_B111 = latent_BC[:, :1].reshape(-1, 1, 1, 1)
    return first_B111 * jnp.ones((1, 2, 2, 2))


def structure_batch() -> StructureBatch:
  occupancy = np.ones((2, 2, 2, 2), np.uint8)
  return StructureBatch(geometry_batch(2).key, occupancy)


def test_autoencoder_loss_adds_weighted_kl_and_draws_per_example():
  @quick_jit
  def run(batch):
    return autoencoder.structure_autoencoder(Halves, None, batch, KEY, kl_weight=0.5)

  batch = structure_batch()
  loss, metrics = run(batch)
  rebuilt = float(metrics["vae/reconstruction"])
  assert float(metrics["vae/kl"]) == pytest.approx(0.5)
  assert float(loss) == pytest.approx(rebuilt + 0.25, rel=1e-6)

  # The same draws for the examples alone.
  alone = []
  for index in (0, 1):
    _, metrics = run(rows(batch, [index]))
    alone.append(float(metrics["vae/reconstruction"]))
  assert rebuilt == pytest.approx(np.mean(alone), rel=1e-5)


def test_an_unknown_reconstruction_names_the_known_ones():
  with pytest.raises(ValueError, match="dice, bce"):
    autoencoder.structure_autoencoder(Halves, None, structure_batch(), KEY, reconstruction="l1")
