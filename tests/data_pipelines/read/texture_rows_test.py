"""Rows of packed objects, from records and made up."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import kinds, loader
from data_pipelines.read.fake import FakeLoader
from launch.console import cli
from launch.trainer import setup
from sam3d_jax.errors import InputError
from sam3d_jax.models import latent_statistics, registry
from tests.support import tiny_dataset

KIND = kinds.lookup("texture")


@functools.cache
def form(**changes):
  """The form of rows of the tiny configuration."""
  config = cli.load_config("configs/pretrain_texture.py:tiny", [])
  with config.unlocked():
    config.data.kind = "fake"
    config.model.row.update(changes)
  return loader.settings_of(
    config,
    registry.typed_config(config.model),
    **setup.reading(config),
    split="train",
  )


def record(index=0, **changes):
  """A record with a structured latent."""
  example = tiny_dataset.make_example(index)
  voxels = len(example["voxels"])
  rng = np.random.default_rng(index)
  example["slat"] = rng.standard_normal((voxels, 8)).astype(np.float16)
  example["slat_autoencoder"] = "b" * 64
  return example | changes


def shapes(batch):
  return jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), batch)


def test_a_row_of_a_record_holds_its_latents_normalised_on_its_voxels():
  example = record()
  row = KIND.row(example, form(voxels=16_384, coarse=4096, objects=2), None, 0)
  count = len(example["voxels"])
  assert row.voxels.fine.count_RK.tolist() == [count, 0]
  assert row.present["slat"].tolist() == [True, False]
  np.testing.assert_array_equal(row.voxels.fine.coords_RV3[:count], example["voxels"])
  back = latent_statistics.denormalise(
    row.latents["slat"][:count],
    latent_statistics.named("release"),
  )
  np.testing.assert_allclose(back, example["slat"], atol=1e-3)
  assert not row.latents["slat"][count:].any()
  # the photo lies in the object's place
  assert row.cond.image[0].any() and not row.cond.image[1].any()


def test_rows_of_records_and_made_up_ones_have_the_stated_form():
  config = form(voxels=16_384, coarse=4096, objects=2)
  expected = shapes(KIND.spec(config, 1))
  made_up = FakeLoader(config, kind="texture", batch_size=1, seed=0)
  rng = np.random.default_rng(0)
  for row in (KIND.row(record(), config, None, 0), KIND.random(made_up.spec, rng)):
    assert shapes(KIND.collate([row], config)) == expected


def test_made_up_objects_have_keys_of_their_own_and_do_not_depend_on_the_hosts():
  config = form(voxels=1024, coarse=1024, objects=3)
  batches = [
    FakeLoader(config, kind="texture", batch_size=4, seed=0, host_index=h, host_count=2).batch(1)
    for h in range(2)
  ]
  whole = FakeLoader(config, kind="texture", batch_size=4, seed=0).batch(1)
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
  jax.tree.map(np.testing.assert_array_equal, joined, whole)
  keys = whole.key.reshape(-1, 2)
  assert len(np.unique(keys, axis=0)) == len(keys) == 12


@pytest.mark.parametrize(
  "changes, error, words",
  [
    ({"slat": np.zeros((3, 8), np.float16)}, CorruptRecord, "slat has 3 rows"),
    ({"slat": np.zeros((0, 8), np.float16)}, CorruptRecord, "no slat"),
    ({"slat": np.zeros((3, 4), np.float16)}, InputError, "4 channels, the model 8"),
    ({"voxels": np.zeros((0, 3), np.uint8)}, CorruptRecord, "no voxels"),
  ],
)
def test_a_record_whose_latent_does_not_fit_is_told(changes, error, words):
  with pytest.raises(error, match=words):
    KIND.row(record(**changes), form(voxels=16_384, coarse=4096), None, 0)


def test_an_object_larger_than_a_row_is_counted_as_unreadable():
  with pytest.raises(CorruptRecord, match="more than the 1024 and 1024 of a row"):
    KIND.row(record(), form(voxels=1024, coarse=1024), None, 0)


def test_latents_of_another_autoencoder_do_not_mix():
  config = form(voxels=16_384, coarse=4096)
  other = dataclasses.replace(config, autoencoder="c" * 64)
  with pytest.raises(InputError, match="made by autoencoder bbbb"):
    KIND.row(record(), other, None, 0)
