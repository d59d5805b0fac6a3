"""Objects of any number of voxels, packed into rows of a fixed number of slots.

A program is compiled for a shape, and objects have 600 to 32 768 voxels and more. So several
objects share a row of V slots, one after the other, and every row of a batch has the same shape.
Each slot says whose it is; the models never let one object see another.

An object starts at a multiple of BLOCK slots on each level. Sums over its voxels then run over the
same blocks wherever it lies, so that neither its place nor its neighbours change its result, not
even in the last bit. That costs BLOCK / 2 slots an object on average, and no more.

Dimension letters: R rows, V slots of a row, T slots at half the resolution, K objects that a row
holds at most, N objects packed.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.geometry import voxel_tables
from sam3d_jax.geometry.voxel_tables import TAPS

BLOCK = 128


class WindowOrder(NamedTuple):
  """The slots of each row sorted by object and window, for one shift of the windows."""

  order_RV: np.ndarray  # int32, slot at a sorted position
  inverse_RV: np.ndarray  # int32, sorted position of a slot
  # int32, number of the window at a sorted position, nondecreasing along the row; padding carries
  # the number of the window before it
  window_RV: np.ndarray
  valid_RV: np.ndarray  # bool, whether there is a voxel at a sorted position


class VoxelLevel(NamedTuple):
  """All voxels of a packed batch at one resolution."""

  coords_RV3: np.ndarray  # int32, 0 in padding
  # int32, number of the object in its row, nondecreasing along the row; padding carries the number
  # of the object before it
  object_RV: np.ndarray
  valid_RV: np.ndarray  # bool, False in padding
  start_RK: np.ndarray  # int32, first slot of each object; V where there is no object
  count_RK: np.ndarray  # int32, voxels of each object
  # int32, slots of the same row in the order of voxel_tables.TAPS, V where there is none; None: the
  # level has no convolutions
  neighbours_R27V: np.ndarray | None = None
  windows: tuple[WindowOrder, ...] | None = None  # of shift 0 and of half a window


class Pooling(NamedTuple):
  """Who lies in which voxel of half the resolution."""

  parent_RV: np.ndarray  # int32, coarse slot of each slot, T in padding
  children_RT8: np.ndarray  # int32, slots of each coarse slot, V where there is none


class PackedVoxels(NamedTuple):
  """The voxels of a packed batch at their own resolution and, for models that pool, at half."""

  fine: VoxelLevel
  coarse: VoxelLevel | None = None
  pooling: Pooling | None = None


@dataclasses.dataclass(frozen=True)
class RowShape:
  """What a row holds.

  voxels, coarse: slots at the voxels' resolution and at half of it, multiples of BLOCK; coarse = 0
    for models that do not pool. Surfaces have 4 to 4.1 times fewer voxels at half the resolution.
  objects: most objects of a row.
  """

  voxels: int
  coarse: int
  objects: int

  def __post_init__(self):
    for name in ("voxels", "coarse"):
      slots = getattr(self, name)
      if slots % BLOCK:
        raise InputError(f"{name} = {slots} slots of a row is not a multiple of {BLOCK}")


@dataclasses.dataclass(frozen=True)
class Tables:
  """Which tables a model needs.

  resolution: voxels along a side of the grid. neighbours: of convolutions. pooled: the level of
  half the resolution, with its neighbours. window: side of the attention windows, 0 for none.
  """

  resolution: int = 64
  neighbours: bool = False
  pooled: bool = False
  window: int = 0


class ObjectTables(NamedTuple):
  """One object, before it has a place in a row. Indices count from its own first voxel."""

  coords_V3: np.ndarray
  neighbours_27V: np.ndarray | None
  halved: voxel_tables.Halved | None
  coarse_neighbours_27T: np.ndarray | None
  windows: tuple[voxel_tables.Windows, ...]


class Place(NamedTuple):
  """Where an object lies."""

  row: int
  number: int  # among the objects of its row
  start: int  # its first slot
  count: int  # of its voxels
  coarse_start: int
  coarse_count: int


class Packed(NamedTuple):
  """Objects in rows, and where each of them went."""

  voxels: PackedVoxels
  places: tuple[Place, ...]
  shape: RowShape

  @property
  def rows(self) -> int:
    return len(self.voxels.fine.coords_RV3)

  def fill(self, features: Sequence[np.ndarray]) -> np.ndarray:
    """Features (count, C) of each object to (R, V, C), zero in the padding."""
    first = np.asarray(features[0])
    packed_RVC = np.zeros((self.rows, self.shape.voxels, first.shape[1]), first.dtype)
    for place, feats_VC in zip(self.places, features, strict=True):
      if len(feats_VC) != place.count:
        raise InputError(f"{len(feats_VC)} rows of features for an object of {place.count} voxels")
      packed_RVC[place.row, place.start : place.start + place.count] = feats_VC
    return packed_RVC

  def split(self, packed_RVC) -> list[np.ndarray]:
    """(R, V, C) to the rows (count, C) of each object."""
    packed_RVC = np.asarray(packed_RVC)
    found = []
    for place in self.places:
      found.append(packed_RVC[place.row, place.start : place.start + place.count])
    return found


def object_tables(coords_V3, tables: Tables, what: str = "the object") -> ObjectTables:
  """The tables of one object, in milliseconds. Raises InputError as `voxel_tables.checked` does."""
  resolution = tables.resolution
  coords_V3 = voxel_tables.checked(coords_V3, resolution, what)

  neighbours = None
  if tables.neighbours:
    neighbours = voxel_tables.neighbours(coords_V3, resolution)

  # half the resolution, always with convolutions of its own
  halved = None
  coarse_neighbours = None
  if tables.pooled:
    halved = voxel_tables.halved(coords_V3, resolution)
    coarse_neighbours = voxel_tables.neighbours(halved.coords_T3, -(-resolution // 2))

  # even blocks attend in windows, odd ones in windows moved by half of one
  windows = ()
  if tables.window:
    straight = voxel_tables.windows(coords_V3, resolution, tables.window, 0)
    shifted = voxel_tables.windows(coords_V3, resolution, tables.window, tables.window // 2)
    windows = (straight, shifted)
  return ObjectTables(coords_V3, neighbours, halved, coarse_neighbours, windows)


def aligned(count: int) -> int:
  """Slots that an object of `count` voxels takes."""
  return -(-count // BLOCK) * BLOCK


def smallest_shape(objects: Sequence[ObjectTables]) -> RowShape:
  """The shape of one row that holds all of the objects."""
  voxels = sum(aligned(len(one.coords_V3)) for one in objects)
  coarse = sum(aligned(coarse_count(one)) for one in objects)
  return RowShape(voxels, coarse, len(objects))


def coarse_count(one: ObjectTables) -> int:
  """Voxels of an object at half the resolution; 0 where that level is not made."""
  if one.halved is None:
    return 0
  return len(one.halved.coords_T3)


def first_fit(
  counts: Sequence[tuple[int, int]], shape: RowShape, rows: int | None = None
) -> list[list[int]]:
  """Which objects go into which row: the largest first, each into the first row with room.

  counts: (voxels, voxels at half the resolution) of each object. rows: how many there are; None: as
  many as it takes. Raises InputError for an object larger than a row, and where `rows` are full.
  """
  # equal sizes keep their order, so that the result depends on nothing else
  by_size = sorted(range(len(counts)), key=lambda n: -counts[n][0])
  filled: list[list[int]] = [[] for _ in range(rows or 0)]
  free = [(shape.voxels, shape.coarse)] * len(filled)

  for n in by_size:
    count, coarse = counts[n]
    need, coarse_need = aligned(count), aligned(coarse)
    if need > shape.voxels or coarse_need > shape.coarse:
      raise InputError(
        f"object {n} needs {need} slots and {coarse_need} at half the resolution, more than the "
        f"{shape.voxels} and {shape.coarse} of a row: allow longer rows or coarsen the object"
      )

    # the first row with room, or a new one
    for row, (left, coarse_left) in enumerate(free):
      fits = need <= left and coarse_need <= coarse_left
      if fits and len(filled[row]) < shape.objects:
        break
    else:
      if rows is not None:
        raise InputError(
          f"object {n} of {count} voxels finds no room in {rows} rows of {shape.voxels} slots: "
          "take more rows or fewer objects"
        )
      row = len(filled)
      filled.append([])
      free.append((shape.voxels, shape.coarse))
    left, coarse_left = free[row]
    filled[row].append(n)
    free[row] = left - need, coarse_left - coarse_need
  return filled


def pack(
  objects: Sequence[ObjectTables],
  shape: RowShape | None = None,
  rows: Sequence[Sequence[int]] | None = None,
) -> Packed:
  """Objects in rows of one shape.

  shape: None: the smallest that holds all objects in one row. rows: numbers of the objects of each
  row in their order, as `first_fit` gives them; None: by `first_fit`. Raises InputError for objects
  that do not fit.
  """
  if shape is None:
    shape = smallest_shape(objects)
  if rows is None:
    counts = [(len(one.coords_V3), coarse_count(one)) for one in objects]
    rows = first_fit(counts, shape)

  # a place for each object
  places: list[Place | None] = [None] * len(objects)
  for row, members in enumerate(rows):
    start = coarse_start = 0
    for number, n in enumerate(members):
      count, coarse = len(objects[n].coords_V3), coarse_count(objects[n])
      places[n] = Place(row, number, start, count, coarse_start, coarse)
      start += aligned(count)
      coarse_start += aligned(coarse)
    if start > shape.voxels or coarse_start > shape.coarse or len(members) > shape.objects:
      raise InputError(
        f"row {row} has {len(members)} objects that need {start} slots and {coarse_start} at half "
        f"the resolution: a row holds {shape.objects}, {shape.voxels} and {shape.coarse}"
      )
  assert None not in places, "every object is in a row"
  voxels = _filled(objects, places, shape, len(rows))
  return Packed(voxels, tuple(places), shape)


def _filled(
  objects: Sequence[ObjectTables], places: Sequence[Place], shape: RowShape, rows: int
) -> PackedVoxels:
  """The tables of all objects, moved to their places."""
  V, T, K = shape.voxels, shape.coarse, shape.objects
  fine_spans = [(p.row, p.number, p.start, p.count) for p in places]
  coarse_spans = [(p.row, p.number, p.coarse_start, p.coarse_count) for p in places]
  first = objects[0]

  # the voxels' own level
  fine = _level(rows, V, K, fine_spans, [one.coords_V3 for one in objects])
  if first.neighbours_27V is not None:
    near = _moved_neighbours(rows, V, fine_spans, [one.neighbours_27V for one in objects])
    fine = fine._replace(neighbours_R27V=near)
  if first.windows:
    orders = []
    for shift in range(len(first.windows)):
      of_shift = [one.windows[shift] for one in objects]
      orders.append(_window_order(rows, V, fine_spans, of_shift))
    fine = fine._replace(windows=tuple(orders))
  if first.halved is None:
    return PackedVoxels(fine)

  # half the resolution
  coarse = _level(rows, T, K, coarse_spans, [one.halved.coords_T3 for one in objects])
  near = _moved_neighbours(
    rows,
    T,
    coarse_spans,
    [one.coarse_neighbours_27T for one in objects],
  )
  coarse = coarse._replace(neighbours_R27V=near)

  # and what lies where
  parent_RV = np.full((rows, V), T, np.int32)
  children_RT8 = np.full((rows, T, 8), V, np.int32)
  for place, one in zip(places, objects, strict=True):
    fine_slots = slice(place.start, place.start + place.count)
    coarse_slots = slice(place.coarse_start, place.coarse_start + place.coarse_count)
    parent_RV[place.row, fine_slots] = place.coarse_start + one.halved.parent_V
    children_RT8[place.row, coarse_slots] = _moved(
      one.halved.children_T8, place.count, place.start, V
    )
  return PackedVoxels(fine, coarse, Pooling(parent_RV, children_RT8))


def _level(rows: int, slots: int, objects: int, spans, coords: Sequence[np.ndarray]) -> VoxelLevel:
  """Coordinates, objects and validity of the slots of one resolution."""
  coords_RV3 = np.zeros((rows, slots, 3), np.int32)
  object_RV = np.zeros((rows, slots), np.int32)
  valid_RV = np.zeros((rows, slots), bool)
  start_RK = np.full((rows, objects), slots, np.int32)
  count_RK = np.zeros((rows, objects), np.int32)
  # Objects in the order of their rows: each takes over the rest of its row from the one before.
  for n in sorted(range(len(spans)), key=lambda n: spans[n][:2]):
    row, number, start, count = spans[n]
    coords_RV3[row, start : start + count] = coords[n]
    valid_RV[row, start : start + count] = True
    object_RV[row, start:] = number
    start_RK[row, number] = start
    count_RK[row, number] = count
  return VoxelLevel(coords_RV3, object_RV, valid_RV, start_RK, count_RK)


def _moved(index: np.ndarray, none: int, start: int, none_in_row: int) -> np.ndarray:
  """Indices from an object's first voxel to indices in its row."""
  return np.where(index == none, none_in_row, index + start).astype(np.int32)


def _moved_neighbours(rows: int, slots: int, spans, tables: Sequence[np.ndarray]) -> np.ndarray:
  """(R, 27, V) from the (27, count) of each object."""
  near_R27V = np.full((rows, len(TAPS), slots), slots, np.int32)
  for (row, _, start, count), table in zip(spans, tables, strict=True):
    near_R27V[row, :, start : start + count] = _moved(table, count, start, slots)
  return near_R27V


def _window_order(
  rows: int, slots: int, spans, orders: Sequence[voxel_tables.Windows]
) -> WindowOrder:
  """Slots by object and window; an object keeps its slots, its padding stays at their end."""
  order_RV = np.tile(np.arange(slots, dtype=np.int32), (rows, 1))
  window_RV = np.zeros((rows, slots), np.int32)
  valid_RV = np.zeros((rows, slots), bool)
  next_window = [0] * rows
  for n in sorted(range(len(spans)), key=lambda n: spans[n][:2]):
    row, _, start, count = spans[n]
    numbered_V = orders[n].window_V + next_window[row]
    order_RV[row, start : start + count] = start + orders[n].order_V
    window_RV[row, start : start + count] = numbered_V
    valid_RV[row, start : start + count] = True
    # padding up to the next object
    window_RV[row, start + count :] = numbered_V[-1]
    next_window[row] = int(numbered_V[-1]) + 1

  inverse_RV = np.argsort(order_RV, axis=1).astype(np.int32)
  return WindowOrder(order_RV, inverse_RV, window_RV, valid_RV)
