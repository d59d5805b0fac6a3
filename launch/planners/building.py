"""What launch.build_data runs: a configuration checked, planned, built and described."""

from collections import Counter
import dataclasses
import pathlib
import re
import signal

from ml_collections import ConfigDict

from data_pipelines.build import beam_executor, data_card, limited, shard_jobs
from data_pipelines.format import records
from launch.console.folders import check_folder
from launch.console.progress import Progress
from launch.planners.builders import PLANNERS
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, Preempted
from sam3d_jax.files import texts


@dataclasses.dataclass(frozen=True)
class BuildSpec:
  """What to build and who makes the shards."""

  config: ConfigDict
  dry_run: bool = False
  executor: str = "local"  # or "beam"
  beam_options: tuple[str, ...] = ()


def check(c: ConfigDict) -> None:
  """Raises ConfigError on values that no builder can work with."""
  # what is built, and where
  if c.builder not in PLANNERS:
    raise ConfigError(f"builder = {c.builder!r} is unknown; there are {', '.join(PLANNERS)}")
  if not c.out:
    raise ConfigError("out is empty: give the folder of the dataset with --config.out=DIR")
  check_folder(c.out, "--config.out")
  if not re.fullmatch(r"[a-z]\w*", c.name):
    raise ConfigError(
      f"name = {c.name!r}: lower-case first, then letters, digits and underscores only"
    )

  # what an example is; not every builder has these keys
  for key in ("views", "image_size", "samples"):
    if key in c and c[key] < 1:
      raise ConfigError(f"{key} = {c[key]}: it must be at least 1")
  if "image_format" in c and c.image_format not in ("png", "jpeg"):
    raise ConfigError(f"image_format = {c.image_format!r}: it must be png or jpeg")
  if "background" in c and isinstance(c.background, tuple):
    check_background(c.background)
  for section in ("camera", "light"):
    check_ranges(section, c.get(section, {}))

  # how it is built
  seed = c.get("seed", 0)
  if not 0 <= seed < 2**32:
    raise ConfigError(f"seed = {seed} is not a whole number from 0 to 4294967295")
  for key in ("objects_per_shard", "items_per_shard"):
    if key in c and c[key] < 0:
      raise ConfigError(f"{key} = {c[key]} is negative: give 0 (by count and cores) or more")
  if not 0 <= c.quarantine_budget <= 1:
    raise ConfigError(f"quarantine_budget = {c.quarantine_budget}: it is a fraction in [0, 1]")
  if c.workers < 0:
    raise ConfigError(f"workers = {c.workers}: it must be 0 (one a core) or more")


def check_background(grey: tuple[int, ...]) -> None:
  """Grey levels are a range within those of a picture. Raises ConfigError."""
  if len(grey) != 2 or not 0 <= grey[0] <= grey[1] <= 255:
    raise ConfigError(f"background = {grey}: it must be a range (low, high) within 0 to 255")


def check_ranges(section: str, values: ConfigDict) -> None:
  """Every tuple of the section is a range (low, high). Raises ConfigError."""
  for key, value in values.items():
    if not isinstance(value, tuple):
      continue
    if len(value) != 2 or value[0] > value[1]:
      raise ConfigError(f"{section}.{key} = {value}: it must be a range (low, high)")


def build(spec: BuildSpec) -> None:
  """Prints the plan and, unless told to stop there, makes the shards that are not made yet."""
  # the plan
  c = spec.config
  check(c)
  execute = make_executor(spec)
  keep_recorded_cut(c)
  limits = sections.typed(limited.Limits, c.limits, "limits")
  plan_dataset = PLANNERS[c.builder]
  plan = dataclasses.replace(plan_dataset(c), limits=limits)
  print(describe_plan(plan, c.out), flush=True)
  if spec.dry_run:
    shard_jobs.is_claimed(plan, c.out)
    return

  # the shards that are left
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
  card = data_card.write(c.out)
  if card is not None:
    print(f"{card}: {data_card.REMARK}")


def keep_recorded_cut(c: ConfigDict) -> None:
  """A build that was begun keeps the size of its shards, where the configuration leaves it open."""
  recorded = texts.read_own(pathlib.Path(c.out) / records.BUILD_FILE) or {}
  identity = recorded.get("identity", {})
  for key in ("objects_per_shard", "items_per_shard"):
    if c.get(key) == 0:
      c[key] = identity.get("objects_per_shard", identity.get("items_per_shard", 0))


def make_executor(spec: BuildSpec) -> shard_jobs.Executor | None:
  """What runs the shard jobs; None: processes of this machine. Raises ConfigError."""
  if spec.executor == "beam":
    return beam_executor.make_executor(spec.beam_options)
  if spec.beam_options:
    given = " ".join(spec.beam_options)
    raise ConfigError(f"--beam_options {given}: they need --executor beam")
  return None


def describe_plan(plan: shard_jobs.Plan, out: str) -> str:
  """The lines that say what is about to be built, and what to know before it is."""
  inputs_of = Counter()
  for job in plan.jobs:
    inputs_of[job.split] += job.inputs
  splits = ", ".join(f"{inputs} {split}" for split, inputs in inputs_of.items())
  shards = len(plan.jobs)
  lines = [f"{plan.name}: {plan.inputs} inputs ({splits}) in {shards} shards -> {out}"]
  for warning in plan.warnings:
    lines.append(f"WARNING {warning}")
  return "\n".join(lines)


def describe_result(result: shard_jobs.BuildResult, out: str) -> str:
  """What was built, and what was turned down for which reason."""
  made = ", ".join(f"{examples} {split}" for split, examples in result.records.items())
  refused = by_reason(result.refused)
  lines = [f"{out}: {made} examples; refused inputs: {refused or 'none'}"]
  if result.draws:
    lines.append(f"rejected draws: {by_reason(result.draws)}")

  # a split that was planned and came out empty
  for split, examples in result.records.items():
    if not examples:
      lines.append(
        f"WARNING split {split!r} is empty: every input that was dealt to it was refused "
        f"({pathlib.Path(out) / records.QUARANTINE_FILE} says why). Give a larger "
        "--config.test_fraction and another --config.out"
      )
  return "\n".join(lines)


def by_reason(counts: dict[str, int]) -> str:
  """Counts in the order of their reasons, as text."""
  return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


def _stop(*_) -> None:
  raise Preempted("finished shards are kept")
