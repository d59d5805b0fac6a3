"""Shards and dataset folders."""

import hashlib
import json
import pickle
import sys
import threading

import pytest
import tensorflow_datasets as tfds

from data_pipelines.format import records, schema
from tests.support import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return tiny_dataset.write_dataset(tmp_path_factory.mktemp("data") / "ellipsoids", 7, shards=3)


def small_example(index):
  return schema.empty_example() | {"key": str(index), "image": bytes([index]) * 100}


def test_one_line_of_tfds_opens_a_dataset_without_tensorflow(dataset):
  source = tfds.builder_from_directory(dataset).as_data_source("train")
  assert sorted(source[i]["key"].decode() for i in range(7)) == sorted(
    tiny_dataset.make_example(i)["key"] for i in range(7)
  )
  assert source[0]["pointmap"].shape == (tiny_dataset.SIZE, tiny_dataset.SIZE, 3)
  assert "tensorflow" not in sys.modules


def test_split_reads_records_in_shard_order_and_knows_where_they_lie(dataset):
  split = records.open_split(dataset)
  assert [split[i]["key"] for i in (0, 1, 3, 6)] == [
    tiny_dataset.make_example(i)["key"] for i in (0, 3, 1, 5)
  ]
  path, record = split.locate(4)
  assert path.endswith("train.array_record-00001-of-00003") and record == 1
  with pytest.raises(IndexError):
    split[7]


def test_split_can_be_pickled_and_sliced(dataset):
  split = pickle.loads(pickle.dumps(records.open_split(dataset)))
  assert split[2]["key"] == records.open_split(dataset)[2]["key"]
  assert len(records.open_split(dataset, "train[:3]")) == 3


def test_threads_share_a_split(dataset):
  split = records.open_split(dataset)
  alone = [split[i]["key"] for i in range(7)]
  seen = []
  threads = [
    threading.Thread(target=lambda: seen.append([split[i]["key"] for i in range(7)]))
    for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert seen == [alone] * 8


def test_preference_datasets_open_as_such(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 2, kind="preference")
  split = records.open_split(tmp_path)
  assert split.kind == "preference" and [len(split[i]["losers"]) for i in range(2)] == [1, 2]


def test_equal_examples_give_equal_files(tmp_path):
  digests = []
  for name in ("a", "b"):
    path = records.shard_path(tmp_path / name, "d", "train", 0, 1)
    records.write_shard(path, [small_example(i) for i in range(5)])
    digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
  assert digests[0] == digests[1]


def test_shard_is_whole_or_absent(tmp_path):
  path = records.shard_path(tmp_path, "d", "train", 0, 1)

  def interrupted():
    yield small_example(0)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    records.write_shard(path, interrupted())
  with pytest.raises(schema.SchemaError):
    records.write_shard(path, [small_example(0), {}])
  assert list(tmp_path.iterdir()) == []


def test_empty_shard_is_allowed(tmp_path):
  records.write_shard(records.shard_path(tmp_path, "d", "train", 0, 2), [])
  records.write_shard(records.shard_path(tmp_path, "d", "train", 1, 2), [small_example(1)])
  assert records.write_metadata(tmp_path, name="d") == {"train": 1}
  assert records.open_split(tmp_path)[0]["key"] == "1"


def test_missing_folder_says_how_to_get_it(tmp_path):
  with pytest.raises(records.DatasetError, match="does not exist; build it"):
    records.open_split(tmp_path / "nowhere")


def test_half_built_dataset_says_what_is_missing(tmp_path):
  records.write_shard(records.shard_path(tmp_path, "d", "train", 0, 3), [small_example(0)])
  with pytest.raises(
    records.DatasetError, match=r"1 of 3 shards \(first missing: 1\).*run the same command again"
  ):
    records.open_split(tmp_path)
  with pytest.raises(records.DatasetError, match="1 of 3 shards"):
    records.write_metadata(tmp_path, name="d")


def test_shard_that_went_missing_is_named(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 2)
  records.shard_path(tmp_path, "ellipsoids", "train", 1, 2).unlink()
  with pytest.raises(records.DatasetError, match="first .*00001-of-00002"):
    records.open_split(tmp_path)


def test_unknown_split_names_those_that_exist(dataset):
  with pytest.raises(records.DatasetError, match="no split 'test'; it has train"):
    records.open_split(dataset, "test")


def test_leftovers_of_a_build_with_another_shard_count_are_refused(tmp_path):
  records.write_shard(records.shard_path(tmp_path, "d", "train", 0, 1), [small_example(0)])
  records.write_shard(records.shard_path(tmp_path, "d", "train", 0, 2), [small_example(0)])
  with pytest.raises(records.DatasetError, match="mixes shards"):
    records.write_metadata(tmp_path, name="d")


def test_dataset_of_another_schema_is_refused(tmp_path, monkeypatch):
  tiny_dataset.write_dataset(tmp_path, 1)
  monkeypatch.setattr(schema, "VERSION", "2.0.0")
  with pytest.raises(records.DatasetError, match=r"schema 1\.2\.0, this code reads 2\.0\.0"):
    records.open_split(tmp_path)


def test_damaged_bytes_are_a_corrupt_record_and_spare_the_others(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 4, shards=1)
  path = records.shard_path(tmp_path, "ellipsoids", "train", 0, 1)
  data = bytearray(path.read_bytes())
  data[1000] ^= 0xFF
  path.write_bytes(data)
  split = records.open_split(tmp_path)
  with pytest.raises(records.CorruptRecord, match="hash mismatch"):
    split[0]
  assert split[3]["key"] == tiny_dataset.make_example(3)["key"]


def test_identity_tells_two_builds_apart(tmp_path):
  for name in ("a", "b"):
    tiny_dataset.write_dataset(tmp_path / name, 2)
    records.write_json(tmp_path / name / records.BUILD_FILE, {"config": name})
  one, other = (records.dataset_identity(tmp_path / name) for name in ("a", "b"))
  assert (
    one["digest"] != other["digest"]
    and one["records"] == {"train": 2}
    and one["name"] == "ellipsoids"
  )


@pytest.mark.parametrize(
  "build",
  [{"slat_autoencoder": "abc"}, {"identity": {"config": {"slat_autoencoder": "abc"}}}],
  ids=["encoded", "converted"],
)
def test_a_lineage_names_the_autoencoder_of_structured_latents(tmp_path, build):
  tiny_dataset.write_dataset(tmp_path, 2)
  records.write_json(tmp_path / records.BUILD_FILE, build)
  identity = records.dataset_lineage(tmp_path)
  assert identity["slat"] == {"autoencoder": "abc"}
  assert "latents" not in identity


def test_a_dataset_from_before_a_field_was_added_still_reads_and_lacks_it(tmp_path, monkeypatch):
  def forget():
    for cached in (schema.features, schema._serialiser, schema._partial_features):
      cached.cache_clear()

  fields = schema._example_fields
  with monkeypatch.context() as past:
    past.setattr(
      schema,
      "_example_fields",
      lambda: {k: v for k, v in fields().items() if k not in schema.ADDED},
    )
    past.setattr(schema, "VERSION", "1.0.0")
    forget()
    records.write_shard(records.shard_path(tmp_path, "old", "train", 0, 1), [small_example(3)])
    records.write_metadata(tmp_path, name="old")
  forget()
  example = records.open_split(tmp_path)[0]
  assert example["image"] == bytes([3]) * 100 and schema.ADDED
  assert not any(schema.is_present(example, field) for field in schema.ADDED)
  schema.check_example(example)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_dataset_that_names_classes_of_its_own_is_refused_before_they_are_imported(
  tmp_path, monkeypatch, key
):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 1)
  file = folder / "features.json"
  stated = json.loads(file.read_text())
  field = stated["featuresDict"]["features"]["license"]
  del field["pythonClassName"]
  field[key] = "stranger.payload.X"
  file.write_text(json.dumps(stated))
  (tmp_path / "stranger").mkdir()
  (tmp_path / "stranger" / "payload.py").write_text("raise AssertionError('it was run')")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(records.DatasetError, match=r"names the class 'stranger\.payload\.X'"):
    records.open_dataset(folder)
  assert "stranger.payload" not in sys.modules


@pytest.mark.parametrize("content", [b"", b"[" * 99_999, b"\xff\xfe"])
def test_a_damaged_file_of_fields_is_named(tmp_path, content):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 1)
  (folder / "features.json").write_bytes(content)
  with pytest.raises(records.DatasetError, match=r"features\.json cannot be read"):
    records.open_dataset(folder)


def test_a_hostile_file_of_fields_is_refused(shared_dir):
  folder = shared_dir / "hostile" / "features_json_code"
  if not folder.is_dir():
    pytest.skip(f"{folder} does not exist")
  with pytest.raises(records.DatasetError, match="names the class"):
    records.open_dataset(folder)


def test_a_class_that_is_hidden_in_a_text_is_refused(tmp_path):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 1)
  file = folder / "features.json"
  stated = json.loads(file.read_text())
  hidden = json.dumps({"feature": {"type": "stranger.payload.X", "content": {}}})
  stated["featuresDict"]["features"]["license"] = {
    "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
    "jsonFeature": {"json": hidden},
  }
  file.write_text(json.dumps(stated))
  with pytest.raises(records.DatasetError, match="jsonFeature"):
    records.open_dataset(folder)


@pytest.mark.parametrize(
  "name", ["tensorflow_datasets.core.features.os.system", "tensorflow_datasets.testing.X", "", 3]
)
def test_what_is_no_class_of_a_field_is_refused(tmp_path, name):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 1)
  file = folder / "features.json"
  stated = json.loads(file.read_text())
  stated["featuresDict"]["features"]["license"]["pythonClassName"] = name
  file.write_text(json.dumps(stated))
  with pytest.raises(records.DatasetError, match="names the class"):
    records.open_dataset(folder)


def test_shards_lie_in_the_folder_that_names_them(tmp_path):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 1)
  tiny_dataset.write_dataset(tmp_path / "other", 1)
  file = folder / "dataset_info.json"
  stated = json.loads(file.read_text())
  stated["splits"][0]["filepathTemplate"] = "../other/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  file.write_text(json.dumps(stated))
  with pytest.raises(ValueError):
    records.open_split(folder, stated["splits"][0]["name"])
