"""Surfaces to be scored: reading, cleaning, normalising and sampling meshes (numpy, float64).

What is scored is a `Mesh` in which every vertex is finite and used and every face has an area, or,
without faces, a point cloud of finite points. `make_surface` and `load_surface` make such meshes.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from sam3d_jax.errors import Refused
from sam3d_jax.evaluation import neighbours
from sam3d_jax.files import meshes
from sam3d_jax.render.mesh import Mesh

MIN_AREA = 1e-16  # of a face that counts, once the shape is scaled to [-1, 1]
HULL_CORNERS = 4096  # points that stand for a set without a hull
NO_FACES = np.zeros((0, 3), np.int64)


class SurfaceError(ValueError):
  """A file or an array that holds no surface to score; the message says which and why."""


class Surface(NamedTuple):
  """A shape that can be scored, and what had to be left out for that."""

  mesh: Mesh
  # faces (of a point cloud: points) of which a coordinate is not a number or infinite
  non_finite: int


def clean(mesh: Mesh, *, name: str) -> Surface:
  """Drops faces that have no area or a non-finite vertex, then vertices that nothing uses.

  A mesh without faces keeps its finite points. Raises SurfaceError, with `name` in it, if nothing
  of positive extent is left.
  """
  vertices = mesh.vertices
  faces = mesh.faces
  finite = np.isfinite(vertices).all(-1)

  # A point cloud: its finite points, if they are not all in one place.
  if not len(faces):
    points = vertices[finite]
    several = len(points) >= 2
    has_extent = several and np.ptp(points, axis=0).any()
    if not has_extent:
      raise SurfaceError(f"{name}: no faces and {len(points)} finite points of zero extent")
    dropped = int((~finite).sum())
    return Surface(Mesh(points, NO_FACES), dropped)

  # Faces of which all corners exist and are finite.
  highest = faces.max()
  if faces.min() < 0 or highest >= len(vertices):
    raise SurfaceError(f"{name}: faces refer to vertex {highest} of {len(vertices)}")
  all_finite = finite[faces].all(-1)
  kept = faces[all_finite]
  non_finite = len(faces) - len(kept)

  # Those with an area, in normalised units: areas of huge or tiny coordinates must not overflow.
  if len(kept):
    corners = vertices[kept].reshape(-1, 3)
    unit, _, _ = normalise(corners)
    areas = triangle_areas(unit.reshape(-1, 3, 3))
    kept = kept[areas > MIN_AREA]
  if not len(kept):
    raise SurfaceError(f"{name}: none of the {len(faces)} faces has an area")

  # Number the vertices that are left anew.
  used, index = np.unique(kept, return_inverse=True)
  cleaned = Mesh(vertices[used], index.reshape(-1, 3))
  return Surface(cleaned, non_finite)


def make_surface(vertices, faces=None, *, name: str = "surface") -> Mesh:
  """Arrays as a mesh to be scored, cleaned as `clean` does; without `faces` a point cloud."""
  vertices = np.asarray(vertices, np.float64)
  if faces is None:
    faces = NO_FACES
  else:
    faces = np.asarray(faces, np.int64)
  # Flat lists of numbers are taken as rows of three.
  mesh = Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3))
  return clean(mesh, name=name).mesh


def load_surface(path: str | pathlib.Path) -> Surface:
  """Reads a mesh or point cloud file, all its parts as one, and cleans it.

  Coordinates are those of the file (no change of the up axis). Raises SurfaceError if the file is
  missing, unreadable or cut short (see `meshes.read`), or holds no surface.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise SurfaceError(f"{path}: no such file")
  try:
    # Colours and textures are not scored.
    found = meshes.read(path, appearance=False)
  except Refused as error:
    raise SurfaceError(f"{path}: cannot be read as a mesh ({error})") from error
  return clean(found.mesh, name=str(path))


def find_mesh(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  """The mesh file `folder/stem.<suffix>` with a known suffix, or None.

  Raises SurfaceError if there are several.
  """
  # Any suffix, in whatever case, that a reader knows.
  candidates = sorted(folder.glob(f"{stem}.*"))
  found = []
  for path in candidates:
    if path.suffix.lower() in meshes.SUFFIXES:
      found.append(path)
  if len(found) > 1:
    names = ", ".join(path.name for path in found)
    raise SurfaceError(f"{folder}: several files for {stem}: {names}; leave one")
  return found[0] if found else None


def normalise(vertices_P3: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """Centres the axis-aligned box and scales its longest side to [-1, 1].

  Returns (points, centre, half_extent).
  """
  low = vertices_P3.min(0)
  high = vertices_P3.max(0)
  # Halved first: sums and differences of huge coordinates would overflow.
  half_low = low / 2
  half_high = high / 2
  centre = half_low + half_high
  longest = (half_high - half_low).max()
  half = float(longest) or 1.0  # a shape of one place stays there
  points = (vertices_P3 - centre) / half
  return points, centre, half


def normalised(mesh: Mesh) -> Mesh:
  """The shape moved and scaled by `normalise`."""
  vertices, _, _ = normalise(mesh.vertices)
  return Mesh(vertices, mesh.faces)


def triangle_areas(triangles_F33: np.ndarray) -> np.ndarray:
  cross = triangle_cross(triangles_F33)
  twice_area = np.linalg.norm(cross, axis=-1)
  return twice_area / 2


def triangle_cross(triangles_F33: np.ndarray) -> np.ndarray:
  """Cross product of two edges: the normal with length twice the area."""
  a, b, c = triangles_F33.swapaxes(0, 1)
  ab = b - a
  ac = c - a
  return np.cross(ab, ac)


def sample_surface(mesh: Mesh, count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
  """`count` points uniform by area, and the unit normals of their faces: (count, 3), (count, 3).

  Two meshes with the same faces get corresponding points from the same seed, so an exact copy is at
  distance 0. A point cloud gives `count` of its points without replacement (all of them if it has
  fewer) and None for the normals.
  """
  rng = np.random.default_rng(seed)

  # A point cloud: some of its points, in its order.
  if not len(mesh.faces):
    total = len(mesh.vertices)
    if total <= count:
      return mesh.vertices, None
    drawn = rng.choice(total, count, replace=False)
    chosen = np.sort(drawn)
    return mesh.vertices[chosen], None

  # Twice the area and direction of every face, in one product.
  triangles = mesh.vertices[mesh.faces]
  cross = triangle_cross(triangles)
  twice_area = np.linalg.norm(cross, axis=-1)
  normals = cross / twice_area[:, None]

  # Each sample falls on the face in whose share of the total area its draw lies.
  cumulative = np.cumsum(twice_area)
  ascending = np.sort(rng.random(count))
  draws = ascending * cumulative[-1]
  face = np.searchsorted(cumulative, draws, side="right")
  face = np.minimum(face, len(cumulative) - 1)

  # a + root ((b - a) + v (c - b)) is uniform in the triangle (Osada et al. 2002, equation 1). In
  # place: fresh arrays of this size cost more than the arithmetic.
  root = np.sqrt(rng.random(count))[:, None]
  v = rng.random(count)[:, None]
  a, b, c = triangles.swapaxes(0, 1)
  ab = b - a
  bc = c - b
  points = bc.take(face, 0)
  points *= v
  points += ab.take(face, 0)
  points *= root
  points += a.take(face, 0)
  return points, normals.take(face, 0)


def diameter(points_P3: np.ndarray) -> float:
  """Largest distance between two points.

  Over the vertices of the convex hull, or over all points of a flat or tiny set.
  """
  try:
    # The two farthest points are corners of the convex hull.
    hull = ConvexHull(points_P3)
    corners = points_P3[hull.vertices]
  except QhullError:
    # Flat or collinear sets have no 3-D hull: an even subset stands for them.
    order = neighbours.spatial_order(points_P3)
    ordered = points_P3[order]
    chosen = neighbours.strides(len(ordered), HULL_CORNERS)
    corners = ordered[chosen]

  # In blocks, so that the pairs fit into memory.
  best = 0.0
  for start in range(0, len(corners), 512):
    block = corners[start : start + 512]
    apart = block[:, None] - corners[None]
    squared = np.square(apart).sum(-1)
    best = max(best, squared.max())
  return float(np.sqrt(best))
