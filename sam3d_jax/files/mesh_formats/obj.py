"""OBJ: polygons of any number of corners, indices from either end, colours of vertices, materials.

Vertices of a shape without texture coordinates stay as the file has them; else every pair of vertex
and coordinates that faces use is one.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import pathlib
import re

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files import texts
from sam3d_jax.files.mesh_formats import alpha, beside, mtl, polygons, surfaces
from sam3d_jax.files.mesh_formats.surfaces import GREY, Surfaces
from sam3d_jax.render.mesh import WHITE, Mesh

SHOWN_NAMES = 20  # of materials that are not there
NO_SURFACES = ("p", "l", "curv", "curv2", "surf")  # points, lines and free forms


@dataclasses.dataclass
class _Statements:
  """The statements of a file, sorted."""

  vertices: list[str] = dataclasses.field(default_factory=list)
  coordinates: list[str] = dataclasses.field(default_factory=list)
  faces: list[list[str]] = dataclasses.field(default_factory=list)  # "v/vt/vn" of every corner
  slots: list[int] = dataclasses.field(default_factory=list)  # of every face, into `materials`
  materials: list[str | None] = dataclasses.field(default_factory=lambda: [None])
  libraries: list[str] = dataclasses.field(default_factory=list)
  others: int = 0  # drawings that are no faces


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of an .obj file. Raises Refused (unreadable, missing_texture)."""
  said = _sorted(data)
  vertices, colours = _vertices(said.vertices)
  pairs, corners = _corners(said.faces, len(vertices), len(said.coordinates))
  owner, faces = _triangles(said.faces, corners, vertices[pairs[:, 0]])
  dropped = surfaces.drawings_dropped(said.others)

  # Points alone make a cloud.
  if not len(faces):
    shown = colours if appearance else None
    return Surfaces(Mesh(vertices, faces, shown), tuple(dropped))

  # Vertices as they are used: with their coordinates, where there are any.
  mapped = pairs[:, 1] >= 0
  if mapped.any():
    uv = _coordinates(said.coordinates, pairs[:, 1])
    vertices = vertices[pairs[:, 0]]
    if colours is not None:
      colours = colours[pairs[:, 0]]
    mesh = Mesh(vertices, faces, colours, uv)
  else:
    mesh = Mesh(vertices, pairs[faces, 0], colours)
    mapped = np.zeros(len(vertices), bool)

  # Materials of each face.
  library, missing = _library(path, said)
  dresser = _Dresser(path.name, library, appearance)
  slots = np.array(said.slots, np.int32)[owner]
  mesh = dresser.dressed(mesh, mapped, slots, said.materials)
  if appearance and missing:
    dropped.append(f"materials of {', '.join(missing)}, which is not there")
  dropped += dresser.dropped(bool(library))
  return Surfaces(mesh, tuple(dropped))


# --- Statements -----------------------------------------------------------------------------------


def _sorted(data: bytes) -> _Statements:
  """The statements of a file. Raises Refused for an index that points before the first element."""
  text = texts.decode(data)
  if "\0" in text:
    raise Refused("unreadable", "OBJ with bytes that are no text")
  if "\\\n" in text or "\\\r\n" in text:
    # a line that ends with a backslash goes on in the next
    text = re.sub(r"\\\r?\n", " ", text)
  said = _Statements()
  slot = 0
  slots = {None: 0}
  for line in text.splitlines():
    # The two statements that a file is full of, then all others in every spelling.
    if line.startswith("v "):
      said.vertices.append(line[2:])
      continue
    if line.startswith("f "):
      keyword = "f"
      rest = line[2:]
    else:
      keyword, rest = _split(line)

    if keyword in ("f", "fo"):
      corners = rest.split()
      if "-" in rest or "#" in rest:
        corners = _plain_spelling(rest, said)
      if len(corners) < 3:
        said.others += 1
      else:
        said.faces.append(corners)
        said.slots.append(slot)
    elif keyword == "v":
      said.vertices.append(rest)
    elif keyword == "vt":
      said.coordinates.append(rest)
    elif keyword == "usemtl":
      name = rest.strip()
      slot = slots.setdefault(name, len(slots))
      if slot == len(said.materials):
        said.materials.append(name)
    elif keyword == "mtllib":
      said.libraries.append(mtl.uncommented(rest))
    elif keyword in NO_SURFACES:
      said.others += 1
  return said


def _split(line: str) -> tuple[str, str]:
  """Keyword and rest of a line; neither of a comment or a blank line."""
  words = line.split(None, 1)
  if not words or words[0].startswith("#"):
    return "", ""
  rest = words[1] if len(words) > 1 else ""
  return words[0], rest


def _plain_spelling(rest: str, said: _Statements) -> list[str]:
  """Corners of a face without a comment behind them and with indices from the first element on."""
  corners = rest.partition("#")[0].split()
  return [_from_the_front(corner, said) for corner in corners]


def _from_the_front(corner: str, said: _Statements) -> str:
  """A corner with indices that count back from the latest element, counted from the first."""
  parts = corner.split("/")
  # of normals nothing is used
  counts = (len(said.vertices), len(said.coordinates))
  for place, count in enumerate(counts[: len(parts)]):
    if not parts[place].startswith("-"):
      continue
    index = count + 1 + int(parts[place])
    if index < 1:
      raise Refused("unreadable", f"a face names {corner!r}, there are {count} so far")
    parts[place] = str(index)
  return "/".join(parts)


def _table(rows: list[str]) -> list[list[float]] | np.ndarray:
  """Numbers of every row: an array if all have as many."""
  if not rows:
    return np.zeros((0, 3))
  if any("#" in row for row in rows):
    rows = [row.partition("#")[0] for row in rows]

  # By far the usual case: rows of one length.
  words = [row.split() for row in rows]
  width = len(words[0])
  if all(len(row) == width for row in words):
    in_a_row = itertools.chain.from_iterable(words)
    numbers = map(float, in_a_row)
    flat = np.fromiter(numbers, np.float64, width * len(rows))
    return flat.reshape(-1, width)
  return [list(map(float, row)) for row in words]


def _vertices(rows: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
  """(V, 3) places and (V, 3) linear colours: x y z, x y z w, x y z r g b, x y z w r g b."""
  # Places.
  table = _table(rows)
  if isinstance(table, np.ndarray):
    shortest = table.shape[1]
    places = table[:, :3]
  else:
    shortest = min(map(len, table))
    places = np.array([row[:3] for row in table])
  if shortest < 3:
    raise Refused("unreadable", f"a vertex of {shortest} numbers")

  # Colours of some vertices alone are none: it is not known what the others look like.
  if shortest < 6:
    return places, None
  if isinstance(table, np.ndarray):
    start = _colours_start(shortest)
    colours = table[:, start : start + 3]
  else:
    colours = np.array([_colour(row) for row in table])
  return places, surfaces.linear_of(colours)


def _colours_start(width: int) -> int:
  """Where the colours of a vertex begin: behind its place, or behind a weight that follows that."""
  return 3 if width == 6 else 4


def _colour(row: list[float]) -> list[float]:
  start = _colours_start(len(row))
  return row[start : start + 3]


def _coordinates(rows: list[str], chosen: np.ndarray) -> np.ndarray:
  """(V, 2) float32 of the chosen lines, 0 where none is chosen (-1)."""
  table = _table(rows)
  if not isinstance(table, np.ndarray):
    table = np.array([(row + [0.0, 0.0])[:2] for row in table])
  if table.shape[1] < 2:
    # one coordinate: the other is 0
    zeros = np.zeros((len(table), 1))
    table = np.concatenate([table, zeros], axis=1)
  stated = surfaces.clipped_uv(table[:, :2])
  uv = stated[chosen]
  uv[chosen < 0] = 0
  return uv


# --- Faces ----------------------------------------------------------------------------------------


def _corners(
  faces: list[list[str]], vertex_count: int, coordinate_count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Distinct pairs (P, 2) of vertex and coordinates (-1: none), and of every corner its pair.

  Raises Refused (unreadable) for indices of what does not exist.
  """
  words = list(itertools.chain.from_iterable(faces))
  plain = _plain_corners(words, vertex_count)
  if plain is not None:
    return plain

  # Each spelling is parsed once.
  spelled: dict[str, int] = {}
  places = [spelled.setdefault(word, len(spelled)) for word in words]
  # Each pair of vertex and coordinates is one, whatever their normals are.
  pairs: dict[tuple[int, int], int] = {}
  pair_of = []
  for word in spelled:
    pair = _pair(word, vertex_count, coordinate_count)
    number = pairs.setdefault(pair, len(pairs))
    pair_of.append(number)
  distinct = np.array(list(pairs), np.int64)
  corners = np.array(pair_of, np.int64)[places]
  return distinct.reshape(-1, 2), corners


def _plain_corners(words: list[str], vertex_count: int) -> tuple[np.ndarray, np.ndarray] | None:
  """As `_corners` gives, of faces that name vertices alone; None if one names more."""
  try:
    numbers = np.fromiter(map(int, words), np.int64, len(words))
  except ValueError:
    return None
  corners = numbers - 1
  surfaces.check_faces(corners, vertex_count, "OBJ", first=1)
  vertices = np.arange(vertex_count)
  nothing = np.full_like(vertices, -1)
  return np.stack([vertices, nothing], axis=1), corners


def _pair(word: str, vertex_count: int, coordinate_count: int) -> tuple[int, int]:
  """Vertex and coordinates (-1: none) of a corner, counted from 0."""
  vertex, _, others = word.partition("/")
  number = int(vertex)
  if not 1 <= number <= vertex_count:
    raise Refused("unreadable", f"a face names vertex {number} of {vertex_count}")
  coordinates = others.partition("/")[0]
  if not coordinates:
    return number - 1, -1
  place = int(coordinates)
  if not 1 <= place <= coordinate_count:
    raise Refused("unreadable", f"a face names coordinates {place} of {coordinate_count}")
  return number - 1, place - 1


def _triangles(
  faces: list[list[str]], corners: np.ndarray, places_P3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The face (F,) that each triangle is part of, and the triangles (F, 3) of pairs."""
  count = len(faces)
  lengths = np.fromiter(map(len, faces), np.int64, count)
  if (lengths == 3).all():
    triangles = corners.reshape(-1, 3)
    return np.arange(count), triangles
  ends = np.cumsum(lengths)
  outlines = np.split(corners, ends[:-1])
  cut, owner = polygons.triangulate_with_owners(outlines, places_P3)
  return owner, cut


# --- Appearance -----------------------------------------------------------------------------------


def _library(path: pathlib.Path, said: _Statements) -> tuple[dict[str, mtl.Entry], list[str]]:
  """Materials of all libraries by name, and the libraries that are not there."""
  entries: dict[str, mtl.Entry] = {}
  missing = []
  for statement in said.libraries:
    for name in _library_names(path.parent, statement):
      found = beside.find(path.parent, name)
      if found is None:
        missing.append(name)
      else:
        entries |= mtl.read(found, path.parent)
  return entries, missing


def _library_names(folder: pathlib.Path, statement: str) -> list[str]:
  """The files of a statement: one name, which may have spaces in it, or several."""
  whole = statement.strip().strip('"')
  if not whole:
    return []
  if beside.find(folder, whole) is not None:
    return [whole]
  names = re.findall(r"\S.*?\.mtl(?=\s|$)", whole, re.IGNORECASE)
  return names or [whole]


class _Dresser:
  """Gives faces their materials, and counts what of these comes to nothing."""

  def __init__(self, of: str, library: dict[str, mtl.Entry], appearance: bool):
    self._of = of  # the mesh's file
    self._library = library
    self._appearance = appearance
    self._pictures = mtl.Pictures()
    # of materials that differ in case alone the first counts
    self._folded: dict[str, mtl.Entry] = {}
    for name, entry in library.items():
      self._folded.setdefault(name.casefold(), entry)
    self._invisible = 0
    self._unmapped = 0
    self._unknown: list[str] = []

  def dressed(
    self, mesh: Mesh, mapped_V: np.ndarray, slots_F: np.ndarray, names: list[str | None]
  ) -> Mesh:
    """The mesh with its materials, in the order in which the file names them.

    mapped_V: which vertices have texture coordinates. slots_F: numbers of `names`.
    """
    longest = surfaces.longest_side(mesh.vertices)
    parts = []
    for number, faces in _by_slot(mesh.faces, slots_F):
      # most meshes have one part, which keeps all of their vertices
      part = mesh
      used = slice(None)
      if len(faces) < len(mesh.faces):
        part, used = surfaces.part_of(mesh, faces)

      # how it looks, and what is left of it
      entry = self._entry(names[number])
      is_mapped = bool(mapped_V[used].any())
      part, cut = self._with_material(part, entry, is_mapped)
      if cut is not None:
        part, invisible = alpha.apply(part, cut, longest)
        self._invisible += invisible
      if not self._appearance:
        part = Mesh(part.vertices, part.faces)
      parts.append(part)
    return surfaces.together(parts)

  def dropped(self, has_library: bool) -> list[str]:
    """What came to nothing, in words."""
    found = surfaces.faces_dropped(self._invisible)
    found += surfaces.textures_dropped(self._unmapped)
    if has_library and self._unknown:
      named = ", ".join(self._unknown[:SHOWN_NAMES])
      more = len(self._unknown) - SHOWN_NAMES
      rest = f" and {more} more" if more > 0 else ""
      found.append(f"materials that no library has: {named}{rest}")
    return found

  def _entry(self, name: str | None) -> mtl.Entry | None:
    """The material that a name means: as it is spelled, else in any case, else less a comment."""
    if name is None:
      return None
    spellings = (name, mtl.uncommented(name))
    for spelling in spellings:
      if spelling in self._library:
        return self._library[spelling]
    for spelling in spellings:
      if spelling.casefold() in self._folded:
        return self._folded[spelling.casefold()]
    self._unknown.append(name)
    return None

  def _with_material(
    self, part: Mesh, entry: mtl.Entry | None, mapped: bool
  ) -> tuple[Mesh, alpha.Cut | None]:
    """A part with its material, and what opacity cuts away of it."""
    colours = part.colours
    uv = part.uv
    cut = None
    if entry is None:
      look = GREY if colours is None else WHITE
    else:
      if not self._appearance:
        # only what cuts surface away is needed
        entry = dataclasses.replace(entry, picture=None)
      look, placing, cutout = mtl.material(entry, self._pictures, of=self._of)
      has_pictures = look.texture is not None or cutout is not None
      if has_pictures and not mapped:
        # there, but nothing says where on the surface it lies
        self._unmapped += 1
        look = mtl.without_pictures(entry)
        cutout = None
      if look.texture is not None:
        # a picture says it all
        colours = None
      elif colours is not None:
        look = dataclasses.replace(look, colour=WHITE.colour)
      if uv is not None:
        uv = placing.applied(uv)
      if cutout is not None:
        cut = alpha.Cut(cutout, None)
    dressed = Mesh(part.vertices, part.faces, colours, uv)
    return surfaces.in_one(dressed, look), cut


def _by_slot(faces_F3: np.ndarray, slots_F: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Every slot in use, in order, with its faces in theirs."""
  order = np.argsort(slots_F, kind="stable")
  ordered = slots_F[order]
  slots, first = np.unique(ordered, return_index=True)
  faces = faces_F3[order]
  groups = np.split(faces, first[1:])
  yield from zip(slots.tolist(), groups, strict=True)
