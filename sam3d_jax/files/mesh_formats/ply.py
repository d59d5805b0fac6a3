"""PLY, text and binary of either byte order: polygons, strips, points, colours, textures.

A texture is named in a comment ("TextureFile skin.png"), several by as many; coordinates belong to
vertices (s t, u v, texture_u texture_v) or to the corners of faces (texcoord, with texnumber).
"""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files.mesh_formats import (
  beside,
  gltf_primitives,
  ply_tables,
  polygons,
  surfaces,
  textures,
)
from sam3d_jax.files.mesh_formats.ply_tables import Table
from sam3d_jax.files.mesh_formats.surfaces import GREY, Surfaces
from sam3d_jax.render.mesh import WHITE, Material, Mesh

COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))


@dataclasses.dataclass(frozen=True)
class Cuttings:
  """Faces cut into triangles."""

  triangles_F3: np.ndarray  # int64, of vertices
  owner_F: np.ndarray  # the row of the face that each is part of; -1 of strips
  # places of their corners among those of all faces in the order of the file; None of strips
  corners_F3: np.ndarray | None


def read(path: pathlib.Path, data: bytes, *, appearance: bool) -> Surfaces:
  """The surfaces of a .ply file. Raises Refused (unreadable, missing_texture)."""
  header = ply_tables.read_header(data)
  tables = ply_tables.read_tables(data, header)
  if "vertex" not in tables:
    raise Refused("unreadable", "PLY without vertices")

  # Shape.
  places = [tables["vertex"].column(axis) for axis in "xyz"]
  vertices = np.stack(places, axis=1).astype(np.float64)
  cuttings = _cut(tables, vertices)
  mesh = Mesh(vertices, cuttings.triangles_F3)
  dropped = tuple(_dropped(tables, cuttings))

  # Appearance.
  if not appearance:
    return Surfaces(mesh, dropped)
  if not len(mesh.faces):
    colours = tables["vertex"].colours()
    return Surfaces(dataclasses.replace(mesh, colours=colours), dropped)
  pictures = [beside.needed(path.parent, name, of=path.name) for name in header.pictures]
  return Surfaces(_dressed(mesh, tables, cuttings, pictures), dropped)


# --- Shape ----------------------------------------------------------------------------------------


def _cut(tables: dict[str, Table], vertices: np.ndarray) -> Cuttings:
  """Faces, or strips where there are no faces, as triangles."""
  none = np.zeros((0, 3), np.int64)
  if "face" in tables:
    return _cut_faces(tables["face"].corners(), vertices)
  # old scans have all of their triangles in one strip
  if "tristrips" not in tables:
    return Cuttings(none, np.zeros(0, np.int64), None)
  strips = [_strip(row) for row in tables["tristrips"].corners()]
  triangles = np.concatenate([none, *strips])
  surfaces.check_faces(triangles, len(vertices), "PLY")
  return Cuttings(triangles, np.full(len(triangles), -1), None)


def _cut_faces(rows: Sequence[np.ndarray], vertices: np.ndarray) -> Cuttings:
  # by far the usual case: triangles alone
  if isinstance(rows, ply_tables.Runs) and all(run.shape[1] == 3 for run in rows.runs):
    none = np.zeros((0, 3), np.int64)
    triangles = np.concatenate([none, *rows.runs]).astype(np.int64)
    surfaces.check_faces(triangles, len(vertices), "PLY")
    places = np.arange(triangles.size).reshape(-1, 3)
    return Cuttings(triangles, np.arange(len(triangles)), places)

  # Corners of all faces in a row.
  nothing = np.zeros(0, np.int64)
  named = np.concatenate([nothing, *rows])
  named = named.astype(np.int64)
  surfaces.check_faces(named, len(vertices), "PLY")

  # Polygons are cut as lists of places in it.
  lengths = np.array(list(map(len, rows)), np.int64)
  ends = np.cumsum(lengths)
  starts = ends - lengths
  polygon_rows = np.flatnonzero(lengths >= 3)
  outlines = [range(starts[row], ends[row]) for row in polygon_rows]
  corner_places = vertices[named]
  places, owner = polygons.triangulate_with_owners(outlines, corner_places)
  return Cuttings(named[places], polygon_rows[owner], places)


def _strip(row: np.ndarray) -> np.ndarray:
  """Triangles of strips one behind another, -1 between them."""
  indices = np.asarray(row, np.int64)
  breaks = np.flatnonzero(indices == -1)
  faces = [np.zeros((0, 3), np.int64)]
  for part in np.split(indices, breaks):
    own = part[part >= 0]
    faces.append(gltf_primitives.triangles(own, gltf_primitives.STRIP))
  return np.concatenate(faces)


def _dropped(tables: dict[str, Table], cuttings: Cuttings) -> list[str]:
  """Faces of less than three corners, and edges."""
  others = 0
  if "edge" in tables:
    others += tables["edge"].element.count
  if "face" in tables:
    surfaced = len(np.unique(cuttings.owner_F))
    others += tables["face"].element.count - surfaced
  return surfaces.drawings_dropped(others)


# --- Appearance -----------------------------------------------------------------------------------


def _dressed(
  mesh: Mesh,
  tables: dict[str, Table],
  cuttings: Cuttings,
  pictures: Sequence[pathlib.Path],
) -> Mesh:
  """With colours of vertices or faces and with textures; grey where neither is stated."""
  # Colours and coordinates, of vertices first.
  vertex = tables["vertex"]
  mesh = dataclasses.replace(mesh, colours=vertex.colours(), uv=_vertex_uv(vertex))
  if "face" in tables:
    mesh = _with_face_colours(mesh, tables["face"], cuttings)
    mesh = _with_corner_uv(mesh, tables["face"], cuttings)
  if not pictures or mesh.uv is None:
    plain = GREY if mesh.colours is None else WHITE
    return surfaces.in_one(dataclasses.replace(mesh, uv=None), plain)

  # A material for each picture.
  materials = []
  for path in pictures:
    picture = textures.decode(path.read_bytes(), path.name)
    materials.append(Material(WHITE.colour, picture.rgb_HW3))
  numbers = _texture_numbers(tables, cuttings, len(materials))
  dressed = dataclasses.replace(mesh, material=numbers, materials=tuple(materials))
  return surfaces.together([dressed.with_appearance()])


def _with_face_colours(mesh: Mesh, faces: Table, cuttings: Cuttings) -> Mesh:
  """Colours of faces count where vertices have none."""
  colours = faces.colours()
  if colours is None or mesh.colours is not None:
    return mesh
  return surfaces.corners_apart(mesh, colours[cuttings.owner_F])


def _vertex_uv(vertices: Table) -> np.ndarray | None:
  names = vertices.first_of(COORDINATES)
  if names is None:
    return None
  columns = [vertices.column(name) for name in names]
  stated = np.stack(columns, axis=1)
  return surfaces.clipped_uv(stated)


def _with_corner_uv(mesh: Mesh, faces: Table, cuttings: Cuttings) -> Mesh:
  """Texture coordinates of faces' corners, if the file has them: vertices are split for them."""
  if "texcoord" not in faces.columns:
    return mesh

  # Two numbers for each corner of every face, or none at all.
  lists = faces.columns["texcoord"]
  stated = np.array([len(row) for row in lists])
  expected = np.array([2 * len(row) for row in faces.corners()])
  if not stated.any():
    return mesh
  if (stated != expected).any():
    raise Refused("unreadable", "PLY: texcoord that are not two for each corner of every face")
  uv = surfaces.clipped_uv(np.concatenate(list(lists))).reshape(-1, 2)

  # Every corner becomes a vertex of its own.
  used = mesh.faces.reshape(-1)
  colours = mesh.colours
  if colours is not None:
    colours = colours[used]
  own_faces = np.arange(len(used)).reshape(-1, 3)
  places = cuttings.corners_F3.reshape(-1)
  return Mesh(mesh.vertices[used], own_faces, colours, uv[places])


def _texture_numbers(tables: dict[str, Table], cuttings: Cuttings, count: int) -> np.ndarray:
  """(F,) int32: which texture each triangle has."""
  owner = cuttings.owner_F
  if "face" not in tables or "texnumber" not in tables["face"].columns:
    return np.zeros(len(owner), np.int32)
  stated = tables["face"].column("texnumber").astype(np.int64)
  numbers = stated[owner]
  if numbers.min() < 0 or numbers.max() >= count:
    raise Refused("unreadable", f"PLY: texture {numbers.max()} of {count}")
  return numbers.astype(np.int32)
