"""Small, physically consistent datasets for tests: voxel ellipsoids seen by a pinhole camera, no
renderer involved.
"""

import functools
import io
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.format import records, schema
from sam3d_jax.geometry import cameras, pose

SIZE = 48  # pixels
AUTOENCODER = "a" * 64


def encode_png(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "PNG")
  return buffer.getvalue()


def ellipsoid_voxels(rng: np.random.Generator) -> np.ndarray:
  """Surface voxels (N, 3) uint8 of a random ellipsoid in the 64^3 grid."""
  along = np.arange(64)
  cells = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1)
  centres = (cells + 0.5) / 64 - 0.5
  radii = rng.uniform(0.2, 0.48, 3)
  inside = ((centres / radii) ** 2).sum(-1) <= 1
  # what has all six neighbours is no surface
  core = inside.copy()
  for axis in range(3):
    core &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
  return np.argwhere(inside & ~core).astype(np.uint8)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
  """Uniform over all rotations, (3, 3) float32."""
  q, r = np.linalg.qr(rng.standard_normal((3, 3)))
  q *= np.sign(np.diag(r))
  proper = q * np.linalg.det(q)
  return proper.astype(np.float32)


def draw_points(points_P3: np.ndarray, camera: cameras.Camera) -> tuple[np.ndarray, np.ndarray]:
  """(mask, point map) of points that lie closer than a pixel; NaN where nothing is."""
  pixels, depth = cameras.project(points_P3, camera)
  mask = np.zeros((camera.height, camera.width), bool)
  pointmap = np.full((camera.height, camera.width, 3), np.nan, np.float32)
  order = np.argsort(-depth)  # the nearest is drawn last
  column, row = np.floor(pixels[order]).astype(int).T
  mask[row, column] = True
  pointmap[row, column] = points_P3[order]
  return mask, pointmap


def make_example(
  index: int, *, latent: bool = True, pointmap: bool = True, kind: str = "example"
) -> schema.Example:
  """Example `index`: an ellipsoid with everything that a complete record has but slat."""
  return dict(_make_example(index, latent, pointmap, kind))


@functools.cache
def _make_example(index: int, latent: bool, pointmap: bool, kind: str) -> schema.Example:
  rng = np.random.default_rng([index, 17])
  example = schema.empty_example(kind)

  # An ellipsoid, and where it is before the camera.
  voxels = ellipsoid_voxels(rng)
  camera = cameras.Camera(80.0, 80.0, SIZE / 2, SIZE / 2, SIZE, SIZE)
  example |= {
    "voxels": voxels,
    "rotation": random_rotation(rng),
    "scale": np.full(3, rng.uniform(0.5, 1.0), np.float32),
    "translation": np.array([*rng.uniform(-0.1, 0.1, 2), 2.2], np.float32),
  }

  # Its photo: noise where it is, grey around it.
  centres = (voxels.astype(np.float32) + 0.5) / 64 - 0.5
  points = pose.transform_points(centres, schema.example_pose(example))
  mask, points_HW3 = draw_points(points, camera)
  noise = rng.integers(0, 256, (SIZE, SIZE, 3))
  image = np.where(mask[..., None], noise, 128).astype(np.uint8)
  example |= {
    "image": encode_png(image),
    "mask": encode_png(mask.astype(np.uint8) * 255),
    "camera": camera._asdict(),
    "view": 0,
    "source": "ellipsoids",
    "license": "CC0-1.0",
    "mesh_key": schema.example_key("mesh", index),
    "rating": 3.0,
    "lineage": "{}",
    "key": schema.example_key("ellipsoid", index),
  }
  example |= {"mask_full": example["mask"], "image_delit": example["image"]}

  # What not every record has.
  if pointmap:
    example["pointmap"] = points_HW3.astype(np.float16)
  if latent:
    example |= make_latent(rng)
  if kind == "preference":
    losers = [make_loser(rng, example) for _ in range(1 + index % 2)]
    example |= {"generator": "model_a", "losers": losers}
  return example


def make_latent(rng: np.random.Generator) -> dict:
  return {
    "structure_latent": rng.standard_normal((4, 4, 4, 8), np.float32),
    "structure_latent_autoencoder": AUTOENCODER,
  }


def make_loser(rng: np.random.Generator, example: schema.Example) -> schema.Example:
  """The shape that was not preferred: every second voxel, turned."""
  latent = make_latent(rng)
  shape = {
    "voxels": example["voxels"][::2],
    "generator": "model_b",
    "rotation": random_rotation(rng),
  }
  return schema.empty_loser() | latent | shape


def write_dataset(
  directory,
  count: int,
  *,
  name: str = "ellipsoids",
  split: str = "train",
  shards: int = 2,
  first: int = 0,
  change=lambda example: example,
  **fields,
) -> pathlib.Path:
  """Writes examples first..first + count - 1 as a dataset; `change` edits each before it is
  written.
  """
  kind = fields.get("kind", "example")
  examples = [change(make_example(first + i, **fields)) for i in range(count)]
  for shard in range(shards):
    path = records.shard_path(directory, name, split, shard, shards)
    records.write_shard(path, examples[shard::shards], kind=kind)
  records.write_metadata(directory, name=name, kind=kind)
  return pathlib.Path(directory)


def equal(a, b) -> bool:
  """Whether two values of examples are the same, NaN included."""
  # all the way down
  if isinstance(a, dict):
    return set(a) == set(b) and all(equal(a[key], b[key]) for key in a)
  if isinstance(a, list):
    return len(a) == len(b) and all(map(equal, a, b))
  if isinstance(a, (bytes, str)):
    return a == b
  return np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=True)
