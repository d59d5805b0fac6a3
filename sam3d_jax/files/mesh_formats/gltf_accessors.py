"""Accessors of glTF 2.0: typed arrays in buffer views, strided, sparse, normalised."""

from collections.abc import Mapping
import dataclasses
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
COLUMN_STEP = 4  # bytes: the columns of a matrix begin at multiples of it
# An accessor without a view is all zeros: its size is a mere claim. So much is believed.
BELIEVED_BYTES = 1 << 20
BELIEVED_RATIO = 16  # times the bytes of the file


@dataclasses.dataclass(frozen=True)
class _Layout:
  """How elements lie in a view."""

  name: str  # of the accessor, for messages
  count: int
  dtype: np.dtype
  rows: int = 1
  columns: int = 1

  @property
  def components(self) -> int:
    return self.rows * self.columns

  @property
  def column_bytes(self) -> int:
    """From the beginning of a column to that of the next."""
    tight = self.rows * self.dtype.itemsize
    if self.columns == 1:
      return tight
    return -(-tight // COLUMN_STEP) * COLUMN_STEP

  @property
  def element_bytes(self) -> int:
    """From the first to the last byte of an element."""
    last_column = self.rows * self.dtype.itemsize
    others = self.columns - 1
    return others * self.column_bytes + last_column


def stored(document: Document, index: Any) -> np.ndarray:
  """(count, components) of an accessor in its own type; matrices as rows of the transpose."""
  entry = document.item("accessors", index)
  layout = _layout(entry, f"accessors[{index}]")
  # what lies below sparse elements, and all there is without them
  if "bufferView" in entry:
    values = _in_view(document, entry, layout)
  else:
    values = _zeros(document, layout)
  if "sparse" in entry:
    # views of the file are not written to
    values = values.copy()
    _replace(document, entry["sparse"], values, layout)
  return values


def values(document: Document, index: Any, *, whole: bool = False) -> np.ndarray:
  """(count, components) float64: integers that are normalised become fractions.

  whole: integers are fractions whether or not the file says so, as for colours and weights.
  """
  entry = document.item("accessors", index)
  normalised = entry.get("normalized") is True
  return fractions(stored(document, index), whole or normalised)


def fractions(found: np.ndarray, normalised: bool) -> np.ndarray:
  """float64 of stored numbers; normalised integers lie in 0..1 or -1..1."""
  numbers = found.astype(np.float64)
  if found.dtype.kind == "f" or not normalised:
    return numbers
  largest = np.iinfo(found.dtype).max
  # signed types go one step further down than up
  return np.maximum(numbers / largest, -1.0)


def _layout(entry: Mapping[str, Any], name: str) -> _Layout:
  count = entry.get("count")
  if not is_count(count):
    raise wrong(f"{name}: count {count!r}")
  component = entry.get("componentType")
  if component not in COMPONENTS:
    raise wrong(f"{name}: componentType {component!r}")
  kind = entry.get("type")
  if kind not in SHAPES:
    raise wrong(f"{name}: type {kind!r}")
  rows, columns = SHAPES[kind]
  return _Layout(name, count, COMPONENTS[component], rows, columns)


def _in_view(document: Document, entry: Mapping[str, Any], layout: _Layout) -> np.ndarray:
  """(count, components) of elements in a buffer view, interleaved with others or not."""
  view, stride = document.view(entry["bufferView"])
  start = entry.get("byteOffset", 0)
  if not is_count(start):
    raise wrong(f"{layout.name}: byteOffset {start!r}")
  if not layout.count:
    return np.zeros((0, layout.components), layout.dtype)

  # Whether all of it lies in the view.
  stride = stride or layout.columns * layout.column_bytes
  size = layout.element_bytes
  if stride < size:
    raise wrong(f"{layout.name}: elements of {size} bytes every {stride} bytes")
  end = start + stride * (layout.count - 1) + size
  if end > len(view):
    where = f"end at byte {end} of a view of {len(view)}"
    raise wrong(f"{layout.name}: {layout.count} elements {where}")

  # The bytes that belong to elements, without those between them.
  raw = np.frombuffer(view, np.uint8)[start:]
  column = layout.rows * layout.dtype.itemsize
  placed = np.lib.stride_tricks.as_strided(
    raw,
    shape=(layout.count, layout.columns, column),
    strides=(stride, layout.column_bytes, 1),
    writeable=False,
  )
  packed = np.ascontiguousarray(placed)
  return packed.reshape(layout.count, -1).view(layout.dtype)


def _zeros(document: Document, layout: _Layout) -> np.ndarray:
  """What an accessor without a view holds."""
  element = layout.components * layout.dtype.itemsize
  claimed = layout.count * element
  size = document.size
  believed = max(BELIEVED_BYTES, BELIEVED_RATIO * size)
  if claimed > believed:
    raise wrong(f"{layout.name}: {claimed} bytes of zeros in a file of {size} bytes")
  return np.zeros((layout.count, layout.components), layout.dtype)


def _replace(
  document: Document, sparse: Mapping[str, Any], values: np.ndarray, layout: _Layout
) -> None:
  """Writes the elements that a sparse accessor states into `values`."""
  count = sparse.get("count")
  if not is_count(count) or count > layout.count:
    raise wrong(f"{layout.name}: {count!r} sparse elements of {layout.count}")

  # Which elements.
  places = sparse["indices"]
  component = places.get("componentType")
  dtype = COMPONENTS.get(component)
  if dtype is None or dtype.kind != "u":
    raise wrong(f"{layout.name}: sparse indices of type {component!r}")
  index_layout = _Layout(layout.name, count, dtype)
  index = _in_view(document, places, index_layout)[:, 0]
  highest = index.max(initial=0)
  if count and highest >= layout.count:
    raise wrong(f"{layout.name}: sparse element {highest} of {layout.count}")

  # What they are.
  value_layout = dataclasses.replace(layout, count=count)
  values[index] = _in_view(document, sparse["values"], value_layout)
