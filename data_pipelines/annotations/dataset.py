"""The builders mitl_3do, art_3do and preferences: a folder of annotated items in, shards out.

    mitl_3do     items whose best candidate is rated r >= min_rating:
                 photo, that candidate's shape, pose and rating
    art_3do      items with an artist's mesh: photo, that mesh and its pose
    preferences  pairs of winner and losers from the chains of choices,
                 candidates of the given generator families only

Items of one photo, and items that share a shape file, fall into the same split. An item that is in
order but does not meet the recipe is listed in quarantine.jsonl with its reason and does not count
towards the budget.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
from importlib import metadata
import json
import pathlib
import tempfile

from data_pipelines.annotations import accepted, layout, preferences, synthetic
from data_pipelines.annotations.items import Recipe, SetAside
from data_pipelines.build.shard_jobs import Plan, Quarantined, Refusals
from data_pipelines.format import schema
from data_pipelines.synth import procedural, sources
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.files import blame, folders

VERSION = "1"  # raise it when the same items give other bytes
PEEK = 1 << 16  # bytes of a file's head and tail that tell it apart when items are dealt to splits
READERS = 16  # threads that look at files when a build is planned


@dataclasses.dataclass(frozen=True)
class Builder:
  """What makes the examples of an item: `make(item, recipe, name)`; and the kind of its records."""

  make: Callable[[layout.Item, Recipe, str], Iterator[schema.Example]]
  records: str = "example"


BUILDERS = {
  "mitl_3do": Builder(accepted.mitl_examples),
  "art_3do": Builder(accepted.artist_examples),
  "preferences": Builder(preferences.examples, records="preference"),
}


@dataclasses.dataclass(frozen=True)
class AnnotationConfig:
  """Which items, and what they are turned into."""

  source: str  # a folder with annotation.json files at any depth, or "procedural": made up
  recipe: Recipe
  synthetic: synthetic.SyntheticConfig  # of made-up ones
  files_outside: bool = False  # whether items may name files from outside of the folder


@dataclasses.dataclass(frozen=True)
class ShardSpec:
  """What one shard is made of."""

  config: AnnotationConfig
  inputs: tuple[sources.Input, ...]


def plan(config: AnnotationConfig, *, test_fraction: float, items_per_shard: int) -> Plan:
  """Lists the items, splits them and cuts them into shards. Raises ConfigError."""
  # the shards
  inputs, contents = list_items(config)
  per_shard = sources.per_shard(items_per_shard, len(inputs))
  jobs = sources.deal_jobs(
    inputs,
    test_fraction=test_fraction,
    per_shard=per_shard,
    spec=functools.partial(ShardSpec, config),
  )

  # what their bytes depend on; where a folder lies changes none
  settings = {"recipe": _as_json(config.recipe)}
  description = f"{config.recipe.builder}: annotated photos"
  if config.source == sources.PROCEDURAL:
    settings["synthetic"] = {"version": synthetic.VERSION} | _as_json(config.synthetic)
    description += " (synthetic)"
  identity = {
    "builder": config.recipe.builder,
    "schema": schema.VERSION,
    "annotations": VERSION,
    "config": settings,
    "test_fraction": test_fraction,
    "items_per_shard": per_shard,
    "inputs": {"count": len(inputs), "digest": contents},
  }
  return Plan(
    name=config.recipe.name,
    jobs=tuple(jobs),
    make=make_shard,
    identity=identity,
    lineage=_versions(),
    kind=BUILDERS[config.recipe.builder].records,
    warnings=(
      *sources.split_warning((job.split for job in jobs), test_fraction, "photos"),
      *license_warning(config, inputs),
    ),
    description=description,
  )


def _as_json(settings: Recipe | synthetic.SyntheticConfig) -> dict:
  """The settings as they read when they come back from a file: lists for tuples."""
  text = json.dumps(dataclasses.asdict(settings))
  return json.loads(text)


@functools.cache
def _versions() -> dict[str, str]:
  packages = ("numpy", "pillow", "trimesh")
  return {"annotations": VERSION} | {name: metadata.version(name) for name in packages}


def make_shard(spec: ShardSpec, refuse: Refusals) -> Iterator[schema.Example]:
  """Yields the examples of a shard in order; items that give none are reported."""
  config = spec.config
  for entry in refuse.each(spec.inputs):
    with _located(config, entry) as path:
      try:
        is_foreign = config.source != sources.PROCEDURAL
        made = refuse.read(item_examples, path, config, entry.name, foreign=is_foreign)
      except layout.AnnotationError as error:
        refuse(_quarantined(entry, path, "bad_annotation", str(error)))
        continue
      except Refused as error:
        fault = not isinstance(error, SetAside)
        refuse(_quarantined(entry, path, error.reason, error.detail, fault=fault))
        continue
    yield from made


def _quarantined(
  entry: sources.Input, path: pathlib.Path, reason: str, detail: str, fault: bool = True
) -> Quarantined:
  """The same wherever the folder lies."""
  root = f"{path.parent}/"
  if str(path).endswith(entry.name):
    root = str(path).removesuffix(entry.name)
  return Quarantined(
    path=entry.name,
    reason=reason,
    detail=detail.replace(root, ""),
    fault=fault,
  )


@contextlib.contextmanager
def _located(config: AnnotationConfig, entry: sources.Input) -> Iterator[pathlib.Path]:
  """The item's JSON file; a synthetic item is written for the time that it is read."""
  if config.source != sources.PROCEDURAL:
    yield folders.located(config.source, entry.name)
    return
  number = int(entry.name.rpartition("-")[2])
  with tempfile.TemporaryDirectory() as folder:
    yield synthetic.write_item(pathlib.Path(folder), number, config.synthetic)


def license_warning(config: AnnotationConfig, inputs: Sequence[sources.Input]) -> tuple[str, ...]:
  """What to say of items that state no licence; nothing if all do."""
  if config.source == sources.PROCEDURAL or config.recipe.license not in sources.UNSTATED:
    return ()

  def states_license(entry: sources.Input) -> bool:
    try:
      with blame.reading(config.source):
        path = folders.located(config.source, entry.name)
        return bool(read_item(path, config).license)
    except layout.AnnotationError:
      return True  # refused when its shard is built

  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    stated = list(pool.map(states_license, inputs))
  names = [entry.name for entry, found in zip(inputs, stated, strict=True) if not found]
  license = config.recipe.license
  remedy = "with `license` in its annotation.json"
  return sources.unlicensed("items", names, len(inputs), license, "license", remedy)


def list_items(config: AnnotationConfig) -> tuple[list[sources.Input], str]:
  """(items by identity, which decides the split; digest of all that they are made of).

  Raises ConfigError.
  """
  if config.source == sources.PROCEDURAL:
    return list_synthetic(config.synthetic)
  return list_folder(config.source, files_outside=config.files_outside)


def list_synthetic(config: synthetic.SyntheticConfig) -> tuple[list[sources.Input], str]:
  """The same of made-up items."""
  if config.count <= 0:
    raise ConfigError(f"synthetic.count = {config.count}: it must be positive")
  try:
    procedural.family_of(0, config.families)
  except ValueError as error:
    raise ConfigError(f"synthetic.{error}") from error
  inputs = []
  for number in range(config.count):
    identity = sources.short_digest(f"{config.seed} {number}".encode())
    inputs.append(sources.Input(f"synthetic-{number}", identity))
  by_identity = sorted(inputs, key=lambda entry: entry.identity)
  return by_identity, sources.digest(inputs)


def item_examples(path: pathlib.Path, config: AnnotationConfig, name: str) -> list[schema.Example]:
  """The examples of an item. Raises AnnotationError, Refused."""
  item = read_item(path, config)
  builder = BUILDERS[config.recipe.builder]
  return list(builder.make(item, config.recipe, name))


def read_item(path: pathlib.Path, config: AnnotationConfig) -> layout.Item:
  """An item of the folder, or one that was made up. Raises AnnotationError."""
  root = None if config.source == sources.PROCEDURAL else config.source
  return layout.read(path, root=root, files_outside=config.files_outside)


def list_folder(source: str, *, files_outside: bool = False) -> tuple[list[sources.Input], str]:
  """The same of a folder."""
  root = pathlib.Path(source)
  if not source or not root.is_dir():
    raise ConfigError(
      f"source = {source!r} is not a folder; give --config.source=DIR with items, or "
      f"{sources.PROCEDURAL!r}"
    )
  files = layout.find(root)
  if not files:
    raise ConfigError(
      f"source = {source!r} holds no {layout.FILE}; docs/data.md describes the layout"
    )

  # what every item is made of
  look = functools.partial(_look, root=root, files_outside=files_outside)
  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    looks = list(pool.map(look, files))
  names = [folders.shown(path.relative_to(root)) for path in files]
  inputs = list(map(sources.Input, names, _joined(looks)))

  # all of it together
  lines = []
  for name, digests in zip(names, looks, strict=True):
    lines.append(f"{name}\n{' '.join(digests)}\n")
  contents = sources.short_digest("".join(lines).encode())
  in_order = sorted(inputs, key=lambda entry: (entry.identity, entry.name))
  return in_order, contents


def _look(path: pathlib.Path, root: pathlib.Path, files_outside: bool) -> list[str]:
  """Digests of the item's files: the JSON, then those that tie items together, photo and shapes.

  A broken item has its JSON only.
  """
  try:
    with blame.reading(path):
      files = layout.read(path, root=root, files_outside=files_outside).files
  except layout.AnnotationError:
    files = [path]  # refused when its shard is built
  return [sources.file_digest(file, PEEK) for file in files]


def _joined(looks: Sequence[Sequence[str]]) -> list[str]:
  """One identity an item, the same for items that share a file (JSON apart).

  Items that share one by way of others have the same identity too.
  """
  # a forest: items whose files have one root belong together
  parent: dict[str, str] = {}

  def root(x: str) -> str:
    while parent.setdefault(x, x) != x:
      parent[x] = x = parent[parent[x]]  # halves the way for whoever comes next
    return x

  # the files that tie items together; a broken item has its JSON only
  ties = [look[1:] or look[:1] for look in looks]
  for tie in ties:
    first, *others = tie
    for other in others:
      smaller, larger = sorted((root(first), root(other)))
      parent[larger] = smaller
  return [root(tie[0]) for tie in ties]
