"""Voxel scores of dataset samples, their baselines, a picture: launch.evaluate --samples."""

import dataclasses
import json
import pathlib

import numpy as np

from data_pipelines.format import records, schema
from data_pipelines.read import rows
from launch.console.findings import Findings
from launch.console.progress import Progress
from launch.scoring.split_samples import Samples, choose, load_samples
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import aggregate, occupancy
from sam3d_jax.files import atomic
from sam3d_jax.geometry import pose
from sam3d_jax.render import mesh, preview

MEAN_SHAPE_FIELDS = {"key", "mesh_key", "voxels"}  # all that is read of the training examples
COLUMNS = (
  "input",
  "mask",
  "truth, input view",
  "truth, turned 120°",
  "sample, input view",
  "sample, turned 120°",
)


@dataclasses.dataclass(frozen=True)
class SplitScoresConfig:
  """Which samples are scored against what.

  samples: folder with samples.npz. data, split: that were sampled. shuffled: folder of samples of
  --shuffle_images; None: every sample meets each other object. train_data, train_split: whose mean
  shape is the constant baseline; None: `data`. rows: objects in preview.png. dry_run:
  check the inputs and stop.
  """

  samples: str
  data: str
  split: str = "test"
  shuffled: str | None = None
  train_data: str | None = None
  train_split: str = "train"
  rows: int = 8
  dry_run: bool = False


def run(config: SplitScoresConfig, out: pathlib.Path) -> None:
  """Writes metrics.json and preview.png."""
  # The samples, the dataset that they are of, and the one that baselines come from.
  inputs = Findings()
  with inputs.looking("--samples"):
    found = load_samples(config.samples)
  with inputs.looking("--data"):
    source = records.open_split(config.data, config.split)
  if config.train_data is not None:
    with inputs.looking("--train_data"):
      records.open_split(config.train_data, config.train_split)
  inputs.tell()

  # The examples that were sampled.
  index = index_of(source)
  missing = [key for key in found.key if key not in index]
  if missing:
    raise InputError(
      f"{config.samples}: {len(missing)} of {len(found.key)} samples are of no example of "
      f"{config.data} {config.split}, "
      f"first {missing[0]}; give the dataset and split that were sampled"
    )
  if config.dry_run:
    records.open_split(config.train_data or config.data, config.train_split)
    print(f"plan: {len(found.key)} samples of {config.data} {config.split}, into {out}")
    return
  examples = [source[index[key]] for key in found.key]

  # Their true voxels, and the scores.
  resolution = found.occupancy.shape[1]
  truth = np.stack([truth_grid(example, resolution) for example in examples])
  iou = occupancy.voxel_iou(found.occupancy, truth)
  low, high = aggregate.bootstrap_interval(iou)
  errors = rotation_errors(found, examples)
  error = None
  if np.isfinite(errors).any():
    error = float(np.nanmedian(errors))

  # What they have to beat: one shape for all, and what is said of other objects.
  training = records.open_split(
    config.train_data or config.data,
    config.train_split,
    skip=set(schema.features("example")) - MEAN_SHAPE_FIELDS,
  )
  mean = mean_shape(training, resolution)
  constant, threshold = occupancy.best_constant(mean, truth)
  shuffled = shuffled_score(config.shuffled, found, truth)

  filled = found.occupancy.any((1, 2, 3))
  score = float(iou.mean())
  # The files, then the numbers for the terminal.
  metrics = {
    "voxel_iou": score,
    "voxel_iou_interval": [low, high],
    "voxel_iou_constant": constant,
    "voxel_iou_constant_threshold": threshold,
    "voxel_iou_shuffled": shuffled,
    "rotation_error_deg": error,
    "samples": len(iou),
    "empty": int((~filled).sum()),
    "resolution": resolution,
  }
  atomic.write_json(out / "metrics.json", metrics)
  shown = [examples[i] for i in choose(len(iou), config.rows)]
  draw(out / "preview.png", found, truth, iou, shown, config.rows)
  print(json.dumps(metrics, indent=2))
  print(
    f"voxel IoU {score:.3f} (95 % interval {low:.3f} to {high:.3f}, {len(iou)} samples at "
    f"{resolution}^3)\n"
    f"best constant shape {constant:.3f}: the score is {ratio(score, constant)}\n"
    f"shuffled images {shuffled:.3f}: the score is {ratio(score, shuffled)}"
  )


def ratio(score: float, baseline: float) -> str:
  if baseline <= 0:
    return "no multiple of 0"
  return f"{score / baseline:.2f} times that"


def index_of(source) -> dict[str, int]:
  """Example key -> position in the split."""
  return {source[i]["key"]: i for i in range(len(source))}


def truth_grid(example: schema.Example, resolution: int) -> np.ndarray:
  """True occupancy (X, Y, Z) bool at the samples' resolution. Raises InputError if the example has
  none.
  """
  try:
    rows.require(example, "voxels")
    grid = rows.occupancy(example["voxels"], resolution)
  except records.CorruptRecord as error:
    raise InputError(f"example {example['key']} cannot be scored: {error}") from error
  return grid.astype(bool)


def mean_shape(source, resolution: int) -> np.ndarray:
  """Share of the meshes of a split that occupy each voxel, (X, Y, Z); each mesh counts once,
  whatever its number of views.
  """
  # Views of one mesh have the same voxels: the first stands for all.
  total = np.zeros((resolution,) * 3)
  seen = set()
  with Progress(len(source), "mean training shape", "examples") as bar:
    for i in range(len(source)):
      example = source[i]
      name = example["mesh_key"] or example["key"]
      is_new = name not in seen
      if is_new and schema.is_present(example, "voxels"):
        seen.add(name)
        total += truth_grid(example, resolution)
      bar.update()
  if not seen:
    raise InputError(
      f"{source.directory} {source.split} holds no voxels: the constant baseline needs training "
      "shapes"
    )
  return total / len(seen)


def shuffled_score(folder: str | None, found: Samples, truth: np.ndarray) -> float:
  """Mean IoU of samples drawn for other objects' images."""
  if folder is None:
    return occupancy.shuffled_iou(found.occupancy, truth)

  # The samples must be of the same objects, shown photos of others.
  other = load_samples(folder)
  if not other.settings["shuffle_images"]:
    raise InputError(f"--shuffled {folder} was not drawn with --shuffle_images")
  same_examples = np.array_equal(other.key, found.key)
  if not same_examples or other.occupancy.shape != found.occupancy.shape:
    raise InputError(
      f"--shuffled {folder} and --samples are not of the same examples at the same resolution: "
      "draw both with the "
      "same --data, --split and --max"
    )
  iou = occupancy.voxel_iou(other.occupancy, truth)
  return float(iou.mean())


def rotation_errors(found: Samples, examples: list[schema.Example]) -> np.ndarray:
  """Angle in degrees between sampled and true rotation, NaN where the example has none. Symmetry is
  not taken into account.
  """
  truth = np.stack([example["rotation"] for example in examples])
  truth = truth.astype(np.float64)
  known = np.isfinite(truth).all((1, 2))
  # Any rotation serves in the place of an unknown one.
  filled = np.where(known[:, None, None], truth, np.eye(3))
  quaternion = np.asarray(pose.release_quaternion(filled))
  errors = occupancy.rotation_error_deg(found.rotation, quaternion)
  return np.where(known, errors, np.nan)


def draw(
  path: pathlib.Path,
  found: Samples,
  truth: np.ndarray,
  iou: np.ndarray,
  examples: list[schema.Example],
  count: int,
) -> None:
  """preview.png: evenly spaced samples, one a row; both shapes from the input's camera, then
  turned.
  """
  pictures = []
  captions = []
  for position, example in zip(choose(len(iou), count), examples, strict=True):
    # From the photo's camera, where that is known, and from the side.
    if schema.is_present(example, "rotation"):
      view = example["rotation"]
    else:
      view = preview.orbit(30, 25)
    views = (view, preview.turned(view, 120.0))

    photo = rows.decode_image(example["image"], "image", mode="RGB")
    mask = rows.decode_image(example["mask"], "mask", mode="L")
    row = [photo, mask]
    for grid in (truth[position], found.occupancy[position]):
      shape = mesh.from_occupancy(grid)
      row += [preview.render(shape, view_33) for view_33 in views]
    pictures.append(row)
    captions.append(f"{example['key'][:12]}   voxel IoU {iou[position]:.2f}")

  title = f"Held-out objects, evenly spaced: mean voxel IoU {iou.mean():.3f} over {len(iou)}"
  sheet = preview.grid(pictures, COLUMNS, captions, title=title)
  with atomic.write(path) as temporary:
    sheet.save(temporary)
