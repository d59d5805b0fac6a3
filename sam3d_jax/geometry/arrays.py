"""The array library of the inputs: geometry code runs on numpy arrays and, under jit, on JAX arrays
alike.
"""

import numpy as np


def namespace(*arrays):
  """`jax.numpy` if any input is a JAX array (or tracer), else `numpy`. JAX is not imported for
  numpy inputs.
  """
  for array in arrays:
    if hasattr(array, "__array_namespace__") and not isinstance(array, np.ndarray | np.generic):
      return array.__array_namespace__()
  return np
