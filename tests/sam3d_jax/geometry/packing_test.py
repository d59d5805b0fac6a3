"""Laws of voxel tables and of packing objects into rows."""

import numpy as np
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.geometry import packing, voxel_tables
from sam3d_jax.geometry.packing import BLOCK, RowShape
from tests.support.sparse_tensors import ALL_TABLES, SIDE, packed, voxels

RNG = np.random.default_rng(0)


def test_neighbours_are_found_at_the_far_corner_and_never_across_a_face():
  top = SIDE - 1
  coords = np.asarray([[top, top, top], [top, top, top - 1], [0, 0, 0], [top, 0, 0]])
  near_TV = voxel_tables.neighbours(coords, SIDE)

  # (voxel, offset) -> the neighbour there
  found = {}
  for t, v in np.argwhere(near_TV < 4):
    offset = tuple(voxel_tables.TAPS[t].tolist())
    found[int(v), offset] = int(near_TV[t, v])

  # each voxel itself, and the one pair that lies side by side
  expected = {(v, (0, 0, 0)): v for v in range(4)}
  expected[0, (0, 0, -1)] = 1
  expected[1, (0, 0, 1)] = 0
  assert found == expected


def test_neighbours_are_mutual_and_taps_reverse():
  coords = voxels(RNG, 150)
  near_TV = voxel_tables.neighbours(coords, SIDE)
  for t, v in np.argwhere(near_TV < len(coords)):
    assert near_TV[26 - t, near_TV[t, v]] == v


@pytest.mark.parametrize("resolution", [SIDE, 7])
def test_halving_knows_parents_and_children(resolution):
  coords = voxels(RNG, 60, resolution)
  halved = voxel_tables.halved(coords, resolution)
  expected = np.unique(coords // 2, axis=0)  # sorted rows
  np.testing.assert_array_equal(halved.coords_T3, expected)
  np.testing.assert_array_equal(halved.coords_T3[halved.parent_V], coords // 2)
  # every voxel is once the child of its parent, at its own place
  for v, (parent, place) in enumerate(zip(halved.parent_V, coords % 2, strict=True)):
    number = int(place @ [4, 2, 1])
    assert halved.children_T8[parent, number] == v
  assert (halved.children_T8 < len(coords)).sum() == len(coords)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_cells_in_order(shift):
  coords = voxels(RNG, 90)
  found = voxel_tables.windows(coords, SIDE, 4, shift)
  cells = (coords + shift) // 4
  _, number = np.unique(cells, axis=0, return_inverse=True)
  np.testing.assert_array_equal(found.window_V, number[found.order_V])
  # and those of one window keep their order
  for window in range(number.max() + 1):
    assert (np.diff(found.order_V[found.window_V == window]) > 0).all()


@pytest.mark.parametrize(
  "coords, words",
  [
    (np.zeros((0, 3), int), "no voxel"),
    ([[0, 0, SIDE]], r"1 of 1 voxels outside 0\.\.7, the first at \[0, 0, 8\]"),
    ([[0, 0, 0], [0, -1, 0]], "1 of 2 voxels outside"),
    ([[1, 2, 3], [0, 0, 0], [1, 2, 3]], r"voxel \[1, 2, 3\] 2 times"),
    ([[0.5, 0, 0]], "not integers"),
    ([[0, 0, 0, 0]], r"shape \(1, 4\)"),
  ],
)
def test_voxels_that_are_no_set_in_the_grid_are_refused(coords, words):
  with pytest.raises(InputError, match=words):
    packing.object_tables(np.asarray(coords), ALL_TABLES)


def test_objects_that_do_not_fit_are_refused_with_what_they_need():
  large = packing.object_tables(voxels(RNG, BLOCK + 1), ALL_TABLES)
  small = packing.object_tables(voxels(RNG, 3), ALL_TABLES)
  with pytest.raises(InputError, match="object 0 needs 256 slots and 128 at half"):
    packing.pack([large], RowShape(BLOCK, BLOCK, 4))
  # half the resolution has a budget, too
  with pytest.raises(InputError, match="and 128 at half"):
    packing.pack([large], RowShape(2 * BLOCK, 0, 4))
  with pytest.raises(InputError, match="no room in 1 rows"):
    packing.first_fit([(3, 3), (3, 3)], RowShape(BLOCK, BLOCK, 4), rows=1)
  with pytest.raises(InputError, match="a row holds 1"):
    packing.pack([small, small], RowShape(2 * BLOCK, 2 * BLOCK, 1), rows=[[0, 1]])
  with pytest.raises(InputError, match="multiple of 128"):
    RowShape(100, 0, 1)


def test_every_object_keeps_its_voxels_and_its_tables():
  """Whatever the packing, an object's tables say of it what they say of the object alone."""
  shape = RowShape(3 * BLOCK, 2 * BLOCK, 2)
  counts = (5, 200, 130, 7, 1)
  found = packed(np.random.default_rng(1), counts, shape=shape)
  rng = np.random.default_rng(1)
  fine = found.voxels.fine
  coarse, pooling = found.voxels.coarse, found.voxels.pooling
  # all are there, and nobody else
  assert fine.valid_RV.sum() == sum(counts)
  assert fine.count_RK.sum() == sum(counts)
  assert (np.diff(fine.object_RV, axis=1) >= 0).all()

  for place, count in zip(found.places, counts, strict=True):
    alone = packing.object_tables(voxels(rng, count), ALL_TABLES)
    slots = slice(place.start, place.start + count)
    assert place.start % BLOCK == place.coarse_start % BLOCK == 0
    assert (fine.object_RV[place.row, slots] == place.number).all()
    np.testing.assert_array_equal(fine.coords_RV3[place.row, slots], alone.coords_V3)

    # neighbours and parents, counted from its first slot
    def of_object(index, start, none, none_alone):
      return np.where(index == none, none_alone, index - start)

    near = fine.neighbours_R27V[place.row, :, slots]
    np.testing.assert_array_equal(
      of_object(near, place.start, shape.voxels, count), alone.neighbours_27V
    )
    parent = pooling.parent_RV[place.row, slots]
    np.testing.assert_array_equal(parent - place.coarse_start, alone.halved.parent_V)
    coarse_slots = slice(place.coarse_start, place.coarse_start + place.coarse_count)
    children = pooling.children_RT8[place.row, coarse_slots]
    np.testing.assert_array_equal(
      of_object(children, place.start, shape.voxels, count), alone.halved.children_T8
    )
    np.testing.assert_array_equal(
      coarse.coords_RV3[place.row, coarse_slots], alone.halved.coords_T3
    )

    # windows: its slots stay its own, and equal numbers are equal windows
    for order, expected in zip(fine.windows, alone.windows, strict=True):
      np.testing.assert_array_equal(
        order.order_RV[place.row, slots] - place.start, expected.order_V
      )
      number = order.window_RV[place.row, slots]
      np.testing.assert_array_equal(number - number[0], expected.window_V)

  # no window spans two objects, and the orders are permutations
  for order in fine.windows:
    assert (np.diff(order.window_RV, axis=1) >= 0).all()
    np.testing.assert_array_equal(
      np.take_along_axis(order.order_RV, order.inverse_RV, 1),
      np.broadcast_to(np.arange(shape.voxels), order.order_RV.shape),
    )


def test_first_fit_is_a_function_of_the_sizes_and_fills_rows():
  shape = RowShape(4 * BLOCK, 0, 8)
  counts = [(n, 0) for n in (1, 129, 300, 128, 60)]
  rows = packing.first_fit(counts, shape)
  assert sorted(n for row in rows for n in row) == list(range(5))
  # 384 + 128 slots fill the first row
  assert rows == [[2, 3], [1, 4, 0]]


def test_features_go_into_rows_and_come_back():
  found = packed(RNG, (5, 200, 3), shape=RowShape(2 * BLOCK, 2 * BLOCK, 4))
  feats = [RNG.standard_normal((place.count, 3)) for place in found.places]
  rows = found.fill(feats)
  assert not rows[~found.voxels.fine.valid_RV].any()
  for ours, theirs in zip(found.split(rows), feats, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  with pytest.raises(InputError, match="4 rows of features for an object of 5 voxels"):
    found.fill([feats[0][:4], *feats[1:]])
