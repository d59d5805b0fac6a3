"""The goodput ledger: where the wall time of a run went, across restarts, without any cloud
service.

`goodput.jsonl` gets a row when a process begins, starts or resumes training, saves and ends, and
one every half minute in between. Time is always in exactly one phase, so a row's seconds sum to the
wall time since the process began; what lies between two processes is `down`. Work that a later
process had to do again is `lost`, whatever phase it was in.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
import contextlib
import json
import os
import pathlib
import sys
import threading
import time
from typing import Any

from sam3d_jax.files import texts

PHASES = ("init", "restore", "compile", "input_wait", "step", "eval", "checkpoint", "other")
ALIVE_SECONDS = 30.0  # between rows that only say that the process is alive


class Ledger:
  """Counts seconds by phase. `phase(name)` nests: the inner phase takes the time, the outer one
  goes on after it.

  write: whether rows are written (the first process of a job writes).  step: the last finished
  step, if training has started. changed: monotonic time of the last change of phase.  steps:
  durations of the latest steps.
  """

  def __init__(self, path: str | pathlib.Path, *, write: bool = True):
    self.path = pathlib.Path(path)
    self.write = write
    self.seconds: dict[str, float] = defaultdict(float)
    self.step: int | None = None
    self.steps: deque[float] = deque(maxlen=101)
    self.current = "init"
    # The first phase began with the process: its imports count.
    now = time.monotonic()
    self.start = self.mark = now - age_of_process()
    self.changed = self.recorded = now
    self._lock = threading.Lock()  # the watchdog's thread records too
    self._failed = False  # the last row could not be written

  def _account(self) -> None:
    """Gives the time since the last call to the present phase; to be called under the lock."""
    now = time.monotonic()
    self.seconds[self.current] += now - self.mark
    self.mark = now

  def _switch(self, name: str) -> str:
    """Enters a phase; the one that was left."""
    if name not in PHASES:
      raise ValueError(f"{name!r} is not a phase of the ledger: {PHASES}")
    # The time up to now belongs to the phase that is left.
    with self._lock:
      self._account()
      previous, self.current, self.changed = self.current, name, self.mark
    return previous

  @contextlib.contextmanager
  def phase(self, name: str):
    """Counts the time inside it as a phase's. Raises ValueError for an unknown one."""
    begin = time.monotonic()
    previous = self._switch(name)
    try:
      yield
    finally:
      self._switch(previous)
      if name == "step":
        self.steps.append(time.monotonic() - begin)

  def record(self, event: str, **fields) -> None:
    """Appends one row: the event, the wall time since the process began and the seconds of every
    phase so far.
    """
    # Under the lock to the end, so that rows of two threads do not mix.
    with self._lock:
      self._account()
      self.recorded = self.mark
      seconds = {phase: round(value, 3) for phase, value in sorted(self.seconds.items())}
      row = {
        "event": event,
        "unix_time": time.time(),
        "wall": self.mark - self.start,
        "step": self.step,
        "phase": self.current,
        **fields,
        "seconds": seconds,
      }
      if self.write:
        self._append(json.dumps(row) + "\n")

  def _append(self, line: str) -> None:
    """Training does not end for want of a row: a disk that takes none is told of once."""
    try:
      with self.path.open("ab+") as file:
        # A process that was killed may have left half a row: this one begins a line of its own.
        if file.tell():
          file.seek(-1, os.SEEK_END)
          if file.read(1) != b"\n":
            line = "\n" + line
        file.write(line.encode())
      self._failed = False
    except OSError as error:
      if not self._failed:
        print(f"ledger: {self.path} cannot be written ({error})", file=sys.stderr, flush=True)
      self._failed = True

  def alive(self) -> None:
    """Records a row if the last one is old; to be called now and then from any thread."""
    # Rows now and then bound what a killed process leaves unaccounted.
    if time.monotonic() - self.recorded >= ALIVE_SECONDS:
      self.record("alive")

  def share(self, name: str) -> float:
    """The fraction of the wall time so far that went into a phase."""
    with self._lock:
      self._account()
      wall = max(1e-9, self.mark - self.start)
      return self.seconds[name] / wall

  def text(self) -> str:
    """'35.2 s: compile 24.1, init 8.0, ...', largest first."""
    with self._lock:
      self._account()
      wall = self.mark - self.start
      parts = largest_first(self.seconds)
    # Less than a tenth of a second is no part of the picture.
    shown = []
    for name, value in parts:
      if value >= 0.05:
        shown.append(f"{name} {value:.1f}")
    listed = ", ".join(shown)
    return f"{wall:.1f} s: {listed}"


def largest_first(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
  """(phase, seconds) in the order in which they are shown."""
  return sorted(seconds.items(), key=lambda item: -item[1])


def age_of_process() -> float:
  """Seconds since this process was created, so that the start of the interpreter counts; 0 where
  /proc does not tell.
  """
  try:
    # proc(5): field 22, start time in clock ticks after boot. The name of the command, field 2, is
    # in brackets and may hold blanks.
    stat = pathlib.Path("/proc/self/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    # Both clocks count from boot, suspended time included.
    created = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, now - created)
  except (OSError, AttributeError, IndexError, ValueError):
    return 0.0


def read(path: str | pathlib.Path) -> list[list[dict[str, Any]]]:
  """The rows of a ledger, one list a process. A row that a killed process left unfinished is
  dropped.
  """
  processes: list[list[dict[str, Any]]] = []
  # Processes append to one file, one after the other.
  for row in texts.read_rows(pathlib.Path(path), "event", "unix_time", "wall", "step", "seconds"):
    # A row before the first begin starts a process of its own.
    if row["event"] == "begin" or not processes:
      processes.append([])
    processes[-1].append(row)
  return processes


def summarize(processes: Iterable[list[dict[str, Any]]]) -> dict[str, Any]:
  """Seconds by phase over all processes of a run, with `lost` and `down`; they sum to `wall`, from
  the first begin to the last row. Within a process time is that of a clock which nobody sets;
  between two of them it is the day's, and one that was set back counts as no time at all.

  Also `starts`, `step` (the last one reached) and `goodput` (the share of the wall time that went
  into steps that were kept).
  """
  processes = list(processes)
  seconds: dict[str, float] = defaultdict(float)
  reached = []
  wall = 0.0
  end = None
  for index, rows in enumerate(processes):
    first, last = rows[0], rows[-1]

    # Between two processes nothing runs.
    begin = first["unix_time"] - first["wall"]
    gap = 0.0
    if end is not None:
      gap = max(0.0, begin - end)
    seconds["down"] += gap
    wall += gap + last["wall"]

    # What a later process had to do again is lost.
    kept = kept_until(rows, processes[index + 1 :])
    for phase, total in last["seconds"].items():
      kept_seconds = kept.get(phase, 0.0)
      seconds[phase] += kept_seconds
      seconds["lost"] += total - kept_seconds

    reached += [row["step"] for row in rows if row["step"] is not None]
    end = begin + last["wall"]

  goodput = seconds["step"] / wall if wall else 0.0
  return {
    "wall": wall,
    "starts": len(processes),
    "step": max(reached, default=None),
    "goodput": goodput,
    "seconds": dict(seconds),
  }


def kept_until(rows: list[dict[str, Any]], later: list[list[dict[str, Any]]]) -> dict[str, float]:
  """Seconds by phase of one process up to the step from which a later one went on; all of them if
  none went on earlier.
  """
  last = rows[-1]
  starts = [row["step"] for process in later for row in process if row["event"] == "start"]
  resumed = starts[0] if starts else None
  if resumed is None:
    return last["seconds"]
  # A process that ended before that step has lost nothing.
  reached = last["step"] or 0
  if reached <= resumed:
    return last["seconds"]

  # The last row of which it is known that the step was saved.
  saved = [row for row in rows if row["event"] in ("start", "checkpoint")]
  kept = [row for row in saved if row["step"] <= resumed]
  if not kept:
    return last["seconds"]
  return kept[-1]["seconds"]


def table(summary: dict[str, Any]) -> list[str]:
  """The summary as lines: seconds and share of every phase, largest first."""
  # The totals first.
  starts, step = summary["starts"], summary["step"]
  wall, goodput = summary["wall"], summary["goodput"]
  lines = [
    f"{starts} starts, {wall:.1f} s from the first to the last row, step {step}, "
    f"goodput {goodput:.1%}"
  ]
  for phase, value in largest_first(summary["seconds"]):
    share = value / wall if wall else 0.0
    lines.append(f"{phase:12s} {value:12.1f} s {share:7.1%}")
  return lines
