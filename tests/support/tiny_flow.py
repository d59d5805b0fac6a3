"""A flow model of two narrow blocks with random parameters, its inputs, its compiled answers and
gradients.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import LATENTS
from sam3d_jax.models import parameters
from sam3d_jax.models.geometry_flow import (
  GeometryFlow,
  GeometryFlowConfig,
)

TINY = GeometryFlowConfig(
  width=24, depth=2, heads=2, cond_width=20, shape_resolution=2, latent_channels=3, dtype="float32"
)
BATCH, TOKENS = 3, 5


@functools.cache
def model(cfg: GeometryFlowConfig = TINY):
  """Graph and parameters, all drawn at random: zero-initialised ones would hide most of a block."""
  module = nnx.eval_shape(lambda: GeometryFlow(cfg, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(1)
  shapes = parameters.flat_shapes(module)
  parameters.load_params(module, {k: 0.3 * rng.normal(size=s) for k, s in shapes.items()})
  return nnx.split(module)


@functools.cache
def untrained():
  """Graph and parameters as initialised."""
  return model()[0], jit(lambda: nnx.split(GeometryFlow(TINY, rngs=nnx.Rngs(0)))[1])()


@functools.cache
def inputs(cfg: GeometryFlowConfig = TINY):
  rng = np.random.default_rng(2)
  x = {
    k: jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)
    for k, shape in cfg.latent_shapes().items()
  }
  return (
    x,
    jnp.asarray([0.1, 0.5, 0.9]),
    jnp.asarray(rng.normal(size=(BATCH, TOKENS, cfg.cond_width)), jnp.float32),
  )


# Compiling is what these tests spend their time on: the CPU compiler's optimisations are left out.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def apply(cfg: GeometryFlowConfig):
  graph, _ = model(cfg)
  return lambda params, x, t, tokens, d=None: nnx.merge(graph, params)(x, t, tokens, d)


@functools.cache
def forward(cfg: GeometryFlowConfig = TINY):
  return jit(apply(cfg))


def gradient(cfg: GeometryFlowConfig, latents: tuple[str, ...]):
  """Gradients of a weighted sum of the latents' velocities for parameters, latents and tokens;
  beside them the velocities.
  """
  velocity = apply(cfg)

  def loss(params, x, tokens, t, d):
    y = velocity(params, x, t, tokens, d)
    return sum(
      (jnp.cos(jnp.arange(y[k].size)).reshape(y[k].shape) * y[k]).sum() for k in latents
    ), y

  return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)


@functools.cache
def grad(cfg: GeometryFlowConfig = TINY, latents: tuple[str, ...] = LATENTS):
  return jit(gradient(cfg, latents))


def assert_close(a, b, tol=2e-5):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=tol * max(1.0, float(jnp.abs(y).max())))


def norms(tree) -> dict[str, float]:
  return {
    "/".join(map(str, path)): float(jnp.linalg.norm(leaf.get_value()))
    for path, leaf in nnx.to_flat_state(tree)
  }
