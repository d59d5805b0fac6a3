"""The goodput ledger: where the wall time of a run went, across restarts, without any cloud service.

`goodput.jsonl` gets one row per phase change that matters and one summary row per start. The seconds of a start's rows sum to its
wall time, because time is always in exactly one phase.
"""

from collections import defaultdict
import contextlib
import json
import pathlib
import time

PHASES = ("init", "restore", "compile", "input_wait", "step", "eval", "checkpoint", "lost", "other")


class Ledger:
  """Counts seconds by phase. `phase(name)` nests: the inner phase takes the time, the outer one goes on after it."""

  def __init__(self, path: str | pathlib.Path, *, write: bool = True):
    self.path, self.write = pathlib.Path(path), write
    self.seconds: dict[str, float] = defaultdict(float)
    self.start = self.mark = time.monotonic()
    self.current = "other"

  def _switch(self, name: str) -> str:
    if name not in PHASES:
      raise ValueError(f"{name!r} is not a phase of the ledger: {PHASES}")
    now = time.monotonic()
    self.seconds[self.current] += now - self.mark
    self.mark, previous, self.current = now, self.current, name
    return previous

  @contextlib.contextmanager
  def phase(self, name: str):
    previous = self._switch(name)
    try:
      yield
    finally:
      self._switch(previous)

  def record(self, event: str, **fields) -> None:
    """Appends one row: the event, the wall time since the start and the seconds of every phase so far."""
    self._switch(self.current)
    row = {"event": event, "unix_time": time.time(), "wall": self.mark - self.start, **fields,
           "seconds": {k: round(v, 3) for k, v in sorted(self.seconds.items())}}
    if self.write:
      with self.path.open("a") as file:
        file.write(json.dumps(row) + "\n")

  def share(self, name: str) -> float:
    """The fraction of the wall time so far that went into a phase."""
    self._switch(self.current)
    return self.seconds[name] / max(1e-9, self.mark - self.start)
