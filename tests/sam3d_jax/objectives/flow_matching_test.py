"""Laws of flow matching: what an example, a latent and its absence count, and what is dropped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.objectives import draws, flow_matching
from sam3d_jax.objectives.dpo import dpo
from sam3d_jax.training import step
from tests.support.tiny_objectives import (
  KEY,
  WEIGHTS,
  flow_loss,
  geometry_batch,
  preference_batch,
  quick_jit,
  rows,
  run_flow,
  tiny_model,
)


def test_loss_of_a_sample_depends_neither_on_its_position_nor_on_its_neighbours():
  model, batch = tiny_model(), geometry_batch(4)
  alone = [float(flow_loss(model, rows(batch, [i]))[0]) for i in range(4)]
  assert len({round(a, 4) for a in alone}) == 4
  assert float(flow_loss(model, batch)[0]) == pytest.approx(np.mean(alone), rel=1e-5)
  mixed = rows(batch, [3, 1, 1, 3])
  assert float(flow_loss(model, mixed)[0]) == pytest.approx((alone[3] + alone[1]) / 2, rel=1e-5)


def test_absent_latents_get_exactly_zero_gradient_even_where_their_data_is_nan():
  batch = geometry_batch(4, present={"rotation": np.zeros(4, bool)})
  batch.latents["rotation"][:] = np.nan
  (loss, metrics), grads = run_flow(tiny_model(), batch)
  assert (
    np.isfinite(loss)
    and float(metrics["flow/rotation"]) == 0.0
    and float(metrics["present/rotation"]) == 0.0
  )
  assert all(not np.any(np.asarray(g)) for g in jax.tree.leaves(grads.params["rotation"]))
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  assert np.any(np.asarray(grads.params["scale"]["A"]))


def test_each_latent_is_averaged_over_the_samples_that_have_it():
  model, batch = (
    tiny_model(),
    geometry_batch(4, present={"scale": np.asarray([True, False, True, False])}),
  )
  alone = [float(flow_loss(model, rows(batch, [i]))[1]["flow/scale"]) for i in (0, 2)]
  assert float(flow_loss(model, batch)[1]["flow/scale"]) == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("objective", ["flow_matching", "dpo"])
def test_parts_that_lack_a_latent_add_up_to_the_whole_batch(objective):
  """Presence is spread unevenly over the parts, one of them has no rotation at all."""
  present = {"rotation": np.arange(8) % 2 == 0, "scale": np.arange(8) < 3}
  model, batch = tiny_model(), geometry_batch(8, present=present)
  if objective == "dpo":
    batch = preference_batch(8)._replace(present=batch.present)
    loss = functools.partial(dpo, beta=2.0, T=1.0, latents=("rotation",))
  else:
    loss = functools.partial(flow_matching.flow_matching, weights=WEIGHTS, drop_condition=0.5)

  def loss_and_grad(m, part, key, **whole):
    (value, metrics), grads = jax.value_and_grad(
      lambda m: loss(m, tiny_model(seed=5), part, key, **whole), has_aux=True
    )(m)
    return metrics | {"loss": value}, grads

  at_once, in_parts = (
    quick_jit(lambda parts=parts: step.accumulated(loss_and_grad, model, batch, KEY, parts))()
    for parts in (1, 2)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), at_once, in_parts
  )


def test_what_an_absent_latent_holds_changes_nothing():
  has = np.asarray([True, True, False, True])
  batch = geometry_batch(4, present={"scale": has})
  scale = np.where(has[:, None, None], batch.latents["scale"], np.float32(9.0))
  other = batch._replace(latents={**batch.latents, "scale": scale})
  assert float(flow_loss(tiny_model(), batch)[0]) == float(flow_loss(tiny_model(), other)[0])


def test_weight_of_a_latent_that_the_batch_lacks_is_an_error():
  with pytest.raises(ValueError, match="translation"):
    flow_loss(tiny_model(), geometry_batch(), weights={"shape": 1.0, "translation": 1.0})


def test_latent_without_weight_is_not_trained():
  _, grads = run_flow(tiny_model(), geometry_batch(), weights={"shape": 1.0})
  assert not np.any(np.asarray(grads.params["scale"]["A"])) and np.any(
    np.asarray(grads.params["shape"]["A"])
  )


@pytest.mark.parametrize("kind", ["drop_condition", "drop_pointmap"])
def test_dropping_every_condition_leaves_no_gradient_in_the_encoder(kind):
  grad = lambda p: run_flow(tiny_model(), geometry_batch(), **{"drop_condition": 0.0, kind: p})[
    1
  ].params["gain"]
  assert float(grad(1.0)) == 0.0 and float(grad(0.0)) != 0.0


def test_condition_is_dropped_with_the_stated_frequency_and_per_example():
  uniform_B = draws.uniform(
    draws.example_keys(KEY, np.stack([np.arange(2000), np.zeros(2000)], 1)), "drop_condition"
  )
  kept = flow_matching.drop_tokens(jnp.ones((2000, 1, 1)), uniform_B, 0.1).sum()
  assert 0.87 < float(kept) / 2000 < 0.93


def test_training_feeds_d_zero_where_the_model_has_a_step_embedder_and_nothing_elsewhere():
  # TinyModel asserts that d is fed if and only if it can be
  with_d, without = tiny_model(), tiny_model(step_conditioned=False)
  assert float(flow_loss(with_d, geometry_batch())[0]) == float(
    flow_loss(without, geometry_batch())[0]
  )
