"""OBJ: polygons of any number of corners, indices from either end, colours of vertices, materials.

Vertices of a shape without texture coordinates stay as the file has them; else every pair of vertex
and coordinates that faces use is one.
"""

import dataclasses
import itertools
import pathlib
import re

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import alpha, beside, mtl, polygons
from sam3d_jax.files.mesh_formats.surfaces import (
  GREY,
  MAX_UV,
  Surfaces,
  check_faces,
  linear_of,
  together,
)
from sam3d_jax.render.mesh import WHITE, Mesh

CURVED = ("curv", "curv2", "surf")  # free forms, which are no polygons


@dataclasses.dataclass
class _Lines:
  """The statements of a file, sorted."""

  vertices: list[str] = dataclasses.field(default_factory=list)
  coordinates: list[str] = dataclasses.field(default_factory=list)
  faces: list[list[str]] = dataclasses.field(default_factory=list)  # "v/vt/vn" of every corner
  slots: list[int] = dataclasses.field(default_factory=list)  # of every face, into `materials`
  materials: list[str | None] = dataclasses.field(default_factory=lambda: [None])
  libraries: list[str] = dataclasses.field(default_factory=list)
  others: int = 0  # points, lines and free forms


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of an .obj file. Raises Refused (unreadable, missing_texture)."""
  lines = _sorted(data)
  vertices, colours = _vertices(lines.vertices)
  pairs, corners = _corners(lines.faces, len(vertices), len(lines.coordinates))
  owner, faces = _triangles(lines.faces, corners, pairs, vertices)
  dropped = []
  if lines.others:
    dropped.append(f"{lines.others} drawings that are neither triangles nor points")

  # Points alone make a cloud.
  if not len(faces):
    cloud = Mesh(vertices, faces, colours if appearance else None)
    return Surfaces(cloud, tuple(dropped))

  # Vertices as they are used: with their coordinates, where there are any.
  uv = None
  if (pairs[:, 1] >= 0).any():
    uv = _coordinates(lines.coordinates, pairs[:, 1])
    vertices = vertices[pairs[:, 0]]
    colours = None if colours is None else colours[pairs[:, 0]]
  else:
    faces = pairs[faces, 0]
  mesh = Mesh(vertices, faces, colours, uv)
  slot = np.array(lines.slots, np.int32)[owner]
  library, missing = _library(path, lines)
  if appearance and missing:
    names = ", ".join(missing)
    dropped.append(f"materials of {names}, which is not there")
  mesh, cut = _dressed(mesh, slot, lines.materials, library, path.name, appearance)
  if cut:
    dropped.append(f"{cut} faces that alpha makes invisible")
  if not appearance:
    mesh = Mesh(mesh.vertices, mesh.faces)
  return Surfaces(mesh, tuple(dropped))


# --- Statements -----------------------------------------------------------------------------------


def _sorted(data: bytes) -> _Lines:
  """The statements of a file. Raises Refused for an index that points before the first element."""
  text = data.decode("utf-8-sig", errors="replace")
  if "\0" in text:
    raise Refused("unreadable", "OBJ with bytes that are no text")
  if "\\\n" in text or "\\\r\n" in text:
    # a line that ends with a backslash goes on in the next
    text = re.sub(r"\\\r?\n", " ", text)
  found = _Lines()
  slot, slots = 0, {None: 0}
  for line in text.splitlines():
    keyword, _, rest = line.partition(" ")
    if keyword not in KEYWORDS:
      # blanks before the keyword, tabs behind it, comments right behind a number
      words = line.split(None, 1)
      if not words or words[0].startswith("#"):
        continue
      keyword, rest = words[0], words[1] if len(words) > 1 else ""
    if keyword == "v":
      found.vertices.append(rest)
    elif keyword == "vt":
      found.coordinates.append(rest)
    elif keyword in ("f", "fo"):
      corners = rest.partition("#")[0].split()
      if "-" in rest:
        corners = [_from_the_front(corner, found) for corner in corners]
      if len(corners) < 3:
        found.others += 1
        continue
      found.faces.append(corners)
      found.slots.append(slot)
    elif keyword == "usemtl":
      name = rest.strip()
      slot = slots.setdefault(name, len(slots))
      if slot == len(found.materials):
        found.materials.append(name)
    elif keyword == "mtllib":
      found.libraries.append(mtl.uncommented(rest))
    elif keyword in ("p", "l", *CURVED):
      found.others += 1
  return found


KEYWORDS = frozenset(("v", "vt", "vn", "f"))


def _from_the_front(corner: str, found: _Lines) -> str:
  """A corner with indices that count back from the latest element, counted from the first."""
  counts = (len(found.vertices), len(found.coordinates), 0)
  parts = corner.split("/")
  for place, count in enumerate(counts[: len(parts)]):
    if not parts[place].startswith("-"):
      continue
    index = count + 1 + int(parts[place])
    if index < 1 and place < 2:
      raise Refused("unreadable", f"a face names {corner!r}, there are {count} so far")
    parts[place] = str(index)
  return "/".join(parts)


def _table(rows: list[str]) -> list[list[float]] | np.ndarray:
  """Numbers of every row: an array if all have as many."""
  if not rows:
    return np.zeros((0, 3))
  if any("#" in row for row in rows):
    rows = [row.partition("#")[0] for row in rows]
  words = [row.split() for row in rows]
  width = len(words[0])
  if all(len(row) == width for row in words):
    numbers = map(float, itertools.chain.from_iterable(words))
    return np.fromiter(numbers, np.float64, width * len(rows)).reshape(-1, width)
  return [[float(word) for word in row] for row in words]


def _vertices(rows: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
  """(V, 3) places and (V, 3) linear colours: x y z, x y z w, x y z r g b, x y z w r g b."""
  table = _table(rows)
  if isinstance(table, np.ndarray):
    widths = np.full(len(table), table.shape[1])
  else:
    widths = np.array([len(row) for row in table])
  if len(widths) and widths.min() < 3:
    raise Refused("unreadable", f"a vertex of {widths.min()} numbers")
  if isinstance(table, np.ndarray):
    places, colours = table[:, :3], table[:, 3:6] if table.shape[1] == 6 else table[:, 4:7]
  else:
    places = np.array([row[:3] for row in table])
    colours = np.array([_colour(row) for row in table])
  # some vertices with colours are too few: it is not known what the others look like
  if not len(widths) or widths.min() < 6:
    return places, None
  return places, linear_of(colours)


def _colour(row: list[float]) -> list[float]:
  if len(row) < 6:
    return [1.0, 1.0, 1.0]
  return row[3:6] if len(row) == 6 else row[4:7]


def _coordinates(rows: list[str], chosen: np.ndarray) -> np.ndarray:
  """(V, 2) float32 of the chosen lines, 0 where none is chosen (-1)."""
  table = _table(rows)
  if not isinstance(table, np.ndarray):
    table = np.array([(row + [0.0, 0.0])[:2] for row in table])
  if table.shape[1] < 2:
    table = np.concatenate([table, np.zeros((len(table), 1))], 1)
  uv = np.clip(np.nan_to_num(table[:, :2].astype(np.float32)), -MAX_UV, MAX_UV)
  return np.where((chosen >= 0)[:, None], uv[chosen], np.float32(0))


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

  # Each spelling is parsed once, each pair of vertex and coordinates is one.
  spelled: dict[str, int] = {}
  places = [spelled.setdefault(word, len(spelled)) for word in words]
  pairs: dict[tuple[int, int], int] = {}
  pair_of = []
  for word in spelled:
    parts = word.split("/")
    vertex = int(parts[0]) - 1
    coordinate = int(parts[1]) - 1 if len(parts) > 1 and parts[1] else -1
    if not 0 <= vertex < vertex_count:
      raise Refused("unreadable", f"a face names vertex {vertex + 1} of {vertex_count}")
    stated = len(parts) > 1 and bool(parts[1])
    if stated and not 0 <= coordinate < coordinate_count:
      detail = f"a face names coordinates {coordinate + 1} of {coordinate_count}"
      raise Refused("unreadable", detail)
    pair_of.append(pairs.setdefault((vertex, coordinate), len(pairs)))
  distinct = np.array(list(pairs), np.int64).reshape(-1, 2)
  of_word = np.array(pair_of, np.int64)
  corners = of_word[np.array(places, np.int64)] if places else np.zeros(0, np.int64)
  return distinct, corners


def _plain_corners(words: list[str], vertex_count: int) -> tuple[np.ndarray, np.ndarray] | None:
  """As `_corners` gives, of faces that name vertices alone; None if one names more."""
  try:
    corners = np.fromiter(map(int, words), np.int64, len(words)) - 1
  except ValueError:
    return None
  check_faces(corners[:, None], vertex_count, "OBJ")
  vertices = np.arange(vertex_count)
  return np.stack([vertices, np.full_like(vertices, -1)], 1), corners


def _triangles(
  faces: list[list[str]], corners: np.ndarray, pairs: np.ndarray, vertices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The face (F,) that each triangle is part of, and the triangles (F, 3) of pairs."""
  lengths = np.fromiter(map(len, faces), np.int64, len(faces))
  if (lengths == 3).all():
    return np.arange(len(faces)), corners.reshape(-1, 3)
  ends = np.cumsum(lengths)
  lists = np.split(corners, ends[:-1])
  cut, owner = polygons.triangulate_with_owners(lists, vertices[pairs[:, 0]])
  return owner, cut


# --- Appearance -----------------------------------------------------------------------------------


def _library(path: pathlib.Path, lines: _Lines) -> tuple[dict[str, mtl.Entry], list[str]]:
  """Materials of all libraries by name, and the libraries that are not there."""
  entries: dict[str, mtl.Entry] = {}
  missing = []
  for statement in lines.libraries:
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


def _dressed(
  mesh: Mesh,
  slot: np.ndarray,
  names: list[str | None],
  library: dict[str, mtl.Entry],
  of: str,
  appearance: bool,
) -> tuple[Mesh, int]:
  """The mesh with its materials, in the order of their use, and how many faces opacity takes."""
  longest = float(np.ptp(mesh.vertices[np.isfinite(mesh.vertices).all(1)], axis=0).max(initial=0))
  parts, gone = [], 0
  used = np.unique(slot)
  for number in used:
    entry = _entry(library, names[number])
    if not appearance and (entry is None or entry.opacity is None):
      part, lost = _part(mesh, slot == number, len(used)), 0
      parts.append(Mesh(part.vertices, part.faces))
      continue
    part = _part(mesh, slot == number, len(used))
    if not appearance:
      entry = dataclasses.replace(entry, picture=None)
    part, lost = _with_material(part, entry, of)
    if lost is not None:
      part, lost = alpha.apply(part, lost, longest)
      gone += lost
    parts.append(part)
  return together(parts), gone


def _entry(library: dict[str, mtl.Entry], name: str | None) -> mtl.Entry | None:
  """The material that a name means: as it is spelled, else in any case, else without a comment."""
  if name is None:
    return None
  spellings = (name, mtl.uncommented(name))
  for spelling in spellings:
    if spelling in library:
      return library[spelling]
  for spelling in spellings:
    for known, entry in library.items():
      if known.casefold() == spelling.casefold():
        return entry
  return None


def _part(mesh: Mesh, faces: np.ndarray, parts: int) -> Mesh:
  """The chosen faces, with the vertices that they use; the mesh itself if it is the only part."""
  if parts == 1:
    return mesh
  used, corners = np.unique(mesh.faces[faces], return_inverse=True)
  colours = None if mesh.colours is None else mesh.colours[used]
  uv = None if mesh.uv is None else mesh.uv[used]
  return Mesh(mesh.vertices[used], corners.reshape(-1, 3), colours, uv)


def _with_material(part: Mesh, entry: mtl.Entry | None, of: str) -> tuple[Mesh, alpha.Cut | None]:
  """A part with its material, and what opacity cuts away of it."""
  cut = None
  colours, uv = part.colours, part.uv
  if entry is None and colours is None:
    look = GREY
  elif entry is None:
    look = WHITE
  else:
    look, placing, cutout = mtl.material(entry, of=of)
    if look.texture is not None:
      # the picture says it all
      colours = None
    elif colours is not None:
      look = dataclasses.replace(look, colour=WHITE.colour)
    if uv is not None and placing != mtl.Placing():
      uv = uv * np.float32(placing.scale) + np.float32(placing.offset)
    if cutout is not None and uv is not None:
      cut = alpha.Cut(cutout, None)
  material = np.zeros(len(part.faces), np.int32)
  dressed = Mesh(part.vertices, part.faces, colours, uv, material, (look,))
  return dressed.with_appearance(), cut
