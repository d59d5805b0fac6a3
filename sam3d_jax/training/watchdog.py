"""Finding out why a job hangs: every host writes the stacks of all its threads.

It does so when a step takes far too long. The watchdog is a thread that looks at the ledger: how
long ago the phase last changed, against the median of the latest steps. The first host that is
stuck leaves a request in `<workdir>/stacks/`, and the watchdogs of the others, which see the same
folder, follow.
"""

import dataclasses
import faulthandler
import math
import os
import pathlib
import statistics
import sys
import threading
import time

from sam3d_jax import sections
from sam3d_jax.training.ledger import Ledger

EXIT_STUCK = 1
REQUEST_SECONDS = 60.0  # requests closer together than this are one
REQUEST = ".request"  # how the name of a request ends
MOST_ANSWERS = 3  # at a time, however many somebody leaves there


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
  """When a job counts as stuck."""

  # a step, its input included, that takes this many times the median of the latest ones
  factor: float = 20.0
  seconds: float = 120.0  # and at least this long
  # anything else (compiling, saving, evaluating) that takes this long
  other_seconds: float = 3600.0
  # time after the stacks were written before the process ends itself with exit code 1; 0: never
  give_up_seconds: float = 0.0

  def __post_init__(self):
    sections.check_positive(self, "factor", "seconds", "other_seconds")
    sections.check_not_negative(self, "give_up_seconds")


class Watchdog:
  """Runs while entered."""

  def __init__(
    self,
    ledger: Ledger,
    workdir: pathlib.Path,
    cfg: WatchdogConfig,
    *,
    host: int = 0,
    poll_seconds: float = 2.0,
  ):
    self.ledger = ledger
    self.cfg = cfg
    self.folder = workdir / "stacks"
    self.host = host
    self.poll = poll_seconds
    self.dumped_at: float | None = None  # `changed` of the ledger when stacks were last written
    # request -> when this process first saw it, by a clock that nobody sets; those from before it
    # were meant for others
    self._seen = dict.fromkeys(self._listed(), -math.inf)
    self._said: set[str] = set()  # errors that were told
    self._end = threading.Event()
    self._thread = threading.Thread(
      target=self._watch,
      name="watchdog",
      daemon=True,
    )

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self._end.set()
    self._thread.join()

  def limit(self) -> float:
    """Seconds that the present phase may last."""
    # Steps are measured by themselves, once there are some; anything else has a fixed limit.
    in_step = self.ledger.current in ("step", "input_wait")
    durations = list(self.ledger.steps)
    if not in_step or not durations:
      return self.cfg.other_seconds
    # The median: a slow step now and then does not stretch the limit.
    usual = statistics.median(durations)
    return max(self.cfg.seconds, self.cfg.factor * usual)

  def _watch(self) -> None:
    while not self._end.wait(self.poll):
      # Whatever goes wrong while it looks, it looks again.
      try:
        self._look()
      except Exception as error:
        self._tell_once(f"{type(error).__name__}: {error}")

  def _look(self) -> None:
    """Finds out whether this host is stuck, or asked for its stacks."""
    self.ledger.alive()
    changed = self.ledger.changed
    phase = self.ledger.current
    waited = time.monotonic() - changed
    limit = self.limit()
    # Once for each phase that takes too long.
    if waited > limit and self.dumped_at != changed:
      self.dumped_at = changed
      self._stuck(
        f"host {self.host} has been in phase {phase} at step {self.ledger.step} "
        f"for {waited:.1f} s (allowed: {limit:.1f} s)"
      )
    elif waited > limit + self.cfg.give_up_seconds > limit:
      print(
        "watchdog: giving up, so that the job can be started again",
        file=sys.stderr,
        flush=True,
      )
      # The main thread cannot be asked.
      os._exit(EXIT_STUCK)
    self._answer()

  def _stuck(self, reason: str) -> None:
    """Writes this host's stacks and asks the other hosts for theirs."""
    print(
      f"watchdog: {reason}; the stacks of all hosts are in {self.folder}",
      file=sys.stderr,
      flush=True,
    )
    self.ledger.record("stuck", host=self.host)

    # Hosts that are stuck at the same collective share one request.
    now = time.monotonic()
    fresh = self._fresh(now)
    recent = [name for name, seen in self._seen.items() if now - seen < REQUEST_SECONDS]
    if recent:
      request = recent[-1]
    else:
      request = f"{time.time():.1f}"
      self._ask(request, reason)
    self._seen[request] = now
    for name in {request, *fresh}:
      self.dump(name, reason)

  def _ask(self, request: str, reason: str) -> None:
    """Leaves a request where the others look."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      (self.folder / f"{request}{REQUEST}").write_text(reason + "\n")
    except OSError as error:
      self._tell_once(f"the other hosts cannot be asked for their stacks ({error})")

  def _listed(self) -> list[str]:
    """The requests that lie there, by name. What the names say is not read: clocks differ."""
    try:
      names = sorted(path.name for path in self.folder.glob(f"*{REQUEST}"))
    except OSError:
      return []
    return [name.removesuffix(REQUEST) for name in names]

  def _fresh(self, now: float) -> list[str]:
    """The requests that this process has not seen before; from now on it has."""
    fresh = [name for name in self._listed() if name not in self._seen]
    self._seen.update(dict.fromkeys(fresh, now))
    return fresh

  def _answer(self) -> None:
    """Writes this host's stacks if another host has asked for them, once a request."""
    phase, step = self.ledger.current, self.ledger.step
    for request in self._fresh(time.monotonic())[:MOST_ANSWERS]:
      self.dump(request, f"another host asked; host {self.host} is in phase {phase} at step {step}")

  def dump(self, request: str, reason: str) -> None:
    """Writes the stacks of all threads of this process to `<request>_host<number>.txt`; to standard
    error where that cannot be written.
    """
    path = self.folder / f"{request}_host{self.host}.txt"
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
      with path.open("a") as file:
        file.write(f"{now} {reason}\n\n")
        # faulthandler writes past Python's buffer.
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:
      print(f"watchdog: {path} cannot be written ({error})", file=sys.stderr, flush=True)
      faulthandler.dump_traceback(sys.__stderr__, all_threads=True)

  def _tell_once(self, what: str) -> None:
    if what not in self._said:
      self._said.add(what)
      print(f"watchdog: {what}; it goes on watching", file=sys.stderr, flush=True)
