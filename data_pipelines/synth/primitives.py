"""Closed triangle solids from which procedural objects are composed; z up, facing outward.

Vertices are not merged between solids: an object is a list of parts that may touch or
interpenetrate, as in most artists' meshes.
"""

from collections.abc import Sequence

import numpy as np
import trimesh


def _mesh(vertices, faces) -> trimesh.Trimesh:
  vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
  return trimesh.Trimesh(vertices=vertices, faces=faces, process=False)


def box(size: Sequence[float], center: Sequence[float]) -> trimesh.Trimesh:
  """Axis-aligned box of the given edge lengths around `center`."""
  corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
  quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
  faces = []
  for a, b, c, d in quads:
    faces += [(a, b, c), (a, c, d)]
  return _mesh(corners * np.asarray(size) + np.asarray(center), faces)


def lathe(
  profile_rz: Sequence[Sequence[float]], *, segments: int = 24, center=(0.0, 0.0, 0.0)
) -> trimesh.Trimesh:
  """Solid of revolution about z through (r, z) points.

  They are listed from the bottom axis, up the outside, back to the axis. The profile must start and
  end at r = 0, so the surface is closed; an inner wall (mug, bowl) is part of the profile.
  """
  profile = np.asarray(profile_rz, np.float64)
  if profile[0, 0] != 0.0 or profile[-1, 0] != 0.0:
    raise ValueError(
      f"a lathe profile starts and ends on the axis (r = 0), got r = {profile[0, 0]} and "
      f"{profile[-1, 0]}"
    )
  angle = np.linspace(0.0, 2 * np.pi, segments, endpoint=False)
  ring = np.stack([np.cos(angle), np.sin(angle)], -1)  # (S, 2)
  inner = profile[1:-1]
  heights = np.broadcast_to(inner[:, None, 1:], (len(inner), segments, 1))
  rings = np.concatenate([inner[:, None, :1] * ring, heights], -1)
  apexes = [[0, 0, profile[0, 1]], [0, 0, profile[-1, 1]]]
  vertices = np.concatenate([rings.reshape(-1, 3), apexes])
  return _mesh(vertices + np.asarray(center), _grid_faces(len(inner), segments))


def _grid_faces(rows: int, columns: int) -> np.ndarray:
  """Faces of `rows` closed rings of `columns` vertices, then a bottom and a top apex vertex."""
  i = np.arange(columns)
  j = (i + 1) % columns
  bottom, top = rows * columns, rows * columns + 1
  faces = [np.stack([np.full(columns, bottom), j, i], -1)]
  for row in range(rows - 1):
    a, b = row * columns + i, row * columns + j
    faces += [np.stack([a, b, b + columns], -1), np.stack([a, b + columns, a + columns], -1)]
  last = (rows - 1) * columns
  faces.append(np.stack([last + i, last + j, np.full(columns, top)], -1))
  return np.concatenate(faces)


def cylinder(
  radius: float,
  height: float,
  center=(0.0, 0.0, 0.0),
  *,
  top_radius: float | None = None,
  segments: int = 24,
):
  """Cylinder, or a frustum when `top_radius` differs; `center` is the middle of its axis."""
  top = radius if top_radius is None else top_radius
  h = height / 2
  profile = [(0, -h), (radius, -h), (max(top, 1e-3 * radius), h), (0, h)]
  return lathe(profile, segments=segments, center=center)


def ellipsoid(
  radii: Sequence[float], center=(0.0, 0.0, 0.0), *, segments: int = 24
) -> trimesh.Trimesh:
  """Ellipsoid with semi-axes `radii`."""
  phi = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
  profile = np.stack([np.cos(phi), np.sin(phi)], -1)
  profile[[0, -1], 0] = 0.0
  sphere = lathe(profile, segments=segments)
  return _mesh(sphere.vertices * np.asarray(radii) + np.asarray(center), sphere.faces)


def tube(path_P3, radius, *, segments: int = 12) -> trimesh.Trimesh:
  """Round rod along a polyline (P >= 2 points), with flat ends.

  `radius` is a number or one per point.
  """
  path = np.asarray(path_P3, np.float64)
  radius_P = np.broadcast_to(np.asarray(radius, np.float64), len(path))
  tangent = np.gradient(path, axis=0)
  tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
  # One reference direction least aligned with the whole path keeps neighbouring rings untwisted.
  reference = np.eye(3)[np.argmin(np.abs(tangent).max(0))]
  normal = np.cross(tangent, reference)
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  binormal = np.cross(tangent, normal)
  angle = np.linspace(0.0, 2 * np.pi, segments, endpoint=False)[None, :, None]
  around = np.cos(angle) * normal[:, None] + np.sin(angle) * binormal[:, None]
  rings = path[:, None] + radius_P[:, None, None] * around
  vertices = np.concatenate([rings.reshape(-1, 3), path[[0, -1]]])
  return _mesh(vertices, _grid_faces(len(path), segments))


def rod(
  start: Sequence[float], end: Sequence[float], radius, *, segments: int = 12
) -> trimesh.Trimesh:
  """Straight round rod between two points; `radius` is a number or (at start, at end)."""
  return tube([start, end], radius, segments=segments)


def prism(
  polygon_K2, depth: float, *, plane: str = "xz", center=(0.0, 0.0, 0.0)
) -> trimesh.Trimesh:
  """Extrudes a convex polygon of the named plane by `depth` along the third axis.

  plane: "xz", "yz" or "xy".
  """
  axes = ["xyz".index(c) for c in plane]
  third = ({0, 1, 2} - set(axes)).pop()
  polygon = np.asarray(polygon_K2, np.float64)
  k = len(polygon)
  vertices = np.zeros((2 * k, 3))
  for side, offset in enumerate((-depth / 2, depth / 2)):
    vertices[side * k : (side + 1) * k, axes] = polygon
    vertices[side * k : (side + 1) * k, third] = offset
  i, j = np.arange(k), (np.arange(k) + 1) % k
  fan = np.stack([np.zeros(k - 2, int), np.arange(1, k - 1), np.arange(2, k)], -1)
  sides = [np.stack([i, j, j + k], -1), np.stack([i, j + k, i + k], -1)]
  faces = np.concatenate([fan[:, ::-1], fan + k, *sides])
  mesh = _mesh(vertices + np.asarray(center), faces)
  # the polygon's winding and the plane's handedness decide which way round the faces came out
  if mesh.volume < 0:
    mesh.invert()
  return mesh


def rotated(
  mesh: trimesh.Trimesh, degrees: float, axis: Sequence[float], point=(0.0, 0.0, 0.0)
) -> trimesh.Trimesh:
  """A copy turned about the line through `point` along `axis`, right-handed."""
  turn = trimesh.transformations.rotation_matrix(np.radians(degrees), axis, point)
  out = mesh.copy()
  out.apply_transform(turn)
  return out
