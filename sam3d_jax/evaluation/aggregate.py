"""From scores of objects to a table: means with bootstrap intervals, JSON and CSV."""

from collections.abc import Hashable, Mapping, Sequence
import csv
import math
import pathlib

import numpy as np

from sam3d_jax.files import atomic, texts


def bootstrap_interval(
  values: Sequence[float],
  clusters: Sequence[Hashable] | None = None,
  *,
  level: float = 0.95,
  draws: int = 2000,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean (Efron 1979).

  One value gives an interval of no width; none gives NaN.

  clusters: label of each value. Values of one label depend on each other (photos of one object), so
  labels are drawn, not values (Davison & Hinkley 1997, section 3.8); None: every value is on its
  own.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    return math.nan, math.nan

  # Number the clusters in order of appearance.
  if clusters is None:
    index = np.arange(len(values))
  else:
    labels = dict.fromkeys(clusters)
    numbers = {label: i for i, label in enumerate(labels)}
    index = np.array([numbers[label] for label in clusters])

  # Sum and count of each cluster; a draw picks as many clusters as there are.
  totals = np.bincount(index, values)
  counts = np.bincount(index)
  rng = np.random.default_rng(seed)
  means = np.empty(draws)
  for draw in range(draws):
    picked = rng.integers(0, len(totals), len(totals))
    total = totals[picked].sum()
    count = counts[picked].sum()
    means[draw] = total / count

  # The quantiles that leave the level between them.
  outside = (1 - level) / 2
  inside = (1 + level) / 2
  low, high = np.quantile(means, [outside, inside])
  return float(low), float(high)


def summarise(rows: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> dict:
  """For each metric its mean over the objects that have it, and its interval and count.

  `<name>_interval` is a 95 % interval, `<name>_count` the number of those objects. Mean and
  interval are None where no object has the metric. Objects with the same `subject` are drawn
  together. Raises ValueError for a value that is not finite: it would spoil a mean, or hide from
  it.
  """
  out: dict = {}
  for name in names:
    # Only objects that have the metric count.
    found = {}
    for key, row in rows.items():
      value = row.get(name)
      if value is None:
        continue
      if not math.isfinite(value):
        raise ValueError(f"{name} of {key} is {value}: a score must be finite")
      found[key] = value

    # What no object has is None: NaN is no JSON.
    out[name] = None
    out[f"{name}_interval"] = None
    out[f"{name}_count"] = len(found)
    if not found:
      continue

    # An object without a subject is a cluster of its own.
    values = list(found.values())
    clusters = [rows[key].get("subject") or key for key in found]
    interval = bootstrap_interval(values, clusters)
    out[name] = float(np.mean(values))
    out[f"{name}_interval"] = list(interval)
  return out


def by_group(rows: Mapping[str, Mapping], names: Sequence[str]) -> dict[str, dict]:
  """`summarise` of the objects of each `group`, in order of appearance; empty without groups."""
  # Objects without a group are in none.
  groups: dict[str, dict] = {}
  for key, row in rows.items():
    group = row.get("group")
    if group:
      groups.setdefault(group, {})[key] = row

  summaries = {}
  for group, members in groups.items():
    summary = summarise(members, names)
    summary["objects"] = len(members)
    summaries[group] = summary
  return summaries


def write_csv(path: pathlib.Path, rows: Mapping[str, Mapping], columns: Sequence[str]) -> None:
  """One line an object, sorted by name; a missing value is an empty cell."""
  # csv wants to write line ends itself.
  with atomic.write(path) as temporary, temporary.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["object", *columns])
    for name in sorted(rows):
      cells = [texts.cell(name)]
      for column in columns:
        value = rows[name].get(column)
        cells.append("" if value is None else texts.cell(value))
      writer.writerow(cells)
