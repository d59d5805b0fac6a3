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


def loss_of(model, batch, **config) -> float:
  loss, _ = flow_loss(model, batch, **config)
  return float(loss)


def metric_of(name: str, model, batch) -> float:
  _, metrics = flow_loss(model, batch)
  return float(metrics[name])


def gradient(model, batch, **config):
  """Gradient of the loss in the model's parameters."""
  _, grads = run_flow(model, batch, **config)
  return grads.params


def test_loss_of_a_sample_depends_neither_on_its_position_nor_on_its_neighbours():
  model, batch = tiny_model(), geometry_batch(4)
  alone = [loss_of(model, rows(batch, [index])) for index in range(4)]
  assert len({round(loss, 4) for loss in alone}) == 4
  assert loss_of(model, batch) == pytest.approx(np.mean(alone), rel=1e-5)

  mixed = rows(batch, [3, 1, 1, 3])
  expected = (alone[3] + alone[1]) / 2
  assert loss_of(model, mixed) == pytest.approx(expected, rel=1e-5)


def test_absent_latents_get_exactly_zero_gradient_even_where_their_data_is_nan():
  batch = geometry_batch(4, present={"rotation": np.zeros(4, bool)})
  batch.latents["rotation"][:] = np.nan
  (loss, metrics), grads = run_flow(tiny_model(), batch)
  assert np.isfinite(loss)
  assert float(metrics["flow/rotation"]) == 0.0
  assert float(metrics["present/rotation"]) == 0.0

  for grad in jax.tree.leaves(grads):
    assert np.all(np.isfinite(grad))
  for grad in jax.tree.leaves(grads.params["rotation"]):
    assert not np.any(grad)
  assert np.any(grads.params["scale"]["A"])


def test_each_latent_is_averaged_over_the_samples_that_have_it():
  has = np.asarray([True, False, True, False])
  model, batch = tiny_model(), geometry_batch(4, present={"scale": has})
  alone = [metric_of("flow/scale", model, rows(batch, [index])) for index in (0, 2)]
  assert metric_of("flow/scale", model, batch) == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("objective", ["flow_matching", "dpo"])
def test_parts_that_lack_a_latent_add_up_to_the_whole_batch(objective):
  """Presence is spread unevenly over the parts, one of them has no rotation at all."""
  present = {
    "rotation": np.arange(8) % 2 == 0,
    "scale": np.arange(8) < 3,
  }
  model, batch = tiny_model(), geometry_batch(8, present=present)
  if objective == "dpo":
    batch = preference_batch(8)._replace(present=batch.present)
    loss_fn = functools.partial(dpo, beta=2.0, T=1.0, latents=("rotation",))
  else:
    loss_fn = functools.partial(
      flow_matching.flow_matching,
      weights=WEIGHTS,
      drop_condition=0.5,
    )

  def loss_and_grad(model, part, key, **whole):
    def of_model(model):
      return loss_fn(model, tiny_model(seed=5), part, key, **whole)

    differentiated = jax.value_and_grad(of_model, has_aux=True)
    (loss, metrics), grads = differentiated(model)
    return metrics | {"loss": loss}, grads

  def accumulated(parts: int):
    @quick_jit
    def run():
      return step.accumulated(loss_and_grad, model, batch, KEY, parts)

    return run()

  at_once, in_parts = accumulated(1), accumulated(2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    at_once,
    in_parts,
  )


def test_what_an_absent_latent_holds_changes_nothing():
  has = np.asarray([True, True, False, True])
  batch = geometry_batch(4, present={"scale": has})
  scale = np.where(has[:, None, None], batch.latents["scale"], np.float32(9.0))
  other = batch._replace(latents={**batch.latents, "scale": scale})
  assert loss_of(tiny_model(), batch) == loss_of(tiny_model(), other)


def test_weight_of_a_latent_that_the_batch_lacks_is_an_error():
  weights = {"shape": 1.0, "translation": 1.0}
  with pytest.raises(ValueError, match="translation"):
    flow_loss(tiny_model(), geometry_batch(), weights=weights)


def test_latent_without_weight_is_not_trained():
  grads = gradient(tiny_model(), geometry_batch(), weights={"shape": 1.0})
  assert not np.any(grads["scale"]["A"])
  assert np.any(grads["shape"]["A"])


@pytest.mark.parametrize("kind", ["drop_condition", "drop_pointmap"])
def test_dropping_every_condition_leaves_no_gradient_in_the_encoder(kind):
  def encoder_gradient(probability: float) -> float:
    config = {"drop_condition": 0.0, kind: probability}
    grads = gradient(tiny_model(), geometry_batch(), **config)
    return float(grads["gain"])

  assert encoder_gradient(1.0) == 0.0
  assert encoder_gradient(0.0) != 0.0


def test_condition_is_dropped_with_the_stated_frequency_and_per_example():
  count = 2000
  content = np.stack([np.arange(count), np.zeros(count)], 1)
  keys_B = draws.example_keys(KEY, content)
  uniform_B = draws.uniform(keys_B, "drop_condition")
  tokens_B11 = jnp.ones((count, 1, 1))
  kept = flow_matching.drop_tokens(tokens_B11, uniform_B, 0.1).sum()
  assert 0.87 < float(kept) / count < 0.93


def test_training_feeds_d_zero_where_the_model_has_a_step_embedder_and_nothing_elsewhere():
  # TinyModel asserts that d is fed if and only if it can be.
  with_d = tiny_model()
  without = tiny_model(step_conditioned=False)
  assert loss_of(with_d, geometry_batch()) == loss_of(without, geometry_batch())
