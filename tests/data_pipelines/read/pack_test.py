"""Packing under a token budget."""

import numpy as np
import pytest

from data_pipelines.read import pack

LENGTHS = np.random.default_rng(0).integers(1, 101, 300).tolist()


def test_every_item_is_packed_exactly_once_within_the_budget():
  rows = pack.pack(LENGTHS, 128)
  packed = [index for row in rows for index in row]
  assert sorted(packed) == list(range(300))
  for row in rows:
    assert sum(LENGTHS[index] for index in row) <= 128


def test_packing_wastes_little():
  # the bound of best-fit decreasing
  rows = pack.pack(LENGTHS, 128)
  fewest = -(-sum(LENGTHS) // 128)
  assert len(rows) <= 11 / 9 * fewest + 1

  # what is in use, against a row for each
  alone = [[index] for index in range(300)]
  assert pack.utilisation(rows, LENGTHS, 128) > 0.9
  assert pack.utilisation(alone, LENGTHS, 128) < 0.5


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
