"""Fine cubes of a sparse grid, kept as bricks of 4 x 4 x 4.

A surface fills few bricks, and inside a brick a neighbour is a step in an array: only the steps
that leave a brick need a table, one entry a brick. Made on the host from voxel coordinates alone,
with NumPy, so that data workers can make them; arrays over bricks have the brick as last axis,
which is long (narrow last axes are padded on TPUs).
"""

from typing import NamedTuple

import numpy as np

SIDE = 4  # cubes along a brick
CELLS = SIDE**3


class Bricks(NamedTuple):
  """Bricks that hold cubes, then those that only touch one: a surface may reach into these.

  The first V bricks are the caller's, in the caller's order. A neighbour that is missing has the
  index K. `active` says which cubes of the caller's bricks exist.
  """

  coords_3K: np.ndarray  # int32, in bricks; of padding 0
  object_K: np.ndarray  # int32, number of the object; bricks of different objects do not touch
  valid_K: np.ndarray  # bool, False in padding
  low_3K: np.ndarray  # int32, the brick one lower along x, y, z
  high_3K: np.ndarray  # int32, the brick one higher
  active_xyzV: np.ndarray  # bool, (4, 4, 4, V)


def around(
  coords_V3,
  resolution: int,
  *,
  valid_V=None,
  object_V=None,
  active_xyzV=None,
  capacity: int | None = None,
) -> Bricks:
  """Bricks at the coordinates (V, 3), and the ring of those that touch them.

  Coordinates are in bricks, 0 to `resolution` - 1; every cube of a brick exists unless
  `active_xyzV` says otherwise. The ring reaches from 0 to `resolution`, for the last corners of a
  grid lie there.

  valid_V: False where a row is padding, by default nowhere. object_V: number of the object that a
  brick belongs to, by default 0. capacity: bricks of the result, by default as many as there are.

  Raises ValueError for bricks outside the grid, given twice, or more than `capacity`.
  """
  # what was not said
  coords_V3 = np.asarray(coords_V3, np.int64).reshape(-1, 3)
  slots = len(coords_V3)
  if valid_V is None:
    valid_V = np.ones(slots, bool)
  if object_V is None:
    object_V = np.zeros(slots, np.int32)
  if active_xyzV is None:
    active_xyzV = np.ones((SIDE, SIDE, SIDE, slots), bool)
  valid_V = np.asarray(valid_V)
  object_V = np.asarray(object_V)
  check_range(coords_V3[valid_V], resolution)

  # a grid of brick numbers for each object, with a margin: steps from the ring stay inside
  grids = _Grids(resolution, objects=int(object_V.max(initial=0)) + 1)
  place_V = grids.place(coords_V3.T, object_V)
  own_N = place_V[valid_V]
  number = np.full(grids.size, -1, np.int32)
  number[own_N] = np.flatnonzero(valid_V)
  occupied = number >= 0
  if np.count_nonzero(occupied) < len(own_N):
    raise ValueError(_repeated(coords_V3[valid_V], own_N))

  # the ring
  ring_R = np.flatnonzero(grids.dilated(occupied) & ~occupied)
  size = slots + len(ring_R)
  if capacity is None:
    capacity = size
  if size > capacity:
    raise ValueError(
      f"{slots} bricks and a ring of {len(ring_R)} do not fit into {capacity}: raise the capacity"
    )
  number[ring_R] = np.arange(slots, size)
  ring_3R, ring_object_R = grids.coords(ring_R)

  # all bricks, and their neighbours
  valid_K = np.zeros(capacity, bool)
  valid_K[:slots] = valid_V
  valid_K[slots:size] = True
  object_K = np.zeros(capacity, np.int32)
  object_K[:slots] = object_V
  object_K[slots:size] = ring_object_R
  coords_3K = np.zeros((3, capacity), np.int32)
  coords_3K[:, :slots] = np.where(valid_V, coords_V3.T, 0)
  coords_3K[:, slots:size] = ring_3R
  place_K = grids.place(coords_3K, object_K)

  def neighbours(sign: int):
    tables = []
    for stride in grids.strides:
      # padding looks at a corner of the margin, where there is nothing
      step_K = np.where(valid_K, place_K + sign * stride, 0)
      found_K = number[step_K]
      tables.append(np.where(found_K >= 0, found_K, capacity))
    return np.stack(tables).astype(np.int32)

  return Bricks(
    coords_3K=coords_3K,
    object_K=object_K,
    valid_K=valid_K,
    low_3K=neighbours(-1),
    high_3K=neighbours(1),
    active_xyzV=np.asarray(active_xyzV) & valid_V,
  )


class _Grids:
  """Dense grids of bricks, one an object, with a margin of one below and two above."""

  def __init__(self, resolution: int, objects: int):
    self.side = resolution + 3
    self.objects = objects
    self.strides = (self.side**2, self.side, 1)
    self.size = objects * self.side**3

  def place(self, coords_3N, object_N):
    """Where a brick is."""
    place_N = object_N.astype(np.int64) * self.side**3
    for axis, stride in enumerate(self.strides):
      place_N = place_N + (coords_3N[axis] + 1) * stride
    return place_N

  def coords(self, place_N):
    """The inverse of `place`."""
    shape = (self.objects, self.side, self.side, self.side)
    object_N, *along = np.unravel_index(place_N, shape)
    return np.stack(along) - 1, object_N

  def dilated(self, occupied):
    """Bricks that are occupied or touch one that is, but none below the grid."""
    grid = occupied.reshape(self.objects, self.side, self.side, self.side)
    for axis in (1, 2, 3):
      # nothing is lost: the margin at the ends is empty
      lower = np.roll(grid, -1, axis)
      upper = np.roll(grid, 1, axis)
      grid = grid | lower | upper
    grid = grid.copy()
    grid[:, 0] = False
    grid[:, :, 0] = False
    grid[:, :, :, 0] = False
    return grid.reshape(-1)


def rounded(count: int) -> int:
  """The next of eight sizes an octave, at least 256: lists of such lengths need few programs."""
  if count <= 256:
    return 256
  unit = 1 << (count.bit_length() - 4)
  return -(-count // unit) * unit


def with_room(bricks: Bricks, capacity: int) -> Bricks:
  """The same bricks with padding up to `capacity`."""
  count = len(bricks.object_K)
  missing = capacity - count

  def padded(x, value=0):
    margins = [(0, 0)] * (x.ndim - 1) + [(0, missing)]
    return np.pad(x, margins, constant_values=value)

  def moved(table_3K):
    """Neighbours; one that is missing has the number of bricks as its index."""
    return padded(np.where(table_3K == count, capacity, table_3K), capacity)

  return Bricks(
    coords_3K=padded(bricks.coords_3K),
    object_K=padded(bricks.object_K),
    valid_K=padded(bricks.valid_K),
    low_3K=moved(bricks.low_3K),
    high_3K=moved(bricks.high_3K),
    active_xyzV=bricks.active_xyzV,
  )


def of_cubes(coords_N3, resolution: int) -> tuple[Bricks, np.ndarray]:
  """Bricks of a list of cubes, and the place (N,) of each among the 64 V of `active_xyzV`.

  coords_N3: distinct integer coordinates, 0 to `resolution` - 1, in any order; `resolution` is a
  multiple of 4. Raises ValueError for cubes outside the grid, given twice, or none.
  """
  coords_N3 = np.asarray(coords_N3, np.int64).reshape(-1, 3)
  if resolution % SIDE:
    raise ValueError(f"resolution = {resolution} is not a multiple of {SIDE}, the side of a brick")
  if not len(coords_N3):
    raise ValueError("there is no cube: an object needs at least one voxel")
  check_range(coords_N3, resolution)

  # bricks in (x, y, z) order, cubes at their places in them
  bricks = resolution // SIDE
  grid = (bricks, bricks, bricks)
  brick_N = np.ravel_multi_index(tuple((coords_N3 // SIDE).T), grid)
  listed_V, row_N = np.unique(brick_N, return_inverse=True)
  cell_N = np.ravel_multi_index(tuple((coords_N3 % SIDE).T), (SIDE, SIDE, SIDE))
  place_N = cell_N * len(listed_V) + row_N
  active = np.zeros(CELLS * len(listed_V), bool)
  active[place_N] = True
  if np.count_nonzero(active) < len(place_N):
    raise ValueError(_repeated(coords_N3, place_N))
  coords_V3 = np.stack(np.unravel_index(listed_V, grid), axis=1)
  active_xyzV = active.reshape(SIDE, SIDE, SIDE, len(listed_V))
  return around(coords_V3, bricks, active_xyzV=active_xyzV), place_N


def check_range(coords_N3, resolution: int) -> None:
  """Raises ValueError unless all coordinates are within 0 to `resolution` - 1."""
  outside_N = ((coords_N3 < 0) | (coords_N3 >= resolution)).any(axis=1)
  if outside_N.any():
    first = coords_N3[outside_N][0].tolist()
    raise ValueError(
      f"{outside_N.sum()} voxels lie outside the grid 0..{resolution - 1}, the first at {first}"
    )


def _repeated(coords_N3, key_N) -> str:
  """Says which coordinates are given twice."""
  _, first_N, count_N = np.unique(key_N, return_index=True, return_counts=True)
  twice_N = count_N > 1
  example = coords_N3[first_N[twice_N][0]].tolist()
  return f"{twice_N.sum()} voxels are given more than once, one at {example}: remove duplicates"
