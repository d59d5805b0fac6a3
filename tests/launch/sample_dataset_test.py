"""launch.sample --data and launch.evaluate --samples with a tiny random model."""

import json

import jax
import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.format import records
from launch import evaluate, sample
from launch.scoring import split_samples
from sam3d_jax.errors import InputError
from sam3d_jax.objectives import draws
from tests.support import sampling, tiny_dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  with sampling.tiny_model(tmp_path_factory.mktemp("weights")) as flags:
    yield flags


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "ellipsoids"
  tiny_dataset.write_dataset(folder, 4, split="train")
  tiny_dataset.write_dataset(folder, 6, split="test", first=50)
  return str(folder)


@pytest.fixture(scope="module")
def drawn(weights, dataset, tmp_path_factory):
  out = tmp_path_factory.mktemp("samples")
  code = sample.main([*weights, "--data", dataset, "--out", str(out), "--glb", "2"])
  assert code == 0
  return out


def test_every_example_has_one_sample_in_order(drawn):
  found = split_samples.load_samples(drawn)
  # as they lie in the shards
  expected = [tiny_dataset.make_example(50 + i)["key"] for i in (0, 2, 4, 1, 3, 5)]
  assert found.key.tolist() == expected
  assert found.occupancy.shape == (6, 8, 8, 8)
  assert found.settings["sampler"]["steps"] == 2
  length = np.linalg.norm(found.rotation, axis=-1)
  np.testing.assert_allclose(length, 1, atol=1e-5)


def test_glb_files_open_with_their_colour(drawn):
  files = sorted(drawn.glob("*.glb"))
  assert len(files) == 2
  for file in files:
    scene = trimesh.load_scene(file)
    assert len(scene.geometry["object"].faces)


def test_samples_do_not_depend_on_the_batch_size(drawn, weights, dataset, tmp_path):
  flags = ["--batch_size", "3", "--data", dataset, "--glb", "0"]
  assert sample.main([*weights, *flags, "--out", str(tmp_path)]) == 0
  again = split_samples.load_samples(tmp_path)
  first = split_samples.load_samples(drawn)
  np.testing.assert_allclose(again.rotation, first.rotation, atol=1e-4)
  # a logit at zero may fall on either side
  differ = again.occupancy != first.occupancy
  assert differ.mean() < 1e-3


def test_a_second_run_continues_and_ends_with_the_same_file(drawn, weights, dataset, monkeypatch):
  before = split_samples.load_samples(drawn)
  parts = sorted((drawn / "parts").glob("*.npz"))
  parts[1].unlink()

  sampled = []
  sample_batch = split_samples.sample_batch

  def recorded(predictor, source, chosen, images, config):
    sampled.append(chosen)
    return sample_batch(predictor, source, chosen, images, config)

  monkeypatch.setattr(split_samples, "sample_batch", recorded)
  assert sample.main([*weights, "--data", dataset, "--out", str(drawn), "--glb", "2"]) == 0
  assert sampled == [[4, 5]]
  after = split_samples.load_samples(drawn)
  np.testing.assert_array_equal(after.occupancy, before.occupancy)


def test_other_settings_do_not_reuse_finished_batches(tmp_path):
  parts = split_samples.prepare_parts(tmp_path, {"seed": 0})
  batch = parts / "0000000.npz"
  batch.touch()
  split_samples.prepare_parts(tmp_path, {"seed": 0})
  assert batch.exists()
  split_samples.prepare_parts(tmp_path, {"seed": 1})
  assert not batch.exists()


def test_shuffling_gives_every_example_the_image_of_another_mesh():
  meshes = [f"m{i // 3}" for i in range(12)]
  source = [{"mesh_key": name, "key": str(i)} for i, name in enumerate(meshes)]
  partner = split_samples.shuffled(source, list(range(12)))
  assert sorted(partner) == list(range(12))
  for own, other in enumerate(partner):
    assert meshes[own] != meshes[other]


def test_samples_are_scored_beside_their_baselines(drawn, weights, dataset, tmp_path, capsys):
  shuffled = tmp_path / "shuffled"
  flags = ["--data", dataset, "--shuffle_images", "--glb", "0", "--out", str(shuffled)]
  assert sample.main([*weights, *flags]) == 0

  flags = ["--samples", str(drawn), "--shuffled", str(shuffled), "--data", dataset]
  assert evaluate.main([*flags, "--rows", "2", "--out", str(tmp_path)]) == 0
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  for name in ("voxel_iou", "voxel_iou_constant", "voxel_iou_shuffled"):
    assert 0 <= metrics[name] <= 1, name
  assert metrics["samples"] == 6
  assert "best constant" in capsys.readouterr().out
  assert Image.open(tmp_path / "preview.png").size[0] > 1000


def test_ordinary_samples_are_refused_as_the_shuffled_baseline(drawn, dataset, tmp_path, capsys):
  flags = ["--samples", str(drawn), "--shuffled", str(drawn), "--data", dataset]
  assert evaluate.main([*flags, "--out", str(tmp_path)]) == 2
  assert "--shuffle_images" in capsys.readouterr().err


def test_noise_of_an_example_depends_on_its_key_and_the_seed_alone():
  content = np.arange(6, dtype=np.uint32).reshape(3, 2)

  def keys_of(seed: int, content_B2: np.ndarray) -> np.ndarray:
    keys_B = draws.example_keys(jax.random.key(seed), content_B2)
    return np.asarray(draws.raw_keys(keys_B))

  np.testing.assert_array_equal(keys_of(0, content)[1:], keys_of(0, content[1:]))
  assert not np.array_equal(keys_of(0, content), keys_of(1, content))


@pytest.mark.parametrize("key", ["../a", "/tmp/a", "a/b", "..", "", "a\n", "~", "a\x00"])
def test_the_mesh_of_any_key_lies_in_the_folder_of_results(tmp_path, key):
  assert split_samples.mesh_file(tmp_path, key).parent == tmp_path
  assert split_samples.mesh_file(tmp_path, key).name != f"{key}.glb"


def test_samples_of_the_collected_dataset_stay_in_their_folder(hostile_dir, tmp_path):
  source = records.open_split(hostile_dir / "key_escapes_out" / "ds", "test")
  grid = np.zeros((len(source), 4, 4, 4), bool)
  grid[:, 1:3, 1:3, 1:3] = True
  keys = np.array([source[i]["key"] for i in range(len(source))])
  result = split_samples.Samples(keys, grid, np.zeros((len(source), 4), np.float32), {})
  out = tmp_path / "a" / "b" / "out"
  out.mkdir(parents=True)
  chosen = list(range(len(source)))
  assert split_samples.write_meshes(out, source, chosen, result, len(source)) == len(source)
  assert len(list(out.glob("*.glb"))) == len(source)
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_batches_that_this_command_has_not_made_are_not_touched(tmp_path):
  (tmp_path / "parts").mkdir()
  (tmp_path / "parts" / "0000000.npz").write_bytes(b"mine")
  with pytest.raises(InputError, match="not made by this command"):
    split_samples.prepare_parts(tmp_path, {"seed": 0})
  (tmp_path / "parts" / "settings.json").write_text('{"theme": "dark"}')
  with pytest.raises(InputError, match="not made by this command"):
    split_samples.prepare_parts(tmp_path, {"seed": 0})
  assert (tmp_path / "parts" / "0000000.npz").read_bytes() == b"mine"


def test_a_key_of_letters_and_digits_names_a_file(tmp_path):
  assert split_samples.mesh_file(tmp_path, "0a-b.c_1") == tmp_path / "0a-b.c_1.glb"
