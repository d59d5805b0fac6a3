"""Polygons of any number of corners cut into triangles, concave ones too.

A polygon is cut as a fan wherever that covers it: from its first corner if it can be, as every
convex one can, else from the first corner that sees the whole of it. What no fan covers is cut ear
by ear. Holes do not exist in these formats; a slit that leads to a hole does, and is followed.
"""

from collections.abc import Sequence

import numpy as np

from sam3d_jax.errors import Refused

FLAT = 1e-9  # of a polygon's area: a triangle that is turned by less is not turned
NEAR = 1e-6  # of an edge: how far along it tells on which side of a corner it runs
FULL_TURN = 2 * np.pi + 1e-6
TINY = 1e-300  # in place of 0
MAX_FANS = 8  # corners from which a fan is tried
# Ears are cut in a time that grows with the square of the corners, for some outlines with the cube.
MAX_EAR_CORNERS = 5_000
MAX_TRIES = 100_000


def triangulate(polygons: Sequence[Sequence[int]], vertices_V3: np.ndarray) -> np.ndarray:
  """(F, 3) int64 of polygons of three and more corners, in their order.

  Indices must be within `vertices_V3`. Raises Refused (unreadable) for an outline that is too
  intricate to be cut.
  """
  faces, _ = triangulate_with_owners(polygons, vertices_V3)
  return faces


def triangulate_with_owners(
  polygons: Sequence[Sequence[int]], vertices_V3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """`triangulate` and the number (F,) of the polygon that each triangle is part of."""
  lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
  faces = [np.zeros((0, 3), np.int64)]
  owners = [np.zeros(0, np.int64)]
  # those of as many corners together
  for length in np.unique(lengths):
    chosen = np.flatnonzero(lengths == length)
    corners = np.array([polygons[number] for number in chosen], np.int64)
    corners = corners.reshape(-1, length)
    cut = _cut_alike(corners, vertices_V3)
    faces.append(cut.reshape(-1, 3))
    owners.append(np.repeat(chosen, length - 2))

  # In the order of the polygons.
  face = np.concatenate(faces)
  owner = np.concatenate(owners)
  order = np.argsort(owner, kind="stable")
  return face[order], owner[order]


def fan(corners_PN: np.ndarray, first: int = 0) -> np.ndarray:
  """(P, N - 2, 3): polygons of N corners cut from the corner `first`."""
  rolled = np.roll(corners_PN, -first, axis=1)
  second = rolled[:, 1:-1]
  third = rolled[:, 2:]
  first_corner = rolled[:, :1]
  hub = np.broadcast_to(first_corner, second.shape)
  return np.stack([hub, second, third], axis=-1)


def _cut_alike(corners_PN: np.ndarray, vertices_V3: np.ndarray) -> np.ndarray:
  """(P, N - 2, 3) of polygons that all have N corners."""
  count = corners_PN.shape[1]
  faces = fan(corners_PN)
  if count == 3:
    return faces

  # Those that a fan from their first corner does not cover. NaN and infinity are let through.
  normal = _normals(vertices_V3[corners_PN])
  has_side = np.isfinite(normal).all(1) & (np.abs(normal).max(1) > 0)
  covered = _covers(faces, vertices_V3, normal)
  left = np.flatnonzero(has_side & ~covered)

  # Another corner may see the whole of it: always so of four corners, mostly of five or six.
  for first in range(1, min(count, MAX_FANS)):
    if not len(left):
      return faces
    other = fan(corners_PN[left], first)
    covered = _covers(other, vertices_V3, normal[left])
    faces[left[covered]] = other[covered]
    left = left[~covered]

  for polygon in left:
    corners = corners_PN[polygon]
    if count > MAX_EAR_CORNERS:
      raise Refused("unreadable", f"a concave polygon of {count} corners")
    flat = _flattened(vertices_V3[corners], normal[polygon])
    faces[polygon] = corners[_ears(flat)]
  return faces


def _normals(points_PN3: np.ndarray) -> np.ndarray:
  """(P, 3): perpendicular to each polygon, twice its area long (Newell)."""
  # about the first corner, lest a place far from the origin drown the area
  first = points_PN3[:, :1]
  points = points_PN3 - first
  following = np.roll(points, -1, axis=1)
  areas = np.cross(points, following)
  return areas.sum(1)


def _covers(faces_PT3: np.ndarray, vertices_V3: np.ndarray, normal_P3: np.ndarray) -> np.ndarray:
  """(P,) whether a fan covers its polygon: no triangle is turned over, none goes round twice."""
  # Two edges of every triangle, and its area as a vector.
  hub, second, third = np.moveaxis(vertices_V3[faces_PT3], 2, 0)
  one = second - hub
  two = third - hub
  area_PT3 = np.cross(one, two)
  along = np.einsum("ptk,ptk->pt", one, two)
  # lengths along the normal, which is as long as twice the polygon's area
  across = np.einsum("ptk,pk->pt", area_PT3, normal_P3)
  length = np.linalg.norm(normal_P3, axis=1)[:, None]
  turned = across < -FLAT * length**2
  # the angles at the hub are those of the polygon, which is less than a full turn
  unit_across = across / np.maximum(length, TINY)
  angle = np.arctan2(unit_across, along).sum(1)
  return ~turned.any(1) & (angle < FULL_TURN)


def _flattened(points_N3: np.ndarray, normal_3: np.ndarray) -> np.ndarray:
  """(N, 2) in the polygon's plane, where it runs counter-clockwise."""
  # any direction that is not the normal's gives the first axis
  thinnest = np.abs(normal_3).argmin()
  aside = np.eye(3)[thinnest]
  x = np.cross(aside, normal_3)
  y = np.cross(normal_3, x)
  x = x / np.linalg.norm(x)
  y = y / np.linalg.norm(y)
  centred = points_N3 - points_N3.mean(0)
  return np.stack([centred @ x, centred @ y], axis=1)


# --- Ears -----------------------------------------------------------------------------------------


def _ears(points_N2: np.ndarray) -> np.ndarray:
  """(N - 2, 3) corners of the triangles of one polygon that runs counter-clockwise."""
  size = np.ptp(points_N2, axis=0).max()
  points = points_N2 / size
  ring = list(range(len(points)))
  faces = []
  place, failures, tries = 0, 0, 0
  while len(ring) > 3:
    tries += 1
    if tries > MAX_TRIES:
      raise Refused("unreadable", f"a polygon of {len(points)} corners is too intricate")
    place %= len(ring)
    # One full round without an ear: the polygon crosses itself, and any corner will do.
    desperate = failures >= len(ring)
    if desperate or _is_ear(points, ring, place):
      behind = (place + 1) % len(ring)
      faces.append((ring[place - 1], ring[place], ring[behind]))
      ring.pop(place)
      failures = 0
      # the corner before may have become an ear
      place = max(place - 1, 0)
    else:
      failures += 1
      place += 1
  faces.append(tuple(ring))
  return np.array(faces, np.int64)


def _is_ear(points_N2: np.ndarray, ring: Sequence[int], place: int) -> bool:
  """Whether the triangle at a corner lies inside of what is left of the polygon."""
  own = [place - 1, place, (place + 1) % len(ring)]
  corners = points_N2[ring]
  a, b, c = corners[own]
  area = _side(a, b, c)
  if area < 0:
    return False
  if area < FLAT:
    # on a line, or a spike: nothing can lie in it
    return True

  # Nothing of the rest may lie in it. A corner that lies on one of the ear's own is judged by where
  # its edges run, as slits demand.
  to_next = np.roll(corners, -1, axis=0) - corners
  to_last = np.roll(corners, 1, axis=0) - corners
  others = np.ones(len(ring), bool)
  others[own] = False
  probes = [corners, corners + NEAR * to_next, corners + NEAR * to_last]
  probes = np.concatenate([places[others] for places in probes])
  inside = np.ones(len(probes), bool)
  for start, end in ((a, b), (b, c), (c, a)):
    inside &= _side(start, end, probes) > FLAT * NEAR
  return not inside.any()


def _side(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Twice the area of (a, b, point): positive to the left of the way from a to b."""
  along_x, along_y = b - a
  way = points - a
  x = way[..., 0]
  y = way[..., 1]
  return along_x * y - along_y * x
