"""Which checkpoints stay: the newest few, always the newest one that is known to read back, and
the best one of a run that looks for it.

A step counts as good once it was read back from disk and every checksum agreed. Reading back runs
in a thread of the first process, beside training; while one is being read, nothing is removed. So
however many newer steps a dying disk swallows, the last good one stays.
"""

from collections.abc import Callable
import pathlib
import shutil
import sys
import threading

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import blame, locks
from sam3d_jax.training.checksums import CorruptCheckpoint


def set_aside(folder: pathlib.Path) -> None:
  """Renames a damaged step to `<step>.damaged` (or `.damaged.2`, ...), to be looked into."""
  locks.check(folder)
  target = folder.with_name(f"{folder.name}.damaged")
  number = 1
  # The same step may have been damaged before.
  while target.exists():
    number += 1
    target = folder.with_name(f"{folder.name}.damaged.{number}")
  if folder.exists():
    folder.rename(target)


class Keeper:
  """Reads committed steps back and removes old ones. Only the first process has one.

  good: the newest step known to read back.  damaged: steps that did not.  unread: steps that a
  failing disk did not give back; nothing is known of them, so they stay.  best: a step that stays
  however old it gets.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    keep: int,
    *,
    verify: Callable[[pathlib.Path, int, Callable[[], bool]], None],
  ):
    self.workdir = workdir
    self.folder = workdir / "checkpoints"
    self.keep = keep
    self.verify = verify
    self.good: int | None = None
    self.best: int | None = None
    self.damaged: list[int] = []
    self.unread: list[int] = []
    self.thread: threading.Thread | None = None
    self.closing = threading.Event()
    # Of a process that was killed while it removed them.
    for leftover in self.folder.glob("*.deleted"):
      shutil.rmtree(leftover, ignore_errors=True)

  def committed(self, step: int) -> None:
    """Starts reading `step` back, unless an earlier one is still being read.

    Training never waits for it.
    """
    if self.thread is not None and self.thread.is_alive():
      return
    # A daemon: a job that fails does not wait for a disk.
    self.thread = threading.Thread(
      target=self._check,
      args=(step,),
      name="checkpoint-read-back",
      daemon=True,
    )
    self.thread.start()

  def close(self) -> None:
    """Ends the thread at the next array; what was not checked is kept."""
    self.closing.set()
    if self.thread is not None:
      self.thread.join()

  def wait(self) -> None:
    """Returns when what is being read back is done."""
    if self.thread is not None:
      self.thread.join()

  def _check(self, step: int) -> None:
    """Reads a step back, and then removes old ones. Runs in the thread, so it raises nothing."""
    try:
      self._check_and_remove(step)
    except (OSError, JobFailed, InputError) as error:
      self.unread.append(step)
      print(
        f"checkpoint: step {step} could not be read back ({blame.said(error)}): all steps stay",
        file=sys.stderr,
        flush=True,
      )

  def _check_and_remove(self, step: int) -> None:
    try:
      self.verify(self.workdir, step, self.closing.is_set)
    except CorruptCheckpoint as error:
      # Kept for whoever looks into it, out of the way of a restart.
      self.damaged.append(step)
      print(
        f"checkpoint: step {step} did not read back ({error}); it is set aside as {step}.damaged",
        file=sys.stderr,
        flush=True,
      )
      set_aside(self.folder / str(step))
      return
    # A check that was cut short says nothing of the step.
    if not self.closing.is_set():
      self.good = step
      self._remove_old()

  def _remove_old(self) -> None:
    locks.check(self.folder)
    names = [path.name for path in self.folder.iterdir()]
    present = sorted(int(name) for name in names if name.isdigit())
    for step in present[: -self.keep]:
      if step in (self.good, self.best):
        continue
      # Gone at once, however long removing takes.
      folder = self.folder / str(step)
      deleted = self.folder / f"{step}.deleted"
      doomed = folder.rename(deleted)
      shutil.rmtree(doomed)
