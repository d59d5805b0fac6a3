"""Shows what a checkpoint, a dataset, a configuration or the ledger of a run holds.

    python -m launch.inspect --checkpoint DIR [--step N] [--digest | --lineage]
    python -m launch.inspect --checkpoint DIR --digest --which ema
    python -m launch.inspect --compare A B [--which ema] [--step N]
    python -m launch.inspect --data DIR
    python -m launch.inspect --config configs/pretrain_geometry.py [--release_keys]
    python -m launch.inspect --goodput DIR

A checkpoint is shown as a tree of arrays; --digest prints `<path> <dtype> <shape> <sha256>` for
every array, sorted, one a line; with --which those of one set of parameters only, as they would
stand in a checkpoint that holds nothing else. --lineage is the chain of parents. --compare says
whether two checkpoints hold the same parameters, bit for bit, and else which differ by how much; it
exits 1 if any does. --release_keys prints the published names and shapes as JSON. --goodput says
where the wall time of a run went over all its starts, work done twice included. None of it builds a
model in memory.
"""

import argparse
from collections.abc import Iterator
import itertools

from launch.console import cli
from launch.console.flags import dry_run_flag, step_flag
from sam3d_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", help="work folder")
  parser.add_argument(
    "--compare",
    nargs=2,
    metavar=("A", "B"),
    help="work folders of two checkpoints: are their parameters the same?",
  )
  step_flag(parser)
  parser.add_argument(
    "--which",
    help="parameters to compare or to digest: raw, ema (the slowest decay; default of --compare) "
    "or ema:<decay>; low-rank adapters are folded in",
  )
  parser.add_argument(
    "--digest", action="store_true", help="one line per array, with the SHA-256 of its bytes"
  )
  parser.add_argument(
    "--lineage", action="store_true", help="where the checkpoint comes from, parents first"
  )
  parser.add_argument("--data", help="dataset folder")
  parser.add_argument(
    "--release_keys",
    action="store_true",
    help="published names and shapes of the configured model, as JSON",
  )
  parser.add_argument(
    "--goodput",
    metavar="DIR",
    help="work folder: seconds by phase, lost work, every start and how it ended",
  )
  dry_run_flag(parser, "print the first line, which says what there is,")


def run(args: argparse.Namespace) -> int:
  """Prints the view that was asked for; 1 if it compares two things that differ."""
  check(args)
  if args.compare is not None:
    return compare(args)
  lines = view(args)
  if args.dry_run:
    lines = itertools.islice(lines, 1)
  for line in lines:
    print(line)
  return 0


def compare(args: argparse.Namespace) -> int:
  """Prints how the parameters of two checkpoints differ: 0 if they do not, else 1."""
  from launch.inspection import parameters  # the wall, as in `view`

  which = args.which or "ema"
  first, second = args.compare
  one = parameters.open_params(first, args.step, which)
  other = parameters.open_params(second, args.step, which)
  if args.dry_run:
    print(f"would compare {first} with {second}")
    return 0
  found = parameters.compare(one, other)
  for line in parameters.report(one, other, found):
    print(line)
  return 1 if found else 0


def check(args: argparse.Namespace) -> None:
  """Raises InputError unless exactly one thing is to be seen, and seen as it can be."""
  subjects = (args.checkpoint, args.compare, args.data, args.config, args.goodput)
  if sum(subject is not None for subject in subjects) != 1:
    raise InputError(
      "give exactly one of --checkpoint DIR, --compare A B, --data DIR, --config FILE, "
      "--goodput DIR"
    )
  of_one = args.digest or args.lineage
  if of_one and args.checkpoint is None:
    raise InputError("--digest and --lineage go with --checkpoint DIR")
  no_checkpoint = args.checkpoint is None and args.compare is None
  if args.step is not None and no_checkpoint:
    raise InputError("--step goes with --checkpoint DIR or --compare A B")
  if args.which is not None and args.compare is None and not args.digest:
    raise InputError(f"--which {args.which} goes with --checkpoint DIR --digest or --compare A B")
  if args.release_keys and args.config is None:
    raise InputError("--release_keys goes with --config FILE")


def view(args: argparse.Namespace) -> Iterator[str]:
  """The lines that were asked for."""
  # The wall: each view imports what it needs only once it is asked for, so that help comes at once
  # and a dataset or a ledger is shown without JAX.

  # a dataset
  if args.data is not None:
    from launch.inspection import datasets

    return datasets.contents(args.data)

  # the ledger of a run
  if args.goodput is not None:
    from launch.inspection import goodput

    return goodput.phases(args.goodput)

  # a configuration
  if args.config is not None:
    from launch.inspection import configs

    if args.release_keys:
      return configs.release_keys(args.config)
    return configs.model(args.config)

  # a checkpoint
  from launch.inspection import checkpoints

  if args.digest and args.which is not None:
    from launch.inspection import parameters

    return parameters.digests(args.checkpoint, args.step, args.which)
  if args.digest:
    return checkpoints.digests(args.checkpoint, args.step)
  if args.lineage:
    return checkpoints.lineage(args.checkpoint, args.step)
  return checkpoints.arrays(args.checkpoint, args.step)


if __name__ == "__main__":
  raise SystemExit(main())
