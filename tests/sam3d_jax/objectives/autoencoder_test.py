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
  assert float(autoencoder.dice_loss(sure, occupancy)[0]) == pytest.approx(0.0, abs=1e-6)
  # 32 + 32 voxels, none shared
  assert float(autoencoder.dice_loss(-sure, occupancy)[0]) == pytest.approx(1 - 1 / 65)


def test_binary_cross_entropy_equals_its_definition_and_stays_finite():
  logits, y = (
    jnp.asarray([[-2.0, 0.5, 3.0]]).reshape(1, 1, 1, 3),
    jnp.asarray([[0.0, 1.0, 0.0]]).reshape(1, 1, 1, 3),
  )
  p = 1 / (1 + np.exp(-np.asarray(logits)))
  expected = -(np.asarray(y) * np.log(p) + (1 - np.asarray(y)) * np.log(1 - p)).mean()
  assert float(autoencoder.binary_cross_entropy(logits, y)[0]) == pytest.approx(expected, rel=1e-5)
  assert (
    float(
      autoencoder.binary_cross_entropy(1000.0 * jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))[0]
    )
    == 1000.0
  )


def test_divergence_from_the_standard_normal_is_zero_at_it_and_half_the_squared_mean_beside_it():
  zero, two = jnp.zeros((1, 3)), jnp.full((1, 3), 2.0)
  assert float(autoencoder.kl_divergence(zero, zero)[0]) == 0.0
  assert float(autoencoder.kl_divergence(two, zero)[0]) == pytest.approx(2.0)


def test_occupancy_metrics_count_voxels():
  truth = jnp.zeros((2, 1, 1, 4)).at[0, 0, 0, :2].set(1.0)
  guess = jnp.where(jnp.zeros((2, 1, 1, 4)).at[0, 0, 0, 1:3].set(1.0) > 0, 1.0, -1.0)
  metrics = autoencoder.occupancy_metrics(guess, truth)
  # the second grid is empty on both sides
  assert float(metrics["iou"]) == pytest.approx((1 / 3 + 1) / 2)
  assert float(metrics["accuracy"]) == pytest.approx(6 / 8)


def test_autoencoder_loss_adds_weighted_kl_and_draws_per_example():
  class Halves:
    encoder = staticmethod(lambda x: (jnp.ones((len(x), 2)), jnp.zeros((len(x), 2))))
    decoder = staticmethod(lambda z: z[:, :1].reshape(-1, 1, 1, 1) * jnp.ones((1, 2, 2, 2)))

  batch = StructureBatch(geometry_batch(2).key, np.ones((2, 2, 2, 2), np.uint8))
  run = quick_jit(lambda b: autoencoder.structure_autoencoder(Halves, None, b, KEY, kl_weight=0.5))
  loss, metrics = run(batch)
  assert float(metrics["vae/kl"]) == pytest.approx(0.5)
  assert float(loss) == pytest.approx(float(metrics["vae/reconstruction"]) + 0.25, rel=1e-6)
  alone = np.mean([float(run(rows(batch, [i]))[1]["vae/reconstruction"]) for i in (0, 1)])
  assert float(metrics["vae/reconstruction"]) == pytest.approx(alone, rel=1e-5)
  with pytest.raises(ValueError, match="dice, bce"):
    autoencoder.structure_autoencoder(Halves, None, batch, KEY, reconstruction="l1")
