"""Areas and normals of a mesh's faces, and normals of their corners smoothed where it is smooth."""

import numpy as np
from scipy import sparse

CREASE_DEG = 40.0  # faces that meet at a sharper angle are not smoothed across the edge
SAME_POINT = 1e-6  # vertices that differ by less are one


def face_areas_normals(
  vertices_V3: np.ndarray, faces_F3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Areas (F,) and unit normals (F, 3); the normal of a degenerate face is zero."""
  a, b, c = vertices_V3[faces_F3].swapaxes(0, 1)
  ab = b - a
  ac = c - a
  # As long as the parallelogram is large, of which the triangle is half.
  cross = np.cross(ab, ac)
  length = np.linalg.norm(cross, axis=1)
  divisor = np.maximum(length, 1e-300)
  normal = cross / divisor[:, None]
  return length / 2, normal


def corner_normals(
  vertices_V3, faces_F3, area_F, normal_F3, crease_deg: float = CREASE_DEG
) -> np.ndarray:
  """Normals (F, 3, 3) of every face corner, smoothed over edges flatter than `crease_deg`.

  Vertices at one place are one.
  """
  # Vertices at one place get one number.
  places = np.rint(vertices_V3 / SAME_POINT)
  _, point = np.unique(
    places.astype(np.int64),
    axis=0,
    return_inverse=True,
  )
  point = point.reshape(-1)
  faces = point[faces_F3]
  count = len(faces)
  corner = np.arange(3 * count).reshape(-1, 3)

  # Half-edges: the points at both ends, lower number first, and the face corners that lie there.
  next_point = np.roll(faces, -1, axis=1)
  next_corner = np.roll(corner, -1, axis=1)
  tail = faces.ravel()
  head = next_point.ravel()
  at_tail = corner.ravel()
  at_head = next_corner.ravel()
  flip = tail > head
  low = np.where(flip, head, tail)
  high = np.where(flip, tail, head)
  at_low = np.where(flip, at_head, at_tail)
  at_high = np.where(flip, at_tail, at_head)

  # Sorted, those of one edge lie together: neighbours a, b are two faces that share it.
  order = np.lexsort((high, low))
  a = order[:-1]
  b = order[1:]
  same_low = low[a] == low[b]
  same_high = high[a] == high[b]
  is_same_edge = same_low & same_high

  # Half-edge e belongs to face e // 3.
  normal_a = normal_F3[a // 3]
  normal_b = normal_F3[b // 3]
  cosine = np.einsum("ij,ij->i", normal_a, normal_b)
  crease = np.radians(crease_deg)
  is_flat = cosine > np.cos(crease)
  smooth = is_same_edge & is_flat
  a = a[smooth]
  b = b[smooth]

  # Corners that are linked across smooth edges share a normal.
  low_links = np.stack([at_low[a], at_low[b]])
  high_links = np.stack([at_high[a], at_high[b]])
  links = np.concatenate([low_links, high_links], axis=1)
  linked = np.ones(links.shape[1], bool)
  corners = 3 * count
  graph = sparse.coo_matrix((linked, links), shape=(corners, corners))
  groups, label = sparse.csgraph.connected_components(graph, directed=False)

  # It is the area-weighted mean of their faces'; where that cancels, each keeps its face's.
  by_area = normal_F3 * area_F[:, None]
  weighted = np.repeat(by_area, 3, axis=0)
  sums = [np.bincount(label, weighted[:, k], groups) for k in range(3)]
  total = np.stack(sums, -1)
  length = np.linalg.norm(total, axis=1, keepdims=True)
  unit = total / np.maximum(length, 1e-300)
  smoothed = unit[label].reshape(-1, 3, 3)
  own_length = length[label].reshape(-1, 3, 1)
  known = own_length > 1e-12
  return np.where(known, smoothed, normal_F3[:, None])
