"""Where meshes come from: a folder of mesh files, or the procedural families.

Also how inputs of any kind are split and dealt to shards.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
import math
import pathlib
from typing import Any

from data_pipelines.build.shard_jobs import Refusals, ShardJob
from data_pipelines.synth import assets, filters, procedural
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import blame, folders, meshes

PROCEDURAL = "procedural"
MAX_SHARDS = 99_999  # of a split: what the five digits of a shard's name can count
# What a dataset is cut into if its configuration leaves that open: work for the cores of a large
# machine, in shards that are not large
SHARDS_WANTED = 64
LARGEST_SHARD = 32
UNSTATED = ("", "unknown")  # licences that say nothing
SHOWN_NAMES = 3  # of inputs, in a warning
# 3D files and archives that no reader here knows
UNREAD = (
  *(".fbx", ".blend", ".dae", ".usd", ".usda", ".usdc", ".usdz", ".3ds", ".3mf", ".step", ".stp"),
  *(".x3d", ".wrl", ".abc", ".max", ".c4d", ".ma", ".mb", ".lwo", ".vrm", ".zip", ".7z", ".rar"),
  *(".tar", ".gz", ".xz", ".zst"),
)
IDENTITY_BYTES = 1 << 20  # of a file's head and tail that decide its split


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """Which meshes."""

  source: str  # a folder, searched recursively and through links, or "procedural"
  seed: int = 0
  count: int = 520  # procedural objects
  families: tuple[str, ...] = ()  # of them; empty: all
  license: str = "unknown"  # of files that have no side-car
  max_coordinate: float = 1e6


@dataclasses.dataclass(frozen=True)
class Input:
  """One mesh to be."""

  # path relative to the source folder (folders.shown), or family and number of an object
  name: str
  identity: str  # decides its split


def list_inputs(config: SourceConfig) -> list[Input]:
  """Every input in the order of its identity, which is random with respect to names.

  Raises ConfigError if there are none.
  """
  if config.source == PROCEDURAL:
    return _list_procedural(config)
  root = pathlib.Path(config.source)
  if not config.source or not root.is_dir():
    raise ConfigError(
      f"source = {config.source!r} is not a folder; give --config.source=DIR with meshes, or "
      f"{PROCEDURAL!r}"
    )
  inputs = []
  files = files_below(root)
  for path in files:
    if path.suffix.lower() in meshes.SUFFIXES:
      name = folders.shown(path.relative_to(root))
      inputs.append(Input(name, file_digest(path)))
  folders.tell_unread(root, files, UNREAD)
  if not inputs:
    suffixes = ", ".join(meshes.SUFFIXES)
    raise ConfigError(f"source = {config.source!r} holds no mesh files ({suffixes})")
  return sorted(inputs, key=lambda item: (item.identity, item.name))


def files_below(root: pathlib.Path) -> list[pathlib.Path]:
  """Every file of a source, as folders.files_below finds it.

  Raises InputError or JobFailed for a folder that the system does not let read.
  """
  with blame.reading(root):
    return folders.files_below(root)


def _list_procedural(config: SourceConfig) -> list[Input]:
  """Procedural objects in the order of their identity."""
  if config.count <= 0:
    raise ConfigError(f"procedural.count = {config.count}: it must be positive")
  inputs = []
  for i in range(config.count):
    try:
      family = procedural.family_of(i, config.families)
    except ValueError as error:
      raise ConfigError(f"procedural.{error}") from error
    name = f"{family}-{i}"
    made_of = f"{config.seed} {name}"
    identity = short_digest(made_of.encode())
    inputs.append(Input(name, identity))
  return sorted(inputs, key=lambda item: item.identity)


def load(config: SourceConfig, item: Input) -> assets.Asset:
  """The mesh of an input. Raises Refused."""
  if config.source == PROCEDURAL:
    index = int(item.name.rpartition("-")[2])
    scene = procedural.make_scene(config.seed, index, config.families)
    source = f"procedural/{config.seed}/{item.name}"
    return assets.from_scene(scene, source=source, up="z", license="CC0-1.0")
  root = pathlib.Path(config.source)
  return assets.load(
    folders.located(root, item.name),
    root=root,
    license=config.license,
    max_coordinate=config.max_coordinate,
  )


def load_checked(
  config: SourceConfig, thresholds: filters.FilterConfig, item: Input
) -> assets.Asset:
  """The mesh of an input that passes the filters. Raises Refused."""
  asset = load(config, item)
  filters.check(asset, thresholds)
  return asset


def read(
  refuse: Refusals, config: SourceConfig, thresholds: filters.FilterConfig, item: Input
) -> assets.Asset:
  """As `load_checked`; files are read within the limits of the build. Raises Refused, whatever goes
  wrong.
  """
  is_foreign = config.source != PROCEDURAL
  return refuse.read(load_checked, config, thresholds, item, foreign=is_foreign)


def split_inputs(inputs: Sequence[Input], test_fraction: float) -> dict[str, list[Input]]:
  """Deals inputs to "train" and "test" by identity; equal files never fall into both.

  The test split has the nearest whole number of distinct identities, at least one if the fraction
  is positive and two exist. Raises ConfigError for a fraction outside [0, 1).
  """
  if not 0 <= test_fraction < 1:
    raise ConfigError(f"test_fraction = {test_fraction}: it must lie in [0, 1)")

  # The first identities are held out: their order is random with respect to names.
  identities = sorted({item.identity for item in inputs})
  held_out = round(test_fraction * len(identities))
  if test_fraction > 0 and len(identities) > 1:
    held_out = max(held_out, 1)
    held_out = min(held_out, len(identities) - 1)
  test_identities = set(identities[:held_out])

  # Equal files have one identity, so they stay together.
  train = []
  test = []
  for item in inputs:
    side = test if item.identity in test_identities else train
    side.append(item)
  splits = {}
  if train:
    splits["train"] = train
  if test:
    splits["test"] = test
  return splits


def per_shard(stated: int, inputs: int) -> int:
  """Inputs of a shard, at most: what is stated, or for 0 so few that SHARDS_WANTED cores have work.

  It follows from the number of inputs alone. A machine's own cores do not enter: what a shard draws
  for its objects, such as photos, depends on the cut, and another machine may go on with a build.
  Raises ConfigError for a negative number.
  """
  if stated < 0:
    raise ConfigError(
      f"objects_per_shard = {stated}: it must be positive, or 0 to let the number of objects decide"
    )
  if stated:
    return stated
  return min(math.ceil(inputs / SHARDS_WANTED), LARGEST_SHARD)


def deal(items: Sequence[Input], per_shard: int) -> list[tuple[Input, ...]]:
  """Cuts a split into shards of nearly equal size, at most `per_shard` inputs each."""
  count = math.ceil(len(items) / per_shard)
  if count > MAX_SHARDS:
    least = math.ceil(len(items) / MAX_SHARDS)
    raise ConfigError(
      f"objects_per_shard = {per_shard}: {len(items)} objects would need {count} shards, more than "
      f"{MAX_SHARDS}; use at least {least}"
    )
  # Shard i holds the items from i / count to (i + 1) / count of them.
  total = len(items)
  shards = []
  for i in range(count):
    start = total * i // count
    end = total * (i + 1) // count
    shards.append(tuple(items[start:end]))
  return shards


def deal_jobs(
  inputs: Sequence[Input],
  *,
  test_fraction: float,
  per_shard: int,
  spec: Callable[[tuple[Input, ...]], Any],
) -> list[ShardJob]:
  """The shard jobs of a dataset: inputs dealt to splits, and every split cut into shards.

  spec: what a shard is made of, from its inputs. Raises ConfigError.
  """
  jobs = []
  for split, items in split_inputs(inputs, test_fraction).items():
    shards = deal(items, per_shard)
    for index, part in enumerate(shards):
      job = ShardJob(
        split,
        index,
        len(shards),
        len(part),
        spec(part),
      )
      jobs.append(job)
  return jobs


def split_warning(splits: Iterable[str], test_fraction: float, things: str) -> tuple[str, ...]:
  """What to say of a dataset without a test split; nothing if there is one.

  things: what it takes two different ones of.
  """
  if "test" in splits:
    return ()
  why = f"it takes two different {things}"
  if not test_fraction:
    why = "test_fraction = 0"
  return (
    f"no test split ({why}): nothing is held out to evaluate on, train with --config.eval.every=0 "
    "or on more data",
  )


def license_warning(config: SourceConfig, inputs: Sequence[Input]) -> tuple[str, ...]:
  """What to say of meshes whose licence nothing states; nothing if all have one."""
  if config.source == PROCEDURAL or config.license not in UNSTATED:
    return ()
  unstated = []
  for item in inputs:
    if not assets.states_license(folders.located(config.source, item.name)):
      unstated.append(item.name)
  remedy = "with FILE.license or sources.json beside the mesh (docs/data.md)"
  return unlicensed("meshes", unstated, len(inputs), config.license, "license", remedy)


def unlicensed(
  things: str, names: Sequence[str], total: int, license: str, key: str, remedy: str
) -> tuple[str, ...]:
  """The warning no_license of some inputs of a source; nothing without any.

  license: what their records will say. key: that says otherwise for all of them; remedy: for one.
  """
  if not names:
    return ()
  shown = ", ".join(names[:SHOWN_NAMES])
  if len(names) > SHOWN_NAMES:
    shown += ", ..."
  return (
    f"no_license: {len(names)} of {total} {things} state no licence ({shown}); their records will "
    f"say {license!r}. State it for all with --config.{key}=LICENCE, for one {remedy}",
  )


def digest(inputs: Sequence[Input]) -> str:
  """Changes when an input is added, removed, renamed or altered."""
  lines = [f"{item.name}\n{item.identity}\n" for item in inputs]
  text = "".join(lines)
  return short_digest(text.encode())


def short_digest(data: bytes) -> str:
  """16 hexadecimal digits of SHA-256."""
  return hashlib.sha256(data).hexdigest()[:16]


def file_digest(path: pathlib.Path, most: int = IDENTITY_BYTES) -> str:
  """Of the size and of up to `most` bytes of head and tail.

  Enough to tell meshes apart without reading terabytes twice. Raises InputError or JobFailed for a
  file that the system does not let read.
  """
  with blame.reading(path):
    size = path.stat().st_size
    with path.open("rb") as file:
      head = file.read(most)
      file.seek(max(0, size - most))
      tail = file.read(most)
  return short_digest(str(size).encode() + head + tail)
