"""What meshes of decoded cubes cost: launch.benchmark --extract."""

import json

from launch import benchmark


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
