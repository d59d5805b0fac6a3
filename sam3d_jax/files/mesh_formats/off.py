"""OFF: vertices and polygons as text, with colours and texture coordinates where stated."""

import itertools
import pathlib
import re

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import polygons
from sam3d_jax.files.mesh_formats.surfaces import (
  GREY,
  Surfaces,
  check_faces,
  corners_apart,
  linear_of,
  text_of,
  together,
)
from sam3d_jax.render.mesh import WHITE, Mesh

HEADER = re.compile(r"(ST)?(C)?(N)?(4)?(n)?OFF$")
BYTES_OF_A_LINE = 2  # the least that a vertex or face takes: counts beyond it are not true


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of an .off file. Raises Refused (unreadable, unsupported)."""
  lines = _lines(data)
  has_uv, has_colour, has_normal, homogeneous = _header(lines)
  vertex_count, face_count = _counts(lines, len(data))
  rows = lines[:vertex_count]
  corners = lines[vertex_count : vertex_count + face_count]
  if len(rows) < vertex_count or len(corners) < face_count:
    found = len(rows) + len(corners)
    raise Refused(
      "unreadable",
      f"OFF of {vertex_count} vertices and {face_count} faces has {found} lines: cut short",
    )

  # Vertices: place, then normal, colour and texture coordinates, as the header says.
  sizes = [3 + homogeneous, 3 * has_normal]
  at_colour = sum(sizes)
  table = _table(rows, at_colour)
  vertices = table[:, :3]
  if homogeneous:
    vertices = vertices / table[:, 3:4]
  colours = None
  if has_colour and len(rows):
    stated = [row.split()[at_colour:] for row in rows]
    if has_uv:
      stated = [words[:-2] for words in stated]
    colours = _colours(stated)

  # Faces: a count, so many corners, and perhaps a colour.
  faces, painted = [], []
  for line in corners:
    words = line.split()
    count = int(words[0])
    if count < 1 or len(words) < 1 + count:
      raise Refused("unreadable", f"OFF: a face of {count} corners names {len(words) - 1}")
    faces.append([int(word) for word in words[1 : 1 + count]])
    painted.append(words[1 + count :])
  polygon = [i for i, face in enumerate(faces) if len(face) >= 3]
  kept = [faces[i] for i in polygon]
  named = [corner for face in kept for corner in face]
  check_faces(np.array(named, np.int64)[:, None], len(vertices), "OFF")
  cut, owner = polygons.triangulate_with_owners(kept, vertices)
  mesh = Mesh(vertices, cut)
  if appearance and not len(cut):
    mesh = Mesh(vertices, cut, colours)
  elif appearance:
    stated = [painted[i] for i in polygon]
    mesh = _dressed(mesh, colours, stated, owner)
  dropped = ()
  if len(polygon) < len(faces):
    dropped = (f"{len(faces) - len(polygon)} drawings that are neither triangles nor points",)
  return Surfaces(together([mesh]), dropped)


def _lines(data: bytes) -> list[str]:
  """Lines that say something, without comments."""
  text = text_of(data)
  if "#" in text:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
  else:
    lines = [line.strip() for line in text.splitlines()]
  return [line for line in lines if line]


def _header(lines: list[str]) -> tuple[bool, bool, bool, bool]:
  """Takes the header off; whether vertices have coordinates, colours, normals, a fourth number."""
  if not lines:
    raise Refused("unreadable", "OFF without a line")
  word, *rest = lines[0].split()
  match = HEADER.match(word)
  if match is None:
    # the header is optional
    if not word.lstrip("-").isdigit():
      raise Refused("unreadable", f"OFF that begins with {lines[0][:20]!r}")
    return False, False, False, False
  if rest[:1] == ["BINARY"]:
    raise Refused("unsupported", "binary OFF; text is read")
  uv, colour, normal, homogeneous, dimension = match.groups()
  if dimension:
    raise Refused("unsupported", f"{word}; vertices of three dimensions are read")
  # the counts may follow on the same line
  lines[0:1] = [" ".join(rest)] if rest else []
  return bool(uv), bool(colour), bool(normal), bool(homogeneous)


def _counts(lines: list[str], size: int) -> tuple[int, int]:
  """Takes the line of counts off: vertices and faces."""
  if not lines:
    raise Refused("unreadable", "OFF without counts")
  words = lines.pop(0).split()
  if len(words) < 2:
    raise Refused("unreadable", f"OFF: counts {words}")
  vertices, faces = int(words[0]), int(words[1])
  if vertices < 0 or faces < 0 or BYTES_OF_A_LINE * (vertices + faces) > size:
    raise Refused("unreadable", f"OFF of {size} bytes announces {vertices} vertices, {faces} faces")
  return vertices, faces


def _table(rows: list[str], columns: int) -> np.ndarray:
  """(V, columns) float64: the first numbers of every line."""
  words = [row.split()[:columns] for row in rows]
  if any(len(row) != columns for row in words):
    raise Refused("unreadable", f"OFF: a vertex with less than {columns} numbers")
  numbers = map(float, itertools.chain.from_iterable(words))
  return np.fromiter(numbers, np.float64, columns * len(rows)).reshape(-1, columns)


def _dressed(
  mesh: Mesh, colours: np.ndarray | None, painted: list[list[str]], owner: np.ndarray
) -> Mesh:
  """With colours of vertices, else of faces, else grey."""
  # a single number is the place in a table that the file does not hold
  coloured = bool(painted) and all(len(words) >= 3 for words in painted)
  material = np.zeros(len(mesh.faces), np.int32)
  if colours is not None:
    dressed = Mesh(mesh.vertices, mesh.faces, colours, None, material, (WHITE,))
  elif coloured:
    mesh = corners_apart(mesh, _colours(painted)[owner])
    dressed = Mesh(mesh.vertices, mesh.faces, mesh.colours, None, material, (WHITE,))
  else:
    dressed = Mesh(mesh.vertices, mesh.faces, None, None, material, (GREY,))
  return dressed.with_appearance()


def _colours(stated: list[list[str]]) -> np.ndarray:
  """Linear (N, 3) of colours as whole numbers of 255 or fractions."""
  whole = all("." not in word for words in stated for word in words[:3])
  rgb = np.array([[float(word) for word in words[:3]] for words in stated])
  return linear_of(rgb, 255.0 if whole else None)
