"""Checks a dataset against its schema and against physics, and draws sample sheets.

    python -m launch.validate_data --data DIR [--html FILE] [--max_examples N] [--against MESHES] \
        [--voxel_counts]

Every field of every example is checked: types and shapes, image and masks, voxel order, orthonormal
rotation, voxels projected onto the mask, point map against camera and voxels. Prints counts by
split and source and, for what fails, reasons with an example of each. With --against, the meshes of
the dataset are read a second time, by Assimp, and compared. With --voxel_counts, the table of
sizes by which objects are packed into rows is written into the dataset. Ends with code 2 if
anything fails.
"""

import argparse
import dataclasses
import pathlib
import sys

from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.folders import check_file
from launch.console.progress import Progress
from sam3d_jax.files import atomic


@dataclasses.dataclass(frozen=True)
class ValidationSpec:
  """What to check, and where to draw it."""

  data: pathlib.Path
  html: pathlib.Path | None = None  # None: no sheet
  max_examples: int = 0  # of every split; 0: all
  # the folder of meshes that it was built from; None: they are not read again
  against: pathlib.Path | None = None
  voxel_counts: bool = False  # write the table of sizes
  dry_run: bool = False


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
  parser.add_argument(
    "--against",
    type=pathlib.Path,
    metavar="MESHES",
    help="the folder of meshes it was built from: reads them with Assimp too, and compares "
    "(pip install -r requirements-against.txt)",
  )
  parser.add_argument(
    "--voxel_counts",
    action="store_true",
    help="write DIR/voxel_counts.npz, by which objects are packed into rows: without it each "
    "training run reads all records once at its start",
  )
  dry_run_flag(parser, "open the dataset, say what would be checked")


def run(args: argparse.Namespace) -> int:
  """Validates what the flags name; the exit code."""
  if args.html is not None:
    check_file(args.html, "--html")
  spec = ValidationSpec(
    data=args.data,
    html=args.html,
    max_examples=args.max_examples,
    against=args.against,
    voxel_counts=args.voxel_counts,
    dry_run=args.dry_run,
  )
  return validate(spec)


def validate(spec: ValidationSpec) -> int:
  """Validates, prints, draws; the exit code."""
  # The wall: what reads datasets is loaded only once there is one to check.
  from data_pipelines.build import against, sheet, validation
  from data_pipelines.format import voxel_counts

  # the examples
  chosen = validation.choose(spec.data, spec.max_examples)
  total = sum(len(choice.indices) for choice in chosen)
  if spec.dry_run:
    print(f"would check {total} examples of {spec.data}")
    return 0
  with Progress(total, "checking", "examples") as bar:

    def show(failed: int) -> None:
      bar.update(1, failed=failed)

    tally, rows = validation.check(chosen, show)

  # what was found, as text and as a page
  refused = validation.quarantined(spec.data)
  text = validation.describe(spec.data, tally, refused)
  print(text)
  if spec.html is not None:
    page = sheet.write_sheet(spec.data.name, text, rows)
    atomic.write_text(spec.html, page)
    print(f"sheet: {spec.html}", file=sys.stderr)
  failed = bool(tally.reasons)

  # the sizes that packing needs
  if spec.voxel_counts:
    totals = voxel_counts.write(spec.data)
    written = ", ".join(f"{count} records of {split}" for split, count in totals.items())
    print(f"voxel counts: {spec.data / voxel_counts.FILE}, {written}", file=sys.stderr)

  # its meshes, as another reader sees them
  if spec.against is not None:
    named = against.meshes_of(chosen)
    with Progress(len(named), "comparing", "meshes") as bar:
      compared = []
      for one in against.compare(spec.against, named):
        compared.append(one)
        bar.update(1)
    print(against.describe(compared))
    failed |= any(one.differences for one in compared)
  return cli.EXIT_BAD_INPUT if failed else 0


if __name__ == "__main__":
  raise SystemExit(main())
