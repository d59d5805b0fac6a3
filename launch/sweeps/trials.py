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
from launch.console.progress import Progress, say
from launch.sweeps.space import Sweep, Trial, arguments
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError, Preempted
from sam3d_jax.files import atomic, texts

METRICS = "metrics.jsonl"
CACHE = "compile_cache"  # of the sweep: trials whose programs agree compile once
EVALUATED = "eval/"  # how the names of metrics begin that evaluation writes
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
  known = {"state": "waiting", "failures": 0, "exit_code": None, "seconds": 0.0}
  return texts.read_own(folder / "status.json", *known) or known


def write_status(folder: pathlib.Path, status: dict) -> None:
  atomic.write_text(folder / "status.json", json.dumps(status) + "\n")


def metric_rows(folder: pathlib.Path) -> list[dict]:
  """The rows of a trial's metrics.jsonl; a last line that is still being written is left out."""
  return texts.read_rows(folder / METRICS, "step")


def last_step(folder: pathlib.Path) -> int:
  """The last step that a trial has recorded, 0 before the first."""
  rows = metric_rows(folder)
  return rows[-1]["step"] if rows else 0


def first_cause(log: str) -> str:
  """Why a command ended badly, in a line: what it says itself, else the last line of its log."""
  lines = [line.strip() for line in log.splitlines() if line.strip()]
  for line in lines:
    if line.startswith(("error: ", "failed: ")):
      return line
  return lines[-1] if lines else "it said nothing"


def missing_metric(rows: list[dict], metric: str, *, done: bool) -> str:
  """What is wrong if a trial writes other metrics than the one that its sweep ranks by, '' if it
  may still come.

  done: the trial has ended well.
  """
  if any(metric in row for row in rows):
    return ""
  # What belongs to an evaluation is written by the next one at the latest, what belongs to steps
  # likewise.
  evaluated = metric.startswith(EVALUATED)
  names, steps = set(), set()
  for row in rows:
    of_kind = {name for name in row if name.startswith(EVALUATED) == evaluated} - {"step"}
    names |= set(row) - {"step"}
    if of_kind:
      steps.add(row["step"])
  if not names or (not done and len(steps) < 2):
    return ""
  near = sections.nearest(metric, names)
  return f"metric = {metric!r} is written by no trial{near}; there are {', '.join(sorted(names))}"


def wrong_metric(sweep: Sweep, workdir: pathlib.Path) -> tuple[bool, str]:
  """Whether any trial has written the metric, and if none has what is wrong with it, '' if it may
  still come.
  """
  wrong = ""
  for trial in sweep.trials:
    folder = workdir / trial.id
    rows = metric_rows(folder)
    if any(sweep.metric in row for row in rows):
      return True, ""
    done = read_status(folder)["state"] == "done"
    wrong = wrong or missing_metric(rows, sweep.metric, done=done)
  return False, wrong


@dataclasses.dataclass
class Running:
  """A trial that was started."""

  trial: Trial
  process: subprocess.Popen
  start: float
  step: int  # last step recorded when it started
  said: int  # length of its log then


class Runner:
  """Starts waiting trials while fewer than `parallel` run, and books what became of those that
  ended.
  """

  def __init__(
    self, sweep: Sweep, workdir: pathlib.Path, *, parallel: int, retries: int, launcher: list[str]
  ):
    """parallel: trials that run at a time. retries: starts after a death. launcher: words before
    the command line of a trial.
    """
    self.sweep = sweep
    self.workdir = workdir
    self.parallel = parallel
    self.retries = retries
    self.launcher = launcher
    self.running: list[Running] = []
    self.waiting: list[Trial] = []
    self.stop = ""  # name of the signal that said so
    self.wrong = ""  # what is wrong with the sweep, seen while it runs
    self.metric_seen = False

  def run(self, report: Callable[[], object]) -> None:
    """Runs everything that is not done. Raises Preempted when told to stop, and ConfigError if the
    trials do not write the metric; both after every running trial has saved and ended.
    """
    # What an earlier start of this sweep has settled stays as it is.
    for trial in self.sweep.trials:
      if read_status(self.workdir / trial.id)["state"] not in ("done", "failed"):
        self.waiting.append(trial)
    total = len(self.sweep.trials)
    settled = total - len(self.waiting)
    with (
      self._lock() as lock,
      self._signals(),
      Progress(total, "sweep", "trials", done=settled) as progress,
    ):
      while self.running or (self.waiting and not self.stop):
        # Fill what room there is, then book what has ended.
        while self._may_start():
          self._start(self.waiting.pop(0), lock)
        ended = [one for one in self.running if one.process.poll() is not None]
        for one in ended:
          self.running.remove(one)
          progress.update(self._settle(one))
        self._check_metric()
        if ended:
          report()
        else:
          time.sleep(POLL_SECONDS)
    if self.wrong:
      raise ConfigError(self.wrong)
    if self.stop:
      raise Preempted(f"{self.stop}, {len(self.waiting)} trials are left in {self.workdir}")

  def _check_metric(self) -> None:
    """Stops the sweep if its trials do not write the metric that it ranks by."""
    if self.metric_seen or self.stop:
      return
    self.metric_seen, self.wrong = wrong_metric(self.sweep, self.workdir)
    if self.wrong:
      self._end_all("the metric is not there")

  def _end_all(self, why: str) -> None:
    """Lets no further trial start, and those that run save and end."""
    self.stop = why
    for one in self.running:
      one.process.send_signal(signal.SIGTERM)

  def _may_start(self) -> bool:
    """Whether there is a trial to start, and room for it."""
    room = len(self.running) < self.parallel
    return bool(self.waiting) and room and not self.stop and not self._first_compiles()

  def _first_compiles(self) -> bool:
    """Whether the sweep's first trial is still compiling what the others will need: starting them
    now would compile it N times over.
    """
    if not self.running:
      return False
    if not (self.workdir / CACHE).exists():
      return True
    # the cache is there before its programs are; who has metrics has compiled them
    trained = [(self.workdir / trial.id / METRICS).exists() for trial in self.sweep.trials]
    return not any(trained)

  def _start(self, trial: Trial, lock: int) -> None:
    """Starts a trial. lock: descriptor of the sweep's lock, which it inherits."""
    # it runs from here on for whoever looks into its folder
    folder = self.workdir / trial.id
    status = read_status(folder)
    write_status(folder, {**status, "state": "running"})
    step = last_step(folder)
    with (folder / "log.txt").open("a") as log:
      said = log.tell()
      process = subprocess.Popen(
        [*self.launcher, *command_of(self.sweep, trial, self.workdir)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(lock,),
        # what interrupts the sweep reaches a trial only through `_signals`
        start_new_session=True,
      )
    self.running.append(Running(trial, process, time.monotonic(), step, said))

  def _settle(self, ended: Running) -> int:
    """Books the end of a trial; returns 1 if it is settled and 0 if it will be started again."""
    # how it ended, and whether this start got anywhere
    folder = self.workdir / ended.trial.id
    code = ended.process.returncode
    progressed = last_step(folder) > ended.step
    status = read_status(folder)
    seconds = status["seconds"] + time.monotonic() - ended.start
    status |= {"exit_code": code, "seconds": round(seconds, 1)}

    # Preempted trials go on for as long as they get anywhere; the dead are tried a few times more.
    if code == 0:
      status["state"] = "done"
    elif code == cli.EXIT_RETRY and (self.stop or progressed):
      status["state"] = "stopped"
    else:
      status["failures"] += 1
      hopeless = code == cli.EXIT_BAD_INPUT or status["failures"] > self.retries
      status["state"] = "failed" if hopeless else "stopped"
    write_status(folder, status)
    if code not in (0, cli.EXIT_RETRY):
      self._tell_cause(ended, again=status["state"] == "stopped")

    if status["state"] == "stopped":
      self.waiting.append(ended.trial)
      return 0
    return 1

  def _tell_cause(self, ended: Running, *, again: bool) -> None:
    """Says why a trial ended badly, as soon as it has."""
    log = self.workdir / ended.trial.id / "log.txt"
    with log.open("rb") as file:
      file.seek(ended.said)
      cause = first_cause(file.read().decode(errors="replace"))
    next_thing = "it is started again" if again else f"all of it is in {log}"
    say(f"{ended.trial.id} ended with code {ended.process.returncode}: {cause} ({next_thing})")

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
      self._end_all(signal.Signals(number).name)

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT):
      previous[number] = signal.signal(number, handle)
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
