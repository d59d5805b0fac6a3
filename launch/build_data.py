"""Builds a dataset: meshes in, ArrayRecord shards out.

    python -m launch.build_data --config configs/data/iso_3do.py --config.source=MESHES --config.out=DATA

Stopped or killed, the same command continues; finished shards are not made again. Refused inputs
are listed in DATA/quarantine.jsonl with reasons; more than `quarantine_budget` of them fail the
build.
"""

import argparse
from collections import Counter
from collections.abc import Callable
import re
import signal

from ml_collections import ConfigDict

from data_pipelines.build import beam_executor, shard_jobs
from data_pipelines.synth import filters, iso_3do, sources
from data_pipelines.synth.camera import ViewConfig
from data_pipelines.synth.lighting import LightConfig
from launch.console import cli
from launch.console.progress import Progress
from launch.planners import annotated, pasted
from sam3d_jax.errors import ConfigError, Preempted


def source_config(c: ConfigDict) -> sources.SourceConfig:
  """Where the meshes come from."""
  return sources.SourceConfig(
    source=c.source,
    seed=c.seed,
    count=c.procedural.count,
    families=tuple(c.procedural.families),
    license=c.license,
    max_coordinate=c.mesh.max_coordinate,
  )


def plan_iso_3do(c: ConfigDict) -> shard_jobs.Plan:
  """The plan of an Iso-3DO build."""
  config = iso_3do.IsoConfig(
    name=c.name,
    seed=c.seed,
    views=c.views,
    image_size=c.image_size,
    samples=c.samples,
    image_format=c.image_format,
    background=c.background,
    pointmap=c.pointmap,
    delit=c.delit,
    source=source_config(c),
    camera=ViewConfig(**c.camera),
    light=LightConfig(**c.light),
    filters=filters.FilterConfig(**c.filters),
  )
  return iso_3do.plan(config, test_fraction=c.test_fraction, objects_per_shard=c.objects_per_shard)


PLANNERS: dict[str, Callable[[ConfigDict], shard_jobs.Plan]] = {
  "iso_3do": plan_iso_3do,
  **annotated.PLANNERS,
  **pasted.PLANNERS,
}


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
  parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
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


def run(args: argparse.Namespace) -> int:
  """Plans and builds the dataset of `args.config`."""
  c = args.config
  check(c)
  if args.beam_options and args.executor != "beam":
    raise ConfigError(f"--beam_options {' '.join(args.beam_options)}: they need --executor beam")
  execute = beam_executor.make_executor(args.beam_options) if args.executor == "beam" else None
  plan = PLANNERS[c.builder](c)
  splits = Counter()
  for job in plan.jobs:
    splits[job.split] += job.inputs
  print(
    f"{plan.name}: {plan.inputs} inputs "
    f"({', '.join(f'{n} {split}' for split, n in splits.items())}) in {len(plan.jobs)} "
    f"shards -> {c.out}",
    flush=True,
  )
  if args.dry_run:
    return 0
  signal.signal(signal.SIGTERM, _stop)
  with Progress(
    plan.inputs, f"building {plan.name}", "objects", done=shard_jobs.finished_inputs(plan, c.out)
  ) as progress:
    result = shard_jobs.build(
      plan,
      c.out,
      workers=c.workers,
      execute=execute,
      quarantine_budget=c.quarantine_budget,
      progress=lambda n, refused: progress.update(n, refused=sum(refused.values())),
    )
  refused = ", ".join(f"{reason} {n}" for reason, n in sorted(result.refused.items())) or "none"
  print(
    f"{c.out}: {', '.join(f'{n} {split}' for split, n in result.records.items())} examples; "
    f"refused inputs: {refused}"
  )
  if result.draws:
    print(
      "rejected draws: " + ", ".join(f"{reason} {n}" for reason, n in sorted(result.draws.items()))
    )
  return 0


def _stop(*_) -> None:
  raise Preempted("finished shards are kept")


if __name__ == "__main__":
  raise SystemExit(main())
