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
from sam3d_jax.models.geometry_flow import GeometryFlow, GeometryFlowConfig

TINY = GeometryFlowConfig(
  width=24,
  depth=2,
  heads=2,
  cond_width=20,
  shape_resolution=2,
  latent_channels=3,
  dtype="float32",
)
BATCH, TOKENS = 3, 5

# Compiling is what these tests spend their time on: the CPU compiler's optimisations are left out.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def model(cfg: GeometryFlowConfig = TINY):
  """Graph and parameters, all drawn at random: zero-initialised ones would hide most of a block."""
  module = nnx.eval_shape(lambda: GeometryFlow(cfg, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(1)
  shapes = parameters.flat_shapes(module)
  drawn = {path: 0.3 * rng.normal(size=shape) for path, shape in shapes.items()}
  parameters.load_params(module, drawn)
  return nnx.split(module)


@functools.cache
def untrained():
  """Graph and parameters as initialised."""
  graph, _ = model()

  @jit
  def initial():
    module = GeometryFlow(TINY, rngs=nnx.Rngs(0))
    _, params = nnx.split(module)
    return params

  return graph, initial()


@functools.cache
def inputs(cfg: GeometryFlowConfig = TINY):
  """(latents, times (B,), condition tokens (B, S, C))."""
  rng = np.random.default_rng(2)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)

  x = {name: draw(*shape) for name, shape in cfg.latent_shapes().items()}
  t_B = jnp.asarray([0.1, 0.5, 0.9])
  tokens_BSC = draw(TOKENS, cfg.cond_width)
  return x, t_B, tokens_BSC


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
    total = 0
    for name in latents:
      weights = jnp.cos(jnp.arange(y[name].size)).reshape(y[name].shape)
      total = total + (weights * y[name]).sum()
    return total, y

  return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)


@functools.cache
def grad(cfg: GeometryFlowConfig = TINY, latents: tuple[str, ...] = LATENTS):
  return jit(gradient(cfg, latents))


def assert_close(a, b, tol=2e-5):
  """Leaf by leaf, relative to the largest value."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    largest = max(1.0, float(jnp.abs(y).max()))
    np.testing.assert_allclose(x, y, atol=tol * largest)


def norms(tree) -> dict[str, float]:
  """Path -> norm of every leaf."""
  found = {}
  for path, leaf in nnx.to_flat_state(tree):
    name = "/".join(map(str, path))
    found[name] = float(jnp.linalg.norm(leaf.get_value()))
  return found
