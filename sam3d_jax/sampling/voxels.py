"""Between the stages: from occupancy logits to the active voxels of the texture stage. On the host,
as sizes depend on the data.
"""

import itertools

import numpy as np

MAX_VOXELS = 42_000


def occupied(logits_XYZ: np.ndarray) -> np.ndarray:
  """Coordinates (V, 3) int32 of the voxels with logit > 0, in x-major order."""
  # A logit of 0 is a probability of one half.
  is_occupied = np.asarray(logits_XYZ) > 0
  return np.argwhere(is_occupied).astype(np.int32)


def surface(coords_V3: np.ndarray, distance: int = 1) -> np.ndarray:
  """Drops interior voxels: those whose (2 distance + 1)^3 neighbourhood is fully occupied. Keeps
  the order.

  What lies outside the grid is empty, so voxels at its border stay.
  """
  coords_V3 = np.asarray(coords_V3)
  if len(coords_V3) == 0:
    return coords_V3

  # a grid around the voxels, with a margin in which there are none
  low = coords_V3.min(0) - distance
  local = coords_V3 - low
  size = local.max(0) + distance + 1
  grid = np.zeros(size, bool)
  grid[tuple(local.T)] = True

  # whose neighbourhood is full
  full = np.ones(len(local), bool)
  offsets = range(-distance, distance + 1)
  for offset in itertools.product(offsets, repeat=3):
    neighbour = local + offset
    full &= grid[tuple(neighbour.T)]
  return coords_V3[~full]


def halve(coords_V3: np.ndarray) -> np.ndarray:
  """Shrinks the occupied box to half its extents about its centre and merges voxels that meet.

  The published arithmetic: along an axis that holds n voxels from first to last, coordinates are
  scaled by (n / 2 - 1) / (n - 1), rounded half to even, and clamped to the target bounds, whose
  fractions are cut off. Returns sorted rows.
  """
  x = np.asarray(coords_V3, np.float32)
  low = x.min(0)
  high = x.max(0)
  centre = (low + high) / 2
  extent = high - low + 1

  # from the first to the last voxel; an axis of one voxel stays where it is
  half = extent / 2 - 1
  target = np.maximum(half, 0)
  source = np.maximum(extent - 1, 1)
  offset = x - centre
  scaled = offset * target / source
  moved = np.round(scaled + centre)

  # within the bounds of half the box
  reach = target / 2
  first = np.trunc(centre - reach)
  last = np.trunc(centre + reach)
  clamped = np.clip(moved, first, last)
  merged = clamped.astype(np.int32)
  return np.unique(merged, axis=0)


def active_voxels(
  logits_XYZ: np.ndarray, *, max_voxels: int = MAX_VOXELS
) -> tuple[np.ndarray, int]:
  """Active voxels of a decoded occupancy: thresholded, without interior, halved if too many remain.

  Returns:
    coords (V, 3) int32 and the factor (1 or 2) by which they were shrunk, so that at most
    `max_voxels` remain: a size found later has to be multiplied by it.
  """
  coords_V3 = occupied(logits_XYZ)
  # Nothing is seen of the inside: it needs no texture.
  coords_V3 = surface(coords_V3)
  return limit(coords_V3, max_voxels=max_voxels)


def limit(coords_V3: np.ndarray, *, max_voxels: int = MAX_VOXELS) -> tuple[np.ndarray, int]:
  """(coords, 1) if there are at most `max_voxels`, else (halved coords, 2)."""
  if len(coords_V3) <= max_voxels:
    return coords_V3, 1
  # Halving once leaves an eighth of a solid, a quarter of a surface.
  return halve(coords_V3), 2
