"""A flow model over packed objects, of two narrow blocks with random parameters, and random objects
for it.
"""

import functools

from flax import nnx
import jax
import numpy as np

from sam3d_jax.geometry import packing
from sam3d_jax.models.texture_flow import TextureFlow, TextureFlowConfig
from tests.support.random_module import random_module
from tests.support.sparse_tensors import voxels

SIDE = 16
TOKENS = 5  # condition tokens of an object
TINY = TextureFlowConfig(
  width=24,
  depth=2,
  heads=2,
  cond_width=20,
  resolution=SIDE,
  latent_channels=3,
  io_width=8,
  dtype="float32",
)
SHAPE = packing.RowShape(voxels=768, coarse=768, objects=3)
TABLES = packing.Tables(resolution=SIDE, neighbours=True, pooled=True)

# compiling is all that takes time here
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Object:
  """Voxels, latents, time and condition tokens of one object, drawn from a seed."""

  def __init__(self, seed: int, count: int, cfg: TextureFlowConfig = TINY):
    rng = np.random.default_rng(seed)
    self.tables = packing.object_tables(voxels(rng, count, SIDE), TABLES)
    self.x_VC = rng.standard_normal((count, cfg.latent_channels)).astype(np.float32)
    self.t = np.float32(rng.random())
    self.tokens_SD = rng.standard_normal((TOKENS, cfg.cond_width)).astype(np.float32)
    self.key = rng.integers(0, 2**32, 2, np.uint32)


class Row:
  """Objects in one row, and what else the row has room for: the arrays that the model takes."""

  def __init__(self, *objects: Object, shape: packing.RowShape = SHAPE):
    order = [list(range(len(objects)))]
    self.packed = packing.pack([one.tables for one in objects], shape, order)
    self.x_RVC = self.packed.fill([one.x_VC for one in objects])
    self.t_RK = np.full((1, shape.objects), 0.5, np.float32)
    self.tokens_RKSD = np.zeros((1, shape.objects, *objects[0].tokens_SD.shape), np.float32)
    self.key_RK2 = np.zeros((1, shape.objects, 2), np.uint32)
    for number, one in enumerate(objects):
      self.t_RK[0, number] = one.t
      self.tokens_RKSD[0, number] = one.tokens_SD
      self.key_RK2[0, number] = one.key

  @property
  def inputs(self):
    return self.x_RVC, self.t_RK, self.tokens_RKSD, self.packed.voxels

  def of(self, number: int, array_RVC) -> np.ndarray:
    """The rows of one object."""
    return self.packed.split(array_RVC)[number]


@functools.cache
def flow(cfg: TextureFlowConfig = TINY):
  """Graph and parameters, all drawn at random: zero-initialised ones would hide most of a block."""
  return nnx.split(random_module(lambda rngs: TextureFlow(cfg, rngs=rngs)))


@functools.cache
def forward(cfg: TextureFlowConfig = TINY):
  """(x, t, tokens, voxels) -> velocities, compiled."""
  graph, params = flow(cfg)

  @jit
  def run(params, x_RVC, t_RK, tokens_RKSD, voxels):
    return nnx.merge(graph, params)(x_RVC, t_RK, tokens_RKSD, voxels)

  return functools.partial(run, params)


@functools.cache
def input_gradients(cfg: TextureFlowConfig = TINY):
  """(x, t, tokens, voxels) -> gradients of the sum of squared velocities for latents and tokens."""
  graph, params = flow(cfg)

  def loss(x_RVC, tokens_RKSD, params, t_RK, voxels):
    velocity_RVC = nnx.merge(graph, params)(x_RVC, t_RK, tokens_RKSD, voxels)
    return (velocity_RVC**2).sum()

  gradient = jit(jax.grad(loss, argnums=(0, 1)))
  return lambda x, t, tokens, voxels: gradient(x, tokens, params, t, voxels)
