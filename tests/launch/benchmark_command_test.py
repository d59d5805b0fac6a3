"""launch.benchmark on random batches: both configurations are measured, and the row lands in the
table.
"""

import json

import pytest
import trimesh

from launch import benchmark
from launch.console import cli
from launch.performance import steps


def run(*arguments: str) -> int:
  argv = ["--config", "configs/vae_structure.py:fake", *arguments]
  return benchmark.main(argv)


def test_two_configurations_are_measured_in_one_run_and_written_down(tmp_path, monkeypatch):
  document = tmp_path / "benchmarks.md"
  document.write_text("# Benchmarks\n\n## Reading\nfast\n")
  monkeypatch.setattr(benchmark, "DOCUMENT", document)
  for _ in range(2):
    assert (
      run(
        "--config.batch_size=2",
        "--vs",
        "configs/vae_structure.py:fake",
        "--vs_set",
        "batch_size=1",
        "--steps",
        "2",
        "--write",
        "--json",
        str(tmp_path / "out.json"),
      )
      == 0
    )
  reports = json.loads((tmp_path / "out.json").read_text())
  assert [reports[side]["batch_size"] for side in ("config", "vs")] == [2, 1] and reports[
    "ratio"
  ] > 0
  for side in ("config", "vs"):
    assert (
      reports[side]["steps"] == 2
      and reports[side]["mfu"] is None
      and 0 <= reports[side]["input_wait_share"] < 1
    )
    assert reports[side]["samples_per_second_per_chip"] > 0 and reports[side]["memory_bytes"] > 0
  text = document.read_text()
  assert text.startswith("# Benchmarks\n\n## Reading\nfast\n") and text.count(steps.SECTION) == 1
  assert (
    sum("train_vae structure_vae" in line and line.endswith("|") for line in text.splitlines()) == 4
  )


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--steps", "0"), "--steps 0"),
    (("--vs_set", "seed=1"), "--vs_set needs --vs"),
    (("--torch",), "not of stage train_vae, model structure_vae"),
  ],
)
def test_what_cannot_be_measured_is_bad_input(arguments, message, capsys):
  assert run(*arguments) == cli.EXIT_BAD_INPUT
  assert message in capsys.readouterr().err


def test_reading_is_measured_without_a_configuration(capsys):
  argv = ["--reading", "--size", "32", "--image_size", "28", "--samples", "16", "--repeat", "1"]
  assert benchmark.main(argv) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 6 and all("samples per CPU second" in line for line in lines)


def test_the_work_on_a_mesh_is_measured_without_a_configuration(tmp_path, capsys):
  trimesh.creation.box().export(tmp_path / "box.ply")
  argv = ["--mesh", str(tmp_path / "box.ply"), "--triangles", "48", "--views", "1"]
  assert benchmark.main([*argv, "--image_size", "16", "--samples", "1"]) == 0
  assert "box.ply: 48 triangles" in capsys.readouterr().out


def test_one_thing_is_measured_at_a_time(capsys):
  assert run("--reading") == cli.EXIT_BAD_INPUT
  assert "exactly one of --config FILE, --reading, --mesh FILE" in capsys.readouterr().err
