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
  rows: list[list[int]] = []
  free: list[int] = []
  for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    open_rows = [r for r in range(len(rows)) if free[r] >= lengths[index]]
    if open_rows:
      row = min(open_rows, key=lambda r: (free[r], r))
    else:
      row = len(rows)
      rows.append([])
      free.append(budget)
    rows[row].append(index)
    free[row] -= lengths[index]
  return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def fill(
  row: Sequence[int], arrays: Sequence[np.ndarray], budget: int
) -> tuple[np.ndarray, np.ndarray]:
  """One packed row: (tokens (budget, ...) zero where unused, segment (budget,) int32: place in the
  row, -1 where unused).
  """
  parts = [arrays[i] for i in row]
  tokens = np.zeros((budget, *parts[0].shape[1:]), parts[0].dtype)
  segment = np.full(budget, -1, np.int32)
  start = 0
  for place, part in enumerate(parts):
    tokens[start : start + len(part)], segment[start : start + len(part)] = part, place
    start += len(part)
  return tokens, segment


def utilisation(rows: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
  """Share of the rows' tokens that are in use."""
  return sum(lengths[i] for row in rows for i in row) / (len(rows) * budget) if rows else 1.0
