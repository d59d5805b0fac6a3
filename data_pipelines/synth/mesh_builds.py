"""Builds that render meshes by themselves: the plan of their shards, and what makes a shard.

`make_shard` is a pure function of its specification; every random number is drawn from (seed, mesh
key, view). The objects of the train and test splits are disjoint.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
from importlib import metadata
import json
from typing import Any

from data_pipelines.build.shard_jobs import Plan, Quarantined, Refusals, contained
from data_pipelines.format import schema
from data_pipelines.synth import render, sources
from sam3d_jax.errors import Refused

# whose versions can change a byte
PACKAGES = ("embreex", "numpy", "pillow", "trimesh")


@dataclasses.dataclass(frozen=True)
class MeshBuild:
  """One kind of build. versions: of what decides its bytes beside schema, renderer and packages.
  make: (asset, configuration) -> the examples of a mesh.
  """

  builder: str
  description: str
  make: Callable[[Any, Any], Iterator[schema.Example]]
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ShardSpec:
  """What one shard is made of. config: of the builder, with `source` and `filters`."""

  config: Any
  inputs: tuple[sources.Input, ...]


def plan(build: MeshBuild, config: Any, *, test_fraction: float, objects_per_shard: int) -> Plan:
  """Lists the source, splits it and cuts it into shards.

  config: of the builder, with `name`, `source` and `filters`. Raises ConfigError on a wrong source
  or fraction.
  """
  inputs = sources.list_inputs(config.source)
  per_shard = sources.per_shard(objects_per_shard, len(inputs))
  jobs = sources.deal_jobs(
    inputs,
    test_fraction=test_fraction,
    per_shard=per_shard,
    spec=functools.partial(ShardSpec, config),
  )

  # What the bytes depend on; where the meshes lie changes none.
  as_json = json.dumps(dataclasses.asdict(config))
  settings = json.loads(as_json)
  if config.source.source != sources.PROCEDURAL:
    settings["source"]["source"] = "folder"
  identity = {
    "builder": build.builder,
    "schema": schema.VERSION,
    "renderer": render.VERSION,
    **build.versions,
    "config": settings,
    "test_fraction": test_fraction,
    "objects_per_shard": per_shard,
    "inputs": {"count": len(inputs), "digest": sources.digest(inputs)},
  }
  return Plan(
    name=config.name,
    jobs=tuple(jobs),
    make=functools.partial(make_shard, make=build.make),
    identity=identity,
    lineage=versions() | dict(build.versions),
    warnings=(
      *sources.split_warning((job.split for job in jobs), test_fraction, "meshes"),
      *sources.license_warning(config.source, inputs),
    ),
    description=build.description,
  )


@functools.cache
def versions() -> dict[str, str]:
  """What records and datasets say of who rendered them."""
  installed = {name: metadata.version(name) for name in PACKAGES}
  return {"renderer": f"embreex-numpy {render.VERSION}"} | installed


def make_shard(
  spec: ShardSpec, refuse: Refusals, *, make: Callable[[Any, Any], Iterator[schema.Example]]
) -> Iterator[schema.Example]:
  """Yields the examples of a shard in order; refused meshes are reported and skipped."""
  for item in refuse.each(spec.inputs):
    try:
      asset = sources.read(refuse, spec.config.source, spec.config.filters, item)
      # a mesh gives all of its views, or none
      with contained():
        made = list(make(asset, spec.config))
    except Refused as error:
      refused = Quarantined(
        path=item.name,
        reason=error.reason,
        detail=error.detail,
      )
      refuse(refused)
      continue
    yield from made
