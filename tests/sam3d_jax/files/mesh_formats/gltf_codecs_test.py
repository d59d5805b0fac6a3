"""Compressed parts of glTF: as they were before they were compressed, or refused by name."""

import io

import numpy as np
from PIL import Image
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats import gltf_codecs
from tests.support.tiny_gltf import SQUARE, SQUARE_FACES, Gltf

DRACO, MESHOPT = "KHR_draco_mesh_compression", "EXT_meshopt_compression"


def read(gltf: Gltf, folder):
  return meshes.read(gltf.write(folder / "a.glb"))


def draco_square(stream: bytes, *, fallback: bool = False) -> Gltf:
  gltf = Gltf()
  primitive = gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES)
  if not fallback:
    for accessor in gltf.json["accessors"]:
      del accessor["bufferView"]
  packed = {"bufferView": gltf.view(stream), "attributes": {"POSITION": 0}}
  gltf.draw(primitive | {"extensions": {DRACO: packed}})
  return gltf


def meshopt_square(encoded: bytes, **packed) -> Gltf:
  """The square with its positions in a compressed view."""
  gltf = Gltf()
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES))
  view = gltf.json["bufferViews"][0]
  at = gltf.json["bufferViews"][gltf.view(encoded)]
  del gltf.json["bufferViews"][-1]
  source = {"buffer": 0, "byteOffset": at["byteOffset"], "byteLength": at["byteLength"]}
  packed = {"count": 4, "byteStride": 12, "mode": "ATTRIBUTES"} | packed
  view |= {"buffer": 1, "byteOffset": 0, "extensions": {MESHOPT: source | packed}}
  place = {"byteLength": 48, "extensions": {MESHOPT: {"fallback": True}}}
  gltf.json["buffers"] = [{"byteLength": len(gltf.binary)}, place]
  gltf.json["extensionsRequired"] = [MESHOPT]
  return gltf


def test_what_is_also_there_uncompressed_needs_no_decoder(tmp_path, monkeypatch):
  monkeypatch.setattr(gltf_codecs, "_module", lambda extension: None)
  mesh = read(draco_square(b"no stream", fallback=True), tmp_path).mesh
  np.testing.assert_array_equal(mesh.vertices, SQUARE)


@pytest.mark.parametrize("extension, package", [(DRACO, "DracoPy"), (MESHOPT, "almeshopt")])
def test_a_missing_decoder_is_named_with_the_line_that_installs_it(
  tmp_path, monkeypatch, extension, package
):
  monkeypatch.setattr(gltf_codecs, "_module", lambda extension: None)
  gltf = draco_square(b"") if extension == DRACO else meshopt_square(b"\xa0" + bytes(50))
  with pytest.raises(Refused, match=rf"unsupported: a\.glb: .*{extension}.*pip install {package}"):
    read(gltf, tmp_path)


def test_a_draco_stream_gives_back_the_mesh(tmp_path):
  draco = pytest.importorskip("DracoPy", reason="DracoPy is not installed: pip install DracoPy")
  faces = SQUARE_FACES.reshape(-1, 3).astype(np.uint32)
  mesh = read(draco_square(draco.encode(SQUARE, faces, quantization_bits=16)), tmp_path).mesh
  corner = mesh.vertices[mesh.faces]
  normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
  np.testing.assert_allclose(normal, [[0, 0, 1]] * 2, atol=1e-3)
  with pytest.raises(Refused, match=f"unreadable: .*{DRACO}"):
    read(draco_square(b"DRACO" + bytes(100)), tmp_path)


def test_a_meshopt_view_gives_back_its_bytes(tmp_path):
  codec = pytest.importorskip(
    "almeshopt", reason="almeshopt is not installed: pip install almeshopt"
  )
  mesh = read(meshopt_square(codec.encode_vertex_buffer(SQUARE)), tmp_path).mesh
  np.testing.assert_array_equal(mesh.vertices, SQUARE)
  indices = np.ascontiguousarray(SQUARE_FACES, np.uint32)
  encoded = codec.encode_index_buffer(indices, 4)
  packed = {"count": 6, "byteStride": 2, "mode": "TRIANGLES"}
  decoded = np.frombuffer(gltf_codecs.decode_meshopt(encoded, packed), np.uint16).reshape(-1, 3)
  # triangles in their order, each perhaps from another corner on
  assert [sorted(face) for face in decoded.tolist()] == [[0, 1, 2], [0, 2, 3]]
  with pytest.raises(Refused, match=f"unreadable: .*{MESHOPT}"):
    read(meshopt_square(bytes(60)), tmp_path)


def test_sequences_of_indices_are_differences_to_two_baselines():
  # 0, 1, 2 on the first baseline, 70 000 on the second, 3 on the first
  numbers = [0 << 2 | 0, 2 << 1 | 0, 2 << 1 | 0, 140_000 << 1 | 1, 2 << 1 | 0]
  encoded = bytes([0xD1])
  for number in numbers:
    while number >= 128:
      encoded += bytes([number & 127 | 128])
      number >>= 7
    encoded += bytes([number])
  packed = {"count": 5, "byteStride": 4, "mode": "INDICES"}
  decoded = gltf_codecs.decode_meshopt(encoded + bytes(4), packed)
  np.testing.assert_array_equal(np.frombuffer(decoded, np.uint32), [0, 1, 2, 70_000, 3])


def test_filters_are_undone_as_the_extension_states():
  octahedral = gltf_codecs.FILTERS["OCTAHEDRAL"]
  # straight up, along x, and straight down: a corner of the folded square
  stored = np.int8([[0, 0, 127, 1], [127, 0, 127, 2], [127, 127, 127, 3]])
  unit = octahedral(stored.view(np.uint8)).view(np.int8)
  np.testing.assert_array_equal(unit, [[0, 0, 127, 1], [127, 0, 0, 2], [0, 0, -127, 3]])

  quaternion = gltf_codecs.FILTERS["QUATERNION"]
  # The lowest two bits of the scale say which component is left out: the fourth, then the first.
  one = (1 << 14) - 1
  stored = np.int16([[0, 0, 0, one & ~3 | 3], [one, 0, 0, one & ~3 | 0]])
  turned = quaternion(stored.view(np.uint8)).view(np.int16) / 32767
  np.testing.assert_allclose(turned[0], [0, 0, 0, 1], atol=1e-3)
  np.testing.assert_allclose(turned[1], [np.sqrt(0.5), np.sqrt(0.5), 0, 0], atol=1e-3)

  exponential = gltf_codecs.FILTERS["EXPONENTIAL"]
  values = np.int32([[3 | (-1 << 24)], [-5 & 0xFFFFFF | (2 << 24)]])
  decoded = exponential(values.view(np.uint8)).view(np.float32)
  np.testing.assert_array_equal(decoded.ravel(), [1.5, -20.0])


@pytest.mark.parametrize("packed", [{"count": 10**9}, {"mode": "FUR"}, {"filter": "FUR"}])
def test_claims_and_kinds_beyond_the_extension_are_refused(tmp_path, packed):
  with pytest.raises(Refused, match=MESHOPT):
    read(meshopt_square(bytes(60), **packed), tmp_path)


def test_a_basis_picture_gives_back_its_colours(tmp_path):
  basis = pytest.importorskip("alktx2", reason="alktx2 is not installed: pip install alktx2")
  stream = io.BytesIO()
  Image.fromarray(np.full((16, 16, 3), (200, 40, 40), np.uint8)).save(stream, "PNG")
  packed = basis.encode_bytes_to_ktx2(
    stream.getvalue(), mime="image/png", codec="uastc", quality=90
  )
  gltf = Gltf()
  image = gltf.add("images", {"bufferView": gltf.view(packed), "mimeType": "image/ktx2"})
  texture = gltf.add("textures", {"extensions": {"KHR_texture_basisu": {"source": image}}})
  rough = {"baseColorTexture": {"index": texture}}
  gltf.json["extensionsRequired"] = ["KHR_texture_basisu"]
  gltf.draw(gltf.square(material=gltf.add("materials", {"pbrMetallicRoughness": rough})))
  texels = read(gltf, tmp_path).mesh.materials[0].texture
  np.testing.assert_allclose(texels, np.broadcast_to((200, 40, 40), (16, 16, 3)), atol=4)
