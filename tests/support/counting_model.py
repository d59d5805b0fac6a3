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
    self.step_conditioned = step_conditioned
    self.calls = 0
    self.steps: set[float] = set()

  def encode(self, cond, drop_pointmap_B=None):
    """Pixels as tokens, halved where point maps are dropped."""
    tokens_BS3 = jnp.asarray(cond.image).reshape(len(cond.image), -1, 3)
    if drop_pointmap_B is None:
      return tokens_BS3
    gain_B = jnp.where(drop_pointmap_B, 0.5, 1.0)
    return tokens_BS3 * gain_B[:, None, None]

  def velocity(self, x, t_B, tokens_BSD, d_B=None):
    assert (d_B is None) == (not self.step_conditioned)
    d_B = jnp.zeros(1) if d_B is None else d_B
    jax.debug.callback(self.note, d_B)
    pushed_B = tokens_BSD.mean((1, 2)) + 3.0 * d_B
    return {name: paths.per_sample(pushed_B, v) - 0.1 * v for name, v in x.items()}

  def note(self, d_B):
    """Called on the host at every forward pass."""
    self.calls += 1
    sizes = np.asarray(d_B).round(6)
    self.steps |= set(sizes.tolist())


def condition(batch=3, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(size=(batch, 2, 2, 3))
  return Conditioning(image=image.astype(np.float32))


def keys(batch=3):
  return np.random.default_rng(5).integers(0, 2**32, (batch, 2), dtype=np.uint32)


def sample(model, cfg, cond=None, key_B2=None, fixed=None):
  """Latents; what the model has counted is complete on return."""
  if cond is None:
    cond = condition()
  if key_B2 is None:
    key_B2 = keys()

  @quick_jit
  def draw(cond, key_B2, fixed):
    return sample_latents(model, cond, key_B2, cfg, SHAPES, fixed)

  out = draw(cond, key_B2, fixed)
  jax.effects_barrier()
  return out
