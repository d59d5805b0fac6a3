"""What a sweep tries: from `configs/sweeps/<name>.py` to a list of trials.

The file's `get_sweep()` returns plain data: `command` (launch.<command>), `config`
(FILE[:VARIANT]), `overrides` of every trial, `space`, `metric`, `goal` (min or max), `pick` (last
or best). `space` is a list of blocks, each one of

    {"product": {key: values, ...}}                       every combination
    {"zip": {key: values, ...}}                           values of equal length, taken together
    {"random": {key: draw, ...}, "trials": n, "seed": s}  n independent draws

where a draw is {"uniform": (a, b)}, {"log_uniform": (a, b)}, {"integer": (a, b)} (both ends
included) or {"choice": values},
and the trials are every combination of one choice from each block.
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import itertools
import json
import pathlib
import random
from typing import Any

from launch.console import cli
from sam3d_jax.errors import ConfigError

COMMANDS = ("pretrain", "sft", "dpo", "distill", "train_vae")
KEYS = ("command", "config", "overrides", "space", "metric", "goal", "pick")


def _uniform(rng: random.Random, values) -> float:
  return float(f"{rng.uniform(*values):.4g}")


def _log_uniform(rng: random.Random, values) -> float:
  low, high = values
  return float(f"{low * (high / low) ** rng.random():.4g}")


def _integer(rng: random.Random, values) -> int:
  return rng.randint(*values)


def _choice(rng: random.Random, values):
  return rng.choice(list(values))


DRAWS = {
  "uniform": _uniform,
  "log_uniform": _log_uniform,
  "integer": _integer,
  "choice": _choice,
}


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep. `id` names its folder; `swept` are the keys that tell it from the others,
  `overrides` all that it sets.
  """

  id: str
  swept: dict[str, Any]
  overrides: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sweep:
  command: str
  config: str
  metric: str
  goal: str
  pick: str
  trials: tuple[Trial, ...]


def load(path: str, *, base: str | None = None, extra: list[str] = ()) -> Sweep:
  """The sweep of a file. base: another FILE[:VARIANT]. extra: KEY=VALUE overrides of every trial.

  Every trial's configuration is loaded once, so that a wrong key or value of any of them is a
  ConfigError before the first one starts.
  """
  spec = _read(path)
  config = base or spec["config"]
  common = {**spec.get("overrides", {}), **dict(_pair(text) for text in extra)}
  choices = expand(spec["space"], path)
  trials = tuple(_trial(i, config, swept, common) for i, swept in enumerate(choices))
  seen = {}
  for trial in trials:
    if trial.id[4:] in seen:
      raise ConfigError(
        f"{path}: trials {seen[trial.id[4:]]} and {trial.id} are the same: {trial.swept}"
      )
    seen[trial.id[4:]] = trial.id
    cli.load_config(config, arguments(trial))
  return Sweep(
    spec["command"],
    config,
    spec["metric"],
    spec.get("goal", "min"),
    spec.get("pick", "last"),
    trials,
  )


def _read(path: str) -> dict[str, Any]:
  """What the file's `get_sweep` returns, checked key by key."""
  file = pathlib.Path(cli.find_file(path))
  if file.suffix != ".py" or not file.is_file():
    raise ConfigError(f"--sweep {path}: {cli.nearest_file(path)}")
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_file_location("sweep_file", file)
  )
  module.__spec__.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise ConfigError(f"{path} has no get_sweep()")
  spec = module.get_sweep()
  for key in spec:
    if key not in KEYS:
      near = difflib.get_close_matches(key, KEYS, n=1)
      raise ConfigError(
        f"{path} has an unknown key {key!r}"
        + (f"; the nearest is {near[0]!r}" if near else f": {', '.join(KEYS)}")
      )
  missing = [key for key in ("command", "config", "space", "metric") if key not in spec]
  if missing:
    raise ConfigError(f"{path} lacks {', '.join(missing)}")
  for key, values in (("command", COMMANDS), ("goal", ("min", "max")), ("pick", ("last", "best"))):
    if key in spec and spec[key] not in values:
      raise ConfigError(f"{path}: {key} = {spec[key]!r} is not one of {', '.join(values)}")
  return spec


def expand(space: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
  """The combinations of the blocks' choices, the last block varying fastest.

  Raises ConfigError naming block and key.
  """
  if not space:
    raise ConfigError(f"{path}: space is empty")
  blocks = [_choices(block, f"{path}: space[{i}]") for i, block in enumerate(space)]
  out = []
  for chosen in itertools.product(*blocks):
    keys = [key for part in chosen for key in part]
    double = sorted({key for key in keys if keys.count(key) > 1})
    if double:
      raise ConfigError(f"{path}: {', '.join(double)} is swept by more than one block")
    out.append({key: value for part in chosen for key, value in part.items()})
  return out


def _choices(block: dict[str, Any], where: str) -> list[dict[str, Any]]:
  kinds = [kind for kind in ("product", "zip", "random") if kind in block]
  allowed = {*kinds, "trials", "seed"} if kinds == ["random"] else set(kinds)
  if len(kinds) != 1 or not set(block) <= allowed:
    raise ConfigError(
      f"{where} is not one of product, zip, random (with trials and seed): {sorted(block)}"
    )
  kind, keys = kinds[0], block[kinds[0]]
  if kind == "random":
    return _draws(keys, block.get("trials", 0), block.get("seed", 0), where)
  for key, values in keys.items():
    if not isinstance(values, (tuple, list)) or not values:
      raise ConfigError(f"{where}.{key} = {values!r} is not a list of values")
  if kind == "product":
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
  lengths = {key: len(values) for key, values in keys.items()}
  if len(set(lengths.values())) > 1:
    raise ConfigError(f"{where}: zipped values differ in number: {lengths}")
  return [dict(zip(keys, values, strict=True)) for values in zip(*keys.values(), strict=True)]


def _draws(keys: dict[str, Any], trials: int, seed: int, where: str) -> list[dict[str, Any]]:
  """Each key draws from a stream of its own.

  So adding a key or more trials leaves the other draws alone.
  """
  if trials < 1:
    raise ConfigError(f"{where}.trials = {trials} is not a positive number")
  columns = {}
  for key, draw in keys.items():
    if not isinstance(draw, dict) or len(draw) != 1 or next(iter(draw)) not in DRAWS:
      raise ConfigError(
        f"{where}.{key} = {draw!r} is not one of {', '.join(DRAWS)} with its values"
      )
    kind, values = next(iter(draw.items()))
    rng = random.Random(f"{seed} {key}")
    if kind == "log_uniform" and not 0 < values[0] <= values[1]:
      raise ConfigError(f"{where}.{key}: log_uniform needs two positive ends, not {values}")
    columns[key] = [DRAWS[kind](rng, values) for _ in range(trials)]
  return [{key: column[i] for key, column in columns.items()} for i in range(trials)]


def _trial(index: int, config: str, swept: dict[str, Any], common: dict[str, Any]) -> Trial:
  overrides = {**common, **swept}
  texts = sorted((key, text_of(value)) for key, value in overrides.items())
  digest = hashlib.sha256(json.dumps([config, texts]).encode()).hexdigest()
  return Trial(f"{index:03d}_{digest[:8]}", swept, overrides)


def _pair(text: str) -> tuple[str, str]:
  key, equals, value = text.partition("=")
  if not equals:
    raise ConfigError(f"--set {text}: write it as --set KEY=VALUE")
  return key, value


def text_of(value: Any) -> str:
  """A value as it stands on a command line."""
  return value if isinstance(value, str) else repr(value)


def arguments(trial: Trial) -> list[str]:
  """The trial's configuration overrides as command-line arguments."""
  return [f"--config.{key}={text_of(value)}" for key, value in trial.overrides.items()]
