"""Thousands of materials take time and memory by their number, not by its square."""

import numpy as np
from PIL import Image

from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats import alpha, mtl, obj, surfaces, textures

COUNT = 300


def write(folder, *, picture: str = "", spelled: str = "X{}") -> None:
  """A mesh of as many materials as faces, each named in another case than the library has."""
  library = []
  lines = ["mtllib m.mtl", "vt 0 0", "vt 1 0", "vt 0 1"]
  for i in range(COUNT):
    library += [f"newmtl {spelled.format(i)}", f"Kd {i / COUNT} 0 0"]
    if picture:
      library += [f"map_Kd {picture}", f"map_d {picture}"]
    lines += [f"usemtl x{i}", f"v {i} 0 0", f"v {i} 1 0", f"v {i} 0 1", "f -3/1 -2/2 -1/3"]
  (folder / "m.mtl").write_text("\n".join(library))
  (folder / "a.obj").write_text("\n".join(lines))


def test_a_picture_is_decoded_and_counted_once_however_many_materials_name_it(
  tmp_path, monkeypatch
):
  pixels = np.full((8, 8, 4), 255, np.uint8)
  pixels[0] = 0
  Image.fromarray(pixels).save(tmp_path / "t.png")
  write(tmp_path, picture="t.png")
  decoded, counted = [], []
  decode = textures.decode
  monkeypatch.setattr(
    mtl.textures, "decode", lambda data, name: decoded.append(name) or decode(data, name)
  )
  count = alpha._Texels
  monkeypatch.setattr(alpha, "_Texels", lambda cutout: counted.append(1) or count(cutout))
  mesh = meshes.read(tmp_path / "a.obj").mesh
  assert decoded == ["t.png"] and counted == [1]
  assert len({id(material.texture) for material in mesh.materials}) == 1
  del mesh
  assert not alpha._counts


def test_materials_are_found_in_any_case_and_the_missing_are_named_in_part(tmp_path):
  write(tmp_path)
  found = meshes.read(tmp_path / "a.obj")
  assert len(found.mesh.materials) == COUNT and not found.dropped
  write(tmp_path, spelled="other{}")
  (said,) = meshes.read(tmp_path / "a.obj").dropped
  assert said.endswith(f"and {COUNT - obj.SHOWN_NAMES} more") and "x0, x1" in said


def test_what_few_faces_of_a_large_mesh_use_is_the_same_either_way(monkeypatch):
  faces = np.array([[900, 3, 5], [3, 5, 77]])
  few = surfaces.used_by(faces, 1000)
  monkeypatch.setattr(surfaces, "FEW", 1000)
  for ours, theirs in zip(few, surfaces.used_by(faces, 1000), strict=True):
    np.testing.assert_array_equal(ours, theirs)
