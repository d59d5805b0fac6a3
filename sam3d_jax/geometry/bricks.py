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
  own_N3 = coords_V3[valid_V]
  check_range(own_N3, resolution)

  # one number a brick, with a margin of one below and two above: steps from the ring stay inside
  side = resolution + 3
  strides_3 = np.array((side * side, side, 1))
  objects = int(object_V.max(initial=0)) + 1
  key_N = (own_N3 + 1) @ strides_3 + object_V[valid_V].astype(np.int64) * side**3
  index = np.full(objects * side**3, -1, np.int32)
  index[key_N] = np.flatnonzero(valid_V)
  if np.count_nonzero(index >= 0) < len(key_N):
    raise ValueError(_repeated(own_N3, key_N))

  # the ring, by dilation along each axis in turn
  met = index >= 0
  grid = met.reshape(objects, side, side, side)
  for axis in (1, 2, 3):
    lower = np.zeros_like(grid)
    upper = np.zeros_like(grid)
    inner = [slice(None)] * 4
    inner[axis] = slice(1, None)
    outer = [slice(None)] * 4
    outer[axis] = slice(None, -1)
    upper[tuple(inner)] = grid[tuple(outer)]
    lower[tuple(outer)] = grid[tuple(inner)]
    grid = grid | lower | upper
  # no cube and no corner lies below the grid
  grid[:, 0] = False
  grid[:, :, 0] = False
  grid[:, :, :, 0] = False
  ring_R = np.flatnonzero(grid.reshape(-1) & ~met)
  size = slots + len(ring_R)
  if capacity is None:
    capacity = size
  if size > capacity:
    raise ValueError(
      f"{slots} bricks and a ring of {len(ring_R)} do not fit into {capacity}: raise the capacity"
    )
  index[ring_R] = np.arange(slots, size)

  # where everything is; padding is nowhere
  object_K = np.zeros(capacity, np.int32)
  object_K[:slots] = object_V
  object_K[slots:size] = ring_R // side**3
  coords_3K = np.zeros((3, capacity), np.int32)
  coords_3K[:, :slots] = np.where(valid_V, coords_V3.T, 0)
  ring_coords = np.unravel_index(ring_R % side**3, (side, side, side))
  coords_3K[:, slots:size] = np.stack(ring_coords) - 1
  valid_K = np.zeros(capacity, bool)
  valid_K[:slots] = valid_V
  valid_K[slots:size] = True

  # the neighbours along the axes
  places_K = (coords_3K.T.astype(np.int64) + 1) @ strides_3 + object_K.astype(np.int64) * side**3
  low_3K, high_3K = np.full((2, 3, capacity), capacity, np.int32)
  for axis, stride in enumerate(strides_3):
    for table, step in ((low_3K, -stride), (high_3K, stride)):
      found_K = index[np.where(valid_K, places_K + step, 0)]
      table[axis] = np.where(found_K >= 0, found_K, capacity)
  return Bricks(
    coords_3K=coords_3K,
    object_K=object_K,
    valid_K=valid_K,
    low_3K=low_3K,
    high_3K=high_3K,
    active_xyzV=np.asarray(active_xyzV) & valid_V,
  )


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
