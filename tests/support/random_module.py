"""Modules with random parameters for tests, made without compiling their initialisers (which takes
longer than most tests).
"""

from flax import nnx
import jax.numpy as jnp
import numpy as np


def random_module(make, seed: int = 0):
  """`make(rngs)` with every parameter drawn from N(0, 0.2²); those named `scale` (gains of norms)
  are around one.
  """
  module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  rng = np.random.default_rng(seed)
  params = nnx.state(module, nnx.Param)
  for path, leaf in nnx.to_flat_state(params):
    struct = leaf.get_value()
    centre = 1 if path[-1] == "scale" else 0
    value = 0.2 * rng.standard_normal(struct.shape) + centre
    leaf.set_value(jnp.asarray(value, struct.dtype))
  return module
