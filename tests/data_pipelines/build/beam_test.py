"""Apache Beam as the executor of a build. It lives in an environment of its own: name its
interpreter with SAM3D_BEAM_PYTHON, or run where apache_beam can be imported.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from launch import build_data
from launch.console import cli
from tests.support.tiny_build import CONFIG, SMALL

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def interpreter() -> str:
  if importlib.util.find_spec("apache_beam"):
    return sys.executable
  if "SAM3D_BEAM_PYTHON" in os.environ:
    return os.environ["SAM3D_BEAM_PYTHON"]
  pytest.skip(
    "apache_beam is not here: make an environment from requirements-beam.txt and set "
    "SAM3D_BEAM_PYTHON to its python"
  )


def _build(interpreter: str, out: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
  overrides = [f"--config.{o}" for o in (*SMALL, "objects_per_shard=1", f"out={out}")]
  return subprocess.run(
    [interpreter, "-m", "launch.build_data", "--config", CONFIG, *overrides, *flags],
    cwd=ROOT,
    text=True,
    capture_output=True,
  )


def _bytes(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    p.relative_to(folder).as_posix(): p.read_bytes()
    for p in sorted(folder.rglob("*"))
    if p.is_file()
  }


PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.mark.parametrize("options", [(), PROCESSES], ids=["default", "processes"])
def test_beam_and_local_processes_write_the_same_bytes_and_continue_each_other(
  interpreter, tmp_path, options
):
  local = _build(interpreter, tmp_path / "local")
  assert local.returncode == 0, local.stderr
  beam = ("--executor", "beam", "--beam_options", "--runner=DirectRunner", *options)
  made = _build(interpreter, tmp_path / "beam", *beam)
  assert made.returncode == 0, made.stderr
  assert _bytes(tmp_path / "beam") == _bytes(tmp_path / "local")
  shards = sorted((tmp_path / "beam").glob("*array_record*"))
  kept = {p: p.stat().st_mtime_ns for p in shards[1:]}
  # as a build that was killed before its last shard
  for path in (shards[0], tmp_path / "beam" / "dataset_info.json"):
    path.unlink()
  again = _build(interpreter, tmp_path / "beam", *beam)
  assert again.returncode == 0, again.stderr
  assert {p: p.stat().st_mtime_ns for p in kept} == kept  # never rewritten
  assert _bytes(tmp_path / "beam") == _bytes(tmp_path / "local")


def test_an_option_that_beam_does_not_know_is_named(interpreter, tmp_path):
  wrong = _build(
    interpreter, tmp_path, "--executor", "beam", "--beam_options", "--runnner=DirectRunner"
  )
  assert (
    wrong.returncode == 2 and "--runnner=DirectRunner: Beam knows no such option" in wrong.stderr
  )
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is not None, reason="apache_beam is installed here"
)
def test_without_beam_the_command_says_how_to_get_it(tmp_path, capsys):
  argv = [
    "--config",
    CONFIG,
    f"--config.out={tmp_path}",
    "--executor",
    "beam",
    "--beam_options",
    "--runner=DirectRunner",
  ]
  assert cli.run_command(build_data.run, description="d", flags=build_data.flags, argv=argv) == 2
  assert "pip install -r requirements-beam.txt" in capsys.readouterr().err
  argv = ["--config", CONFIG, f"--config.out={tmp_path}", "--beam_options", "--runner=DirectRunner"]
  assert cli.run_command(build_data.run, description="d", flags=build_data.flags, argv=argv) == 2
  assert "they need --executor beam" in capsys.readouterr().err and not list(tmp_path.iterdir())
