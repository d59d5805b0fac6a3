"""Exact surface voxelisation: a voxel is set where its closed cube meets a triangle.

The test is the separating-axis theorem for a triangle and a box (Akenine-Moller 2001): three box
axes, the triangle's normal and nine cross products of their edges. It looks at one triangle at a
time, so holes, flipped faces and self-intersections do not matter, and the result does not change
when triangles are subdivided. Large triangles descend an octree, so the cost follows the surface.
"""

import numpy as np

RESOLUTION = 64
# voxels; contact closer than this counts, so rounding cannot decide a face that lies on a voxel
# boundary
TOUCH = 1e-9
CHUNK = 1 << 18  # (triangle, box) pairs tested at once
OCTANTS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)


def voxelize(
  vertices_V3: np.ndarray, faces_F3: np.ndarray, resolution: int = RESOLUTION
) -> np.ndarray:
  """Surface voxels (N, 3) uint8 of a mesh in [-0.5, 0.5]^3, in lexicographic order.

  Index i covers [i, i+1] / resolution - 0.5. `resolution` is a power of two, at most 256. Parts
  outside the cube are left out. Raises ValueError on another resolution.
  """
  if resolution & (resolution - 1) or not 1 <= resolution <= 256:
    raise ValueError(f"resolution is a power of two up to 256, got {resolution}")
  corners_F33 = (np.asarray(vertices_V3, np.float64)[faces_F3] + 0.5) * resolution
  triangles = _Triangles(corners_F33)
  extent = np.ptp(corners_F33, axis=1).max(1)
  # Start each triangle at boxes of about its own size: at most 3^3 of them meet its bounding box.
  own_level = np.floor(np.log2(np.maximum(extent, 1.0)))
  start_F = np.clip(own_level, 0, np.log2(resolution)).astype(int)

  # Level by level, the boxes that a triangle meets are cut into eight, down to voxels.
  occupied = np.zeros((resolution,) * 3, bool)
  pending = (np.zeros(0, int), np.zeros((0, 3), int))
  for level in range(int(start_F.max(initial=0)), -1, -1):
    fresh = _boxes_of(triangles, np.flatnonzero(start_F == level), level, resolution)
    triangle = np.concatenate([pending[0], fresh[0]])
    box = np.concatenate([pending[1], fresh[1]])
    hit = np.zeros(len(triangle), bool)
    for start in range(0, len(triangle), CHUNK):
      chunk = slice(start, start + CHUNK)
      hit[chunk] = triangles.meet(triangle[chunk], box[chunk], 1 << level)
    triangle, box = triangle[hit], box[hit]
    if level == 0:
      occupied[tuple(box.T)] = True
    else:
      pending = (np.repeat(triangle, 8), (box[:, None] * 2 + OCTANTS).reshape(-1, 3))
  return np.argwhere(occupied).astype(np.uint8)


def coarsen(voxels_N3: np.ndarray, factor: int = 2) -> np.ndarray:
  """The voxels of a grid coarser by `factor`: unique (coordinates // factor), lexicographic."""
  return np.unique(np.asarray(voxels_N3) // factor, axis=0)


class _Triangles:
  """What the separating-axis test needs of each triangle.

  One contiguous row a quantity: numpy reduces short axes slowly.
  """

  def __init__(self, corners_F33: np.ndarray):
    edges_F33 = np.roll(corners_F33, -1, axis=1) - corners_F33
    normal_F13 = np.cross(edges_F33[:, :1], edges_F33[:, 1:2])
    crosses_F93 = np.cross(edges_F33[:, :, None], np.eye(3)[None, None]).reshape(-1, 9, 3)
    axes = np.concatenate([normal_F13, crosses_F93], axis=1)
    # Unit length makes TOUCH a distance. A degenerate axis becomes zero and separates nothing.
    length = np.linalg.norm(axes, axis=-1, keepdims=True)
    axes = np.where(length > 1e-12, axes / np.maximum(length, 1e-300), 0.0)
    spans = np.einsum("fak,fck->fac", axes, corners_F33)
    self.axes_A3F = np.ascontiguousarray(axes.transpose(1, 2, 0))
    self.reach_AF = np.ascontiguousarray(np.abs(axes).sum(-1).T)
    self.low_AF = np.ascontiguousarray(spans.min(-1).T)
    self.high_AF = np.ascontiguousarray(spans.max(-1).T)
    self.box_low_3F = np.ascontiguousarray(corners_F33.min(1).T)
    self.box_high_3F = np.ascontiguousarray(corners_F33.max(1).T)

  def meet(self, triangle, box, size: int) -> np.ndarray:
    """Whether each (triangle, box) pair meets; boxes are closed cubes, `size` voxels a side."""
    # Cheapest first: bounding boxes, then the triangle's plane, then the nine other axes.
    half = size / 2
    center = np.ascontiguousarray((box.T + 0.5) * size)
    near = np.ones(len(triangle), bool)
    for k in range(3):
      near &= self.box_low_3F[k][triangle] <= center[k] + (half + TOUCH)
      near &= self.box_high_3F[k][triangle] >= center[k] - (half + TOUCH)
    alive = np.flatnonzero(near)
    alive = alive[self._overlap(triangle[alive], center[:, alive], half, range(1))]
    alive = alive[self._overlap(triangle[alive], center[:, alive], half, range(1, 10))]
    hit = np.zeros(len(triangle), bool)
    hit[alive] = True
    return hit

  def _overlap(self, triangle, center, half: float, axes) -> np.ndarray:
    """Whether the projections of each pair overlap on all of the listed axes."""
    overlap = np.ones(len(triangle), bool)
    for a in axes:
      zero = None if a == 0 else (a - 1) % 3  # edge x unit vector k has no component k
      along = sum(self.axes_A3F[a, k][triangle] * center[k] for k in range(3) if k != zero)
      reach = half * self.reach_AF[a] + TOUCH
      overlap &= along >= (self.low_AF[a] - reach)[triangle]
      overlap &= along <= (self.high_AF[a] + reach)[triangle]
    return overlap


def _boxes_of(triangles: _Triangles, triangle, level: int, resolution: int):
  """All boxes of side 2^level that the bounding boxes of the listed triangles touch.

  Returns (P,) triangle and (P, 3) box index.
  """
  size, count = 1 << level, resolution >> level
  # A face on a boundary belongs to the boxes on both sides, hence one box more than the floor of
  # its lower bound.
  low = np.ceil((triangles.box_low_3F[:, triangle].T - TOUCH) / size).astype(int) - 1
  high = np.floor((triangles.box_high_3F[:, triangle].T + TOUCH) / size).astype(int)
  low, high = np.clip(low, 0, count), np.clip(high, -1, count - 1)
  # Every triangle's boxes in a row, numbered by rank within the triangle.
  nx, ny, nz = np.maximum(high - low + 1, 0).T
  total = nx * ny * nz
  owner = np.repeat(np.arange(len(triangle)), total)
  rank = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
  sy, sz = ny[owner], nz[owner]
  offset = np.stack([rank // (sy * sz), rank // sz % sy, rank % sz], -1)
  return triangle[owner], low[owner] + offset
