r"""Runs the trials of a sweep, several at a time, and ranks them.

    python -m launch.sweep --sweep configs/sweeps/lr.py --workdir sweeps/lr \
        [--parallel 2] [--set KEY=VALUE ...] [--dry_run]

Every trial is an ordinary command with a folder of its own, `WORKDIR/<id>`; `--dry_run` prints them
all. The same command continues a sweep that was stopped: finished trials stay, stopped ones resume
from their checkpoint. A trial that dies is started again up to `--retries` times and then marked;
one that was preempted (exit code 75) goes on for as long as it makes progress. `table.csv` and
`report.html` in WORKDIR are renewed whenever a trial ends.

On a SLURM cluster `--cluster job.yaml` runs every trial as a job of the size that the file (of
`launch.cluster`) says. `--launcher` is any other command that submits one trial and waits for it.
`--parallel` is then how many trials are submitted at a time.
"""

import argparse
import pathlib

from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.sweeps import run as sweep_run


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  # what is tried
  parser.add_argument(
    "--sweep", required=True, metavar="FILE", help="what to try, e.g. configs/sweeps/lr.py"
  )
  parser.add_argument(
    "--workdir", required=True, help="folder of the sweep; an existing one is continued"
  )
  parser.add_argument(
    "--base",
    metavar="FILE[:VARIANT]",
    help="configuration in place of the one that the sweep names",
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="override of every trial; may be repeated",
  )
  # how it is run
  parser.add_argument(
    "--parallel", type=int, default=1, help="trials that run at a time (default: 1)"
  )
  parser.add_argument(
    "--retries",
    type=int,
    default=1,
    help="how often a trial that died is started again (default: 1)",
  )
  parser.add_argument(
    "--launcher",
    default="",
    help="command that submits a trial and waits for it, e.g. 'srun --nodes=4'",
  )
  parser.add_argument(
    "--cluster",
    default="",
    metavar="FILE",
    help="file of launch.cluster with a section slurm: size of a trial",
  )
  # in place of running it
  dry_run_flag(parser, "print the trials")
  parser.add_argument("--report", action="store_true", help="only renew table.csv and report.html")


def run(args: argparse.Namespace) -> None:
  """Runs what is left of the sweep."""
  spec = sweep_run.Spec(
    sweep=args.sweep,
    # trials may be started in another folder
    workdir=pathlib.Path(args.workdir).absolute(),
    base=args.base,
    overrides=tuple(args.set),
    parallel=args.parallel,
    retries=args.retries,
    launcher=args.launcher,
    cluster=args.cluster,
    dry_run=args.dry_run,
    report=args.report,
  )
  sweep_run.run(spec)


if __name__ == "__main__":
  raise SystemExit(main())
