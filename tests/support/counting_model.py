"""Sampling from a model that counts what it is asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import Conditioning
from sam3d_jax.objectives import paths
from sam3d_jax.sampling.generate import sample_latents

SHAPES = {"shape": (8, 2), "scale": (1, 3)}


# compiling is all that takes time here
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


class CountingModel:
  """v = mean token + 3 d - 0.1 x; counts forward passes and notes the step sizes it is fed."""

  def __init__(self, step_conditioned=True):
    self.step_conditioned, self.calls, self.steps = step_conditioned, 0, set()

  def encode(self, cond, drop_pointmap_B=None):
    tokens = jnp.asarray(cond.image).reshape(len(cond.image), -1, 3)
    return (
      tokens
      if drop_pointmap_B is None
      else tokens * jnp.where(drop_pointmap_B, 0.5, 1.0)[:, None, None]
    )

  def velocity(self, x, t_B, tokens_BSD, d_B=None):
    assert (d_B is None) == (not self.step_conditioned)
    d_B = jnp.zeros(1) if d_B is None else d_B
    jax.debug.callback(self.note, d_B)
    c = tokens_BSD.mean((1, 2))
    return {k: paths.per_sample(c + 3.0 * d_B, v) - 0.1 * v for k, v in x.items()}

  def note(self, d_B):
    self.calls += 1
    self.steps |= set(np.asarray(d_B).round(6).tolist())


def condition(batch=3, seed=0):
  return Conditioning(
    image=np.random.default_rng(seed).uniform(size=(batch, 2, 2, 3)).astype(np.float32)
  )


def keys(batch=3):
  return np.random.default_rng(5).integers(0, 2**32, (batch, 2), dtype=np.uint32)


def sample(model, cfg, cond=None, key_B2=None, fixed=None):
  cond, key_B2 = condition() if cond is None else cond, keys() if key_B2 is None else key_B2
  out = quick_jit(lambda c, k, f: sample_latents(model, c, k, cfg, SHAPES, f))(cond, key_B2, fixed)
  jax.effects_barrier()
  return out
