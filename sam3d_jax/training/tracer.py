"""A profile of a running job: `touch <workdir>/profile`, or SIGUSR1 to a process.

The job goes on. The file makes every host trace the next few steps, the signal only the process
that gets it. Traces lie in `<workdir>/traces/`, for TensorBoard's profile plugin, XProf or
Perfetto.
"""

import pathlib
import signal
import sys
import threading

import jax

STEPS = 5  # steps that a trace covers


class Tracer:
  """Entered for the time of training; told of every step."""

  def __init__(self, workdir: pathlib.Path):
    # A file reaches every host that shares the folder.
    self.request = workdir / "profile"
    self.folder = workdir / "traces"
    self.asked = False  # by a signal
    self.until: int | None = None  # first step that the trace under way does not cover
    self._previous = None

  def __enter__(self):
    # Python lets no other thread handle signals.
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGUSR1, self._handle)
    return self

  def __exit__(self, *unused):
    self._stop()
    if self._previous is not None:
      signal.signal(signal.SIGUSR1, self._previous)

  def _handle(self, number, frame) -> None:
    self.asked = True

  def before_step(self, step: int) -> None:
    """Starts or ends a trace if it is time."""
    # One trace at a time; a request during one waits for its end.
    if self.until is not None:
      if step >= self.until:
        self._stop()
    elif self.asked or self.request.exists():
      self.asked = False
      self.until = step + STEPS
      jax.profiler.start_trace(self.folder / f"step_{step}")

  def _stop(self) -> None:
    if self.until is None:
      return
    jax.profiler.stop_trace()
    # Only now, so that every host has seen it.
    if jax.process_index() == 0:
      self.request.unlink(missing_ok=True)
    first, last = self.until - STEPS, self.until - 1
    print(
      f"profile: steps {first} to {last} are traced in {self.folder}",
      file=sys.stderr,
      flush=True,
    )
    self.until = None
