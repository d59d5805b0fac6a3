"""Runs the trials of a sweep, several at a time, and ranks them.

    python -m launch.sweep --sweep configs/sweeps/lr.py --workdir sweeps/lr [--parallel 2] [--set KEY=VALUE ...] [--dry_run]

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
import json
import pathlib
import shlex

from launch.cluster import slurm
from launch.cluster import spec as cluster_spec
from launch.console import cli
from launch.sweeps import report, space
from launch.sweeps.trials import Runner, command_of
from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import atomic

RECORD = "sweep.json"


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
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
  parser.add_argument("--dry_run", action="store_true", help="print the trials and stop")
  parser.add_argument("--report", action="store_true", help="only renew table.csv and report.html")


def run(args: argparse.Namespace) -> None:
  """Checks every trial's configuration, then runs what is left of the sweep."""
  if args.parallel < 1 or args.retries < 0:
    raise InputError(
      f"--parallel {args.parallel} must be at least 1 and --retries {args.retries} at least 0"
    )
  sweep = space.load(args.sweep, base=args.base, extra=args.set)
  workdir = pathlib.Path(args.workdir).absolute()
  launcher = launcher_of(args)
  print(
    f"{len(sweep.trials)} trials of launch.{sweep.command} {sweep.config}, ranked by "
    f"{sweep.metric} ({sweep.goal}, {sweep.pick})"
  )
  if args.dry_run:
    for trial in sweep.trials:
      print(f"{trial.id}  {shlex.join([*launcher, *command_of(sweep, trial, workdir)])}")
    return
  record(workdir, sweep)
  runner = Runner(sweep, workdir, parallel=args.parallel, retries=args.retries, launcher=launcher)
  if not args.report:
    runner.run(lambda: report.write(sweep, workdir))
  rows = report.write(sweep, workdir)
  print(report.text(sweep, rows))
  print(f"wrote {workdir / 'table.csv'} and {workdir / 'report.html'}")
  failed = [row["id"] for row in rows if row["status"] == "failed"]
  if failed and not args.report:
    raise JobFailed(
      f"{len(failed)} of {len(rows)} trials failed: "
      + ", ".join(f"{workdir / i / 'log.txt'}" for i in failed)
    )


def launcher_of(args: argparse.Namespace) -> list[str]:
  """What stands before the command line of every trial."""
  if not args.cluster:
    return shlex.split(args.launcher)
  if args.launcher:
    raise InputError(
      f"--cluster {args.cluster} and --launcher {args.launcher!r} both say how trials are "
      "submitted: give one"
    )
  spec = cluster_spec.load(args.cluster)
  if spec.slurm is None:
    raise InputError(
      f"--cluster {args.cluster} has no section slurm, the only kind of cluster that sweeps run on"
    )
  return slurm.launcher(spec)


def record(workdir: pathlib.Path, sweep: space.Sweep) -> None:
  """Writes down what the folder is a sweep of. Raises InputError if it is one of other trials; more
  of the same may be added.
  """
  now = {
    "command": sweep.command,
    "config": sweep.config,
    "trials": {t.id: t.swept for t in sweep.trials},
  }
  path = workdir / RECORD
  if path.exists():
    before = json.loads(path.read_text())
    gone = [i for i in before["trials"] if i not in now["trials"]]
    if gone or (before["command"], before["config"]) != (now["command"], now["config"]):
      raise InputError(
        f"{workdir} holds a sweep of launch.{before['command']} {before['config']} with other "
        "trials "
        f"({', '.join(gone[:3]) or 'another command'}): give another --workdir, or the settings it "
        "was started with"
      )
  atomic.write_json(path, now)


if __name__ == "__main__":
  raise SystemExit(main())
