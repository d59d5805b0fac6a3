"""Accessors of glTF 2.0: typed arrays in buffer views, strided, sparse, normalised."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sam3d_jax.files.mesh_formats.gltf_document import Document, is_count, wrong

COMPONENTS = {
  5120: np.dtype("<i1"),
  5121: np.dtype("<u1"),
  5122: np.dtype("<i2"),
  5123: np.dtype("<u2"),
  5125: np.dtype("<u4"),
  5126: np.dtype("<f4"),
}
# (rows, columns) of an element; matrices are stored column by column
SHAPES = {
  "SCALAR": (1, 1),
  "VEC2": (2, 1),
  "VEC3": (3, 1),
  "VEC4": (4, 1),
  "MAT2": (2, 2),
  "MAT3": (3, 3),
  "MAT4": (4, 4),
}
# An accessor without a view is all zeros: its size is a mere claim. So much is believed.
BELIEVED_BYTES = 1 << 20
BELIEVED_RATIO = 16  # times the bytes of the file


def stored(document: Document, index: Any) -> np.ndarray:
  """(count, components) of an accessor in its own type; matrices as rows of the transpose."""
  entry = document.item("accessors", index)
  name = f"accessors[{index}]"
  count, kind = entry.get("count"), entry.get("componentType")
  if not is_count(count):
    raise wrong(f"{name}: count {count!r}")
  if kind not in COMPONENTS:
    raise wrong(f"{name}: componentType {kind!r}")
  if entry.get("type") not in SHAPES:
    raise wrong(f"{name}: type {entry.get('type')!r}")
  dtype, shape = COMPONENTS[kind], SHAPES[entry["type"]]
  sparse = entry.get("sparse")
  if "bufferView" in entry:
    values = _in_view(document, entry, count, dtype, shape, name)
  else:
    values = _zeros(document, count, dtype, shape, name)
  if sparse is None:
    return values
  values = values.copy()
  _replace(document, sparse, values, dtype, shape, name)
  return values


def values(document: Document, index: Any, *, whole: bool = False) -> np.ndarray:
  """(count, components) float64: integers that are normalised become fractions.

  whole: integers are fractions whether or not the file says so, as for colours and weights.
  """
  entry = document.item("accessors", index)
  return fractions(stored(document, index), whole or entry.get("normalized") is True)


def fractions(found: np.ndarray, normalised: bool) -> np.ndarray:
  """float64 of stored numbers; normalised integers lie in 0..1 or -1..1."""
  if found.dtype.kind == "f" or not normalised:
    return found.astype(np.float64)
  scaled = found.astype(np.float64) / np.iinfo(found.dtype).max
  return np.maximum(scaled, -1.0)


def _in_view(
  document: Document,
  entry: Mapping[str, Any],
  count: int,
  dtype: np.dtype,
  shape: tuple[int, int],
  name: str,
) -> np.ndarray:
  """(count, components) of elements in a buffer view, interleaved with others or not."""
  view, stride = document.view(entry["bufferView"])
  start = entry.get("byteOffset", 0)
  if not is_count(start):
    raise wrong(f"{name}: byteOffset {start!r}")
  rows, columns = shape
  # the columns of a matrix begin at multiples of four bytes
  column_bytes = rows * dtype.itemsize
  if columns > 1:
    column_bytes = -(-column_bytes // 4) * 4
  element = (columns - 1) * column_bytes + rows * dtype.itemsize
  whole_element = columns * column_bytes
  stride = stride or whole_element
  if stride < element:
    raise wrong(f"{name}: elements of {element} bytes every {stride} bytes")
  end = start + stride * (count - 1) + element
  if count and end > len(view):
    raise wrong(f"{name}: {count} elements end at byte {end} of a view of {len(view)}")
  if not count:
    return np.zeros((0, rows * columns), dtype)
  raw = np.frombuffer(view, np.uint8)
  placed = np.lib.stride_tricks.as_strided(
    raw[start:],
    shape=(count, columns, rows * dtype.itemsize),
    strides=(stride, column_bytes, 1),
    writeable=False,
  )
  packed = np.ascontiguousarray(placed).reshape(count, -1)
  return packed.view(dtype)


def _zeros(
  document: Document, count: int, dtype: np.dtype, shape: tuple[int, int], name: str
) -> np.ndarray:
  """What an accessor without a view holds."""
  components = shape[0] * shape[1]
  claimed = count * components * dtype.itemsize
  if claimed > max(BELIEVED_BYTES, BELIEVED_RATIO * document.size):
    raise wrong(f"{name}: {claimed} bytes of zeros in a file of {document.size} bytes")
  return np.zeros((count, components), dtype)


def _replace(
  document: Document,
  sparse: Mapping[str, Any],
  values: np.ndarray,
  dtype: np.dtype,
  shape: tuple[int, int],
  name: str,
) -> None:
  """Writes the elements that a sparse accessor states into `values`."""
  count = sparse.get("count")
  if not is_count(count) or count > len(values):
    raise wrong(f"{name}: {count!r} sparse elements of {len(values)}")
  places = sparse["indices"]
  kind = COMPONENTS.get(places.get("componentType"))
  if kind is None or kind.kind != "u":
    raise wrong(f"{name}: sparse indices of type {places.get('componentType')!r}")
  index = _in_view(document, places, count, kind, (1, 1), name)[:, 0]
  if count and index.max() >= len(values):
    raise wrong(f"{name}: sparse element {index.max()} of {len(values)}")
  values[index] = _in_view(document, sparse["values"], count, dtype, shape, name)
