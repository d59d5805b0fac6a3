"""Launchers start things twice: a folder has one writer, and the second one touches nothing."""

import errno
import os
import subprocess
import sys

import pytest

from data_pipelines.build import latents
from data_pipelines.format import records
from launch import build_data, evaluate, sample, sweep
from launch.console import cli, folders
from launch.trainer import command
from sam3d_jax.errors import JobFailed
from sam3d_jax.files import locks
from tests.support import another_writer

BUILD = ["--config", "configs/data/iso_3do.py:tiny", "--config.procedural.count=3"]


def train(argv: list[str]) -> int:
  return command.main(("pretrain",), "x", argv)


# a command, what it is called with beside its folder, how the folder is given, how it ends
COMMANDS = {
  "train": (train, ["--config", "configs/pretrain_geometry.py:fake"], "--workdir", 1),
  "build": (build_data.main, BUILD, "--config.out", 1),
  "sample": (
    sample.main,
    ["--checkpoint", "run", "--image", "p.jpg", "--mask", "m.png"],
    "--out",
    1,
  ),
  "evaluate": (evaluate.main, ["--pairs", "pairs"], "--out", 1),
  # started by hand: nothing starts it again
  "sweep": (sweep.main, ["--sweep", "configs/sweeps/lr.py"], "--workdir", cli.EXIT_BAD_INPUT),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leaves_a_folder_alone_that_another_process_writes_to(tmp_path, capsys, name):
  run, argv, flag, code = COMMANDS[name]
  with another_writer.holding(tmp_path) as other:
    assert run([*argv, f"{flag}={tmp_path}"]) == code
    said = capsys.readouterr().err
    assert f"{tmp_path} is in use by launch.other (process {other.pid} on" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == [locks.FOLDER]


def test_an_encoder_leaves_the_share_of_another_one_alone(tmp_path):
  with another_writer.holding(tmp_path):
    with pytest.raises(locks.InUse):
      latents.encode(None, tmp_path, share=latents.Share(0, 1), progress=print)


def test_two_builds_started_at_once_make_one_whole_dataset(tmp_path):
  argv = [sys.executable, "-m", "launch.build_data", *BUILD, f"--config.out={tmp_path}"]
  env = {**os.environ, "PYTHONPATH": str(another_writer.ROOT)}
  both = []
  for _ in range(2):
    process = subprocess.Popen(
      argv,
      cwd=another_writer.ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    both.append(process)
  said = [process.communicate()[0] for process in both]
  codes = sorted(process.returncode for process in both)
  # The second one is refused, or comes when the first is done.
  assert codes in ([0, 0], [0, 1]), said
  if codes == [0, 1]:
    assert any("is in use by a build of" in text for text in said)
  assert len(records.open_split(tmp_path)) > 0
  assert not (tmp_path / locks.FOLDER).exists()


@pytest.mark.parametrize("where, raised", [("inside", JobFailed), ("elsewhere", OSError)])
def test_a_disk_that_turns_read_only_under_a_command_is_a_failure(tmp_path, where, raised):
  files = {"inside": tmp_path / "out" / "x.json", "elsewhere": tmp_path / "x.json"}
  with pytest.raises(raised):
    with folders.output_lock(tmp_path / "out", "launch.sample", dry_run=False):
      raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(files[where]))
