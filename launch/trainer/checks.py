"""What can be wrong with a training configuration by itself.

Nothing here or in what it imports needs JAX: such an error is found in the time that it takes to
read the file.
"""

import importlib.util
import math
import pathlib

from ml_collections import ConfigDict

from sam3d_jax.errors import ConfigError


def check(config: ConfigDict, stages: tuple[str, ...], *, before_data: bool = False) -> None:
  """Raises ConfigError naming the key, its value and the fix.

  before_data: the datasets need not be there yet. What only the typed parts of a run can tell is
  found by `launch.trainer.setup.read`.
  """
  if config.stage not in stages:
    accepted = ", ".join(stages)
    raise ConfigError(f"stage = {config.stage!r}: this command runs {accepted}")

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
  if config.batch_size % config.accumulate:
    raise ConfigError(
      f"batch_size = {config.batch_size} does not divide into accumulate = {config.accumulate} "
      "parts"
    )

  # Numbers of tuples that are empty by default, so that their type is told nowhere else.
  for step in config.eval.steps_curve:
    if not isinstance(step, int) or step < 1:
      raise ConfigError(
        f"eval.steps_curve = {config.eval.steps_curve}: {step!r} is not a positive whole number"
      )
  for threshold in config.data.thresholds:
    if not isinstance(threshold, int | float):
      raise ConfigError(
        f"data.thresholds = {config.data.thresholds}: {threshold!r} is not a number"
      )

  # Durations.
  for key in ("factor", "seconds", "other_seconds"):
    value = config.watchdog[key]
    if not value > 0:
      raise ConfigError(f"watchdog.{key} = {value} is not a positive number")

  # What lies outside the configuration.
  if config.log.wandb and importlib.util.find_spec("wandb") is None:
    raise ConfigError(
      f"log.wandb = {config.log.wandb!r}: the package wandb is not installed (pip install wandb); "
      "or leave it empty"
    )
  check_data(config, before_data=before_data)


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
      raise ConfigError(
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
