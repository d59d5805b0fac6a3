"""Checks a dataset against its schema and against physics, and draws sample sheets.

    python -m launch.validate_data --data DIR [--html FILE] [--max_examples N]

Every field of every example is checked: types and shapes, image and masks, voxel order, orthonormal
rotation, voxels projected onto the mask, point map against camera and voxels. Prints counts by
split and source and, for what fails, reasons with an example of each. Ends with code 2 if anything
fails.
"""

import argparse
from collections import Counter, defaultdict
import dataclasses
import json
import os
import pathlib
import sys

import numpy as np

from data_pipelines.build import checks, sheet
from data_pipelines.format import records, schema
from data_pipelines.format.records import CorruptRecord
from launch.console import cli
from launch.console.progress import Progress
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic

SHOWN = 12  # examples of each split on a sheet
SHOWN_BAD = 12  # failed examples on a sheet


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--data", required=True, type=pathlib.Path, metavar="DIR", help="dataset folder"
  )
  parser.add_argument(
    "--html", type=pathlib.Path, metavar="FILE", help="write a sheet of sample examples"
  )
  parser.add_argument(
    "--max_examples",
    type=int,
    default=0,
    metavar="N",
    help="check at most N examples a split, evenly spread; 0: all",
  )


@dataclasses.dataclass
class Tally:
  """What was found in a dataset."""

  examples: Counter = dataclasses.field(default_factory=Counter)  # split -> checked
  # split -> source -> examples
  sources: dict = dataclasses.field(default_factory=lambda: defaultdict(Counter))
  present: Counter = dataclasses.field(default_factory=Counter)  # field -> examples that have it
  reasons: Counter = dataclasses.field(default_factory=Counter)  # reason -> findings
  # reason -> (place, detail) of the first one
  first: dict = dataclasses.field(default_factory=dict)
  keys: dict = dataclasses.field(default_factory=dict)  # key -> place where it was seen first
  # mesh key -> splits
  mesh_splits: dict = dataclasses.field(default_factory=lambda: defaultdict(set))
  # latent -> digests
  autoencoders: dict = dataclasses.field(default_factory=lambda: defaultdict(set))
  ious: list = dataclasses.field(default_factory=list)  # silhouette IoUs
  failed: set = dataclasses.field(default_factory=set)  # places of failed examples

  def add(self, place: str, finding: checks.Finding) -> None:
    """Counts a finding."""
    self.reasons[finding.reason] += 1
    self.first.setdefault(finding.reason, (place, finding.detail))
    self.failed.add(place)

  def look(self, split: str, place: str, example: schema.Example, report: checks.Report) -> None:
    """Counts an example and what only shows across examples."""
    self.sources[split][example["source"]] += 1
    self.present.update(f for f in example if schema.is_present(example, f))
    if example["key"] in self.keys:
      self.add(
        place,
        checks.Finding(
          "duplicate_key", f"key {example['key']} is also that of {self.keys[example['key']]}"
        ),
      )
    self.keys.setdefault(example["key"], place)
    if example["mesh_key"]:
      self.mesh_splits[example["mesh_key"]].add(split)
    for latent in ("structure_latent", "slat"):
      if schema.is_present(example, latent):
        self.autoencoders[latent].add(example[f"{latent}_autoencoder"])
    if np.isfinite(report.silhouette_iou):
      self.ious.append(report.silhouette_iou)

  def finish(self) -> None:
    """Adds the findings that concern the dataset as a whole."""
    shared = [key for key, splits in self.mesh_splits.items() if len(splits) > 1]
    if shared:
      self.add(
        "dataset",
        checks.Finding(
          "mesh_in_two_splits", f"{len(shared)} meshes lie in several splits, first {shared[0]}"
        ),
      )
    for latent, digests in self.autoencoders.items():
      if len(digests) > 1:
        detail = f"{latent} was made by {len(digests)} autoencoders: {', '.join(sorted(digests))}"
        self.add("dataset", checks.Finding("mixed_autoencoders", detail))


def pick(length: int, count: int) -> list[int]:
  """Up to `count` indices of range(length), evenly spread; all of them if count is 0."""
  return (
    list(range(length)) if not 0 < count < length else [i * length // count for i in range(count)]
  )


def validate(data: pathlib.Path, max_examples: int = 0) -> tuple[Tally, list]:
  """Checks the dataset. Returns the tally and rows for the sheet: (place, example, findings)."""
  names = sorted(
    name for name, info in records.open_dataset(data).info.splits.items() if info.num_examples
  )
  splits = {name: records.open_split(data, name) for name in names}
  tally, rows, bad = Tally(), [], []
  chosen = {name: pick(len(split), max_examples) for name, split in splits.items()}
  with Progress(sum(map(len, chosen.values())), "checking", "examples") as progress:
    for name, split in splits.items():
      shown = set(pick(len(chosen[name]), SHOWN))
      for n, index in enumerate(chosen[name]):
        row = check_record(tally, name, split, index)
        if row is not None and n in shown:
          rows.append(row)
        elif row is not None and row[2] and len(bad) < SHOWN_BAD:
          bad.append(row)
        progress.update(1, failed=len(tally.failed))
  tally.finish()
  return tally, bad + rows


def check_record(
  tally: Tally, name: str, split: records.Split, index: int
) -> tuple[str, schema.Example, list] | None:
  """Checks one record; None if it cannot be read."""
  path, record = split.locate(index)
  place = f"{os.path.basename(path)} record {record}"
  tally.examples[name] += 1
  try:
    example = split[index]
  except CorruptRecord as error:
    tally.add(place, checks.Finding("unreadable", str(error)))
    return None
  report = checks.check_example(example, split.kind)
  for finding in report.findings:
    tally.add(place, finding)
  tally.look(name, place, example, report)
  return place, example, report.findings


def quarantined(data: pathlib.Path) -> Counter:
  """Reason -> inputs that the builder refused. Raises InputError for a line that is no JSON object
  with a reason.
  """
  file, reasons = data / records.QUARANTINE_FILE, Counter()
  if file.is_file():
    for number, line in enumerate(file.read_text().splitlines(), 1):
      try:
        reasons[json.loads(line)["reason"]] += 1
      except (ValueError, KeyError, TypeError) as error:
        raise InputError(
          f"{file} line {number} is not a JSON object with a reason ({error}); build the dataset "
          "again"
        ) from error
  return reasons


def describe(data: pathlib.Path, tally: Tally, refused: Counter) -> str:
  """The report, as text."""
  identity = records.dataset_identity(data)
  lines = [
    f"{data}: {identity['name']}, schema {identity['version']}, build {identity['digest'][:12]}"
  ]
  for split, total in identity["records"].items():
    sources = ", ".join(
      f"{source or '(no source)'} {n}" for source, n in sorted(tally.sources[split].items())
    )
    lines.append(f"  {split:10} {total:8} examples, {tally.examples[split]} checked: {sources}")
  checked = tally.examples.total()
  lines.append(
    "  fields     "
    + ", ".join(f"{f} {100 * n // checked}%" for f, n in sorted(tally.present.items()))
  )
  lines.append(f"  meshes     {len(tally.mesh_splits)}")
  for latent, digests in sorted(tally.autoencoders.items()):
    lines.append(f"  {latent} made by {', '.join(sorted(d[:12] for d in digests))}")
  if tally.ious:
    mean, worst = np.mean(tally.ious), min(tally.ious)
    lines.append(
      f"  silhouettes: IoU of projected voxels and mask {mean:.3f} on average, {worst:.3f} at worst"
    )
  lines.append(
    f"  quarantine: {sum(refused.values())} inputs refused when building"
    + "".join(f"\n    {n:6}  {reason}" for reason, n in refused.most_common())
  )
  if tally.reasons:
    lines.append(f"FAILED: {len(tally.failed)} of {checked} examples")
    for reason, n in tally.reasons.most_common():
      place, detail = tally.first[reason]
      lines.append(f"  {n:6}  {reason}: {place}: {detail}")
  else:
    lines.append(f"ok: {checked} examples, nothing wrong")
  return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
  """Validates, prints, draws; the exit code."""
  tally, rows = validate(args.data, args.max_examples)
  text = describe(args.data, tally, quarantined(args.data))
  print(text)
  if args.html is not None:
    page = sheet.write_sheet(f"{args.data.name}", text, rows)
    atomic.write_text(args.html, page)
    print(f"sheet: {args.html}", file=sys.stderr)
  return cli.EXIT_BAD_INPUT if tally.reasons else 0


if __name__ == "__main__":
  raise SystemExit(main())
