"""Records that cannot be read: named, counted, replaced, up to a budget."""

import contextlib
import shutil
import subprocess

import numpy as np
import pytest

from data_pipelines.format import schema, shard_reading
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import loader, rows
from sam3d_jax.errors import JobFailed
from sam3d_jax.files import retries
from tests.support import tiny_dataset
from tests.support.reading import COUNT, join, make

EMPTY_MASK = tiny_dataset.encode_png(np.zeros((tiny_dataset.SIZE,) * 2, np.uint8))
# index of an example -> what makes it unusable
DAMAGED = {3: {"image": b"no image"}, 7: {"mask": EMPTY_MASK}, 11: {"image": b""}}


def damage(example):
  """Three of the 24 examples become unusable in three ways."""
  for index, change in DAMAGED.items():
    if example["key"] == tiny_dataset.make_example(index)["key"]:
      return example | change
  return example


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("damaged")
  return tiny_dataset.write_dataset(out, COUNT, shards=1, change=damage)


def test_corrupt_records_are_named_counted_and_replaced_alike_on_all_hosts(damaged_folder):
  # the same keys on one host and on four
  one = make(damaged_folder)
  hosts = [make(damaged_folder, host_index=i, host_count=4) for i in range(4)]
  read = set()
  for step in range(3):
    whole = one.batch(step).key
    parts = join([host.batch(step) for host in hosts])
    np.testing.assert_array_equal(whole, parts["/key"])
    read |= set(map(tuple, whole))

  # every record but the damaged ones
  bad = set()
  for index in DAMAGED:
    key = tiny_dataset.make_example(index)["key"]
    bad.add(tuple(schema.key_words(key)))
  assert len(read) == COUNT - 3
  assert not read & bad

  # those are named, once each
  named_by_hosts = {record for host in hosts for record in host.corrupt}
  assert set(one.corrupt) == named_by_hosts
  for index in DAMAGED:
    assert sum(name.endswith(f" record {index}") for name in one.corrupt) == 1
  assert one.metrics(3)["data/corrupt_records"] == 3


def test_a_corrupt_record_is_told_at_once_and_once(damaged_folder, capsys):
  reading = make(damaged_folder)
  for step in range(9):
    reading.batch(step)
  told = capsys.readouterr().err
  for index in DAMAGED:
    assert told.count(f"record {index} is unreadable") == 1
  assert "(3 of quarantine_budget = 100)" in told


def test_a_failing_disk_ends_the_run_from_whatever_thread_reads(
  damaged_folder, tmp_path, monkeypatch
):
  folder = shutil.copytree(damaged_folder, tmp_path / "gone")
  monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.0)
  reading = make(folder)
  for shard in folder.glob("*.array_record*"):
    shard.unlink()
  monkeypatch.setattr(shard_reading, "READERS", shard_reading.Readers())
  with pytest.raises(JobFailed, match="No such file"):
    with contextlib.closing(reading.iterate()) as batches:
      next(batches)


def test_same_corrupt_record_met_again_counts_once_towards_the_budget(damaged_folder):
  reading = make(damaged_folder, quarantine_budget=3)
  for step in range(9):
    reading.batch(step)
  assert len(reading.corrupt) == 3
  assert sum(reading.replaced.values()) >= 9


def test_run_fails_over_the_budget_naming_the_records(damaged_folder):
  reading = make(damaged_folder, quarantine_budget=2)
  message = r"(?s)3 unreadable records, data.quarantine_budget = 2:.*record 7"
  with pytest.raises(loader.QuarantineExceeded, match=message):
    with contextlib.closing(reading.iterate()) as batches:
      for _ in range(3):
        next(batches)


def test_source_without_a_readable_record_fails_at_once(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 3, change=lambda example: example | {"image": b"x"})
  with pytest.raises(loader.QuarantineExceeded, match="no readable record"):
    make(tmp_path, batch_size=1).batch(0)


def test_a_picture_of_a_record_starts_no_program(monkeypatch):
  def started(*_, **__):
    raise AssertionError("a program was started")

  monkeypatch.setattr(subprocess, "Popen", started)
  postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n%%EOF\n"
  with pytest.raises(CorruptRecord, match="image .* is no image in a known format"):
    rows.decode_image(postscript, "image", mode="RGB")
