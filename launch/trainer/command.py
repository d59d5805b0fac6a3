"""The command line of every training command: parse, check, and only then touch JAX.

`launch.pretrain`, `launch.sft`, `launch.dpo`, `launch.distill` and `launch.train_vae` are this with
the stages they accept.
"""

import argparse
from collections.abc import Iterator
import contextlib
import os

from launch.console import cli, folders, machines
from launch.console.flags import dry_run_flag
from launch.trainer import checks
from launch.trainer.specs import HostsSpec, RunSpec
from sam3d_jax.errors import AwayError, ConfigError, DeniedError, JobFailed
from sam3d_jax.files import blame
from sam3d_jax.training.preemption import StopFlag


def main(stages: tuple[str, ...], description: str, argv: list[str] | None = None) -> int:
  """Runs a training command that accepts configurations of the given stages: its exit code."""

  def run(args: argparse.Namespace) -> None:
    # From here on a signal to stop is kept until there is something to save.
    with StopFlag() as stop:
      spec = run_spec(args)
      with failing_as_run(spec.workdir):
        start(spec, stages, stop)

  return cli.run_command(run, description=description, flags=flags, argv=argv)


def start(spec: RunSpec, stages: tuple[str, ...], stop: StopFlag) -> None:
  """Checks the configuration; then plans, or trains."""
  checks.check(spec.config, stages, before_data=spec.dry_run)
  if spec.devices:
    # What is only described needs no device; those at hand are left to others.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  # The wall: what is imported here needs JAX, which takes seconds that no wrong configuration
  # and no --help should cost.
  if spec.dry_run:
    from launch.trainer import rehearsal

    rehearsal.run(spec)
    return
  from launch.trainer import train

  train.run(spec, stop)


@contextlib.contextmanager
def failing_as_run(workdir: str) -> Iterator[None]:
  """For a run that was begun, disks and data that are gone are a failure that the next start may
  not meet (exit code 1), never a mistake that ends it for good, and never a traceback.
  """
  begun = folders.is_begun(workdir)
  try:
    yield
  except (AwayError, DeniedError) as error:
    if not begun:
      raise
    raise JobFailed(
      f"{error}. The run in {workdir} has read it before: is its disk mounted?"
    ) from error
  except OSError as error:
    # What nobody reads any more is the command line's affair.
    is_known = blame.system_errno(error) in (*blame.DISK, *blame.PERMISSION)
    if isinstance(error, BrokenPipeError) or not (begun or is_known):
      raise
    # a run that is new may be told to go elsewhere
    if not begun and error.errno in blame.PERMISSION:
      raise
    raise JobFailed(
      f"{error}: a disk of this run is full, failing or not mounted; the checkpoints in {workdir} "
      "are untouched, the same command goes on from them"
    ) from error


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir",
    required=True,
    help="folder for checkpoints and metrics; an existing one is resumed",
  )
  dry_run_flag(parser, "check all that can be found, print the plan")
  devices_flag(parser)
  hosts_flags(parser)


def devices_flag(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--devices",
    default="",
    metavar="N|8xH100|v5p-64|v5p:4x4x4",
    help="with --dry_run: plan for these devices, none of which has to be there",
  )


def hosts_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group(
    "several processes (found in the environment under SLURM, Kubernetes and on TPUs)"
  )
  group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
  group.add_argument("--num_processes", help="processes of this job")
  group.add_argument("--process_id", help="number of this process, from 0")
  group.add_argument(
    "--multihost",
    action="store_true",
    help="let JAX find the other processes (TPU, SLURM, Open MPI)",
  )


def run_spec(args: argparse.Namespace) -> RunSpec:
  """The flags, typed. Raises ConfigError for devices that are not, or not to be, described."""
  if args.devices and not args.dry_run:
    raise ConfigError(f"--devices {args.devices} goes with --dry_run; a run takes those at hand")
  if args.devices:
    machines.parse(args.devices, "--devices")
  return RunSpec(
    config=args.config,
    workdir=args.workdir,
    dry_run=args.dry_run,
    devices=args.devices,
    hosts=hosts_spec(args),
  )


def hosts_spec(args: argparse.Namespace) -> HostsSpec:
  return HostsSpec(
    coordinator=args.coordinator,
    num_processes=args.num_processes,
    process_id=args.process_id,
    multihost=args.multihost,
  )
