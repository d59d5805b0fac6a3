"""What launch.sample refuses, by which name, and with which remedy."""

import numpy as np
from PIL import Image
import pytest

from launch import sample
from tests.support import sampling, tiny_weights
from tests.support.sampling import photo_flags


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """(geometry, decoder) work folders."""
  folder = tmp_path_factory.mktemp("weights")
  geometry = tiny_weights.save_random(
    "configs/pretrain_geometry.py:fake",
    tiny_weights.GEOMETRY,
    folder / "geometry",
  )
  return geometry, tiny_weights.save_vae(folder / "vae")


@pytest.fixture
def photo(tmp_path):
  sampling.write_cup_photo(tmp_path)
  return tmp_path


def refusal(argv, photo, capsys, *, checkpoint: str = "unused") -> str:
  """What the command says on standard error; it must end with 2."""
  out = str(photo / "out")
  assert sample.main(["--checkpoint", checkpoint, *argv, "--out", out]) == 2
  return capsys.readouterr().err


DOT = np.zeros((40, 60), np.uint8)
DOT[5, 5] = 255


@pytest.mark.parametrize(
  "name, mask, message",
  [
    ("size", np.eye(30, dtype=np.uint8), "the photo is 60 x 40"),
    ("empty", np.zeros((40, 60), np.uint8), "is empty"),
    ("full", np.full((40, 60), 255, np.uint8), "whole photo"),
    ("dot", DOT, "1 x 1 pixels"),
  ],
  ids=["size", "empty", "full", "dot"],
)
def test_unusable_masks_are_refused_by_name(photo, capsys, name, mask, message):
  Image.fromarray(mask).save(photo / f"{name}.png")
  error = refusal(photo_flags(photo, name), photo, capsys)
  assert message in error
  assert f"{name}.png" in error


def test_unreadable_files_are_refused_by_name(photo, capsys):
  cut_short = (photo / "cup.png").read_bytes()[:60]
  (photo / "broken.png").write_bytes(cut_short)
  assert "broken.png" in refusal(photo_flags(photo, "broken"), photo, capsys)
  assert "no such file" in refusal(photo_flags(photo, image="missing.png"), photo, capsys)
  assert "--mask" in refusal(photo_flags(photo), photo, capsys)

  np.save(photo / "flat.npy", np.zeros((4, 4)))
  points = ["--pointmap", str(photo / "flat.npy")]
  assert "is a depth map" in refusal([*photo_flags(photo, "cup"), *points], photo, capsys)


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


@pytest.mark.parametrize(
  "extra, message",
  [
    (["--reward", "nonsense"], "MODULE:FUNCTION"),
    (["--reward", "implicit"], "--reward_models"),
    (["--reward", "a:b"], "--samples N"),
    (["--ids", "1"], "--labels"),
    (["--mask", "m", "--labels", "l"], "one of --mask and --labels"),
  ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, capsys, extra, message):
  error = refusal(["--image", "i", *extra], tmp_path, capsys)
  assert message in error


def test_a_checkpoint_without_known_decoder_says_which_flag_to_give(folders, photo, capsys):
  geometry, _ = folders
  error = refusal(photo_flags(photo, "cup"), photo, capsys, checkpoint=geometry)
  assert "--decoder DIR" in error


def test_swapped_checkpoints_are_refused(folders, photo, capsys):
  geometry, decoder = folders
  argv = ["--decoder", geometry, *photo_flags(photo, "cup")]
  error = refusal(argv, photo, capsys, checkpoint=decoder)
  assert "structure_vae" in error


def test_all_faults_of_a_folder_are_reported_at_once(tmp_path, capsys):
  photos = tmp_path / "photos"
  for name in ("wide", "tall", "small"):
    sampling.write_photo(photos / name, 30, 40, objects=2)
  for name in ("wide", "tall"):
    (photos / name / "0.png").write_bytes(b"no picture")
  error = refusal(["--images", str(photos)], tmp_path, capsys)
  assert "wide/0.png" in error
  assert "tall/0.png" in error
  assert "2 of 3 photos" in error


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
  inputs = [*photo_flags(photo, "cup"), "--pointmap_command", command]
  assert message in refusal(inputs, photo, capsys)


def test_point_maps_that_do_not_fit_the_photo_are_refused(photo, capsys):
  v, u = np.mgrid[:40, :60] + 0.5
  points = np.stack([(30 - u) / 60, (20 - v) / 60, np.ones_like(u)], -1)
  base = [*photo_flags(photo, "cup"), "--pointmap"]

  square = photo / "square.npy"
  np.save(square, points[:, :40])
  assert "differ in aspect" in refusal([*base, str(square)], photo, capsys)

  hole = photo / "hole.npy"
  points[10:30, 20:45] = np.nan
  np.save(hole, points)
  assert "no known point under the mask of cup" in refusal([*base, str(hole)], photo, capsys)
