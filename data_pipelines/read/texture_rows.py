"""Rows of the Texture & Refinement model's batch: objects packed into the slots of a row.

The tables of an object's voxels are made here, in the data workers. Which objects share a row is
the business of packed_order.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.format import schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import rows
from sam3d_jax.batch import TEXTURE_LATENTS, Conditioning, TextureBatch
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import packing, voxel_tables
from sam3d_jax.geometry.packing import ObjectTables, PackedVoxels, Pooling, RowShape, VoxelLevel
from sam3d_jax.models import latent_statistics

(LATENT,) = TEXTURE_LATENTS
FAKE_OBJECT = 0.5  # smallest random object over the largest, along a side


def form(model_config: Any, latents: tuple[str, ...]) -> dict[str, Any]:
  """The form that a TextureConfig asks for."""
  row = model_config.row
  packed = rows.RowForm(
    shape=RowShape(row.voxels, row.coarse, row.objects),
    resolution=model_config.flow.resolution,
    statistics=model_config.statistics,
  )
  return {
    "streams": tuple(model_config.condition.streams),
    "latents": latents,
    "packed": packed,
  }


def needs(config: rows.SampleConfig) -> set[str]:
  """The large fields of a record that a row is made from."""
  del config
  return {"image", "mask", "voxels", "slat"}


def spec(config: rows.SampleConfig, count: int) -> TextureBatch:
  """A batch of `count` rows in shape and type."""
  form = config.packed
  shape = form.shape
  V, T, K = shape.voxels, shape.coarse, shape.objects
  side = config.image_size

  streams = {}
  for name in config.streams:
    channels = 1 if "mask" in name else 3
    streams[name] = rows.zeros(count, (K, side, side, channels), np.uint8)
  pooling = Pooling(
    parent_RV=rows.zeros(count, (V,), np.int32),
    children_RT8=rows.zeros(count, (T, 8), np.int32),
  )
  channels = len(form.statistics.mean)
  return TextureBatch(
    key=rows.zeros(count, (K, 2), np.uint32),
    cond=Conditioning(**streams),
    voxels=PackedVoxels(_level_spec(count, V, K), _level_spec(count, T, K), pooling),
    latents={LATENT: rows.zeros(count, (V, channels), np.float32)},
    present={LATENT: rows.zeros(count, (K,), np.bool_)},
  )


def _level_spec(count: int, slots: int, objects: int) -> VoxelLevel:
  """A level of `slots` slots and places for `objects`, in shape and type."""
  return VoxelLevel(
    coords_RV3=rows.zeros(count, (slots, 3), np.int32),
    object_RV=rows.zeros(count, (slots,), np.int32),
    valid_RV=rows.zeros(count, (slots,), np.bool_),
    start_RK=rows.zeros(count, (objects,), np.int32),
    count_RK=rows.zeros(count, (objects,), np.int32),
    neighbours_R27V=rows.zeros(count, (len(voxel_tables.TAPS), slots), np.int32),
  )


class TextureObject(NamedTuple):
  """An object before it has a place in a row."""

  tables: ObjectTables
  key: np.ndarray  # (2,) uint32
  cond: Conditioning
  latent_NC: np.ndarray  # normalised


def row(
  example: schema.Example,
  config: rows.SampleConfig,
  rng: np.random.Generator | None,
  epoch: int,
) -> TextureBatch:
  """Row of one object. Raises CorruptRecord for voxels that do not fit into it."""
  one = part(example, config, rng, epoch)
  try:
    return join([one], config)
  except InputError as error:
    raise CorruptRecord(str(error)) from error


def part(
  example: schema.Example,
  config: rows.SampleConfig,
  rng: np.random.Generator | None,
  epoch: int,
) -> TextureObject:
  """The object of a record. Raises CorruptRecord, InputError for a latent of another model."""
  del epoch
  rows.require(example, "voxels", "slat")
  form = config.packed
  voxels_N3 = example["voxels"].astype(np.int32)
  slat_NC = example["slat"].astype(np.float32)
  check_latent(example, config)

  # the photo, and the object's voxels
  cond, _, _ = rows.condition(example, config, rng)
  try:
    tables = packing.object_tables(voxels_N3, form.tables, "the record")
  except InputError as error:
    raise CorruptRecord(str(error)) from error

  key = schema.key_words(example["key"])
  latent_NC = latent_statistics.normalise(slat_NC, form.statistics)
  return TextureObject(tables, key, rows.as_stored(cond), latent_NC)


def join(objects: Sequence[TextureObject], config: rows.SampleConfig) -> TextureBatch:
  """The row of these objects, in this order. Raises InputError if they do not fit."""
  # one alone is fitted, which tells best why it is too large
  order = None
  if len(objects) > 1:
    order = [list(range(len(objects)))]
  packed = packing.pack([one.tables for one in objects], config.packed.shape, order)
  return of_objects(
    packed,
    [one.key for one in objects],
    [one.cond for one in objects],
    [one.latent_NC for one in objects],
  )


def check_latent(example: Mapping[str, Any], config: rows.SampleConfig) -> None:
  """Raises InputError for a structured latent that the model cannot learn from, CorruptRecord for
  one that is not on the record's voxels.
  """
  name = f"example {example['key']}"
  voxels, channels = example["slat"].shape
  expected = len(config.packed.statistics.mean)
  if channels != expected:
    raise InputError(
      f"{name}: the structured latent has {channels} channels, the model {expected}: train one "
      "with model.flow.latent_channels and statistics of the data's autoencoder"
    )
  if voxels != len(example["voxels"]):
    raise CorruptRecord(f"slat has {voxels} rows for {len(example['voxels'])} voxels")
  # Latents mean something only to the decoders of their own autoencoder.
  digest = example["slat_autoencoder"]
  if config.autoencoder and digest != config.autoencoder:
    raise InputError(
      f"{name}: the structured latent was made by autoencoder {digest[:12]}, expected "
      f"{config.autoencoder[:12]}; latents of two autoencoders do not mix: encode the dataset again"
    )


def of_objects(
  packed: packing.Packed,
  keys: Sequence[np.ndarray],
  conds: Sequence[Conditioning],
  latents: Sequence[np.ndarray],
) -> TextureBatch:
  """The one row of `packed`, whose objects have these keys (2,), conditionings and latents
  (voxels, C); everything is present.
  """
  K = packed.shape.objects

  # a place for each object
  key_K2 = np.zeros((K, 2), np.uint32)
  present_K = np.zeros(K, bool)
  streams = {}
  for place, key, cond in zip(packed.places, keys, conds, strict=True):
    key_K2[place.number] = key
    present_K[place.number] = True
    for name, image in cond._asdict().items():
      if image is None:
        continue
      if name not in streams:
        streams[name] = np.zeros((K, *image.shape), image.dtype)
      streams[name][place.number] = image

  # the row without its axis
  voxels = _first_row(packed.voxels)
  (latent_VC,) = packed.fill(latents)
  return TextureBatch(
    key=key_K2,
    cond=Conditioning(**streams),
    voxels=voxels,
    latents={LATENT: latent_VC},
    present={LATENT: present_K},
  )


def _first_row(tables: Any) -> Any:
  """Tables of one row without the axis of rows."""
  if tables is None:
    return None
  if isinstance(tables, tuple):
    return type(tables)(*(_first_row(table) for table in tables))
  return tables[0]


def random_row(template: TextureBatch, rng: np.random.Generator) -> TextureBatch:
  """A made-up row in the form of the one row of `template`: boxes of voxels, some places empty."""
  _, K, _ = template.key.shape
  _, V, channels = template.latents[LATENT].shape
  T = template.voxels.coarse.object_RV.shape[1]
  shape = RowShape(V, T, K)

  # boxes of which each fits into its share of a row
  block = packing.BLOCK
  share = V // K // block * block
  side = max(2, int(share ** (1 / 3)))
  objects = []
  for _ in range(rng.integers(1, K + 1)):
    objects.append(random_box(rng, side))
  packed = packing.pack(objects, shape)

  # random content
  keys, conds, latents = [], [], []
  for place in packed.places:
    keys.append(np.zeros(2, np.uint32))
    conds.append(random_condition(template.cond, rng))
    latents.append(rng.standard_normal((place.count, channels), np.float32))
  return of_objects(packed, keys, conds, latents)


def random_box(rng: np.random.Generator, side: int) -> ObjectTables:
  """A full box of voxels with sides up to `side`, somewhere in a grid twice as large."""
  smallest = max(1, round(FAKE_OBJECT * side))
  extent = rng.integers(smallest, side + 1, 3)
  axes = [np.arange(n) for n in extent]
  box_XYZ3 = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
  offset = rng.integers(0, side + 1, 3)
  coords_V3 = box_XYZ3.reshape(-1, 3) + offset
  tables = packing.Tables(
    resolution=2 * side + 1,
    neighbours=True,
    pooled=True,
  )
  return packing.object_tables(coords_V3, tables)


def random_condition(template: Conditioning, rng: np.random.Generator) -> Conditioning:
  """Images full range, masks of two values, in the form of one object of the template."""
  streams = {}
  for name, stream in template._asdict().items():
    if stream is None:
      continue
    highest = 2 if "mask" in name else 256
    shape = stream.shape[2:]
    streams[name] = rng.integers(0, highest, shape, np.uint8)
  return Conditioning(**streams)
