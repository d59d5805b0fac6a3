"""Laws of preference alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.objectives import draws
from sam3d_jax.objectives.dpo import dpo, preference_terms
from tests.support.tiny_objectives import (
  KEY,
  preference_batch,
  quick_jit,
  rows,
  run_dpo,
  tiny_model,
)


def aligned(model, batch, **config):
  """(loss, metrics) against the untrained reference."""
  result, _ = run_dpo(model, tiny_model(), batch, **config)
  return result


def gradient(model, batch, **config):
  """Gradient of the loss in the model's parameters."""
  _, grads = run_dpo(model, tiny_model(), batch, **config)
  return grads.params


def test_at_the_reference_the_loss_is_log_two_and_the_margin_exactly_zero():
  loss, metrics = aligned(tiny_model(), preference_batch())
  assert float(loss) == pytest.approx(np.log(2.0), rel=1e-7)
  assert float(metrics["dpo/margin"]) == 0.0
  assert float(metrics["dpo/reward_win"]) == 0.0


def test_swapping_winner_and_loser_at_the_reference_flips_the_gradient():
  batch = preference_batch()
  swapped = batch._replace(win=batch.lose, lose=batch.win)
  grad = np.asarray(gradient(tiny_model(), batch)["shape"]["A"])
  flipped = np.asarray(gradient(tiny_model(), swapped)["shape"]["A"])
  assert np.abs(grad).max() > 1e-3
  np.testing.assert_allclose(grad, -flipped, rtol=1e-4, atol=1e-6)


def test_a_gradient_step_raises_the_margin():
  model, batch = tiny_model(), preference_batch()
  _, grads = run_dpo(model, tiny_model(), batch)
  moved = jax.tree.map(lambda p, g: p - 0.01 * g, model, grads)
  loss, metrics = aligned(moved, batch)
  assert float(metrics["dpo/margin"]) > 0.0
  assert float(loss) < np.log(2.0)


def test_preference_loss_equals_the_hand_computed_value():
  ones = jnp.ones(1)
  loss, win, lose = preference_terms(
    win=0.5 * ones,
    lose=0.8 * ones,
    ref_win=0.7 * ones,
    ref_lose=0.6 * ones,
    scale_B=10.0 * ones,
  )
  # -10 (0.5 - 0.7), -10 (0.8 - 0.6)
  assert float(win[0]) == pytest.approx(2.0)
  assert float(lose[0]) == pytest.approx(-2.0)
  assert float(loss[0]) == pytest.approx(np.log1p(np.exp(-4.0)), rel=1e-5)


def test_equal_candidates_have_zero_margin_because_they_share_time_and_noise():
  batch = preference_batch()
  equal = batch._replace(lose=batch.win)
  _, metrics = aligned(tiny_model(3), equal)
  assert float(metrics["dpo/margin"]) == 0.0
  assert float(metrics["dpo/reward_win"]) != 0.0


def test_only_the_chosen_latents_are_aligned():
  grads = gradient(tiny_model(), preference_batch(), latents=("shape",))
  assert not np.any(grads["rotation"]["A"])
  assert np.any(grads["shape"]["A"])


def test_the_reference_gets_no_gradient():
  def loss_of_both(model):
    loss, _ = dpo(model, model, preference_batch(), KEY, beta=0.01)
    return loss

  grads = gradient(tiny_model(), preference_batch(), latents=("shape",))
  shared = quick_jit(jax.grad(loss_of_both))(tiny_model()).params
  np.testing.assert_allclose(shared["shape"]["A"], grads["shape"]["A"], rtol=1e-5)


def test_pairs_without_the_latent_do_not_count():
  model, batch = tiny_model(3), preference_batch(3)

  # Three rows each, so that one compiled program serves all.
  alone = []
  for index in (0, 1):
    loss, _ = aligned(model, rows(batch, [index] * 3))
    alone.append(float(loss))

  batch.present["shape"] = np.asarray([True, True, False])
  batch.win["shape"][2] = np.nan
  loss, _ = aligned(model, batch)
  assert float(loss) == pytest.approx(np.mean(alone), rel=1e-5)


def margin(**config) -> float:
  """Of one pair."""
  pair = rows(preference_batch(), [0, 0, 0])
  _, metrics = aligned(tiny_model(3), pair, **config)
  return float(metrics["dpo/margin"])


def test_beta_scales_the_margin():
  assert margin(beta=0.02) == pytest.approx(2 * margin(beta=0.01), rel=1e-5)


def test_time_weight_scales_the_margin():
  keys_B = draws.example_keys(KEY, preference_batch().key[:1])
  t = float(draws.uniform(keys_B, "time")[0])
  assert margin(time_weight="clean") == pytest.approx(2 * t * margin(), rel=1e-5)


def test_alignment_without_reference_is_an_error():
  with pytest.raises(ValueError, match="reference"):
    dpo(tiny_model(), None, preference_batch(), KEY, beta=1.0)
