"""What can be wrong with a training configuration by itself.

Nothing here or in what it imports needs JAX: such an error is found in the time that it takes to
read the file.
"""

import importlib.util
import math
import pathlib
import re

from ml_collections import ConfigDict

from sam3d_jax.errors import AwayError, ConfigError

# stage -> the command (launch/<name>.py) that runs it
COMMANDS = {
  "train_vae": "train_vae",
  "pretrain": "pretrain",
  "midtrain": "pretrain",
  "sft": "sft",
  "dpo": "dpo",
  "distill": "distill",
}


def stages_of(command: str) -> tuple[str, ...]:
  """The stages that a command runs."""
  return tuple(stage for stage, name in COMMANDS.items() if name == command)


def check(config: ConfigDict, stages: tuple[str, ...], *, before_data: bool = False) -> None:
  """Raises ConfigError naming the key, its value and the fix.

  before_data: the datasets need not be there yet. What only the typed parts of a run can tell is
  found by `launch.trainer.setup.read`.
  """
  if config.stage not in stages:
    accepted = ", ".join(stages)
    command = COMMANDS.get(config.stage)
    remedy = f": use launch.{command}" if command else f"; stages are {', '.join(COMMANDS)}"
    raise ConfigError(f"stage = {config.stage!r}: this command runs {accepted}{remedy}")

  if "objective" not in config:
    raise ConfigError(
      f"objective is missing: a configuration of a {config.model.name} model alone, for exchange "
      "with others; take one that says how to train it"
    )

  # Counts.
  for key in ("steps", "batch_size", "accumulate"):
    value = config[key]
    if value < 1:
      raise ConfigError(f"{key} = {value} is not a positive number")
  if not 0 <= config.seed < 2**32:
    raise ConfigError(f"seed = {config.seed} is not a whole number from 0 to 4294967295")
  for section, key in (("log", "every"), ("checkpoint", "every"), ("checkpoint", "keep")):
    value = config[section][key]
    if value < 1:
      raise ConfigError(f"{section}.{key} = {value} is not a positive number")
  check_accumulate(config.batch_size, config.accumulate)
  check_evaluation(config.eval)
  check_init(config)

  # Numbers of a tuple that is empty by default, so that their type is told nowhere else.
  for threshold in config.data.thresholds:
    if not isinstance(threshold, int | float):
      raise ConfigError(
        f"data.thresholds = {config.data.thresholds}: {threshold!r} is not a number"
      )

  # Early stopping.
  patience = config.eval.stop_after
  if patience < 0:
    raise ConfigError(f"eval.stop_after = {patience}: it must be 0 (never) or more")
  if patience and not config.eval.every:
    raise ConfigError(
      f"eval.stop_after = {patience} and eval.every = 0: a run that never evaluates knows no best "
      "state; set eval.every to the steps between evaluations"
    )

  # What lies outside the configuration.
  if config.log.wandb and importlib.util.find_spec("wandb") is None:
    raise ConfigError(
      f"log.wandb = {config.log.wandb!r}: the package wandb is not installed (pip install wandb); "
      "or leave it empty"
    )
  check_data(config, before_data=before_data)


def check_accumulate(batch_size: int, parts: int) -> None:
  """Raises ConfigError unless a batch can be taken in so many parts."""
  if batch_size % parts == 0:
    return
  # more parts rather than fewer: they are there to save memory
  enough = [n for n in range(parts, batch_size) if batch_size % n == 0]
  nearest_parts = min(enough, default=batch_size)
  nearest_batch = max(1, round(batch_size / parts)) * parts
  raise ConfigError(
    f"batch_size = {batch_size} does not divide into accumulate = {parts} parts; the nearest that "
    f"do are accumulate = {nearest_parts}, or batch_size = {nearest_batch}"
  )


def check_evaluation(section: ConfigDict) -> None:
  """Raises ConfigError for an `eval` section that cannot work."""
  for key in ("every", "objects", "pictures"):
    if section[key] < 0:
      raise ConfigError(f"eval.{key} = {section[key]} is negative: give 0 or more")
  if section.every and section.batches < 1:
    raise ConfigError(
      f"eval.batches = {section.batches} is not a positive number; eval.every = 0 switches "
      "evaluation off"
    )
  if not section.f1_threshold > 0:
    raise ConfigError(f"eval.f1_threshold = {section.f1_threshold} is not a positive number")
  for steps in section.steps_curve:
    if not isinstance(steps, int) or steps < 1:
      raise ConfigError(
        f"eval.steps_curve = {section.steps_curve}: {steps!r} is not a positive whole number"
      )


def check_init(config: ConfigDict) -> None:
  """Raises ConfigError for keys of init_from that have no meaning."""
  kind, colon, decay = config.init_which.partition(":")
  is_decay = kind == "ema" and re.fullmatch(r"0?\.\d+", decay)
  plain = kind in ("raw", "ema") and not colon
  if not plain and not is_decay:
    raise ConfigError(
      f"init_which = {config.init_which!r} is not one of raw, ema, ema:<decay> (ema:0.9999)"
    )
  try:
    re.compile(config.init_allow)
  except re.error as error:
    raise ConfigError(
      f"init_allow = {config.init_allow!r} is not a regular expression: {error}"
    ) from error


def check_data(config: ConfigDict, *, before_data: bool = False) -> None:
  """Raises ConfigError unless the mixture names datasets that exist; `before_data`, names some."""
  kind, mixture = config.data.kind, config.data.mixture
  if kind not in ("shards", "fake"):
    raise ConfigError(f"data.kind = {kind!r} is not one of shards, fake")
  if kind == "fake":
    return
  if not mixture:
    raise ConfigError("data.mixture names no dataset")

  for name, entry in mixture.items():
    if not 0 <= entry.weight < math.inf:
      raise ConfigError(
        f"data.mixture.{name}.weight = {entry.weight} is no weight: give a number, 0 or more"
      )
  # A source of weight 0 is not read and need not be there.
  entries = {name: entry for name, entry in mixture.items() if entry.weight}
  if not entries:
    raise ConfigError("data.mixture: every source has weight 0")
  if before_data:
    return
  for name, entry in entries.items():
    if not entry.path:
      raise ConfigError(
        f"data.mixture.{name}.path is empty: give the dataset folder with "
        f"--config.data.mixture.{name}.path=DIR"
      )
    if not pathlib.Path(entry.path).is_dir():
      raise AwayError(
        f"data.mixture.{name}.path = {entry.path!r} is not a folder (build it with "
        "launch.build_data)"
      )


def missing_data(config: ConfigDict) -> tuple[str, ...]:
  """Names of the mixture's sources that are read and whose folder is not there."""
  if config.data.kind != "shards":
    return ()
  missing = []
  for name, entry in config.data.mixture.items():
    # an empty path would be the present folder
    is_there = entry.path and pathlib.Path(entry.path).is_dir()
    if entry.weight and not is_there:
      missing.append(name)
  return tuple(missing)
