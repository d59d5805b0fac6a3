"""The smallest training: one dense layer, one squared error."""

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.layers import Dense, LayerNorm
from sam3d_jax.models.parameters import flat_params
from sam3d_jax.training import optim
from sam3d_jax.training.state import ModelGraph, init_state
from sam3d_jax.training.step import GuardConfig, make_train_step

OPTIM = optim.OptimConfig(lr=1e-2, warmup_steps=0, clip_norm=0.0, ema=(0.5, 0.9))
LR = np.float32(1e-2)


class Batch(NamedTuple):
  key: np.ndarray
  x: np.ndarray
  y: np.ndarray


class Net(nnx.Module):
  def __init__(self, rngs):
    self.body = Dense(4, 8, rngs=rngs)
    self.norm = LayerNorm(8, eps=1e-6)
    self.head = Dense(8, 2, rngs=rngs)

  def __call__(self, x):
    hidden = self.norm(self.body(x))
    return self.head(jnp.tanh(hidden))


def squared_error(model, frozen, batch, key):
  """Of targets with noise that is keyed by example."""

  def draw(words):
    own = jax.random.fold_in(key, words[0])
    return jax.random.normal(own, (2,))

  noise = jax.vmap(draw)(batch.key)
  error = model(batch.x) - batch.y + 0.1 * noise
  loss = jnp.square(error).mean()
  return loss, {"mse": loss}


def make(cfg=OPTIM, guard=GuardConfig(), **kwargs):
  """(state, compiled step) of a fresh net."""
  net = Net(nnx.Rngs(0))
  state = init_state(cfg, flat_params(net))
  step = make_train_step(ModelGraph.of(net), squared_error, cfg, guard, **kwargs)
  return state, functools.partial(jax.jit(step), seed=np.uint32(0))


def make_batch(seed=0, size=8):
  rng = np.random.default_rng(seed)
  key = rng.integers(0, 2**32, (size, 2), np.uint32)
  x = rng.normal(size=(size, 4))
  y = rng.normal(size=(size, 2))
  return Batch(key, x.astype(np.float32), y.astype(np.float32))
