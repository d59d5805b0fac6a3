"""Who is near whom among the voxels of one object: neighbours, halving, windows.

All of it is integers that depend on coordinates alone, and is made on the host, once an object: a
dense grid of indices answers every question in a few milliseconds (3 ms for the 27 neighbours of
32 768 voxels), where a search on a TPU lowers to scalar gathers. Pure NumPy, so that data workers
make the same tables as inference.

Dimension letters: V voxels of the object, T voxels of half the resolution.
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.errors import InputError

# (27, 3) steps to the neighbours, x slowest; tap 26 - d is the reverse of tap d
TAPS = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
# (8, 3) halves of a voxel, x slowest
CHILDREN = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


class Halved(NamedTuple):
  """The voxels of half the resolution that hold those of an object, in (x, y, z) order."""

  coords_T3: np.ndarray  # int32
  parent_V: np.ndarray  # int32, the coarse voxel of each voxel
  children_T8: np.ndarray  # int32, voxels by their place in CHILDREN, V where there is none


class Windows(NamedTuple):
  """Voxels of an object sorted by window; within a window their order is kept."""

  order_V: np.ndarray  # int32, voxel at a sorted position
  window_V: np.ndarray  # int32, number of the window at a sorted position, from 0


def checked(coords_V3, resolution: int, what: str = "the object") -> np.ndarray:
  """The coordinates as (V, 3) int32.

  what: whose they are, for messages. Raises InputError where they are not whole numbers in rows of
  three, where there are none, where one lies outside 0..resolution - 1 or occurs twice.
  """
  coords_V3 = np.asarray(coords_V3)
  if coords_V3.ndim != 2 or coords_V3.shape[1] != 3:
    raise InputError(f"{what} has voxel coordinates of shape {coords_V3.shape}, not (voxels, 3)")
  if len(coords_V3) == 0:
    raise InputError(f"{what} has no voxel: an occupancy without any has no texture to generate")
  if not np.issubdtype(coords_V3.dtype, np.integer):
    raise InputError(f"{what} has voxel coordinates of type {coords_V3.dtype}, not integers")

  # outside the grid
  outside_V = ((coords_V3 < 0) | (coords_V3 >= resolution)).any(1)
  if outside_V.any():
    first = coords_V3[outside_V][0].tolist()
    raise InputError(
      f"{what} has {outside_V.sum()} of {len(coords_V3)} voxels outside 0..{resolution - 1}, the "
      f"first at {first}: bring them to a grid of {resolution}^3"
    )

  # the same voxel twice
  coords_V3 = coords_V3.astype(np.int32)
  counts = np.bincount(_cell_numbers(coords_V3, resolution))
  if counts.max() > 1:
    twice = np.unravel_index(counts.argmax(), (resolution,) * 3)
    place = [int(c) for c in twice]
    raise InputError(
      f"{what} has the voxel {place} {counts.max()} times: voxels are a set, merge them and their "
      "features first"
    )
  return coords_V3


def neighbours(coords_V3: np.ndarray, resolution: int) -> np.ndarray:
  """(27, V) int32: the voxel one step away in each of TAPS, V where there is none.

  coords_V3: distinct, within 0..resolution - 1. Memory: a grid of (resolution + 2)^3 int32.
  """
  voxels = len(coords_V3)
  # A margin of one cell, so that no step leaves the grid.
  side = resolution + 2
  grid = np.full(side**3, voxels, np.int32)
  strides = np.array([side * side, side, 1], np.int32)
  cell_V = (coords_V3 + 1) @ strides
  grid[cell_V] = np.arange(voxels, dtype=np.int32)
  steps_T = TAPS @ strides
  return grid[cell_V + steps_T[:, None]]


def halved(coords_V3: np.ndarray, resolution: int) -> Halved:
  """The voxels at half the resolution, and who lies in which."""
  voxels = len(coords_V3)
  coarse_V3 = coords_V3 // 2
  cells = -(-resolution // 2)

  # cells that are occupied, in (x, y, z) order
  cell_V = _cell_numbers(coarse_V3, cells)
  occupied = np.zeros(cells**3, bool)
  occupied[cell_V] = True
  cell_T = np.flatnonzero(occupied)
  number = np.zeros(cells**3, np.int32)
  number[cell_T] = np.arange(len(cell_T), dtype=np.int32)
  parent_V = number[cell_V]

  # whose children they are, each at its own place
  place_V = _cell_numbers(coords_V3 % 2, 2)
  children_T8 = np.full((len(cell_T), 8), voxels, np.int32)
  children_T8[parent_V, place_V] = np.arange(voxels, dtype=np.int32)

  coords_T3 = np.stack(np.unravel_index(cell_T, (cells,) * 3), axis=-1)
  return Halved(coords_T3.astype(np.int32), parent_V, children_T8)


def windows(coords_V3: np.ndarray, resolution: int, window: int, shift: int) -> Windows:
  """Voxels by their cell, (coordinate + shift) // window; cells in (x, y, z) order."""
  cells = (resolution - 1 + shift) // window + 1
  cell_V = _cell_numbers((coords_V3 + shift) // window, cells)
  order_V = np.argsort(cell_V, kind="stable").astype(np.int32)

  # a window begins where the cell changes
  sorted_V = cell_V[order_V]
  begins_V = np.ones(len(sorted_V), bool)
  begins_V[1:] = sorted_V[1:] != sorted_V[:-1]
  window_V = np.cumsum(begins_V, dtype=np.int32) - 1
  return Windows(order_V, window_V.astype(np.int32))


def _cell_numbers(coords_V3: np.ndarray, side: int) -> np.ndarray:
  """Number of the cell (x, y, z) of a grid of side^3, x slowest."""
  strides = np.array([side * side, side, 1], np.int64)
  return coords_V3 @ strides
