"""Files that are whole or absent."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from sam3d_jax.files import atomic

KILLED = """
import os, pathlib, signal, sys
from sam3d_jax.files import atomic
with atomic.write(sys.argv[1]) as temporary:
  temporary.write_text("half")
  os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_an_exception_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
  file = tmp_path / "a.json"
  atomic.write_text(file, "old")
  with pytest.raises(KeyboardInterrupt), atomic.write(file) as temporary:
    temporary.write_text("half")
    raise KeyboardInterrupt
  assert file.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_hidden_files_of_others_are_no_leftovers(tmp_path):
  for name in (".movie.part1.rar", ".a.part", ".a.0123456789ab.partial"):
    (tmp_path / name).write_text("x")
  atomic.remove_leftovers(tmp_path)
  assert len(list(tmp_path.iterdir())) == 3


def test_a_kill_in_the_middle_leaves_the_old_file_and_a_leftover_that_can_be_told(tmp_path):
  file = tmp_path / "data.array_record-00000-of-00002"
  atomic.write_bytes(file, b"old")
  done = subprocess.run([sys.executable, "-c", KILLED, str(file)])
  assert done.returncode == -signal.SIGKILL
  assert file.read_bytes() == b"old" and len(names(tmp_path)) == 2
  atomic.remove_leftovers(tmp_path)
  assert names(tmp_path) == [file.name]


def test_writers_at_once_do_not_meet_and_one_of_them_wins_whole(tmp_path):
  file = tmp_path / "a.txt"
  texts = [str(n) * 200_000 for n in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda text: atomic.write_text(file, text), texts * 3))
  assert file.read_text() in texts and names(tmp_path) == ["a.txt"]


def test_the_file_is_on_disk_before_it_takes_its_name_and_the_name_is_on_disk_after(
  tmp_path, monkeypatch
):
  happened = []
  replace, fsync = os.replace, os.fsync

  def noted_fsync(descriptor):
    happened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    fsync(descriptor)

  def noted_replace(source, target):
    happened.append("replace")
    replace(source, target)

  monkeypatch.setattr(os, "fsync", noted_fsync)
  monkeypatch.setattr(os, "replace", noted_replace)
  atomic.write_text(tmp_path / "a.txt", "x")
  synced_file, named, synced_folder = happened
  assert pathlib.Path(synced_file).name.startswith(".a.") and named == "replace"
  assert synced_folder == str(tmp_path)


def test_the_temporary_file_has_the_suffix_and_missing_folders_are_made(tmp_path):
  with atomic.write(tmp_path / "new" / "picture.png") as temporary:
    assert temporary.suffix == ".png" and temporary.parent == tmp_path / "new"
    temporary.write_bytes(b"x")
  assert names(tmp_path / "new") == ["picture.png"]


def test_nan_is_no_json_and_leaves_the_old_file(tmp_path):
  file = tmp_path / "a.json"
  atomic.write_json(file, {"b": 1})
  with pytest.raises(ValueError):
    atomic.write_json(file, {"b": float("nan")})
  assert json.loads(file.read_text()) == {"b": 1} and names(tmp_path) == ["a.json"]


def test_a_folder_is_whole_or_absent_and_never_takes_the_place_of_a_full_one(tmp_path):
  out = tmp_path / "release"
  with pytest.raises(RuntimeError), atomic.folder(out) as temporary:
    (temporary / "a").write_text("half")
    raise RuntimeError
  assert names(tmp_path) == []
  out.mkdir()
  with atomic.folder(out) as temporary:
    (temporary / "a").write_text("whole")
  assert names(out) == ["a"]
  with pytest.raises(OSError), atomic.folder(out) as temporary:
    (temporary / "b").write_text("other")
  assert names(out) == ["a"] and names(tmp_path) == ["release"]
