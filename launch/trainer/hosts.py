"""The processes of one job: how they find each other, and that they all run the same thing.

In this order: --coordinator with --num_processes and --process_id, or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; --multihost, a SLURM step of several
tasks, or a TPU slice of several hosts, where JAX finds the rest itself; otherwise one process.
"""

import importlib.metadata
import json
import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from launch.trainer import starting
from launch.trainer.specs import HostsSpec
from sam3d_jax.errors import ConfigError, InputError, JobFailed

EXPLICIT = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}


def explicit(spec: HostsSpec, env) -> tuple[str, int, int] | None:
  """(coordinator, processes, this one) if they were given, by flag before environment. Raises
  ConfigError if only some were.
  """
  values = {name: getattr(spec, name) or env.get(variable) for name, variable in EXPLICIT.items()}
  missing = [f"--{name} (or {EXPLICIT[name]})" for name, value in values.items() if not value]
  if len(missing) == len(values):
    return None
  if missing:
    raise ConfigError(
      f"{' and '.join(missing)} missing: --coordinator, --num_processes and --process_id go "
      "together"
    )
  address, port = values["coordinator"].rpartition(":")[::2]
  if not address or not port.isdigit():
    raise ConfigError(f"coordinator = {values['coordinator']!r} is not of the form HOST:PORT")
  for name in ("num_processes", "process_id"):
    if not values[name].isdigit():
      raise ConfigError(f"{name} = {values[name]!r} is not a number")
  count, index = int(values["num_processes"]), int(values["process_id"])
  if index >= count:
    raise ConfigError(
      f"process_id = {index} is not one of the {count} processes (they count from 0)"
    )
  return values["coordinator"], count, index


def found_by_jax(spec: HostsSpec, env) -> bool:
  """Whether this process is one of several that JAX can find on its own."""
  tpu_hosts = env.get("TPU_WORKER_HOSTNAMES", "").count(",") + int(
    env.get("MEGASCALE_NUM_SLICES", "1")
  )
  return spec.multihost or int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or tpu_hosts > 1


def connect(spec: HostsSpec, env=os.environ) -> None:
  """Joins the job's other processes, if there are any; call it before a device is touched."""
  place = explicit(spec, env)
  if place is None and not found_by_jax(spec, env):
    return
  if place is not None and place[1] == 1:
    return
  # it would take SIGTERM from training.preemption
  jax.config.update("jax_enable_preemption_service", False)
  coordinator, count, index = place or (None, None, None)
  try:
    jax.distributed.initialize(coordinator, count, index)
  except (RuntimeError, ValueError) as error:
    raise JobFailed(
      f"the processes of this job did not find each other"
      f"{f' at {coordinator} (this is {index} of {count})' if place else ''}: "
      f"{str(error).splitlines()[0]}"
    ) from error


def exchange(text: str) -> list[str]:
  """One text from every process, by process index. Every process must call it."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(data.size)).reshape(-1)
  padded = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - data.size)))
  return [bytes(row[:size]).decode() for row, size in zip(padded, sizes, strict=True)]


def check_same_config(config) -> None:
  """Raises ConfigError in every process, naming hosts and key, if they were not all started with
  the same configuration.
  """
  texts = exchange(json.dumps(config.to_dict(), sort_keys=True))
  first = json.loads(texts[0])
  for host, text in enumerate(texts):
    for key, mine, theirs in starting.differences(first, json.loads(text)):
      raise ConfigError(
        f"host {host} was started with {'.'.join(key)} = {theirs!r}, host 0 with {mine!r}: start "
        "all with one command"
      )


def check_same_program(name: str, fingerprint: str) -> None:
  """Raises InputError in every process, naming the hosts, if they did not all compile the same
  program.

  Such a job would hang or compute nonsense at its first collective; the cause is nearly always
  another version of some package.
  """
  versions = " ".join(
    f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib", "flax", "optax")
  )
  answers = [json.loads(text) for text in exchange(json.dumps([fingerprint, versions]))]
  groups: dict[str, list[int]] = {}
  for host, (theirs, _) in enumerate(answers):
    groups.setdefault(theirs, []).append(host)
  if len(groups) > 1:
    listed = "; ".join(
      f"{f[:12]} on hosts {', '.join(map(str, hosts))} ({answers[hosts[0]][1]})"
      for f, hosts in groups.items()
    )
    raise InputError(
      f"the hosts compiled different programs for {name}: {listed}. Install the same versions and "
      "code on all of them"
    )
