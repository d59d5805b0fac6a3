"""The processes of one job: how they find each other, and that they all run the same thing.

In this order: --coordinator with --num_processes and --process_id, or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; --multihost, a SLURM step of several
tasks, or a TPU slice of several hosts, where JAX finds the rest itself; otherwise one process.
"""

from collections.abc import Iterator
import contextlib
import importlib.metadata
import json
import os
import pathlib

import jax

from launch.console.progress import say
from launch.trainer import meeting
from launch.trainer.specs import HostsSpec
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError, JobFailed
from sam3d_jax.files import locks
from sam3d_jax.training import agreement

# where the coordinator is reached by another address than its machine knows, behind a translation
BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"
JAX_SECONDS = 300  # that JAX may take to find out who its processes are
EXPLICIT = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}


def explicit(spec: HostsSpec, env) -> tuple[str, int, int] | None:
  """(coordinator, processes, this one) if they were given, by flag before environment. Raises
  ConfigError if only some were.
  """
  # A flag goes before its variable.
  values, missing = {}, []
  for name, variable in EXPLICIT.items():
    values[name] = getattr(spec, name) or env.get(variable)
    if not values[name]:
      missing.append(f"--{name} (or {variable})")
  if len(missing) == len(values):
    return None
  if missing:
    listed = " and ".join(missing)
    raise ConfigError(
      f"{listed} missing: --coordinator, --num_processes and --process_id go together"
    )

  # All are there: what they say.
  coordinator = values["coordinator"]
  address, _, port = coordinator.rpartition(":")
  if not address or not port.isdigit():
    raise ConfigError(f"coordinator = {coordinator!r} is not of the form HOST:PORT")
  for name in ("num_processes", "process_id"):
    if not values[name].isdigit():
      raise ConfigError(f"{name} = {values[name]!r} is not a number")
  count = int(values["num_processes"])
  index = int(values["process_id"])
  if index >= count:
    raise ConfigError(
      f"process_id = {index} is not one of the {count} processes (they count from 0)"
    )
  return coordinator, count, index


def found_by_jax(spec: HostsSpec, env) -> bool:
  """Whether this process is one of several that JAX can find on its own."""
  tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
  slices = int(env.get("MEGASCALE_NUM_SLICES", "1"))
  further_hosts = env.get("TPU_WORKER_HOSTNAMES", "").count(",")  # of this slice
  tpu_hosts = further_hosts + slices
  return spec.multihost or tasks > 1 or tpu_hosts > 1


def connect(spec: HostsSpec, env=os.environ) -> None:
  """Joins the job's other processes, if there are any; call it before a device is touched."""
  place = explicit(spec, env)
  # A job of one process has nobody to join.
  if place is None and not found_by_jax(spec, env):
    return
  if place is not None and place[1] == 1:
    return

  # It would take SIGTERM from training.preemption.
  jax.config.update("jax_enable_preemption_service", False)

  # JAX finds what is not given.
  coordinator = count = index = None
  where = ""
  if place is not None:
    coordinator, count, index = place
    where = f" at {coordinator} (this is {index} of {count})"
  bind = bind_address(coordinator, env)
  found = place or place_by_jax()
  if found is not None:
    meeting.meet(*found, bind=bind or _any_address(found[0]), tell=say)
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      coordinator_bind_address=bind,
    )
  except (RuntimeError, ValueError) as error:
    said = str(error).splitlines()[0]
    raise JobFailed(f"the processes of this job did not find each other{where}: {said}") from error


def place_by_jax() -> tuple[str, int, int] | None:
  """(coordinator, processes, this one) as JAX finds them under SLURM and on TPUs; None where it
  does not say before it joins them.
  """
  try:
    # JAX's own, which another version may have elsewhere
    from jax._src import clusters

    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    coordinator, count, index, _ = detect(None, None, None, None, None, JAX_SECONDS)
  # what is wrong then, its joining tells
  except Exception:
    return None
  if coordinator is None or count is None or index is None or count == 1:
    return None
  return coordinator, count, index


def _any_address(coordinator: str) -> str:
  """Where JAX listens if it is not told where."""
  port = coordinator.rpartition(":")[2]
  return f"[::]:{port}"


def bind_address(coordinator: str | None, env=os.environ) -> str | None:
  """Where the coordinator listens: at the address that was given for it, not at all that its
  machine has, unless JAX_COORDINATOR_BIND_ADDRESS says otherwise. None leaves it to JAX, which then
  found the address itself.
  """
  return env.get(BIND_VARIABLE) or coordinator


@contextlib.contextmanager
def only_job(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the work folder for this job, while the block runs: its first process does, for all.

  Raises InUse in the first process, JobFailed in the others, if another run writes to it.
  """
  error, lock = None, None
  if jax.process_index() == 0:
    try:
      lock = locks.take(workdir, "a training run", tell=say)
    except (JobFailed, OSError) as raised:
      error = raised
  agreement.settle(error)
  try:
    yield
  finally:
    if lock is not None:
      lock.release()


def check_same_config(config) -> None:
  """Raises ConfigError in every process, naming hosts and key, if they were not all started with
  the same configuration.
  """
  # Each finds the same difference, so all of them stop with the same words.
  texts = agreement.exchange(json.dumps(config.to_dict(), sort_keys=True))
  first = json.loads(texts[0])
  for host, text in enumerate(texts):
    for path, mine, theirs in sections.differences(first, json.loads(text)):
      key = ".".join(path)
      raise ConfigError(
        f"host {host} was started with {key} = {theirs!r}, host 0 with {mine!r}: start all with "
        "one command"
      )


def check_same_program(name: str, fingerprint: str) -> None:
  """Raises InputError in every process, naming the hosts, if they did not all compile the same
  program.

  Such a job would hang or compute nonsense at its first collective; the cause is nearly always
  another version of some package.
  """
  packages = ("jax", "jaxlib", "flax", "optax")
  versions = " ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)

  # The hosts by the program that they have, with the versions of the first of each group.
  hosts_of: dict[str, list[str]] = {}
  versions_of: dict[str, str] = {}
  answers = agreement.exchange(json.dumps([fingerprint, versions]))
  for host, answer in enumerate(answers):
    program, installed = json.loads(answer)
    hosts_of.setdefault(program, []).append(str(host))
    versions_of.setdefault(program, installed)
  if len(hosts_of) == 1:
    return

  groups = []
  for program, hosts in hosts_of.items():
    groups.append(f"{program[:12]} on hosts {', '.join(hosts)} ({versions_of[program]})")
  listed = "; ".join(groups)
  raise InputError(
    f"the hosts compiled different programs for {name}: {listed}. Install the same versions and "
    "code on all of them"
  )
