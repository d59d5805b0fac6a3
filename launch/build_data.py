"""Builds a dataset: meshes in, ArrayRecord shards out.

    python -m launch.build_data --config configs/data/iso_3do.py --config.source=MESHES \\
        --config.out=DATA

Stopped or killed, the same command continues; finished shards are not made again. Refused inputs
are listed in DATA/quarantine.jsonl with reasons; more than `quarantine_budget` of them fail the
build.
"""

import argparse
from collections import Counter
import dataclasses
import re
import signal

from ml_collections import ConfigDict

from data_pipelines.build import beam_executor, shard_jobs
from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.progress import Progress
from launch.planners.builders import PLANNERS
from sam3d_jax.errors import ConfigError, Preempted


@dataclasses.dataclass(frozen=True)
class BuildSpec:
  """What to build and who makes the shards."""

  config: ConfigDict
  dry_run: bool = False
  executor: str = "local"  # or "beam"
  beam_options: tuple[str, ...] = ()


def check(c: ConfigDict) -> None:
  """Raises ConfigError on values that no builder can work with."""
  if c.builder not in PLANNERS:
    raise ConfigError(f"builder = {c.builder!r} is unknown; there are {', '.join(PLANNERS)}")
  if not c.out:
    raise ConfigError("out is empty: give the folder of the dataset with --config.out=DIR")
  if not re.fullmatch(r"[a-z]\w*", c.name):
    raise ConfigError(
      f"name = {c.name!r}: lower-case first, then letters, digits and underscores only"
    )
  for key in ("views", "image_size", "samples"):
    if key in c and c[key] < 1:
      raise ConfigError(f"{key} = {c[key]}: it must be at least 1")
  if "image_format" in c and c.image_format not in ("png", "jpeg"):
    raise ConfigError(f"image_format = {c.image_format!r}: it must be png or jpeg")
  if not 0 <= c.quarantine_budget <= 1:
    raise ConfigError(f"quarantine_budget = {c.quarantine_budget}: it is a fraction in [0, 1]")
  if c.workers < 0:
    raise ConfigError(f"workers = {c.workers}: it must be 0 (one a core) or more")
  for section in ("camera", "light"):
    for key, value in c.get(section, {}).items():
      if isinstance(value, tuple) and (len(value) != 2 or value[0] > value[1]):
        raise ConfigError(f"{section}.{key} = {value}: it must be a range (low, high)")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  dry_run_flag(parser, "print the plan")
  parser.add_argument(
    "--executor", choices=("local", "beam"), default="local", help="local processes, or Apache Beam"
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
  build(BuildSpec(args.config, args.dry_run, args.executor, tuple(args.beam_options)))


def build(spec: BuildSpec) -> None:
  """Prints the plan and, unless told to stop there, makes the shards that are not made yet."""
  c = spec.config
  check(c)
  execute = make_executor(spec)
  plan = PLANNERS[c.builder](c)
  print(describe_plan(plan, c.out), flush=True)
  if spec.dry_run:
    return

  signal.signal(signal.SIGTERM, _stop)
  done = shard_jobs.finished_inputs(plan, c.out)
  with Progress(plan.inputs, f"building {plan.name}", "objects", done=done) as bar:

    def show(inputs: int, refused: dict[str, int]) -> None:
      bar.update(inputs, refused=sum(refused.values()))

    result = shard_jobs.build(
      plan,
      c.out,
      workers=c.workers,
      execute=execute,
      quarantine_budget=c.quarantine_budget,
      progress=show,
    )
  print(describe_result(result, c.out))


def make_executor(spec: BuildSpec) -> shard_jobs.Executor | None:
  """What runs the shard jobs; None: processes of this machine. Raises ConfigError."""
  if spec.executor == "beam":
    return beam_executor.make_executor(spec.beam_options)
  if spec.beam_options:
    raise ConfigError(f"--beam_options {' '.join(spec.beam_options)}: they need --executor beam")
  return None


def describe_plan(plan: shard_jobs.Plan, out: str) -> str:
  """The line that says what is about to be built."""
  splits = Counter()
  for job in plan.jobs:
    splits[job.split] += job.inputs
  parts = ", ".join(f"{inputs} {split}" for split, inputs in splits.items())
  return f"{plan.name}: {plan.inputs} inputs ({parts}) in {len(plan.jobs)} shards -> {out}"


def describe_result(result: shard_jobs.BuildResult, out: str) -> str:
  """What was built, and what was turned down for which reason."""
  made = ", ".join(f"{examples} {split}" for split, examples in result.records.items())
  refused = ", ".join(f"{reason} {n}" for reason, n in sorted(result.refused.items()))
  lines = [f"{out}: {made} examples; refused inputs: {refused or 'none'}"]
  if result.draws:
    draws = ", ".join(f"{reason} {n}" for reason, n in sorted(result.draws.items()))
    lines.append(f"rejected draws: {draws}")
  return "\n".join(lines)


def _stop(*_) -> None:
  raise Preempted("finished shards are kept")


if __name__ == "__main__":
  raise SystemExit(main())
