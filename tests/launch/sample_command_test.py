"""launch.sample and launch.evaluate --samples with a tiny random model: files, resuming, errors."""

import argparse
import functools
import json
import shlex
import sys

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest
import trimesh

from launch import evaluate, export_torch, sample
from launch.scoring import split_samples
from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import conditions
from sam3d_jax.inference import predictor, rewards
from sam3d_jax.inference import weights as weights_lib
from sam3d_jax.inference.candidates import Candidate
from tests.support import tiny_dataset, tiny_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Flags that name the weights. They are loaded once: every further load would compile the sampler
  again.
  """
  folder = tmp_path_factory.mktemp("weights")
  vae = tiny_weights.save_vae(folder / "vae")
  geometry = tiny_weights.save_random(
    "configs/pretrain_geometry.py:fake", tiny_weights.GEOMETRY, folder / "geometry"
  )
  loaded = functools.cache(functools.partial(weights_lib.from_checkpoint, geometry, vae, steps=2))
  with pytest.MonkeyPatch.context() as patch:
    real = weights_lib.load
    named = lambda config: (config.checkpoint, config.decoder) == (geometry, vae)
    patch.setattr(weights_lib, "load", lambda c: loaded() if named(c) else real(c))
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
  found = split_samples.load_samples(drawn)
  # as they lie in the shards
  assert found.key.tolist() == [
    tiny_dataset.make_example(50 + i)["key"] for i in (0, 2, 4, 1, 3, 5)
  ]
  assert found.occupancy.shape == (6, 8, 8, 8) and found.settings["sampler"]["steps"] == 2
  np.testing.assert_allclose(np.linalg.norm(found.rotation, axis=-1), 1, atol=1e-5)


def test_glb_files_open_with_their_colour(drawn):
  files = sorted(drawn.glob("*.glb"))
  assert len(files) == 2 and all(len(trimesh.load_scene(f).geometry["object"].faces) for f in files)


def test_samples_do_not_depend_on_the_batch_size(drawn, weights, dataset, tmp_path):
  assert (
    sample.main(
      [*weights, "--batch_size", "3", "--data", dataset, "--out", str(tmp_path), "--glb", "0"]
    )
    == 0
  )
  again, first = split_samples.load_samples(tmp_path), split_samples.load_samples(drawn)
  np.testing.assert_allclose(again.rotation, first.rotation, atol=1e-4)
  # a logit at zero may fall on either side
  assert (again.occupancy != first.occupancy).mean() < 1e-3


def test_a_second_run_continues_and_ends_with_the_same_file(drawn, weights, dataset, monkeypatch):
  before = split_samples.load_samples(drawn)
  parts = sorted((drawn / "parts").glob("*.npz"))
  parts[1].unlink()
  calls = []
  real = split_samples.sample_batch
  monkeypatch.setattr(
    split_samples, "sample_batch", lambda *args: (calls.append(args[2]), real(*args))[1]
  )
  assert sample.main([*weights, "--data", dataset, "--out", str(drawn), "--glb", "2"]) == 0
  assert calls == [[4, 5]]
  after = split_samples.load_samples(drawn)
  np.testing.assert_array_equal(after.occupancy, before.occupancy)


def test_other_settings_do_not_reuse_finished_batches(tmp_path):
  parts = split_samples.prepare_parts(tmp_path, {"seed": 0})
  (parts / "0000000.npz").touch()
  assert split_samples.prepare_parts(tmp_path, {"seed": 0}) and (parts / "0000000.npz").exists()
  assert split_samples.prepare_parts(tmp_path, {"seed": 1}) and not (parts / "0000000.npz").exists()


def test_shuffling_gives_every_example_the_image_of_another_mesh():
  source = [{"mesh_key": f"m{i // 3}", "key": str(i)} for i in range(12)]
  partner = split_samples.shuffled(source, list(range(12)))
  assert sorted(partner) == list(range(12)) and all(
    source[i]["mesh_key"] != source[j]["mesh_key"] for i, j in enumerate(partner)
  )


def test_samples_are_scored_beside_their_baselines(drawn, weights, dataset, tmp_path, capsys):
  shuffled = tmp_path / "shuffled"
  assert (
    sample.main(
      [*weights, "--data", dataset, "--out", str(shuffled), "--shuffle_images", "--glb", "0"]
    )
    == 0
  )
  folders = [
    "--samples",
    str(drawn),
    "--shuffled",
    str(shuffled),
    "--data",
    dataset,
    "--out",
    str(tmp_path),
  ]
  assert evaluate.main([*folders, "--rows", "2"]) == 0
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  assert all(
    0 <= metrics[k] <= 1 for k in ("voxel_iou", "voxel_iou_constant", "voxel_iou_shuffled")
  )
  assert metrics["samples"] == 6 and "best constant" in capsys.readouterr().out
  assert Image.open(tmp_path / "preview.png").size[0] > 1000


def test_ordinary_samples_are_refused_as_the_shuffled_baseline(drawn, dataset, tmp_path, capsys):
  assert (
    evaluate.main(
      ["--samples", str(drawn), "--shuffled", str(drawn), "--data", dataset, "--out", str(tmp_path)]
    )
    == 2
  )
  assert "--shuffle_images" in capsys.readouterr().err


def test_a_photo_gives_meshes_layout_scene_and_preview(weights, photo):
  out = photo / "out"
  inputs = [
    "--image",
    str(photo / "photo.png"),
    "--mask",
    str(photo / "cup.png"),
    "--mask",
    str(photo / "plate.png"),
  ]
  assert sample.main([*weights, *inputs, "--out", str(out)]) == 0
  layout = json.loads((out / "layout.json").read_text())
  assert layout["frame"] == "rotation only" and set(layout["objects"]) == {"cup", "plate"}
  cup = layout["objects"]["cup"]
  assert (
    np.linalg.norm(cup["rotation"]) == pytest.approx(1, abs=1e-5) and cup["translation"] is None
  )
  assert np.linalg.det(cup["matrix"]) == pytest.approx(1, abs=1e-4)
  assert {"cup.glb", "plate.glb", "scene.glb", "preview.png"} <= {p.name for p in out.iterdir()}
  assert set(trimesh.load_scene(out / "scene.glb").geometry) == {"cup", "plate"}


def test_a_release_folder_gives_the_samples_of_the_checkpoint_it_was_made_from(weights, photo):
  checkpoint_folder, vae = weights[1], weights[3]
  assert (
    export_torch.main(
      [
        "--checkpoint",
        checkpoint_folder,
        "--vae",
        vae,
        "--safetensors",
        "--out",
        str(photo / "release"),
      ]
    )
    == 0
  )
  inputs = ["--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png"), *weights[4:]]
  assert sample.main([*weights[:4], *inputs, "--out", str(photo / "a")]) == 0
  assert sample.main(["--release", str(photo / "release"), *inputs, "--out", str(photo / "b")]) == 0
  a, b = (json.loads((photo / name / "layout.json").read_text())["objects"]["cup"] for name in "ab")
  # a release may compute in another precision
  np.testing.assert_allclose(a["rotation"], b["rotation"], atol=2e-3)
  assert (photo / "a" / "cup.glb").read_bytes() == (photo / "b" / "cup.glb").read_bytes()


def test_an_alpha_channel_is_a_mask(weights, photo):
  rgba = Image.open(photo / "photo.png").convert("RGBA")
  rgba.putalpha(Image.open(photo / "cup.png"))
  rgba.save(photo / "rgba.png")
  assert (
    sample.main(
      [*weights, "--image", str(photo / "rgba.png"), "--out", str(photo / "out"), "--dry_run"]
    )
    == 0
  )


def refusal(argv, photo, capsys) -> str:
  assert sample.main(["--checkpoint", "unused", *argv, "--out", str(photo / "out")]) == 2
  return capsys.readouterr().err


@pytest.mark.parametrize(
  "name, make, message",
  [
    ("size", lambda: np.eye(30, dtype=np.uint8), "the photo is 60 x 40"),
    ("empty", lambda: np.zeros((40, 60), np.uint8), "is empty"),
    ("full", lambda: np.full((40, 60), 255, np.uint8), "whole photo"),
    ("dot", lambda: np.pad(np.full((1, 1), 255, np.uint8), ((5, 34), (5, 54))), "1 x 1 pixels"),
  ],
)
def test_unusable_masks_are_refused_by_name(photo, capsys, name, make, message):
  Image.fromarray(make()).save(photo / f"{name}.png")
  error = refusal(
    ["--image", str(photo / "photo.png"), "--mask", str(photo / f"{name}.png")], photo, capsys
  )
  assert message in error and f"{name}.png" in error


def test_unreadable_files_are_refused_by_name(photo, capsys):
  (photo / "broken.png").write_bytes((photo / "cup.png").read_bytes()[:60])
  assert "broken.png" in refusal(
    ["--image", str(photo / "photo.png"), "--mask", str(photo / "broken.png")], photo, capsys
  )
  assert "no such file" in refusal(["--image", str(photo / "missing.png")], photo, capsys)
  assert "--mask" in refusal(["--image", str(photo / "photo.png")], photo, capsys)
  np.save(photo / "flat.npy", np.zeros((4, 4)))
  points = [
    "--image",
    str(photo / "photo.png"),
    "--mask",
    str(photo / "cup.png"),
    "--pointmap",
    str(photo / "flat.npy"),
  ]
  assert "is a depth map" in refusal(points, photo, capsys)


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--checkpoint", "a", "--release", "b"], "one of --checkpoint"),
    (["--checkpoint", "a"], "one of --image"),
    (["--checkpoint", "a", "--data", "d", "--mask", "m"], "go with --image"),
    (["--checkpoint", "a", "--data", "d", "--steps", "0"], "--steps 0"),
  ],
)
def test_wrong_flags_are_refused(tmp_path, capsys, argv, message):
  assert sample.main([*argv, "--out", str(tmp_path)]) == 2
  assert message in capsys.readouterr().err


def test_a_checkpoint_without_known_decoder_says_which_flag_to_give(weights, photo, capsys):
  argv = [
    "--checkpoint",
    weights[1],
    "--image",
    str(photo / "photo.png"),
    "--mask",
    str(photo / "cup.png"),
  ]
  assert (
    sample.main([*argv, "--out", str(photo / "out")]) == 2
    and "--decoder DIR" in capsys.readouterr().err
  )


def test_swapped_checkpoints_are_refused(weights, photo, capsys):
  inputs = ["--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png")]
  swapped = ["--checkpoint", weights[3], "--decoder", weights[1]]
  assert sample.main([*swapped, *inputs, "--out", str(photo / "out")]) == 2
  assert "structure_vae" in capsys.readouterr().err


def test_noise_of_an_example_depends_on_its_key_and_the_seed_alone():
  from sam3d_jax.objectives import draws

  content = np.arange(6, dtype=np.uint32).reshape(3, 2)
  keys_of = lambda seed, rows: np.asarray(
    draws.raw_keys(draws.example_keys(jax.random.key(seed), rows))
  )
  np.testing.assert_array_equal(keys_of(0, content)[1:], keys_of(0, content[1:]))
  assert not np.array_equal(keys_of(0, content), keys_of(1, content))


def write_photo(folder, height: int, width: int, objects: int) -> None:
  """DIR/<name>/image.png with masks 0.png, 1.png, ... side by side."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng([height, width])
  Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(
    folder / "image.png"
  )
  for i in range(objects):
    mask = np.zeros((height, width), np.uint8)
    mask[5 : height - 5, 3 + 12 * i : 12 + 12 * i] = 255
    Image.fromarray(mask).save(folder / f"{i}.png")


@pytest.fixture
def photo_folder(tmp_path):
  for name, *form in (("wide", 30, 80, 3), ("tall", 90, 40, 2), ("small", 24, 24, 1)):
    write_photo(tmp_path / "photos" / name, *form)
  return tmp_path


def layout_of(folder) -> dict:
  return json.loads((folder / "layout.json").read_text())


def test_photos_of_all_sizes_share_one_compilation_and_are_done_once(
  weights, photo_folder, monkeypatch
):
  args = [*weights, "--images", str(photo_folder / "photos"), "--out", str(photo_folder / "out")]
  predictor_used = loaded_by(args)
  before = len(predictor_used.programs)
  assert sample.main(args) == 0
  # 6 objects in batches of 4, the last one padded
  assert len(predictor_used.programs) <= before + 1
  assert [
    len(layout_of(photo_folder / "out" / n)["objects"]) for n in ("wide", "tall", "small")
  ] == [3, 2, 1]
  first = {p: p.read_bytes() for p in (photo_folder / "out").rglob("*.glb")}
  write_photo(photo_folder / "photos" / "new", 30, 50, 1)
  assert sample.main(args) == 0
  assert len(predictor_used.programs) <= before + 2  # one object: a bucket of one
  assert {p: p.read_bytes() for p in first} == first
  monkeypatch.setattr(
    predictor.Predictor, "start", lambda *args: pytest.fail("everything was done")
  )
  assert sample.main(args) == 0


def loaded_by(args: list[str]) -> predictor.Predictor:
  """The model that the command loads for these flags."""
  parser = argparse.ArgumentParser()
  sample.flags(parser)
  return weights_lib.load(sample.weights_config(parser.parse_args(args)))


def test_a_photos_samples_do_not_depend_on_its_company(weights, photo_folder):
  photos = photo_folder / "photos"
  assert sample.main([*weights, "--images", str(photos), "--out", str(photo_folder / "all")]) == 0
  tall = photos / "tall"
  alone = [
    "--image",
    str(tall / "image.png"),
    "--mask",
    str(tall / "0.png"),
    "--mask",
    str(tall / "1.png"),
  ]
  assert sample.main([*weights, *alone, "--out", str(photo_folder / "alone")]) == 0
  company, single = (
    layout_of(photo_folder / "all" / "tall")["objects"],
    layout_of(photo_folder / "alone")["objects"],
  )
  np.testing.assert_allclose(
    [company[n]["rotation"] for n in "01"], [single[n]["rotation"] for n in "01"], atol=1e-4
  )


def test_all_faults_of_a_folder_are_reported_at_once(weights, photo_folder, capsys):
  for name in ("wide", "tall"):
    (photo_folder / "photos" / name / "0.png").write_bytes(b"no picture")
  assert (
    sample.main(
      [
        "--checkpoint",
        "unused",
        "--images",
        str(photo_folder / "photos"),
        "--out",
        str(photo_folder / "out"),
      ]
    )
    == 2
  )
  error = capsys.readouterr().err
  assert "wide/0.png" in error and "tall/0.png" in error and "2 of 3 photos" in error


POINTMAP_COMMAND = (
  "import sys, numpy as np; from PIL import Image; w, h = Image.open(sys.argv[1]).size; "
  "v, u = np.mgrid[:h, :w] + 0.5; z = np.full((h, w), 3.0); "
  "np.save(sys.argv[2], np.stack([(w / 2 - u) * z / w, (h / 2 - v) * z / w, z], -1))"
)


def test_a_command_provides_the_point_map(weights, photo):
  args = [
    *weights,
    "--image",
    str(photo / "photo.png"),
    "--mask",
    str(photo / "cup.png"),
    "--out",
    str(photo / "out"),
    "--pointmap_command",
    f"{sys.executable} -c {shlex.quote(POINTMAP_COMMAND)} {{image}} {{out}}",
  ]
  assert sample.main(args) == 0
  layout = layout_of(photo / "out")
  assert layout["camera"]["source"] == "of the point map" and layout["camera"][
    "fx"
  ] == pytest.approx(60, rel=1e-3)
  assert (
    layout["objects"]["cup"]["placement"]["translation"][2] == pytest.approx(3, abs=1.5)
    and (photo / "out/points.ply").exists()
  )


@pytest.mark.parametrize(
  "command, message",
  [
    ("false {image} {out}", "failed with code 1"),
    ("true {image} {out}", "wrote 0 files"),
    ("no_such_program {image} {out}", "started"),
    ("true {image}", "{out}"),
  ],
)
def test_a_command_that_makes_no_point_map_is_an_error(photo, capsys, command, message):
  inputs = [
    "--image",
    str(photo / "photo.png"),
    "--mask",
    str(photo / "cup.png"),
    "--pointmap_command",
    command,
  ]
  assert message in refusal(inputs, photo, capsys)


def test_point_maps_that_do_not_fit_the_photo_are_refused(photo, capsys):
  base = ["--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png"), "--pointmap"]
  v, u = np.mgrid[:40, :60] + 0.5
  points = np.stack([(30 - u) / 60, (20 - v) / 60, np.ones_like(u)], -1)
  np.save(photo / "square.npy", points[:, :40])
  assert "differ in aspect" in refusal([*base, str(photo / "square.npy")], photo, capsys)
  points[10:30, 20:45] = np.nan
  np.save(photo / "hole.npy", points)
  assert "no known point under the mask of cup" in refusal(
    [*base, str(photo / "hole.npy")], photo, capsys
  )


def test_the_best_of_several_samples_is_kept_and_the_first_is_that_of_one(weights, photo):
  inputs = [*weights, "--image", str(photo / "photo.png"), "--mask", str(photo / "cup.png")]
  for count in (1, 3):
    assert sample.main([*inputs, "--samples", str(count), "--out", str(photo / f"out{count}")]) == 0
  cup = layout_of(photo / "out3")["objects"]["cup"]
  assert (
    len(set(cup["rewards"])) == 3
    and cup["mask_iou"] == max(cup["rewards"]) == cup["rewards"][cup["sample"]]
  )
  assert layout_of(photo / "out1")["objects"]["cup"]["mask_iou"] == pytest.approx(
    cup["rewards"][0], abs=1e-3
  )


def test_a_label_map_gives_one_object_an_id(weights, photo):
  labels = np.zeros((40, 60), np.uint16)
  labels[5:20, 5:20], labels[20:35, 30:50] = 300, 7
  Image.fromarray(labels).save(photo / "labels.png")
  args = [
    *weights,
    "--image",
    str(photo / "photo.png"),
    "--labels",
    str(photo / "labels.png"),
    "--refine",
    "--out",
    str(photo / "out"),
  ]
  assert sample.main(args) == 0
  objects = layout_of(photo / "out")["objects"]
  assert set(objects) == {"id_7", "id_300"}
  assert all(o["mask_iou"] >= o["refined"]["mask_iou_before"] for o in objects.values())


def test_the_implicit_reward_of_a_model_over_itself_is_zero(weights):
  loaded = loaded_by([*weights, "--out", "unused"])
  reward = rewards.load(rewards.RewardConfig("implicit", (weights[1], weights[1])), loaded, seed=0)
  image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
  mask = np.zeros((40, 60), bool)
  mask[10:30, 20:45] = True
  condition = conditions.condition(image, mask, None, loaded.form)
  rng = np.random.default_rng(0)

  def candidate(index: int) -> Candidate:
    latents = {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in loaded.latent_shapes.items()
    }
    drawn = predictor.Prediction(None, latents, None)
    return Candidate(Photo(image), "cup", index, condition, loaded, drawn)

  drawn = [candidate(i) for i in range(2)]
  assert reward(drawn) == [0.0, 0.0]
  reference = rewards.load_model(weights[1], loaded, "ema")
  graph, params = nnx.split(reference)
  aligned = nnx.merge(graph, jax.tree.map(lambda x: 0.5 * x, params))
  scores = rewards.implicit(rewards.build_implicit(aligned, reference), 0, drawn)
  assert len(set(scores)) == 2 and all(np.isfinite(scores))


def test_flags_of_rewards_that_do_not_go_together_are_refused(tmp_path, capsys):
  base = ["--checkpoint", "a", "--image", "i", "--out", str(tmp_path)]
  for extra, message in (
    (["--reward", "nonsense"], "MODULE:FUNCTION"),
    (["--reward", "implicit"], "--reward_models"),
    (["--reward", "a:b"], "--samples N"),
    (["--ids", "1"], "--labels"),
    (["--mask", "m", "--labels", "l"], "one of --mask and --labels"),
  ):
    assert sample.main([*base, *extra]) == 2
    assert message in capsys.readouterr().err
