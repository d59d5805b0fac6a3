"""Compressed parts of glTF files, decoded by optional packages or refused by name.

    KHR_draco_mesh_compression      meshes       pip install DracoPy
    EXT_meshopt_compression (KHR_)  buffer views pip install almeshopt
    KHR_texture_basisu              pictures     pip install alktx2

All three: pip install 'sam3d_jax[codecs]'.
"""

from collections.abc import Mapping
import importlib
from typing import Any

import numpy as np

from sam3d_jax.errors import Refused

PACKAGES = {
  "KHR_draco_mesh_compression": "DracoPy",
  "EXT_meshopt_compression": "almeshopt",
  "KHR_texture_basisu": "alktx2",
}
MODES = ("ATTRIBUTES", "TRIANGLES", "INDICES")  # of meshopt
MAX_RATIO = 2048  # decoded bytes for one encoded byte: no stream of meshopt holds more
# the largest count of an accessor that a Draco mesh fills: its stream states none to check
MAX_ELEMENTS = 200_000_000


def available(extension: str) -> bool:
  """Whether the package that decodes an extension is installed."""
  return _module(extension) is not None


def _module(extension: str):
  # optional: importing them at the top would make them required
  try:
    return importlib.import_module(PACKAGES[extension])
  except ImportError:
    return None


def _needed(extension: str):
  module = _module(extension)
  if module is None:
    package = PACKAGES[extension]
    raise Refused(
      "unsupported",
      f"it is compressed with {extension}, which needs a decoder: pip install {package}",
    )
  return module


# --- Draco ----------------------------------------------------------------------------------------


def decode_draco(
  encoded: bytes, attributes: Mapping[str, int]
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
  """Indices (corners,) int64, None of a point cloud, and attributes by their names in glTF.

  attributes: name -> unique id in the stream. Raises Refused (unsupported, unreadable).
  """
  draco = _needed("KHR_draco_mesh_compression")
  try:
    mesh = draco.decode(encoded)
  except MemoryError:
    raise
  # the decoder raises errors of its own kinds
  except Exception as error:
    detail = f"KHR_draco_mesh_compression: a mesh cannot be decoded: {error}"
    raise Refused("unreadable", detail) from error

  # Attributes as glTF names them.
  stored = {attribute["unique_id"]: attribute["data"] for attribute in mesh.attributes}
  found = {}
  for name, unique_id in attributes.items():
    if unique_id not in stored:
      raise Refused("unreadable", f"KHR_draco_mesh_compression: no attribute {unique_id} ({name})")
    data = np.asarray(stored[unique_id])
    found[name] = data.reshape(len(data), -1)

  # Of a point cloud there are no faces.
  faces = getattr(mesh, "faces", None)
  indices = None
  if faces is not None and len(faces):
    indices = np.asarray(faces, np.int64).reshape(-1)
  return indices, found


# --- meshopt --------------------------------------------------------------------------------------


def decode_meshopt(encoded: bytes, packed: Mapping[str, Any]) -> bytes:
  """The bytes of a buffer view of EXT_meshopt_compression.

  Raises Refused (unsupported, unreadable).
  """
  count = packed.get("count")
  stride = packed.get("byteStride")
  mode = packed.get("mode")
  filter = packed.get("filter", "NONE")
  if mode not in MODES or filter not in FILTERS:
    detail = f"EXT_meshopt_compression: mode {mode!r} with filter {filter!r}"
    raise Refused("unsupported", detail)

  # What it claims to be.
  for value in (count, stride):
    if not isinstance(value, int) or value < 0:
      raise Refused("unreadable", f"EXT_meshopt_compression: count {count!r}, stride {stride!r}")
  if count * stride > MAX_RATIO * max(len(encoded), 1):
    claim = f"{count} elements of {stride} bytes from {len(encoded)} bytes"
    raise Refused("unreadable", f"EXT_meshopt_compression: {claim}")

  # Its bytes.
  if mode == "INDICES":
    indices = _index_sequence(encoded, count)
    return indices.astype(f"<u{stride}").tobytes()
  codec = _needed("EXT_meshopt_compression")
  try:
    if mode == "TRIANGLES":
      indices = np.asarray(codec.decode_index_buffer(encoded, count))
      return indices.reshape(-1).astype(f"<u{stride}").tobytes()
    decoded = codec.decode_vertex_buffer(encoded, count, stride, dtype=np.uint8)
  except MemoryError:
    raise
  # the decoder raises errors of its own kinds
  except Exception as error:
    detail = f"EXT_meshopt_compression: a view cannot be decoded: {error}"
    raise Refused("unreadable", detail) from error
  rows = np.ascontiguousarray(decoded, np.uint8).reshape(count, stride)
  return FILTERS[filter](rows).tobytes()


def _index_sequence(encoded: bytes, count: int) -> np.ndarray:
  """Indices of a list that is no list of triangles: differences to one of two baselines."""
  if not encoded or encoded[0] & 0xF0 != 0xD0:
    raise Refused("unreadable", "EXT_meshopt_compression: no sequence of indices")
  last = [0, 0]
  at = 1
  found = []
  for _ in range(count):
    # seven bits a byte, the lowest first; the eighth says that more follow
    value, shift = 0, 0
    while True:
      byte = encoded[at]
      at += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        break

    # the lowest bit says which baseline it counts from
    baseline = value & 1
    step = value >> 1
    # zigzag: the lowest bit is the sign
    change = (step >> 1) ^ -(step & 1)
    last[baseline] = (last[baseline] + change) & 0xFFFFFFFF
    found.append(last[baseline])
  return np.array(found, np.uint32)


def _unfiltered(rows: np.ndarray) -> np.ndarray:
  return rows


def _octahedral(rows: np.ndarray) -> np.ndarray:
  """Unit vectors from two coordinates on an octahedron; the third component states the scale."""
  dtype = np.int8 if rows.shape[1] == 4 else "<i2"
  signed = rows.view(dtype)
  x, y, one = signed[:, :3].astype(np.float32).T
  z = one - np.abs(x) - np.abs(y)
  # the lower half is folded outwards
  fold = np.minimum(z, 0)
  x = x + np.where(x >= 0, fold, -fold)
  y = y + np.where(y >= 0, fold, -fold)

  # Unit vectors in the type's own range.
  vectors = np.stack([x, y, z], axis=1)
  squared = (vectors**2).sum(1, keepdims=True)
  length = np.maximum(np.sqrt(squared), 1e-30)
  largest = np.iinfo(signed.dtype).max
  out = signed.copy()
  out[:, :3] = np.rint(vectors / length * largest)
  return out


def _quaternion(rows: np.ndarray) -> np.ndarray:
  """Unit quaternions from three components and the place of the largest, which is left out."""
  signed = rows.view("<i2")
  # the last value holds the scale, and in its lowest two bits which component is the largest
  last = signed[:, 3]
  largest = last & 3
  scale = np.maximum(last | 3, 1).astype(np.float32)

  # No other component is above the square root of one half.
  three = signed[:, :3] / (scale[:, None] * np.sqrt(2))
  squared = (three**2).sum(1)
  left_out = np.sqrt(np.maximum(0, 1 - squared))

  # Stored are the components that follow the largest, in turn.
  unit = np.iinfo(np.int16).max
  out = np.zeros_like(signed)
  row = np.arange(len(signed))
  out[row, largest] = np.rint(left_out * unit)
  for step in range(3):
    column = (largest + 1 + step) % 4
    out[row, column] = np.rint(three[:, step] * unit)
  return out


def _exponential(rows: np.ndarray) -> np.ndarray:
  """Floats from a 24-bit mantissa and an 8-bit exponent, both signed."""
  packed = rows.view("<i4")
  exponent = packed >> 24
  mantissa = (packed << 8) >> 8
  return np.ldexp(mantissa.astype(np.float32), exponent).astype("<f4")


FILTERS = {
  "NONE": _unfiltered,
  "OCTAHEDRAL": _octahedral,
  "QUATERNION": _quaternion,
  "EXPONENTIAL": _exponential,
}


# --- Basis Universal ------------------------------------------------------------------------------


def decode_basisu(encoded: bytes) -> bytes:
  """A PNG of a KTX2 picture. Raises Refused (unsupported, unreadable)."""
  basis = _needed("KHR_texture_basisu")
  try:
    png, _ = basis.decode_ktx2_to_bytes(encoded, format="png")
  except MemoryError:
    raise
  # the decoder raises errors of its own kinds
  except Exception as error:
    detail = f"KHR_texture_basisu: a picture cannot be decoded: {error}"
    raise Refused("unreadable", detail) from error
  return png
