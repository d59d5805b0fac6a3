"""glTF 2.0: the same shape however it is stored, and a refusal by name where it cannot be read."""

import json
import struct

import numpy as np
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats import gltf_accessors
from tests.support.tiny_gltf import SQUARE, SQUARE_FACES, TRIANGLE, Gltf


def corners(mesh) -> np.ndarray:
  """(F, 3, 3) in an order that does not depend on how faces are stored."""
  triangles = mesh.vertices[mesh.faces]
  first = [min(range(3), key=lambda k, t=t: tuple(t[k])) for t in triangles]
  rolled = np.array([np.roll(t, -k, axis=0) for t, k in zip(triangles, first, strict=True)])
  return rolled[np.lexsort(rolled.reshape(len(rolled), -1).T[::-1])]


def same_surface(one, two, **tolerance) -> None:
  np.testing.assert_allclose(corners(one), corners(two), **tolerance)


@pytest.fixture
def square(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  return meshes.read(gltf.write(tmp_path / "square.glb")).mesh


def read(gltf: Gltf, folder, name: str = "a.glb", **options):
  return meshes.read(gltf.write(folder / name), **options)


# --- Accessors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["i1", "u1", "i2", "u2"])
def test_normalised_integers_are_fractions_of_their_range(tmp_path, square, type):
  gltf = Gltf()
  stored = (SQUARE * np.iinfo(type).max).astype(type)
  # every element of a vertex attribute begins at a multiple of four bytes
  padded = np.zeros((4, 4), type)
  padded[:, :3] = stored
  view = gltf.view(padded.tobytes(), byteStride=padded.strides[0])
  entry = gltf.accessor(stored, normalized=True)
  gltf.json["accessors"][entry]["bufferView"] = view
  gltf.json["extensionsRequired"] = ["KHR_mesh_quantization"]
  gltf.draw(gltf.primitive({"POSITION": entry}, SQUARE_FACES))
  same_surface(read(gltf, tmp_path).mesh, square, atol=1e-12)


def test_signed_integers_never_go_below_minus_one(tmp_path):
  gltf = Gltf()
  stored = np.array([[-128, 0, 0, 0], [127, 0, 0, 0], [0, 127, 0, 0]], np.int8)
  entry = gltf.accessor(np.ascontiguousarray(stored[:, :3]), normalized=True)
  gltf.draw(gltf.primitive({"POSITION": entry}))
  assert read(gltf, tmp_path).mesh.vertices[:, 0].min() == -1.0


def test_integers_that_are_not_normalised_are_whole_numbers(tmp_path, square):
  gltf = Gltf()
  gltf.draw(
    gltf.primitive({"POSITION": (2 * SQUARE).astype(np.int16)}, SQUARE_FACES), scale=[0.5] * 3
  )
  same_surface(read(gltf, tmp_path).mesh, square)


def test_interleaved_attributes_are_read_in_their_strides(tmp_path):
  gltf = Gltf()
  rows = np.zeros(4, [("pad", "<f4"), ("place", "<f4", 3), ("colour", "u1", 4), ("end", "<f4")])
  rows["place"], rows["colour"] = SQUARE, [[255, 0, 51, 255]] * 4
  view = gltf.view(rows.tobytes(), byteStride=rows.itemsize)
  place = {"componentType": 5126, "type": "VEC3", "byteOffset": 4}
  colour = {"componentType": 5121, "type": "VEC4", "byteOffset": 16, "normalized": True}
  at = [
    gltf.add("accessors", {"bufferView": view, "count": 4} | entry) for entry in (place, colour)
  ]
  gltf.draw(gltf.primitive({"POSITION": at[0], "COLOR_0": at[1]}, SQUARE_FACES))
  mesh = read(gltf, tmp_path).mesh
  np.testing.assert_array_equal(mesh.vertices, SQUARE)
  np.testing.assert_allclose(mesh.colours, [[1, 0, 0.2]] * 4, atol=1e-7)


@pytest.mark.parametrize("with_view", [True, False])
@pytest.mark.parametrize("index_type", ["u1", "u2", "u4"])
def test_sparse_values_replace_what_lies_below_them(tmp_path, square, with_view, index_type):
  gltf = Gltf()
  base = SQUARE.copy()
  changed = np.array([1, 2, 3], index_type)
  base[changed] = 9 if with_view else 0
  entry = gltf.accessor(base)
  if not with_view:
    del gltf.json["accessors"][entry]["bufferView"]
  gltf.json["accessors"][entry]["sparse"] = {
    "count": 3,
    "indices": {
      "bufferView": gltf.view(changed.tobytes()),
      "componentType": {"u1": 5121, "u2": 5123, "u4": 5125}[index_type],
    },
    "values": {"bufferView": gltf.view(SQUARE[changed].tobytes())},
  }
  gltf.draw(gltf.primitive({"POSITION": entry}, SQUARE_FACES))
  same_surface(read(gltf, tmp_path).mesh, square)


def test_matrices_of_small_integers_begin_every_column_at_four_bytes():
  # the specification's own example of a MAT2 of bytes
  class Stored:
    size = 8

    def item(self, kind, index):
      return {"bufferView": 0, "componentType": 5121, "count": 1, "type": "MAT2"}

    def view(self, index):
      return bytes([1, 2, 0, 0, 3, 4, 0, 0]), None

  np.testing.assert_array_equal(gltf_accessors.stored(Stored(), 0), [[1, 2, 3, 4]])


@pytest.mark.parametrize(
  "change",
  [
    {"count": 5},
    {"byteOffset": 4},
    {"count": -1},
    {"count": 1.5},
    {"componentType": 5130},
    {"type": "VEC5"},
    {"bufferView": 9},
    {"bufferView": -1},
  ],
)
def test_an_accessor_beyond_its_view_is_refused(tmp_path, change):
  gltf = Gltf()
  entry = gltf.accessor(SQUARE)
  gltf.json["accessors"][entry] |= change
  gltf.draw(gltf.primitive({"POSITION": entry}, SQUARE_FACES))
  with pytest.raises(Refused, match=r"unreadable: a\.glb"):
    read(gltf, tmp_path)


@pytest.mark.parametrize("count", [6_000_000_000, 10**30])
def test_sizes_that_a_file_only_claims_cost_no_memory(tmp_path, count):
  gltf = Gltf()
  zeros = gltf.add("accessors", {"componentType": 5126, "count": count, "type": "VEC3"})
  gltf.draw(gltf.primitive({"POSITION": zeros}))
  with pytest.raises(Refused, match="unreadable"):
    read(gltf, tmp_path)


def test_instances_of_instances_beyond_memory_are_refused_before_they_are_made(tmp_path):
  gltf = Gltf()
  drawn = gltf.primitive({"POSITION": np.tile(TRIANGLE, (10_000, 1))})
  mesh = gltf.add("meshes", {"primitives": [drawn] * 100})
  for _ in range(100):
    gltf.add("nodes", {"mesh": mesh})
  with pytest.raises(Refused, match="corners from"):
    read(gltf, tmp_path)


# --- Primitives -----------------------------------------------------------------------------------


def test_strips_fans_and_lists_of_one_square_agree(tmp_path, square):
  strip = np.array([0, 1, 3, 2], np.uint8)
  fan = np.array([0, 1, 2, 3], np.uint32)
  for mode, indices in ((5, strip), (6, fan)):
    gltf = Gltf()
    gltf.draw(gltf.primitive({"POSITION": SQUARE}, indices, mode=mode))
    mesh = read(gltf, tmp_path).mesh
    # the diagonal may be another: all triangles face +z and cover the square
    normal = np.cross(*np.diff(mesh.vertices[mesh.faces], axis=1).transpose(1, 0, 2))
    np.testing.assert_allclose(normal[:, 2], [1, 1])


def test_a_long_strip_faces_one_way_and_its_stitches_are_no_faces(tmp_path):
  gltf = Gltf()
  x = np.arange(6)
  zigzag = np.stack([x // 2, x % 2, 0 * x], 1).astype(np.float32)
  # the second strip is stitched to the first with repeated vertices
  stitched = np.array([0, 2, 1, 3, 3, 2, 2, 4, 3, 5], np.uint16)
  gltf.draw(gltf.primitive({"POSITION": zigzag}, stitched, mode=5))
  mesh = read(gltf, tmp_path).mesh
  normal = np.cross(*np.diff(mesh.vertices[mesh.faces], axis=1).transpose(1, 0, 2))
  np.testing.assert_allclose(normal[:, 2], [1] * 4)


def test_lines_and_points_beside_triangles_are_dropped_with_a_word(tmp_path, square):
  gltf = Gltf()
  gltf.draw(
    gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES),
    gltf.primitive({"POSITION": SQUARE}, mode=0),
    gltf.primitive({"POSITION": SQUARE}, mode=1),
    gltf.primitive({"POSITION": SQUARE}, mode=3),
    gltf.primitive({"NORMAL": SQUARE}),
  )
  found = read(gltf, tmp_path)
  same_surface(found.mesh, square)
  assert found.dropped == (
    "3 drawings that are neither triangles nor points",
    "4 points beside triangles",
  )


def test_primitives_share_vertices_and_keep_only_their_own(tmp_path):
  gltf = Gltf()
  many = np.concatenate([TRIANGLE, np.full((1000, 3), 5, np.float32)])
  at = gltf.accessor(many)
  gltf.draw(*[gltf.primitive({"POSITION": at}, np.arange(3, dtype=np.uint16)) for _ in range(3)])
  assert read(gltf, tmp_path).mesh.vertices.shape == (9, 3)


def test_an_index_beyond_the_vertices_is_refused(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, np.array([0, 1, 4], np.uint8)))
  with pytest.raises(Refused, match="vertex 4 of 4"):
    read(gltf, tmp_path)


def test_morph_targets_are_added_with_the_weights_of_the_node_or_else_of_the_mesh(tmp_path):
  for mesh_weights, node_weights, expected in (
    ([0.5, 0], None, 1.5),
    ([0.5, 0], [1, 0], 2.0),
    (None, [0, 0.25], 1.25),
    (None, None, 1.0),
  ):
    gltf = Gltf()
    up = SQUARE * np.float32([0, 1, 0])
    targets = [{"POSITION": gltf.accessor(up)}, {"POSITION": gltf.accessor(up)}]
    node = gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES, targets=targets))
    if mesh_weights:
      gltf.json["meshes"][0]["weights"] = mesh_weights
    if node_weights:
      gltf.json["nodes"][node]["weights"] = node_weights
    assert read(gltf, tmp_path).mesh.vertices[:, 1].max() == expected


# --- Nodes ----------------------------------------------------------------------------------------


def test_a_matrix_and_its_translation_rotation_and_scale_place_alike(tmp_path):
  turn = np.array([0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)])
  parted, whole = Gltf(), Gltf()
  place = np.array([[0, -3, 0, 5], [2, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
  parted.draw(
    parted.primitive({"POSITION": SQUARE}, SQUARE_FACES),
    translation=[5, 6, 7],
    rotation=turn.tolist(),
    scale=[2, 3, 4],
  )
  whole.draw(whole.primitive({"POSITION": SQUARE}, SQUARE_FACES), matrix=place.T.ravel().tolist())
  one, two = read(parted, tmp_path).mesh, read(whole, tmp_path).mesh
  np.testing.assert_allclose(one.vertices, two.vertices, atol=1e-12)
  np.testing.assert_allclose(one.vertices[2], [5 - 3, 6 + 2, 7], atol=1e-12)


@pytest.mark.parametrize("scale", [[-1, 1, 1], [-1, -2, -3], [1, 1, -1], [2, -3, 1]])
def test_mirrored_nodes_keep_the_outside_outside(tmp_path, scale):
  gltf = Gltf()
  tetrahedron = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
  faces = np.uint16([0, 2, 1, 0, 1, 3, 1, 2, 3, 0, 3, 2])
  inner = gltf.draw(gltf.primitive({"POSITION": tetrahedron}, faces), scale=scale)
  gltf.add("nodes", {"children": [inner], "scale": [1, 1, 1]})
  mesh = read(gltf, tmp_path).mesh
  corner = mesh.vertices[mesh.faces]
  volume = np.einsum("fi,fi->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) / 6
  assert volume == pytest.approx(abs(np.prod(scale)) / 6)


def test_cameras_and_lights_may_be_anywhere_in_the_tree(tmp_path):
  gltf = Gltf()
  gltf.add("cameras", {"type": "perspective", "perspective": {"yfov": 1, "znear": 1}})
  gltf.json["extensions"] = {"KHR_lights_punctual": {"lights": [{"type": "point"}]}}
  shown = gltf.draw(
    gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES), camera=0, translation=[1, 0, 0]
  )
  lit = gltf.add(
    "nodes", {"extensions": {"KHR_lights_punctual": {"light": 0}}, "children": [shown]}
  )
  gltf.add("nodes", {"camera": 0, "children": [lit], "translation": [0, 1, 0]})
  found = read(gltf, tmp_path)
  np.testing.assert_array_equal(found.mesh.vertices, SQUARE + [1, 1, 0])
  assert found.dropped == ("1 cameras", "1 lights")


def test_only_the_scene_that_the_file_shows_is_read(tmp_path):
  gltf = Gltf()
  for place in range(3):
    drawn = gltf.primitive({"POSITION": TRIANGLE})
    gltf.draw(drawn, translation=[place, 0, 0])
  gltf.json["scenes"] = [{"nodes": [0]}, {"nodes": [1, 2]}]
  gltf.json["scene"] = 1
  found = read(gltf, tmp_path)
  assert found.mesh.vertices[:, 0].min() == 1 and len(found.mesh.faces) == 2
  assert found.dropped == ("1 scenes that are not shown",)


def test_a_node_that_the_scene_lists_beside_its_parent_is_drawn_once(tmp_path):
  gltf = Gltf()
  inner = gltf.draw(gltf.primitive({"POSITION": TRIANGLE}), translation=[1, 0, 0])
  outer = gltf.add("nodes", {"children": [inner], "translation": [0, 1, 0]})
  for roots in ([inner, outer], [outer, inner, outer]):
    gltf.json["scenes"] = [{"nodes": roots}]
    mesh = read(gltf, tmp_path).mesh
    np.testing.assert_array_equal(mesh.vertices, TRIANGLE + [1, 1, 0])


def test_hidden_nodes_are_not_drawn(tmp_path):
  gltf = Gltf()
  hidden = {"KHR_node_visibility": {"visible": False}}
  inner = gltf.draw(gltf.primitive({"POSITION": TRIANGLE}))
  gltf.add("nodes", {"children": [inner], "extensions": hidden})
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  found = read(gltf, tmp_path)
  assert len(found.mesh.faces) == 2 and found.dropped == ("1 hidden nodes",)


@pytest.mark.parametrize(
  "children, why",
  [
    ([[1], [0]], "below itself"),
    ([[0], []], "below itself"),
    ([[2], [2], []], "child of 0 and of 1"),
    ([[7], []], "child 7 of 2"),
  ],
)
def test_nodes_that_form_no_tree_are_refused(tmp_path, children, why):
  gltf = Gltf()
  for below in children:
    gltf.draw(gltf.primitive({"POSITION": TRIANGLE}), children=below)
  with pytest.raises(Refused, match=why):
    read(gltf, tmp_path)


def test_a_chain_of_a_hundred_thousand_nodes_is_no_depth(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": TRIANGLE}))
  for below in range(100_000):
    gltf.json["nodes"].append({"children": [below]})
  gltf.json["scenes"] = [{"nodes": [100_000]}]
  assert len(read(gltf, tmp_path).mesh.faces) == 1


def test_instances_stand_where_their_attributes_place_them(tmp_path):
  gltf = Gltf()
  quarter = np.array([[0, 0, 0, 32767], [0, 0, 23170, 23170]], np.int16)
  attributes = {
    "TRANSLATION": gltf.accessor(np.float32([[0, 0, 0], [10, 0, 0]])),
    "ROTATION": gltf.accessor(quarter, normalized=True),
    "SCALE": gltf.accessor(np.float32([[1, 1, 1], [2, 3, 1]])),
  }
  gltf.json["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
  gltf.draw(
    gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES),
    translation=[0, 0, 5],
    extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}},
  )
  vertices = read(gltf, tmp_path).mesh.vertices
  np.testing.assert_allclose(vertices[:4], SQUARE + [0, 0, 5])
  np.testing.assert_allclose(vertices[6], [10 - 3, 2, 5], atol=1e-3)


@pytest.mark.parametrize("bound", [True, False])
def test_a_skinned_mesh_stands_where_its_joints_are_and_not_where_its_node_is(tmp_path, bound):
  gltf = Gltf()
  joints = np.tile(np.uint8([0, 1, 0, 0]), (4, 1))
  weights = np.float32([[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 2, 0, 0]])
  attributes = {"POSITION": SQUARE, "JOINTS_0": joints, "WEIGHTS_0": weights}
  skin = {"joints": [1, 2]}
  if bound:
    inverse = np.stack([np.eye(4), np.eye(4)]).astype(np.float32)
    inverse[1, 0, 3] = -1
    skin["inverseBindMatrices"] = gltf.accessor(inverse.transpose(0, 2, 1).reshape(2, 16))
  gltf.add("skins", skin)
  drawn = gltf.primitive(attributes, SQUARE_FACES)
  gltf.draw(drawn, skin=0, translation=[100, 100, 100])
  gltf.add("nodes", {"translation": [0, 0, 1], "children": [2]})
  gltf.add("nodes", {"translation": [1 * bound, 0, 1]})
  vertices = read(gltf, tmp_path).mesh.vertices
  np.testing.assert_allclose(vertices - SQUARE, [[0, 0, 1], [0, 0, 1], [0, 0, 1.5], [0, 0, 2]])


def test_weights_of_a_skin_may_be_integers_and_of_several_sets(tmp_path):
  gltf = Gltf()
  zero = np.zeros((3, 4), np.uint16)
  second = np.uint16([[1, 0, 0, 0]] * 3)
  half = np.uint8([[255, 0, 0, 0]] * 3)
  attributes = {"POSITION": TRIANGLE, "JOINTS_0": zero, "WEIGHTS_0": half}
  attributes |= {"JOINTS_1": second, "WEIGHTS_1": half}
  gltf.add("skins", {"joints": [1, 2]})
  gltf.draw(gltf.primitive(attributes), skin=0)
  gltf.add("nodes", {})
  gltf.add("nodes", {"translation": [0, 0, 1]})
  np.testing.assert_allclose(read(gltf, tmp_path).mesh.vertices[:, 2], [0.5] * 3)


def test_a_joint_that_does_not_exist_is_refused(tmp_path):
  gltf = Gltf()
  joints, weights = np.uint8([[5, 0, 0, 0]] * 3), np.float32([[1, 0, 0, 0]] * 3)
  attributes = {"POSITION": TRIANGLE, "JOINTS_0": joints, "WEIGHTS_0": weights}
  gltf.add("skins", {"joints": [0]})
  gltf.draw(gltf.primitive(attributes), skin=0)
  with pytest.raises(Refused, match="joint 5 of 1"):
    read(gltf, tmp_path)


# --- The container --------------------------------------------------------------------------------


def test_text_with_a_buffer_beside_it_is_the_same_mesh(tmp_path, square):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  gltf.json["buffers"] = [{"byteLength": len(gltf.binary), "uri": "The%20Data.bin"}]
  # the name is percent-encoded, and in other case than the file's
  (tmp_path / "the data.bin").write_bytes(gltf.binary)
  same_surface(read(gltf, tmp_path, "a.gltf").mesh, square)


@pytest.mark.parametrize("name", ["a.glb", "a.gltf"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, name):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  path = gltf.write(tmp_path / name)
  cut = path if name == "a.glb" else tmp_path / "data.bin"
  cut.write_bytes(cut.read_bytes()[:-4])
  with pytest.raises(Refused, match="cut short"):
    meshes.read(path)


UPWARDS = "../" * 20


@pytest.mark.parametrize(
  "uri",
  [
    "https://example.org/a.bin",
    "/etc/hostname",
    "lost.bin",
    "a\0b",
    f"{UPWARDS}proc/self/environ",
    f"{UPWARDS}dev/zero",
    "..",
    "",
  ],
)
def test_a_buffer_that_is_not_beside_the_file_is_refused(tmp_path, uri):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  gltf.json["buffers"] = [{"byteLength": len(gltf.binary), "uri": uri}]
  with pytest.raises(Refused, match="unreadable"):
    read(gltf, tmp_path, "a.gltf")


def test_what_a_file_requires_and_the_reader_does_not_know_is_refused_by_name(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": TRIANGLE}))
  gltf.json["extensionsUsed"] = ["EXT_fur"]
  assert len(read(gltf, tmp_path).mesh.faces) == 1
  gltf.json["extensionsRequired"] = ["KHR_materials_unlit", "EXT_fur"]
  with pytest.raises(Refused, match=r"unsupported: a\.glb: .*requires EXT_fur,"):
    read(gltf, tmp_path)


@pytest.mark.parametrize("asset", [{"version": "1.0"}, {"version": "2.1", "minVersion": "2.1"}])
def test_other_versions_are_refused(tmp_path, asset):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": TRIANGLE}))
  gltf.json["asset"] = asset
  with pytest.raises(Refused, match="unsupported"):
    read(gltf, tmp_path)


def test_animations_and_variants_are_dropped_with_a_word(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": TRIANGLE}))
  gltf.json["animations"] = [{}, {}]
  gltf.json["extensions"] = {"KHR_materials_variants": {"variants": [{"name": "a"}]}}
  assert read(gltf, tmp_path).dropped == ("2 animations", "1 variants of materials")


def test_any_wrong_type_in_the_json_is_a_refusal(tmp_path):
  """Every value of a file, one after another, replaced by every kind of JSON."""
  gltf = Gltf()
  material = gltf.textured(np.zeros((2, 2, 3), np.uint8))
  gltf.draw(gltf.square(material=material), translation=[0, 0, 1])
  gltf.json["scenes"] = [{"nodes": [0]}]
  gltf.json["buffers"] = [{"byteLength": len(gltf.binary)}]
  path = gltf.write(tmp_path / "a.glb")
  text = json.dumps(gltf.json)
  places = []

  def walk(value, place):
    places.append(place)
    inner = (
      value.items()
      if isinstance(value, dict)
      else enumerate(value)
      if isinstance(value, list)
      else ()
    )
    for key, below in inner:
      walk(below, (*place, key))

  walk(gltf.json, ())
  refused = 0
  for place in places[1:]:
    for other in (None, -1, 10**20, 0.5, "x", [], {}, True, [[]]):
      gltf.json = json.loads(text)
      holder = gltf.json
      for key in place[:-1]:
        holder = holder[key]
      holder[place[-1]] = other
      gltf.write(path)
      try:
        meshes.read(path)
      except Refused:
        refused += 1
  assert refused > len(places)


def test_every_byte_of_a_header_may_be_wrong(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  path = gltf.write(tmp_path / "a.glb")
  data = path.read_bytes()
  (length,) = struct.unpack_from("<I", data, 12)
  refused = set()
  for place in range(20 + length + 8):
    for value in (0, 0xFF):
      path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
      try:
        found = meshes.read(path).mesh
      except Refused:
        refused.add(place)
      else:
        # what is read nevertheless is a mesh
        assert found.faces.max(initial=-1) < len(found.vertices), (place, value)
  # magic and version of the file, type of its first chunk
  assert refused >= {*range(8), *range(16, 20)}
