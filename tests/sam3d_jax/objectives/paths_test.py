"""Laws of the path from noise to data and of its times."""

import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.objectives import paths
from tests.support.tiny_objectives import latents


def test_path_starts_at_noise_ends_at_data_and_its_slope_is_the_target():
  rng = np.random.default_rng(0)
  noise, data = latents(rng, 2), latents(rng, 2)
  x0, x1 = noise["shape"], data["shape"]

  def at(t):
    t_B = jnp.asarray([t, t])
    x_t = paths.interpolate(noise, data, t_B, sigma_min=0.1)
    return x_t["shape"]

  np.testing.assert_allclose(at(0.0), x0, rtol=1e-6)
  np.testing.assert_allclose(at(1.0), x1 + 0.1 * x0, rtol=1e-5, atol=1e-6)

  slope = (at(0.75) - at(0.25)) / 0.5
  v = paths.target_velocity(noise, data, sigma_min=0.1)
  np.testing.assert_allclose(slope, v["shape"], rtol=1e-5, atol=1e-5)


def test_lognormal_time_is_the_sigmoid_of_a_shifted_normal():
  normal_B = jnp.asarray([0.0, 1.0])
  t_B = paths.lognormal_time(normal_B, mean=-1.0, std=2.0)
  expected = [1 / (1 + np.e), 1 / (1 + np.exp(-1.0))]
  np.testing.assert_allclose(t_B, expected, rtol=1e-6)


def test_time_buckets_add_up_to_the_mean_and_empty_ones_are_left_out():
  values_B = jnp.asarray([1.0, 3.0, 8.0])
  t_B = jnp.asarray([0.05, 0.1, 1.0])
  metrics = paths.bucketed("loss", values_B, t_B, buckets=5)
  total = sum(metrics[f"loss_sum/{bucket}"] for bucket in range(5))
  assert float(total) == pytest.approx(4.0)
  means = paths.bucket_means(metrics, "loss")
  assert means == pytest.approx({"loss/0": 2.0, "loss/4": 8.0})


def test_unknown_time_weight_names_the_known_ones():
  with pytest.raises(ValueError, match="uniform, noisy, clean"):
    paths.time_weight("late", jnp.zeros(2))


@pytest.mark.parametrize("name", paths.TIME_WEIGHTS)
def test_time_weights_average_to_one_over_uniform_time(name):
  t = (np.arange(1000) + 0.5) / 1000
  weights = paths.time_weight(name, jnp.asarray(t))
  assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
