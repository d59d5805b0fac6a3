"""Names that data state never lead out of their folder."""

import pytest

from sam3d_jax.files import names

ESCAPES = ["../a", "/etc/passwd", "a/../../b", "..", "", "a\0b", "link/a", "out"]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
  root = tmp_path / "root"
  root.mkdir()
  (root / "link").symlink_to(tmp_path)
  (root / "out").symlink_to("/etc/hostname")
  with pytest.raises(names.Outside):
    names.below(root, name)


@pytest.mark.parametrize("name", [None, 3, ["a"], {}])
def test_what_is_no_text_names_no_file(tmp_path, name):
  with pytest.raises(names.Outside):
    names.below(tmp_path, name)


def test_links_in_circles_and_very_long_names_are_refused_or_not_there(tmp_path):
  (tmp_path / "a").symlink_to("b")
  (tmp_path / "b").symlink_to("a")
  with pytest.raises(names.Outside):
    names.below(tmp_path, "a/c")
  with pytest.raises(names.Outside):
    names.below(tmp_path, "../" + 5000 * "x")


def test_a_name_below_is_found_through_links_within_and_in_folders_that_are_named(tmp_path):
  (tmp_path / "root" / "deep").mkdir(parents=True)
  (tmp_path / "root" / "deep" / "a").write_text("x")
  (tmp_path / "root" / "b").symlink_to("deep/a")
  (tmp_path / "blobs").mkdir()
  (tmp_path / "root" / "c").symlink_to("../blobs/d")
  assert names.below(tmp_path / "root", "deep/../b").read_text() == "x"
  names.below(tmp_path / "root", "c", also=[tmp_path / "blobs"])
  with pytest.raises(names.Outside):
    names.below(tmp_path / "root", "c")


@pytest.mark.parametrize("name", ["0a-b.c_1", "Stuhl", "st\u00fchl", "a@b=c,d+e"])
def test_a_plain_name_is_the_name_of_its_file(name):
  assert names.file_name(name) == name


@pytest.mark.parametrize(
  "name", ["../a", "/tmp/a", "a/b", "..", "", "a\n", "~", "a\0", ".hidden", "x" * 500, "\ud800"]
)
def test_any_other_name_becomes_a_plain_one_of_its_own(name):
  made = names.file_name(name)
  assert names.is_plain(made)
  assert made != names.file_name(name + "!")
