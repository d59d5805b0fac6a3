"""Records of shards, read so that a failing disk is told from a damaged record.

A record counts as damaged if two reads, each with a file opened anew, agree on it: the same error
over the same bytes, ArrayRecord's own checksums among them. What the system says of its disk, of
the network or of open files is tried again, with pauses, and fails the job if it lasts; it never
makes a record count as damaged, so the batch stays a function of (seed, step).
"""

from collections import OrderedDict
from collections.abc import Callable
import contextlib
import hashlib
import os
import threading
from typing import TypeVar

from array_record.python import array_record_module

from sam3d_jax.errors import JobFailed
from sam3d_jax.files import blame, handles, retries

MOST_READERS = 1024  # open shards of a process
LEAST_READERS = 16
SHARE = 4  # a process gives one in so many of its open files to shards
UNLIKE_READS = 5  # of one record, all different: then the disk does not give what it holds
# what ArrayRecord and the decoding of a record raise
ERRORS = (RuntimeError, ValueError, OSError)

Value = TypeVar("Value")


class CorruptRecord(ValueError):
  """One record cannot be used; the message is the reason."""


class Readers:
  """Readers of shards, the latest used; safe to share between threads.

  most: that stay open; None: what the limit of open files leaves. One that is let go closes its
  file when the last thread that reads from it is done.
  """

  def __init__(self, most: int | None = None):
    self.most = most
    self._open: OrderedDict[str, object] = OrderedDict()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._open)

  def read(self, path: str, position: int) -> bytes:
    """One record. Raises what ArrayRecord raises."""
    reader = self._reader(path)
    (record,) = reader.read([position])
    return record

  def forget(self, path: str) -> None:
    """Opens the shard anew next time."""
    with self._lock:
      self._open.pop(path, None)

  def halve(self) -> None:
    """Lets half of the readers go, the least used ones: the process is out of open files."""
    with self._lock:
      for _ in range((len(self._open) + 1) // 2):
        self._open.popitem(last=False)

  def _reader(self, path: str):
    with self._lock:
      reader = self._open.get(path)
      if reader is not None:
        self._open.move_to_end(path)
        return reader
    # Opened outside the lock: a slow disk holds up who needs this shard, nobody else.
    opened = array_record_module.ArrayRecordReader(path)
    with self._lock:
      reader = self._open.setdefault(path, opened)
      self._open.move_to_end(path)
      if self.most is None:
        share = handles.limit() // SHARE
        self.most = max(LEAST_READERS, min(MOST_READERS, share))
      while len(self._open) > self.most:
        self._open.popitem(last=False)
    return reader


READERS = Readers()  # of this process


def read(path: str, position: int, decode: Callable[[bytes], Value]) -> Value:
  """What `decode` makes of a record.

  Raises CorruptRecord if two reads agree that it is damaged, JobFailed if the disk fails for longer
  than `retries.PATIENCE_SECONDS` or gives other bytes at every read.
  """
  patience = retries.Patience(f"{path} record {position}")
  seen: list[tuple[str, str]] = []  # what was read so far, and what was wrong with it
  while True:
    record = b""
    try:
      record = READERS.read(path, position)
      return decode(record)
    except ERRORS as error:
      READERS.forget(path)
      number = blame.system_errno(error)
      # The system speaks of the disk while no record was read; what a decoder says is its own.
      if not record and (number is not None or blame.is_of_the_disk(error)):
        if number in blame.HANDLES:
          READERS.halve()
        patience.again(error)
        continue

      # Damaged, if another read of the disk says the same.
      found = (hashlib.sha256(record).hexdigest(), str(error))
      if found in seen:
        raise CorruptRecord(str(error)) from error
      seen.append(found)
      if len(seen) == UNLIKE_READS:
        raise JobFailed(
          f"{path} record {position}: {UNLIKE_READS} reads gave different bytes, last: {error}; "
          "the disk or the memory is at fault, not the file"
        ) from error
      retries.count()


def read_all(path: str | os.PathLike) -> list[bytes]:
  """All records of a shard. Raises as `length`."""

  def once() -> list[bytes]:
    with contextlib.closing(array_record_module.ArrayRecordReader(os.fspath(path))) as reader:
      return list(reader.read_all())

  return retries.patiently(once, os.fspath(path))


def length(path: str | os.PathLike) -> int:
  """Number of records of a shard, from its footer.

  Raises JobFailed if the disk fails for too long, else what ArrayRecord raises over a file that is
  none of its own.
  """

  def once() -> int:
    with contextlib.closing(array_record_module.ArrayRecordReader(os.fspath(path))) as reader:
      return reader.num_records()

  return retries.patiently(once, os.fspath(path))
