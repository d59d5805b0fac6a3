"""Encoding a dataset with a structure VAE."""

import hashlib
import json
import shutil

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from data_pipelines.format import records, schema
from data_pipelines.read import loader, rows
from launch import encode_latents
from launch.console import cli
from sam3d_jax.inference.structure_encoder import StructureEncoder
from sam3d_jax.models import parameters, registry
from sam3d_jax.training import checkpoint_steps
from tests.support import tiny_dataset

MODEL = {
  "name": "structure_vae",
  "resolution": 8,
  "latent_channels": 4,
  "channels": (4, 8),
  "res_blocks": 1,
  "middle_blocks": 1,
  "dtype": "float32",
}


@pytest.fixture(scope="module")
def vae():
  return random_vae(3)


def random_vae(seed):
  """A VAE with random parameters, made without compiling its initialisers."""
  module, rng = registry.abstract_model(ConfigDict(MODEL)), np.random.default_rng(seed)
  shapes = parameters.flat_shapes(module)
  parameters.load_params(
    module, {path: 0.2 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
  )
  return module


@pytest.fixture(scope="module")
def encoded(dataset, vae, tmp_path_factory):
  """The dataset encoded in one go."""
  out = tmp_path_factory.mktemp("encoded") / "out"
  assert encode(dataset, vae, out) == 0
  return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """Seven examples in three shards; two of them share their shape, one has none."""
  same, none = tiny_dataset.make_example(0)["voxels"], schema.empty_example()["voxels"]
  shape = {4: same, 5: none}
  change = {tiny_dataset.make_example(i)["key"]: v for i, v in shape.items()}
  return tiny_dataset.write_dataset(
    tmp_path_factory.mktemp("data") / "d",
    7,
    shards=3,
    latent=False,
    change=lambda e: e | {"voxels": change.get(e["key"], e["voxels"])},
  )


def encode(dataset, vae, out, *extra):
  """Runs the command on a model in memory: reading checkpoints is tested elsewhere."""
  argv = [
    "--data",
    str(dataset),
    "--checkpoint",
    "none",
    "--out",
    str(out),
    "--batch_size",
    "2",
    *extra,
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint_steps, "newest_readable", lambda workdir, read: (vae, {"step": 7}))
    return cli.run_command(
      encode_latents.run, description="d", flags=encode_latents.flags, config="none", argv=argv
    )


def digest_of(vae):
  """The name that latents carry."""
  return parameters.params_digest(parameters.flat_params(vae))


def digests(folder):
  return {
    p.name: hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(folder.iterdir())
    if p.is_file()
  }


def test_every_shape_gets_the_mean_of_the_encoder(dataset, vae, encoded):
  before, after = records.open_split(dataset), records.open_split(encoded)
  assert "made by | launch.encode_latents" in (encoded / "DATA_CARD.md").read_text()
  assert len(after) == 7
  mean = jax.jit(lambda x: vae.encoder(x)[0])
  for i in range(7):
    kept = [f for f in before[i] if not f.startswith("structure_latent")]
    assert all(tiny_dataset.equal(before[i][f], after[i][f]) for f in kept)
    assert schema.is_present(after[i], "structure_latent") == schema.is_present(before[i], "voxels")
    if schema.is_present(before[i], "voxels"):
      expected = mean(rows.occupancy(before[i]["voxels"], 8)[None])[0]
      np.testing.assert_allclose(after[i]["structure_latent"], expected, atol=1e-5)
      assert after[i]["structure_latent_autoencoder"] == digest_of(vae)


def test_encoded_dataset_can_be_read_for_training(encoded):
  config = loader.DataConfig(
    mixture={"d": (str(encoded), 1.0)},
    image_size=8,
    streams=("image",),
    latents=("shape",),
    shape_resolution=4,
    latent_channels=4,
  )
  batch = loader.make_loader(config, kind="geometry", batch_size=7, seed=0).batch(0)
  assert batch.latents["shape"].shape == (7, 64, 4) and batch.present["shape"].sum() == 6


def test_statistics_are_those_of_all_latents(encoded):
  statistics = json.loads((encoded / records.STATISTICS_FILE).read_text())
  split = records.open_split(encoded)
  cells = np.concatenate(
    [
      x["structure_latent"].reshape(-1, 4)
      for x in map(split.__getitem__, range(7))
      if schema.is_present(x, "structure_latent")
    ]
  )
  np.testing.assert_allclose(statistics["mean"], cells.mean(0), atol=1e-5)
  np.testing.assert_allclose(statistics["std"], cells.std(0), atol=1e-5)
  assert statistics["cells"] == len(cells)


def test_killed_job_continues_and_leaves_the_same_files(
  dataset, vae, encoded, tmp_path, monkeypatch
):
  real, calls = records.write_bytes, []

  def killed(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(*args, **kwargs)

  monkeypatch.setattr(records, "write_bytes", killed)
  assert encode(dataset, vae, tmp_path / "killed") == cli.EXIT_RETRY
  monkeypatch.setattr(records, "write_shard", real)
  first = records.shard_path(tmp_path / "killed", "ellipsoids", "train", 0, 3)
  stamp = first.stat().st_mtime_ns
  with pytest.raises(records.DatasetError, match="1 of 3 shards"):
    records.open_split(tmp_path / "killed")
  assert encode(dataset, vae, tmp_path / "killed") == 0
  assert first.stat().st_mtime_ns == stamp
  assert digests(tmp_path / "killed") == digests(encoded)


def test_jobs_that_share_the_work_leave_the_same_files(dataset, vae, encoded, tmp_path):
  for index in (1, 0):
    assert (
      encode(dataset, vae, tmp_path / "shared", "--task_index", str(index), "--task_count", "2")
      == 0
    )
  assert digests(tmp_path / "shared") == digests(encoded)


def test_folder_of_another_encoding_is_refused(dataset, vae, encoded, capsys):
  assert encode(dataset, random_vae(4), encoded) == cli.EXIT_BAD_INPUT
  assert "another encoding (different: autoencoder)" in capsys.readouterr().err
  assert encode(dataset, vae, dataset) == cli.EXIT_BAD_INPUT


def test_preference_losers_are_encoded_too(vae, tmp_path):
  data = tiny_dataset.write_dataset(tmp_path / "data", 2, kind="preference", latent=False)
  assert encode(data, vae, tmp_path / "out") == 0
  split = records.open_split(tmp_path / "out")
  mean = jax.jit(lambda x: vae.encoder(x)[0])
  for example in (split[0], split[1]):
    for candidate in (example, *example["losers"]):
      expected = mean(rows.occupancy(candidate["voxels"], 8)[None])[0]
      np.testing.assert_allclose(candidate["structure_latent"], expected, atol=1e-5)


def test_shards_are_the_sources_with_latents_added_byte_for_byte(dataset, vae, encoded, tmp_path):
  encoder = StructureEncoder(vae, batch_size=2)
  source, start = records.open_split(dataset), 0
  for index, length in enumerate(records.open_dataset(dataset).info.splits["train"].shard_lengths):
    # Equal shapes of a shard are encoded once, in the order in which they come.
    examples = [source[i] for i in range(start, start + length)]
    start += length
    shapes = {e["voxels"].tobytes(): e["voxels"] for e in examples if len(e["voxels"])}
    latents = encoder([rows.occupancy(voxels, 8) for voxels in shapes.values()])
    of_shape = dict(zip(shapes, latents, strict=True))
    for example in examples:
      if len(example["voxels"]):
        example["structure_latent"] = of_shape[example["voxels"].tobytes()]
        example["structure_latent_autoencoder"] = digest_of(vae)
    expected = records.shard_path(tmp_path, "ellipsoids", "train", index, 3)
    records.write_shard(expected, examples)
    assert expected.read_bytes() == (encoded / expected.name).read_bytes()


def test_what_is_written_beside_the_shards_keeps_its_form(dataset, vae, encoded):
  written = json.loads((encoded / records.BUILD_FILE).read_text())
  assert set(written.pop("versions")) == {"jax", "jaxlib", "flax", "numpy"}
  assert written == {
    "source": records.dataset_identity(dataset),
    "autoencoder": digest_of(vae),
    "which": "ema",
    "step": 7,
    "batch_size": 2,
    "latent": {"resolution": 4, "channels": 4},
  }
  assert set(json.loads((encoded / records.STATISTICS_FILE).read_text())) == {
    "cells",
    "mean",
    "std",
  }


def test_a_finished_folder_of_an_earlier_release_is_left_as_it_is(
  dataset, vae, encoded, tmp_path, capsys
):
  old = tmp_path / "old"
  shutil.copytree(encoded, old)
  shutil.rmtree(old / "reports")  # earlier releases named reports otherwise
  before = digests(old)
  assert encode(dataset, vae, old) == 0
  assert "7 train examples; latents" in capsys.readouterr().out and digests(old) == before
  (old / records.INFO_FILE).unlink()  # and one that was not finished is to be made again
  assert encode(dataset, vae, old) == cli.EXIT_BAD_INPUT
  assert "build again" in capsys.readouterr().err


def test_short_batches_cost_what_they_hold_and_give_the_same_latents(vae):
  encoder = StructureEncoder(vae, batch_size=8)
  sizes = []
  program = encoder._program

  def counted(grids):
    sizes.append(len(grids))
    return program(grids)

  encoder._program = counted
  grids = list(np.random.default_rng(0).random((9, 8, 8, 8), np.float32) > 0.5)
  together = encoder(grids)
  alone = encoder(grids[8:])
  encoder(grids[:3])
  assert sizes == [8, 1, 1, 4]
  np.testing.assert_allclose(together[8], alone[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(together[0], encoder(grids[:1])[0], rtol=1e-5, atol=1e-6)
