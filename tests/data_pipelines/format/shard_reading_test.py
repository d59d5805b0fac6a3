"""A failing disk is told from a damaged record."""

import contextlib
import os
import resource

import numpy as np
import pytest

from data_pipelines.format import records, shard_reading
from data_pipelines.format.shard_reading import CorruptRecord, Readers
from sam3d_jax.errors import JobFailed
from sam3d_jax.files import handles, retries
from tests.support import tiny_dataset
from tests.support.reading import make

COUNT = 12
EIO = "pread() failed: Input/output error; reading shard; at byte 65536"
HASH = "Corrupted Riegeli/records file: chunk data hash mismatch (computed 0x1, stored 0x2)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("sound"), COUNT, shards=4)


@pytest.fixture(autouse=True)
def readers(monkeypatch):
  """Readers of this test alone, and a disk that is given up after half a second."""
  fresh = Readers()
  monkeypatch.setattr(shard_reading, "READERS", fresh)
  monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.5)
  monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
  return fresh


def fail(monkeypatch, readers, *messages: str, always: bool = False) -> None:
  """The first reads from the disk fail with these messages; all with the last one if `always`."""
  left = list(messages)
  real = readers.read

  def read(path, position):
    if left:
      message = left[0] if always and len(left) == 1 else left.pop(0)
      raise RuntimeError(message)
    return real(path, position)

  monkeypatch.setattr(readers, "read", read)


@pytest.mark.parametrize(
  "message",
  [
    EIO,
    "open() failed: Too many open files; opening shard",
    "open() failed: Stale file handle; opening shard",
    "open() failed: No such file or directory; opening shard",
    "UNAVAILABLE: 503",
  ],
)
def test_a_read_that_a_disk_fails_once_changes_nothing_of_the_batch(
  folder, monkeypatch, readers, message, capfd
):
  whole = make(folder).batch(0)
  fail(monkeypatch, readers, message, message)
  reading = make(folder)
  # what a loader looks at when it is opened has met the failures
  fail(monkeypatch, readers, message)
  batch = reading.batch(0)
  np.testing.assert_array_equal(batch.key, whole.key)
  assert reading.counters() == {"data/corrupt_records": 0, "data/read_retries": 1}


def test_a_disk_that_goes_on_failing_fails_the_job_and_replaces_nothing(
  folder, monkeypatch, readers
):
  reading = make(folder)
  fail(monkeypatch, readers, EIO, always=True)
  with pytest.raises(JobFailed, match="Input/output error.*tried for .* mend it and run the same"):
    reading.batch(0)
  assert not reading.corrupt


def test_a_record_is_damaged_only_if_two_reads_agree(folder, monkeypatch, readers):
  split = records.open_split(folder)
  fail(monkeypatch, readers, HASH)
  with retries.counting() as tally:
    assert split[0]["key"] == tiny_dataset.make_example(0)["key"]
  assert tally.count == 1

  fail(monkeypatch, readers, HASH, HASH)
  with pytest.raises(CorruptRecord, match="hash mismatch"):
    split[0]


def test_reads_that_never_agree_are_the_disks_fault(folder, monkeypatch, readers):
  split = records.open_split(folder)
  fail(monkeypatch, readers, *[f"{HASH} {number}" for number in range(9)])
  with pytest.raises(JobFailed, match="5 reads gave different bytes"):
    split[0]


def test_few_shards_stay_open_and_the_others_are_closed(folder, monkeypatch):
  few = Readers(most=2)
  monkeypatch.setattr(shard_reading, "READERS", few)
  split = records.open_split(folder)
  open_before = len(os.listdir("/proc/self/fd"))
  for index in range(COUNT):
    split[index]
  assert len(few) == 2
  assert len(os.listdir("/proc/self/fd")) <= open_before + 2


def test_running_out_of_open_files_closes_readers_and_goes_on(folder, readers):
  split = records.open_split(folder)
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  highest = max(int(name) for name in os.listdir("/proc/self/fd"))
  readers.most = COUNT
  taken = []
  try:
    # room for one shard
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, limits[1]))
    with contextlib.suppress(OSError):
      while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    os.close(taken.pop())
    with retries.counting() as tally:
      for index in range(COUNT):
        split[index]
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for descriptor in taken:
      os.close(descriptor)
  assert tally.count > 0


def test_the_limit_of_open_files_is_raised(monkeypatch):
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    assert handles.raise_limit() == min(handles.WANTED, limits[1])
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  monkeypatch.setattr(handles, "LEAST", handles.WANTED + 1)
  with pytest.raises(JobFailed, match="ulimit -n"):
    handles.raise_limit()
