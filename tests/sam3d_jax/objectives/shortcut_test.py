"""Laws of shortcut distillation: its targets, its rows, its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.objectives import paths, shortcut
from tests.support.tiny_objectives import (
  KEY,
  WEIGHTS,
  TinyModel,
  flow_loss,
  geometry_batch,
  quick_jit,
  run_shortcut,
  tiny_model,
)


def linear_field(x, t_B, tokens_BSD, d_B):
  """v = x + 10 d where there is a condition, x where it is zeroed."""
  conditioned_B = jnp.abs(tokens_BSD).sum((1, 2)) > 0
  added_B = 10.0 * d_B * conditioned_B.astype(jnp.float32)
  return {name: v + paths.per_sample(added_B, v) for name, v in x.items()}


def unguided_target(**fed) -> float:
  """Of one number that starts at 2 and takes steps of 0.25."""
  target = shortcut.consistency_target(
    linear_field,
    {"a": jnp.asarray([[[2.0]]])},
    t_B=jnp.asarray([0.1]),
    d_B=jnp.asarray([0.25]),
    tokens_BSD=jnp.ones((1, 2, 3)),
    how=shortcut.ConsistencyTarget(guidance=0.0, guided_rows=0),
    **fed,
  )
  return float(target["a"][0, 0, 0])


def test_consistency_target_is_the_mean_of_two_consecutive_steps():
  first = 2.0 + 2.5
  second = (2.0 + 0.25 * first) + 2.5
  assert unguided_target() == pytest.approx((first + second) / 2)


def test_consistency_target_can_step_along_the_plain_flow():
  first = 2.0
  second = 2.0 + 0.25 * first
  assert unguided_target(fed_d_B=jnp.zeros(1)) == pytest.approx((first + second) / 2)


def test_guided_target_applies_to_the_leading_rows_and_the_chosen_latents():
  zeros = jnp.zeros((2, 1, 1))
  how = shortcut.ConsistencyTarget(
    guidance=2.0,
    guided_latents=("a",),
    guided_rows=1,
  )
  velocity = shortcut.guided(
    linear_field,
    {"a": zeros, "b": zeros},
    t_B=jnp.zeros(2),
    tokens_BSD=jnp.ones((2, 2, 3)),
    d_B=jnp.full(2, 0.1),
    how=how,
  )
  # Conditional 1, unconditional 0: (1 + 2) 1 - 2 * 0.
  np.testing.assert_allclose(velocity["a"][:, 0, 0], [3.0, 1.0])
  np.testing.assert_allclose(velocity["b"][:, 0, 0], [1.0, 1.0])


@pytest.mark.parametrize("levels", ["flow", "all"])
def test_guidance_enters_where_targets_step_along_the_flow_and_is_inherited_from_there(
  monkeypatch, levels
):
  seen = {}
  target = shortcut.consistency_target

  def spy(*args):
    *_, seen["how"], seen["fed"] = args
    return target(*args)

  monkeypatch.setattr(shortcut, "consistency_target", spy)
  shortcut.shortcut(
    tiny_model(),
    None,
    geometry_batch(16),
    KEY,
    weights=WEIGHTS,
    consistency_fraction=1.0,
    step_sizes=(0.25, 0.5),
    guidance=2.0,
    guided_levels=levels,
  )

  # The smaller step is told to be 0; both were drawn.
  fed = np.asarray(seen["fed"])
  assert set(fed) == {0.0, 0.5}
  expected = np.full(fed.shape, 2.0)
  if levels == "flow":
    expected[fed != 0.0] = 0.0
  guidance = np.broadcast_to(seen["how"].guidance, fed.shape)
  np.testing.assert_array_equal(guidance, expected)


def test_no_gradient_flows_through_the_target():
  def target_of(factor):
    def field(*args):
      return jax.tree.map(lambda v: factor * v, linear_field(*args))

    target = shortcut.consistency_target(
      field,
      {"a": jnp.ones((1, 1, 1))},
      t_B=jnp.zeros(1),
      d_B=jnp.ones(1) / 4,
      tokens_BSD=jnp.ones((1, 1, 3)),
      how=shortcut.ConsistencyTarget(guidance=1.0),
    )
    return target["a"].sum()

  assert float(jax.grad(target_of)(1.0)) == 0.0


def test_without_consistency_rows_distillation_is_flow_matching():
  model, batch = tiny_model(), geometry_batch()
  (loss, _), _ = run_shortcut(model, batch, consistency_fraction=0.0, drop_condition=0.5)
  expected, _ = flow_loss(model, batch, drop_condition=0.5)
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_consistency_rows_are_a_static_share_spread_over_the_batch():
  np.testing.assert_array_equal(shortcut.spread_rows(8, 0.25), [3, 7])
  assert len(shortcut.spread_rows(384, 0.25)) == 96
  assert len(shortcut.spread_rows(6, 0.25)) == 1


@pytest.mark.parametrize("rows", [[1, 4, 7], [1, 2, 7], [3, 7], [0, 1, 2, 4, 5, 6], []])
def test_rows_are_taken_with_whatever_period_they_have(rows):
  taken = shortcut.take(jnp.arange(8), np.asarray(rows, int))
  np.testing.assert_array_equal(taken, rows)


def test_step_embedding_is_trained_by_consistency_rows_only():
  def embedder_gradient(**config):
    _, grads = run_shortcut(tiny_model(), geometry_batch(), **config)
    return grads.params["shape"]["e"]

  assert not np.any(embedder_gradient(consistency_fraction=0.0, drop_condition=0.5))
  assert np.any(embedder_gradient(consistency_fraction=0.5))


def test_consistency_steps_stay_on_the_path():
  seen = {}

  class Spy(TinyModel):
    """Keeps what the prediction, which comes first, is fed."""

    def velocity(self, x, t_B, tokens_BSD, d_B=None):
      seen.setdefault("prediction", (t_B, d_B))
      return super().velocity(x, t_B, tokens_BSD, d_B)

  @quick_jit
  def feed(batch):
    shortcut.shortcut(
      Spy(tiny_model().params),
      None,
      batch,
      KEY,
      weights=WEIGHTS,
      consistency_fraction=1.0,
      time_mean=3.0,
      step_sizes=(0.5, 0.25, 0.125),
    )
    return seen["prediction"]

  t_B, double_d_B = feed(geometry_batch(8))
  end_B = np.asarray(t_B) + np.asarray(double_d_B)
  assert np.all(end_B <= 1.0 + 1e-6)
  assert len(np.unique(double_d_B)) > 1


def test_distillation_refuses_models_without_step_embedder():
  with pytest.raises(ValueError, match="step embedder"):
    run_shortcut(tiny_model(step_conditioned=False), geometry_batch())


def test_distillation_refuses_batches_without_a_consistency_row():
  with pytest.raises(ValueError, match="consistency row"):
    run_shortcut(tiny_model(), geometry_batch(2))
