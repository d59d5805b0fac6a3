"""What the command line of a training command says, typed; without JAX."""

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class HostsSpec:
  """How this process finds the others of its job. None: not given on the command line."""

  coordinator: str | None = None  # HOST:PORT of process 0
  num_processes: str | None = None
  process_id: str | None = None  # from 0
  multihost: bool = False  # let JAX find the other processes


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """One training run."""

  config: ConfigDict
  workdir: str
  dry_run: bool = False  # print the plan and stop
  devices: str = ""  # of a dry run, as launch/console/machines.py reads them; '': those at hand
  hosts: HostsSpec = HostsSpec()
