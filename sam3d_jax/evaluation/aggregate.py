"""From scores of objects to a table: means with bootstrap intervals, JSON and CSV."""

from collections.abc import Mapping, Sequence
import csv
import json
import math
import pathlib

import numpy as np


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean (Efron 1979). One value gives an interval of no width; none gives NaN."""
  values = np.asarray(values, np.float64)
  if not len(values):
    return math.nan, math.nan
  rng = np.random.default_rng(seed)
  means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)])
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def summarise(rows: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> dict:
  """Mean of each metric over the objects that have it and `<name>_interval`, its 95 % interval; None where no object has it."""
  out: dict = {}
  for name in names:
    values = [row[name] for row in rows.values() if row.get(name) is not None]
    out[name] = float(np.mean(values)) if values else None
    out[f"{name}_interval"] = list(bootstrap_interval(values)) if values else None
  return out


def write_json(path: pathlib.Path, value) -> None:
  """Writes JSON so that the file is whole or absent. NaN is refused: it is no JSON."""
  partial = path.with_name(f".{path.name}.part")
  partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
  partial.replace(path)


def write_csv(path: pathlib.Path, rows: Mapping[str, Mapping], columns: Sequence[str]) -> None:
  """One line an object, sorted by name; a missing value is an empty cell."""
  partial = path.with_name(f".{path.name}.part")
  with partial.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["object", *columns])
    for name in sorted(rows):
      writer.writerow([name, *("" if rows[name].get(c) is None else rows[name][c] for c in columns)])
  partial.replace(path)
