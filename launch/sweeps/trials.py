"""Running the trials of a sweep as processes: several at a time, retried, resumable."""

from collections.abc import Callable
import contextlib
import dataclasses
import fcntl
import json
import pathlib
import signal
import subprocess
import sys
import time

from launch.console import cli
from launch.console.progress import Progress
from launch.sweeps.space import Sweep, Trial, arguments
from sam3d_jax.errors import InputError, Preempted
from sam3d_jax.files import atomic

CACHE = "compile_cache"  # of the sweep: trials whose programs agree compile once
POLL_SECONDS = 0.2
STATES = ("waiting", "running", "stopped", "done", "failed")


def command_of(sweep: Sweep, trial: Trial, workdir: pathlib.Path) -> list[str]:
  """The command that runs a trial, and runs it again."""
  return [
    sys.executable,
    "-m",
    f"launch.{sweep.command}",
    f"--config={sweep.config}",
    f"--workdir={workdir / trial.id}",
    f"--config.compile_cache={workdir / CACHE}",
    *arguments(trial),
  ]


def read_status(folder: pathlib.Path) -> dict:
  """What is known of a trial: state, failures (deaths so far), exit code, seconds over all its
  starts.
  """
  path = folder / "status.json"
  return (
    json.loads(path.read_text())
    if path.exists()
    else {"state": "waiting", "failures": 0, "exit_code": None, "seconds": 0.0}
  )


def write_status(folder: pathlib.Path, status: dict) -> None:
  atomic.write_text(folder / "status.json", json.dumps(status) + "\n")


def metric_rows(folder: pathlib.Path) -> list[dict]:
  """The rows of a trial's metrics.jsonl; a last line that is still being written is left out."""
  path = folder / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith("}")]


@dataclasses.dataclass
class Running:
  trial: Trial
  process: subprocess.Popen
  start: float
  step: int  # last step recorded when it started


class Runner:
  """Starts waiting trials while fewer than `parallel` run, and books what became of those that
  ended.
  """

  def __init__(
    self, sweep: Sweep, workdir: pathlib.Path, *, parallel: int, retries: int, launcher: list[str]
  ):
    self.sweep, self.workdir = sweep, workdir
    self.parallel, self.retries, self.launcher = parallel, retries, launcher
    self.running: list[Running] = []
    self.waiting: list[Trial] = []
    self.stop = ""

  def run(self, report: Callable[[], object]) -> None:
    """Runs everything that is not done. Raises Preempted when told to stop, after every running
    trial has saved and ended.
    """
    state = lambda trial: read_status(self.workdir / trial.id)["state"]
    self.waiting = [trial for trial in self.sweep.trials if state(trial) not in ("done", "failed")]
    settled = len(self.sweep.trials) - len(self.waiting)
    with (
      self._lock() as lock,
      self._signals(),
      Progress(len(self.sweep.trials), "sweep", "trials", done=settled) as progress,
    ):
      while self.running or (self.waiting and not self.stop):
        while (
          not self.stop
          and self.waiting
          and len(self.running) < self.parallel
          and not self._first_compiles()
        ):
          self._start(self.waiting.pop(0), lock)
        ended = [r for r in self.running if r.process.poll() is not None]
        for r in ended:
          self.running.remove(r)
          progress.update(self._settle(r))
        if ended:
          report()
        else:
          time.sleep(POLL_SECONDS)
    if self.stop:
      raise Preempted(f"{self.stop}, {len(self.waiting)} trials are left in {self.workdir}")

  def _first_compiles(self) -> bool:
    """Whether the sweep's first trial is still compiling what the others will need: starting them
    now would compile it N times over.
    """
    if (self.workdir / CACHE).exists() and any(
      (self.workdir / t.id / "metrics.jsonl").exists() for t in self.sweep.trials
    ):
      return False
    return bool(self.running)

  def _start(self, trial: Trial, lock: int) -> None:
    folder = self.workdir / trial.id
    status = read_status(folder)
    write_status(folder, {**status, "state": "running"})
    rows = metric_rows(folder)
    with (folder / "log.txt").open("a") as log:
      process = subprocess.Popen(
        [*self.launcher, *command_of(self.sweep, trial, self.workdir)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(lock,),
        start_new_session=True,
      )
    self.running.append(Running(trial, process, time.monotonic(), rows[-1]["step"] if rows else 0))

  def _settle(self, r: Running) -> int:
    """Books the end of a trial; returns 1 if it is settled and 0 if it will be started again."""
    folder = self.workdir / r.trial.id
    status, code = read_status(folder), r.process.returncode
    rows = metric_rows(folder)
    status |= {
      "exit_code": code,
      "seconds": round(status["seconds"] + time.monotonic() - r.start, 1),
    }
    if code == 0:
      status["state"] = "done"
    elif code == cli.EXIT_RETRY and (self.stop or (rows and rows[-1]["step"] > r.step)):
      status["state"] = "stopped"
    else:
      status["failures"] += 1
      status["state"] = (
        "failed" if code == cli.EXIT_BAD_INPUT or status["failures"] > self.retries else "stopped"
      )
    write_status(folder, status)
    if status["state"] == "stopped":
      self.waiting.append(r.trial)
      return 0
    return 1

  @contextlib.contextmanager
  def _lock(self):
    """One sweep a folder. The trials inherit the lock, so that it outlives a sweep that was killed
    for as long as any of them runs.
    """
    self.workdir.mkdir(parents=True, exist_ok=True)
    with (self.workdir / "sweep.lock").open("w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise InputError(
          f"{self.workdir}: this sweep, or a trial of it, is still running"
        ) from error
      yield file.fileno()

  @contextlib.contextmanager
  def _signals(self):
    """SIGTERM and SIGINT are passed on to the trials, which save and end."""

    def handle(number, frame):
      self.stop = signal.Signals(number).name
      for r in self.running:
        r.process.send_signal(signal.SIGTERM)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
