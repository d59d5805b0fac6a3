"""Real training processes for tests: started, watched through the files they write, interrupted,
and compared.
"""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from sam3d_jax.training import checkpoint_arrays, checkpoint_steps, ledger

ROOT = pathlib.Path(__file__).parents[2]
STAGES = {
  "launch.pretrain": "configs/pretrain_geometry.py",
  "launch.train_vae": "configs/vae_structure.py",
}


class Job:
  """One start of a training command, as one process a host. Leaving the context kills what is left
  of it.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    overrides: Sequence[str],
    *,
    command: str = "launch.train_vae",
    variant: str = "fake",
    hosts: int = 1,
    of_host: dict[int, Sequence[str]] | None = None,
  ):
    """command: module that is run. variant: of its configuration. hosts: processes that train
    together. of_host: further overrides of some of them.
    """
    self.workdir = pathlib.Path(workdir)
    argv = [
      sys.executable,
      "-m",
      command,
      "--config",
      f"{STAGES[command]}:{variant}",
      "--workdir",
      str(workdir),
      *overrides,
    ]
    # what the tests themselves run under wins, but lines are seen as they are printed
    defaults = {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      "PYTHONPATH": str(ROOT),
    }
    env = {**defaults, **os.environ, "PYTHONUNBUFFERED": "1"}

    port = free_port()
    self.started = time.time()
    self.processes, self.logs = [], []
    for host in range(hosts):
      # how it finds the others
      place: list[str] = []
      if hosts > 1:
        place = [
          "--coordinator",
          f"localhost:{port}",
          "--num_processes",
          str(hosts),
          "--process_id",
          str(host),
        ]
      own = (of_host or {}).get(host, ())
      log = self.workdir.with_name(f"{self.workdir.name}_{time.time_ns()}_host{host}.log")
      log.parent.mkdir(parents=True, exist_ok=True)
      with log.open("wb") as file:
        process = subprocess.Popen(
          [*argv, *place, *own],
          cwd=ROOT,
          env=env,
          stdout=file,
          stderr=subprocess.STDOUT,
          start_new_session=True,
        )
      self.processes.append(process)
      self.logs.append(log)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    for process in self.processes:
      if process.poll() is None:
        process.kill()
      process.wait()

  def until(self, condition: Callable[[], bool], *, timeout: float = 600.0) -> bool:
    """Waits until `condition()`; False if the job ended. Raises TimeoutError with the logs."""
    deadline = time.monotonic() + timeout
    while not condition():
      ended = [process for process in self.processes if process.poll() is not None]
      if ended:
        return False
      if time.monotonic() > deadline:
        raise TimeoutError(self.output())
      time.sleep(0.01)
    return True

  def signal(self, number: int, host: int = 0) -> None:
    self.processes[host].send_signal(number)

  def kill(self) -> None:
    """kill -9 to every process, as when the machine goes away."""
    for process in self.processes:
      process.kill()
      process.wait()

  def wait(self, timeout: float = 600.0) -> list[int]:
    """Exit codes of all processes."""
    return [process.wait(timeout) for process in self.processes]

  def output(self) -> str:
    """What every process has printed, one after the other."""
    parts = []
    for log in self.logs:
      printed = log.read_text(errors="replace")
      parts.append(f"--- {log.name}\n{printed}")
    return "\n".join(parts)

  def workers(self) -> list[int]:
    """Process ids of the reading processes that host 0 started."""
    process = pathlib.Path(f"/proc/{self.processes[0].pid}")
    readers = []
    try:
      for children in (process / "task").glob("*/children"):
        for pid in children.read_text().split():
          command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
          if b"spawn_main" in command:
            readers.append(int(pid))
    except OSError:
      # a process ended while it was looked at
      return []
    return readers


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def metric_rows(workdir: pathlib.Path) -> list[dict]:
  """Whole rows of metrics.jsonl so far."""
  file = workdir / "metrics.jsonl"
  if not file.exists():
    return []
  # behind the last newline a row may still be being written
  *whole, _ = file.read_text().split("\n")
  return [json.loads(line) for line in whole]


def trained_to(workdir: pathlib.Path) -> int:
  """The last step whose metrics are written, 0 if none is."""
  steps = [row["step"] for row in metric_rows(workdir) if "loss" in row]
  return max(steps, default=0)


def ledger_rows(workdir: pathlib.Path) -> list[list[dict]]:
  """Rows of the goodput ledger, one list a process."""
  file = workdir / "goodput.jsonl"
  return ledger.read(file) if file.exists() else []


def final_arrays(workdir: pathlib.Path) -> tuple[int, dict[str, np.ndarray]]:
  """The newest step and every array of it: parameters, averages, optimiser, counters."""
  step = checkpoint_steps.resolve_step(workdir)
  stored = checkpoint_steps.stored_shapes(workdir, step)
  arrays = checkpoint_arrays.read_arrays(workdir, step, stored)
  return step, {path: np.asarray(x) for path, x in arrays.items()}


def assert_same_run(a: pathlib.Path, b: pathlib.Path) -> None:
  """Bit for bit the same final state."""
  step_a, arrays_a = final_arrays(a)
  step_b, arrays_b = final_arrays(b)
  assert step_a == step_b and set(arrays_a) == set(arrays_b)
  for path in arrays_a:
    np.testing.assert_array_equal(arrays_a[path], arrays_b[path], err_msg=path)


def science(workdir: pathlib.Path, kind: str = "loss") -> dict[int, dict]:
  """The metrics that must not depend on interruptions, by step: everything but times. kind: "loss"
  or "eval/loss".
  """
  rows = [row for row in metric_rows(workdir) if kind in row]
  assert len({row["step"] for row in rows}) == len(rows), "a step was logged twice"
  found = {}
  for row in rows:
    lasting = [name for name in row if not name.startswith(("time/", "hosts/"))]
    found[row["step"]] = {name: row[name] for name in lasting}
  return found


SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
