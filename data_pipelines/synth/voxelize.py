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
  is_power_of_two = resolution & (resolution - 1) == 0
  if not is_power_of_two or not 1 <= resolution <= 256:
    raise ValueError(f"resolution is a power of two up to 256, got {resolution}")
  # From the unit cube to units of voxels.
  vertices_V3 = np.asarray(vertices_V3, np.float64)
  own_F33 = vertices_V3[faces_F3]
  corners_F33 = (own_F33 + 0.5) * resolution
  triangles = _Triangles(corners_F33)

  # Start each triangle at boxes of about its own size: at most 3^3 of them meet its bounding box.
  sides = np.ptp(corners_F33, axis=1)
  extent = np.maximum(sides.max(1), 1.0)
  own_level = np.floor(np.log2(extent))
  start_F = np.clip(own_level, 0, np.log2(resolution)).astype(int)

  # Level by level, the boxes that a triangle meets are cut into eight, down to voxels.
  occupied = np.zeros((resolution,) * 3, bool)
  pending_triangle = np.zeros(0, int)
  pending_box = np.zeros((0, 3), int)
  coarsest = int(start_F.max(initial=0))
  for level in range(coarsest, -1, -1):
    # Triangles of this size join those whose boxes were cut.
    starting = np.flatnonzero(start_F == level)
    fresh_triangle, fresh_box = _boxes_of(
      triangles,
      starting,
      level,
      resolution,
    )
    triangle = np.concatenate([pending_triangle, fresh_triangle])
    box = np.concatenate([pending_box, fresh_box])

    # In chunks, so that memory does not grow with the mesh.
    hit = np.zeros(len(triangle), bool)
    for start in range(0, len(triangle), CHUNK):
      chunk = slice(start, start + CHUNK)
      hit[chunk] = triangles.meet(triangle[chunk], box[chunk], 1 << level)
    triangle = triangle[hit]
    box = box[hit]

    # Boxes of level 0 are voxels.
    if level == 0:
      occupied[tuple(box.T)] = True
    else:
      children = box[:, None] * 2 + OCTANTS
      pending_triangle = np.repeat(triangle, 8)
      pending_box = children.reshape(-1, 3)
  return np.argwhere(occupied).astype(np.uint8)


def coarsen(voxels_N3: np.ndarray, factor: int = 2) -> np.ndarray:
  """The voxels of a grid coarser by `factor`: unique (coordinates // factor), lexicographic."""
  cells = np.asarray(voxels_N3) // factor
  return np.unique(cells, axis=0)


class _Triangles:
  """What the separating-axis test needs of each triangle.

  One contiguous row a quantity: numpy reduces short axes slowly.
  """

  def __init__(self, corners_F33: np.ndarray):
    # The normal, and every edge times every axis of the box.
    next_F33 = np.roll(corners_F33, -1, axis=1)
    edges_F33 = next_F33 - corners_F33
    first_F13 = edges_F33[:, :1]
    second_F13 = edges_F33[:, 1:2]
    normal_F13 = np.cross(first_F13, second_F13)
    box_axes = np.eye(3)[None, None]
    crosses_F333 = np.cross(edges_F33[:, :, None], box_axes)
    crosses_F93 = crosses_F333.reshape(-1, 9, 3)
    axes_FA3 = np.concatenate([normal_F13, crosses_F93], axis=1)

    # Unit length makes TOUCH a distance. A degenerate axis becomes zero and separates nothing.
    length_FA1 = np.linalg.norm(
      axes_FA3,
      axis=-1,
      keepdims=True,
    )
    unit_FA3 = axes_FA3 / np.maximum(length_FA1, 1e-300)
    has_length_FA1 = length_FA1 > 1e-12
    axes_FA3 = np.where(has_length_FA1, unit_FA3, 0.0)

    # What the triangle, and a box of half side 1, span along each axis.
    spans_FAC = np.einsum("fak,fck->fac", axes_FA3, corners_F33)
    reach_FA = np.abs(axes_FA3).sum(-1)
    low_FA = spans_FAC.min(-1)
    high_FA = spans_FAC.max(-1)
    axes_A3F = axes_FA3.transpose(1, 2, 0)
    box_low_F3 = corners_F33.min(1)
    box_high_F3 = corners_F33.max(1)

    self.axes_A3F = np.ascontiguousarray(axes_A3F)
    self.reach_AF = np.ascontiguousarray(reach_FA.T)
    self.low_AF = np.ascontiguousarray(low_FA.T)
    self.high_AF = np.ascontiguousarray(high_FA.T)
    self.box_low_3F = np.ascontiguousarray(box_low_F3.T)
    self.box_high_3F = np.ascontiguousarray(box_high_F3.T)

  def meet(self, triangle, box, size: int) -> np.ndarray:
    """Whether each (triangle, box) pair meets; boxes are closed cubes, `size` voxels a side."""
    half = size / 2
    centres = (box.T + 0.5) * size
    center = np.ascontiguousarray(centres)

    # Cheapest first: bounding boxes, then the triangle's plane, then the nine other axes.
    reach = half + TOUCH
    near = np.ones(len(triangle), bool)
    for k in range(3):
      lowest = self.box_low_3F[k][triangle]
      highest = self.box_high_3F[k][triangle]
      near &= lowest <= center[k] + reach
      near &= highest >= center[k] - reach
    alive = np.flatnonzero(near)
    for axes in (range(1), range(1, 10)):
      overlap = self._overlap(
        triangle[alive],
        center[:, alive],
        half,
        axes,
      )
      alive = alive[overlap]
    hit = np.zeros(len(triangle), bool)
    hit[alive] = True
    return hit

  def _overlap(self, triangle, center, half: float, axes) -> np.ndarray:
    """Whether the projections of each pair overlap on all of the listed axes."""
    overlap = np.ones(len(triangle), bool)
    for a in axes:
      # an edge times the unit vector k has no component k
      zero = None if a == 0 else (a - 1) % 3
      components = [k for k in range(3) if k != zero]
      # where the box's centre lies along the axis, and how far the box reaches from there
      axis_3F = self.axes_A3F[a]
      along = sum(axis_3F[k][triangle] * center[k] for k in components)
      reach = half * self.reach_AF[a] + TOUCH
      lowest = self.low_AF[a] - reach
      highest = self.high_AF[a] + reach
      overlap &= along >= lowest[triangle]
      overlap &= along <= highest[triangle]
    return overlap


def _boxes_of(triangles: _Triangles, triangle, level: int, resolution: int):
  """All boxes of side 2^level that the bounding boxes of the listed triangles touch.

  Returns (P,) triangle and (P, 3) box index.
  """
  size = 1 << level
  count = resolution >> level

  # A face on a boundary belongs to the boxes on both sides, hence one box more than the floor of
  # its lower bound.
  lowest = triangles.box_low_3F[:, triangle].T
  highest = triangles.box_high_3F[:, triangle].T
  above_low = np.ceil((lowest - TOUCH) / size)
  low = above_low.astype(int) - 1
  high = np.floor((highest + TOUCH) / size)
  high = high.astype(int)
  low = np.clip(low, 0, count)
  high = np.clip(high, -1, count - 1)

  # Every triangle's boxes in a row, numbered by rank within the triangle.
  sides = np.maximum(high - low + 1, 0)
  nx, ny, nz = sides.T
  total = nx * ny * nz
  first = np.cumsum(total) - total
  numbers = np.arange(len(triangle))
  owner = np.repeat(numbers, total)
  rank = np.arange(total.sum())
  rank = rank - np.repeat(first, total)

  # The rank counts boxes along z first, then y, then x.
  sy = ny[owner]
  sz = nz[owner]
  x = rank // (sy * sz)
  y = rank // sz % sy
  z = rank % sz
  offset = np.stack([x, y, z], -1)
  return triangle[owner], low[owner] + offset
