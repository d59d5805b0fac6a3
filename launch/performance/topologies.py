"""Devices that a step is compiled for: TPU slices that are not there, or CPU devices of this host.

Nothing here imports JAX at its top: what the compiler of a described slice is told by environment
variables has to be said before JAX is imported.
"""

import contextlib
import dataclasses
import importlib.util
import os

from launch.console import machines
from sam3d_jax.errors import ConfigError, InputError

CPU = "cpu"
# no probing for a real TPU
QUIET = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  # compiling holds no chip, so several may compile at once
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare_environment(topology: str) -> None:
  """Sets what the compiler of a TPU slice reads when JAX is imported; what is set already stays."""
  platform, _, _ = topology.partition(":")
  if platform == CPU:
    return
  os.environ.setdefault("JAX_PLATFORMS", CPU)
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)


def described_devices(topology: str, slices: int):
  """Devices of a topology, call `prepare_environment` first.

  topology: v5p:4x4x4, v5e:16x16, v6e:16x16, or cpu:N for N devices of this host. slices: of a TPU,
  joined by the data-centre network.

  Raises:
    ConfigError: there is no such topology.
    InputError: libtpu is not installed.
  """
  platform, _, size = topology.partition(":")
  if platform == CPU and size.isdigit():
    return host_devices(int(size))
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f"--topology {topology} needs the TPU compiler: pip install -r requirements-tpu.txt (no TPU "
      "is needed)"
    )
  import jax
  from jax.experimental import topologies

  several = {"num_slices": slices} if slices > 1 else {}
  try:
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **several)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise ConfigError(
      f"--topology {topology}: {reason} (examples: v5p:4x4x4, v5e:16x16, v6e:16x16)"
    ) from error
  return described.devices


def machine_of(topology: str, slices: int) -> machines.Machine:
  """What a topology names, without its compiler. Raises ConfigError."""
  platform, _, size = topology.partition(":")
  if platform == CPU and size.isdigit():
    return machines.parse(size, "--topology")
  machine = machines.parse(topology, "--topology")
  return dataclasses.replace(machine, chips=machine.chips * slices, slices=slices)


def is_gpu(topology: str) -> bool:
  """Whether a topology names GPUs, for which there is no compiler without one."""
  said = topology.lower()
  families = machines.FAMILIES.items()
  return any(family.platform == "gpu" and name in said for name, family in families)


def host_devices(count: int):
  """`count` devices of this host's CPU. Raises ConfigError if this process has fewer."""
  import jax

  # JAX is already running, as in tests: what there is must do
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices(CPU)
  if len(devices) < count:
    raise ConfigError(f"--topology cpu:{count}: this process has {len(devices)} CPU devices")
  return devices[:count]
