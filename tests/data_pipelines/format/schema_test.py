"""The record format."""

import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2 as example_pb2

from data_pipelines.format import schema
from tests.support import tiny_dataset


@pytest.mark.parametrize("kind", schema.KINDS)
def test_example_survives_serialisation(kind):
  example = tiny_dataset.make_example(1, kind=kind)
  assert tiny_dataset.equal(schema.deserialise(schema.serialise(example, kind), kind), example)


@pytest.mark.parametrize("kind", schema.KINDS)
def test_empty_example_survives_and_has_no_field_present(kind):
  example = schema.deserialise(schema.serialise(schema.empty_example(kind), kind), kind)
  assert tiny_dataset.equal(example, schema.empty_example(kind))
  assert not any(schema.is_present(example, field) for field in example)


def _with_pointmap(shape: list[int], content: bytes) -> bytes:
  """A record whose point map states this shape and holds these bytes, compressed."""
  example = example_pb2.Example.FromString(schema.serialise(tiny_dataset.make_example(0)))
  fields = example.features.feature
  fields["pointmap/shape"].int64_list.value[:] = shape
  fields["pointmap/value"].bytes_list.value[:] = [zlib.compress(content)]
  return example.SerializeToString()


def test_a_compressed_field_holds_what_it_states():
  whole = _with_pointmap([2, 3, 3], bytes(36))
  assert schema.deserialise(whole)["pointmap"].shape == (2, 3, 3)


@pytest.mark.parametrize(
  "shape, content",
  [
    ([2, 3, 3], bytes(35)),
    ([2, 3, 3], bytes(10_000_000)),
    ([9000, 9000, 3], bytes(100)),
    ([-2, -3, 3], bytes(36)),
    ([2, 3], bytes(36)),
  ],
)
def test_a_compressed_field_of_another_size_is_refused_without_its_memory(shape, content):
  record = _with_pointmap(shape, content)
  tracemalloc.start()
  with pytest.raises(schema.SchemaError):
    schema.deserialise(record)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 5_000_000


def test_every_field_of_a_complete_example_is_present():
  example = tiny_dataset.make_example(0, kind="preference")
  absent = {field for field in example if not schema.is_present(example, field)}
  assert absent == {"slat", "slat_autoencoder", "alpha", "depth"}


def test_losers_keep_what_each_of_them_has():
  example = tiny_dataset.make_example(0, kind="preference")
  bare = schema.empty_loser() | {"generator": "model_c"}
  example["losers"] = [bare, example["losers"][0], bare]
  losers = schema.deserialise(schema.serialise(example, "preference"), "preference")["losers"]
  assert [schema.is_present(x, "voxels") for x in losers] == [False, True, False]
  assert [schema.is_present(x, "rotation") for x in losers] == [False, True, False]
  assert [x["generator"] for x in losers] == ["model_c", "model_b", "model_c"]
  assert np.array_equal(losers[1]["structure_latent"], example["losers"][1]["structure_latent"])


def test_partly_unknown_pose_counts_as_absent():
  example = tiny_dataset.make_example(0)
  example["translation"] = np.array([0, np.nan, 2], np.float32)
  assert not schema.is_present(example, "translation")


def test_presence_of_a_field_that_does_not_exist_is_an_error():
  with pytest.raises(KeyError, match="rotatoin"):
    schema.is_present(schema.empty_example(), "rotatoin")


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("rotation", np.eye(3), r"'rotation': expected float32 \(3, 3\), got float64 \(3, 3\)"),
    (
      "voxels",
      np.zeros((4, 2), np.uint8),
      r"'voxels': expected uint8 \('\*', 3\), got uint8 \(4, 2\)",
    ),
    ("image", "text", "'image': expected bytes, got str"),
    ("key", b"bytes", "'key': expected str, got bytes"),
    ("camera", {"fx": 1.0}, "'camera': expected a dict"),
    ("colour", 1, "'colour' is unknown"),
  ],
)
def test_wrong_field_is_named_with_what_was_expected_and_what_came(field, value, words):
  with pytest.raises(schema.SchemaError, match=words):
    schema.serialise(schema.empty_example() | {field: value})


def test_missing_field_is_named():
  example = schema.empty_example()
  del example["license"]
  with pytest.raises(schema.SchemaError, match="'license' is missing"):
    schema.check_example(example)


def test_bytes_that_are_no_record_are_a_schema_error():
  with pytest.raises(schema.SchemaError, match="not a record"):
    schema.deserialise(b"\xff\xfe garbage")


def test_skipped_fields_come_back_absent_and_the_others_unchanged():
  example = tiny_dataset.make_example(1, kind="preference")
  skip = frozenset({"pointmap", "image", "losers"})
  read = schema.deserialise(schema.serialise(example, "preference"), "preference", skip=skip)
  assert not any(schema.is_present(read, field) for field in skip)
  assert all(
    tiny_dataset.equal(read[field], example[field]) for field in example if field not in skip
  )


def test_equal_examples_give_equal_bytes_in_another_process():
  code = (
    "import hashlib, sys; from data_pipelines.format import schema;"
    "from tests.support import tiny_dataset;"
    "print(hashlib.sha256(schema.serialise(tiny_dataset.make_example(3, kind='preference'), "
    "'preference')).hexdigest());"
    "print('tensorflow' in sys.modules)"
  )
  runs = [
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for _ in range(2)
  ]
  assert runs[0] == runs[1]
  assert runs[0].split()[1] == "False", "reading and writing must not import TensorFlow"


def test_keys_depend_on_content_and_on_its_division():
  keys = [
    schema.example_key("ab", "c"),
    schema.example_key("a", "bc"),
    schema.example_key("abc"),
    schema.example_key(b"abc"),
    schema.example_key(1),
    schema.example_key("1"),
    schema.example_key(np.zeros(2)),
    schema.example_key(np.zeros((2, 1))),
  ]
  assert len(set(keys)) == len(keys)
  assert schema.example_key("mesh", 7) == schema.example_key("mesh", 7)


def test_key_words_never_change():
  # recorded: another value would change every run's noise
  assert schema.key_words("a").tolist() == [310482890, 3401391050]
  assert schema.key_words("a").dtype == np.uint32
