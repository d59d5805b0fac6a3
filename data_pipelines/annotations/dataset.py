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
from data_pipelines.build.shard_jobs import Plan, Quarantined
from data_pipelines.format import schema
from data_pipelines.synth import sources
from sam3d_jax.errors import ConfigError, Refused

VERSION = "1"  # raise it when the same items give other bytes
PEEK = 1 << 16  # bytes of a file's head and tail that tell it apart when items are dealt to splits
READERS = 16  # threads that look at files when a build is planned
MAKERS: dict[str, Callable[[layout.Item, Recipe, str], Iterator[schema.Example]]] = {
  "mitl_3do": accepted.mitl_examples,
  "art_3do": accepted.artist_examples,
  "preferences": preferences.examples,
}


@dataclasses.dataclass(frozen=True)
class AnnotationConfig:
  """Which items, and what they are turned into."""

  source: str  # a folder with annotation.json files at any depth, or "procedural": made up
  recipe: Recipe
  synthetic: synthetic.SyntheticConfig  # of made-up ones


@dataclasses.dataclass(frozen=True)
class ShardSpec:
  """What one shard is made of."""

  config: AnnotationConfig
  inputs: tuple[sources.Input, ...]


def plan(config: AnnotationConfig, *, test_fraction: float, items_per_shard: int) -> Plan:
  """Lists the items, splits them and cuts them into shards. Raises ConfigError."""
  inputs, contents = list_items(config)
  jobs = sources.deal_jobs(
    inputs,
    test_fraction=test_fraction,
    per_shard=items_per_shard,
    spec=functools.partial(ShardSpec, config),
  )
  # where a folder lies changes no byte
  settings = {"recipe": json.loads(json.dumps(dataclasses.asdict(config.recipe)))}
  if config.source == sources.PROCEDURAL:
    settings["synthetic"] = json.loads(json.dumps(dataclasses.asdict(config.synthetic)))
  identity = {
    "builder": config.recipe.builder,
    "schema": schema.VERSION,
    "annotations": VERSION,
    "config": settings,
    "test_fraction": test_fraction,
    "items_per_shard": items_per_shard,
    "inputs": {"count": len(inputs), "digest": contents},
  }
  kind = "preference" if config.recipe.builder == "preferences" else "example"
  description = f"{config.recipe.builder}: annotated photos"
  if config.source == sources.PROCEDURAL:
    description += " (synthetic)"
  return Plan(
    name=config.recipe.name,
    jobs=tuple(jobs),
    make=make_shard,
    identity=identity,
    lineage=_versions(),
    kind=kind,
    description=description,
  )


@functools.cache
def _versions() -> dict[str, str]:
  return {"annotations": VERSION} | {
    name: metadata.version(name) for name in ("numpy", "pillow", "trimesh")
  }


def make_shard(spec: ShardSpec, refuse: Callable[[Quarantined], None]) -> Iterator[schema.Example]:
  """Yields the examples of a shard in order; items that give none are reported."""
  config, make = spec.config, MAKERS[spec.config.recipe.builder]
  for entry in spec.inputs:
    with _located(config, entry) as path:
      try:
        yield from make(layout.read(path), config.recipe, entry.name)
      except layout.AnnotationError as error:
        refuse(_quarantined(entry, path, "bad_annotation", str(error)))
      except Refused as error:
        fault = not isinstance(error, SetAside)
        refuse(_quarantined(entry, path, error.reason, error.detail, fault=fault))


def _quarantined(
  entry: sources.Input, path: pathlib.Path, reason: str, detail: str, fault: bool = True
) -> Quarantined:
  """The same wherever the folder lies."""
  root = f"{path.parent}/"
  if str(path).endswith(entry.name):
    root = str(path).removesuffix(entry.name)
  return Quarantined(entry.name, reason, detail.replace(root, ""), fault)


@contextlib.contextmanager
def _located(config: AnnotationConfig, entry: sources.Input) -> Iterator[pathlib.Path]:
  """The item's JSON file; a synthetic item is written for the time that it is read."""
  if config.source != sources.PROCEDURAL:
    yield pathlib.Path(config.source) / entry.name
    return
  with tempfile.TemporaryDirectory() as folder:
    yield synthetic.write_item(
      pathlib.Path(folder), int(entry.name.rpartition("-")[2]), config.synthetic
    )


def list_items(config: AnnotationConfig) -> tuple[list[sources.Input], str]:
  """(items by identity, which decides the split; digest of all that they are made of).

  Raises ConfigError.
  """
  if config.source == sources.PROCEDURAL:
    if config.synthetic.count <= 0:
      raise ConfigError(f"synthetic.count = {config.synthetic.count}: it must be positive")
    inputs = [
      sources.Input(f"synthetic-{i}", sources.short_digest(f"{config.synthetic.seed} {i}".encode()))
      for i in range(config.synthetic.count)
    ]
    return sorted(inputs, key=lambda i: i.identity), sources.digest(inputs)
  return list_folder(config.source)


def list_folder(source: str) -> tuple[list[sources.Input], str]:
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
  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    looks = list(pool.map(_look, files))
  names = [path.relative_to(root).as_posix() for path in files]
  inputs = [
    sources.Input(name, identity) for name, identity in zip(names, _joined(looks), strict=True)
  ]
  lines = [f"{name}\n{' '.join(look)}\n" for name, look in zip(names, looks, strict=True)]
  contents = sources.short_digest("".join(lines).encode())
  return sorted(inputs, key=lambda i: (i.identity, i.name)), contents


def _look(path: pathlib.Path) -> list[str]:
  """Digests of the item's files: the JSON, then those that tie items together, photo and shapes.

  A broken item has its JSON only.
  """
  try:
    files = layout.read(path).files
  except layout.AnnotationError:
    files = [path]  # refused when its shard is built
  return [sources.file_digest(file, PEEK) for file in files]


def _joined(looks: Sequence[Sequence[str]]) -> list[str]:
  """One identity an item, the same for items that share a file (JSON apart).

  Items that share one by way of others have the same identity too.
  """
  parent: dict[str, str] = {}

  def root(x: str) -> str:
    while parent.setdefault(x, x) != x:
      parent[x] = x = parent[parent[x]]
    return x

  ties = [look[1:] or look[:1] for look in looks]
  for tie in ties:
    for other in tie[1:]:
      a, b = sorted((root(tie[0]), root(other)))
      parent[b] = a
  return [root(tie[0]) for tie in ties]
