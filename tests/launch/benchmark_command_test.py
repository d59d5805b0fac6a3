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
  """Measures the smallest step; the exit code."""
  argv = ["--config", "configs/vae_structure.py:fake", *arguments]
  return benchmark.main(argv)


def test_two_configurations_are_measured_in_one_run_and_written_down(tmp_path, monkeypatch):
  # a document with sections of others
  document = tmp_path / "benchmarks.md"
  document.write_text("# Benchmarks\n\n## Reading\nfast\n")
  monkeypatch.setattr(benchmark, "DOCUMENT", document)
  figures = tmp_path / "out.json"
  argv = [
    "--config.batch_size=2",
    "--vs",
    "configs/vae_structure.py:fake",
    "--vs_set",
    "batch_size=1",
    "--steps",
    "2",
    "--write",
    "--json",
    str(figures),
  ]
  for _ in range(2):
    assert run(*argv) == 0

  # the figures of each side
  reports = json.loads(figures.read_text())
  assert reports["ratio"] > 0
  for side, batch_size in (("config", 2), ("vs", 1)):
    report = reports[side]
    assert report["batch_size"] == batch_size
    assert report["steps"] == 2
    assert report["mfu"] is None  # nobody says what this processor can do
    assert 0 <= report["input_wait_share"] < 1
    assert report["samples_per_second_per_chip"] > 0
    assert report["memory_bytes"] > 0

  # a row for each side of each run, in one table behind what was there
  text = document.read_text()
  assert text.startswith("# Benchmarks\n\n## Reading\nfast\n")
  assert text.count(steps.SECTION) == 1
  rows = [line for line in text.splitlines() if "train_vae structure_vae" in line]
  assert len(rows) == 4
  assert all(row.endswith("|") for row in rows)


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
  assert len(lines) == 2 * 3  # two formats, three sets of streams
  assert all("samples per CPU second" in line for line in lines)


def test_the_work_on_a_mesh_is_measured_without_a_configuration(tmp_path, capsys):
  mesh = tmp_path / "box.ply"
  trimesh.creation.box().export(mesh)
  argv = ["--mesh", str(mesh), "--triangles", "48", "--views", "1"]
  assert benchmark.main([*argv, "--image_size", "16", "--samples", "1"]) == 0
  assert "box.ply: 48 triangles" in capsys.readouterr().out


def test_one_thing_is_measured_at_a_time(capsys):
  assert run("--reading") == cli.EXIT_BAD_INPUT
  assert "exactly one of --config FILE, --reading, --mesh FILE" in capsys.readouterr().err
