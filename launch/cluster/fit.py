"""Whether the parts of a specification go together: machines, the names and topologies that
clusters give them, and the configuration's values, mesh and batch.

This needs JAX and touches no device: they are described.
"""

import math

from launch.cluster import slurm
from launch.cluster.spec import Spec
from launch.console import cli, machines
from launch.trainer import checks, setup
from sam3d_jax.errors import ConfigError
from sam3d_jax.sharding import mesh as mesh_lib

CHIPS_OF_A_HOST = 4  # of every machine of a TPU slice that has several
# node selectors of GKE
TPU_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
TPU_ACCELERATOR = "cloud.google.com/gke-tpu-accelerator"
GPU_ACCELERATOR = "cloud.google.com/gke-accelerator"
# platform -> what its accelerator is called there
CALLED = {
  "v5e": "tpu-v5-lite",
  "v5p": "tpu-v5p",
  "v6e": "tpu-v6e",
  "a100": "a100",
  "h100": "h100",
  "h200": "h200",
}


def check(spec: Spec, path: str) -> None:
  """Raises ConfigError, naming file, key, value and remedy, for the first thing that does not fit.

  path: of the specification. Data and work folder of the run need not be here.
  """
  check_machines(spec, path)
  settings = read_config(spec, path)
  check_mesh(spec, path, settings)


def check_machines(spec: Spec, path: str) -> None:
  """The machines are what the clusters' names for them say, whatever runs on them."""
  check_slice(spec, path)
  check_kubernetes(spec, path)


def asked(spec: Spec) -> str:
  """What the specification asks for, with its keys."""
  return f"hosts = {spec.hosts}, chips = {spec.chips}"


def check_slice(spec: Spec, path: str) -> None:
  """A slice of TPUs is what its name says."""
  several = spec.kind == "tpu" and spec.hosts > 1
  if several and spec.chips != CHIPS_OF_A_HOST:
    raise ConfigError(
      f"{path}: chips = {spec.chips}: a machine of a slice of several has {CHIPS_OF_A_HOST}; give "
      f"chips: {CHIPS_OF_A_HOST} and hosts: {math.ceil(spec.hosts * spec.chips / CHIPS_OF_A_HOST)}"
    )
  if spec.xpk is None:
    return

  name = spec.xpk.device_type
  machine = machines.parse(name, f"{path}: xpk.device_type =")
  if machine.family != spec.platform:
    raise ConfigError(
      f"{path}: xpk.device_type = {name!r} is no {spec.platform}, which platform says"
    )
  if machine.chips != spec.hosts * spec.chips:
    raise ConfigError(
      f"{path}: xpk.device_type = {name!r} has {machine.chips} chips, {asked(spec)} are "
      f"{spec.hosts * spec.chips}: give hosts: {math.ceil(machine.chips / spec.chips)}"
    )


def check_kubernetes(spec: Spec, path: str) -> None:
  """Nodes that are selected by accelerator and topology have them."""
  if spec.kubernetes is None:
    return
  selector = spec.kubernetes.node_selector
  where = f"{path}: kubernetes.node_selector"

  # what kind of chip
  for key in (TPU_ACCELERATOR, GPU_ACCELERATOR):
    name = selector.get(key)
    called = CALLED.get(spec.platform, "")
    if name is not None and called not in str(name):
      raise ConfigError(
        f"{where}: {key} = {name!r} is no {spec.platform}, which platform says (its name has "
        f"{called!r} in it)"
      )

  # how many
  topology = selector.get(TPU_TOPOLOGY)
  if topology is None:
    return
  sides = str(topology).split("x")
  if not all(side.isdigit() for side in sides):
    raise ConfigError(f"{where}: {TPU_TOPOLOGY} = {topology!r} is not of the form 4x4 or 4x4x4")
  chips = math.prod(int(side) for side in sides)
  if chips != spec.hosts * spec.chips:
    raise ConfigError(
      f"{where}: {TPU_TOPOLOGY} = {topology!r} has {chips} chips, {asked(spec)} are "
      f"{spec.hosts * spec.chips}: give hosts: {math.ceil(chips / spec.chips)}"
    )


def read_config(spec: Spec, path: str) -> setup.Settings:
  """The configuration of the run, whose values can work and whose stage the command runs."""
  config = cli.load_config(spec.config, spec.override_arguments)
  # what is installed here says nothing of the machines
  config.log.wandb = ""
  try:
    checks.check(config, checks.stages_of(spec.command), before_data=True)
    return setup.read(config)
  except ConfigError as error:
    raise ConfigError(f"{path}: {spec.config}: {error}") from error


def check_mesh(spec: Spec, path: str, settings: setup.Settings) -> None:
  """The mesh takes all devices, and the batch divides over it and over the processes."""
  config = settings.config
  if spec.slices > 1 and config.mesh.dcn_data != spec.slices:
    raise ConfigError(
      f"{path}: slices = {spec.slices}, mesh.dcn_data = {config.mesh.dcn_data}: only copies of the "
      f"model may lie in different slices; give overrides: {{mesh.dcn_data: {spec.slices}}}"
    )

  # As the run will see them.
  family = spec.platform if spec.kind != "cpu" else ""
  devices = machines.Machine(family, spec.hosts * spec.chips * spec.slices, spec.slices).devices()
  try:
    mesh = mesh_lib.make_mesh(settings.mesh_config, devices)
    mesh_lib.check_batch_size(config.batch_size, mesh, config.accumulate)
  except ConfigError as error:
    raise ConfigError(f"{path}: {asked(spec)}, slices = {spec.slices}: {error}") from error

  # Every process reads as many rows.
  processes = spec.hosts * spec.slices
  if spec.slurm is not None:
    processes *= slurm.processes_of(spec)
  if config.batch_size % processes:
    raise ConfigError(
      f"{path}: batch_size = {config.batch_size} does not divide among the {processes} processes "
      f"of {asked(spec)}, slices = {spec.slices}"
    )
