"""Whether a mesh file was read in full: what its format lets one tell that parsers do not.

Parsers are quiet about textures they could not find or decode and about files cut short.
"""

from collections.abc import Iterator, Mapping
import json
import pathlib
from typing import Any
import urllib.parse

import trimesh

from sam3d_jax.errors import Refused

STL_HEADER, STL_TRIANGLE = 84, 50  # bytes


class Resolver(trimesh.resolvers.FilePathResolver):
  """Finds the files beside a mesh, also by percent-encoded names, as URIs of glTF are."""

  def get(self, name: str) -> bytes:
    try:
      return super().get(name)
    except FileNotFoundError:
      return super().get(urllib.parse.unquote(name))


def check_length(path: pathlib.Path) -> None:
  """Raises Refused (unreadable) for a binary STL that is cut short."""
  if path.suffix.lower() != ".stl":
    return
  data = path.read_bytes()
  if data.lstrip().startswith(b"solid"):  # text
    return
  expected = STL_HEADER
  if len(data) >= STL_HEADER:
    expected += STL_TRIANGLE * int.from_bytes(data[80:84], "little")
  if len(data) < expected:
    detail = f"{path.name}: binary STL of {len(data)} bytes, its header announces {expected}"
    raise Refused("unreadable", detail)


def check_textures_exist(path: pathlib.Path) -> None:
  """Raises Refused (missing_texture) for a texture that a mesh names and that is not there."""
  try:
    missing = [name for name in _textures_named(path) if not (path.parent / name).is_file()]
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise Refused("unreadable", f"{path.name}: {type(error).__name__}: {error}") from error
  if missing:
    raise Refused("missing_texture", f"{path.name} needs {missing[0]!r}, which is not beside it")


def check_textures_loaded(path: pathlib.Path, scene: trimesh.Scene) -> None:
  """Raises Refused (unreadable) if a base colour texture of a glTF scene could not be decoded."""
  if path.suffix.lower() not in (".glb", ".gltf"):
    return
  expected = _textured_materials(_gltf_header(path))
  loaded = set()
  for geometry in scene.geometry.values():
    if not isinstance(geometry, trimesh.Trimesh):
      continue
    material = getattr(geometry.visual, "material", None)
    if getattr(material, "baseColorTexture", None) is not None:
      loaded.add(id(material))
  if len(loaded) < len(expected):
    lost = f"{len(expected) - len(loaded)} of {len(expected)}"
    raise Refused("unreadable", f"{path.name}: {lost} base colour textures cannot be decoded")


def _textures_named(path: pathlib.Path) -> list[str]:
  """Base colour images that an OBJ's material files or a .gltf file name, from the mesh on."""
  if path.suffix.lower() == ".obj":
    return list(_obj_textures(path))
  if path.suffix.lower() == ".gltf":
    uris = [image.get("uri", "") for image in _gltf_header(path).get("images", [])]
    return [urllib.parse.unquote(uri) for uri in uris if uri and not uri.startswith("data:")]
  return []


def _obj_textures(path: pathlib.Path) -> Iterator[str]:
  """What `map_Kd` names in the material libraries of an OBJ file.

  Options may precede the name, which may hold spaces; a name without options is by far the usual
  case, and the only one that is checked.
  """
  with path.open(errors="replace") as lines:
    libraries = [line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("mtllib ")]
  for library in libraries:
    if not (path.parent / library).is_file():
      continue
    for line in (path.parent / library).read_text(errors="replace").splitlines():
      keyword, *words = line.split() or [""]
      if keyword == "map_Kd" and words and words[0][0] != "-":
        yield " ".join(words).replace("\\", "/")


def _gltf_header(path: pathlib.Path) -> Mapping[str, Any]:
  """The JSON part of a .gltf or .glb file."""
  data = path.read_bytes()
  if path.suffix.lower() == ".glb":
    # 12 bytes of header, then the first chunk's length and type
    data = data[20 : 20 + int.from_bytes(data[12:16], "little")]
  return json.loads(data)


def _textured_materials(header: Mapping[str, Any]) -> set[int]:
  """Indices of materials that put a texture on a primitive with texture coordinates."""
  used = set()
  for mesh in header.get("meshes", []):
    for primitive in mesh["primitives"]:
      mapped = "TEXCOORD_0" in primitive["attributes"] and "material" in primitive
      if mapped and primitive.get("mode", 4) == 4:  # triangles
        used.add(primitive["material"])
  return {i for i in used if _has_texture(header["materials"][i])}


def _has_texture(material: Mapping[str, Any]) -> bool:
  return "baseColorTexture" in material.get("pbrMetallicRoughness", {})
