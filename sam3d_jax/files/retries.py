"""Reading again what a disk did not give: an error of input or output says nothing of the file.

    patience = retries.Patience("record 7 of a.array_record")
    while True:
      try:
        return read()
      except OSError as error:
        patience.again(error)     # waits a moment; raises JobFailed when it has lasted too long

Network disks fail for seconds to minutes and come back. Whoever reads waits that long before the
job fails, with exit code 1, so that whatever started it starts it again.
"""

from collections.abc import Callable, Iterator
import contextlib
import sys
import threading
import time
from typing import TypeVar

from sam3d_jax.errors import JobFailed
from sam3d_jax.files import blame

PATIENCE_SECONDS = 120.0  # that one read is tried again
FIRST_PAUSE = 0.1  # seconds; each pause is twice the one before,
LONGEST_PAUSE = 10.0  # up to this
SAID_SECONDS = 10.0  # between lines that tell of failing reads

Value = TypeVar("Value")


class Tally:
  """count: reads that were tried again while it was open, by the thread that opened it."""

  def __init__(self):
    self.count = 0


_of_thread = threading.local()  # the tally that is open in a thread
_said_at = -SAID_SECONDS  # monotonic time of the last line


@contextlib.contextmanager
def counting() -> Iterator[Tally]:
  """Counts the reads that this thread tries again in the block."""
  before = getattr(_of_thread, "tally", None)
  tally = Tally()
  _of_thread.tally = tally
  try:
    yield tally
  finally:
    _of_thread.tally = before
    # what is counted inside counts outside too
    if before is not None:
      before.count += tally.count


def count() -> None:
  """Counts one read that is tried again."""
  tally = getattr(_of_thread, "tally", None)
  if tally is not None:
    tally.count += 1


class Patience:
  """How long one read is tried again. what: is read, in words."""

  def __init__(self, what: str):
    self.what = what
    self._begin = time.monotonic()
    self._pause = FIRST_PAUSE

  def again(self, error: BaseException) -> None:
    """Waits before the next try. Raises JobFailed if the disk has failed for too long."""
    waited = time.monotonic() - self._begin
    if waited + self._pause > PATIENCE_SECONDS:
      remedy = "the disk is at fault, not the file: mend it and run the same command again"
      if blame.system_errno(error) in blame.HANDLES:
        remedy = "raise the limit of open files (ulimit -n) and run the same command again"
      raise JobFailed(
        f"{self.what} cannot be read ({blame.said(error)}), tried for {waited:.0f} s: {remedy}"
      ) from error
    count()
    _tell(f"{self.what} cannot be read ({blame.said(error)}): trying again")
    time.sleep(self._pause)
    self._pause = min(2 * self._pause, LONGEST_PAUSE)


def patiently(read: Callable[[], Value], what: str) -> Value:
  """What `read()` gives; tried again while it raises what a failing disk says.

  Raises JobFailed if that lasts too long, and whatever else `read` raises at once.
  """
  patience = Patience(what)
  while True:
    try:
      return read()
    except JobFailed:
      raise
    except Exception as error:
      if not blame.is_of_the_disk(error):
        raise
      patience.again(error)


def _tell(line: str) -> None:
  """Prints a line, unless one was printed a moment ago: many threads may meet one failing disk."""
  global _said_at
  now = time.monotonic()
  if now - _said_at < SAID_SECONDS:
    return
  _said_at = now
  print(f"reading: {line}", file=sys.stderr, flush=True)
