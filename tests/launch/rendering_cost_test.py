"""What pictures cost: the figures of launch.benchmark --render and launch.aot --splats."""

import json

import pytest

from launch import aot, benchmark
from launch.performance import rendering
from launch.performance.rendering import RenderingSpec


def test_pictures_are_compiled_for_a_described_device(tmp_path, capsys):
  report = tmp_path / "report.json"
  words = "--topology cpu:1 --splats 100 --side 16 --tile 8 --block 8 --json".split()
  assert aot.main([*words, str(report)]) == 0
  found = json.loads(report.read_text())
  assert found["fits"]
  assert found["both"]["hbm_bytes"] > found["forward"]["hbm_bytes"] > 0
  assert "100 splats at 16 x 16, forward and backward" in capsys.readouterr().out


def test_a_row_says_what_was_measured():
  settings = RenderingSpec(splats=50, side=16, tile=8, block=8, repeat=1)
  camera = rendering.cameras.camera_from_fov(16, 16, 0.7)

  def loss(splats):
    return rendering.splat_loss(splats, camera, rendering.viewpoint(), settings.settings)

  row = rendering.figures("splats", 50, loss, (rendering.made_up(50),), settings)
  assert row["pairs"] >= 50
  assert row["lost"] == 0
  assert row["both_s"] > 0
  assert "50 splats at 16 x 16: forward" in rendering.row_text(row)


@pytest.mark.parametrize(
  "words, said",
  (
    ("--topology v5p:2x2x1", "exactly one of --config FILE, --splats N"),
    ("--topology v5p:2x2x1 --splats 0", "--splats 0 is not a positive number"),
    ("--topology v5p:2x2x1 --splats 9 --slices 2", "--slices need --config"),
    ("--topology 8xh100 --splats 9", "nothing is compiled for GPUs"),
  ),
)
def test_what_cannot_be_compiled_is_said(words, said, capsys):
  assert aot.main(words.split()) == 2
  assert said in capsys.readouterr().err


def test_plans_are_printed_dry(capsys):
  assert aot.main("--topology v5p:2x2x1 --splats 9 --dry_run".split()) == 0
  assert "would compile pictures of 9 splats" in capsys.readouterr().out
  assert benchmark.main("--render --splats 9 --dry_run".split()) == 0
  assert "would measure pictures of 9 splats" in capsys.readouterr().out
  assert benchmark.main("--render --side 0".split()) == 2
