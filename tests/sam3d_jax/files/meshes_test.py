"""The one reader of mesh files: same checks for builders and evaluation."""

import dataclasses
import errno
import os

import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.synth import assets
from sam3d_jax.errors import Refused
from sam3d_jax.evaluation import surface
from sam3d_jax.files import meshes


def cut_stl(folder):
  path = folder / "box.stl"
  trimesh.creation.box().export(path)
  path.write_bytes(path.read_bytes()[:-60])
  return path


def face_of_a_missing_vertex(folder):
  path = folder / "far.off"
  path.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n")
  return path


def garbage(folder):
  path = folder / "x.glb"
  path.write_bytes(b"glTF\x02\x00\x00\x00\xff\xff\xff\x7f")
  return path


@pytest.mark.parametrize("broken", [cut_stl, face_of_a_missing_vertex, garbage])
def test_builders_and_evaluation_refuse_the_same_files_for_the_same_reason(tmp_path, broken):
  path = broken(tmp_path)
  with pytest.raises(Refused) as refused:
    assets.load(path)
  assert refused.value.reason == "unreadable"
  with pytest.raises(surface.SurfaceError, match="unreadable") as error:
    surface.load_surface(path)
  assert refused.value.detail in str(error.value)


def test_a_missing_texture_matters_only_to_who_looks_at_colours(tmp_path):
  (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd lost.png\n")
  (tmp_path / "a.obj").write_text(
    "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
  )
  with pytest.raises(Refused, match="missing_texture"):
    meshes.read(tmp_path / "a.obj")
  shape = meshes.read(tmp_path / "a.obj", appearance=False).mesh
  assert len(shape.faces) == 1 and shape.colours is None and shape.uv is None


def test_points_beside_triangles_are_dropped_with_a_word_and_alone_they_are_the_mesh(tmp_path):
  points = trimesh.PointCloud(np.arange(12.0).reshape(4, 3), colors=[[255, 0, 0, 255]] * 4)
  trimesh.Scene([trimesh.creation.box(), points]).export(tmp_path / "both.glb")
  both = meshes.read(tmp_path / "both.glb")
  assert len(both.mesh.faces) == 12 and both.dropped == ("4 points beside triangles",)
  points.export(tmp_path / "points.ply")
  alone = meshes.read(tmp_path / "points.ply")
  assert not len(alone.mesh.faces) and alone.dropped == ()
  np.testing.assert_array_equal(alone.mesh.vertices, points.vertices)
  np.testing.assert_array_equal(alone.mesh.colours, [[1, 0, 0]] * 4)


@pytest.mark.parametrize("name, up", [("a.glb", "y"), ("a.stl", "z"), ("a.ply", "y")])
def test_coordinates_stay_as_stored_and_the_format_says_what_is_up(tmp_path, name, up):
  box = trimesh.creation.box((1, 2, 3)).apply_translation([10, 0, 0])
  box.export(tmp_path / name)
  found = meshes.read(tmp_path / name)
  assert found.up == up
  np.testing.assert_allclose(found.mesh.vertices.min(0), [9.5, -1, -1.5])
  np.testing.assert_allclose(found.mesh.vertices.max(0), [10.5, 1, 1.5])


def test_a_file_that_is_not_there_and_an_unknown_format_are_refused_by_name(tmp_path):
  with pytest.raises(Refused, match=r"a\.obj: no such file"):
    meshes.read(tmp_path / "a.obj")
  with pytest.raises(Refused, match=r"a\.fbx: unknown mesh format, expected one of \.glb"):
    meshes.read(tmp_path / "a.fbx")


@pytest.mark.parametrize("suffix", sorted(meshes.SUFFIXES))
def test_whatever_a_reader_raises_is_a_refusal_but_a_failing_disk_is_not(
  tmp_path, monkeypatch, suffix
):
  path = tmp_path / f"a{suffix}"
  path.write_bytes(b"x")
  rules = meshes.FORMATS[suffix]

  def raising(error):
    def read(path, data, *, appearance):
      raise error

    monkeypatch.setitem(meshes.FORMATS, suffix, dataclasses.replace(rules, reader=read))

  for error in (ValueError("odd"), RecursionError(), KeyError("x"), OSError("broken picture")):
    raising(error)
    with pytest.raises(Refused, match=rf"unreadable: a\{suffix}: {type(error).__name__}"):
      meshes.read(path)
  for error in (OSError(errno.EIO, "disk"), OSError(errno.ENOSPC, "full"), MemoryError()):
    raising(error)
    with pytest.raises(type(error)):
      meshes.read(path)


def test_a_folder_with_the_name_of_a_mesh_is_refused(tmp_path):
  (tmp_path / "a.obj").mkdir()
  with pytest.raises(Refused, match=r"a\.obj: no such file"):
    meshes.read(tmp_path / "a.obj")


def test_a_name_that_is_no_utf8_is_spelled_out_in_refusals(tmp_path):
  path = tmp_path / os.fsdecode(b"B\xfcch.obj")
  try:
    path.write_text("v 0 0 0\nf 1 2 3\n")
  except OSError:
    pytest.skip("this disk holds no names that are not UTF-8")
  with pytest.raises(Refused) as refused:
    meshes.read(path)
  assert refused.value.detail.startswith("B\\xfcch.obj: ")


MAPPED = "mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n"


def test_what_a_mesh_names_lies_below_the_folder_that_is_read(tmp_path):
  folder = tmp_path / "home" / "source" / "models"
  folder.mkdir(parents=True)
  (folder / "a.obj").write_text(MAPPED)

  def read(picture: str, root=None):
    (folder / "a.mtl").write_text(f"newmtl m\nmap_Kd {picture}\n")
    return meshes.read(folder / "a.obj", root=root).mesh.materials[0].texture

  for place in (folder, folder.parent, folder.parent.parent):
    Image.new("RGB", (2, 2)).save(place / "t.png")
  (folder / "link.png").symlink_to(folder.parent.parent / "t.png")
  (folder / "near.png").symlink_to(folder.parent / "t.png")
  assert read("t.png") is not None and read("../t.png") is not None and read("near.png") is not None
  assert read("../t.png", folder.parent) is not None
  for picture, root in (("../../t.png", None), ("link.png", None), ("../t.png", folder)):
    with pytest.raises(Refused, match="missing_texture"):
      read(picture, root)
  assert read("../../t.png", tmp_path) is not None


def test_a_linked_folder_of_meshes_has_its_textures_beside_them(tmp_path):
  store = tmp_path / "store"
  store.mkdir()
  Image.new("RGB", (2, 2)).save(store / "t.png")
  (store / "a.obj").write_text(MAPPED)
  (store / "a.mtl").write_text("newmtl m\nmap_Kd t.png\n")
  (tmp_path / "source").mkdir()
  (tmp_path / "source" / "linked").symlink_to(store)
  path = tmp_path / "source" / "linked" / "a.obj"
  assert meshes.read(path, root=tmp_path / "source").mesh.materials[0].texture is not None
