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


def swapped(batch):
  return batch._replace(win=batch.lose, lose=batch.win)


def test_at_the_reference_the_loss_is_log_two_and_the_margin_exactly_zero():
  (loss, metrics), _ = run_dpo(tiny_model(), tiny_model(), preference_batch())
  assert float(loss) == pytest.approx(np.log(2.0), rel=1e-7)
  assert float(metrics["dpo/margin"]) == 0.0 and float(metrics["dpo/reward_win"]) == 0.0


def test_swapping_winner_and_loser_at_the_reference_flips_the_gradient():
  (_, _), grads = run_dpo(tiny_model(), tiny_model(), preference_batch())
  (_, _), flipped = run_dpo(tiny_model(), tiny_model(), swapped(preference_batch()))
  a, b = np.asarray(grads.params["shape"]["A"]), np.asarray(flipped.params["shape"]["A"])
  assert np.abs(a).max() > 1e-3
  np.testing.assert_allclose(a, -b, rtol=1e-4, atol=1e-6)


def test_a_gradient_step_raises_the_margin():
  model, batch = tiny_model(), preference_batch()
  (_, _), grads = run_dpo(model, tiny_model(), batch)
  (loss, metrics), _ = run_dpo(
    jax.tree.map(lambda p, g: p - 0.01 * g, model, grads), tiny_model(), batch
  )
  assert float(metrics["dpo/margin"]) > 0.0 and float(loss) < np.log(2.0)


def test_preference_loss_equals_the_hand_computed_value():
  ones = jnp.ones(1)
  loss, win, lose = preference_terms(0.5 * ones, 0.8 * ones, 0.7 * ones, 0.6 * ones, 10.0 * ones)
  # -10 (0.5 - 0.7), -10 (0.8 - 0.6)
  assert float(win[0]) == pytest.approx(2.0) and float(lose[0]) == pytest.approx(-2.0)
  assert float(loss[0]) == pytest.approx(np.log1p(np.exp(-4.0)), rel=1e-5)


def test_equal_candidates_have_zero_margin_because_they_share_time_and_noise():
  batch = preference_batch()
  (_, metrics), _ = run_dpo(tiny_model(3), tiny_model(), batch._replace(lose=batch.win))
  assert float(metrics["dpo/margin"]) == 0.0 and float(metrics["dpo/reward_win"]) != 0.0


def test_only_the_chosen_latents_are_aligned_and_the_reference_gets_no_gradient():
  (_, _), grads = run_dpo(tiny_model(), tiny_model(), preference_batch(), latents=("shape",))
  assert not np.any(np.asarray(grads.params["rotation"]["A"]))
  shared = quick_jit(jax.grad(lambda m: dpo(m, m, preference_batch(), KEY, beta=0.01)[0]))(
    tiny_model()
  )
  np.testing.assert_allclose(shared.params["shape"]["A"], grads.params["shape"]["A"], rtol=1e-5)


def test_pairs_without_the_latent_do_not_count():
  model, batch = tiny_model(3), preference_batch(3)
  alone = [float(run_dpo(model, tiny_model(), rows(batch, [i, i, i]))[0][0]) for i in (0, 1)]
  batch.present["shape"] = np.asarray([True, True, False])
  batch.win["shape"][2] = np.nan
  assert float(run_dpo(model, tiny_model(), batch)[0][0]) == pytest.approx(np.mean(alone), rel=1e-5)


def test_beta_and_time_weight_scale_the_margin():
  margin = lambda **c: float(
    run_dpo(tiny_model(3), tiny_model(), rows(preference_batch(), [0, 0, 0]), **c)[0][1][
      "dpo/margin"
    ]
  )
  assert margin(beta=0.02) == pytest.approx(2 * margin(beta=0.01), rel=1e-5)
  t = float(draws.uniform(draws.example_keys(KEY, preference_batch().key[:1]), "time")[0])
  assert margin(time_weight="clean") == pytest.approx(2 * t * margin(), rel=1e-5)


def test_alignment_without_reference_is_an_error():
  with pytest.raises(ValueError, match="reference"):
    dpo(tiny_model(), None, preference_batch(), KEY, beta=1.0)
