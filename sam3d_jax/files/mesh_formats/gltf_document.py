"""The container of glTF 2.0: JSON, buffers, views of them.

Every index and length is checked where it is used, so that a wrong file is refused and costs no
more memory than it has bytes.
"""

import base64
from collections.abc import Mapping
import json
import pathlib
import struct
from typing import Any
import urllib.parse

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import beside, gltf_codecs

MAGIC = b"glTF"
HEADER, CHUNK_HEADER = 12, 8  # bytes
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
MESHOPT = ("KHR_meshopt_compression", "EXT_meshopt_compression")

# What a file may require. The first are read; the rest change neither shape nor base colour.
KNOWN_EXTENSIONS = frozenset(
  (
    "KHR_mesh_quantization",
    "KHR_texture_transform",
    "KHR_texture_basisu",
    "KHR_draco_mesh_compression",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_unlit",
    "KHR_node_visibility",
    "EXT_mesh_gpu_instancing",
    "EXT_texture_webp",
    "EXT_texture_avif",
    "MSFT_texture_dds",
    *MESHOPT,
    # materials beside the base colour
    "KHR_materials_anisotropy",
    "KHR_materials_clearcoat",
    "KHR_materials_diffuse_transmission",
    "KHR_materials_dispersion",
    "KHR_materials_emissive_strength",
    "KHR_materials_ior",
    "KHR_materials_iridescence",
    "KHR_materials_sheen",
    "KHR_materials_specular",
    "KHR_materials_transmission",
    "KHR_materials_variants",
    "KHR_materials_volume",
    # what is no surface
    "EXT_lights_image_based",
    "KHR_animation_pointer",
    "KHR_lights_punctual",
    "KHR_xmp_json_ld",
  )
)


def wrong(why: str) -> Refused:
  """A file that breaks the rules of its format."""
  return Refused("unreadable", why)


class Document:
  """A parsed file and its buffers, which are read when they are first needed."""

  def __init__(self, path: pathlib.Path, data: bytes):
    self.path = path
    self.size = len(data)  # bytes read so far, of this file and those it names
    text, self._binary = _chunks(data)
    self.json = _parse(text)
    self._buffers: dict[int, bytes | None] = {}
    self._decoded: dict[int, bytes] = {}
    self._check_version()
    self._check_extensions()

  # --- JSON ---------------------------------------------------------------------------------------

  def items(self, kind: str) -> list[Any]:
    """A list of the top level, empty if there is none."""
    found = self.json.get(kind, [])
    if not isinstance(found, list):
      raise wrong(f"{kind!r} is no list")
    return found

  def item(self, kind: str, index: Any) -> Mapping[str, Any]:
    """The object `index` of a list of the top level."""
    found = self.items(kind)
    if not is_index(index, len(found)):
      raise wrong(f"{kind}[{index!r}]: there are {len(found)}")
    entry = found[index]
    if not isinstance(entry, dict):
      raise wrong(f"{kind}[{index}] is no object")
    return entry

  def uses(self, extension: str) -> bool:
    return extension in self.items("extensionsUsed")

  def _check_version(self) -> None:
    asset = self.json.get("asset", {})
    version = str(asset.get("version", "2.0"))
    major = version.partition(".")[0]
    # a file that cannot be read by readers of 2.0 says so
    least = str(asset.get("minVersion", "2.0"))
    if major != "2" or least not in ("2", "2.0"):
      detail = f"glTF {version}, at least {least}; 2.0 is read"
      raise Refused("unsupported", detail)

  def _check_extensions(self) -> None:
    unknown = []
    for name in self.items("extensionsRequired"):
      if name not in KNOWN_EXTENSIONS:
        unknown.append(str(name))
    if unknown:
      names = ", ".join(unknown)
      detail = f"the file requires {names}, which this reader does not know"
      raise Refused("unsupported", detail)

  # --- Bytes --------------------------------------------------------------------------------------

  def view(self, index: Any) -> tuple[bytes | memoryview, int | None]:
    """The bytes of a buffer view and its stride, if it states one; compressed ones are decoded."""
    name = f"bufferViews[{index}]"
    entry = self.item("bufferViews", index)
    stride = entry.get("byteStride")
    if stride is not None and not is_count(stride):
      raise wrong(f"{name}: byteStride {stride!r}")

    # Where its bytes lie as they are, also of one that is there compressed too.
    packed = extension(entry, *MESHOPT)
    has_packed = packed is not None
    buffer = self._buffer(entry.get("buffer"), optional=has_packed)
    if buffer is not None:
      return _range(buffer, entry, name), stride

    # Only the place of what is compressed.
    if index not in self._decoded:
      source = self._buffer(packed.get("buffer"))
      encoded = _range(source, packed, name)
      self._decoded[index] = gltf_codecs.decode_meshopt(bytes(encoded), packed)
    return self._decoded[index], packed.get("byteStride")

  def _buffer(self, index: Any, *, optional: bool = False) -> bytes | None:
    """A buffer. optional: None for one that only holds the place of compressed data."""
    entry = self.item("buffers", index)
    if index not in self._buffers:
      self._buffers[index] = self._read_buffer(index, entry)
    data = self._buffers[index]
    if data is None and not optional:
      raise wrong(f"buffers[{index}] has no data")
    return data

  def _read_buffer(self, index: int, entry: Mapping[str, Any]) -> bytes | None:
    name = f"buffers[{index}]"
    length = entry.get("byteLength")
    if not is_count(length):
      raise wrong(f"{name}: byteLength {length!r}")

    # Beside the file, within it, or nowhere.
    packed = extension(entry, *MESHOPT) or {}
    is_place = packed.get("fallback", False)
    if "uri" in entry:
      data = self.fetch(entry["uri"], name)
    elif index == 0 and not is_place:
      # of a .gltf there is none
      data = self._binary
    else:
      data = None
    if data is not None and len(data) < length:
      raise wrong(f"{name} of {len(data)} bytes, {length} are announced: cut short")
    return data

  def fetch(self, uri: Any, what: str, *, reason: str = "unreadable") -> bytes:
    """The bytes of a data URI or of a file beside this one. Raises Refused (`reason`)."""
    if not isinstance(uri, str):
      raise wrong(f"{what}: uri {uri!r}")
    if uri.startswith("data:"):
      return _data_of(uri, what)
    found = beside.find(self.path.parent, uri)
    if found is None:
      plain = urllib.parse.unquote(uri)
      detail = f"{self.path.name} needs {plain!r}, which is not beside it"
      raise Refused(reason, detail)
    data = found.read_bytes()
    self.size += len(data)
    return data


def is_count(value: Any) -> bool:
  """Whether a JSON value is a whole number from 0 on."""
  is_number = isinstance(value, int) and not isinstance(value, bool)
  return is_number and value >= 0


def is_index(value: Any, length: int) -> bool:
  return is_count(value) and value < length


def extension(entry: Mapping[str, Any], *names: str) -> Mapping[str, Any] | None:
  """What an object says under the first of these extensions that it has."""
  extensions = entry.get("extensions", {})
  for name in names:
    if name in extensions:
      return extensions[name]
  return None


def numbers(value: Any, length: int, what: str) -> np.ndarray:
  """(length,) float64 of a JSON list."""
  found = np.asarray(value, np.float64)
  if found.shape != (length,):
    raise wrong(f"{what}: {length} numbers expected")
  return found


def _range(buffer: bytes, entry: Mapping[str, Any], name: str) -> memoryview:
  """The part of a buffer that an object with byteOffset and byteLength names."""
  start = entry.get("byteOffset", 0)
  length = entry.get("byteLength")
  # all of it has to lie within the buffer
  are_counts = is_count(start) and is_count(length)
  if not are_counts or start + length > len(buffer):
    where = f"{length!r} bytes from {start!r}"
    raise wrong(f"{name}: {where} of a buffer of {len(buffer)} bytes")
  end = start + length
  return memoryview(buffer)[start:end]


def _data_of(uri: str, what: str) -> bytes:
  """The bytes that a data URI holds."""
  head, comma, body = uri.partition(",")
  if not comma:
    raise wrong(f"{what}: a data URI without data")
  if head.endswith(";base64"):
    encoded = urllib.parse.unquote(body)
    return base64.b64decode(encoded)
  return urllib.parse.unquote_to_bytes(body)


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
  """The JSON text and the binary chunk of a .glb; of a .gltf the text alone."""
  if not data.startswith(MAGIC):
    return data, None
  if len(data) < HEADER + CHUNK_HEADER:
    raise wrong("a GLB without chunks")

  # Whether it is whole.
  version, length = struct.unpack_from("<II", data, len(MAGIC))
  if version != 2:
    raise Refused("unsupported", f"GLB version {version}; 2 is read")
  if len(data) < length:
    raise wrong(f"GLB of {len(data)} bytes, its header announces {length}: cut short")

  # The first chunk of each kind; others are for tools that know them.
  found = {}
  at = HEADER
  while at + CHUNK_HEADER <= length:
    size, kind = struct.unpack_from("<II", data, at)
    at += CHUNK_HEADER
    chunk = data[at : at + size]
    if len(chunk) < size:
      raise wrong(f"a chunk of {size} bytes is cut short")
    found.setdefault(kind, chunk)
    at += size
  if JSON_CHUNK not in found:
    raise wrong("a GLB without JSON")
  return found[JSON_CHUNK], found.get(BINARY_CHUNK)


def _parse(text: bytes) -> Mapping[str, Any]:
  try:
    # padded with blanks, by some tools with zeros
    plain = text.decode("utf-8-sig").rstrip("\0")
    found = json.loads(plain)
  # nested so deeply that no tool wrote it
  except (ValueError, RecursionError) as error:
    raise wrong(f"its JSON cannot be parsed: {error}") from error
  if not isinstance(found, dict):
    raise wrong("its JSON is no object")
  return found
