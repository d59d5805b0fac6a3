"""What converters have in common: a list of objects becomes a plan of shards; latents of others are
brought into our order.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from importlib import metadata
import io
import json
from typing import Any

import numpy as np

from data_pipelines.build import shard_jobs
from data_pipelines.format import schema
from data_pipelines.synth import sources
from sam3d_jax.errors import Refused
from sam3d_jax.files import arrays

VERSION = "1"  # raise it when the same objects give other bytes


@dataclasses.dataclass(frozen=True)
class ShardSpec:
  """What one shard is made of; `examples(config, input, refuse)` yields an object's records."""

  examples: Callable[[Any, sources.Input, shard_jobs.Refusals], Iterator[schema.Example]]
  config: Any
  inputs: tuple[sources.Input, ...]


def plan(
  name: str,
  examples,
  config: Any,
  inputs: Sequence[sources.Input],
  *,
  test_fraction: float,
  objects_per_shard: int,
  description: str,
) -> shard_jobs.Plan:
  """A plan of shards over objects; `config` is a dataclass with the field `source`, whose place
  changes no byte.
  """
  per_shard = sources.per_shard(objects_per_shard, len(inputs))
  jobs = sources.deal_jobs(
    inputs,
    test_fraction=test_fraction,
    per_shard=per_shard,
    spec=functools.partial(ShardSpec, examples, config),
  )

  # What the bytes depend on; where the objects lie changes none.
  as_json = json.dumps(dataclasses.asdict(config))
  settings = json.loads(as_json)
  settings["source"] = "folder"
  identity = {
    "builder": name,
    "schema": schema.VERSION,
    "converter": VERSION,
    "config": settings,
    "test_fraction": test_fraction,
    "objects_per_shard": per_shard,
    "inputs": {"count": len(inputs), "digest": sources.digest(inputs)},
  }
  return shard_jobs.Plan(
    name=config.name,
    jobs=tuple(jobs),
    make=make_shard,
    identity=identity,
    lineage=versions(),
    description=description,
    warnings=(
      *sources.split_warning((job.split for job in jobs), test_fraction, "objects"),
      *license_warning(config.license, inputs),
    ),
  )


def license_warning(license: str, inputs: Sequence[sources.Input]) -> tuple[str, ...]:
  """What to say if nobody has said under which licence the objects are."""
  if license not in sources.UNSTATED:
    return ()
  names = [item.name for item in inputs]
  remedy = "convert it by itself"
  return sources.unlicensed("objects", names, len(inputs), license, "license", remedy)


@functools.cache
def versions() -> dict[str, str]:
  """What a dataset's lineage says of the programs that made it."""
  # Whose versions can change a byte.
  packages = ("numpy", "pillow")
  installed = {name: metadata.version(name) for name in packages}
  return {"converter": VERSION} | installed


def make_shard(spec: ShardSpec, refuse: shard_jobs.Refusals) -> Iterator[schema.Example]:
  """Yields the records of a shard's objects in order; an object that cannot be read is reported and
  skipped.
  """
  for item in refuse.each(spec.inputs):
    try:
      made, report, error = refuse.read(
        object_examples,
        spec.examples,
        spec.config,
        item,
        what="bad_object",
      )
      refuse.absorb(report)
      if error is not None:
        raise error
    except Refused as error:
      refuse(shard_jobs.Quarantined(item.name, error.reason, error.detail))
      continue
    yield from made


def object_examples(
  examples, config: Any, item: sources.Input
) -> tuple[list[schema.Example], shard_jobs.Report, Refused | None]:
  """The records of an object, what was refused or left out on the way, and why it has none."""
  own = shard_jobs.Refusals()
  try:
    return list(examples(config, item, own)), own.report(), None
  except Refused as error:
    return [], own.report(), error


def load_array(data: bytes, what: str, *, shape: tuple[int | None, ...]) -> np.ndarray:
  """A .npy of a given shape (None: any length). Raises Refused (bad_array)."""
  # Pickles would run code of whoever made the file.
  try:
    array = arrays.load(io.BytesIO(data), len(data))
  except (OSError, ValueError, EOFError) as error:
    raise Refused("bad_array", f"{what}: not a .npy file ({error})") from error
  if not _has_shape(array, shape):
    expected = tuple("*" if length is None else length for length in shape)
    raise Refused("bad_array", f"{what} has shape {array.shape}, expected {expected}")
  if not np.isfinite(array).all():
    raise Refused("bad_array", f"{what} holds NaN or infinity")
  return array


def _has_shape(array: np.ndarray, shape: tuple[int | None, ...]) -> bool:
  """Whether an array has a shape of which None may be any length."""
  if array.ndim != len(shape):
    return False
  for length, wanted in zip(array.shape, shape, strict=True):
    if wanted is not None and length != wanted:
      return False
  return True


def structure_latent(latent_CXYZ: np.ndarray) -> np.ndarray:
  """TRELLIS stores channels first over a grid that it fills as grid[x, y, z]; records store (x, y,
  z, c) of the same z-up cube.
  """
  # Channels last, as every grid here.
  latent_XYZC = np.moveaxis(latent_CXYZ, 0, -1)
  return np.ascontiguousarray(latent_XYZC, np.float32)


def sorted_slat(
  coords_N3: np.ndarray, feats_N8: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
  """(voxels, features) in lexicographic order. Raises Refused (bad_array) for coordinates outside
  the grid or given twice.
  """
  if len(coords_N3) != len(feats_N8):
    raise Refused("bad_array", f"{what}: {len(coords_N3)} coordinates but {len(feats_N8)} features")

  # unique rows come out in lexicographic order
  unique, index = np.unique(
    coords_N3,
    axis=0,
    return_index=True,
  )
  highest = schema.VOXEL_RESOLUTION - 1
  count = len(unique)
  is_distinct = count > 0 and count == len(coords_N3)
  if not is_distinct or unique.min() < 0 or unique.max() > highest:
    raise Refused("bad_array", f"{what}: coordinates must be distinct and in 0..{highest}")
  # features in the order of their voxels
  voxels = unique.astype(np.uint8)
  feats = feats_N8[index]
  return voxels, feats.astype(np.float16)
