"""What rows of batches are made of: decoded images, conditions, occupancy grids, latents to learn.

A row is the NamedTuple of `sam3d_jax.batch` without its leading axis; kinds.py makes whole ones.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipelines.format import schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read.augment import AugmentConfig, augment
from sam3d_jax.batch import LATENTS, Conditioning
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.geometry import conditions, pose, preprocessing
from sam3d_jax.geometry.conditions import POINTMAP_STREAMS, STREAMS, Condition, InputConfig

LAYOUT_CHANNELS = {"rotation": 6, "translation": 3, "scale": 3, "translation_scale": 1}


@dataclasses.dataclass(frozen=True)
class SampleConfig(InputConfig):
  """What a row holds: inputs in the form of InputConfig, and what is learned from them.

  resolution: voxels a side of the occupancy grid, a divisor of 64. latents: of
  `sam3d_jax.batch.LATENTS`, those to learn; the others are delivered as absent, because the model
  has a place for each. shape_resolution, latent_channels: of the structure latents in the records.
  autoencoder: digest that every structure latent must carry; empty: whatever the caller found in
  the data. augment: settings of the read-time augmentations, or None.
  """

  resolution: int = 64
  latents: tuple[str, ...] = LATENTS
  shape_resolution: int = 16
  latent_channels: int = 8
  autoencoder: str = ""
  augment: AugmentConfig | None = None

  def __post_init__(self):
    if schema.VOXEL_RESOLUTION % self.resolution:
      raise ConfigError(
        f"data.resolution = {self.resolution}: choose a divisor of {schema.VOXEL_RESOLUTION}"
      )
    for key, got, known in (("streams", self.streams, STREAMS), ("latents", self.latents, LATENTS)):
      unknown = sorted(set(got) - set(known))
      if unknown:
        raise ConfigError(f"data.{key}: {', '.join(unknown)} is not one of {', '.join(known)}")

  def latent_shape(self, name: str) -> tuple[int, int]:
    """(tokens, channels) of a latent."""
    return (
      (self.shape_resolution**3, self.latent_channels)
      if name == "shape"
      else (1, LAYOUT_CHANNELS[name])
    )


def decode_image(data: bytes, field: str, *, mode: str) -> np.ndarray:
  """Encoded bytes -> uint8, (H, W, 3) for mode "RGB", (H, W) for "L". Raises CorruptRecord."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      return np.asarray(image if image.mode == mode else image.convert(mode))
  except UnidentifiedImageError as error:
    raise CorruptRecord(f"{field} ({len(data)} bytes) is no image in a known format") from error
  # Pillow reports broken files in these ways
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise CorruptRecord(f"{field} cannot be decoded: {error}") from error


def require(example: Mapping[str, Any], *fields: str) -> None:
  """Raises CorruptRecord if the example lacks one of the fields."""
  missing = [f for f in fields if not schema.is_present(example, f)]
  if missing:
    raise CorruptRecord(f"the record has no {', '.join(missing)}")


def occupancy(voxels_N3: np.ndarray, resolution: int) -> np.ndarray:
  """Surface voxels of the 64^3 grid as a (resolution,)*3 uint8 grid; a coarse voxel is full if any
  of its fine ones is.

  Raises CorruptRecord for an index outside the grid.
  """
  if voxels_N3.size and int(voxels_N3.max()) >= schema.VOXEL_RESOLUTION:
    raise CorruptRecord(
      f"voxel index {int(voxels_N3.max())} is outside the {schema.VOXEL_RESOLUTION}^3 grid"
    )
  grid = np.zeros((resolution,) * 3, np.uint8)
  grid[tuple((voxels_N3 // (schema.VOXEL_RESOLUTION // resolution)).T)] = 1
  return grid


def generator(seed: int, step: int, key: str) -> np.random.Generator:
  """The randomness of one example at one step, whatever the host or thread that asks."""
  return np.random.default_rng([seed, step, *schema.key_words(key).tolist()])


def condition(
  example: schema.Example, config: InputConfig, rng: np.random.Generator | None
) -> Condition:
  """The condition of an example as the model reads it, augmented if there is an `rng`.

  Raises CorruptRecord for an image or mask that cannot be used.
  """
  require(example, "image", "mask")
  image = decode_image(example["image"], "image", mode="RGB")
  mask = decode_image(example["mask"], "mask", mode="L")
  if mask.shape != image.shape[:2]:
    raise CorruptRecord(
      f"mask is {mask.shape[1]} x {mask.shape[0]} but image is {image.shape[1]} x {image.shape[0]}"
    )
  pointmap = None
  if schema.is_present(example, "pointmap"):
    pointmap = example["pointmap"].astype(np.float32)
  crop = {}
  if rng is not None:
    augmented = augment(image, mask, rng, config.augment)
    image, mask = augmented.image, augmented.mask
    crop = {"box_factor": augmented.box_factor, "shift": augmented.shift}
  try:
    return conditions.condition(image, mask, pointmap, config, **crop)
  except preprocessing.MaskError as error:
    raise CorruptRecord(str(error)) from error


def as_stored(streams: Conditioning) -> Conditioning:
  """Point maps as precise as records store them: half the bytes of a batch on its way."""
  halved = {
    name: getattr(streams, name).astype(np.float16)
    for name in POINTMAP_STREAMS
    if getattr(streams, name) is not None
  }
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
  values = {}
  if "shape" in config.latents and schema.is_present(example, "structure_latent"):
    values["shape"] = _shape_tokens(example, config, name)
  if scale is not None and all(
    schema.is_present(example, f) for f in ("rotation", "translation", "scale")
  ):
    values |= pose.encode_latents(schema.example_pose(example), scale, shift)
  elif schema.is_present(example, "rotation"):
    values["rotation"] = pose.encode_rotation(example["rotation"])
  out, present = {}, {}
  for latent in LATENTS:
    shape, there = config.latent_shape(latent), latent in values and latent in config.latents
    present[latent] = np.array(there)
    out[latent] = (
      np.asarray(values[latent], np.float32).reshape(shape)
      if there
      else np.zeros(shape, np.float32)
    )
  return out, present


def _shape_tokens(example: Mapping[str, Any], config: SampleConfig, name: str) -> np.ndarray:
  latent_XYZC, digest = example["structure_latent"], example["structure_latent_autoencoder"]
  expected = (config.shape_resolution,) * 3 + (config.latent_channels,)
  if latent_XYZC.shape != expected:
    raise InputError(
      f"{name}: structure latent has shape {latent_XYZC.shape}, the model needs {expected}; encode "
      "the dataset "
      "with the structure VAE that the model is trained for (launch.encode_latents)"
    )
  if config.autoencoder and digest != config.autoencoder:
    raise InputError(
      f"{name}: structure latent was made by autoencoder {digest[:12]}, expected "
      f"{config.autoencoder[:12]}; "
      "latents of two autoencoders do not mix: encode the dataset again (launch.encode_latents)"
    )
  return latent_XYZC.reshape(-1, config.latent_channels)


def zeros(count: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """(count, *shape) zeros that take no memory: the shape and type of an array of a batch."""
  return np.broadcast_to(np.zeros((), dtype), (count, *shape))


def collate(rows: Sequence[Any], config: SampleConfig) -> Any:
  """Rows of one size -> batch."""
  del config
  return stack(list(rows))


def stack(rows: list) -> Any:
  """Rows -> batch: arrays get a leading axis; NamedTuples, dicts and None keep their form."""
  first = rows[0]
  if first is None:
    return None
  if isinstance(first, dict):
    return {name: stack([row[name] for row in rows]) for name in first}
  if isinstance(first, tuple):
    return type(first)(*(stack(list(column)) for column in zip(*rows, strict=True)))
  return np.stack(rows)


def nbytes(row: Any) -> int:
  """Memory of a row's arrays, bytes."""
  if row is None:
    return 0
  if isinstance(row, dict):
    return sum(nbytes(value) for value in row.values())
  return sum(nbytes(value) for value in row) if isinstance(row, tuple) else row.nbytes
