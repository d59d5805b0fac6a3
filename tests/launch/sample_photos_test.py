"""launch.sample --image and --images with a tiny random model: files, resuming, choosing."""

import json
import pathlib
import shlex
import shutil
import sys

from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest
import trimesh

from launch import export_torch, sample
from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import conditions
from sam3d_jax.inference import predictor, reconstruction, rewards
from sam3d_jax.inference.candidates import Candidate
from tests.support import sampling
from tests.support.sampling import layout_of, photo_flags


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  with sampling.tiny_model(tmp_path_factory.mktemp("weights")) as flags:
    yield flags


@pytest.fixture
def photo(tmp_path):
  sampling.write_cup_photo(tmp_path)
  return tmp_path


@pytest.fixture
def photo_folder(tmp_path):
  photos = tmp_path / "photos"
  sampling.write_photo(photos / "wide", 30, 80, objects=3)
  sampling.write_photo(photos / "tall", 90, 40, objects=2)
  sampling.write_photo(photos / "small", 24, 24, objects=1)
  return tmp_path


def test_a_photo_gives_meshes_layout_scene_and_preview(weights, photo):
  out = photo / "out"
  inputs = photo_flags(photo, "cup", "plate")
  assert sample.main([*weights, *inputs, "--out", str(out)]) == 0

  layout = layout_of(out)
  assert layout["frame"] == "rotation only"
  assert set(layout["objects"]) == {"cup", "plate"}
  cup = layout["objects"]["cup"]
  assert np.linalg.norm(cup["rotation"]) == pytest.approx(1, abs=1e-5)
  assert np.linalg.det(cup["matrix"]) == pytest.approx(1, abs=1e-4)
  assert cup["translation"] is None

  written = {path.name for path in out.iterdir()}
  assert {"cup.glb", "plate.glb", "scene.glb", "preview.png"} <= written
  assert set(trimesh.load_scene(out / "scene.glb").geometry) == {"cup", "plate"}


def test_a_release_folder_gives_the_samples_of_the_checkpoint_it_was_made_from(weights, photo):
  _, geometry, _, vae, *sampler = weights
  release = str(photo / "release")
  flags = ["--checkpoint", geometry, "--vae", vae, "--safetensors", "--out", release]
  assert export_torch.main(flags) == 0

  inputs = [*photo_flags(photo, "cup"), *sampler]
  a, b = photo / "a", photo / "b"
  checkpoint = ["--checkpoint", geometry, "--decoder", vae]
  assert sample.main([*checkpoint, *inputs, "--out", str(a)]) == 0
  assert sample.main(["--release", release, *inputs, "--out", str(b)]) == 0

  # a release may compute in another precision
  rotations = [layout_of(folder)["objects"]["cup"]["rotation"] for folder in (a, b)]
  np.testing.assert_allclose(*rotations, atol=2e-3)
  assert (a / "cup.glb").read_bytes() == (b / "cup.glb").read_bytes()


def test_an_alpha_channel_is_a_mask(weights, photo):
  rgba = Image.open(photo / "photo.png").convert("RGBA")
  rgba.putalpha(Image.open(photo / "cup.png"))
  rgba.save(photo / "rgba.png")
  inputs = photo_flags(photo, image="rgba.png")
  assert sample.main([*weights, *inputs, "--out", str(photo / "out"), "--dry_run"]) == 0


def test_photos_of_all_sizes_share_one_compilation_and_are_done_once(
  weights, photo_folder, monkeypatch
):
  photos = photo_folder / "photos"
  out = photo_folder / "out"
  args = [*weights, "--images", str(photos), "--out", str(out)]
  model = sampling.loaded_by(args)
  before = len(model.programs)

  # 6 objects in batches of 4, the last one padded
  assert sample.main(args) == 0
  assert len(model.programs) <= before + 1
  counts = [len(layout_of(out / name)["objects"]) for name in ("wide", "tall", "small")]
  assert counts == [3, 2, 1]

  # one object more: a bucket of one
  first = {path: path.read_bytes() for path in out.rglob("*.glb")}
  sampling.write_photo(photos / "new", 30, 50, objects=1)
  assert sample.main(args) == 0
  assert len(model.programs) <= before + 2
  assert {path: path.read_bytes() for path in first} == first

  def start(*_):
    pytest.fail("everything was done")

  monkeypatch.setattr(predictor.Predictor, "start", start)
  assert sample.main(args) == 0


def test_a_photos_samples_do_not_depend_on_its_company(weights, photo_folder):
  photos = photo_folder / "photos"
  together = photo_folder / "all"
  alone = photo_folder / "alone"
  assert sample.main([*weights, "--images", str(photos), "--out", str(together)]) == 0
  inputs = photo_flags(photos / "tall", "0", "1", image="image.png")
  assert sample.main([*weights, *inputs, "--out", str(alone)]) == 0

  company = layout_of(together / "tall")["objects"]
  single = layout_of(alone)["objects"]
  for name in ("0", "1"):
    np.testing.assert_allclose(company[name]["rotation"], single[name]["rotation"], atol=1e-4)


POINTMAP_COMMAND = (
  "import sys, numpy as np; from PIL import Image; w, h = Image.open(sys.argv[1]).size; "
  "v, u = np.mgrid[:h, :w] + 0.5; z = np.full((h, w), 3.0); "
  "np.save(sys.argv[2], np.stack([(w / 2 - u) * z / w, (h / 2 - v) * z / w, z], -1))"
)


def test_a_command_provides_the_point_map(weights, photo):
  command = f"{sys.executable} -c {shlex.quote(POINTMAP_COMMAND)} {{image}} {{out}}"
  inputs = [*photo_flags(photo, "cup"), "--pointmap_command", command]
  assert sample.main([*weights, *inputs, "--out", str(photo / "out")]) == 0

  layout = layout_of(photo / "out")
  camera = layout["camera"]
  assert camera["source"] == "of the point map"
  assert camera["fx"] == pytest.approx(60, rel=1e-3)
  _, _, depth = layout["objects"]["cup"]["placement"]["translation"]
  assert depth == pytest.approx(3, abs=1.5)
  assert (photo / "out/points.ply").exists()


def test_the_best_of_several_samples_is_kept_and_the_first_is_that_of_one(weights, photo):
  inputs = photo_flags(photo, "cup")
  found = {}
  for count in (1, 3):
    out = photo / f"out{count}"
    assert sample.main([*weights, *inputs, "--samples", str(count), "--out", str(out)]) == 0
    found[count] = layout_of(out)["objects"]["cup"]

  best = found[3]
  assert len(set(best["rewards"])) == 3
  assert best["rewards"][best["sample"]] == max(best["rewards"])
  assert best["mask_iou"] == max(best["rewards"])
  assert found[1]["mask_iou"] == pytest.approx(best["rewards"][0], abs=1e-3)


def test_a_label_map_gives_one_object_an_id(weights, photo):
  labels = np.zeros((40, 60), np.uint16)
  labels[5:20, 5:20] = 300
  labels[20:35, 30:50] = 7
  Image.fromarray(labels).save(photo / "labels.png")
  inputs = [*photo_flags(photo), "--labels", str(photo / "labels.png"), "--refine"]
  assert sample.main([*weights, *inputs, "--out", str(photo / "out")]) == 0

  objects = layout_of(photo / "out")["objects"]
  assert set(objects) == {"id_7", "id_300"}
  for found in objects.values():
    assert found["mask_iou"] >= found["refined"]["mask_iou_before"]


def test_the_implicit_reward_of_a_model_over_itself_is_zero(weights):
  loaded = sampling.loaded_by([*weights, "--out", "unused"])
  image = sampling.noise_image(40, 60)
  mask = np.zeros((40, 60), bool)
  mask[10:30, 20:45] = True
  condition = conditions.condition(image, mask, None, loaded.form)

  # two samples of noise
  rng = np.random.default_rng(0)
  drawn = []
  for index in range(2):
    latents = {}
    for name, shape in loaded.latent_shapes.items():
      latents[name] = rng.normal(size=shape).astype(np.float32)
    prediction = predictor.Prediction(None, latents, None)
    drawn.append(Candidate(Photo(image), "cup", index, condition, loaded, prediction))

  config = rewards.RewardConfig("implicit", (weights[1], weights[1]))
  reward = rewards.load(config, loaded, seed=0)
  assert reward(drawn) == [0.0, 0.0]

  # another model tells them apart
  reference = rewards.load_model(weights[1], loaded, "ema")
  graph, params = nnx.split(reference)
  halved = jax.tree.map(lambda x: 0.5 * x, params)
  run = rewards.build_implicit(nnx.merge(graph, halved), reference)
  scores = rewards.implicit(run, 0, drawn)
  assert len(set(scores)) == 2
  assert np.isfinite(scores).all()


def refused(out) -> dict[str, str]:
  """Name of each refused photo's folder or file -> reason."""
  lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
  return {pathlib.Path(line["path"]).parent.name: line["reason"] for line in lines}


def test_photos_that_cannot_be_used_cost_themselves_alone(
  weights, photo_folder, hostile_dir, capsys
):
  photos, out = photo_folder / "photos", photo_folder / "out"
  shutil.copytree(photos / "tall", photos / "eps")
  (photos / "eps" / "image.png").unlink()
  shutil.copy(hostile_dir / "eps_as_photo" / "photo.jpg", photos / "eps" / "image.jpg")
  for name, file in (("claims", "huge.npy"), ("broken", "bad.npz")):
    shutil.copytree(photos / "small", photos / name)
    kind = "0.npy" if file.endswith("npy") else "pointmap.npz"
    shutil.copy(hostile_dir / "npz_and_npy" / file, photos / name / kind)

  args = [*weights, "--images", str(photos), "--out", str(out)]
  assert sample.main(args) == 2
  said = capsys.readouterr().err
  assert "3 of 6 photos cannot be used" in said and "eps/image.jpg" in said
  assert set(refused(out)) == {"eps", "claims", "broken"}
  for name in ("wide", "tall", "small"):
    assert layout_of(out / name)
  assert sample.main([*args, "--quarantine_budget", "0.5"]) == 0

  for name in ("eps", "claims", "broken"):
    shutil.rmtree(photos / name)
  assert sample.main(args) == 0
  assert refused(out) == {}


def test_a_photo_that_fails_while_it_is_sampled_costs_itself_alone(
  weights, photo_folder, monkeypatch, capsys
):
  photos, out = photo_folder / "photos", photo_folder / "out"
  condition = reconstruction.Reconstructor._condition

  def fails(self, photo, name):
    if "tall" in str(photo.path):
      raise RecursionError("too deep")
    return condition(self, photo, name)

  monkeypatch.setattr(reconstruction.Reconstructor, "_condition", fails)
  assert sample.main([*weights, "--images", str(photos), "--out", str(out)]) == 2
  assert "tall" in capsys.readouterr().err and refused(out) == {"tall": "unreadable"}
  assert layout_of(out / "wide") and layout_of(out / "small")
  assert not (out / "tall" / "layout.json").exists()


def test_a_device_that_fails_is_no_fault_of_the_photos(weights, photo_folder, monkeypatch):
  def fails(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED")

  monkeypatch.setattr(predictor.Predictor, "start", fails)
  out = photo_folder / "out"
  with pytest.raises(RuntimeError, match="RESOURCE"):
    sample.main([*weights, "--images", str(photo_folder / "photos"), "--out", str(out)])
