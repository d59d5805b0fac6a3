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
  cross = np.cross(b - a, c - a)
  length = np.linalg.norm(cross, axis=1)
  normal = cross / np.maximum(length, 1e-300)[:, None]
  return length / 2, normal


def corner_normals(
  vertices_V3, faces_F3, area_F, normal_F3, crease_deg: float = CREASE_DEG
) -> np.ndarray:
  """Normals (F, 3, 3) of every face corner, smoothed over edges flatter than `crease_deg`.

  Vertices at one place are one.
  """
  places = np.rint(vertices_V3 / SAME_POINT).astype(np.int64)
  _, point = np.unique(
    places,
    axis=0,
    return_inverse=True,
  )
  faces = point.reshape(-1)[faces_F3]
  count = len(faces)
  corner = np.arange(3 * count).reshape(-1, 3)

  # Half-edges: the points at both ends, lower number first, and the face corners that lie there.
  tail = faces.ravel()
  head = np.roll(faces, -1, axis=1).ravel()
  at_tail = corner.ravel()
  at_head = np.roll(corner, -1, axis=1).ravel()
  flip = tail > head
  low = np.where(flip, head, tail)
  high = np.where(flip, tail, head)
  at_low = np.where(flip, at_head, at_tail)
  at_high = np.where(flip, at_tail, at_head)

  # Sorted, those of one edge lie together: neighbours a, b are two faces that share it.
  order = np.lexsort((high, low))
  a = order[:-1]
  b = order[1:]
  is_same_edge = (low[a] == low[b]) & (high[a] == high[b])
  cosine = np.einsum("ij,ij->i", normal_F3[a // 3], normal_F3[b // 3])
  is_flat = cosine > np.cos(np.radians(crease_deg))
  smooth = is_same_edge & is_flat
  a = a[smooth]
  b = b[smooth]

  # Corners that are linked across smooth edges share a normal.
  low_links = np.stack([at_low[a], at_low[b]])
  high_links = np.stack([at_high[a], at_high[b]])
  links = np.concatenate([low_links, high_links], axis=1)
  linked = np.ones(links.shape[1], bool)
  graph = sparse.coo_matrix((linked, links), shape=(3 * count, 3 * count))
  groups, label = sparse.csgraph.connected_components(graph, directed=False)

  # It is the area-weighted mean of their faces'; where that cancels, each keeps its face's.
  weighted = np.repeat(normal_F3 * area_F[:, None], 3, axis=0)
  sums = [np.bincount(label, weighted[:, k], groups) for k in range(3)]
  total = np.stack(sums, -1)
  length = np.linalg.norm(total, axis=1, keepdims=True)
  unit = total / np.maximum(length, 1e-300)
  smoothed = unit[label].reshape(-1, 3, 3)
  known = length[label].reshape(-1, 3, 1) > 1e-12
  return np.where(known, smoothed, normal_F3[:, None])
