"""Reading: order, hosts, resumption, memory."""

import contextlib
import threading
import tracemalloc

import numpy as np
import pytest

from data_pipelines.format import records, schema
from data_pipelines.read import fake, kinds, mixture, reader, rows
from sam3d_jax.batch import Conditioning
from sam3d_jax.errors import ConfigError, InputError
from tests.support import tiny_dataset
from tests.support.reading import (
  AUGMENT,
  COUNT,
  assert_equal,
  assert_same_arrays,
  config,
  join,
  leaves,
  make,
)


def key_of(index: int) -> tuple[int, ...]:
  """How batches show the key of an example of the tiny dataset."""
  example = tiny_dataset.make_example(index)
  return tuple(schema.key_words(example["key"]))


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("changes", [{}, AUGMENT], ids=["plain", "augmented"])
def test_global_batch_is_the_same_on_any_number_of_hosts(folder, other_folder, hosts, changes):
  sources = {"a": (str(folder), 2.0), "b": (str(other_folder), 1.0)}
  settings = {"mixture": sources, **changes}
  one = make(folder, **settings)
  many = [make(folder, host_index=i, host_count=hosts, **settings) for i in range(hosts)]
  for step in (0, 1, 5):
    whole = dict(leaves(one.batch(step)))
    parts = join([host.batch(step) for host in many])
    assert_same_arrays(whole, parts)


def test_hosts_together_read_every_record_exactly_once_an_epoch(folder):
  hosts = [make(folder, kind="structure", host_index=i, host_count=4) for i in range(4)]
  expected = {key_of(index) for index in range(COUNT)}
  for epoch in range(2):
    read = []
    for step in range(3 * epoch, 3 * epoch + 3):
      for host in hosts:
        read += map(tuple, host.batch(step).key)
    assert len(read) == COUNT
    assert set(read) == expected


@pytest.mark.parametrize(
  "changes", [{}, AUGMENT, {"cache_mb": 10}], ids=["plain", "augmented", "cached"]
)
@pytest.mark.parametrize("host", [0, 1])
def test_iterating_from_any_step_gives_the_batches_of_those_steps(folder, host, changes):
  place = {"host_index": host, "host_count": 2}
  reading = make(folder, **place, **changes)
  for start in (0, 3):
    with contextlib.closing(reading.iterate(start)) as batches:
      for step in range(start, start + 3):
        fresh = make(folder, **place, **changes)
        assert_equal(next(batches), fresh.batch(step))


def test_worker_processes_give_the_same_batches(folder):
  in_processes = make(folder, kind="structure", workers=2)
  with contextlib.closing(in_processes.iterate(1)) as batches:
    for step in (1, 2, 3):
      fresh = make(folder, kind="structure")
      assert_equal(next(batches), fresh.batch(step))


def test_closing_the_iterator_ends_its_threads(folder):
  before = set(threading.enumerate())
  batches = make(folder).iterate()
  next(batches)
  started = set(threading.enumerate()) - before
  assert started
  batches.close()
  for thread in started:
    thread.join(timeout=10)
  assert not any(thread.is_alive() for thread in started)


def test_seed_changes_the_order_and_augmentation_changes_with_the_step(folder):
  # order
  one, other = make(folder), make(folder, seed=1)
  assert not np.array_equal(one.batch(0).key, other.batch(0).key)

  # the same records twice, augmented anew
  reading = make(folder, batch_size=COUNT, **AUGMENT)
  shown = []
  for step in (0, 1):
    batch = reading.batch(step)
    keys = map(tuple, batch.key)
    shown.append(dict(zip(keys, batch.cond.image, strict=True)))
  first, second = shown
  assert first.keys() == second.keys()
  alike = sum(np.array_equal(first[key], second[key]) for key in first)
  assert alike < COUNT / 4


def test_any_host_count_continues_where_another_stopped(folder):
  """Three steps on one host, three on four, two on two: every record of two epochs and a part,
  exactly as on one host throughout.
  """
  plan = [(0, 3, 1), (3, 6, 4), (6, 8, 2)]
  read = []
  for first, last, hosts in plan:
    with contextlib.ExitStack() as stack:
      streams = []
      for index in range(hosts):
        host = make(folder, host_index=index, host_count=hosts, **AUGMENT)
        stream = contextlib.closing(host.iterate(first))
        streams.append(stack.enter_context(stream))
      for _ in range(first, last):
        read.append(join([next(stream) for stream in streams]))

  whole = make(folder, **AUGMENT)
  for step, batch in enumerate(read):
    assert_same_arrays(batch, dict(leaves(whole.batch(step))))


def test_memory_of_a_reader_does_not_depend_on_the_size_of_the_dataset(tmp_path):
  """Opening and drawing allocate as little for a hundred times the records; the shards' own index
  (8 bytes a record) is not Python's.
  """
  peaks = []
  for copies in (1, 100):
    # the same shard a hundred times over: 400 records at the cost of writing four
    path = tiny_dataset.write_dataset(tmp_path / str(copies), 4, shards=1)
    one = records.open_split(path)
    many = records.Split(
      one.directory,
      "train",
      one.kind,
      one._files * copies,
      frozenset(),
    )
    mix = mixture.make_mixture({"a": len(many)}, {"a": 1.0}, seed=0)
    reading = reader.Reader(
      config(path),
      kind=kinds.KINDS["geometry"],
      splits={"a": many},
      mixture=mix,
      batch_size=4,
      seed=0,
      cache=None,
    )

    # what is allocated once is not counted
    reading.sample(0)
    tracemalloc.start()
    for position in range(8):
      reading.sample(position)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    peaks.append(peak)
  assert peaks[1] < 1.2 * peaks[0], peaks


def test_counters_tell_how_far_each_source_is(folder, other_folder):
  sources = {"a": (str(folder), 3.0), "b": (str(other_folder), 1.0)}
  reading = make(folder, mixture=sources, kind="structure")
  of_b = {key_of(100 + index) for index in range(10)}
  read = []
  for step in range(7):
    read += map(tuple, reading.batch(step).key)
  from_b = sum(key in of_b for key in read)

  metrics = reading.metrics(7)
  assert metrics["data/samples/b"] == from_b
  assert metrics["data/samples/a"] == 56 - from_b
  assert metrics["data/epochs/b"] == from_b / 10


def test_cache_keeps_within_its_limit_and_changes_nothing(folder):
  cached = make(folder, cache_mb=1)
  for step in range(6):
    assert_equal(cached.batch(step), make(folder).batch(step))
  cache = cached._reader.cache
  assert 0 < cache.bytes <= cache.limit

  # what is in stays, the rest does not come in
  row = np.zeros(10)
  small = reader.RowCache(limit=rows.nbytes(row))
  for index in range(3):
    small.put(("a", index), row)
  assert small.get(("a", 0)) is not None
  assert small.get(("a", 2)) is None


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"resolution": 48}, "divisor of 64"),
    ({"streams": ("picture",)}, "picture is not one of image"),
    ({"latents": ("shapes",)}, "shapes is not one of shape"),
    ({"mixture": {}}, "mixture is empty"),
    ({"cache_mb": 1, "workers": 1}, "augmentation off and data.workers = 0"),
  ],
)
def test_wrong_configuration_names_key_and_remedy(folder, changes, words):
  with pytest.raises(ConfigError, match=words):
    config(folder, **changes)


def test_batch_that_does_not_divide_among_hosts_is_refused(folder):
  with pytest.raises(ConfigError, match="batch_size = 6 does not divide among 4 hosts"):
    make(folder, batch_size=6, host_count=4)


def test_preferences_are_not_read_from_plain_examples(folder):
  with pytest.raises(InputError, match="holds no preference examples"):
    make(folder, kind="preference")


def test_fake_batches_do_not_depend_on_the_number_of_hosts():
  settings = rows.SampleConfig(image_size=8, pointmap_size=8, shape_resolution=2, resolution=8)
  form = {"kind": "geometry", "batch_size": 4, "seed": 0}
  one = fake.FakeLoader(settings, **form)
  two = [fake.FakeLoader(settings, **form, host_index=i, host_count=2) for i in range(2)]
  whole = dict(leaves(one.batch(3)))
  assert_same_arrays(whole, join([host.batch(3) for host in two]))

  # every step is another; masks have two values
  assert not np.array_equal(one.batch(3).cond.image, one.batch(4).cond.image)
  first = one.batch(0).cond
  assert isinstance(first, Conditioning)
  assert set(np.unique(first.mask)) == {0, 1}
