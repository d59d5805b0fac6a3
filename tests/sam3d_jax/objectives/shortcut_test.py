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
  on = (jnp.abs(tokens_BSD).sum((1, 2)) > 0).astype(jnp.float32)
  return {k: v + paths.per_sample(10.0 * d_B * on, v) for k, v in x.items()}


def test_consistency_target_is_the_mean_of_two_consecutive_steps():
  x, d, t = {"a": jnp.asarray([[[2.0]]])}, jnp.asarray([0.25]), jnp.asarray([0.1])
  how = shortcut.ConsistencyTarget(guidance=0.0, guided_rows=0)
  got = shortcut.consistency_target(linear_field, x, t, d, jnp.ones((1, 2, 3)), how)["a"]
  first = 2.0 + 2.5
  second = (2.0 + 0.25 * first) + 2.5
  assert float(got[0, 0, 0]) == pytest.approx((first + second) / 2)


def test_consistency_target_can_step_along_the_plain_flow():
  x, d, t = {"a": jnp.asarray([[[2.0]]])}, jnp.asarray([0.25]), jnp.asarray([0.1])
  how = shortcut.ConsistencyTarget(guidance=0.0, guided_rows=0)
  got = shortcut.consistency_target(
    linear_field, x, t, d, jnp.ones((1, 2, 3)), how, fed_d_B=jnp.zeros(1)
  )["a"]
  assert float(got[0, 0, 0]) == pytest.approx((2.0 + 2.5) / 2)  # x, then x + d x


def test_guided_target_applies_to_the_leading_rows_and_the_chosen_latents():
  x = {"a": jnp.zeros((2, 1, 1)), "b": jnp.zeros((2, 1, 1))}
  how = shortcut.ConsistencyTarget(guidance=2.0, guided_latents=("a",), guided_rows=1)
  got = shortcut.guided(linear_field, x, jnp.zeros(2), jnp.ones((2, 2, 3)), jnp.full(2, 0.1), how)
  # conditional 1, unconditional 0: (1 + 2) 1 - 2 * 0
  np.testing.assert_allclose(got["a"][:, 0, 0], [3.0, 1.0])
  np.testing.assert_allclose(got["b"][:, 0, 0], [1.0, 1.0])


@pytest.mark.parametrize("levels", ["flow", "all"])
def test_guidance_enters_where_targets_step_along_the_flow_and_is_inherited_from_there(
  monkeypatch, levels
):
  seen = {}
  whole = shortcut.consistency_target
  monkeypatch.setattr(
    shortcut,
    "consistency_target",
    lambda *args: seen.update(how=args[-2], fed=args[-1]) or whole(*args),
  )
  model, batch = tiny_model(), geometry_batch(16)
  shortcut.shortcut(
    model,
    None,
    batch,
    KEY,
    weights=WEIGHTS,
    consistency_fraction=1.0,
    step_sizes=(0.25, 0.5),
    guidance=2.0,
    guided_levels=levels,
  )
  fed = np.asarray(seen["fed"])
  assert set(fed) == {0.0, 0.5}
  expected = np.where(fed == 0.0, 2.0, 0.0) if levels == "flow" else 2.0
  np.testing.assert_array_equal(
    np.broadcast_to(seen["how"].guidance, fed.shape), np.broadcast_to(expected, fed.shape)
  )


def test_no_gradient_flows_through_the_target():
  x = {"a": jnp.ones((1, 1, 1))}
  how = shortcut.ConsistencyTarget(guidance=1.0)
  grad = jax.grad(
    lambda s: shortcut.consistency_target(
      lambda *a: jax.tree.map(lambda v: s * v, linear_field(*a)),
      x,
      jnp.zeros(1),
      jnp.ones(1) / 4,
      jnp.ones((1, 1, 3)),
      how,
    )["a"].sum()
  )(1.0)
  assert float(grad) == 0.0


def test_without_consistency_rows_distillation_is_flow_matching():
  model, batch = tiny_model(), geometry_batch()
  (loss, _), _ = run_shortcut(model, batch, consistency_fraction=0.0, drop_condition=0.5)
  expected, _ = flow_loss(model, batch, drop_condition=0.5)
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_consistency_rows_are_a_static_share_spread_over_the_batch():
  np.testing.assert_array_equal(shortcut.spread_rows(8, 0.25), [3, 7])
  assert len(shortcut.spread_rows(384, 0.25)) == 96 and len(shortcut.spread_rows(6, 0.25)) == 1
  np.testing.assert_array_equal(shortcut.take(jnp.arange(8), np.asarray([1, 4, 7])), [1, 4, 7])
  np.testing.assert_array_equal(shortcut.take(jnp.arange(8), np.asarray([1, 2, 7])), [1, 2, 7])
  np.testing.assert_array_equal(
    shortcut.take(jnp.arange(8), np.asarray([0, 1, 2, 4, 5, 6])), [0, 1, 2, 4, 5, 6]
  )
  assert shortcut.take(jnp.arange(8), np.asarray([], int)).shape == (0,)


def test_step_embedding_is_trained_by_consistency_rows_only():
  _, flow_only = run_shortcut(
    tiny_model(), geometry_batch(), consistency_fraction=0.0, drop_condition=0.5
  )
  _, mixed = run_shortcut(tiny_model(), geometry_batch(), consistency_fraction=0.5)
  assert not np.any(np.asarray(flow_only.params["shape"]["e"])) and np.any(
    np.asarray(mixed.params["shape"]["e"])
  )


def test_consistency_steps_stay_on_the_path():
  seen = {}

  class Spy(TinyModel):
    def velocity(self, x, t_B, tokens_BSD, d_B=None):
      seen.setdefault("main", (t_B, d_B))
      return super().velocity(x, t_B, tokens_BSD, d_B)

  model = Spy(tiny_model().params)

  def feed(batch):
    shortcut.shortcut(
      model,
      None,
      batch,
      KEY,
      weights=WEIGHTS,
      consistency_fraction=1.0,
      time_mean=3.0,
      step_sizes=(0.5, 0.25, 0.125),
    )
    return seen["main"]

  t_B, double_d_B = (np.asarray(a) for a in quick_jit(feed)(geometry_batch(8)))
  assert np.all(t_B + double_d_B <= 1.0 + 1e-6) and len(np.unique(double_d_B)) > 1


def test_distillation_refuses_models_without_step_embedder_and_batches_without_a_consistency_row():
  with pytest.raises(ValueError, match="step embedder"):
    run_shortcut(tiny_model(step_conditioned=False), geometry_batch())
  with pytest.raises(ValueError, match="consistency row"):
    run_shortcut(tiny_model(), geometry_batch(2))
