"""Packing under a token budget."""

import numpy as np
import pytest

from data_pipelines.read import pack

LENGTHS = np.random.default_rng(0).integers(1, 101, 300).tolist()


def test_every_item_is_packed_exactly_once_within_the_budget():
  rows = pack.pack(LENGTHS, 128)
  assert sorted(i for row in rows for i in row) == list(range(300))
  assert all(sum(LENGTHS[i] for i in row) <= 128 for row in rows)


def test_packing_wastes_little():
  rows = pack.pack(LENGTHS, 128)
  assert len(rows) <= 11 / 9 * -(-sum(LENGTHS) // 128) + 1
  assert pack.utilisation(rows, LENGTHS, 128) > 0.9
  assert pack.utilisation([[i] for i in range(300)], LENGTHS, 128) < 0.5


def test_exact_fits_are_found():
  assert pack.pack([60, 50, 40, 30, 20], 100) == [[0, 2], [1, 3, 4]]


@pytest.mark.parametrize("lengths, index", [([5, 11], 1), ([0, 5], 0)])
def test_item_that_fits_no_row_is_named(lengths, index):
  with pytest.raises(ValueError, match=f"item {index} "):
    pack.pack(lengths, 10)


def test_filled_row_holds_the_tokens_of_each_segment():
  arrays = [np.full((n, 2), n, np.float32) for n in (3, 1, 2)]
  tokens, segment = pack.fill([0, 2], arrays, 7)
  assert segment.tolist() == [0, 0, 0, 1, 1, -1, -1]
  assert tokens[:, 0].tolist() == [3, 3, 3, 2, 2, 0, 0]
