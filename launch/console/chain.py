"""A chain of commands, each in its own process, that continues where it stopped: what
launch.quickstart and launch.ladder are made of.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from launch.console import cli
from launch.console.progress import duration, say
from sam3d_jax.errors import JobFailed, Preempted
from sam3d_jax.files import atomic, locks, texts

SHOWN_LOG_LINES = 15
# XLA on CPU takes and frees its buffers every step. With these settings of glibc they stay in the
# process, in one arena and on huge pages: a step of the tiny Geometry model then costs 0.12 CPU s
# instead of 0.19, nearly all of the difference system time.
KEEP_FREED_MEMORY = {
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": str(2**32),
  "MALLOC_TOP_PAD_": str(2**28),
  "MALLOC_ARENA_MAX": "1",
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# A command of a chain runs for seconds or minutes, so what it waits for is compilation. LLVM's
# cheaper pipeline takes a tenth to four tenths off that and nothing off the speed of the steps; the
# next commands find what was compiled in the work folder.
COMPILE_FAST = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
COMPILED = "compile_cache"  # folder of compiled programs, in the work folder


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of the chain. `name` is also the name of its log file."""

  name: str
  says: str  # what it does, for the screen
  command: tuple[str, ...]


def run_all(steps: list[Step], work: pathlib.Path) -> float:
  """Runs the steps that are not done yet, in order, and returns the seconds that all of them took.

  Output goes to work/logs/<name>.log, a record of what was done to work/logs/<name>.json. A step
  that ran makes every later one stale.
  """
  logs = work / "logs"
  logs.mkdir(exist_ok=True)
  # The commands hold the folders that they write to; the chain holds its records.
  with locks.hold(logs, "a chain of commands"):
    return _run_all(steps, work, logs)


def _run_all(steps: list[Step], work: pathlib.Path, logs: pathlib.Path) -> float:
  stale, total = False, 0.0
  for number, step in enumerate(steps, start=1):
    record = logs / f"{step.name}.json"
    title = f"[{number}/{len(steps)}] {step.name}: {step.says}"
    if not stale and finished(record, step):
      seconds = recorded_seconds(record)
      say(f"{title}, done before in {duration(seconds)}")
    else:
      stale = True
      say(f"{title}\n  {command_line(step)}")
      execute(step, logs / f"{step.name}.log", record, environment(work))
      seconds = recorded_seconds(record)
      say(f"  {step.name} took {duration(seconds)}")
    total += seconds
  return total


def command_line(step: Step) -> str:
  """The step as a person would type it."""
  return f"python -m {shlex.join(step.command)}"


def commands(steps: list[Step]) -> str:
  """The steps as a person would type them."""
  return "\n".join(command_line(step) for step in steps)


def recorded_seconds(record: pathlib.Path) -> float:
  """Seconds that a step took, over all its attempts."""
  known = texts.read_own(record, "seconds")
  return known["seconds"] if known else 0.0


def finished(record: pathlib.Path, step: Step) -> bool:
  """Whether the step has run to its end with this very command."""
  saved = texts.read_own(record, "done", "command", "seconds")
  if saved is None:
    return False
  return saved["done"] and saved["command"] == list(step.command)


def environment(work: pathlib.Path) -> dict[str, str]:
  """The variables of every command; those about compilation and the platform give way to the user's
  own.
  """
  own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(work / COMPILED)}
  # the flags would make programs for a GPU slower
  if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
    own["XLA_FLAGS"] = COMPILE_FAST
  return {**own, **os.environ, **KEEP_FREED_MEMORY, "PYTHONUNBUFFERED": "1"}


def execute(step: Step, log: pathlib.Path, record: pathlib.Path, env: dict[str, str]) -> None:
  """Runs one command; its standard output goes to the log, its progress to the screen. Ctrl-C
  reaches it and is waited for.
  """
  saved = texts.read_own(record, "seconds") or {}
  before = saved["seconds"] if saved.get("command") == list(step.command) else 0.0
  start = time.monotonic()
  with log.open("w") as out:
    child = subprocess.Popen(
      [sys.executable, "-m", *step.command],
      stdout=out,
      env=env,
      cwd=pathlib.Path(__file__).parents[2],
    )
    code, told = wait(child)
  seconds = before + time.monotonic() - start
  ended = {"done": code == 0, "command": list(step.command), "seconds": seconds}
  atomic.write_text(record, json.dumps(ended))
  if code == cli.EXIT_RETRY or code == -signal.SIGINT:
    raise Preempted(f"during {step.name}, what it had is saved")
  if code == 0 and told:  # it was at its end when the signal came; the next step must not begin
    raise Preempted(f"after {step.name}, which is done")
  if code != 0:
    print("\n".join(log.read_text().splitlines()[-SHOWN_LOG_LINES:]), file=sys.stderr)
    raise JobFailed(
      f"{step.name} ended with code {code}; its output is in {log}. The command was:\n"
      f"  {command_line(step)}"
    )


def wait(child: subprocess.Popen) -> tuple[int, bool]:
  """The child's exit code, and whether this process was told to stop meanwhile.

  SIGTERM is passed on to the child. Ctrl-C in a terminal reaches it by itself: it saves and exits,
  and that is waited for.
  """
  told = []

  def terminate(number, frame):
    told.append(number)
    child.send_signal(number)

  previous = {
    signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
    signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: told.append(number)),
  }
  try:
    return child.wait(), bool(told)
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
