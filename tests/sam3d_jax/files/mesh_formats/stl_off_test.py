"""STL and OFF: as many triangles as announced, or a refusal."""

import numpy as np
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.render.colour import srgb_to_linear

FACET = (
  "facet normal 0 0 1\n outer loop\n"
  "  vertex {0} 0 0\n  vertex 1 {0} 0\n  vertex 0 1 1e-1\n"
  " endloop\nendfacet\n"
)
ROW = np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")])


def read(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return meshes.read(path)


def solids(*names, end="endsolid") -> str:
  return "".join(f"solid {name}\n{FACET.format(i)}{end} {name}\n" for i, name in enumerate(names))


@pytest.mark.parametrize(
  "text",
  [
    solids("a", "b", "c"),
    solids("", "", ""),
    solids("a", "b", "c", end="end solid"),
    solids("Vertex leg", "facet", "endsolid"),
    solids("a", "b", "c").upper(),
    solids("a", "b", "c").replace("\n", "\r\n"),
    solids("a", "b", "c").replace("endloop", "end loop").replace("endfacet", "end facet"),
    "solid a\n" + FACET.format(0) + FACET.format(1) + FACET.format(2) + "endsolid\n",
  ],
)
def test_every_facet_of_a_text_file_is_a_triangle(tmp_path, text):
  mesh = read(tmp_path / "a.stl", text).mesh
  assert mesh.faces.shape == (3, 3)
  np.testing.assert_allclose(mesh.vertices[3:6], [[1, 0, 0], [1, 1, 0], [0, 1, 0.1]])


@pytest.mark.parametrize("lines", range(1, 8))
def test_a_text_file_without_its_last_lines_is_refused(tmp_path, lines):
  text = "\n".join(solids("a", "b").splitlines()[:-lines])
  with pytest.raises(Refused, match="unreadable: a.stl"):
    read(tmp_path / "a.stl", text)


@pytest.mark.parametrize("header", [b"made here", b"solid by a tool that says so"])
def test_a_binary_file_may_begin_as_a_text_does(tmp_path, header):
  rows = np.zeros(2, ROW)
  rows["v"] = np.arange(18).reshape(2, 3, 3)
  data = header.ljust(80, b" ") + (2).to_bytes(4, "little") + rows.tobytes()
  mesh = read(tmp_path / "a.stl", data).mesh
  np.testing.assert_array_equal(mesh.vertices[mesh.faces], rows["v"])
  for cut in (data[:-1], data[:-50], data[:90], data + bytes(50)):
    with pytest.raises(Refused, match="unreadable: a.stl"):
      read(tmp_path / "a.stl", cut)


SQUARE = "0 0 0{0}\n1 0 0{0}\n1 1 0{0}\n0 1 0{0}\n"


@pytest.mark.parametrize(
  "text",
  [
    "OFF\n4 1 0\n" + SQUARE.format("") + "4 0 1 2 3\n",
    "OFF 4 1 0\n" + SQUARE.format("") + "4 0 1 2 3\n",
    "4 1\n" + SQUARE.format("") + "4  0 1 2 3\n",
    "# made here\nOFF\n\n4 1 0 # counts\n" + SQUARE.format(" # place") + "4 0 1 2 3\n",
    "NOFF\n4 1 0\n" + SQUARE.format(" 0 0 1") + "4 0 1 2 3\n",
    "STOFF\n4 1 0\n" + SQUARE.format(" 0.5 0.5") + "4 0 1 2 3 7\n",
    "4OFF\n4 1 0\n" + SQUARE.format(" 1") + "4 0 1 2 3\n",
  ],
)
def test_headers_of_off_say_what_stands_behind_a_vertex(tmp_path, text):
  mesh = read(tmp_path / "a.off", text).mesh
  np.testing.assert_array_equal(mesh.vertices, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
  np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("colour", ["204 26 255 255", "0.8 0.102 1.0 1.0"])
def test_colours_of_off_are_whole_numbers_or_fractions_of_vertices_or_faces(tmp_path, colour):
  expected = srgb_to_linear([0.8, 26 / 255, 1])
  vertices = "COFF\n4 1 0\n" + SQUARE.format(" " + colour) + "4 0 1 2 3\n"
  faces = "OFF\n4 1 0\n" + SQUARE.format("") + f"4 0 1 2 3 {colour}\n"
  for text in (vertices, faces):
    mesh = read(tmp_path / "a.off", text).mesh
    np.testing.assert_allclose(
      mesh.colours, np.broadcast_to(expected, mesh.colours.shape), atol=2e-4
    )


@pytest.mark.parametrize(
  "text",
  [
    "OFF\n4 1 0\n0 0 0\n",
    "OFF\n4 1 0\n" + SQUARE.format(""),
    "OFF\n99999999999 1 0\n0 0 0\n",
    "OFF\n4 1 0\n" + SQUARE.format("") + "4 0 1 2 4\n",
    "OFF\n4 1 0\n" + SQUARE.format("") + "4 0 1 2\n",
    "OFF\n4 1 0\n0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n",
    "OFF BINARY\n",
    "4nOFF\n",
    "",
  ],
)
def test_wrong_off_files_are_refused(tmp_path, text):
  with pytest.raises(Refused, match=r"a\.off"):
    read(tmp_path / "a.off", text)
