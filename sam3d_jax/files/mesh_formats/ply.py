"""PLY, text and binary of either byte order: polygons, strips, points, colours, textures.

A texture is named in a comment ("TextureFile skin.png"), several by as many; coordinates belong to
vertices (s t, u v, texture_u texture_v) or to the corners of faces (texcoord, with texnumber).
"""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import beside, gltf_primitives, polygons, textures
from sam3d_jax.files.mesh_formats.surfaces import (
  GREY,
  MAX_UV,
  Surfaces,
  check_faces,
  corners_apart,
  linear_of,
  text_of,
  together,
)
from sam3d_jax.render.mesh import WHITE, Material, Mesh

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
COLOURS = (
  ("red", "green", "blue"),
  ("r", "g", "b"),
  ("diffuse_red", "diffuse_green", "diffuse_blue"),
)
COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))
CORNERS = ("vertex_indices", "vertex_index")


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

  def type_of(self, name: str) -> str:
    return next(p.type for p in self.properties if p.name == name)


# Columns of an element by name: an array of single values, a list of arrays for lists.
Columns = dict[str, np.ndarray | Sequence[np.ndarray]]


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of a .ply file. Raises Refused (unreadable, missing_texture)."""
  order, elements, pictures, start = _header(data)
  tables = _Text(data[start:]) if not order else _Binary(data, start, order)
  found: dict[str, tuple[Element, Columns]] = {}
  for element in elements:
    found[element.name] = element, tables.read(element)
  if "vertex" not in found:
    raise Refused("unreadable", "PLY without vertices")
  vertex, columns = found["vertex"]
  vertices = np.stack([_column(columns, axis) for axis in "xyz"], 1).astype(np.float64)
  faces, owner, corner = _faces(found, vertices)
  mesh = Mesh(vertices, faces)
  if not appearance:
    return Surfaces(mesh, _dropped(found, faces, owner))
  if not len(faces):
    colours = _colours(vertex, columns)
    return Surfaces(Mesh(vertices, faces, colours), _dropped(found, faces, owner))
  named = [beside.needed(path.parent, name, of=path.name) for name in pictures]
  dressed = _dressed(mesh, found, owner, corner, named)
  return Surfaces(together([dressed]), _dropped(found, faces, owner))


# --- Header ---------------------------------------------------------------------------------------


def _header(data: bytes) -> tuple[str, list[Element], list[str], int]:
  """Byte order ("" for text), elements, names of textures, and where the tables begin."""
  end = data.find(b"end_header", 0, MAX_HEADER)
  if not data.startswith(b"ply") or end < 0:
    raise Refused("unreadable", "no PLY header")
  start = end + len(b"end_header")
  # the line ends as the system that wrote it ends lines
  start += 2 if data[start : start + 2] == b"\r\n" else 1
  order, elements, pictures = None, [], []
  header = text_of(data[:end]).replace("\r", "\n")
  for line in header.split("\n"):
    words = line.split()
    keyword = words[0] if words else ""
    if keyword == "format":
      if words[1] not in FORMATS:
        raise Refused("unreadable", f"PLY in format {words[1]!r}")
      order = FORMATS[words[1]]
    elif keyword == "comment" and len(words) > 2 and words[1].lower() == "texturefile":
      pictures.append(line.split(None, 2)[2].strip().strip('"'))
    elif keyword == "element":
      count = int(words[2])
      if count < 0 or count > len(data):
        raise Refused("unreadable", f"PLY of {len(data)} bytes announces {count} of {words[1]!r}")
      elements.append(Element(words[1], count, ()))
    elif keyword == "property":
      last = elements[-1]
      added = (*last.properties, _property(words))
      elements[-1] = dataclasses.replace(last, properties=added)
  if order is None:
    raise Refused("unreadable", "PLY without a format")
  return order, elements, pictures, start


def _property(words: Sequence[str]) -> Property:
  if words[1] == "list":
    return Property(words[4], TYPES[words[3]], TYPES[words[2]])
  return Property(words[2], TYPES[words[1]])


# --- Tables ---------------------------------------------------------------------------------------


class _Text:
  """The tables of a text file, read one after another."""

  def __init__(self, body: bytes):
    words = body.split()
    self._numbers = np.fromiter(map(float, words), np.float64, len(words))
    self._at = 0

  def read(self, element: Element) -> Columns:
    single = all(p.length_type is None for p in element.properties)
    if single:
      width = len(element.properties)
      table = self._take(element.count * width).reshape(element.count, width)
      return {p.name: table[:, i] for i, p in enumerate(element.properties)}
    columns: Columns = {p.name: [] for p in element.properties}
    for _ in range(element.count):
      for p in element.properties:
        length = 1 if p.length_type is None else int(self._take(1)[0])
        columns[p.name].append(self._take(length))
    for p in element.properties:
      if p.length_type is None:
        columns[p.name] = np.array(columns[p.name]).reshape(-1)
    return columns

  def _take(self, count: int) -> np.ndarray:
    taken = self._numbers[self._at : self._at + count]
    if count < 0 or len(taken) < count:
      raise Refused("unreadable", f"PLY of {len(self._numbers)} numbers is cut short")
    self._at += count
    return taken


class _Binary:
  """The tables of a binary file, read one after another."""

  def __init__(self, data: bytes, start: int, order: str):
    self._data, self._at, self._order = data, start, order

  def read(self, element: Element) -> Columns:
    """Rows with lists of the same lengths are read together, run by run."""
    parts: dict[str, list[np.ndarray]] = {p.name: [] for p in element.properties}
    done = 0
    while done < element.count:
      row = self._row_type(element)
      run = self._run(row, element.count - done)
      for p in element.properties:
        parts[p.name].append(run[p.name])
      done += len(run)
      self._at += len(run) * row.itemsize
    columns: Columns = {}
    for p in element.properties:
      if p.length_type is None:
        columns[p.name] = np.concatenate(parts[p.name] or [np.zeros(0)])
      else:
        columns[p.name] = _Runs(parts[p.name])
    return columns

  def _row_type(self, element: Element) -> np.dtype:
    """The type of the row that comes next, with its lists' lengths."""
    fields, at = [], self._at
    for i, p in enumerate(element.properties):
      item = np.dtype(self._order + p.type)
      if p.length_type is None:
        fields.append((p.name, item))
        at += item.itemsize
        continue
      counter = np.dtype(self._order + p.length_type)
      self._check(at + counter.itemsize)
      length = int(np.frombuffer(self._data, counter, 1, at)[0])
      at += counter.itemsize + length * item.itemsize
      if length < 0:
        raise Refused("unreadable", f"PLY: a list of {length} in {element.name!r}")
      self._check(at)
      fields.append((f"{i} length", counter))
      fields.append((p.name, item, (length,)))
    self._check(at)
    return np.dtype(fields)

  def _run(self, row: np.dtype, most: int) -> np.ndarray:
    """The rows from here on whose lists are as long as those of the first."""
    counters = [name for name in row.names if name.endswith(" length")]
    looked_at = most if not counters else min(most, 64)
    while True:
      fit = (len(self._data) - self._at) // max(row.itemsize, 1)
      if not counters and fit < most:
        self._check(self._at + most * row.itemsize)
      rows = np.frombuffer(self._data, row, min(looked_at, fit), self._at)
      alike = np.ones(len(rows), bool)
      for name in counters:
        alike &= rows[name] == rows[name][0]
      length = len(rows) if alike.all() else int(alike.argmin())
      if length < len(rows) or len(rows) < looked_at or looked_at == most:
        return rows[:length]
      looked_at = min(most, 16 * looked_at)

  def _check(self, end: int) -> None:
    if end > len(self._data):
      detail = f"PLY of {len(self._data)} bytes, at least {end} are announced: cut short"
      raise Refused("unreadable", detail)


class _Runs(Sequence):
  """Lists that were read in runs of equal length."""

  def __init__(self, runs: Sequence[np.ndarray]):
    self.runs = runs
    self._ends = np.cumsum([len(run) for run in runs])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> np.ndarray:
    if not 0 <= index < len(self):
      raise IndexError(index)
    run = int(np.searchsorted(self._ends, index, side="right"))
    first = int(self._ends[run - 1]) if run else 0
    return self.runs[run][index - first]


def _column(columns: Columns, name: str) -> np.ndarray:
  if name not in columns:
    raise Refused("unreadable", f"PLY: vertices without {name!r}")
  return columns[name]


# --- Surfaces -------------------------------------------------------------------------------------


def _faces(
  found: dict[str, tuple[Element, Columns]], vertices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """(F, 3) triangles, the row (F,) of the face that each is part of, and their corners' places.

  Places (F, 3) count the corners of all faces in the order of the file. Of strips rows are -1, and
  there are no places.
  """
  if "face" in found:
    columns = found["face"][1]
    name = next((name for name in CORNERS if name in columns), None)
    if name is None:
      raise Refused("unreadable", "PLY: faces without vertex_indices")
    return _polygons(columns[name], vertices)
  if "tristrips" in found:
    columns = found["tristrips"][1]
    name = next((name for name in CORNERS if name in columns), None)
    faces = [_strips(strip) for strip in columns.get(name, ())]
    joined = np.concatenate([*faces, np.zeros((0, 3), np.int64)])
    check_faces(joined, len(vertices), "PLY")
    return joined, np.full(len(joined), -1), None
  return np.zeros((0, 3), np.int64), np.zeros(0, np.int64), None


def _polygons(
  lists: Sequence[np.ndarray], vertices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  # by far the usual case: triangles alone
  runs = lists.runs if isinstance(lists, _Runs) else None
  if runs is not None and all(run.shape[1] == 3 for run in runs):
    joined = [np.zeros((0, 3), np.int64), *(run.astype(np.int64) for run in runs)]
    faces = np.concatenate(joined)
    check_faces(faces, len(vertices), "PLY")
    return faces, np.arange(len(faces)), np.arange(faces.size).reshape(-1, 3)

  # Corners of all faces in a row; polygons are cut as lists of places in it.
  lengths = np.array([len(row) for row in lists], np.int64)
  named = np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64)
  check_faces(named[:, None], len(vertices), "PLY")
  first = np.cumsum(lengths) - lengths
  rows = np.flatnonzero(lengths >= 3)
  kept = [range(first[row], first[row] + lengths[row]) for row in rows]
  corner, owner = polygons.triangulate_with_owners(kept, vertices[named])
  return named[corner], rows[owner], corner


def _strips(strip: np.ndarray) -> np.ndarray:
  """Triangles of strips one behind another, -1 between them."""
  indices = np.asarray(strip, np.int64)
  faces = [np.zeros((0, 3), np.int64)]
  for part in np.split(indices, np.flatnonzero(indices == -1)):
    inside = part[part >= 0]
    faces.append(gltf_primitives.triangles(inside, gltf_primitives.STRIP))
  return np.concatenate(faces)


def _dropped(
  found: dict[str, tuple[Element, Columns]], faces: np.ndarray, owner: np.ndarray
) -> tuple[str, ...]:
  """Faces of less than three corners, and edges."""
  others = found["edge"][0].count if "edge" in found else 0
  if "face" in found:
    others += found["face"][0].count - len(np.unique(owner))
  return (f"{others} drawings that are neither triangles nor points",) if others else ()


# --- Appearance -----------------------------------------------------------------------------------


def _colours(element: Element, columns: Columns) -> np.ndarray | None:
  """(N, 3) linear colours of vertices or faces; None if they have none."""
  for names in COLOURS:
    if not all(name in columns for name in names):
      continue
    type = element.type_of(names[0])
    # bytes and 16 bits are fractions of their range; wider types say nothing of it
    largest = float(np.iinfo(type).max) if type in ("u1", "u2") else None
    values = np.stack([np.asarray(columns[name], np.float64) for name in names], 1)
    return linear_of(values, largest)
  return None


def _dressed(
  mesh: Mesh,
  found: dict[str, tuple[Element, Columns]],
  owner: np.ndarray,
  corner: np.ndarray | None,
  pictures: Sequence[pathlib.Path],
) -> Mesh:
  """With colours of vertices or faces and with textures; grey where neither is stated."""
  vertex, columns = found["vertex"]
  colours = _colours(vertex, columns)
  mesh = dataclasses.replace(mesh, colours=colours, uv=_vertex_uv(columns))
  if "face" in found:
    mesh = _with_face_colours(mesh, *found["face"], owner)
    mesh = _with_corner_uv(mesh, found["face"][1], corner)
  plain = WHITE if mesh.colours is not None else GREY
  material = np.zeros(len(mesh.faces), np.int32)
  materials = (plain,)
  if pictures and mesh.uv is not None:
    decoded = [textures.decode(path.read_bytes(), path.name) for path in pictures]
    materials = tuple(Material((1.0, 1.0, 1.0), picture.rgb_HW3) for picture in decoded)
    material = _numbers(found, owner, len(materials))
  else:
    mesh = dataclasses.replace(mesh, uv=None)
  return dataclasses.replace(mesh, material=material, materials=materials).with_appearance()


def _with_face_colours(mesh: Mesh, element: Element, columns: Columns, owner: np.ndarray) -> Mesh:
  """Colours of faces count where vertices have none."""
  colours = _colours(element, columns)
  if colours is None or mesh.colours is not None:
    return mesh
  return corners_apart(mesh, colours[owner])


def _vertex_uv(columns: Columns) -> np.ndarray | None:
  for names in COORDINATES:
    if all(name in columns for name in names):
      stated = np.stack([np.asarray(columns[name], np.float32) for name in names], 1)
      return np.clip(np.nan_to_num(stated), -MAX_UV, MAX_UV)
  return None


def _with_corner_uv(mesh: Mesh, columns: Columns, corner: np.ndarray) -> Mesh:
  """Texture coordinates of faces' corners, if the file has them: vertices are split for them."""
  if "texcoord" not in columns:
    return mesh
  lists = columns["texcoord"]
  name = next(name for name in CORNERS if name in columns)
  lengths = np.array([len(row) for row in columns[name]])
  stated = np.array([len(row) for row in lists])
  if not stated.any():
    return mesh
  if (stated != 2 * lengths).any():
    raise Refused("unreadable", "PLY: texcoord that are not two for each corner of every face")
  uv = np.concatenate([np.asarray(row, np.float32) for row in lists]).reshape(-1, 2)
  uv = np.clip(np.nan_to_num(uv), -MAX_UV, MAX_UV)
  used = mesh.faces.reshape(-1)
  colours = None if mesh.colours is None else mesh.colours[used]
  faces = np.arange(len(used)).reshape(-1, 3)
  return Mesh(mesh.vertices[used], faces, colours, uv[corner.reshape(-1)])


def _numbers(
  found: dict[str, tuple[Element, Columns]], owner: np.ndarray, count: int
) -> np.ndarray:
  """(F,) int32: which texture each triangle has."""
  columns = found["face"][1] if "face" in found else {}
  if "texnumber" not in columns:
    return np.zeros(len(owner), np.int32)
  number = np.asarray(columns["texnumber"], np.int64)[owner]
  if number.min() < 0 or number.max() >= count:
    raise Refused("unreadable", f"PLY: texture {number.max()} of {count}")
  return number.astype(np.int32)
