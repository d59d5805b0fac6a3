"""Folders are read as they are found: links followed once, foreign files passed over, any name."""

import os
import pathlib

from sam3d_jax.files import folders


def _made(root: pathlib.Path, *names: str) -> pathlib.Path:
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  return root


def _below(root: pathlib.Path) -> list[str]:
  return [folders.shown(path.relative_to(root)) for path in folders.files_below(root)]


def test_linked_folders_are_followed_and_linked_files_are_files(tmp_path):
  store = _made(tmp_path / "store", "b", "deep/c")
  root = _made(tmp_path / "root", "a")
  (root / "linked").symlink_to(store)
  (root / "d").symlink_to(store / "b")
  assert _below(root) == ["a", "d", "linked/b", "linked/deep/c"]


def test_no_link_leads_round_in_circles(tmp_path):
  root = _made(tmp_path / "root", "sub/a")
  (root / "sub" / "up").symlink_to(root)
  (root / "sub" / "itself").symlink_to(root / "sub")
  (root / "outside").symlink_to(tmp_path)
  (root / "loop").symlink_to(root / "loop")
  assert _below(root) == ["sub/a"]


def test_a_folder_that_two_names_reach_is_entered_once_by_its_own(tmp_path):
  root = _made(tmp_path / "root", "z/a")
  (root / "b").symlink_to(root / "z")
  store = _made(tmp_path / "store", "s")
  (root / "l1").symlink_to(store)
  (root / "l2").symlink_to(store)
  assert _below(root) == ["l1/s", "z/a"]


def test_files_of_other_systems_are_passed_over_and_counted(tmp_path, capsys):
  root = _made(tmp_path, "a.obj", "._a.obj", "__MACOSX/._a.obj", "__MACOSX/b/c.obj", ".hidden.obj")
  (root / "gone.obj").symlink_to(root / "nothing")
  assert _below(root) == [".hidden.obj", "a.obj"]
  said = capsys.readouterr().err
  assert "3 files of other systems (._*, __MACOSX) passed over" in said
  assert "1 links to nothing passed over" in said


def test_a_name_that_is_not_utf_8_is_shown_and_found_again(tmp_path):
  raw = os.path.join(os.fsencode(tmp_path), b"St\xfchl.obj")
  with open(raw, "w") as file:
    file.write("x")
  (name,) = _below(tmp_path)
  assert name == "St\\xfchl.obj"
  name.encode()
  assert folders.located(tmp_path, name).read_text() == "x"


def test_a_name_with_a_backslash_is_itself(tmp_path):
  _made(tmp_path, "a\\xfc.obj")
  assert folders.located(tmp_path, "a\\xfc.obj").read_text() == "a\\xfc.obj"
