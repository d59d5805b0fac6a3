"""Files of a release are those that its release.json describes, or nothing is made of them."""

import json
import shutil

import pytest

from launch import sample
from sam3d_jax.inference import weights
from sam3d_jax.torch_bridge import load
from tests.support import sampling, tiny_checkpoints
from tests.support.tiny_release import import_


@pytest.fixture
def perturbed(runs, tmp_path):
  """The release, one bit of its decoder changed."""
  folder = tmp_path / "release"
  shutil.copytree(runs / "release", folder)
  tiny_checkpoints.flip(folder / "ss_decoder.ckpt")
  return folder


def assert_refused(folder, said: str) -> None:
  assert f"{folder / 'ss_decoder.ckpt'} is not the file that" in said
  assert "copy the release again" in said


@pytest.mark.parametrize("flags", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_photos_are_not_sampled_with_a_perturbed_decoder(perturbed, tmp_path, flags, capsys):
  sampling.write_cup_photo(tmp_path)
  inputs = sampling.photo_flags(tmp_path, "cup")
  argv = ["--release", str(perturbed), *inputs, "--out", str(tmp_path / "out"), *flags]
  assert sample.main(argv) == 2
  assert_refused(perturbed, capsys.readouterr().err)


@pytest.mark.parametrize("flags", [["--part=geometry"], ["--part=structure_vae"], ["--dry_run"]])
def test_nothing_is_imported_beside_a_perturbed_decoder(perturbed, tmp_path, flags, capsys):
  workdir = tmp_path / "run"
  assert import_(perturbed, workdir, *flags) == 2
  assert_refused(perturbed, capsys.readouterr().err)
  assert not workdir.exists()


def test_what_the_record_does_not_name_is_taken_as_it_is(perturbed):
  sidecar = perturbed / "release.json"
  record = json.loads(sidecar.read_text())
  del record["parts"]["ss_decoder"]
  sidecar.write_text(json.dumps(record))
  weights.check(weights.WeightsConfig(release=str(perturbed)))


def test_a_digest_is_that_of_the_file_as_it_is_now(tmp_path):
  file = tmp_path / "x.ckpt"
  file.write_bytes(b"one")
  before = load.file_digest(file)
  assert load.file_digest(file) == before
  tiny_checkpoints.flip(file)
  assert load.file_digest(file) != before
