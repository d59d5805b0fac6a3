"""Whether a mesh was read in full: parsers are quiet about textures they could not find or decode
and about files cut short.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any
import urllib.parse

import trimesh

from sam3d_jax.errors import Refused


class Resolver(trimesh.resolvers.FilePathResolver):
  """Finds the files beside a mesh, also where their names are percent-encoded, as glTF prescribes
  for URIs.
  """

  def get(self, name: str) -> bytes:
    try:
      return super().get(name)
    except FileNotFoundError:
      return super().get(urllib.parse.unquote(name))


def check_file(path: pathlib.Path) -> None:
  """Raises Refused for a binary STL that is cut short (unreadable) and for textures that are not
  there (missing_texture).
  """
  if path.suffix.lower() == ".stl":
    data = path.read_bytes()
    expected = 84 + 50 * int.from_bytes(data[80:84], "little") if len(data) >= 84 else 84
    if not data.lstrip().startswith(b"solid") and len(data) < expected:
      raise Refused(
        "unreadable",
        f"{path.name}: binary STL of {len(data)} bytes, its header announces {expected}",
      )
  try:
    missing = [name for name in _textures_named(path) if not (path.parent / name).is_file()]
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise Refused("unreadable", f"{path.name}: {type(error).__name__}: {error}") from error
  if missing:
    raise Refused("missing_texture", f"{path.name} needs {missing[0]!r}, which is not beside it")


def check_textures(path: pathlib.Path, scene: trimesh.Scene) -> None:
  """Raises Refused (unreadable) if a base colour texture of a glTF scene could not be decoded."""
  if path.suffix.lower() not in (".glb", ".gltf"):
    return
  expected = _textured_materials(_gltf_header(path))
  materials = [
    getattr(mesh.visual, "material", None)
    for mesh in scene.geometry.values()
    if isinstance(mesh, trimesh.Trimesh)
  ]
  loaded = {id(m) for m in materials if getattr(m, "baseColorTexture", None) is not None}
  if len(loaded) < len(expected):
    lost = len(expected) - len(loaded)
    raise Refused(
      "unreadable", f"{path.name}: {lost} of {len(expected)} base colour textures cannot be decoded"
    )


def _textures_named(path: pathlib.Path) -> list[str]:
  """Base colour images that an OBJ's material files or a .gltf file refer to, relative to the mesh."""
  if path.suffix.lower() == ".obj":
    with path.open(errors="replace") as lines:
      libraries = [
        line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("mtllib ")
      ]
    materials = [path.parent / name for name in libraries if (path.parent / name).is_file()]
    words = [line.split() for m in materials for line in m.read_text(errors="replace").splitlines()]
    # Options may precede the name, which may hold spaces; a name without options is by far the
    # usual case.
    return [
      " ".join(w[1:]).replace("\\", "/")
      for w in words
      if w and w[0] == "map_Kd" and len(w) > 1 and w[1][0] != "-"
    ]
  if path.suffix.lower() == ".gltf":
    uris = [image.get("uri", "") for image in _gltf_header(path).get("images", [])]
    return [urllib.parse.unquote(uri) for uri in uris if uri and not uri.startswith("data:")]
  return []


def _gltf_header(path: pathlib.Path) -> Mapping[str, Any]:
  """The JSON part of a .gltf or .glb file."""
  data = path.read_bytes()
  if path.suffix.lower() == ".glb":
    # 12 bytes of header, then the first chunk's length and type
    data = data[20 : 20 + int.from_bytes(data[12:16], "little")]
  return json.loads(data)


def _textured_materials(header: Mapping[str, Any]) -> set[int]:
  """Indices of the materials that give a texture to at least one primitive with texture
  coordinates.
  """
  primitives = [
    p
    for mesh in header.get("meshes", [])
    for p in mesh["primitives"]
    if "TEXCOORD_0" in p["attributes"]
  ]
  used = {p["material"] for p in primitives if "material" in p and p.get("mode", 4) == 4}
  return {
    i for i in used if "baseColorTexture" in header["materials"][i].get("pbrMetallicRoughness", {})
  }
