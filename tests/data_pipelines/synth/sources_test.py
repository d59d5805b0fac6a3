"""Folders of meshes and photos: what is read is listed, what is not is named."""

from PIL import Image

from data_pipelines.synth import scenes, sources


def test_files_of_formats_that_are_not_read_are_counted_by_suffix(tmp_path, capsys):
  (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
  for name in ("b.fbx", "c.FBX", "d.zip", "a.mtl", "notes.txt"):
    (tmp_path / name).write_text("x")
  listed = sources.list_inputs(sources.SourceConfig(source=str(tmp_path)))
  assert [item.name for item in listed] == ["a.obj"]
  said = capsys.readouterr().err
  assert "3 files of formats that are not read (2 .fbx, 1 .zip) passed over" in said


def test_a_folder_without_other_formats_has_nothing_said_of_it(tmp_path, capsys):
  (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
  (tmp_path / "a.mtl").write_text("newmtl a\n")
  sources.list_inputs(sources.SourceConfig(source=str(tmp_path)))
  assert "passed over" not in capsys.readouterr().err


def test_photos_of_phones_are_inputs_and_raw_files_are_named(tmp_path, capsys):
  Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
  (tmp_path / "b.HEIC").write_bytes(b"x")
  (tmp_path / "c.avif").write_bytes(b"y")
  (tmp_path / "d.NEF").write_bytes(b"z")
  listed = scenes.list_scenes(scenes.PhotoConfig(source=str(tmp_path)))
  assert sorted(item.name for item in listed) == ["a.png", "b.HEIC", "c.avif"]
  assert "(1 .nef)" in capsys.readouterr().err
