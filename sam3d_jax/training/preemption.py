"""Being told to stop: SIGTERM and SIGINT become a flag that the loop reads between steps."""

import signal
import sys

import jax
from jax.experimental import multihost_utils
import numpy as np


class StopFlag:
  """While entered, the first SIGTERM or SIGINT asks for a stop at the next safe point; a second SIGINT stops at once.

  The flag is armed before data, compilation and restore, so a signal during any of them is kept, not lost.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.reason = ""
    self._previous: dict[int, object] = {}

  def __enter__(self):
    self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
    return self

  def __exit__(self, *unused):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self.reason and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.reason = signal.Signals(number).name
    print(f"\n{self.reason}: saving at the next step (press Ctrl-C again to stop at once, losing the steps since the last checkpoint)",
          file=sys.stderr, flush=True)

  def agreed(self) -> bool:
    """Whether any host was asked to stop. Every host must call it at the same step; with one host it costs nothing."""
    if jax.process_count() == 1:
      return bool(self.reason)
    return bool(multihost_utils.process_allgather(np.array(bool(self.reason))).any())
