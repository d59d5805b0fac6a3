"""A checkpoint that is damaged, told from a disk that fails.

Damage is what two reads agree on, the second past the system's cache: the same checksum, the same
complaint of the storage layer. What the system says of its disk is tried again, with pauses, and
fails the job if it lasts; a step is never set aside for it.
"""

from collections.abc import Callable
import contextlib
import os
import pathlib
from typing import TypeVar

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import blame, retries
from sam3d_jax.training.checksums import CorruptCheckpoint

UNLIKE_READS = 5  # all different: then the disk does not give what it holds
# What the storage layer has been seen to raise over damaged files.
READ_ERRORS = (
  OSError,
  ValueError,
  KeyError,
  RuntimeError,
  TypeError,
  AttributeError,
  AssertionError,
)

Value = TypeVar("Value")


def unreadable(error: Exception) -> str:
  """What the storage layer says, in a line."""
  lines = str(error).splitlines()
  said = lines[0] if lines else type(error).__name__
  return f"its arrays cannot be read: {said}"


def kind_of(error: Exception) -> str:
  """What kind of complaint it is: the code of the storage layer (DATA_LOSS, OUT_OF_RANGE, ...).

  Arrays are read beside each other, so which of several damaged ones is met first is chance.
  """
  code, colon, _ = str(error).partition(":")
  if colon and code.isupper():
    return code
  return type(error).__name__


class Reads:
  """The reads of one thing so far, and what each has found wrong. folder: where it lies."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.seen: list[str] = []
    self._patience = retries.Patience(str(folder))

  def failed(self, error: Exception) -> None:
    """Returns if it is to be read again.

    Raises CorruptCheckpoint if this read says what one before said, JobFailed if the disk fails for
    too long or no two reads agree, InputError for a lack of permission.
    """
    number = blame.system_errno(error)
    is_damage = isinstance(error, CorruptCheckpoint)
    if not is_damage and number in blame.PERMISSION:
      raise blame.explained(OSError(number, os.strerror(number), str(self.folder)), self.folder)
    # A folder that is gone with all that lay beside it is a disk that is gone.
    is_gone = not self.folder.parent.is_dir()
    if not is_damage and (is_gone or blame.is_of_the_disk(error)):
      self._patience.again(error)
      return

    # What this read found, in a form that two reads of the same bytes share.
    if is_damage:
      said = str(error)
      evidence = said + error.evidence
    else:
      said = unreadable(error)
      evidence = kind_of(error)
    if evidence in self.seen:
      raise error if is_damage else CorruptCheckpoint(said) from error
    # The first read that found it: the next one has to come from the disk.
    self.seen.append(evidence)
    if len(self.seen) == UNLIKE_READS:
      raise JobFailed(
        f"{self.folder}: {UNLIKE_READS} reads gave different bytes, last: {said}; the disk or the "
        "memory is at fault, not the file"
      ) from error
    retries.count()
    drop_cache(self.folder)


def agreed(read: Callable[[], Value], folder: pathlib.Path) -> Value:
  """What `read()` gives, which reads something below `folder`.

  Raises as `Reads.failed` does, and InputError and JobFailed of `read` at once.
  """
  reads = Reads(folder)
  while True:
    try:
      return read()
    except CorruptCheckpoint as error:
      reads.failed(error)
    except (InputError, JobFailed):
      raise
    except READ_ERRORS as error:
      reads.failed(error)


def drop_cache(folder: pathlib.Path) -> None:
  """Lets the system forget what it has read of the files in a folder, so that the next read comes
  from the disk. What cannot be dropped stays.
  """
  for path in folder.rglob("*"):
    # It is asked before a second read, which tells what is wrong with a file that cannot be opened.
    with contextlib.suppress(OSError), path.open("rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
