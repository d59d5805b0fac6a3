"""The training step as a program: the one place that lowers it, for the devices at hand or for
hardware that is only described.

`launch.trainer.train` compiles what `step` returns and runs it; `launch.aot` compiles the same
for a topology and reads off what it costs.
"""

from collections.abc import Callable
import functools

import jax
import numpy as np

from launch.trainer.setup import Setup
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry as models
from sam3d_jax.models.attention import NEEDED_PLATFORM
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.training.step import make_train_step


def check_backends(setup: Setup) -> None:
  """Raises ConfigError for an attention backend that the mesh's devices do not have."""
  platform = setup.mesh.devices.flat[0].platform
  for key, backend in models.attention_backends(setup.config.model).items():
    needed = NEEDED_PLATFORM.get(backend, platform)
    if needed != platform:
      raise ConfigError(
        f"model.{key} = {backend!r} needs a {needed.upper()}, the devices are {platform.upper()}s: "
        "give auto, which chooses by the devices, or xla, which runs on all"
      )


def step(setup: Setup) -> jax.stages.Lowered:
  """The lowered `train_step(state, batch, lr, seed=...)` of a prepared run, the state donated.

  It is traced under the run's mesh, so that attention kernels, which the compiler cannot cut, are
  mapped over its shards, and chosen for the platform of its devices rather than for that of this
  process.
  """
  check_backends(setup)
  config = setup.config
  fn = make_train_step(
    setup.graph,
    setup.objective,
    setup.optim,
    setup.guard,
    accumulate=config.accumulate,
  )

  # What it is given; the metrics lie where the compiler puts them.
  batch = global_spec(setup.train_loader.spec, config.batch_size, setup.mesh)
  lr = jax.ShapeDtypeStruct((), "float32")
  seed = jax.ShapeDtypeStruct((), "uint32")
  out_shardings = (setup.shardings, None)
  with jax.set_mesh(setup.mesh):
    program = jax.jit(fn, donate_argnums=0, out_shardings=out_shardings)
    return program.lower(setup.abstract_state, batch, lr, seed=seed)


def bind(compiled: jax.stages.Compiled, config) -> Callable:
  """The compiled step as `step(state, batch, lr)`, with the configuration's seed."""
  return functools.partial(compiled, seed=np.uint32(config.seed))


def global_spec(local_spec, batch_size: int, mesh: jax.sharding.Mesh):
  """Shape structs of the global batch on the mesh, from the host's own rows."""

  def of_all_hosts(x):
    return jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)

  def on_mesh(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  # Rows first: how a batch lies on the mesh depends on its whole shape.
  whole = jax.tree.map(of_all_hosts, local_spec)
  shardings = mesh_lib.batch_shardings(mesh, whole)
  return jax.tree.map(on_mesh, whole, shardings)
