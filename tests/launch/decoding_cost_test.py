"""What decoding costs: the figures of launch.benchmark --extract and launch.aot --voxels."""

import json

import pytest

from launch import aot, benchmark


def test_a_mesh_of_a_made_up_object_is_measured(tmp_path, capsys):
  report = tmp_path / "report.json"
  words = "--extract --voxels 600 --repeat 1 --json".split()
  assert benchmark.main([*words, str(report)]) == 0
  found = json.loads(report.read_text())
  assert found["cubes"] == 600 * 64
  assert found["faces"] > 1000
  assert found["seconds"] > 0
  assert "600 voxels, 38400 cubes of 256^3" in capsys.readouterr().out


def test_the_plan_is_printed_dry_and_impossible_objects_are_refused(capsys):
  assert benchmark.main("--extract --voxels 9 --dry_run".split()) == 0
  assert "would measure meshes of an object of 9 voxels" in capsys.readouterr().out
  for words in ("--extract --voxels 0", "--extract --voxels 100000", "--extract --reading"):
    assert benchmark.main(words.split()) == 2


def test_a_decoder_is_compiled_for_a_described_device(tmp_path, capsys):
  report = tmp_path / "report.json"
  small = [
    "--config.model.mesh.trunk.width=32",
    "--config.model.mesh.trunk.heads=2",
    "--config.model.mesh.trunk.depth=1",
    "--config.model.mesh.up_channels=(32,32)",
  ]
  words = "--config configs/vae_slat_mesh.py --topology cpu:1 --voxels 128 --json".split()
  assert aot.main([*words, str(report), *small]) == 0
  found = json.loads(report.read_text())
  assert found["fits"]
  assert found["both"]["temporary_bytes"] > 0
  assert "slat_mesh at 128 voxels, remat none, forward and backward" in capsys.readouterr().out


@pytest.mark.parametrize(
  "words, said",
  (
    ("--config configs/vae_slat_mesh.py --voxels 100", "not a positive multiple of 128"),
    ("--config configs/vae_structure.py --voxels 128", "is not one of slat_gaussian, slat_mesh"),
    ("--config configs/vae_slat_mesh.py --voxels 128 --slices 2", "for one chip"),
    ("--splats 9 --voxels 128", "--voxels"),
  ),
)
def test_decoders_that_cannot_be_compiled_are_told(words, said, capsys):
  assert aot.main(["--topology", "v5p:2x2x1", *words.split()]) == 2
  assert said in capsys.readouterr().err
