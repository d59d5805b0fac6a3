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

from collections.abc import Sequence
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
# keys of a sweep's file, those that it must have, and those with few values
KEYS = ("command", "config", "overrides", "space", "metric", "goal", "pick")
NEEDED = ("command", "config", "space", "metric")
CHOICES = {"command": COMMANDS, "goal": ("min", "max"), "pick": ("last", "best")}


def _rounded(value: float) -> float:
  """To four digits, as it will stand on a command line."""
  return float(f"{value:.4g}")


def _uniform(rng: random.Random, values) -> float:
  return _rounded(rng.uniform(*values))


def _log_uniform(rng: random.Random, values) -> float:
  low, high = values
  return _rounded(low * (high / low) ** rng.random())


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
  """A sweep's file with its trials: what the module's docstring says of its keys.

  log_keys: swept keys whose values are spread by ratio, which axes show.
  """

  command: str
  config: str
  metric: str
  goal: str
  pick: str
  trials: tuple[Trial, ...]
  log_keys: frozenset[str] = frozenset()


def load(path: str, *, base: str | None = None, extra: list[str] = ()) -> Sweep:
  """The sweep of a file. base: another FILE[:VARIANT]. extra: KEY=VALUE overrides of every trial.

  Every trial's configuration is loaded once, so that a wrong key or value of any of them is a
  ConfigError before the first one starts.
  """
  spec = _read(path)
  config = base or spec["config"]
  # what is given with the command wins over the file
  given = dict(_pair(text) for text in extra)
  common = {**spec.get("overrides", {}), **given}

  trials = []
  first_of: dict[str, str] = {}
  for number, swept in enumerate(expand(spec["space"], path)):
    trial = _trial(number, config, swept, common)
    # the same digest: the same overrides
    _, _, digest = trial.id.partition("_")
    if digest in first_of:  # it would train the same model twice
      raise ConfigError(
        f"{path}: trials {first_of[digest]} and {trial.id} are the same: {trial.swept}"
      )
    first_of[digest] = trial.id
    trials.append(trial)
    cli.load_config(config, arguments(trial), flag="--base" if base else f"{path}: config")
  return Sweep(
    command=spec["command"],
    config=config,
    metric=spec["metric"],
    goal=spec.get("goal", "min"),
    pick=spec.get("pick", "last"),
    trials=tuple(trials),
    log_keys=logarithmic_keys(spec["space"]),
  )


def _read(path: str) -> dict[str, Any]:
  """What the file's `get_sweep` returns, checked key by key."""
  file = pathlib.Path(cli.find_file(path))
  if file.suffix != ".py" or not file.is_file():
    raise ConfigError(f"--sweep {path}: {cli.nearest_file(path)}")
  # it is run as a module that nobody else can import
  found = importlib.util.spec_from_file_location("sweep_file", file)
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise ConfigError(f"{path} has no get_sweep()")
  spec = module.get_sweep()

  # every key is known, every needed one is there, every choice is one of its values
  for key in spec:
    if key not in KEYS:
      near = difflib.get_close_matches(key, KEYS, n=1)
      remedy = f"; the nearest is {near[0]!r}" if near else f": {', '.join(KEYS)}"
      raise ConfigError(f"{path} has an unknown key {key!r}{remedy}")
  missing = [key for key in NEEDED if key not in spec]
  if missing:
    raise ConfigError(f"{path} lacks {', '.join(missing)}")
  for key, values in CHOICES.items():
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
  combined = []
  for parts in itertools.product(*blocks):
    swept: dict[str, Any] = {}
    double = set()
    for part in parts:
      double |= swept.keys() & part.keys()
      swept |= part
    if double:
      names = ", ".join(sorted(double))
      raise ConfigError(f"{path}: {names} is swept by more than one block")
    combined.append(swept)
  return combined


def _choices(block: dict[str, Any], where: str) -> list[dict[str, Any]]:
  """The choices of one block, each key -> value."""
  # which kind of block it is
  kinds = [kind for kind in ("product", "zip", "random") if kind in block]
  allowed = set(kinds)
  if kinds == ["random"]:
    allowed |= {"trials", "seed"}
  if len(kinds) != 1 or not set(block) <= allowed:
    raise ConfigError(
      f"{where} is not one of product, zip, random (with trials and seed): {sorted(block)}"
    )
  (kind,) = kinds
  keys = block[kind]
  if kind == "random":
    return _draws(keys, block.get("trials", 0), block.get("seed", 0), where)

  # listed values: every combination of them, or one after the other
  for key, values in keys.items():
    if not isinstance(values, (tuple, list)) or not values:
      raise ConfigError(f"{where}.{key} = {values!r} is not a list of values")
  if kind == "product":
    rows = itertools.product(*keys.values())
  else:
    lengths = {key: len(values) for key, values in keys.items()}
    if len(set(lengths.values())) > 1:
      raise ConfigError(f"{where}: zipped values differ in number: {lengths}")
    rows = zip(*keys.values(), strict=True)
  return [dict(zip(keys, row, strict=True)) for row in rows]


def _draws(keys: dict[str, Any], trials: int, seed: int, where: str) -> list[dict[str, Any]]:
  """Each key draws from a stream of its own.

  So adding a key or more trials leaves the other draws alone.
  """
  if trials < 1:
    raise ConfigError(f"{where}.trials = {trials} is not a positive number")
  drawn: list[dict[str, Any]] = [{} for _ in range(trials)]
  for key, draw in keys.items():
    # what is to be drawn
    if not _is_draw(draw):
      known = ", ".join(DRAWS)
      raise ConfigError(f"{where}.{key} = {draw!r} is not one of {known} with its values")
    ((kind, values),) = draw.items()
    if kind == "log_uniform" and not 0 < values[0] <= values[1]:
      raise ConfigError(f"{where}.{key}: log_uniform needs two positive ends, not {values}")
    # from a stream that depends on nothing but the key
    rng = random.Random(f"{seed} {key}")
    for row in drawn:
      row[key] = DRAWS[kind](rng, values)
  return drawn


def logarithmic_keys(space: list[dict[str, Any]]) -> frozenset[str]:
  """Keys that are drawn by `log_uniform`, or whose listed values are multiplied from one to the
  next by the same factor.
  """
  keys = set()
  for block in space:
    for key, draw in block.get("random", {}).items():
      if "log_uniform" in draw:
        keys.add(key)
    for kind in ("product", "zip"):
      for key, values in block.get(kind, {}).items():
        if is_geometric(values):
          keys.add(key)
  return frozenset(keys)


def is_geometric(values: Sequence[Any]) -> bool:
  """Whether at least three positive numbers grow by one factor, to a tenth of it: 1, 3, 10, 30."""
  positive = all(isinstance(value, (int, float)) and value > 0 for value in values)
  if not positive:
    return False
  distinct = sorted(set(values))
  factors = [after / before for before, after in itertools.pairwise(distinct)]
  return len(factors) >= 2 and max(factors) <= 1.15 * min(factors)


def _is_draw(draw: Any) -> bool:
  """Whether it is one kind of draw with its values."""
  if not isinstance(draw, dict) or len(draw) != 1:
    return False
  (kind,) = draw
  return kind in DRAWS


def _trial(number: int, config: str, swept: dict[str, Any], common: dict[str, Any]) -> Trial:
  """The trial with its name: its number, and a digest of all that decides it."""
  # what is swept wins over what is common to all
  overrides = {**common, **swept}
  texts = []
  for key in sorted(overrides):
    texts.append((key, text_of(overrides[key])))
  decides = json.dumps([config, texts])
  digest = hashlib.sha256(decides.encode()).hexdigest()
  return Trial(f"{number:03d}_{digest[:8]}", swept, overrides)


def _pair(text: str) -> tuple[str, str]:
  """Key and value of --set KEY=VALUE. Raises ConfigError without a value."""
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
