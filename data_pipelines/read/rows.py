"""What rows of batches are made of: decoded images, conditions, occupancy grids, latents to learn.

A row is the NamedTuple of `sam3d_jax.batch` without its leading axis; kinds.py makes whole ones.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipelines.format import schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read.augment import AugmentConfig, augment
from sam3d_jax import sections
from sam3d_jax.batch import LATENTS, TEXTURE_LATENTS, Conditioning
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.files import images
from sam3d_jax.geometry import conditions, packing, pose, windows
from sam3d_jax.geometry.conditions import POINTMAP_STREAMS, STREAMS, Condition, InputConfig
from sam3d_jax.geometry.packing import RowShape
from sam3d_jax.models.latent_statistics import LatentStatistics

MAX_PIXELS = 1 << 26  # of a picture in a record
LAYOUT_CHANNELS = {"rotation": 6, "translation": 3, "scale": 3, "translation_scale": 1}


@dataclasses.dataclass(frozen=True)
class RowForm:
  """What a row of packed objects holds.

  shape: slots and places. resolution: of the grid that voxels lie in. statistics: that latents are
  normalised by, one number a channel.
  """

  shape: RowShape
  resolution: int
  statistics: LatentStatistics

  @property
  def tables(self) -> packing.Tables:
    """The tables that the flow model needs."""
    return packing.Tables(
      resolution=self.resolution,
      neighbours=True,
      pooled=True,
    )


@dataclasses.dataclass(frozen=True)
class SampleConfig(InputConfig):
  """What a row holds: inputs in the form of InputConfig, and what is learned from them.

  resolution: voxels a side of the occupancy grid, a divisor of 64. latents: of
  `sam3d_jax.batch.LATENTS`, those to learn; the others are delivered as absent, because the model
  has a place for each; or of TEXTURE_LATENTS. shape_resolution, latent_channels: of the structure
  latents in the records.
  autoencoder: digest that every structure latent must carry; empty: whatever the caller found in
  the data. augment: settings of the read-time augmentations, or None. packed: what a row of packed
  objects holds (RowForm), None for models with one example a row.
  """

  resolution: int = 64
  latents: tuple[str, ...] = LATENTS
  shape_resolution: int = 16
  latent_channels: int = 8
  autoencoder: str = ""
  augment: AugmentConfig | None = None
  packed: RowForm | None = None

  def __post_init__(self):
    sections.check_positive(self, "image_size", "pointmap_size", "resolution")
    if schema.VOXEL_RESOLUTION % self.resolution:
      raise ConfigError(
        f"data.resolution = {self.resolution}: choose a divisor of {schema.VOXEL_RESOLUTION}"
      )
    chosen = {
      "streams": (self.streams, STREAMS),
      "latents": (self.latents, LATENTS + TEXTURE_LATENTS),
    }
    for key, (names, known) in chosen.items():
      unknown = sorted(set(names) - set(known))
      if unknown:
        named = ", ".join(unknown)
        there_are = ", ".join(known)
        raise ConfigError(f"data.{key}: {named} is not one of {there_are}")

  def latent_shape(self, name: str) -> tuple[int, int]:
    """(tokens, channels) of a latent."""
    if name == "shape":
      return self.shape_resolution**3, self.latent_channels
    return 1, LAYOUT_CHANNELS[name]


def decode_image(data: bytes, field: str, *, mode: str) -> np.ndarray:
  """Encoded bytes -> uint8, (H, W, 3) for mode "RGB", (H, W) for "L". Raises CorruptRecord."""
  try:
    image = images.open_bytes(data, MAX_PIXELS)
    return np.asarray(image if image.mode == mode else image.convert(mode))
  except UnidentifiedImageError as error:
    raise CorruptRecord(f"{field} ({len(data)} bytes) is no image in a known format") from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise CorruptRecord(f"{field} cannot be decoded: {error}") from error


def require(example: Mapping[str, Any], *fields: str) -> None:
  """Raises CorruptRecord if the example lacks one of the fields."""
  missing = [field for field in fields if not schema.is_present(example, field)]
  if missing:
    listed = ", ".join(missing)
    raise CorruptRecord(f"the record has no {listed}")


def occupancy(voxels_N3: np.ndarray, resolution: int) -> np.ndarray:
  """Surface voxels of the 64^3 grid as a (resolution,)*3 uint8 grid; a coarse voxel is full if any
  of its fine ones is.

  Raises CorruptRecord for an index outside the grid.
  """
  largest = 0
  if voxels_N3.size:
    largest = int(voxels_N3.max())
  if largest >= schema.VOXEL_RESOLUTION:
    raise CorruptRecord(f"voxel index {largest} is outside the {schema.VOXEL_RESOLUTION}^3 grid")
  # several fine voxels may fall into one coarse one
  factor = schema.VOXEL_RESOLUTION // resolution
  coarse_N3 = voxels_N3 // factor
  grid = np.zeros((resolution,) * 3, np.uint8)
  grid[tuple(coarse_N3.T)] = 1
  return grid


def generator(seed: int, step: int, key: str) -> np.random.Generator:
  """The randomness of one example at one step, whatever the host or thread that asks."""
  # The key's own words: no two examples share their numbers.
  words = schema.key_words(key).tolist()
  return np.random.default_rng([seed, step, *words])


def condition(
  example: schema.Example, config: InputConfig, rng: np.random.Generator | None
) -> Condition:
  """The condition of an example as the model reads it, augmented if there is an `rng`.

  Raises CorruptRecord for an image or mask that cannot be used.
  """
  # what is stored
  require(example, "image", "mask")
  image = decode_image(example["image"], "image", mode="RGB")
  mask = decode_image(example["mask"], "mask", mode="L")
  height, width = image.shape[:2]
  if mask.shape != (height, width):
    mask_height, mask_width = mask.shape
    raise CorruptRecord(f"mask is {mask_width} x {mask_height} but image is {width} x {height}")
  # In half precision on disk, in single from here on.
  pointmap = None
  if schema.is_present(example, "pointmap"):
    pointmap = example["pointmap"].astype(np.float32)

  # augmented
  crop = {}
  if rng is not None:
    augmented = augment(image, mask, rng, config.augment)
    image = augmented.image
    mask = augmented.mask
    crop = {"box_factor": augmented.box_factor, "shift": augmented.shift}

  # as the model reads it
  try:
    return conditions.condition(
      image,
      mask,
      pointmap,
      config,
      **crop,
    )
  except windows.MaskError as error:
    raise CorruptRecord(str(error)) from error


def as_stored(streams: Conditioning) -> Conditioning:
  """Point maps as precise as records store them: half the bytes of a batch on its way."""
  # Only point maps: images are bytes already.
  halved = {}
  for name in POINTMAP_STREAMS:
    points = getattr(streams, name)
    if points is not None:
      halved[name] = points.astype(np.float16)
  return streams._replace(**halved)


def latents(
  example: Mapping[str, Any],
  config: SampleConfig,
  scale: np.ndarray | None,
  shift: np.ndarray | None,
  name: str,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """(latent -> (tokens, channels), latent -> is it present); absent ones are zero. `name` is for
  messages.

  Translation and scale are relative to the point map (`scale`, `shift` of its normalisation), so
  without one they are absent.
  """
  # what the record has
  values = {}
  has_shape = schema.is_present(example, "structure_latent")
  if has_shape and "shape" in config.latents:
    values["shape"] = _shape_tokens(example, config, name)
  has_pose = all(schema.is_present(example, field) for field in schema.POSE_FIELDS)
  if scale is not None and has_pose:
    placed = schema.example_pose(example)
    values |= pose.encode_latents(placed, scale, shift)
  elif schema.is_present(example, "rotation"):
    # a rotation is relative to nothing
    values["rotation"] = pose.encode_rotation(example["rotation"])

  # a place for each, whether it is there or not
  tokens = {}
  present = {}
  for latent in LATENTS:
    shape = config.latent_shape(latent)
    there = latent in values and latent in config.latents
    present[latent] = np.array(there)
    if there:
      value = np.asarray(values[latent], np.float32)
      tokens[latent] = value.reshape(shape)
    else:
      tokens[latent] = np.zeros(shape, np.float32)
  return tokens, present


def _shape_tokens(example: Mapping[str, Any], config: SampleConfig, name: str) -> np.ndarray:
  """The structure latent, (tokens, channels). Raises InputError for one that the model cannot
  learn from.
  """
  latent_XYZC = example["structure_latent"]
  check_structure_latent(latent_XYZC, config, name)
  # Latents mean something only to the decoder of their own autoencoder.
  digest = example["structure_latent_autoencoder"]
  if config.autoencoder and digest != config.autoencoder:
    raise InputError(
      f"{name}: structure latent was made by autoencoder {digest[:12]}, expected "
      f"{config.autoencoder[:12]}; latents of two autoencoders do not mix: encode the dataset "
      "again (launch.encode_latents)"
    )
  return latent_XYZC.reshape(-1, config.latent_channels)


def check_structure_latent(latent_XYZC: np.ndarray, config: SampleConfig, name: str) -> None:
  """Raises InputError unless the latent has the cells and channels that the model learns."""
  side = config.shape_resolution
  expected = (side, side, side, config.latent_channels)
  if latent_XYZC.shape != expected:
    raise InputError(
      f"{name}: structure latent has shape {latent_XYZC.shape}, the model needs {expected}; encode "
      "the dataset with the structure VAE that the model is trained for (launch.encode_latents)"
    )


def zeros(count: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """(count, *shape) zeros that take no memory: the shape and type of an array of a batch."""
  # A view of one number with strides of zero.
  zero = np.zeros((), dtype)
  return np.broadcast_to(zero, (count, *shape))


def collate(rows: Sequence[Any], config: SampleConfig) -> Any:
  """Rows of one size -> batch."""
  del config
  return stack(list(rows))


def stack(rows: list) -> Any:
  """Rows -> batch: arrays get a leading axis; NamedTuples, dicts and None keep their form."""
  # All rows have the form of the first.
  first = rows[0]
  if first is None:
    return None
  if isinstance(first, dict):
    return {name: stack([row[name] for row in rows]) for name in first}
  # a NamedTuple field by field
  if isinstance(first, tuple):
    columns = zip(*rows, strict=True)
    stacked = [stack(list(column)) for column in columns]
    return type(first)(*stacked)
  return np.stack(rows)


def nbytes(row: Any) -> int:
  """Memory of a row's arrays, bytes."""
  if row is None:
    return 0
  if isinstance(row, dict):
    return sum(map(nbytes, row.values()))
  if isinstance(row, tuple):
    return sum(map(nbytes, row))
  return row.nbytes
