"""The container of PLY files: header, and tables of values and lists, text or binary.

Nothing here knows what a vertex or a face is, but for the names by which colours and corners go.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files import texts
from sam3d_jax.files.mesh_formats import surfaces

TYPES = {
  "char": "i1",
  "int8": "i1",
  "uchar": "u1",
  "uint8": "u1",
  "short": "i2",
  "int16": "i2",
  "ushort": "u2",
  "uint16": "u2",
  "int": "i4",
  "int32": "i4",
  "uint": "u4",
  "uint32": "u4",
  "float": "f4",
  "float32": "f4",
  "double": "f8",
  "float64": "f8",
}
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
MAX_HEADER = 1 << 16  # bytes
END = b"end_header"
LENGTH = " length"  # behind the names of fields that count lists; a property's name has no blank
FIRST_STEP = 64  # rows
COLOURS = (
  ("red", "green", "blue"),
  ("r", "g", "b"),
  ("diffuse_red", "diffuse_green", "diffuse_blue"),
)
CORNERS = (("vertex_indices",), ("vertex_index",))


@dataclasses.dataclass(frozen=True)
class Property:
  """A value of an element, or a list of values."""

  name: str
  type: str  # of numpy, without byte order
  length_type: str | None = None  # of a list's length; None for a single value


@dataclasses.dataclass(frozen=True)
class Element:
  """A table of the file."""

  name: str
  count: int
  properties: tuple[Property, ...]


# Columns of an element by name: an array of single values, a sequence of arrays for lists.
Columns = dict[str, np.ndarray | Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of itself before its tables."""

  order: str  # of bytes, as numpy has it; "" for text
  elements: tuple[Element, ...]
  pictures: tuple[str, ...]  # names of textures
  end: int  # where the tables begin


# --- Header ---------------------------------------------------------------------------------------


def read_header(data: bytes) -> Header:
  """Raises Refused (unreadable)."""
  at = data.find(END, 0, MAX_HEADER)
  if not data.startswith(b"ply") or at < 0:
    raise Refused("unreadable", "no PLY header")
  end = at + len(END)
  # the line ends as the system that wrote it ends lines
  is_windows = data[end : end + 2] == b"\r\n"
  end += 2 if is_windows else 1

  # What it says, line by line.
  order, elements, pictures = None, [], []
  text = texts.decode(data[:at]).replace("\r", "\n")
  for line in text.split("\n"):
    words = line.split()
    keyword = words[0] if words else ""
    if keyword == "format":
      if words[1] not in FORMATS:
        raise Refused("unreadable", f"PLY in format {words[1]!r}")
      order = FORMATS[words[1]]
    elif keyword == "comment":
      pictures += _picture(line)
    elif keyword == "element":
      elements.append(_element(words, len(data)))
    elif keyword == "property":
      last = elements[-1]
      properties = (*last.properties, _property(words))
      elements[-1] = dataclasses.replace(last, properties=properties)
  if order is None:
    raise Refused("unreadable", "PLY without a format")
  return Header(order, tuple(elements), tuple(pictures), end)


def _picture(line: str) -> list[str]:
  """The texture that a comment names, if it does."""
  words = line.split(None, 2)
  if len(words) < 3 or words[1].lower() != "texturefile":
    return []
  return [words[2].strip().strip('"')]


def _element(words: Sequence[str], size: int) -> Element:
  name = words[1]
  count = int(words[2])
  # a row takes a byte at least
  if not 0 <= count <= size:
    raise Refused("unreadable", f"PLY of {size} bytes announces {count} of {name!r}")
  return Element(name, count, ())


def _property(words: Sequence[str]) -> Property:
  if words[1] != "list":
    _, type, name = words[:3]
    return Property(name, TYPES[type])
  _, _, length_type, item_type, name = words[:5]
  return Property(name, TYPES[item_type], TYPES[length_type])


def read_tables(data: bytes, header: Header) -> dict[str, "Table"]:
  """All tables by the names of their elements. Raises Refused (unreadable)."""
  if header.order:
    source = _Binary(data, header)
  else:
    source = _Text(data[header.end :])
  found = {}
  for element in header.elements:
    found[element.name] = Table(element, source.read(element))
  return found


# --- Tables ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table:
  """An element with what its rows hold."""

  element: Element
  columns: Columns

  def column(self, name: str) -> np.ndarray:
    """Single values. Raises Refused (unreadable) if there are none of that name."""
    if name not in self.columns:
      raise Refused("unreadable", f"PLY: {self.element.name!r} without {name!r}")
    return np.asarray(self.columns[name])

  def first_of(self, choices: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """The first names that are all there."""
    for names in choices:
      if all(name in self.columns for name in names):
        return tuple(names)
    return None

  def colours(self) -> np.ndarray | None:
    """(N, 3) linear colours of the rows; None if they have none."""
    names = self.first_of(COLOURS)
    if names is None:
      return None
    types = {p.name: p.type for p in self.element.properties}
    # bytes and 16 bits are fractions of their range; wider types say nothing of it
    type = types[names[0]]
    largest = float(np.iinfo(type).max) if type in ("u1", "u2") else None
    channels = [self.column(name).astype(np.float64) for name in names]
    return surfaces.linear_of(np.stack(channels, axis=1), largest)

  def corners(self) -> Sequence[np.ndarray]:
    """The vertices that each row names."""
    names = self.first_of(CORNERS)
    if names is None:
      raise Refused("unreadable", f"PLY: {self.element.name!r} without vertex_indices")
    return self.columns[names[0]]


class _Text:
  """The tables of a text file, read one after another."""

  def __init__(self, body: bytes):
    words = body.split()
    values = map(float, words)
    self._numbers = np.fromiter(values, np.float64, len(words))
    self._at = 0

  def read(self, element: Element) -> Columns:
    if all(p.length_type is None for p in element.properties):
      return self._read_plain(element)

    # Value by value: how long a list is stands before it.
    columns: Columns = {p.name: [] for p in element.properties}
    for _ in range(element.count):
      for p in element.properties:
        length = 1
        if p.length_type is not None:
          length = int(self._take(1)[0])
        columns[p.name].append(self._take(length))
    for p in element.properties:
      if p.length_type is None:
        columns[p.name] = np.array(columns[p.name]).reshape(-1)
    return columns

  def _read_plain(self, element: Element) -> Columns:
    """Rows without lists."""
    names = [p.name for p in element.properties]
    width = len(names)
    numbers = self._take(element.count * width)
    table = numbers.reshape(element.count, width)
    columns = zip(names, table.T, strict=True)
    return dict(columns)

  def _take(self, count: int) -> np.ndarray:
    end = self._at + count
    taken = self._numbers[self._at : end]
    if count < 0 or len(taken) < count:
      raise Refused("unreadable", f"PLY of {len(self._numbers)} numbers is cut short")
    self._at = end
    return taken


class _Binary:
  """The tables of a binary file, read one after another."""

  def __init__(self, data: bytes, header: Header):
    self._data = data
    self._at = header.end
    self._order = header.order

  def read(self, element: Element) -> Columns:
    """Rows with lists of the same lengths are read together, run by run."""
    runs = []
    done = 0
    while done < element.count:
      row = self._row_type(element)
      run = self._run(row, element.count - done)
      runs.append(run)
      done += len(run)
      self._at += len(run) * row.itemsize

    # Single values as one array, lists as they were read.
    columns: Columns = {}
    for p in element.properties:
      parts = [run[p.name] for run in runs]
      if p.length_type is not None:
        columns[p.name] = Runs(parts)
      else:
        columns[p.name] = np.concatenate([np.zeros(0, p.type), *parts])
    return columns

  def _row_type(self, element: Element) -> np.dtype:
    """The type of the row that comes next, with its lists' lengths."""
    fields = []
    at = self._at
    for number, p in enumerate(element.properties):
      item = np.dtype(self._order + p.type)
      if p.length_type is None:
        fields.append((p.name, item))
        at += item.itemsize
        continue

      # A list: its length is read here, its items with all rows that have as many.
      counter = np.dtype(self._order + p.length_type)
      self._check(at + counter.itemsize)
      length = int(np.frombuffer(self._data, counter, 1, at)[0])
      if length < 0:
        raise Refused("unreadable", f"PLY: a list of {length} in {element.name!r}")
      at += counter.itemsize + length * item.itemsize
      self._check(at)
      fields.append((f"{number}{LENGTH}", counter))
      fields.append((p.name, item, (length,)))
    self._check(at)
    return np.dtype(fields)

  def _run(self, row: np.dtype, most: int) -> np.ndarray:
    """The rows from here on whose lists are as long as those of the first."""
    counters = [name for name in row.names if name.endswith(LENGTH)]
    if not counters:
      self._check(self._at + most * row.itemsize)
      return np.frombuffer(self._data, row, most, self._at)

    # Looked at in steps that grow, as runs are short or very long.
    fit = (len(self._data) - self._at) // row.itemsize
    most = min(most, fit)
    step = min(most, FIRST_STEP)
    while True:
      rows = np.frombuffer(self._data, row, step, self._at)
      alike = np.ones(step, bool)
      for name in counters:
        alike &= rows[name] == rows[name][0]
      if not alike.all():
        return rows[: alike.argmin()]
      if step == most:
        return rows
      step = min(most, 16 * step)

  def _check(self, end: int) -> None:
    size = len(self._data)
    if end > size:
      detail = f"PLY of {size} bytes, at least {end} are announced: cut short"
      raise Refused("unreadable", detail)


class Runs(Sequence):
  """Lists that were read in runs of equal length."""

  def __init__(self, runs: Sequence[np.ndarray]):
    self.runs = runs
    lengths = list(map(len, runs))
    self._ends = np.cumsum([0, *lengths])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> np.ndarray:
    if not 0 <= index < len(self):
      raise IndexError(index)
    behind = np.searchsorted(self._ends, index, side="right")
    run = int(behind) - 1
    place = index - self._ends[run]
    return self.runs[run][place]
