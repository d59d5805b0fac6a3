"""Checks a dataset against its schema and against physics, and draws sample sheets.

    python -m launch.validate_data --data DIR [--html FILE] [--max_examples N]

Every field of every example is checked: types and shapes, image and masks, voxel order, orthonormal
rotation, voxels projected onto the mask, point map against camera and voxels. Prints counts by
split and source and, for what fails, reasons with an example of each. Ends with code 2 if anything
fails.
"""

import argparse
import dataclasses
import pathlib
import sys

from launch.console import cli
from launch.console.progress import Progress
from sam3d_jax.files import atomic


@dataclasses.dataclass(frozen=True)
class ValidationSpec:
  """What to check, and where to draw it."""

  data: pathlib.Path
  html: pathlib.Path | None = None  # None: no sheet
  max_examples: int = 0  # of every split; 0: all


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


def run(args: argparse.Namespace) -> int:
  """Validates what the flags name; the exit code."""
  spec = ValidationSpec(args.data, args.html, args.max_examples)
  return validate(spec)


def validate(spec: ValidationSpec) -> int:
  """Validates, prints, draws; the exit code."""
  # The wall: what reads datasets is loaded only once there is one to check.
  from data_pipelines.build import sheet, validation

  # the examples
  chosen = validation.choose(spec.data, spec.max_examples)
  total = sum(len(choice.indices) for choice in chosen)
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
  return cli.EXIT_BAD_INPUT if tally.reasons else 0


if __name__ == "__main__":
  raise SystemExit(main())
