"""The platform that a program is compiled for, which is not always the one it is compiled on."""

import jax


def target_platform() -> str:
  """Platform of the ambient mesh's devices; without a mesh, that of the default backend.

  Under `jax.set_mesh` the devices may be described rather than present: programs for a TPU are
  compiled on machines that have none.
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = mesh.abstract_device
  if device is None:
    return jax.default_backend()
  return device.platform
