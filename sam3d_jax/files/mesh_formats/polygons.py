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
MAX_EAR_CORNERS = 20_000  # ears are cut in a time that is quadratic in the corners


def triangulate(polygons: Sequence[Sequence[int]], vertices_V3: np.ndarray) -> np.ndarray:
  """(F, 3) int64 of polygons of three and more corners, in their order.

  Indices must be within `vertices_V3`. Raises Refused (unreadable) for a concave polygon of more
  than MAX_EAR_CORNERS.
  """
  faces, _ = triangulate_with_owners(polygons, vertices_V3)
  return faces


def triangulate_with_owners(
  polygons: Sequence[Sequence[int]], vertices_V3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """`triangulate` and the number (F,) of the polygon that each triangle is part of."""
  lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
  faces, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
  for length in np.unique(lengths):
    chosen = np.flatnonzero(lengths == length)
    corners = np.array([polygons[i] for i in chosen], np.int64).reshape(len(chosen), length)
    cut = _cut_alike(corners, vertices_V3)
    faces.append(cut.reshape(-1, 3))
    owners.append(np.repeat(chosen, length - 2))
  found, owner = np.concatenate(faces), np.concatenate(owners)
  order = np.argsort(owner, kind="stable")
  return found[order], owner[order]


def fan(corners_PN: np.ndarray, first: int = 0) -> np.ndarray:
  """(P, N - 2, 3): polygons of N corners cut from the corner `first`."""
  rolled = np.roll(corners_PN, -first, axis=1)
  hub = np.broadcast_to(rolled[:, :1], (len(rolled), rolled.shape[1] - 2))
  return np.stack([hub, rolled[:, 1:-1], rolled[:, 2:]], -1)


def _cut_alike(corners_PN: np.ndarray, vertices_V3: np.ndarray) -> np.ndarray:
  """(P, N - 2, 3) of polygons that all have N corners."""
  count = corners_PN.shape[1]
  faces = fan(corners_PN)
  if count == 3:
    return faces
  # NaN and infinity are let through, in a fan
  with np.errstate(invalid="ignore", over="ignore"):
    points = vertices_V3[corners_PN]
    points = points - points[:, :1]
    normal = _normals(points)
  known = np.isfinite(points).all((1, 2)) & (np.abs(normal).max(1) > 0)
  left = np.flatnonzero(known & ~_covers(fan(corners_PN), vertices_V3, normal))

  # Another corner may see the whole of it: always so of four corners, mostly of five or six.
  for first in range(1, min(count, 8)):
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
  following = np.roll(points_PN3, -1, axis=1)
  return np.cross(points_PN3, following).sum(1)


def _covers(faces_PT3: np.ndarray, vertices_V3: np.ndarray, normal_P3: np.ndarray) -> np.ndarray:
  """(P,) whether a fan covers its polygon: no triangle is turned over, none goes round twice."""
  with np.errstate(invalid="ignore", over="ignore"):
    corner = vertices_V3[faces_PT3]
    one, two = corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0]
    area = np.einsum("ptk,pk->pt", np.cross(one, two), normal_P3)
    along = np.einsum("ptk,ptk->pt", one, two)
    length = np.linalg.norm(normal_P3, axis=1)
    turned = area < -FLAT * (length**2)[:, None]
    angle = np.arctan2(area / np.maximum(length, 1e-300)[:, None], along).sum(1)
  return ~turned.any(1) & (angle < 2 * np.pi + 1e-6)


def _flattened(points_N3: np.ndarray, normal_3: np.ndarray) -> np.ndarray:
  """(N, 2) in the polygon's plane, where it runs counter-clockwise."""
  across = np.eye(3)[np.abs(normal_3).argmin()]
  x = np.cross(across, normal_3)
  x = x / np.linalg.norm(x)
  y = np.cross(normal_3, x)
  y = y / np.linalg.norm(y)
  centred = points_N3 - points_N3.mean(0)
  return np.stack([centred @ x, centred @ y], 1)


# --- Ears -----------------------------------------------------------------------------------------


def _ears(points_N2: np.ndarray) -> np.ndarray:
  """(N - 2, 3) corners of the triangles of one polygon that runs counter-clockwise."""
  size = np.ptp(points_N2, axis=0).max()
  points = points_N2 / size
  ring = list(range(len(points)))
  faces = []
  at = 0
  failures = 0
  while len(ring) > 3:
    place = at % len(ring)
    before, here, behind = ring[place - 1], ring[place], ring[(place + 1) % len(ring)]
    # One full round without an ear: the polygon crosses itself, and any convex corner will do.
    desperate = failures >= len(ring)
    if desperate or _is_ear(points, ring, place):
      faces.append((before, here, behind))
      ring.pop(place)
      failures = 0
      # the corner before may have become an ear
      at = max(place - 1, 0)
    else:
      failures += 1
      at = place + 1
  faces.append(tuple(ring))
  return np.array(faces, np.int64)


def _is_ear(points_N2: np.ndarray, ring: Sequence[int], place: int) -> bool:
  """Whether the triangle at a corner lies inside of what is left of the polygon."""
  a = points_N2[ring[place - 1]]
  b = points_N2[ring[place]]
  c = points_N2[ring[(place + 1) % len(ring)]]
  area = _side(a, b, c)
  if area < 0:
    return False
  if area < FLAT:
    # on a line, or a spike: nothing can lie in it
    return True
  corners = points_N2[ring]
  following = np.roll(corners, -1, axis=0)
  preceding = np.roll(corners, 1, axis=0)
  others = np.ones(len(ring), bool)
  others[[place - 1, place, (place + 1) % len(ring)]] = False
  # A corner that lies on one of the ear's is judged by where its edges run, as slits demand.
  probes = np.concatenate(
    [
      corners[others],
      (corners + NEAR * (following - corners))[others],
      (corners + NEAR * (preceding - corners))[others],
    ]
  )
  within = (
    (_side(a, b, probes) > FLAT * NEAR)
    & (_side(b, c, probes) > FLAT * NEAR)
    & (_side(c, a, probes) > FLAT * NEAR)
  )
  return not within.any()


def _side(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Twice the area of (a, b, point): positive to the left of the way from a to b."""
  one, two = b - a, points - a
  return one[0] * two[..., 1] - one[1] * two[..., 0]
