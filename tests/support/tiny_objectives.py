"""Objectives on a linear model: batches, compiled losses and their gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import Conditioning, GeometryBatch, PreferenceBatch
from sam3d_jax.objectives import flow_matching, shortcut
from sam3d_jax.objectives.dpo import dpo

SHAPES = {"shape": (8, 2), "rotation": (1, 6), "scale": (1, 3)}
WEIGHTS = {"shape": 1.0, "rotation": 0.1, "scale": 0.3}
KEY = jax.random.key(7)

# compiling is all that takes time here
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TinyModel:
  """v = tanh(x A + t b + d e + mean token C): one set of parameters a latent, the latents
  independent of each other.
  """

  params: dict
  step_conditioned: bool = dataclasses.field(default=True, metadata={"static": True})

  def encode(self, cond, drop_pointmap_B=None):
    tokens = cond.image.reshape(len(cond.image), -1, 3) * self.params["gain"]
    if drop_pointmap_B is None:
      return tokens
    kept_B = 1.0 - drop_pointmap_B.astype(jnp.float32)
    return tokens * kept_B[:, None, None]

  def velocity(self, x, t_B, tokens_BSD, d_B=None):
    assert (d_B is None) == (not self.step_conditioned)
    c_B1D = tokens_BSD.mean(1, keepdims=True)
    d = 0.0 if d_B is None else d_B[:, None, None]
    out = {}
    for name, v in x.items():
      of = self.params[name]
      summed = v @ of["A"] + t_B[:, None, None] * of["b"] + d * of["e"] + c_B1D @ of["C"]
      out[name] = jnp.tanh(summed)
    return out


def tiny_model(seed=0, step_conditioned=True):
  rng = np.random.default_rng(seed)

  def one(c):
    return {
      "A": rng.normal(size=(c, c)),
      "b": rng.normal(size=c),
      "e": rng.normal(size=c),
      "C": rng.normal(size=(3, c)),
    }

  params = {name: one(channels) for name, (_, channels) in SHAPES.items()}
  params["gain"] = np.ones(())
  params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
  return TinyModel(params, step_conditioned)


def latents(rng, batch):
  return {k: rng.normal(size=(batch, *s)).astype(np.float32) for k, s in SHAPES.items()}


def geometry_batch(batch=4, seed=1, present=None):
  """present: latent -> (B,) bool, of those that not every sample has."""
  rng = np.random.default_rng(seed)
  everywhere = {name: np.ones(batch, bool) for name in SHAPES}
  key = rng.integers(0, 2**32, (batch, 2), dtype=np.uint32)
  image = rng.uniform(size=(batch, 2, 2, 3)).astype(np.float32)
  return GeometryBatch(
    key=key,
    cond=Conditioning(image=image),
    latents=latents(rng, batch),
    present=everywhere | (present or {}),
  )


def preference_batch(batch=3, seed=2):
  rng = np.random.default_rng(seed)
  shared = geometry_batch(batch, seed)
  return PreferenceBatch(
    key=shared.key,
    cond=shared.cond,
    win=latents(rng, batch),
    lose=latents(rng, batch),
    present=shared.present,
  )


def rows(batch, index):
  return jax.tree.map(lambda a: a[np.asarray(index)], batch)


@functools.cache
def compiled(objective, settings):
  """(loss, metrics) and gradient in the model, compiled once for the same arguments and shapes."""
  config = dict(settings)
  if "weights" in config:
    config["weights"] = dict(config["weights"])

  def loss(model, frozen, batch):
    return objective(model, frozen, batch, KEY, **config)

  return quick_jit(jax.value_and_grad(loss, has_aux=True))


def run(objective, model, frozen, batch, config):
  # what can be hashed, so that a program is found again
  settings = dict(config)
  if "weights" in settings:
    settings["weights"] = tuple(sorted(settings["weights"].items()))
  program = compiled(objective, tuple(sorted(settings.items())))
  return program(model, frozen, batch)


def run_flow(model, batch, **config):
  settings = {"weights": WEIGHTS, "drop_condition": 0.5} | config
  return run(flow_matching.flow_matching, model, None, batch, settings)


def flow_loss(model, batch, **config):
  loss_and_metrics, _ = run_flow(model, batch, **config)
  return loss_and_metrics


def run_dpo(model, reference, batch, **config):
  return run(dpo, model, reference, batch, {"beta": 0.01} | config)


def run_shortcut(model, batch, **config):
  return run(shortcut.shortcut, model, None, batch, {"weights": WEIGHTS} | config)
