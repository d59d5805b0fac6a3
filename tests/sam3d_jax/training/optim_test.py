"""Schedules and optimisers by themselves."""

import jax.numpy as jnp
import numpy as np
import optax

from sam3d_jax.training import optim


def test_schedule_warms_up_linearly_and_ends_where_it_should():
  cfg = optim.OptimConfig(
    lr=2.0,
    warmup_steps=10,
    schedule="cosine",
    final_lr_fraction=0.1,
  )
  rates = [optim.learning_rate(cfg, step, 110) for step in range(111)]
  warm_up = 2.0 * np.arange(1, 11) / 10
  np.testing.assert_allclose(rates[:10], warm_up)

  # Half-way between the two ends, and at the end.
  middle = 2.0 * (0.1 + 0.9 * 0.5)
  np.testing.assert_allclose(rates[60], middle)
  np.testing.assert_allclose(rates[110], 2.0 * 0.1)


def test_a_constant_schedule_without_warm_up_is_constant():
  cfg = optim.OptimConfig(lr=2.0, warmup_steps=0)
  assert optim.learning_rate(cfg, 0, 1) == 2.0
  assert optim.learning_rate(cfg, 10**6, 1) == 2.0


def test_clipping_bounds_the_norm_that_adam_sees():
  cfg = optim.OptimConfig(clip_norm=1e-3)
  tx = optim.make_optimizer(cfg)
  grads = {"a": jnp.array([3.0, 4.0])}
  _, opt = tx.update(grads, tx.init(grads), grads)

  clipped = 1e-3 * jnp.array([0.6, 0.8])
  moments = optax.tree.get(opt, "mu")
  np.testing.assert_allclose(moments["a"], (1 - cfg.b1) * clipped, rtol=1e-5)
