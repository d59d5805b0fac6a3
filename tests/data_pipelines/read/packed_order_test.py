"""Objects dealt to rows: every one once, equal work, the same on any number of hosts."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest

from data_pipelines.format import records, voxel_counts
from data_pipelines.read import kinds, loader, packed_order
from data_pipelines.read.packed_order import PackedOrder, PackingConfig
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.geometry.packing import RowShape
from tests.data_pipelines.read import texture_rows_test
from tests.support import tiny_dataset

SHAPE = RowShape(65_536, 20_480, 6)
ROWS = 2
OBJECTS = 4
COUNT = 11  # records of the dataset


def sizes(count: int, seed: int = 0) -> np.ndarray:
  """(count, 2) of the distribution of the feasibility study, in voxels: four to a token."""
  rng = np.random.default_rng(seed)
  tokens = np.clip(rng.lognormal(np.log(4500), 0.6, count), 600, 8000)
  return np.stack([4.05 * tokens, tokens], axis=1).astype(int)


TABLE_N2 = sizes(10_000)


def count_at(position: int) -> np.ndarray:
  return TABLE_N2[position]


def order(count_of=None, *, objects=5, window=4, rows=2) -> PackedOrder:
  return PackedOrder(PackingConfig(objects / rows, window), SHAPE, rows, count_of or count_at)


@pytest.mark.parametrize("seed", range(3))
def test_64_devices_have_equal_work_within_a_tenth_and_every_object_has_room(seed):
  # the published step on 64 chips, three objects a row
  counts_N2 = sizes(192 * 16, seed)
  dealt = packed_order.deal(counts_N2, SHAPE, 64 * 16)
  assert not dealt.left_out
  assert sorted(n for row in dealt.rows for n in row) == list(range(len(counts_N2)))
  for step in range(16):
    rows = dealt.rows[64 * step : 64 * (step + 1)]
    assert packed_order.imbalance(rows, counts_N2[:, 0], devices=64) <= 0.1


def test_no_row_holds_more_than_it_has_room_for():
  counts_N2 = sizes(300)
  dealt = packed_order.deal(counts_N2, SHAPE, 80)
  assert dealt.left_out
  for row in dealt.rows:
    assert len(row) <= SHAPE.objects
    slots_N2 = -(-counts_N2[row] // 128) * 128
    assert (slots_N2.sum(0) <= (SHAPE.voxels, SHAPE.coarse)).all()


def test_every_position_is_in_one_row_of_its_window():
  one = order()
  for number in range(3):
    found = []
    for step in range(4 * number, 4 * (number + 1)):
      for row in range(2):
        found += one.row(step, row)
    assert sorted(found) == list(range(20 * number, 20 * (number + 1)))


def test_rows_of_a_step_do_not_depend_on_what_was_asked_before():
  in_order = order()
  before = [in_order.row(step, 0) for step in range(40)]
  late = pickle.loads(pickle.dumps(order(count_at)))
  assert late.row(39, 0) == before[39]
  assert late.row(3, 0) == before[3]


def test_what_finds_no_room_comes_with_the_next_window_or_is_counted():
  # three objects of half a row for one row: a third of the first window waits
  def count(position: int) -> tuple[int, int]:
    return (30_000, 7500) if position < 3 else (20_000, 5000)

  one = order(count, objects=3, window=1, rows=1)
  first = one.row(0, 0)
  assert first == [0, 1]
  # full with its own: the one that waits finds no room again
  assert one.row(1, 0) == [3, 4, 5]
  assert one.left_out(1) == [2]

  def smaller(position: int) -> tuple[int, int]:
    return (30_000, 7500) if position < 3 else (10_000, 2500)

  other = order(smaller, objects=3, window=1, rows=1)
  assert other.row(1, 0) == [3, 4, 5, 2]
  assert other.left_out(1) == []


def test_more_objects_than_rows_have_room_for_are_refused_with_a_number_that_fits():
  with pytest.raises(ConfigError, match=r"data\.packing\.per_row = 6: .* give about \d"):
    order(objects=12, rows=2).check()


# with records


def with_latent(example):
  rng = np.random.default_rng(len(example["voxels"]))
  slat = rng.standard_normal((len(example["voxels"]), 8)).astype(np.float16)
  return example | {"slat": slat, "slat_autoencoder": "b" * 64}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "slat"
  return tiny_dataset.write_dataset(folder, COUNT, shards=2, change=with_latent)


def reading(folder, host_index=0, host_count=1, threads=2, voxels=40_960, **packing):
  """A loader of packed rows."""
  form = texture_rows_test.form(voxels=voxels, coarse=voxels // 4, objects=3)
  settings = {field.name: getattr(form, field.name) for field in dataclasses.fields(form)}
  config = loader.DataConfig(
    **settings | {"latents": ("slat",)},
    mixture={"a": (str(folder), 1.0)},
    threads=threads,
    prefetch=1,
    packing=PackingConfig(**{"per_row": OBJECTS / ROWS, "window": 2} | packing),
  )
  return loader.make_loader(
    config,
    kind="texture",
    batch_size=ROWS,
    seed=0,
    host_index=host_index,
    host_count=host_count,
  )


def keys(batch) -> list[tuple[int, ...]]:
  """Of the objects of a batch that are there."""
  there_RK = batch.present["slat"]
  return [tuple(key) for key in batch.key[there_RK].tolist()]


def test_every_record_comes_once_an_epoch_on_any_number_of_hosts_and_after_resuming(dataset):
  whole = reading(dataset)
  batches = [whole.batch(step) for step in range(COUNT)]
  shapes = jax.tree.map(np.shape, kinds.lookup("texture").spec(whole.config, ROWS))
  assert jax.tree.map(np.shape, batches[0]) == shapes

  # exactly once in each of four epochs of 11 records: 11 steps of 4 objects, the last window is
  # half read
  seen = [key for batch in batches[:10] for key in keys(batch)]
  assert len(seen) == 40
  _, times = np.unique(np.array(seen), axis=0, return_counts=True)
  assert set(times) <= {3, 4} and len(times) == COUNT

  # two hosts, each from its own rows alone
  hosts = [reading(dataset, host_index=host, host_count=2) for host in range(2)]
  parts = [host.batch(7) for host in hosts]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
  jax.tree.map(np.testing.assert_array_equal, joined, batches[7])

  # in another process
  elsewhere = pickle.loads(pickle.dumps(whole._reader)).sample(7 * ROWS)
  jax.tree.map(
    lambda row, rows: np.testing.assert_array_equal(row, rows[0]), elsewhere.row, batches[7]
  )

  # from the middle, in threads
  resumed = reading(dataset).iterate(7)
  jax.tree.map(np.testing.assert_array_equal, next(resumed), batches[7])
  resumed.close()
  assert whole.metrics(5)["data/samples/a"] == 20


def test_a_table_of_sizes_spares_the_reading_and_goes_stale_with_the_dataset(tmp_path, monkeypatch):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 3, change=with_latent)
  split = records.open_split(folder)
  from_records = voxel_counts.read(split)
  voxels = [len(split[index]["voxels"]) for index in range(3)]
  assert from_records[:, 0].tolist() == voxels
  assert voxel_counts.write(folder) == {"train": 3}
  with monkeypatch.context() as patched:
    patched.setattr(voxel_counts, "read", None)
    np.testing.assert_array_equal(voxel_counts.of(split), from_records)

  # other records under the same name
  tiny_dataset.write_dataset(folder, 4, change=with_latent)
  assert len(voxel_counts.of(records.open_split(folder))) == 4


def test_objects_that_no_row_holds_are_told_apart_from_damage(tmp_path, capsys):
  def mixed(example):
    return (
      example if example["key"] == tiny_dataset.make_example(0)["key"] else with_latent(example)
    )

  folder = tiny_dataset.write_dataset(tmp_path / "d", 4, change=mixed)
  whole = reading(folder)
  assert len(whole) == 3
  told = capsys.readouterr().err
  assert "0 have more voxels than a row" in told and "1 have no structured latent" in told
  with pytest.raises(InputError, match="has no record that fits into a row"):
    reading(folder, voxels=1536)
  assert "3 have more voxels than a row" in capsys.readouterr().err


def test_a_record_that_is_damaged_later_is_replaced_by_one_that_fits(tmp_path):
  def spoilt(example):
    broken = example["key"] == tiny_dataset.make_example(2)["key"]
    return with_latent(example) | ({"image": b"no image"} if broken else {})

  folder = tiny_dataset.write_dataset(tmp_path / "d", COUNT, change=spoilt)
  whole = reading(folder)
  batches = [whole.batch(step) for step in range(3)]
  assert len(whole.corrupt) == 1 and whole.counters()["data/left_out"] == 0
  assert sum(len(keys(batch)) for batch in batches) == 3 * OBJECTS
