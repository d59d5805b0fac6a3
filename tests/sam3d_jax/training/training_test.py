"""The training step: what it changes, what it must not, and what it equals."""

import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sam3d_jax.errors import ConfigError
from sam3d_jax.training import hardware, loop, optim
from sam3d_jax.training.state import ModelGraph
from sam3d_jax.training.step import GuardConfig
from tests.support.tiny_training import LR, OPTIM, Net, make, make_batch, squared_error


def test_the_seed_is_an_input_that_changes_the_noise():
  state, step = make()
  program = step.func  # the compiled one, with no seed bound
  losses = [
    float(program(state, make_batch(), np.float32(OPTIM.lr), np.uint32(seed))[1]["loss"])
    for seed in (0, 1, 0)
  ]
  assert losses[0] == losses[2] != losses[1]


def equal(a, b):
  return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_a_step_is_adam_with_bias_correction():
  state, step = make()
  model = ModelGraph.of(Net(nnx.Rngs(0)))
  key = jax.random.fold_in(jax.random.key(0), 0)
  grads = jax.grad(lambda p: squared_error(model.merge(p), None, make_batch(), key)[0])(
    state.params
  )
  new, _ = step(state, make_batch(), LR)
  for path, grad in grads.items():  # the first Adam step is lr * g / (|g| + eps)
    expected = state.params[path] - LR * grad / (jnp.abs(grad) + OPTIM.eps)
    np.testing.assert_allclose(new.params[path], expected, rtol=1e-4, atol=1e-6)


def test_averages_follow_their_decay():
  state, step = make()
  new, _ = step(state, make_batch(), LR)
  for name, average in new.ema.items():
    expected = jax.tree.map(
      lambda old, p, d=float(name): d * old + (1 - d) * p, state.params, new.params
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), average, expected
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_the_whole_batch(parts):
  state, whole = make()
  _, accumulated = make(accumulate=parts)
  a, b = state, state
  for i in range(3):
    a, metrics_a = whole(a, make_batch(i), LR)
    b, metrics_b = accumulated(b, make_batch(i), LR)
  np.testing.assert_allclose(metrics_a["norm/grad"], metrics_b["norm/grad"], rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a.params, b.params
  )


def test_a_non_finite_gradient_changes_nothing_but_the_counters():
  state, step = make()
  state, _ = step(state, make_batch(), LR)
  bad = make_batch()._replace(x=np.full((8, 4), np.nan, np.float32))
  new, metrics = step(state, bad, LR)
  assert equal((state.params, state.ema, state.opt), (new.params, new.ema, new.opt))
  assert (int(new.step), int(new.skipped), int(metrics["skipped_in_a_row"])) == (2, 1, 1)
  good, metrics = step(new, make_batch(), LR)
  assert int(good.skipped) == 1 and int(metrics["skipped_in_a_row"]) == 0


def test_a_spiking_gradient_is_skipped_after_the_warm_up():
  spike = make_batch()._replace(y=np.full((8, 2), 1e4, np.float32))
  for guard, skipped in (
    (GuardConfig(spike_factor=5.0, spike_warmup=2), 1),
    (GuardConfig(spike_factor=5.0, spike_warmup=9), 0),
  ):
    state, step = make(guard=guard)
    for i in range(3):
      state, _ = step(state, make_batch(i), LR)
    state, _ = step(state, spike, LR)
    assert int(state.skipped) == skipped


def test_frozen_parameters_stay_bit_for_bit_and_cost_no_state():
  cfg = optim.OptimConfig(lr=1e-2, warmup_steps=0, frozen="body/.*", ema=(0.9,))
  state, step = make(cfg)
  new, _ = step(state, make_batch(), LR)
  assert set(state.frozen) == {"body/kernel", "body/bias"} and equal(state.frozen, new.frozen)
  assert not equal(state.params["head/kernel"], new.params["head/kernel"])
  paths = {
    jax.tree_util.keystr(p, simple=True, separator="/")
    for p, _ in jax.tree_util.tree_flatten_with_path((new.opt, new.ema))[0]
  }
  assert not any("body" in p for p in paths)


def test_a_pattern_that_matches_no_parameter_is_an_error():
  with pytest.raises(
    ConfigError, match="optim.frozen = 'trunk/.*' matches no parameter.*body, head, norm"
  ):
    make(optim.OptimConfig(frozen="trunk/.*"))


def test_the_learning_rate_is_an_input_of_the_compiled_step():
  state, step = make()
  for lr in (1e-2, 1e-3, 0.0):
    new, _ = step(state, make_batch(), np.float32(lr))
  assert step.func._cache_size() == 1
  assert equal(new.params, state.params)


def test_schedule_warms_up_linearly_and_ends_where_it_should():
  cfg = optim.OptimConfig(lr=2.0, warmup_steps=10, schedule="cosine", final_lr_fraction=0.1)
  rates = [optim.learning_rate(cfg, s, 110) for s in range(111)]
  np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
  np.testing.assert_allclose([rates[60], rates[110]], [2.0 * (0.1 + 0.9 * 0.5), 0.2])
  assert optim.learning_rate(optim.OptimConfig(lr=2.0, warmup_steps=0), 10**6, 1) == 2.0


def test_clipping_bounds_the_norm_that_adam_sees():
  cfg = optim.OptimConfig(clip_norm=1e-3)
  tx = optim.make_optimizer(cfg)
  grads = {"a": jnp.array([3.0, 4.0])}
  _, opt = tx.update(grads, tx.init(grads), grads)
  moments = optax.tree.get(opt, "mu")
  np.testing.assert_allclose(moments["a"], (1 - cfg.b1) * 1e-3 * jnp.array([0.6, 0.8]), rtol=1e-5)


def test_speed_is_reported_by_chip_and_against_its_peak_only_where_that_is_known(monkeypatch):
  job = types.SimpleNamespace(mesh=jax.make_mesh((1,), ("data",)), flops_per_sample=2e6)
  kind = job.mesh.devices.flat[0].device_kind
  monkeypatch.delitem(hardware.CHIPS, kind, raising=False)  # tests may run on an accelerator
  assert loop.speeds(job, 30.0) == {
    "time/samples_per_second": 30.0,
    "time/samples_per_second_per_chip": 30.0,
  }
  monkeypatch.setitem(
    hardware.CHIPS, kind, hardware.Chip(peak=1e9, memory=1e9, bandwidth=1e9, link=1e9, network=1e9)
  )
  assert loop.speeds(job, 30.0)["time/mfu"] == pytest.approx(30.0 * 2e6 / 1e9)
  job.mesh = types.SimpleNamespace(size=4, devices=job.mesh.devices)
  assert loop.speeds(job, 30.0)["time/mfu"] == pytest.approx(30.0 * 2e6 / 1e9 / 4)
