"""Where commands cannot write: exit code 2 with the flag and a remedy, before anything is computed
or made. The place lies below a file, which no user may make a folder of.
"""

import importlib
import os
import pathlib

import pytest

from launch.console import cli, folders
from sam3d_jax.errors import InputError

# command -> its arguments, and the flag that names the place
COMMANDS = {
  "aot": (["--config=configs/sft_geometry.py:fake", "--topology=cpu:1"], "--json"),
  "benchmark": (["--config=configs/sft_geometry.py:fake"], "--json"),
  "build_data": (["--config=configs/data/iso_3do.py:tiny"], "--config.out"),
  "cluster.command": (["--spec=none.yaml"], "--out"),
  "encode_latents": (["--data=none", "--checkpoint=none"], "--out"),
  "evaluate": (["--pairs=none"], "--out"),
  "export_torch": (["--checkpoint=none"], "--out"),
  "import_torch": (["--from=none"], "--workdir"),
  "make_examples": (["objects"], "--out"),
  "pretrain": (["--config=configs/pretrain_geometry.py:fake"], "--workdir"),
  "sample": (["--checkpoint=none", "--image=none", "--mask=none"], "--out"),
  "sweep": (["--sweep=configs/sweeps/lr.py"], "--workdir"),
  "validate_data": (["--data=none"], "--html"),
}


@pytest.fixture
def place(tmp_path) -> pathlib.Path:
  file = tmp_path / "file"
  file.write_text("")
  return file / "folder" / "out"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_cannot_write_names_the_flag_and_the_place(command, place, capsys):
  argv, flag = COMMANDS[command]
  main = importlib.import_module(f"launch.{command}").main
  assert main([*argv, f"{flag}={place}"]) == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert f"{flag} {place}" in said
  assert "that you may write to" in said


def test_a_place_is_checked_without_making_it(tmp_path):
  place = tmp_path / "a" / "b"
  assert folders.check_folder(str(place), "--out") == place
  assert folders.check_file(place / "c.json", "--json") == place / "c.json"
  assert not (tmp_path / "a").exists()


def test_a_folder_is_no_file(tmp_path):
  with pytest.raises(InputError, match=f"--json {tmp_path} is a folder"):
    folders.check_file(tmp_path, "--json")


def test_a_disk_that_is_read_only_is_no_place(tmp_path, monkeypatch):
  # whoever runs the tests may write anywhere: the system's answer is played
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  with pytest.raises(InputError, match=f"--out {tmp_path}: {tmp_path} is no folder that you may"):
    folders.check_folder(tmp_path, "--out")
