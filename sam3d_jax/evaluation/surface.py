"""Surfaces to be scored: reading, cleaning, normalising and sampling triangle meshes and point
clouds (numpy, float64).
"""

import dataclasses
import pathlib

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from sam3d_jax.evaluation import neighbours

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")


class SurfaceError(ValueError):
  """A file or an array that holds no surface to score; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Surface:
  """A triangle mesh, or a point cloud if it has no faces. Every vertex is finite and used, every
  face has area.
  """

  vertices: np.ndarray  # (P, 3) float64
  faces: np.ndarray  # (F, 3) int64; (0, 3) for a point cloud
  # faces (of a point cloud: points) that were left out because a coordinate is not a number or
  # infinite
  non_finite: int = 0

  def transformed(self, *, scale=1.0, rotation=None, translation=0.0) -> "Surface":
    """x -> rotation (scale * x) + translation; `scale` is a number or one per object axis."""
    x = self.vertices * scale
    if rotation is not None:
      x = x @ np.asarray(rotation).T
    return dataclasses.replace(self, vertices=x + translation)


def make_surface(vertices, faces=None, *, name: str = "surface") -> Surface:
  """Cleans arrays into a Surface: drops faces that have no area or a non-finite vertex, then
  vertices that nothing uses.

  `faces` None or empty makes a point cloud of the finite vertices. Raises SurfaceError if nothing
  of positive extent is left.
  """
  vertices = np.asarray(vertices, np.float64).reshape(-1, 3)
  faces = (
    np.zeros((0, 3), np.int64) if faces is None else np.asarray(faces, np.int64).reshape(-1, 3)
  )
  finite = np.isfinite(vertices).all(-1)
  if not len(faces):
    vertices = vertices[finite]
    if len(vertices) < 2 or not np.ptp(vertices, axis=0).any():
      raise SurfaceError(f"{name}: no faces and {len(vertices)} finite points of zero extent")
    return Surface(vertices, faces, int((~finite).sum()))
  if faces.min() < 0 or faces.max() >= len(vertices):
    raise SurfaceError(f"{name}: faces refer to vertex {faces.max()} of {len(vertices)}")
  kept = faces[finite[faces].all(-1)]
  non_finite = len(faces) - len(kept)
  if len(kept):
    # areas of huge or tiny coordinates must not overflow
    unit, _, _ = normalise(vertices[kept].reshape(-1, 3))
    kept = kept[triangle_areas(unit.reshape(-1, 3, 3)) > 1e-16]
  if not len(kept):
    raise SurfaceError(f"{name}: none of the {len(faces)} faces has an area")
  used, index = np.unique(kept, return_inverse=True)
  return Surface(vertices[used], index.reshape(-1, 3), non_finite)


def load_surface(path: str | pathlib.Path) -> Surface:
  """Reads a mesh or point cloud file, all its parts as one, in the coordinates of the file (no
  change of the up axis).

  Raises SurfaceError if the file is missing, unreadable, or holds no surface.
  """
  import trimesh  # slow to import, and needed for files only

  path = pathlib.Path(path)
  if not path.is_file():
    raise SurfaceError(f"{path}: no such file")
  try:
    scene = trimesh.load_scene(path, process=False)
    parts = scene.dump()  # copies of every part with its transform applied
  # each format's reader raises its own types; all mean that the file cannot be read
  except Exception as error:
    raise SurfaceError(
      f"{path}: cannot be read as a mesh ({type(error).__name__}: {error})"
    ) from error
  vertices, faces, start = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
  for part in parts:
    vertices.append(np.asarray(part.vertices))
    faces.append(np.asarray(getattr(part, "faces", np.zeros((0, 3))), np.int64) + start)
    start += len(part.vertices)
  return make_surface(np.concatenate(vertices), np.concatenate(faces), name=str(path))


def write_ply(path: str | pathlib.Path, surface: Surface) -> None:
  """Writes a surface as binary PLY in its own coordinates."""
  import trimesh

  shape = (
    trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    if len(surface.faces)
    else trimesh.PointCloud(surface.vertices)
  )
  pathlib.Path(path).write_bytes(shape.export(file_type="ply"))


def find_mesh(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  """The mesh file `folder/stem.<suffix>` with a known suffix, or None. Raises SurfaceError if there
  are several.
  """
  found = [p for p in sorted(folder.glob(f"{stem}.*")) if p.suffix.lower() in MESH_SUFFIXES]
  if len(found) > 1:
    raise SurfaceError(
      f"{folder}: several files for {stem}: {', '.join(p.name for p in found)}; leave one"
    )
  return found[0] if found else None


def normalise(vertices_P3: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """Moves the axis-aligned box to the origin and scales its longest side to [-1, 1]. Returns
  (points, centre, half_extent).
  """
  low, high = vertices_P3.min(0), vertices_P3.max(0)
  centre, half = low / 2 + high / 2, float((high / 2 - low / 2).max())
  return (vertices_P3 - centre) / (half or 1.0), centre, half or 1.0


def triangle_areas(triangles_F33: np.ndarray) -> np.ndarray:
  return np.linalg.norm(triangle_cross(triangles_F33), axis=-1) / 2


def triangle_cross(triangles_F33: np.ndarray) -> np.ndarray:
  """Cross product of two edges: the normal with length twice the area."""
  return np.cross(
    triangles_F33[:, 1] - triangles_F33[:, 0], triangles_F33[:, 2] - triangles_F33[:, 0]
  )


def sample_surface(surface: Surface, count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
  """`count` points uniform by area, and the unit normals of their faces: (count, 3), (count, 3).

  Two surfaces with the same faces get corresponding points from the same seed, so an exact copy is
  at distance 0. A point cloud gives `count` of its points without replacement (all of them if it
  has fewer) and None for the normals.
  """
  rng = np.random.default_rng(seed)
  if not len(surface.faces):
    if len(surface.vertices) <= count:
      return surface.vertices, None
    return surface.vertices[np.sort(rng.choice(len(surface.vertices), count, replace=False))], None
  triangles = surface.vertices[surface.faces]
  cross = triangle_cross(triangles)
  twice_area = np.linalg.norm(cross, axis=-1)
  normals = cross / twice_area[:, None]
  total = np.cumsum(twice_area)
  face = np.minimum(
    np.searchsorted(total, np.sort(rng.random(count)) * total[-1], side="right"), len(total) - 1
  )
  root, v = np.sqrt(rng.random(count))[:, None], rng.random(count)[:, None]
  a, b, c = triangles.swapaxes(0, 1)
  # a + root ((b - a) + v (c - b)) is uniform in the triangle (Osada et al. 2002, equation 1)
  points = (c - b).take(face, 0)
  points *= v  # in place: fresh arrays of this size cost more than the arithmetic
  points += (b - a).take(face, 0)
  points *= root
  points += a.take(face, 0)
  return points, normals.take(face, 0)


def diameter(points_P3: np.ndarray) -> float:
  """Largest distance between two points (over the vertices of the convex hull; over all points of a
  flat or tiny set).
  """
  try:
    corners = points_P3[ConvexHull(points_P3).vertices]
  except QhullError:  # flat or collinear sets have no 3-D hull
    corners = points_P3[neighbours.spatial_order(points_P3)][
      neighbours.strides(len(points_P3), 4096)
    ]
  best = 0.0
  for start in range(0, len(corners), 512):
    best = max(best, np.square(corners[start : start + 512, None] - corners[None]).sum(-1).max())
  return float(np.sqrt(best))
