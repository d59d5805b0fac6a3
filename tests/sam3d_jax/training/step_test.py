"""The training step: what it changes, what it must not, and what it equals."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.errors import ConfigError
from sam3d_jax.training import optim
from sam3d_jax.training.state import ModelGraph
from sam3d_jax.training.step import GuardConfig
from tests.support.tiny_training import LR, OPTIM, Net, make, make_batch, squared_error


def equal(a, b) -> bool:
  """Whether two trees of arrays hold the same numbers."""
  return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def assert_close(a, b, *, rtol: float, atol: float) -> None:
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_the_seed_is_an_input_that_changes_the_noise():
  state, step = make()
  program = step.func  # the compiled one, with no seed bound

  def loss(seed: int) -> float:
    _, metrics = program(state, make_batch(), np.float32(OPTIM.lr), np.uint32(seed))
    return float(metrics["loss"])

  assert loss(0) == loss(0) != loss(1)
  assert program._cache_size() == 1


def test_a_step_is_adam_with_bias_correction():
  state, step = make()
  new, _ = step(state, make_batch(), LR)

  graph = ModelGraph.of(Net(nnx.Rngs(0)))
  key = jax.random.fold_in(jax.random.key(0), 0)

  def loss_of(params):
    loss, _ = squared_error(graph.merge(params), None, make_batch(), key)
    return loss

  # The first Adam step is lr * g / (|g| + eps).
  grads = jax.grad(loss_of)(state.params)
  for path, grad in grads.items():
    direction = grad / (jnp.abs(grad) + OPTIM.eps)
    expected = state.params[path] - LR * direction
    np.testing.assert_allclose(new.params[path], expected, rtol=1e-4, atol=1e-6)


def test_averages_follow_their_decay():
  state, step = make()
  new, _ = step(state, make_batch(), LR)
  assert set(new.ema) == {"0.5", "0.9"}
  for name, average in new.ema.items():
    decay = float(name)
    for path, value in average.items():
      expected = decay * state.params[path] + (1 - decay) * new.params[path]
      np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_the_whole_batch(parts):
  state, at_once = make()
  _, in_parts = make(accumulate=parts)
  a, b = state, state
  for seed in range(3):
    a, metrics_a = at_once(a, make_batch(seed), LR)
    b, metrics_b = in_parts(b, make_batch(seed), LR)
  np.testing.assert_allclose(metrics_a["norm/grad"], metrics_b["norm/grad"], rtol=1e-5)
  assert_close(a.params, b.params, rtol=1e-4, atol=1e-5)


def test_a_non_finite_gradient_changes_nothing_but_the_counters():
  state, step = make()
  state, _ = step(state, make_batch(), LR)

  bad = make_batch()._replace(x=np.full((8, 4), np.nan, np.float32))
  new, metrics = step(state, bad, LR)
  assert equal(state.params, new.params)
  assert equal(state.ema, new.ema)
  assert equal(state.opt, new.opt)
  assert int(new.step) == 2
  assert int(new.skipped) == 1
  assert int(metrics["skipped_in_a_row"]) == 1

  # The next good one ends the row.
  good, metrics = step(new, make_batch(), LR)
  assert int(good.skipped) == 1
  assert int(metrics["skipped_in_a_row"]) == 0


@pytest.mark.parametrize("warmup, skipped", [(2, 1), (9, 0)])
def test_a_spiking_gradient_is_skipped_after_the_warm_up(warmup, skipped):
  guard = GuardConfig(spike_factor=5.0, spike_warmup=warmup)
  state, step = make(guard=guard)
  for seed in range(3):
    state, _ = step(state, make_batch(seed), LR)
  spike = make_batch()._replace(y=np.full((8, 2), 1e4, np.float32))
  state, _ = step(state, spike, LR)
  assert int(state.skipped) == skipped


def test_frozen_parameters_stay_bit_for_bit_and_cost_no_state():
  cfg = optim.OptimConfig(
    lr=1e-2,
    warmup_steps=0,
    frozen="body/.*",
    ema=(0.9,),
  )
  state, step = make(cfg)
  new, _ = step(state, make_batch(), LR)
  assert set(state.frozen) == {"body/kernel", "body/bias"}
  assert equal(state.frozen, new.frozen)
  assert not equal(state.params["head/kernel"], new.params["head/kernel"])

  leaves, _ = jax.tree_util.tree_flatten_with_path((new.opt, new.ema))
  paths = [jax.tree_util.keystr(path) for path, _ in leaves]
  assert any("head" in path for path in paths)
  assert not any("body" in path for path in paths)


def test_a_pattern_that_matches_no_parameter_is_an_error():
  words = "optim.frozen = 'trunk/.*' matches no parameter.*body, head, norm"
  with pytest.raises(ConfigError, match=words):
    make(optim.OptimConfig(frozen="trunk/.*"))


def test_the_learning_rate_is_an_input_of_the_compiled_step():
  state, step = make()
  for lr in (1e-2, 1e-3, 0.0):
    new, _ = step(state, make_batch(), np.float32(lr))
  assert step.func._cache_size() == 1
  assert equal(new.params, state.params)
