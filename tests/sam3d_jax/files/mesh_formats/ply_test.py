"""PLY: text and binary agree; colours of every type; textures of vertices and of corners."""

import numpy as np
from PIL import Image
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats.surfaces import GREY
from sam3d_jax.render.colour import srgb_to_linear

PLACES = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [1, 1, 0], [1, 2, 0], [0, 2, 0]], float)
FACES = [[0, 1, 2], [0, 2, 3, 4, 5], [0, 3, 4], [0, 4, 5]]
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i4": "int", "i2": "short"}


def write(path, *, format="ascii", columns=(), faces=FACES, lists=(), comments=(), face_columns=()):
  """A file of the six vertices; columns: (name, type, values) beside x, y, z; lists of faces."""
  columns = [(axis, "f4", PLACES[:, i]) for i, axis in enumerate("xyz")] + list(columns)
  head = ["ply", f"format {format} 1.0", *(f"comment {c}" for c in comments), "element vertex 6"]
  head += [f"property {NAMES[type]} {name}" for name, type, _ in columns]
  head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
  head += [f"property list uchar {NAMES[type]} {name}" for name, type, _ in lists]
  head += [f"property {NAMES[type]} {name}" for name, type, _ in face_columns]
  data = "\n".join([*head, "end_header", ""]).encode()
  order = ORDERS[format]

  def stored(value, type):
    return f"{value} ".encode() if not order else np.asarray(value, order + type).tobytes()

  line = b"" if order else b"\n"
  for row in range(6):
    data += b"".join(stored(values[row], type) for _, type, values in columns) + line
  for row, face in enumerate(faces):
    data += stored(len(face), "u1") + b"".join(stored(v, "i4") for v in face)
    for _, type, values in lists:
      data += stored(len(values[row]), "u1") + b"".join(stored(v, type) for v in values[row])
    data += b"".join(stored(values[row], type) for _, type, values in face_columns) + line
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("format", ORDERS)
def test_mixed_polygons_are_the_same_in_every_encoding(tmp_path, format):
  mesh = meshes.read(write(tmp_path / "a.ply", format=format)).mesh
  np.testing.assert_array_equal(mesh.vertices, PLACES)
  assert len(mesh.faces) == 1 + 3 + 1 + 1 and mesh.materials == (GREY,)
  np.testing.assert_array_equal(mesh.faces[[0, -2, -1]], [[0, 1, 2], [0, 3, 4], [0, 4, 5]])


@pytest.mark.parametrize("format", ORDERS)
def test_a_file_that_is_cut_short_is_refused(tmp_path, format):
  path = write(tmp_path / "a.ply", format=format)
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(Refused, match="unreadable: a.ply.*cut short"):
    meshes.read(path)


@pytest.mark.parametrize(
  "type, scale", [("u1", 255), ("u2", 65535), ("f4", 1), ("f4", 255), ("i4", 255)]
)
@pytest.mark.parametrize("format", ORDERS)
def test_colours_of_every_type_are_the_same(tmp_path, type, scale, format):
  rgb = np.array([0.8, 0.1, 1.0])
  whole = type[0] in "iu"
  columns = []
  for name, value in zip(("red", "green", "blue"), rgb * scale, strict=True):
    columns.append((name, type, [round(value) if whole else value] * 6))
  mesh = meshes.read(write(tmp_path / "a.ply", format=format, columns=columns)).mesh
  expected = np.broadcast_to(srgb_to_linear(rgb), (6, 3))
  np.testing.assert_allclose(mesh.colours, expected, atol=5e-3)


def test_colours_of_faces_split_their_vertices(tmp_path):
  names = ("red", "green", "blue")
  face_columns = [
    (name, "u2", [65535 * (k == row) for row in range(4)]) for k, name in enumerate(names)
  ]
  mesh = meshes.read(write(tmp_path / "a.ply", face_columns=face_columns)).mesh
  np.testing.assert_array_equal(mesh.colours[mesh.faces[0]], [[1, 0, 0]] * 3)
  np.testing.assert_array_equal(mesh.colours[mesh.faces[2]], [[0, 1, 0]] * 3)


@pytest.mark.parametrize("names", [("s", "t"), ("u", "v"), ("texture_u", "texture_v")])
def test_a_texture_lies_where_its_coordinates_put_it(tmp_path, names):
  Image.fromarray(np.full((2, 2, 3), (200, 0, 0), np.uint8)).save(tmp_path / "my skin.png")
  columns = [(name, "f4", PLACES[:, i] / 2) for i, name in enumerate(names)]
  path = write(tmp_path / "a.ply", columns=columns, comments=["TextureFile my skin.png"])
  mesh = meshes.read(path).mesh
  np.testing.assert_allclose(mesh.uv, PLACES[:, :2] / 2)
  assert tuple(mesh.materials[0].texture[0, 0]) == (200, 0, 0)
  (tmp_path / "my skin.png").unlink()
  with pytest.raises(Refused, match="missing_texture: a.ply needs 'my skin.png'"):
    meshes.read(path)
  assert len(meshes.read(path, appearance=False).mesh.faces) == 6


@pytest.mark.parametrize("format", ORDERS)
def test_coordinates_of_corners_and_several_textures(tmp_path, format):
  for number in range(2):
    Image.fromarray(np.full((2, 2, 3), 100 * number, np.uint8)).save(tmp_path / f"{number}.png")
  corners = [np.float32(PLACES[face, :2] + row).ravel().tolist() for row, face in enumerate(FACES)]
  path = write(
    tmp_path / "a.ply",
    format=format,
    lists=[("texcoord", "f4", corners)],
    face_columns=[("texnumber", "i4", [0, 1, 1, 0])],
    comments=["TextureFile 0.png", "TextureFile 1.png"],
  )
  mesh = meshes.read(path).mesh
  # every corner has the coordinates of its place, moved by the number of its face
  moved = np.repeat([0, 1, 1, 1, 2, 3], 3)[:, None]
  np.testing.assert_allclose(
    mesh.uv[mesh.faces.ravel()], mesh.vertices[mesh.faces.ravel(), :2] + moved
  )
  texels = [mesh.materials[slot].texture[0, 0, 0] for slot in mesh.material]
  assert texels == [0, 100, 100, 100, 100, 0]


def test_strips_are_triangles(tmp_path):
  head = "ply\nformat ascii 1.0\nelement vertex 6\n"
  head += "".join(f"property float {axis}\n" for axis in "xyz")
  head += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
  rows = "\n".join(f"{x // 2} {x % 2} 0" for x in range(6))
  (tmp_path / "a.ply").write_text(f"{head}{rows}\n9 0 2 1 3 -1 2 4 3 5\n")
  mesh = meshes.read(tmp_path / "a.ply").mesh
  normal = np.cross(*np.diff(mesh.vertices[mesh.faces], axis=1).transpose(1, 0, 2))
  np.testing.assert_array_equal(normal[:, 2], [1] * 4)


@pytest.mark.parametrize("faces", [[[0, 1, 6]], [[0, 1, -1]], [[0, 1, 2, 9]]])
def test_a_face_of_a_vertex_that_does_not_exist_is_refused(tmp_path, faces):
  with pytest.raises(Refused, match="a face names vertex"):
    meshes.read(write(tmp_path / "a.ply", faces=faces))


@pytest.mark.parametrize("count", ["999999999999", "-5", "x"])
def test_counts_that_a_file_only_claims_cost_no_memory(tmp_path, count):
  path = write(tmp_path / "a.ply", format="binary_little_endian")
  path.write_bytes(path.read_bytes().replace(b"vertex 6", b"vertex " + count.encode()))
  with pytest.raises(Refused, match="unreadable"):
    meshes.read(path)
