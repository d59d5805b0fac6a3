"""Being told to stop: SIGTERM and SIGINT become a flag that the loop reads between steps."""

import os
import signal


class StopFlag:
  """While entered, the first SIGTERM or SIGINT asks for a stop at the next safe point.

  A second SIGINT stops at once. The flag is armed before JAX is imported, so a signal during
  imports, compilation or restore is kept, not lost. Which step is the safe point is agreed between
  the hosts by `training.pulse`.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.reason = ""
    self._previous: dict[int, object] = {}

  def __enter__(self):
    # What was there before is put back at the end.
    for number in self.SIGNALS:
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *unused):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    # Whoever presses Ctrl-C twice does not want to wait.
    if self.reason and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.reason = signal.Signals(number).name
    # Written past Python's buffers: the signal may have come in the middle of a print.
    told = (
      f"\n{self.reason}: saving at the next step (Ctrl-C again stops at once and loses the steps "
      "since the last save)\n"
    )
    os.write(2, told.encode())
