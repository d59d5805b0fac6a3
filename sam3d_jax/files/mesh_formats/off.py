"""OFF: vertices and polygons as text, with the colours of either where stated."""

import dataclasses
import itertools
import pathlib
import re

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files import texts
from sam3d_jax.files.mesh_formats import polygons, surfaces
from sam3d_jax.files.mesh_formats.surfaces import GREY, Surfaces
from sam3d_jax.render.mesh import WHITE, Mesh

HEADER = re.compile(r"(ST)?(C)?(N)?(4)?(n)?OFF$")
BYTES_OF_A_LINE = 2  # the least that a vertex or face takes: counts beyond it are not true


@dataclasses.dataclass(frozen=True)
class _Vertices:
  """What stands on the line of a vertex, in this order."""

  homogeneous: bool = False  # a fourth number, by which the place is divided
  normal: bool = False
  colour: bool = False
  coordinates: bool = False  # of a texture, which the format does not name

  @property
  def colour_at(self) -> int:
    place = 4 if self.homogeneous else 3
    normal = 3 if self.normal else 0
    return place + normal


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of an .off file. Raises Refused (unreadable, unsupported)."""
  lines = _lines(data)
  layout = _header(lines)
  vertex_count, face_count = _counts(lines, len(data))
  end = vertex_count + face_count
  if len(lines) < end:
    announced = f"{vertex_count} vertices and {face_count} faces"
    raise Refused("unreadable", f"OFF of {announced} has {len(lines)} lines: cut short")
  vertices, colours = _vertices(lines[:vertex_count], layout)
  faces, painted = _faces(lines[vertex_count:end])

  # Polygons, cut into triangles.
  rows = [row for row, face in enumerate(faces) if len(face) >= 3]
  outlines = [faces[row] for row in rows]
  named = np.fromiter(itertools.chain.from_iterable(outlines), np.int64)
  surfaces.check_faces(named, len(vertices), "OFF")
  if named.size == 3 * len(outlines):
    # no polygon has fewer: these are triangles alone
    triangles = named.reshape(-1, 3)
    owner = np.arange(len(outlines))
  else:
    triangles, owner = polygons.triangulate_with_owners(outlines, vertices)
  mesh = Mesh(vertices, triangles)
  dropped = surfaces.drawings_dropped(len(faces) - len(rows))

  # Colours of vertices, else of faces, else grey.
  if not appearance:
    return Surfaces(mesh, tuple(dropped))
  if not len(triangles) or colours is not None:
    mesh = dataclasses.replace(mesh, colours=colours)
  if len(triangles):
    stated = [painted[row] for row in rows]
    mesh = _dressed(mesh, stated, owner)
  return Surfaces(mesh, tuple(dropped))


def _lines(data: bytes) -> list[str]:
  """Lines that say something, without comments."""
  lines = texts.decode(data).splitlines()
  if b"#" in data:
    lines = [line.partition("#")[0] for line in lines]
  stripped = map(str.strip, lines)
  return [line for line in stripped if line]


def _header(lines: list[str]) -> _Vertices:
  """Takes the header off; what it says of vertices."""
  if not lines:
    raise Refused("unreadable", "OFF without a line")
  word, *rest = lines[0].split()
  match = HEADER.match(word)
  if match is None:
    # the header is optional
    is_number = word.lstrip("-").isdigit()
    if not is_number:
      raise Refused("unreadable", f"OFF that begins with {lines[0][:20]!r}")
    return _Vertices()
  if rest[:1] == ["BINARY"]:
    raise Refused("unsupported", "binary OFF; text is read")
  coordinates, colour, normal, homogeneous, dimension = map(bool, match.groups())
  if dimension:
    raise Refused("unsupported", f"{word}; vertices of three dimensions are read")
  # the counts may follow on the same line
  lines[0:1] = [" ".join(rest)] if rest else []
  return _Vertices(homogeneous, normal, colour, coordinates)


def _counts(lines: list[str], size: int) -> tuple[int, int]:
  """Takes the line of counts off: vertices and faces."""
  if not lines:
    raise Refused("unreadable", "OFF without counts")
  words = lines.pop(0).split()
  if len(words) < 2:
    raise Refused("unreadable", f"OFF: counts {words}")
  # a third number, of edges, says nothing
  vertices = int(words[0])
  faces = int(words[1])
  least = BYTES_OF_A_LINE * (vertices + faces)
  if min(vertices, faces) < 0 or least > size:
    announced = f"{vertices} vertices, {faces} faces"
    raise Refused("unreadable", f"OFF of {size} bytes announces {announced}")
  return vertices, faces


def _vertices(lines: list[str], layout: _Vertices) -> tuple[np.ndarray, np.ndarray | None]:
  """(V, 3) places and (V, 3) linear colours."""
  rows = [line.split() for line in lines]
  width = 3 + layout.homogeneous
  for row in rows:
    if len(row) < width:
      raise Refused("unreadable", f"OFF: a vertex with less than {width} numbers")

  # The place is what every line begins with.
  placing = [word for row in rows for word in row[:width]]
  numbers = np.fromiter(map(float, placing), np.float64, len(placing))
  table = numbers.reshape(-1, width)
  places = table[:, :3]
  if layout.homogeneous:
    places = places / table[:, 3:]

  # Colours lie behind normals and before coordinates.
  if not layout.colour or not rows:
    return places, None
  end = -2 if layout.coordinates else None
  stated = [row[layout.colour_at : end] for row in rows]
  return places, _colours(stated)


def _faces(lines: list[str]) -> tuple[list[list[int]], list[list[str]]]:
  """Corners of every face, and what is said of its colour."""
  faces, painted = [], []
  for line in lines:
    words = line.split()
    end = 1 + int(words[0])
    if end < 2 or len(words) < end:
      raise Refused("unreadable", f"OFF: a face of {end - 1} corners names {len(words) - 1}")
    faces.append(list(map(int, words[1:end])))
    painted.append(words[end:])
  return faces, painted


def _dressed(mesh: Mesh, painted: list[list[str]], owner: np.ndarray) -> Mesh:
  """With the colours of its vertices, else of its faces, else grey."""
  if mesh.colours is not None:
    return surfaces.in_one(mesh, WHITE)
  # a single number is a place in a table that the file does not hold
  are_coloured = all(len(words) >= 3 for words in painted)
  if not are_coloured:
    return surfaces.in_one(mesh, GREY)
  colours = _colours(painted)
  return surfaces.in_one(surfaces.corners_apart(mesh, colours[owner]), WHITE)


def _colours(stated: list[list[str]]) -> np.ndarray:
  """Linear (N, 3) of colours as whole numbers of 255 or fractions."""
  words = [row[:3] for row in stated]
  rgb = np.array([list(map(float, row)) for row in words])
  is_fraction = any("." in word for row in words for word in row)
  if is_fraction:
    return surfaces.linear_of(rgb)
  return surfaces.linear_of(rgb, 255.0)
