"""The array library of the inputs: geometry code runs on numpy arrays and, under jit, on JAX arrays
alike.
"""

import numpy as np


def namespace(*arrays):
  """`jax.numpy` if any input is a JAX array (or tracer), else `numpy`. JAX is not imported for
  numpy inputs.
  """
  for array in arrays:
    # NumPy's own arrays have a namespace too: it is NumPy.
    is_numpy = isinstance(array, np.ndarray | np.generic)
    if hasattr(array, "__array_namespace__") and not is_numpy:
      return array.__array_namespace__()
  return np
