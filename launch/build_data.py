"""Builds a dataset: meshes in, ArrayRecord shards out.

    python -m launch.build_data --config configs/data/iso_3do.py --config.source=MESHES \\
        --config.out=DATA

Stopped or killed, the same command continues, within a shard too; finished objects are not made
again. What to know beforehand, such as meshes without a licence, is said first. Refused inputs are
listed in DATA/quarantine.jsonl with reasons; more than `quarantine_budget` of them fail the build.
"""

import argparse

from launch.console import cli
from launch.console.flags import dry_run_flag


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  dry_run_flag(parser, "print the plan")
  parser.add_argument(
    "--executor",
    choices=("local", "beam"),
    default="local",
    help="local processes, or Apache Beam",
  )
  parser.add_argument(
    "--beam_options",
    nargs=argparse.REMAINDER,
    default=[],
    metavar="OPTION",
    help="with --executor beam, the last flag: everything behind it goes to Beam, e.g. "
    "--runner=FlinkRunner",
  )


def run(args: argparse.Namespace) -> None:
  """Plans and builds the dataset of `args.config`."""
  # The wall: renderers and dataset libraries are loaded only once there is something to build.
  from launch.planners import building

  spec = building.BuildSpec(
    config=args.config,
    dry_run=args.dry_run,
    executor=args.executor,
    beam_options=tuple(args.beam_options),
  )
  building.build(spec)


if __name__ == "__main__":
  raise SystemExit(main())
