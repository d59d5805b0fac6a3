"""Folders of photos as people have them: every file is taken, or named with the reason."""

import errno
import hashlib
import os
import pathlib

import numpy as np
from PIL import Image, features
import pytest

from launch import sample
from launch.photos import jobs
from launch.photos.jobs import PhotoSource
from sam3d_jax.files import images
from sam3d_jax.inference import weights
from tests.support import sampling

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200)


def plan(folder, tmp_path, *flags: str) -> int:
  """The exit code of a dry run over a folder of photos."""
  out = str(tmp_path / "out")
  # what a test puts in place of a reader is in this process alone
  here = ["--limit_memory_gb", "0", "--limit_seconds", "0"]
  return sample.main(
    ["--checkpoint", "unused", "--images", str(folder), "--out", out, "--dry_run", *here, *flags]
  )


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
  """What is tested here is said before the weights are looked at."""
  monkeypatch.setattr(weights, "check", lambda config: None)


@pytest.fixture
def folder(tmp_path):
  """One photo of two objects."""
  sampling.write_photo(tmp_path / "photos" / "cup", 30, 40, objects=2)
  return tmp_path / "photos"


def mask_picture() -> Image.Image:
  mask = np.zeros((30, 40), np.uint8)
  mask[5:20, 25:38] = 255
  return Image.fromarray(mask)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".avif", ".tga", ".gif"])
def test_masks_and_photos_have_any_suffix_that_is_read(folder, tmp_path, capsys, suffix):
  if suffix == ".avif" and not features.check("avif"):
    pytest.skip("this Pillow reads no AVIF")
  mask_picture().save(folder / "cup" / f"spoon{suffix}")
  assert plan(folder, tmp_path) == 0
  assert "spoon (" in capsys.readouterr().out

  (folder / "cup" / "image.png").unlink()
  photo = Image.fromarray(np.tile(np.uint8([10, 90, 200]), (30, 40, 1)))
  photo.save(folder / "cup" / f"image{suffix}")
  assert plan(folder, tmp_path) == 0
  assert f"image{suffix}: 0 (" in capsys.readouterr().out


def test_what_is_passed_over_is_counted_and_named_with_its_reason(folder, tmp_path, capsys):
  cup = folder / "cup"
  wrong = {
    folder / ".DS_Store": "hidden",
    folder / "movie.mov": "no picture by its suffix (.mov)",
    folder / "raw.DNG": "develop it",
    folder / "cameras.txt": "COLMAP's cameras",
    cup / "._image.png": "hidden",
    cup / "notes": "no picture by its suffix (none)",
    cup / "image.txt": "no picture by its suffix (.txt)",
    cup / "image.heic": "image.png is read in its place",
    cup / "pointmap.npz": "pointmap.npy is read in its place",
    cup / "depth.png": "pointmap.npy is read in its place",
  }
  for path in wrong:
    path.write_bytes(b"anything")
  np.save(cup / "pointmap.npy", points())
  Image.fromarray(sampling.noise_image(30, 40)).save(cup / "preview.jpg")
  (cup / "cut.jpg").write_bytes(b"\xff\xd8\xff")
  (cup / "older").mkdir()
  (folder / "empty").mkdir()
  wrong |= {
    cup / "preview.jpg": "no mask: it has more than two values",
    cup / "cut.jpg": "not read as a mask",
    cup / "older": "a folder within",
    folder / "empty": "without a photo named image.*",
  }
  assert plan(folder, tmp_path) == 0
  lines = capsys.readouterr().out.splitlines()
  assert f"passed over: {len(wrong)} file(s) or folder(s)" in lines
  for path, reason in wrong.items():
    assert any(line.startswith(f"  {path}: ") and reason in line for line in lines), path
  assert any("0 (" in line and "preview" not in line for line in lines)


def points() -> np.ndarray:
  """(30, 40, 3) points of a wall."""
  v, u = np.mgrid[:30, :40] + 0.5
  return np.stack([(20 - u) / 60, (15 - v) / 60, np.ones_like(u)], -1)


def test_a_folder_as_it_was_always_right_is_passed_over_in_nothing(folder, tmp_path, capsys):
  assert plan(folder, tmp_path) == 0
  assert "passed over" not in capsys.readouterr().out


def test_a_folder_without_any_photo_says_what_it_holds(tmp_path, capsys):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "movie.mov").write_bytes(b"")
  assert plan(tmp_path / "photos", tmp_path) == 2
  assert "movie.mov: no picture" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["spoon/image.heic", "IMG_0001.HEIC"])
def test_photos_that_need_a_plug_in_are_faults_by_name(
  folder, tmp_path, capsys, monkeypatch, place
):
  monkeypatch.setattr(images, "register_heif", lambda: False)
  path = folder / place
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(HEIC)
  assert plan(folder, tmp_path) == 2
  error = capsys.readouterr().err
  assert f"{path}: HEIC is read with a plug-in: pip install -r requirements-heif.txt" in error


def test_intrinsics_of_the_flag_hold_for_photos_without_their_own(folder, tmp_path):
  sampling.write_photo(folder / "spoon", 30, 40, objects=1)
  (folder / "spoon" / "intrinsics.txt").write_text("40 40 20 15")
  source = PhotoSource(images=str(folder), intrinsics="50,50,20,15")
  found, _ = jobs.find(source, tmp_path)
  assert [jobs.read(job).camera.fx for job in found] == [50, 40]


def test_a_mask_that_is_turned_with_its_photo_is_noted_once(tmp_path, capsys):
  exif = Image.Exif()
  exif[images.ORIENTATION_TAG] = 6
  photo = tmp_path / "photo.jpg"
  Image.fromarray(sampling.noise_image(30, 40)).save(photo, exif=exif)
  mask_picture().save(tmp_path / "cup.png")
  flags = ["--image", str(photo), "--mask", str(tmp_path / "cup.png"), "--dry_run"]
  flags += ["--checkpoint", "unused", "--out", str(tmp_path / "out")]
  assert sample.main(flags) == 0
  assert capsys.readouterr().err.count("note: mask ") == 1

  # sizes no longer fit if the user says that it is upright
  assert sample.main([*flags, "--mask_orientation", "upright"]) == 2
  assert sample.main([*flags, "--mask_orientation", "stored"]) == 0


def test_later_settings_change_no_digest_of_results_that_are_there(folder):
  image = folder / "cup" / "image.png"
  plain = jobs.Job("cup", image, folder)
  stored = jobs.Job("cup", image, folder, mask_orientation="stored")
  chosen = jobs.Job("cup", image, folder, channels=("Z",))
  assert len({plain.digest(), stored.digest(), chosen.digest()}) == 3
  assert digest_before(image) == plain.digest()


def digest_before(image: pathlib.Path) -> str:
  """A job's digest as it was before there were these settings."""
  digest = hashlib.sha256(repr((None, "pytorch3d", 0.001)).encode())
  digest.update(image.stem.encode())
  digest.update(hashlib.sha256(image.read_bytes()).digest())
  return digest.hexdigest()[:16]


@pytest.mark.parametrize(
  "number, said", [(errno.EIO, "the disk is at fault"), (errno.EACCES, "give the right to read it")]
)
def test_a_failing_disk_or_a_lack_of_permission_is_no_bad_input(
  folder, tmp_path, monkeypatch, capsys, number, said
):
  def failing(*_, **__):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(Image, "open", failing)
  assert plan(folder, tmp_path) == 1
  error = capsys.readouterr().err
  assert "image.png cannot be read" in error and said in error


@pytest.mark.parametrize(
  "case, objects", [("photos_mask_jpg", ["0 (", "1 ("]), ("photos_avif", ["image.avif: 0 ("])]
)
def test_photos_and_masks_of_public_reports_are_taken(field_dir, tmp_path, capsys, case, objects):
  if case == "photos_avif" and not features.check("avif"):
    pytest.skip("this Pillow reads no AVIF")
  assert plan(field_dir / "photos-passed-over" / case, tmp_path) == 0
  shown = capsys.readouterr().out
  assert all(name in shown for name in objects)


@pytest.mark.parametrize(
  "case, file", [("photos_heic", "image.heic"), ("photos_heic_loose", "IMG_0001.HEIC")]
)
def test_heic_of_public_reports_is_named(field_dir, tmp_path, capsys, case, file):
  assert plan(field_dir / "photos-passed-over" / case, tmp_path) == 2
  assert f"{file}: " in capsys.readouterr().err
