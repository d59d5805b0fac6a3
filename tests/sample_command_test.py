"""launch.sample and launch.evaluate --samples with a tiny random model: files, resuming, refusals."""

import functools
import json

import jax
import numpy as np
from PIL import Image
import pytest
import trimesh

from launch import cli, evaluate, predictor, sample, sample_dataset
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import keys
from sam3d_jax.training import checkpoint
from tests import tiny_dataset


def save_random(config: str, overrides: list[str], folder) -> str:
  """A checkpoint of random parameters, drawn on the host: initialising operation by operation takes long."""
  c = cli.load_config(config, overrides)
  rng = np.random.default_rng(0)
  shapes = keys.flat_shapes(registry.abstract_model(c.model))
  arrays = {path: rng.normal(0, 0.1, shape).astype(np.float32) for path, shape in sorted(shapes.items())}
  checkpoint.write_params(folder, arrays, {"config": c.to_dict(), "lineage": {"stage": "test", "parents": [], "datasets": {}}})
  return str(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Flags that name the weights. They are loaded once: every further load would compile the sampler again."""
  folder = tmp_path_factory.mktemp("weights")
  vae = save_random("configs/vae_structure.py:fake", ["--config.model.resolution=8", "--config.model.channels=(4,8)"],
                    folder / "vae")
  geometry = save_random("configs/pretrain_geometry.py:fake", ["--config.model.flow.shape_resolution=4"], folder / "geometry")
  loaded = functools.cache(lambda: predictor.from_checkpoint(geometry, vae, steps=2, guidance=None, shortcut=False))
  with pytest.MonkeyPatch.context() as patch:
    real = sample.load_predictor
    named = lambda args: (args.checkpoint, args.decoder) == (geometry, vae)
    patch.setattr(sample, "load_predictor", lambda args: loaded() if named(args) else real(args))
    yield ["--checkpoint", geometry, "--decoder", vae, "--steps", "2", "--batch_size", "4"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "ellipsoids"
  tiny_dataset.write_dataset(folder, 4, split="train")
  tiny_dataset.write_dataset(folder, 6, split="test", first=50)
  return str(folder)


@pytest.fixture(scope="module")
def drawn(weights, dataset, tmp_path_factory):
  out = tmp_path_factory.mktemp("samples")
  assert sample.main([*weights, "--data", dataset, "--out", str(out), "--glb", "2"]) == 0
  return out


@pytest.fixture
def photo(tmp_path):
  rng = np.random.default_rng(0)
  mask = np.zeros((40, 60), np.uint8)
  mask[10:30, 20:45] = 255
  Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
  Image.fromarray(mask).save(tmp_path / "cup.png")
  Image.fromarray(np.roll(mask, 10, 0)).save(tmp_path / "plate.png")
  return tmp_path


def test_every_example_has_one_sample_in_order(drawn, dataset):
  found = sample_dataset.load_samples(drawn)
  assert found.key.tolist() == [tiny_dataset.make_example(50 + i)["key"] for i in (0, 2, 4, 1, 3, 5)]  # as they lie in the shards
  assert found.occupancy.shape == (6, 8, 8, 8) and found.settings["sampler"]["steps"] == 2
  np.testing.assert_allclose(np.linalg.norm(found.rotation, axis=-1), 1, atol=1e-5)


def test_glb_files_open_with_their_colour(drawn):
  files = sorted(drawn.glob("*.glb"))
  assert len(files) == 2 and all(len(trimesh.load_scene(f).geometry["object"].faces) for f in files)


def test_samples_do_not_depend_on_the_batch_size(drawn, weights, dataset, tmp_path):
  assert sample.main([*weights, "--batch_size", "3", "--data", dataset, "--out", str(tmp_path), "--glb", "0"]) == 0
  again, first = sample_dataset.load_samples(tmp_path), sample_dataset.load_samples(drawn)
  np.testing.assert_allclose(again.rotation, first.rotation, atol=1e-4)
  assert (again.occupancy != first.occupancy).mean() < 1e-3  # a logit at zero may fall on either side


def test_a_second_run_continues_and_ends_with_the_same_file(drawn, weights, dataset, monkeypatch):
  before = sample_dataset.load_samples(drawn)
  parts = sorted((drawn / "parts").glob("*.npz"))
  parts[1].unlink()
  calls = []
  real = sample_dataset.sample_batch
  monkeypatch.setattr(sample_dataset, "sample_batch", lambda *args: (calls.append(args[2]), real(*args))[1])
  assert sample.main([*weights, "--data", dataset, "--out", str(drawn), "--glb", "2"]) == 0
  assert calls == [[4, 5]]
  after = sample_dataset.load_samples(drawn)
  np.testing.assert_array_equal(after.occupancy, before.occupancy)


def test_other_settings_do_not_reuse_finished_batches(tmp_path):
  parts = sample_dataset.prepare_parts(tmp_path, {"seed": 0})
  (parts / "0000000.npz").touch()
  assert sample_dataset.prepare_parts(tmp_path, {"seed": 0}) and (parts / "0000000.npz").exists()
  assert sample_dataset.prepare_parts(tmp_path, {"seed": 1}) and not (parts / "0000000.npz").exists()


def test_shuffling_gives_every_example_the_image_of_another_mesh():
  source = [{"mesh_key": f"m{i // 3}", "key": str(i)} for i in range(12)]
  partner = sample_dataset.shuffled(source, list(range(12)))
  assert sorted(partner) == list(range(12)) and all(source[i]["mesh_key"] != source[j]["mesh_key"] for i, j in enumerate(partner))


def test_samples_are_scored_beside_their_baselines(drawn, weights, dataset, tmp_path, capsys):
  shuffled = tmp_path / "shuffled"
  assert sample.main([*weights, "--data", dataset, "--out", str(shuffled), "--shuffle_images", "--glb", "0"]) == 0
  folders = ["--samples", str(drawn), "--shuffled", str(shuffled), "--data", dataset, "--out", str(tmp_path)]
  assert evaluate.main([*folders, "--rows", "2"]) == 0
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  assert all(0 <= metrics[k] <= 1 for k in ("voxel_iou", "voxel_iou_constant", "voxel_iou_shuffled"))
  assert metrics["samples"] == 6 and "best constant" in capsys.readouterr().out
  assert Image.open(tmp_path / "preview.png").size[0] > 1000


def test_ordinary_samples_are_refused_as_the_shuffled_baseline(drawn, dataset, tmp_path, capsys):
  assert evaluate.main(["--samples", str(drawn), "--shuffled", str(drawn), "--data", dataset, "--out", str(tmp_path)]) == 2
  assert "--shuffle_images" in capsys.readouterr().err


def test_a_photo_gives_meshes_layout_scene_and_preview(weights, photo):
  out = photo / "out"
  inputs = ["--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png"), "--mask", str(photo / "plate.png")]
  assert sample.main([*weights, *inputs, "--out", str(out)]) == 0
  layout = json.loads((out / "layout.json").read_text())
  assert layout["frame"] == "rotation only" and set(layout["objects"]) == {"cup", "plate"}
  cup = layout["objects"]["cup"]
  assert np.linalg.norm(cup["rotation"]) == pytest.approx(1, abs=1e-5) and cup["translation"] is None
  assert np.linalg.det(cup["matrix"]) == pytest.approx(1, abs=1e-4)
  assert {"cup.glb", "plate.glb", "scene.glb", "preview.png"} <= {p.name for p in out.iterdir()}
  assert set(trimesh.load_scene(out / "scene.glb").geometry) == {"cup", "plate"}


def test_an_alpha_channel_is_a_mask(weights, photo):
  rgba = Image.open(photo / "photo.png").convert("RGBA")
  rgba.putalpha(Image.open(photo / "cup.png"))
  rgba.save(photo / "rgba.png")
  assert sample.main([*weights, "--image", str(photo / "rgba.png"), "--out", str(photo / "out"), "--dry_run"]) == 0


def refusal(argv, photo, capsys) -> str:
  assert sample.main(["--checkpoint", "unused", *argv, "--out", str(photo / "out")]) == 2
  return capsys.readouterr().err


@pytest.mark.parametrize("name, make, message", [
    ("size", lambda: np.eye(30, dtype=np.uint8), "the photo is 60 x 40"),
    ("empty", lambda: np.zeros((40, 60), np.uint8), "is empty"),
    ("full", lambda: np.full((40, 60), 255, np.uint8), "whole photo"),
    ("dot", lambda: np.pad(np.full((1, 1), 255, np.uint8), ((5, 34), (5, 54))), "1 x 1 pixels"),
])
def test_unusable_masks_are_refused_by_name(photo, capsys, name, make, message):
  Image.fromarray(make()).save(photo / f"{name}.png")
  error = refusal(["--image", str(photo / "photo.png"), "--mask", str(photo / f"{name}.png")], photo, capsys)
  assert message in error and f"{name}.png" in error


def test_unreadable_files_are_refused_by_name(photo, capsys):
  (photo / "broken.png").write_bytes((photo / "cup.png").read_bytes()[:60])
  assert "broken.png" in refusal(["--image", str(photo / "photo.png"), "--mask", str(photo / "broken.png")], photo, capsys)
  assert "no such file" in refusal(["--image", str(photo / "missing.png")], photo, capsys)
  assert "--mask" in refusal(["--image", str(photo / "photo.png")], photo, capsys)
  np.save(photo / "flat.npy", np.zeros((4, 4)))
  points = ["--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png"), "--pointmap", str(photo / "flat.npy")]
  assert "is a depth map" in refusal(points, photo, capsys)


@pytest.mark.parametrize("argv, message", [
    (["--checkpoint", "a", "--release", "b"], "one of --checkpoint"), (["--checkpoint", "a"], "one of --image"),
    (["--checkpoint", "a", "--data", "d", "--mask", "m"], "go with --image"),
    (["--checkpoint", "a", "--data", "d", "--steps", "0"], "--steps 0"),
])
def test_wrong_flags_are_refused(tmp_path, capsys, argv, message):
  assert sample.main([*argv, "--out", str(tmp_path)]) == 2
  assert message in capsys.readouterr().err


def test_a_checkpoint_without_known_decoder_says_which_flag_to_give(weights, photo, capsys):
  argv = ["--checkpoint", weights[1], "--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png")]
  assert sample.main([*argv, "--out", str(photo / "out")]) == 2 and "--decoder DIR" in capsys.readouterr().err


def test_swapped_checkpoints_are_refused(weights, photo, capsys):
  inputs = ["--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png")]
  swapped = ["--checkpoint", weights[3], "--decoder", weights[1]]
  assert sample.main([*swapped, *inputs, "--out", str(photo / "out")]) == 2
  assert "structure_vae" in capsys.readouterr().err


def test_noise_of_an_example_depends_on_its_key_and_the_seed_alone():
  from sam3d_jax.objectives import draws
  content = np.arange(6, dtype=np.uint32).reshape(3, 2)
  keys_of = lambda seed, rows: np.asarray(draws.raw_keys(draws.example_keys(jax.random.key(seed), rows)))
  np.testing.assert_array_equal(keys_of(0, content)[1:], keys_of(0, content[1:]))
  assert not np.array_equal(keys_of(0, content), keys_of(1, content))
