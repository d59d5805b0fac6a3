"""Reading: order, hosts, resumption, damage, and what a batch holds."""

import contextlib
import dataclasses
import pathlib
import threading
import tracemalloc
import types

import numpy as np
import pytest

from data_pipelines.format import records, schema
from data_pipelines.read import fake, kinds, loader, mixture, rows
from data_pipelines.read.augment import AugmentConfig
from launch.console import cli
from sam3d_jax.batch import LATENTS, Conditioning
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.geometry import pose
from tests.support import tiny_dataset

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("data") / "a", COUNT, shards=3)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("data") / "b", 10, first=100)


def config(folder, **changes):
  settings = {
    "mixture": {"a": (str(folder), 1.0)},
    "image_size": 24,
    "pointmap_size": 16,
    "resolution": 16,
    "shape_resolution": 4,
    "threads": 2,
    "prefetch": 2,
  }
  return loader.DataConfig(**{**settings, **changes})


def make(folder, *, kind="geometry", batch_size=8, seed=0, host_index=0, host_count=1, **changes):
  return loader.make_loader(
    config(folder, **changes),
    kind=kind,
    batch_size=batch_size,
    seed=seed,
    host_index=host_index,
    host_count=host_count,
  )


def leaves(batch, name=""):
  if isinstance(batch, dict):
    return [leaf for k in sorted(batch) for leaf in leaves(batch[k], f"{name}/{k}")]
  if isinstance(batch, tuple):
    return [leaf for k, v in batch._asdict().items() for leaf in leaves(v, f"{name}/{k}")]
  return [] if batch is None else [(name, batch)]


def assert_equal(one, other):
  for (name, a), (other_name, b) in zip(leaves(one), leaves(other), strict=True):
    assert name == other_name
    np.testing.assert_array_equal(a, b, err_msg=name)


def join(batches):
  parts = [dict(leaves(b)) for b in batches]
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


AUGMENT = {
  "augment": AugmentConfig(
    erode=0.3, dilate=0.3, blur=0.5, colour=0.8, light=0.5, box_factor=(1.0, 1.4), shift=0.1
  )
}


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("changes", [{}, AUGMENT], ids=["plain", "augmented"])
def test_global_batch_is_the_same_on_any_number_of_hosts(folder, other_folder, hosts, changes):
  mixture = {"a": (str(folder), 2.0), "b": (str(other_folder), 1.0)}
  one = make(folder, mixture=mixture, **changes)
  many = [
    make(folder, mixture=mixture, host_index=i, host_count=hosts, **changes) for i in range(hosts)
  ]
  for step in (0, 1, 5):
    whole, parts = dict(leaves(one.batch(step))), join([m.batch(step) for m in many])
    assert whole.keys() == parts.keys()
    for name in whole:
      np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def test_hosts_together_read_every_record_exactly_once_an_epoch(folder):
  hosts = [make(folder, kind="structure", host_index=i, host_count=4) for i in range(4)]
  keys = {tuple(schema.key_words(tiny_dataset.make_example(i)["key"])) for i in range(COUNT)}
  for epoch in range(2):
    read = [tuple(k) for step in range(3) for h in hosts for k in h.batch(3 * epoch + step).key]
    assert len(read) == COUNT and set(read) == keys


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
        assert_equal(next(batches), make(folder, **place, **changes).batch(step))


def test_worker_processes_give_the_same_batches(folder):
  with contextlib.closing(make(folder, kind="structure", workers=2).iterate(1)) as batches:
    for step in (1, 2, 3):
      assert_equal(next(batches), make(folder, kind="structure").batch(step))


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
  assert not np.array_equal(make(folder).batch(0).key, make(folder, seed=1).batch(0).key)
  reading = make(folder, batch_size=COUNT, **AUGMENT)
  first, second = (
    dict(zip(map(tuple, b.key), b.cond.image, strict=True))
    for b in (reading.batch(0), reading.batch(1))
  )
  assert first.keys() == second.keys()
  assert sum(np.array_equal(first[k], second[k]) for k in first) < COUNT / 4


def test_augmentations_are_set_by_the_training_configuration_and_off_in_evaluation(folder):
  path = pathlib.Path(__file__).parents[3] / "configs" / "midtrain_fo_geometry.py"
  overrides = [
    f"--config.data.mixture.rp_3do_fo.path={folder}",
    "--config.data.augment.blur=0.0",
    "--config.data.augment.shift=0.25",
    "--config.batch_size=4",
    "--config.data.image_size=24",
  ]
  chosen = cli.load_config(str(path), overrides)
  model = types.SimpleNamespace(
    condition=types.SimpleNamespace(streams=("image",), pointmap=None),
    flow=types.SimpleNamespace(shape_resolution=4, latent_channels=8),
  )
  read = lambda **how: loader.from_config(
    chosen, model, kind="geometry", latents=("rotation",), split="train", **how
  )
  augment = read().config.augment
  assert (augment.blur, augment.shift, augment.erode) == (
    0.0,
    0.25,
    chosen.data.augment.erode,
  ) and augment.erode > 0
  assert read(augmented=False).config.augment is None
  differ = [
    np.array_equal(a, b)
    for a, b in zip(
      read().batch(0).cond.image, read(augmented=False).batch(0).cond.image, strict=True
    )
  ]
  assert not all(differ)
  plain = cli.load_config(
    str(path.with_name("pretrain_geometry.py")), [f"--config.data.mixture.iso_3do.path={folder}"]
  )
  assert (
    loader.from_config(
      plain, model, kind="geometry", latents=("rotation",), split="train"
    ).config.augment
    is None
  )


def test_any_host_count_continues_where_another_stopped(folder):
  """Three steps on one host, three on four, two on two: every record of two epochs and a part,
  exactly as on one host throughout.
  """
  plan = [(0, 3, 1), (3, 6, 4), (6, 8, 2)]
  read = []
  for first, last, hosts in plan:
    with contextlib.ExitStack() as stack:
      streams = [
        stack.enter_context(
          contextlib.closing(make(folder, host_index=i, host_count=hosts, **AUGMENT).iterate(first))
        )
        for i in range(hosts)
      ]
      read += [join([next(s) for s in streams]) for _ in range(first, last)]
  for step, batch in enumerate(read):
    whole = dict(leaves(make(folder, **AUGMENT).batch(step)))
    assert all(
      np.array_equal(batch[name], whole[name], equal_nan=batch[name].dtype.kind == "f")
      for name in whole
    )


def test_memory_of_a_reader_does_not_depend_on_the_size_of_the_dataset(tmp_path):
  """Opening and drawing allocate as little for a hundred times the records; the shards' own index
  (8 bytes a record) is not Python's.
  """
  small, large = (tiny_dataset.write_dataset(tmp_path / str(n), 4, shards=1) for n in (1, 2))
  peaks = []
  for path, copies in ((small, 1), (large, 100)):
    split = records.open_split(path)
    one = split._files[0]
    # The same shard a hundred times over: 400 records at the cost of writing four.
    records_ = records.Split(
      split.directory,
      "train",
      split.kind,
      Repeated(split._source, copies),
      [one] * copies,
      frozenset(),
    )
    mix = mixture.make_mixture({"a": len(records_)}, {"a": 1.0}, seed=0)
    reader = loader.Reader(config(path), kinds.KINDS["geometry"], {"a": records_}, mix, 4, 0, None)
    reader.sample(0)
    tracemalloc.start()
    for position in range(8):
      reader.sample(position)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.2 * peaks[0], peaks


class Repeated:
  """A data source many times over."""

  def __init__(self, source, copies: int):
    self.source, self.copies = source, copies

  def __len__(self) -> int:
    return self.copies * len(self.source)

  def __getitem__(self, index: int):
    return self.source[index % len(self.source)]


def test_spec_is_the_form_of_every_batch(folder, tmp_path):
  preference = tiny_dataset.write_dataset(tmp_path, 4, kind="preference")
  for kind, path in (("geometry", folder), ("structure", folder), ("preference", preference)):
    reading = make(
      path,
      kind=kind,
      batch_size=4,
      **({"latents": ("shape", "rotation")} if kind == "preference" else {}),
    )
    settings = {
      f.name: getattr(reading.config, f.name) for f in dataclasses.fields(rows.SampleConfig)
    }
    random = fake.FakeLoader(rows.SampleConfig(**settings), kind=kind, batch_size=4, seed=0)
    form = lambda batch: [(name, x.shape, x.dtype) for name, x in leaves(batch)]
    assert (
      form(reading.spec) == form(reading.batch(0)) == form(random.spec) == form(random.batch(0))
    )


def test_layout_latents_lead_back_to_the_pose(folder):
  reading = make(folder)
  batch = reading.batch(0)
  by_key = {
    tuple(schema.key_words(e["key"])): e for e in map(tiny_dataset.make_example, range(COUNT))
  }
  for row in range(8):
    example = by_key[tuple(batch.key[row])]
    _, scale, shift = rows.condition(example, reading.config, None)
    latents = {name: batch.latents[name][row] for name in LATENTS if name != "shape"}
    decoded, truth = pose.decode_latents(latents, scale, shift), schema.example_pose(example)
    for got, expected in zip(decoded, truth, strict=True):
      np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_array_equal(
      batch.latents["shape"][row], example["structure_latent"].reshape(64, 8)
    )
    np.testing.assert_array_equal(
      batch.latents["shape"][row][16 * 1 + 4 * 2 + 3], example["structure_latent"][1, 2, 3]
    )
  assert all(p.all() for p in batch.present.values())


def test_without_point_map_only_shape_and_rotation_are_present(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 4, pointmap=False)
  batch = make(tmp_path, batch_size=4, latents=("shape", "rotation")).batch(0)
  assert {name for name in LATENTS if batch.present[name].all()} == {"shape", "rotation"}
  assert not any(
    batch.present[name].any() for name in ("translation", "scale", "translation_scale")
  )
  assert np.isnan(batch.cond.pointmap).all()
  with pytest.raises(InputError, match="'translation' needs translation and scale and pointmap"):
    make(tmp_path, batch_size=4)


def test_latents_that_are_not_asked_for_are_delivered_as_absent(folder):
  batch = make(folder, latents=("rotation",)).batch(0)
  assert batch.present["rotation"].all() and list(batch.present) == list(LATENTS)
  for name in set(LATENTS) - {"rotation"}:
    assert not batch.present[name].any() and not batch.latents[name].any()


def test_absent_latents_of_a_mixed_dataset_are_marked_and_zero(tmp_path):
  drop = lambda e: (
    e | {"structure_latent": schema.empty_example()["structure_latent"]}
    if e["voxels"][0, 0] % 2
    else e
  )
  tiny_dataset.write_dataset(tmp_path, 12, change=drop)
  batch = make(tmp_path, batch_size=12).batch(0)
  present = batch.present["shape"]
  assert 0 < present.sum() < 12 and batch.present["rotation"].all()
  assert (np.abs(batch.latents["shape"]).sum((1, 2)) > 0).tolist() == present.tolist()


def test_dataset_without_latents_says_how_to_make_them(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 2, latent=False)
  with pytest.raises(
    InputError, match=r"'shape' needs structure_latent \(launch.encode_latents adds it\)"
  ):
    make(tmp_path, batch_size=2)


def test_occupancy_is_coarsened_without_losing_a_voxel():
  voxels = np.array([[0, 0, 0], [63, 62, 1], [8, 9, 10]], np.uint8)
  for resolution in (64, 32, 8):
    grid = rows.occupancy(voxels, resolution)
    factor = 64 // resolution
    assert {tuple(v) for v in np.argwhere(grid)} == {tuple(v) for v in voxels // factor}
  with pytest.raises(records.CorruptRecord, match="outside"):
    rows.occupancy(np.array([[64, 0, 0]], np.uint8), 64)


def test_latents_of_another_autoencoder_are_refused(folder, tmp_path):
  with pytest.raises(InputError, match="made by autoencoder aaaaaaaaaaaa, expected bbbbbbbbbbbb"):
    make(folder, autoencoder="b" * 64).batch(0)
  foreign = lambda e: e | {"structure_latent_autoencoder": "c" * 64}
  tiny_dataset.write_dataset(tmp_path, 4, change=foreign)
  with pytest.raises(InputError, match="do not mix"):
    make(folder, mixture={"a": (str(folder), 1.0), "b": (str(tmp_path), 1.0)}).batch(0)


def test_latents_of_another_size_are_refused(folder):
  with pytest.raises(InputError, match=r"shape \(4, 4, 4, 8\), the model needs \(8, 8, 8, 8\)"):
    make(folder, shape_resolution=8).batch(0)


def damage(example):
  """Three of the 24 examples become unusable in three ways."""
  if example["key"] == tiny_dataset.make_example(3)["key"]:
    return example | {"image": b"no image"}
  if example["key"] == tiny_dataset.make_example(7)["key"]:
    return example | {"mask": tiny_dataset.encode_png(np.zeros((tiny_dataset.SIZE,) * 2, np.uint8))}
  if example["key"] == tiny_dataset.make_example(11)["key"]:
    return example | {"image": b""}
  return example


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
  return tiny_dataset.write_dataset(
    tmp_path_factory.mktemp("damaged"), COUNT, shards=1, change=damage
  )


def test_corrupt_records_are_named_counted_and_replaced_alike_on_all_hosts(damaged_folder):
  one = make(damaged_folder)
  hosts = [make(damaged_folder, host_index=i, host_count=4) for i in range(4)]
  whole = [one.batch(step) for step in range(3)]
  parts = [join([h.batch(step) for h in hosts]) for step in range(3)]
  for a, b in zip(whole, parts, strict=True):
    np.testing.assert_array_equal(a.key, b["/key"])
  read = {tuple(k) for b in whole for k in b.key}
  bad = {tuple(schema.key_words(tiny_dataset.make_example(i)["key"])) for i in (3, 7, 11)}
  assert len(read) == COUNT - 3 and not read & bad
  assert set(one.corrupt) == {record for h in hosts for record in h.corrupt}
  assert [sum(name.endswith(f" record {i}") for name in one.corrupt) for i in (3, 7, 11)] == [
    1,
    1,
    1,
  ]
  assert one.metrics(3)["data/corrupt_records"] == 3


def test_same_corrupt_record_met_again_counts_once_towards_the_budget(damaged_folder):
  reading = make(damaged_folder, quarantine_budget=3)
  for step in range(9):
    reading.batch(step)
  assert len(reading.corrupt) == 3 and sum(reading.replaced.values()) >= 9


def test_run_fails_over_the_budget_naming_the_records(damaged_folder):
  reading = make(damaged_folder, quarantine_budget=2)
  with pytest.raises(
    loader.QuarantineExceeded,
    match=r"(?s)3 unreadable records, data.quarantine_budget = 2:.*record 7",
  ):
    with contextlib.closing(reading.iterate()) as batches:
      for _ in range(3):
        next(batches)


def test_source_without_a_readable_record_fails_at_once(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 3, change=lambda e: e | {"image": b"x"})
  with pytest.raises(loader.QuarantineExceeded, match="no readable record"):
    make(tmp_path, batch_size=1).batch(0)


def test_counters_tell_how_far_each_source_is(folder, other_folder):
  reading = make(
    folder, mixture={"a": (str(folder), 3.0), "b": (str(other_folder), 1.0)}, kind="structure"
  )
  keys = {tuple(schema.key_words(tiny_dataset.make_example(100 + i)["key"])) for i in range(10)}
  from_b = sum(tuple(k) in keys for step in range(7) for k in reading.batch(step).key)
  metrics = reading.metrics(7)
  assert metrics["data/samples/b"] == from_b and metrics["data/samples/a"] == 56 - from_b
  assert metrics["data/epochs/b"] == from_b / 10


def test_preference_batch_shows_each_loser_in_turn(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 2, kind="preference")
  reading = make(tmp_path, kind="preference", batch_size=2, latents=("shape", "rotation"))
  example = tiny_dataset.make_example(1, kind="preference")
  words = schema.key_words(example["key"]).tolist()
  for step in range(4):
    batch = reading.batch(step)
    row = batch.key.tolist().index(words)
    np.testing.assert_array_equal(
      batch.win["shape"][row], example["structure_latent"].reshape(64, 8)
    )
    np.testing.assert_array_equal(
      batch.lose["shape"][row], example["losers"][step % 2]["structure_latent"].reshape(64, 8)
    )
    assert batch.present["shape"].all() and batch.present["rotation"].all()


def test_preferences_are_not_read_from_plain_examples(folder):
  with pytest.raises(InputError, match="holds no preference examples"):
    make(folder, kind="preference")


def test_cache_keeps_within_its_limit_and_changes_nothing(folder):
  cached = make(folder, cache_mb=1)
  for step in range(6):
    assert_equal(cached.batch(step), make(folder).batch(step))
  cache = cached._reader.cache
  assert 0 < cache.bytes <= cache.limit
  small = loader.RowCache(limit=rows.nbytes(np.zeros(10)))
  for i in range(3):
    small.put(("a", i), np.zeros(10))
  assert small.get(("a", 0)) is not None and small.get(("a", 2)) is None


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


def test_fake_batches_do_not_depend_on_the_number_of_hosts():
  settings = rows.SampleConfig(image_size=8, pointmap_size=8, shape_resolution=2, resolution=8)
  one = fake.FakeLoader(settings, kind="geometry", batch_size=4, seed=0)
  two = [
    fake.FakeLoader(settings, kind="geometry", batch_size=4, seed=0, host_index=i, host_count=2)
    for i in range(2)
  ]
  whole, parts = dict(leaves(one.batch(3))), join([t.batch(3) for t in two])
  assert all(np.array_equal(whole[name], parts[name]) for name in whole)
  assert not np.array_equal(one.batch(3).cond.image, one.batch(4).cond.image)
  assert set(np.unique(one.batch(0).cond.mask)) == {0, 1} and isinstance(
    one.batch(0).cond, Conditioning
  )
