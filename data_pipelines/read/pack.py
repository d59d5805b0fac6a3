"""Packing examples of different lengths into rows of one length, for models whose tokens are an
object's active voxels.
"""

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
  """Groups range(len(lengths)) into rows whose lengths sum to at most `budget`; a pure function,
  each index exactly once.

  Best-fit decreasing: the longest first, each into the fullest row that still takes it; at most
  11/9 of the optimal number of rows, plus one. Rows are ordered by their smallest index, indices
  ascend within a row.

  Raises ValueError naming the first index whose length is not in 1..budget.
  """
  for index, length in enumerate(lengths):
    if not 0 < length <= budget:
      raise ValueError(
        f"item {index} has {length} tokens; between 1 and the budget of {budget} fit into a row"
      )

  # the longest first, each into the fullest row that takes it
  rows: list[list[int]] = []
  free: list[int] = []
  longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
  for index in longest_first:
    length = lengths[index]
    # ties go to the row that was begun first
    fitting = [row for row in range(len(rows)) if free[row] >= length]
    if fitting:
      row = min(fitting, key=lambda row: (free[row], row))
    else:
      row = len(rows)
      rows.append([])
      free.append(budget)
    rows[row].append(index)
    free[row] -= length

  # an order that does not depend on the lengths
  ascending = [sorted(row) for row in rows]
  return sorted(ascending, key=lambda row: row[0])


def fill(
  row: Sequence[int], arrays: Sequence[np.ndarray], budget: int
) -> tuple[np.ndarray, np.ndarray]:
  """One packed row: (tokens (budget, ...) zero where unused, segment (budget,) int32: place in the
  row, -1 where unused).
  """
  # end to end, and whose each token is
  parts = [arrays[index] for index in row]
  first = parts[0]
  tokens = np.zeros((budget, *first.shape[1:]), first.dtype)
  segment = np.full(budget, -1, np.int32)
  start = 0
  for place, part in enumerate(parts):
    stop = start + len(part)
    tokens[start:stop] = part
    segment[start:stop] = place
    start = stop
  return tokens, segment


def utilisation(rows: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
  """Share of the rows' tokens that are in use."""
  if not rows:
    return 1.0
  # What is not used is padding, which costs as much.
  used = 0
  for row in rows:
    used += sum(lengths[index] for index in row)
  return used / (len(rows) * budget)
