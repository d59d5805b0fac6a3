"""Every kind of batch, in one explicit table: how rows come from records, and what they hold.

A further kind is one more entry of `KINDS`. Which models read it, and for which objective, stands
in sam3d_jax/models/registry.py.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from data_pipelines.format import schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import rows, texture_rows
from data_pipelines.read.rows import SampleConfig
from sam3d_jax.batch import LATENTS, Conditioning, GeometryBatch, PreferenceBatch, StructureBatch
from sam3d_jax.errors import ConfigError

# fields of a record whose decoding costs enough to leave it out where nothing reads them
LARGE_FIELDS = frozenset(
  (
    "image",
    "image_delit",
    "alpha",
    "depth",
    "mask",
    "mask_full",
    "pointmap",
    "voxels",
    "structure_latent",
    "slat",
  )
)


@dataclasses.dataclass(frozen=True)
class LatentSource:
  """Where records hold a latent.

  fields: those that it is made from. autoencoder: field with the digest of the autoencoder that
  made it, if one did. remedy: what adds it to a dataset that lacks it.
  """

  fields: tuple[str, ...]
  autoencoder: str = ""
  remedy: str = ""


def random_row(template: Any, rng: np.random.Generator, name: str = "") -> Any:
  """Random content in the form of the one row of `template`: images full range, masks and occupancy
  of their two values, everything present.
  """
  if template is None:
    return None
  if isinstance(template, dict):
    return {key: random_row(value, rng, key) for key, value in template.items()}
  if isinstance(template, tuple):
    filled = {}
    for key, value in template._asdict().items():
      filled[key] = random_row(value, rng, key)
    return type(template)(**filled)

  # one array, without the axis of the batch
  shape = template.shape[1:]
  dtype = template.dtype
  has_two_values = name == "occupancy" or "mask" in name
  if dtype == np.bool_:
    return np.ones(shape, dtype)
  if np.issubdtype(dtype, np.floating):
    normal = rng.standard_normal(shape, np.float32)
    return normal.astype(dtype)
  if has_two_values:
    return rng.integers(0, 2, shape, dtype)
  return rng.integers(0, 256, shape, dtype)


@dataclasses.dataclass(frozen=True)
class PackedKind:
  """How rows of several records are made.

  part: (example, config, rng or None, epoch) -> what a row is made of. join: (parts, config) ->
  one row.
  """

  part: Callable[[schema.Example, SampleConfig, np.random.Generator | None, int], Any]
  join: Callable[[Sequence[Any], SampleConfig], Any]


@dataclasses.dataclass(frozen=True)
class BatchKind:
  """One kind of batch.

  row: (example, config, rng or None, epoch) -> one row. spec: (config, rows) -> a batch in shape
  and type. needs: config -> the large fields of a record that a row is made from. form: (typed
  configuration of the model, latents to learn) -> fields of SampleConfig that the model decides.
  records: kind of record that it is made from, "example" (which every dataset has) or another.
  by_epoch: rows change with the epoch, so that none is kept. latents: those that a model may be
  asked to learn from it, and where records hold them. collate: (a host's rows, config) -> batch.
  random: (batch of one row in shape and type, rng) -> a made-up row. packed: how several records
  share a row; None: one record a row.
  """

  row: Callable[[schema.Example, SampleConfig, np.random.Generator | None, int], Any]
  spec: Callable[[SampleConfig, int], Any]
  needs: Callable[[SampleConfig], set[str]]
  form: Callable[[Any, tuple[str, ...]], dict[str, Any]]
  records: str = "example"
  by_epoch: bool = False
  latents: Mapping[str, LatentSource] = dataclasses.field(default_factory=dict)
  collate: Callable[[Sequence[Any], SampleConfig], Any] = rows.collate
  random: Callable[[Any, np.random.Generator], Any] = random_row
  packed: PackedKind | None = None


# structure: occupancy grids


def structure_row(
  example: schema.Example, config: SampleConfig, rng: np.random.Generator | None, epoch: int
) -> StructureBatch:
  """Row of the structure VAE's batch."""
  del rng, epoch  # nothing is augmented
  # A record without voxels counts as unreadable.
  rows.require(example, "voxels")
  key = schema.key_words(example["key"])
  grid = rows.occupancy(example["voxels"], config.resolution)
  return StructureBatch(key, grid)


def structure_spec(config: SampleConfig, count: int) -> StructureBatch:
  """A batch of `count` rows in shape and type."""
  return StructureBatch(
    key=rows.zeros(count, (2,), np.uint32),
    occupancy=rows.zeros(count, (config.resolution,) * 3, np.uint8),
  )


def structure_needs(config: SampleConfig) -> set[str]:
  """The large fields of a record that a row is made from."""
  del config
  return {"voxels"}


def no_form(model_config: Any, latents: tuple[str, ...]) -> dict[str, Any]:
  """For kinds whose rows are as `config.data` says, whatever the model."""
  del model_config, latents
  return {}


# geometry and preference: a photo, and the latents of the object seen or of two candidates for it

# translation and scale are relative to the point map
PLACED = LatentSource(("translation", "scale", "pointmap"))
GEOMETRY_LATENTS = {
  "shape": LatentSource(
    ("structure_latent",),
    autoencoder="structure_latent_autoencoder",
    remedy="launch.encode_latents adds it",
  ),
  "rotation": LatentSource(("rotation",)),
  "translation": PLACED,
  "scale": PLACED,
  "translation_scale": PLACED,
}


def geometry_row(
  example: schema.Example, config: SampleConfig, rng: np.random.Generator | None, epoch: int
) -> GeometryBatch:
  """Row of the Geometry model's batch."""
  del epoch
  # the photo, and the scale and shift that the layout latents are relative to
  cond, scale, shift = rows.condition(example, config, rng)
  name = f"example {example['key']}"
  values, present = rows.latents(
    example,
    config,
    scale,
    shift,
    name,
  )
  key = schema.key_words(example["key"])
  return GeometryBatch(
    key,
    rows.as_stored(cond),
    values,
    present,
  )


def preference_row(
  example: schema.Example, config: SampleConfig, rng: np.random.Generator | None, epoch: int
) -> PreferenceBatch:
  """Row of a preference batch.

  An example with several losers shows another one each epoch, in turn.
  """
  # whose turn it is
  losers = example["losers"]
  if not losers:
    raise CorruptRecord("the preference example has no loser")
  loser = losers[epoch % len(losers)]

  # one photo, two candidates; a latent is there where both have it
  cond, scale, shift = rows.condition(example, config, rng)
  win, win_has = rows.latents(
    example,
    config,
    scale,
    shift,
    f"winner of {example['key']}",
  )
  lose, lose_has = rows.latents(
    loser,
    config,
    scale,
    shift,
    f"loser of {example['key']}",
  )
  present = {name: win_has[name] & lose_has[name] for name in win_has}
  key = schema.key_words(example["key"])
  return PreferenceBatch(
    key,
    rows.as_stored(cond),
    win,
    lose,
    present,
  )


def geometry_spec(config: SampleConfig, count: int) -> GeometryBatch:
  """A batch of `count` rows in shape and type."""
  # the condition
  streams = {}
  for name in config.streams:
    if name in rows.POINTMAP_STREAMS:
      side, channels, dtype = config.pointmap_size, 3, np.float16
    elif "mask" in name:
      side, channels, dtype = config.image_size, 1, np.uint8
    else:
      side, channels, dtype = config.image_size, 3, np.uint8
    streams[name] = rows.zeros(count, (side, side, channels), dtype)

  # the latents, those that nobody learns too
  latents = {}
  present = {}
  for name in LATENTS:
    shape = config.latent_shape(name)
    latents[name] = rows.zeros(count, shape, np.float32)
    present[name] = rows.zeros(count, (), np.bool_)
  return GeometryBatch(
    key=rows.zeros(count, (2,), np.uint32),
    cond=Conditioning(**streams),
    latents=latents,
    present=present,
  )


def preference_spec(config: SampleConfig, count: int) -> PreferenceBatch:
  """A batch of `count` rows in shape and type."""
  # Two sets of latents under one condition.
  one = geometry_spec(config, count)
  return PreferenceBatch(
    key=one.key,
    cond=one.cond,
    win=one.latents,
    lose=dict(one.latents),
    present=one.present,
  )


def geometry_needs(config: SampleConfig) -> set[str]:
  """The large fields of a record that a row is made from."""
  # every row has a photo and its object
  needed = {"image", "mask"}
  if "shape" in config.latents:
    needed.add("structure_latent")
  # the encoder sees the point map, or a latent is relative to it
  sees_points = any(name in rows.POINTMAP_STREAMS for name in config.streams)
  relative = set(config.latents) - {"shape", "rotation"}
  if sees_points or relative:
    needed.add("pointmap")
  return needed


def geometry_form(model_config: Any, latents: tuple[str, ...]) -> dict[str, Any]:
  """The form that a GeometryConfig asks for."""
  # A model without a point-map encoder has no say in its resize.
  pointmap = model_config.condition.pointmap
  return {
    "resize_twice": pointmap is None or pointmap.resize_twice,
    "streams": tuple(model_config.condition.streams),
    "latents": latents,
    "shape_resolution": model_config.flow.shape_resolution,
    "latent_channels": model_config.flow.latent_channels,
  }


# texture: the photo of an object, and the latents on its voxels; rows in texture_rows.py

TEXTURE_SOURCES = {
  "slat": LatentSource(
    ("slat", "voxels"),
    autoencoder="slat_autoencoder",
    remedy="a SLAT autoencoder makes it from renderings",
  ),
}


KINDS: dict[str, BatchKind] = {
  "geometry": BatchKind(
    row=geometry_row,
    spec=geometry_spec,
    needs=geometry_needs,
    form=geometry_form,
    latents=GEOMETRY_LATENTS,
  ),
  "structure": BatchKind(
    row=structure_row,
    spec=structure_spec,
    needs=structure_needs,
    form=no_form,
  ),
  "preference": BatchKind(
    row=preference_row,
    spec=preference_spec,
    needs=geometry_needs,
    form=geometry_form,
    records="preference",
    by_epoch=True,
    latents=GEOMETRY_LATENTS,
  ),
  "texture": BatchKind(
    row=texture_rows.row,
    spec=texture_rows.spec,
    needs=texture_rows.needs,
    form=texture_rows.form,
    latents=TEXTURE_SOURCES,
    random=texture_rows.random_row,
    packed=PackedKind(texture_rows.part, texture_rows.join),
  ),
}


def lookup(name: str) -> BatchKind:
  """The entry of that name. Raises ConfigError."""
  if name not in KINDS:
    known = ", ".join(KINDS)
    raise ConfigError(f"data kind {name!r} is not one of {known}")
  return KINDS[name]


def unused_fields(kind: BatchKind, config: SampleConfig) -> frozenset[str]:
  """Large fields that rows of this kind do not need."""
  # Decoding is most of the cost of a row.
  return LARGE_FIELDS - kind.needs(config)
