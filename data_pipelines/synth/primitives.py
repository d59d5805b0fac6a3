"""Closed triangle solids from which procedural objects are composed; z up, facing outward.

Vertices are not merged between solids: an object is a list of parts that may touch or
interpenetrate, as in most artists' meshes.
"""

from collections.abc import Sequence
import itertools

import numpy as np
import trimesh


def _mesh(vertices, faces) -> trimesh.Trimesh:
  return trimesh.Trimesh(
    vertices=np.asarray(vertices, np.float64),
    faces=np.asarray(faces, np.int64),
    process=False,
  )


def box(size: Sequence[float], center: Sequence[float]) -> trimesh.Trimesh:
  """Axis-aligned box of the given edge lengths around `center`."""
  halves = itertools.product((-0.5, 0.5), repeat=3)
  corners = np.array(list(halves))  # z runs fastest
  quads = [
    (0, 1, 3, 2),
    (4, 6, 7, 5),
    (0, 4, 5, 1),
    (2, 3, 7, 6),
    (0, 2, 6, 4),
    (1, 5, 7, 3),
  ]
  # Each side is cut along a diagonal.
  faces = []
  for a, b, c, d in quads:
    faces.append((a, b, c))
    faces.append((a, c, d))
  scaled = corners * np.asarray(size)
  return _mesh(scaled + np.asarray(center), faces)


def lathe(
  profile_rz: Sequence[Sequence[float]], *, segments: int = 24, center=(0.0, 0.0, 0.0)
) -> trimesh.Trimesh:
  """Solid of revolution about z through (r, z) points.

  They are listed from the bottom axis, up the outside, back to the axis. The profile must start and
  end at r = 0, so the surface is closed; an inner wall (mug, bowl) is part of the profile.
  """
  profile = np.asarray(profile_rz, np.float64)
  first_radius, first_z = profile[0]
  last_radius, last_z = profile[-1]
  if first_radius != 0.0 or last_radius != 0.0:
    raise ValueError(
      f"a lathe profile starts and ends on the axis (r = 0), got r = {first_radius} and "
      f"{last_radius}"
    )

  # A ring of vertices for every point off the axis.
  angle = np.linspace(
    0.0,
    2 * np.pi,
    segments,
    endpoint=False,
  )
  circle_S2 = np.stack([np.cos(angle), np.sin(angle)], -1)
  inner = profile[1:-1]
  radii = inner[:, None, :1]
  heights = np.broadcast_to(inner[:, None, 1:], (len(inner), segments, 1))
  circles = radii * circle_S2
  rings = np.concatenate([circles, heights], -1)

  # The two points on the axis close it.
  apexes = [[0, 0, first_z], [0, 0, last_z]]
  vertices = np.concatenate([rings.reshape(-1, 3), apexes])
  faces = _grid_faces(len(inner), segments)
  return _mesh(vertices + np.asarray(center), faces)


def _grid_faces(rows: int, columns: int) -> np.ndarray:
  """Faces of `rows` closed rings of `columns` vertices, then a bottom and a top apex vertex."""
  here = np.arange(columns)
  after = (here + 1) % columns
  ring_vertices = rows * columns
  bottom = np.full(columns, ring_vertices)
  top = np.full(columns, ring_vertices + 1)

  def triangles(first, second, third) -> np.ndarray:
    return np.stack([first, second, third], -1)

  # A fan below, two triangles a cell between the rings, a fan above.
  faces = [triangles(bottom, after, here)]
  for row in range(rows - 1):
    a = row * columns + here
    b = row * columns + after
    above_a = a + columns
    above_b = b + columns
    faces.append(triangles(a, b, above_b))
    faces.append(triangles(a, above_b, above_a))
  last = (rows - 1) * columns
  faces.append(triangles(last + here, last + after, top))
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
  top = max(top, 1e-3 * radius)  # a cone's point keeps a ring of its own
  half = height / 2
  profile = [
    (0, -half),
    (radius, -half),
    (top, half),
    (0, half),
  ]
  return lathe(profile, segments=segments, center=center)


def ellipsoid(
  radii: Sequence[float], center=(0.0, 0.0, 0.0), *, segments: int = 24
) -> trimesh.Trimesh:
  """Ellipsoid with semi-axes `radii`."""
  # The unit sphere, from the lowest point to the highest.
  south = -np.pi / 2
  north = np.pi / 2
  latitude = np.linspace(south, north, segments // 2 + 1)
  radius = np.cos(latitude)
  radius[[0, -1]] = 0.0  # the cosine is not exactly zero there
  height = np.sin(latitude)
  profile = np.stack([radius, height], -1)
  sphere = lathe(profile, segments=segments)

  # Stretched along the axes.
  stretched = sphere.vertices * np.asarray(radii)
  moved = stretched + np.asarray(center)
  return _mesh(moved, sphere.faces)


def tube(path_P3, radius, *, segments: int = 12) -> trimesh.Trimesh:
  """Round rod along a polyline (P >= 2 points), with flat ends.

  `radius` is a number or one per point.
  """
  path = np.asarray(path_P3, np.float64)
  radius = np.asarray(radius, np.float64)
  radius_P = np.broadcast_to(radius, len(path))
  tangent = np.gradient(path, axis=0)
  tangent /= np.linalg.norm(
    tangent,
    axis=1,
    keepdims=True,
  )

  # One reference direction least aligned with the whole path keeps neighbouring rings untwisted.
  alignment = np.abs(tangent).max(0)
  least = np.argmin(alignment)
  reference = np.eye(3)[least]
  normal = np.cross(tangent, reference)
  normal /= np.linalg.norm(
    normal,
    axis=1,
    keepdims=True,
  )
  binormal = np.cross(tangent, normal)

  # A ring about every point, and the two ends of the path in the middle of the flat ends.
  turn = np.linspace(
    0.0,
    2 * np.pi,
    segments,
    endpoint=False,
  )
  angle = turn[None, :, None]
  across = np.cos(angle) * normal[:, None]
  upwards = np.sin(angle) * binormal[:, None]
  around = across + upwards
  rings = path[:, None] + radius_P[:, None, None] * around
  ends = path[[0, -1]]
  vertices = np.concatenate([rings.reshape(-1, 3), ends])
  faces = _grid_faces(len(path), segments)
  return _mesh(vertices, faces)


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
  count = len(polygon)

  # The polygon twice, half the depth to either side.
  vertices = np.zeros((2 * count, 3))
  vertices[:count, axes] = polygon
  vertices[:count, third] = -depth / 2
  vertices[count:, axes] = polygon
  vertices[count:, third] = depth / 2

  # Each end is a fan about its first corner, each side two triangles.
  here = np.arange(count)
  after = (here + 1) % count
  first = np.zeros(count - 2, int)
  fan = np.stack([first, here[1:-1], here[2:]], -1)
  lower = np.stack([here, after, after + count], -1)
  upper = np.stack([here, after + count, here + count], -1)
  faces = np.concatenate([fan[:, ::-1], fan + count, lower, upper])
  mesh = _mesh(vertices + np.asarray(center), faces)
  # the polygon's winding and the plane's handedness decide which way round the faces came out
  if mesh.volume < 0:
    mesh.invert()
  return mesh


def rotated(
  mesh: trimesh.Trimesh, degrees: float, axis: Sequence[float], point=(0.0, 0.0, 0.0)
) -> trimesh.Trimesh:
  """A copy turned about the line through `point` along `axis`, right-handed."""
  radians = np.radians(degrees)
  turn = trimesh.transformations.rotation_matrix(radians, axis, point)
  out = mesh.copy()
  out.apply_transform(turn)
  return out
