"""From scores of objects to a table: means with bootstrap intervals, JSON and CSV."""

from collections.abc import Hashable, Mapping, Sequence
import csv
import math
import pathlib

import numpy as np

from sam3d_jax.files import atomic


def bootstrap_interval(
  values: Sequence[float],
  clusters: Sequence[Hashable] | None = None,
  *,
  level: float = 0.95,
  draws: int = 2000,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean (Efron 1979). One value gives an interval of no
  width; none gives NaN.

  clusters: label of each value. Values of one label depend on each other (photos of one object), so
  labels are drawn, not values (Davison & Hinkley 1997, section 3.8); None: every value is on its
  own.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    return math.nan, math.nan
  labels = (
    {label: i for i, label in enumerate(dict.fromkeys(clusters))} if clusters is not None else None
  )
  index = (
    np.arange(len(values)) if labels is None else np.array([labels[label] for label in clusters])
  )
  totals, counts = np.bincount(index, values), np.bincount(index)
  rng = np.random.default_rng(seed)
  picked = (rng.integers(0, len(totals), len(totals)) for _ in range(draws))
  means = np.array([totals[i].sum() / counts[i].sum() for i in picked])
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def summarise(rows: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> dict:
  """For each metric its mean over the objects that have it, `<name>_interval`, a 95 % interval, and
  `<name>_count`.

  Mean and interval are None where no object has the metric. Objects with the same `subject` are
  drawn together. Raises ValueError for a value that is not finite: it would spoil a mean, or hide
  from it.
  """
  out: dict = {}
  for name in names:
    found = {key: row[name] for key, row in rows.items() if row.get(name) is not None}
    bad = [key for key, value in found.items() if not math.isfinite(value)]
    if bad:
      raise ValueError(f"{name} of {bad[0]} is {found[bad[0]]}: a score must be finite")
    clusters = [rows[key].get("subject") or key for key in found]
    out[name] = float(np.mean(list(found.values()))) if found else None
    out[f"{name}_interval"] = (
      list(bootstrap_interval(list(found.values()), clusters)) if found else None
    )
    out[f"{name}_count"] = len(found)
  return out


def by_group(rows: Mapping[str, Mapping], names: Sequence[str]) -> dict[str, dict]:
  """`summarise` of the objects of each `group`, groups in order of appearance; nothing if no object
  has one.
  """
  groups: dict[str, dict] = {}
  for key, row in rows.items():
    if row.get("group"):
      groups.setdefault(row["group"], {})[key] = row
  return {
    group: summarise(groups[group], names) | {"objects": len(groups[group])} for group in groups
  }


def write_csv(path: pathlib.Path, rows: Mapping[str, Mapping], columns: Sequence[str]) -> None:
  """One line an object, sorted by name; a missing value is an empty cell."""
  with atomic.write(path) as temporary, temporary.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["object", *columns])
    for name in sorted(rows):
      writer.writerow(
        [name, *("" if rows[name].get(c) is None else rows[name][c] for c in columns)]
      )
