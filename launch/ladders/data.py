"""Data that the ladder makes of its own photos: shapes with noisy ratings, and pairs of the model's
own samples. They are the steps `launch.ladder rated` and `launch.ladder pairs`.

`rated` stands in for annotators: half of the shapes get a fault that annotators meet in candidates
(parts that float beside the object, parts that are missing) and ratings are noisy, so that some
faulty shapes pass a threshold and some right ones do not. `pairs` draws several samples a photo and
keeps the one with the fewest and the one with the most faults, as a chain of choices would.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import pathlib
from typing import Any

import numpy as np

from data_pipelines.format import records, schema
from data_pipelines.read import rows
from launch.console.progress import Progress, say
from launch.scoring import held_out
from sam3d_jax.inference import weights
from sam3d_jax.inference.predictor import Prediction, Predictor
from sam3d_jax.inference.weights import WeightsConfig

FAULTY = 0.5  # share of the shapes
# faulty? -> mean and standard deviation, clipped to 1..5
RATINGS = {False: (4.2, 0.5), True: (2.4, 0.6)}
CANDIDATES = 6  # samples a photo
MIN_GAP = 0.05  # in faults between the two shapes of a pair; closer ones are left out
BATCH = 32


def make_rated(photos: pathlib.Path, out: pathlib.Path, seed: int) -> None:
  """Makes a dataset of rated shapes; one that stands is left alone. seed: of faults and ratings."""
  if is_made(out):
    return

  def make(source: records.Split) -> Iterator[schema.Example]:
    return rated(source, seed, faulty=source.split == "train")

  write_splits(photos, out, make, name="rated_photos", kind="example")
  identity = {
    "made": "rated",
    "seed": seed,
    "source": records.dataset_identity(photos),
  }
  write_identity(out, identity, name="rated_photos", kind="example")


def make_pairs(photos: pathlib.Path, out: pathlib.Path, config: WeightsConfig, seed: int) -> None:
  """Makes a dataset of pairs of a model's samples; one that stands is left alone.

  config: of the model. seed: of the samples' noise.
  """
  if is_made(out):
    return
  model = weights.load(config, say)

  def make(source: records.Split) -> Iterator[schema.Example]:
    return pairs(source, model, seed)

  write_splits(photos, out, make, name="own_pairs", kind="preference")
  identity = {
    "made": "pairs",
    "seed": seed,
    "source": records.dataset_identity(photos),
    "weights": dict(model.identity),
    "autoencoder": model.identity["decoder"],
  }
  write_identity(out, identity, name="own_pairs", kind="preference")


def is_made(out: pathlib.Path) -> bool:
  """Whether the dataset stands, which is said."""
  made = (out / records.INFO_FILE).is_file()
  if made:
    print(f"{out} is there already")
  return made


def write_splits(
  photos: pathlib.Path,
  out: pathlib.Path,
  make: Callable[[records.Split], Iterable[schema.Example]],
  *,
  name: str,
  kind: str,
) -> None:
  """Writes what `make` makes of both splits."""
  for split in ("train", "test"):
    source = records.open_split(photos, split)
    shard = records.shard_path(out, name, split, 0, 1)
    examples = make(source)
    count = records.write_shard(shard, examples, kind=kind)
    print(f"{out}: {count} of {len(source)} examples in split {split}", flush=True)


def write_identity(out: pathlib.Path, identity: dict, *, name: str, kind: str) -> None:
  """What the dataset was made of, and last the file that says it is whole."""
  records.write_json(out / records.BUILD_FILE, identity)
  records.write_metadata(out, name=name, kind=kind)


def rated(source: records.Split, seed: int, *, faulty: bool) -> Iterator[schema.Example]:
  """The examples with a rating each and, if `faulty`, a fault in every second one."""
  for i in range(len(source)):
    example = source[i]
    rng = rows.generator(seed, 0, example["key"])
    bad = faulty and rng.uniform() < FAULTY
    if bad:
      spoil = add_floaters if rng.uniform() < 0.5 else remove_part
      example["voxels"] = spoil(example["voxels"], rng)

    # held-out shapes are right, and known to be
    rating = 5.0
    if faulty:
      mean, spread = RATINGS[bool(bad)]
      rating = float(np.clip(rng.normal(mean, spread), 1, 5))
    key = schema.example_key(example["key"], "rated", int(bad))
    yield example | {"rating": rating, "key": key}


def add_floaters(voxels_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The shape with two or three hollow balls beside it."""
  size = schema.VOXEL_RESOLUTION
  along = np.arange(size)
  centres_XYZ3 = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1)
  grid_XYZ = np.zeros((size, size, size), bool)
  grid_XYZ[tuple(voxels_N3.T)] = True
  # a shell a little thicker than a voxel, so that it has no holes
  for _ in range(rng.integers(2, 4)):
    centre = rng.uniform(6, size - 6, 3)
    distance_XYZ = np.linalg.norm(centres_XYZ3 - centre, axis=-1)
    radius = rng.uniform(3, 6)
    grid_XYZ |= np.abs(distance_XYZ - radius) < 0.8
  return np.argwhere(grid_XYZ).astype(np.uint8)


def remove_part(voxels_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The shape without the 30 to 60 per cent of it that lie farthest in some direction."""
  direction = rng.normal(size=3)
  along_N = voxels_N3 @ direction
  kept = rng.uniform(0.4, 0.7)
  return voxels_N3[along_N <= np.quantile(along_N, kept)]


def pairs(source: records.Split, model: Predictor, seed: int) -> Iterator[schema.Example]:
  """One preference example for each photo whose best and worst sample differ enough."""
  with Progress(len(source), f"sampling {source.split}", "photos") as bar:
    for start in range(0, len(source), BATCH):
      # Some samples of every photo of a batch, each with noise of its own.
      end = min(start + BATCH, len(source))
      examples = [source[i] for i in range(start, end)]
      objects = [held_out.object_of(one, model.form, model.resolution) for one in examples]
      requests = held_out.requests(objects)
      drawn = [model(requests, BATCH, seed + n) for n in range(CANDIDATES)]

      for row, (example, truth) in enumerate(zip(examples, objects, strict=True)):
        grids = [sample.occupancy[row] for sample in drawn]
        pair = chosen(truth.occupancy, grids)
        if pair is None:
          continue
        best, worst = pair
        yield preference(example, drawn[best].one(row), drawn[worst].one(row), model)
      bar.update(len(examples))


def chosen(truth_XYZ: np.ndarray, drawn: Sequence[np.ndarray]) -> tuple[int, int] | None:
  """Positions of the sample with the fewest and of that with the most faults, None if there is not
  much between them.
  """
  faults = [faults_of(grid_XYZ, truth_XYZ) for grid_XYZ in drawn]
  if np.isfinite(faults).sum() < 2:
    return None
  best, worst = int(np.nanargmin(faults)), int(np.nanargmax(faults))
  if faults[worst] - faults[best] < MIN_GAP:
    return None
  return best, worst


def faults_of(grid_XYZ: np.ndarray, truth_XYZ: np.ndarray) -> float:
  """How much of a shape floats or is missing, NaN for an empty one."""
  if not grid_XYZ.any():
    return np.nan
  return sum(held_out.part_scores(grid_XYZ, truth_XYZ).values())


def preference(
  example: schema.Example, best: Prediction, worst: Prediction, model: Predictor
) -> schema.Example:
  """The record of a pair; both shapes keep the latents that they were sampled as."""
  generator = {"generator": "ladder"}
  loser = schema.empty_loser() | shape_fields(worst, model) | generator
  record = schema.empty_example("preference") | example | shape_fields(best, model) | generator
  record["key"] = schema.example_key(example["key"], "pair")
  record["losers"] = [loser]
  return record


def shape_fields(sample: Prediction, model: Predictor) -> dict[str, Any]:
  """What a record says about a sampled shape."""
  # the tokens of the latent are a cubic grid
  tokens, channels = model.latent_shapes["shape"]
  side = round(tokens ** (1 / 3))
  latent = sample.latents["shape"].reshape(side, side, side, channels)
  return {
    "voxels": fine_voxels(sample.occupancy),
    "structure_latent_autoencoder": model.identity["decoder"],
    "structure_latent": latent.astype(np.float32),
  }


def fine_voxels(grid_XYZ: np.ndarray) -> np.ndarray:
  """Voxels of the records' grid under those of a coarser one."""
  factor = schema.VOXEL_RESOLUTION // grid_XYZ.shape[0]
  fine = grid_XYZ
  # each cell becomes a cube of cells
  for axis in range(3):
    fine = np.repeat(fine, factor, axis)
  return np.argwhere(fine).astype(np.uint8)
