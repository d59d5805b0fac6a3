"""Checks a dataset example by example, and what only shows across examples.

`choose` picks the records, `check` looks at them, `describe` writes down what was found.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from data_pipelines.build import checks
from data_pipelines.format import records, schema
from data_pipelines.format.records import CorruptRecord
from sam3d_jax.errors import InputError

SHOWN = 12  # examples of each split on a sheet
SHOWN_BAD = 12  # failed examples on a sheet


class Checked(NamedTuple):
  """An example for the sheet: where it lies, and what is wrong with it."""

  place: str
  example: schema.Example
  findings: list[checks.Finding]


@dataclasses.dataclass
class Tally:
  """What was found in a dataset."""

  # split -> examples checked
  examples: Counter = dataclasses.field(default_factory=Counter)
  # split -> source -> examples
  sources: dict = dataclasses.field(default_factory=lambda: defaultdict(Counter))
  # field -> examples that have it
  present: Counter = dataclasses.field(default_factory=Counter)
  # reason -> findings
  reasons: Counter = dataclasses.field(default_factory=Counter)
  # reason -> (place, detail) of the first one
  first: dict = dataclasses.field(default_factory=dict)
  # key -> place where it was seen first
  keys: dict = dataclasses.field(default_factory=dict)
  # mesh key -> splits
  mesh_splits: dict = dataclasses.field(default_factory=lambda: defaultdict(set))
  # latent -> digests of the autoencoders that made it
  autoencoders: dict = dataclasses.field(default_factory=lambda: defaultdict(set))
  # silhouette IoUs
  ious: list = dataclasses.field(default_factory=list)
  # places of failed examples
  failed: set = dataclasses.field(default_factory=set)

  def add(self, place: str, reason: str, detail: str) -> None:
    """Counts a finding."""
    self.reasons[reason] += 1
    self.first.setdefault(reason, (place, detail))
    self.failed.add(place)

  def look(self, split: str, place: str, example: schema.Example, report: checks.Report) -> None:
    """Counts an example and what only shows across examples."""
    # what is wrong with it, and what it has
    for finding in report.findings:
      self.add(place, finding.reason, finding.detail)
    self.sources[split][example["source"]] += 1
    for field in example:
      if schema.is_present(example, field):
        self.present[field] += 1
    if np.isfinite(report.silhouette_iou):
      self.ious.append(report.silhouette_iou)

    # what it shares with others
    key, mesh_key = example["key"], example["mesh_key"]
    if key in self.keys:
      first = self.keys[key]
      self.add(place, "duplicate_key", f"key {key} is also that of {first}")
    self.keys.setdefault(key, place)
    if mesh_key:
      self.mesh_splits[mesh_key].add(split)
    for latent in ("structure_latent", "slat"):
      if schema.is_present(example, latent):
        self.autoencoders[latent].add(example[f"{latent}_autoencoder"])

  def finish(self) -> None:
    """Adds the findings that concern the dataset as a whole."""
    shared = [key for key, splits in self.mesh_splits.items() if len(splits) > 1]
    if shared:
      detail = f"{len(shared)} meshes lie in several splits, first {shared[0]}"
      self.add("dataset", "mesh_in_two_splits", detail)
    for latent, digests in self.autoencoders.items():
      if len(digests) > 1:
        listed = ", ".join(sorted(digests))
        detail = f"{latent} was made by {len(digests)} autoencoders: {listed}"
        self.add("dataset", "mixed_autoencoders", detail)


@dataclasses.dataclass(frozen=True)
class Choice:
  """The examples of one split that are to be checked."""

  name: str
  split: records.Split
  indices: list[int]


def choose(data: pathlib.Path, max_examples: int = 0) -> list[Choice]:
  """Up to `max_examples` of every split that has any, evenly spread; 0: all. Raises InputError."""
  splits = records.open_dataset(data).info.splits
  names = sorted(name for name, info in splits.items() if info.num_examples)
  chosen = []
  for name in names:
    split = records.open_split(data, name)
    indices = pick(len(split), max_examples)
    chosen.append(Choice(name, split, indices))
  return chosen


def pick(length: int, count: int) -> list[int]:
  """Up to `count` indices of range(length), evenly spread; all of them if count is 0."""
  if not 0 < count < length:
    return list(range(length))
  return [number * length // count for number in range(count)]


def check(
  chosen: list[Choice], progress: Callable[[int], None] | None = None
) -> tuple[Tally, list[Checked]]:
  """Checks the chosen examples.

  progress: called after every example with the number of failed ones so far.

  Returns:
    The tally, and examples for a sheet: some that failed, then some of every split.
  """
  tally = Tally()
  spread, bad = [], []
  for choice in chosen:
    shown = set(pick(len(choice.indices), SHOWN))
    for number, index in enumerate(choice.indices):
      row = check_record(tally, choice.name, choice.split, index)
      if row is not None:
        # a failed one that is shown in any case is not shown twice
        if number in shown:
          spread.append(row)
        elif row.findings and len(bad) < SHOWN_BAD:
          bad.append(row)
      if progress is not None:
        progress(len(tally.failed))
  tally.finish()
  return tally, bad + spread


def check_record(tally: Tally, name: str, split: records.Split, index: int) -> Checked | None:
  """Checks one record; None if it cannot be read."""
  path, record = split.locate(index)
  place = f"{os.path.basename(path)} record {record}"
  tally.examples[name] += 1
  try:
    example = split[index]
  except CorruptRecord as error:
    tally.add(place, "unreadable", str(error))
    return None
  report = checks.check_example(example, split.kind)
  tally.look(name, place, example, report)
  return Checked(place, example, report.findings)


def quarantined(data: pathlib.Path) -> Counter:
  """Reason -> inputs that the builder refused.

  Raises InputError for a line that is no JSON object with a reason.
  """
  reasons = Counter()
  file = data / records.QUARANTINE_FILE
  if not file.is_file():
    return reasons
  for number, line in enumerate(file.read_text().splitlines(), 1):
    try:
      refused = json.loads(line)
      reasons[refused["reason"]] += 1
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"{file} line {number} is not a JSON object with a reason ({error}); build the dataset "
        "again"
      ) from error
  return reasons


def describe(data: pathlib.Path, tally: Tally, refused: Mapping[str, int]) -> str:
  """The report, as text."""
  # which dataset
  identity = records.dataset_identity(data)
  build = identity["digest"][:12]
  lines = [f"{data}: {identity['name']}, schema {identity['version']}, build {build}"]

  # what there is
  for split, total in identity["records"].items():
    counts = sorted(tally.sources[split].items())
    sources = ", ".join(f"{source or '(no source)'} {count}" for source, count in counts)
    lines.append(f"  {split:10} {total:8} examples, {tally.examples[split]} checked: {sources}")
  checked = tally.examples.total()
  fields = []
  for field, count in sorted(tally.present.items()):
    fields.append(f"{field} {100 * count // checked}%")
  lines.append("  fields     " + ", ".join(fields))
  lines.append(f"  meshes     {len(tally.mesh_splits)}")
  for latent, digests in sorted(tally.autoencoders.items()):
    makers = sorted(digest[:12] for digest in digests)
    lines.append(f"  {latent} made by {', '.join(makers)}")
  if tally.ious:
    mean, worst = np.mean(tally.ious), min(tally.ious)
    lines.append(
      f"  silhouettes: IoU of projected voxels and mask {mean:.3f} on average, {worst:.3f} at worst"
    )

  # what never became an example
  refused = Counter(refused)
  lines.append(f"  quarantine: {refused.total()} inputs refused when building")
  for reason, count in refused.most_common():
    lines.append(f"    {count:6}  {reason}")

  # what is wrong
  if not tally.reasons:
    lines.append(f"ok: {checked} examples, nothing wrong")
    return "\n".join(lines)
  lines.append(f"FAILED: {len(tally.failed)} of {checked} examples")
  for reason, count in tally.reasons.most_common():
    place, detail = tally.first[reason]
    lines.append(f"  {count:6}  {reason}: {place}: {detail}")
  return "\n".join(lines)
