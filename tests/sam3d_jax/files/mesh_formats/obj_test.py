"""OBJ: indices from either end, polygons, colours, and material libraries of every spelling."""

import numpy as np
from PIL import Image
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats import mtl
from sam3d_jax.files.mesh_formats.surfaces import GREY
from sam3d_jax.render.colour import srgb_to_linear

PLACES = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
COORDINATES = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
SQUARE = PLACES + COORDINATES + "usemtl skin\nf 1/1 2/2 3/3 4/4\n"
RED = np.full((2, 2, 3), (200, 10, 20), np.uint8)


def read(folder, text: str, name: str = "a.obj", **options):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return meshes.read(path, **options)


def save(path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(RED).save(path)


def test_indices_count_from_the_start_or_back_from_what_was_said_last(tmp_path):
  block = "v {0} 0 0\nvt {0} 0\nv {0} 1 0\nvt {0} 1\nv {0} 1 1\nvt 0 {0}\n"
  back = "".join(block.format(i) + "f -3/-3 -2/-2 -1/-1\n" for i in range(3))
  front = "".join(block.format(i) for i in range(3))
  front += "".join(f"f {i}/{i} {i + 1}/{i + 1} {i + 2}/{i + 2}\n" for i in (1, 4, 7))
  one, two = read(tmp_path, back).mesh, read(tmp_path, front).mesh
  np.testing.assert_array_equal(one.vertices[one.faces], two.vertices[two.faces])
  np.testing.assert_array_equal(one.uv[one.faces], two.uv[two.faces])


@pytest.mark.parametrize(
  "face", ["1 2 5", "1 2 0", "1 2 -5", "1/1 2/2 3/9", "1/1 2/2 3/0", "a b c", "1/ /2 3"]
)
def test_a_face_of_what_does_not_exist_is_refused(tmp_path, face):
  with pytest.raises(Refused, match="unreadable: a.obj"):
    read(tmp_path, PLACES + COORDINATES + f"f {face}\n")


@pytest.mark.parametrize("face", ["1 2 3", "1//1 2//1 3//1", "1/1 2/2 3/3", "1/1/1 2/2/1 3/3/1"])
def test_corners_are_written_in_four_ways(tmp_path, face):
  mesh = read(tmp_path, PLACES + COORDINATES + f"vn 0 0 1\nf {face}\n").mesh
  np.testing.assert_array_equal(mesh.vertices[mesh.faces], [[[0, 0, 0], [1, 0, 0], [1, 1, 0]]])


def test_statements_may_be_indented_tabbed_commented_and_continued(tmp_path):
  text = (
    "  v\t0 0 0 # origin\nv 1 0 0\r\nv  1 1 \\\n 0\n#v 9 9 9\n\nf 1 \\\n2 3 # face\nl 1 2\np 1\n"
  )
  found = read(tmp_path, text)
  np.testing.assert_array_equal(found.mesh.vertices, [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
  assert len(found.mesh.faces) == 1
  assert found.dropped == ("2 drawings that are neither triangles nor points",)


def test_vertices_of_a_plain_shape_stay_as_they_are_stored(tmp_path):
  mesh = read(tmp_path, "v 9 9 9\n" + PLACES + "f 2 3 4\nf 2 4 5\n").mesh
  assert mesh.vertices.shape == (5, 3) and mesh.materials == (GREY,)
  np.testing.assert_array_equal(mesh.faces, [[1, 2, 3], [1, 3, 4]])


@pytest.mark.parametrize("colour", ["0.8 0.1 0.4", "204 25.5 102", "1.0 0.8 0.1 0.4"])
def test_colours_are_fractions_or_bytes(tmp_path, colour):
  places = "".join(f"{line} {colour}\n" for line in PLACES.splitlines())
  mesh = read(tmp_path, places + "f 1 2 3 4\n").mesh
  expected = np.broadcast_to(srgb_to_linear([0.8, 0.1, 0.4]), (4, 3))
  np.testing.assert_allclose(mesh.colours, expected, atol=1e-6)


def test_colours_of_some_vertices_alone_are_none(tmp_path):
  mesh = read(tmp_path, "v 0 0 0 1 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n").mesh
  assert mesh.materials == (GREY,)


# --- Materials ------------------------------------------------------------------------------------

NAMED = {
  "plain": ("mtllib a.mtl\n", "a.mtl", "map_Kd skin.png", "skin.png"),
  "options": (
    "mtllib a.mtl\n",
    "a.mtl",
    "map_Kd -blendu off -bm 0.5 -o 0 0 0 -s 1 1 1 -clamp on skin.png",
    "skin.png",
  ),
  "one number to an option": ("mtllib a.mtl\n", "a.mtl", "map_Kd -s 1 skin.png", "skin.png"),
  "a number for a name": ("mtllib a.mtl\n", "a.mtl", "map_Kd -o 0 0 7.png", "7.png"),
  "lower case": ("mtllib a.mtl\n", "a.mtl", "map_kd skin.png", "skin.png"),
  "upper case file": ("mtllib A.MTL\n", "a.mtl", "map_Kd SKIN.png", "Skin.PNG"),
  "spaces": ("mtllib my own.mtl\n", "my own.mtl", "map_Kd my own skin.png", "my own skin.png"),
  "quotes": ('mtllib "my own.mtl"\n', "my own.mtl", 'map_Kd "my skin.png"', "my skin.png"),
  "backslash": ("mtllib .\\a.mtl\n", "a.mtl", "map_Kd tex\\skin.png", "tex/skin.png"),
  "parent": (
    "mtllib ../lib/a.mtl\n",
    "../lib/a.mtl",
    "map_Kd ../pics/skin.png",
    "../pics/skin.png",
  ),
  "own folder": ("mtllib lib/a.mtl\n", "lib/a.mtl", "map_Kd skin.png", "lib/skin.png"),
  "from the mesh": ("mtllib lib/a.mtl\n", "lib/a.mtl", "map_Kd skin.png", "skin.png"),
  "other machine": ("mtllib a.mtl\n", "a.mtl", "map_Kd C:\\Users\\me\\skin.png", "skin.png"),
  "tabs": ("mtllib\ta.mtl\n", "a.mtl", "\tmap_Kd\tskin.png", "skin.png"),
  "comment": (
    "# mtllib no.mtl\nmtllib a.mtl # mine\n",
    "a.mtl",
    "map_Kd skin.png # red",
    "skin.png",
  ),
  "several in a line": ("mtllib b.mtl a.mtl\n", "a.mtl", "map_Kd skin.png", "skin.png"),
  "several lines": ("mtllib b.mtl\nmtllib a.mtl\n", "a.mtl", "map_Kd skin.png", "skin.png"),
  "accents of a Mac": ("mtllib a.mtl\n", "a.mtl", "map_Kd H\u00e4user.png", "Ha\u0308user.png"),
  "percent": ("mtllib a.mtl\n", "a.mtl", "map_Kd my%20skin.png", "my skin.png"),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_picture_is_found_however_it_is_named(tmp_path, case):
  library, library_path, statement, picture = NAMED[case]
  folder = tmp_path / "models"
  path = folder / library_path
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"newmtl skin\nKd 0.3 0.3 0.3\n{statement}\n")
  (folder / "b.mtl").parent.mkdir(exist_ok=True)
  (folder / "b.mtl").write_text("newmtl other\nKd 0 1 0\n")
  save(folder / picture)
  mesh = read(folder, library + SQUARE).mesh
  np.testing.assert_array_equal(mesh.materials[0].texture, RED)
  assert mesh.materials[0].colour == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
  "statement", ["map_Kd skin.png", "map_kd skin.png", "map_Kd -s 1 1 1 skin.png", "map_d skin.png"]
)
def test_a_picture_that_is_not_there_refuses_the_mesh(tmp_path, statement):
  (tmp_path / "a.mtl").write_text(f"newmtl skin\n{statement}\n")
  with pytest.raises(Refused, match="missing_texture: a.obj needs 'skin.png'"):
    read(tmp_path, "mtllib a.mtl\n" + SQUARE)


def test_options_scale_and_move_coordinates(tmp_path):
  (tmp_path / "a.mtl").write_text("newmtl skin\nmap_Kd -s 2 3 1 -o 0.5 0 0 skin.png\n")
  save(tmp_path / "skin.png")
  mesh = read(tmp_path, "mtllib a.mtl\n" + SQUARE).mesh
  np.testing.assert_allclose(mesh.uv[:4], [[0.5, 0], [2.5, 0], [2.5, 3], [0.5, 3]])
  assert mtl.split_options("-s 2 a b.png") == ("a b.png", mtl.Placing(scale=(2.0, 1.0)))


def test_materials_go_with_their_faces_in_the_order_of_the_file(tmp_path):
  (tmp_path / "a.mtl").write_text("newmtl one\nKd 1 0 0\nnewmtl two\nKd 0 0.5 0\n")
  text = (
    "mtllib a.mtl\n"
    + PLACES
    + "f 1 2 3\nusemtl Two\nf 1 3 4\nusemtl one\nf 1 2 4\nusemtl lost\nf 2 3 4\n"
  )
  found = read(tmp_path, text)
  mesh = found.mesh
  colours = [mesh.materials[slot].colour for slot in mesh.material]
  half = float(srgb_to_linear(0.5))
  np.testing.assert_allclose(
    colours, [GREY.colour, (0, half, 0), (1, 0, 0), GREY.colour], atol=1e-6
  )


def test_names_that_are_no_utf8_are_found(tmp_path):
  (tmp_path / "a.mtl").write_bytes("newmtl Häuschen\nmap_Kd Häuschen.png\n".encode("latin-1"))
  save(tmp_path / "Häuschen.png")
  text = "mtllib a.mtl\n" + SQUARE.replace("skin", "Häuschen")
  (tmp_path / "a.obj").write_bytes(text.encode("latin-1"))
  mesh = meshes.read(tmp_path / "a.obj").mesh
  np.testing.assert_array_equal(mesh.materials[0].texture, RED)


def test_a_picture_without_coordinates_is_not_smeared_over_the_shape(tmp_path):
  (tmp_path / "a.mtl").write_text("newmtl skin\nKd 1 0 0\nmap_Kd skin.png\n")
  save(tmp_path / "skin.png")
  found = read(tmp_path, "mtllib a.mtl\n" + PLACES + "usemtl skin\nf 1 2 3\n")
  assert found.mesh.materials[0].texture is None
  assert found.mesh.materials[0].colour == (1.0, 0.0, 0.0)
  assert found.dropped == ("1 textures without texture coordinates",)


def test_a_thousand_materials_cost_no_more_than_their_faces(tmp_path):
  count = 3000
  (tmp_path / "a.mtl").write_text(
    "".join(f"newmtl m{i}\nKd {i / count} 0 0\n" for i in range(count))
  )
  faces = "".join(f"usemtl m{i}\nf 1 2 3\n" for i in range(count))
  mesh = read(tmp_path, "mtllib a.mtl\n" + PLACES + faces).mesh
  assert len(mesh.materials) == len(mesh.faces) == count


def test_a_library_that_is_not_there_is_said(tmp_path):
  found = read(tmp_path, "mtllib lost.mtl\nmtllib \n" + SQUARE)
  assert found.mesh.materials == (GREY,)
  assert found.dropped == ("materials of lost.mtl, which is not there",)


def test_what_a_picture_of_opacity_takes_away_is_no_face(tmp_path):
  (tmp_path / "a.mtl").write_text("newmtl skin\nKd 1 0 0\nmap_d holes.png\n")
  Image.fromarray(np.uint8([[0, 255]] * 2)).save(tmp_path / "holes.png")
  for appearance in (True, False):
    mesh = read(tmp_path, "mtllib a.mtl\n" + SQUARE, appearance=appearance).mesh
    assert mesh.vertices[:, 0].min() == 0.5
