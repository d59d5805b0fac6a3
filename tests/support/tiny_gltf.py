"""Small glTF files, written number by number so that tests decide every byte of them."""

from collections.abc import Mapping
import io
import json
import pathlib
import struct
from typing import Any

import numpy as np
from PIL import Image

COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
# a unit square in the plane z = 0, counter-clockwise seen from +z, with the picture upright on it
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
SQUARE_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
SQUARE_FACES = np.array([0, 1, 2, 0, 2, 3], np.uint16)


class Gltf:
  """A file that is filled piece by piece; `json` is what it will say."""

  def __init__(self):
    self.json: dict[str, Any] = {"asset": {"version": "2.0"}}
    self.binary = b""

  def add(self, kind: str, entry: Mapping[str, Any]) -> int:
    """Puts an object at the end of a list of the top level; its number."""
    entries = self.json.setdefault(kind, [])
    entries.append(dict(entry))
    return len(entries) - 1

  def view(self, data: bytes, **more: Any) -> int:
    self.binary += bytes(-len(self.binary) % 4)
    entry = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)} | more
    self.binary += data
    return self.add("bufferViews", entry)

  def accessor(self, values: Any, **more: Any) -> int:
    """An accessor of its own view; `values` is (N,) or (N, components) in its stored type."""
    values = np.asarray(values)
    rows = values.reshape(len(values), -1)
    entry = {
      "bufferView": self.view(rows.tobytes()),
      "componentType": COMPONENTS[rows.dtype.str[1:]],
      "count": len(rows),
      "type": TYPES[rows.shape[1]],
    }
    return self.add("accessors", entry | more)

  def primitive(
    self, attributes: Mapping[str, Any], indices: Any | None = None, **more: Any
  ) -> dict[str, Any]:
    """A primitive of arrays, or of accessors where their numbers are given."""
    entry: dict[str, Any] = {"attributes": {}}
    for name, values in attributes.items():
      if not isinstance(values, int):
        normalised = values.dtype.kind != "f" and name.startswith(("TEXCOORD", "COLOR", "WEIGHTS"))
        values = self.accessor(values, **({"normalized": True} if normalised else {}))
      entry["attributes"][name] = values
    if indices is not None:
      entry["indices"] = indices if isinstance(indices, int) else self.accessor(indices)
    return entry | more

  def draw(self, *primitives: Mapping[str, Any], **node: Any) -> int:
    """A node that draws a mesh of primitives; its number."""
    mesh = self.add("meshes", {"primitives": list(primitives)})
    return self.add("nodes", {"mesh": mesh} | node)

  def picture(self, pixels: Any, format: str = "PNG", **options: Any) -> int:
    """An image in the file, of an array or a PIL image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    stream = io.BytesIO()
    image.save(stream, format, **options)
    view = self.view(stream.getvalue())
    return self.add("images", {"bufferView": view, "mimeType": f"image/{format.lower()}"})

  def textured(self, pixels: Any, *, info: Mapping[str, Any] | None = None, **material: Any) -> int:
    """A material with a picture as its base colour."""
    texture = self.add("textures", {"source": self.picture(pixels)})
    rough = {"baseColorTexture": {"index": texture} | dict(info or {})}
    return self.add("materials", {"pbrMetallicRoughness": rough} | material)

  def square(self, **more: Any) -> dict[str, Any]:
    """A primitive: the unit square with coordinates of its picture."""
    attributes = {"POSITION": SQUARE, "TEXCOORD_0": SQUARE_UV}
    return self.primitive(attributes, SQUARE_FACES, **more)

  def write(self, path: pathlib.Path) -> pathlib.Path:
    """Writes a .glb, or a .gltf with a buffer beside it."""
    whole = dict(self.json)
    if self.binary and "buffers" not in whole:
      whole["buffers"] = [{"byteLength": len(self.binary)}]
    if path.suffix == ".gltf":
      if self.binary and "uri" not in whole["buffers"][0]:
        whole["buffers"][0]["uri"] = "data.bin"
        path.with_name("data.bin").write_bytes(self.binary)
      path.write_text(json.dumps(whole))
      return path
    text = json.dumps(whole).encode()
    chunks = [(0x4E4F534A, text + b" " * (-len(text) % 4))]
    if self.binary:
      chunks.append((0x004E4942, self.binary + bytes(-len(self.binary) % 4)))
    body = b""
    for kind, data in chunks:
      body += struct.pack("<II", len(data), kind) + data
    path.write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body)
    return path
