"""What a batch holds: latents, absences, losers, augmented photos."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest

from data_pipelines.format import records, schema
from data_pipelines.read import fake, loader, rows
from launch.console import cli
from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import pose
from tests.support import tiny_dataset
from tests.support.reading import COUNT, leaves, make

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
# as much of a model's configuration as decides the form of its batches
MODEL = types.SimpleNamespace(
  condition=types.SimpleNamespace(streams=("image",), pointmap=None),
  flow=types.SimpleNamespace(shape_resolution=4, latent_channels=8),
)


def configured(config, **how) -> loader.Loader:
  return loader.from_config(
    config, MODEL, kind="geometry", latents=("rotation",), split="train", **how
  )


def test_augmentations_are_set_by_the_training_configuration_and_off_in_evaluation(folder):
  chosen = cli.load_config(
    str(CONFIGS / "midtrain_fo_geometry.py"),
    [
      f"--config.data.mixture.rp_3do_fo.path={folder}",
      "--config.data.augment.blur=0.0",
      "--config.data.augment.shift=0.25",
      "--config.batch_size=4",
      "--config.data.image_size=24",
    ],
  )
  augmented = configured(chosen)
  plain = configured(chosen, augmented=False)

  # what is set, and what the file says
  augment = augmented.config.augment
  assert (augment.blur, augment.shift) == (0.0, 0.25)
  assert augment.erode == chosen.data.augment.erode > 0
  assert plain.config.augment is None

  # it shows
  pairs = zip(augmented.batch(0).cond.image, plain.batch(0).cond.image, strict=True)
  assert not all(np.array_equal(one, other) for one, other in pairs)

  # a configuration that changes nothing
  pretraining = cli.load_config(
    str(CONFIGS / "pretrain_geometry.py"), [f"--config.data.mixture.iso_3do.path={folder}"]
  )
  assert configured(pretraining).config.augment is None


def form(batch) -> list[tuple]:
  return [(name, array.shape, array.dtype) for name, array in leaves(batch)]


@pytest.mark.parametrize("kind", ["geometry", "structure", "preference"])
def test_spec_is_the_form_of_every_batch(folder, tmp_path, kind):
  changes = {}
  if kind == "preference":
    folder = tiny_dataset.write_dataset(tmp_path, 4, kind="preference")
    changes = {"latents": ("shape", "rotation")}
  reading = make(folder, kind=kind, batch_size=4, **changes)

  # random batches in the same form
  held = [field.name for field in dataclasses.fields(rows.SampleConfig)]
  settings = {name: getattr(reading.config, name) for name in held}
  random = fake.FakeLoader(rows.SampleConfig(**settings), kind=kind, batch_size=4, seed=0)

  expected = form(reading.spec)
  assert form(reading.batch(0)) == expected
  assert form(random.spec) == expected
  assert form(random.batch(0)) == expected


def test_layout_latents_lead_back_to_the_pose(folder):
  reading = make(folder)
  batch = reading.batch(0)
  examples = {}
  for index in range(COUNT):
    example = tiny_dataset.make_example(index)
    examples[tuple(schema.key_words(example["key"]))] = example

  for row in range(8):
    # the pose
    example = examples[tuple(batch.key[row])]
    _, scale, shift = rows.condition(example, reading.config, None)
    latents = {name: batch.latents[name][row] for name in LATENTS if name != "shape"}
    decoded = pose.decode_latents(latents, scale, shift)
    truth = schema.example_pose(example)
    for got, expected in zip(decoded, truth, strict=True):
      np.testing.assert_allclose(got, expected, atol=2e-5)

    # the shape: tokens in the order x, y, z
    tokens = batch.latents["shape"][row]
    latent_XYZC = example["structure_latent"]
    np.testing.assert_array_equal(tokens, latent_XYZC.reshape(64, 8))
    np.testing.assert_array_equal(tokens[16 * 1 + 4 * 2 + 3], latent_XYZC[1, 2, 3])
  assert all(there.all() for there in batch.present.values())


def test_without_point_map_only_shape_and_rotation_are_present(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 4, pointmap=False)
  batch = make(tmp_path, batch_size=4, latents=("shape", "rotation")).batch(0)
  for name in LATENTS:
    present = batch.present[name]
    assert present.all() if name in ("shape", "rotation") else not present.any()
  assert np.isnan(batch.cond.pointmap).all()

  # who asks for the others is told
  with pytest.raises(InputError, match="'translation' needs translation and scale and pointmap"):
    make(tmp_path, batch_size=4)


def test_latents_that_are_not_asked_for_are_delivered_as_absent(folder):
  batch = make(folder, latents=("rotation",)).batch(0)
  assert list(batch.present) == list(LATENTS)
  assert batch.present["rotation"].all()
  for name in set(LATENTS) - {"rotation"}:
    assert not batch.present[name].any()
    assert not batch.latents[name].any()


def without_latent(example):
  """About half of the examples lose their latent."""
  if example["voxels"][0, 0] % 2:
    return example | {"structure_latent": schema.empty_example()["structure_latent"]}
  return example


def test_absent_latents_of_a_mixed_dataset_are_marked_and_zero(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 12, change=without_latent)
  batch = make(tmp_path, batch_size=12).batch(0)
  present = batch.present["shape"]
  assert 0 < present.sum() < 12
  assert batch.present["rotation"].all()
  size = np.abs(batch.latents["shape"]).sum((1, 2))
  assert (size > 0).tolist() == present.tolist()


def test_dataset_without_latents_says_how_to_make_them(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 2, latent=False)
  message = r"'shape' needs structure_latent \(launch.encode_latents adds it\)"
  with pytest.raises(InputError, match=message):
    make(tmp_path, batch_size=2)


def test_occupancy_is_coarsened_without_losing_a_voxel():
  voxels = np.array([[0, 0, 0], [63, 62, 1], [8, 9, 10]], np.uint8)
  for resolution in (64, 32, 8):
    grid = rows.occupancy(voxels, resolution)
    coarse = voxels // (64 // resolution)
    full = np.argwhere(grid)
    assert set(map(tuple, full)) == set(map(tuple, coarse))
  with pytest.raises(records.CorruptRecord, match="outside"):
    rows.occupancy(np.array([[64, 0, 0]], np.uint8), 64)


def test_latents_of_another_autoencoder_are_refused(folder, tmp_path):
  # than that which is configured
  with pytest.raises(InputError, match="made by autoencoder aaaaaaaaaaaa, expected bbbbbbbbbbbb"):
    make(folder, autoencoder="b" * 64).batch(0)

  # than that of another source
  foreign = {"structure_latent_autoencoder": "c" * 64}
  tiny_dataset.write_dataset(tmp_path, 4, change=lambda example: example | foreign)
  sources = {"a": (str(folder), 1.0), "b": (str(tmp_path), 1.0)}
  with pytest.raises(InputError, match="do not mix"):
    make(folder, mixture=sources).batch(0)


def test_latents_of_another_size_are_refused_when_the_dataset_is_opened(folder):
  with pytest.raises(InputError, match=r"shape \(4, 4, 4, 8\), the model needs \(8, 8, 8, 8\)"):
    make(folder, shape_resolution=8)


def test_preference_batch_shows_each_loser_in_turn(tmp_path):
  tiny_dataset.write_dataset(tmp_path, 2, kind="preference")
  reading = make(tmp_path, kind="preference", batch_size=2, latents=("shape", "rotation"))
  example = tiny_dataset.make_example(1, kind="preference")
  words = schema.key_words(example["key"]).tolist()
  for step in range(4):
    batch = reading.batch(step)
    row = batch.key.tolist().index(words)
    loser = example["losers"][step % 2]
    for tokens, expected in ((batch.win, example), (batch.lose, loser)):
      latent = expected["structure_latent"].reshape(64, 8)
      np.testing.assert_array_equal(tokens["shape"][row], latent)
    assert batch.present["shape"].all()
    assert batch.present["rotation"].all()
