"""Samples an evaluation set with a trained model and scores it: launch.evaluate --benchmark, --bop,
--sa3dao, --photos.
"""

import dataclasses
import json
import pathlib
import shutil
import time

import numpy as np
from PIL import Image

from data_pipelines.build import limited, shard_jobs
from data_pipelines.eval_sets import reprojection
from data_pipelines.eval_sets.bop import BopSet
from data_pipelines.eval_sets.item import EvalSet, Item, Subset
from data_pipelines.eval_sets.photo_folder import PhotoFolder
from data_pipelines.eval_sets.procedural import ProceduralSet
from data_pipelines.format import schema
from data_pipelines.read import rows
from data_pipelines.synth import benchmark
from launch.console.findings import Findings
from launch.console.progress import Progress, say
from launch.console.refusals import Refusals
from launch.scoring import pairs, split_samples
from sam3d_jax.content_keys import example_key, key_words
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import layout, occupancy, shape
from sam3d_jax.files import atomic, blame, folders
from sam3d_jax.geometry import conditions, normalisers, pose, windows
from sam3d_jax.geometry.conditions import Condition
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference import weights
from sam3d_jax.inference.predictor import Prediction, Predictor, Request
from sam3d_jax.inference.weights import WeightsConfig
from sam3d_jax.render import mesh

# in the folder of an item, written last: what the sample was and what the item belongs to
RECORD = "sample.json"
CHECKED = 20  # items whose poses --dry_run checks


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a model says about one item."""

  occupancy_XYZ: np.ndarray  # bool, the model's object frame
  pose: Pose  # object to camera


@dataclasses.dataclass(frozen=True)
class EvalSetConfig:
  """Which evaluation set, and what is evaluated on it; exactly one of the four sets is given.

  benchmark: NAME[:N]. benchmark_data: folder of its photos; None: beside the results. bop, sa3dao,
  photos: folders. split, sensor: of a BOP set. most: objects at most, evenly spaced; 0: all.
  weights: None for the oracle, which takes the truth in place of a model. workers: processes that
  build the benchmark and score; 0: one that builds, one a core that score. limits: of reading an
  item. quarantine_budget: share of the items that may be refused.
  """

  weights: WeightsConfig | None
  benchmark: str | None = None
  benchmark_data: str | None = None
  bop: str | None = None
  sa3dao: str | None = None
  photos: str | None = None
  split: str = "test"
  sensor: str | None = None
  most: int = 0
  seed: int = 0
  batch_size: int = 32
  dry_run: bool = False
  workers: int = 0
  protocol: shape.ShapeProtocol = shape.ShapeProtocol()
  limits: limited.Limits = limited.NONE
  quarantine_budget: float = 0.0


def run(config: EvalSetConfig, out: pathlib.Path) -> None:
  """Samples what is not sampled yet into OUT/pairs and scores it as pairs."""
  if config.dry_run and config.benchmark is not None:
    plan_benchmark(config, out)
    return
  # Without the set the weights can be looked at all the same.
  found = Findings()
  with found.looking():
    chosen = open_set(config, out)
  if found.wrong:
    with found.looking():
      check_weights(config)
    found.tell()
  print(
    f"plan: {len(chosen.names)} objects of {chosen.identity['set']}, batches of "
    f"{config.batch_size}, into {out}",
    flush=True,
  )
  if config.dry_run:
    check_weights(config)
    check_poses(chosen, config)
    return

  # Who predicts: the truth itself, one item at a time, or a model.
  if config.weights is None:
    predictor = None
    size = 1
    settings = {"oracle": True}
  else:
    predictor = weights.load(config.weights, say)
    size = config.batch_size
    settings = {
      "weights": dict(predictor.identity),
      "sampler": dataclasses.asdict(predictor.sampler),
      "seed": config.seed,
    }

  identity = chosen.identity | settings
  identity = json.loads(json.dumps(identity))  # as it will be read back
  folder = prepare_pairs(out, identity)
  refusals = Refusals("objects")
  sample_set(chosen, folder, predictor, config, size, refusals)
  refusals.write(out)
  total = len(chosen.names)
  if len(refusals.found) == total:
    raise InputError(refusals.said(total))
  pairs.evaluate(
    folder,
    out,
    config.protocol,
    pairs.workers_of(config.workers),
    run=identity,
    refused=[dataclasses.asdict(one) for one in refusals.found],
    limits=config.limits,
  )
  refusals.check(total, config.quarantine_budget)


def check_weights(config: EvalSetConfig) -> None:
  """Raises InputError for weights that are not there or do not go together; the oracle has none."""
  if config.weights is not None:
    weights.check(config.weights)


def sample_set(
  chosen: EvalSet,
  folder: pathlib.Path,
  predictor: Predictor | None,
  config: EvalSetConfig,
  size: int,
  refusals: Refusals,
) -> None:
  """Writes a pair for every item that has none yet and can be used, `size` items at a time.

  No predictor: oracle.
  """
  # The record is written last: who has it is done.
  todo = []
  for i, name in enumerate(chosen.names):
    record = folder / name / RECORD
    if not record.exists():
      todo.append(i)

  total = len(chosen.names)
  with Progress(total, "sampling", "objects", done=total - len(todo)) as bar:
    for start in range(0, len(todo), size):
      batch = todo[start : start + size]
      items = []
      for i in batch:
        with refusals.input(chosen.names[i]):
          items.append(read_item(chosen, i, config))

      # Items of a batch share its time.
      began = time.monotonic()
      if predictor is None:
        drawn = oracle(items, refusals)
      else:
        drawn = predict(predictor, chosen, items, config, refusals)
      seconds = (time.monotonic() - began) / len(batch)

      for item, found in drawn:
        with refusals.input(item.name):
          write_pair(folder / item.name, item, found, seconds)
        # half a pair would be scored as one
        if not (folder / item.name / RECORD).exists():
          shutil.rmtree(folder / item.name, ignore_errors=True)
      bar.update(len(batch))


def read_item(chosen: EvalSet, index: int, config: EvalSetConfig) -> Item:
  """An item of a set: of files of others within the limits. Raises InputError, Refused."""
  # the benchmark is made here
  if config.benchmark is not None:
    return chosen[index]
  return limited.call(config.limits, item_of, index, kept=chosen)


def item_of(chosen: EvalSet, index: int) -> Item:
  return chosen[index]


def open_set(config: EvalSetConfig, out: pathlib.Path) -> EvalSet:
  """The set that is asked for, or `most` evenly spaced items of it."""
  # The flags name exactly one set.
  if config.benchmark is not None:
    whole = open_benchmark(config, out)
  else:
    whole = open_folder(config)

  # All of it, or evenly spaced items.
  total = len(whole.names)
  few = split_samples.choose(total, config.most)
  return whole if len(few) == total else Subset(whole, tuple(few))


def open_folder(config: EvalSetConfig) -> EvalSet:
  """A set that others have made. Raises InputError, whatever is wrong with its tables."""
  try:
    if config.bop is not None:
      return BopSet(config.bop, config.split, config.sensor)
    if config.sa3dao:
      return PhotoFolder(config.sa3dao, "sa3dao")
    return PhotoFolder(config.photos, "photos")
  except InputError:
    raise
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    folder = config.bop or config.sa3dao or config.photos
    raise InputError(
      f"{folder}: a table of this set is not as docs/evaluation.md describes it "
      f"({blame.said(error)})"
    ) from error


def plan_benchmark(config: EvalSetConfig, out: pathlib.Path) -> None:
  """Says which photos of a benchmark would be made and scored; makes none."""
  chosen = benchmark.load(config.benchmark)
  folder = pathlib.Path(config.benchmark_data or out / "benchmark")
  photos = benchmark.plan(chosen).inputs
  print(
    f"plan: {photos} photos of {chosen.name}, made in {folder}, batches of {config.batch_size}, "
    f"into {out}"
  )
  check_weights(config)


def open_benchmark(config: EvalSetConfig, out: pathlib.Path) -> EvalSet:
  """The frozen benchmark, built first if it is not there yet."""
  # Photos that are there already are checked when they are read.
  chosen = benchmark.load(config.benchmark)
  folder = pathlib.Path(config.benchmark_data or out / "benchmark")
  plan = benchmark.plan(chosen)
  done = shard_jobs.finished_inputs(plan, folder)
  with Progress(plan.inputs, f"building {chosen.name}", "photos", done=done) as bar:

    def progress(count: int, refused) -> None:
      bar.update(count)

    # A benchmark with a photo left out would be another one.
    shard_jobs.build(
      plan,
      folder,
      workers=config.workers or 1,
      quarantine_budget=0.0,
      progress=progress,
    )
  return ProceduralSet(chosen, folder)


def check_poses(chosen: EvalSet, config: EvalSetConfig) -> None:
  """Prints whether the poses of some items put the truth where the photo shows it.

  Raises InputError for items that cannot be used, more than the budget allows.
  """
  # The items whose pose can be compared with their photo.
  fits = {}
  refusals = Refusals("objects")
  looked_at = split_samples.choose(len(chosen.names), CHECKED)
  for i in looked_at:
    with refusals.input(chosen.names[i]):
      item = read_item(chosen, i, config)
      found = reprojection.fit(item)
      if found is not None:
        fits[item.name] = found
  refusals.check(len(looked_at), config.quarantine_budget)
  if not fits:
    print(
      "poses: no item has both a pose and a camera or point map, so they cannot be checked against "
      "the photos"
    )
    return

  # How well they fit, in the median.
  covered = np.median([found.covered for found in fits.values()])
  gaps = [found.depth for found in fits.values() if found.depth is not None]
  behind = ""
  if gaps:
    behind = f", the point map lies {np.median(gaps):+.3f} diameters behind it"
  print(
    f"poses: placed and projected, the truth covers {covered:.1%} of the mask (median of "
    f"{len(fits)}){behind}"
  )

  # Those that do not.
  bad = [name for name, found in fits.items() if found.covered < reprojection.GOOD]
  if bad:
    print(
      f"WARNING: {len(bad)} of {len(fits)} cover less than {reprojection.GOOD:.0%}, first "
      f"{bad[0]}: is their pose in the frame and "
      "form that docs/evaluation.md states?"
    )


def prepare_pairs(out: pathlib.Path, identity: dict) -> pathlib.Path:
  """The folder of sampled items; samples of other settings are dropped.

  Raises InputError for a folder of that name that this command has not made.
  """
  folder = out / "pairs"
  record = folder / "run.json"
  text = json.dumps(identity, sort_keys=True, indent=1)
  if record.is_file() and record.read_bytes() == text.encode():
    return folder
  folders.check_own(folder, record, "set", "--out")

  # Other settings: nothing that is there can be kept. The record goes last: a folder of which a
  # part is left is still this command's.
  folder.mkdir(exist_ok=True)
  for stale in folder.iterdir():
    if stale.is_dir() and not stale.is_symlink():
      shutil.rmtree(stale)
    elif stale != record:
      stale.unlink()
  atomic.write_text(record, text)
  return folder


def oracle(items: list[Item], refusals: Refusals) -> list[tuple[Item, Sample]]:
  """The truth as a model would have to say it: 64^3 voxels and pose. Its scores are the ceiling of
  the set.
  """
  # Both must be known of every item.
  out = []
  for item in items:
    with refusals.input(item.name):
      if item.voxels_N3 is None or item.pose is None:
        raise InputError(
          f"{item.name}: this set does not know the voxels of its objects, so there is no --oracle "
          "for it"
        )
      grid = rows.occupancy(item.voxels_N3, schema.VOXEL_RESOLUTION)
      out.append((item, Sample(grid.astype(bool), item.pose)))
  return out


def predict(
  predictor: Predictor,
  chosen: EvalSet,
  items: list[Item],
  config: EvalSetConfig,
  refusals: Refusals,
) -> list[tuple[Item, Sample]]:
  """Samples a batch of items; the noise depends on the seed and the item alone."""
  # What the model is told of each item, and the key of its noise.
  set_name = chosen.identity["set"]
  told = []
  requests = []
  for item in items:
    with refusals.input(item.name):
      one = condition(predictor, item)
      content = key_words(example_key(set_name, item.name))
      told.append((item, one))
      requests.append(Request(one.streams, content))
  if not requests:
    return []

  drawn = predictor(requests, config.batch_size, config.seed)
  samples = []
  for i, (item, one) in enumerate(told):
    with refusals.input(item.name):
      samples.append((item, sample_of(predictor, drawn.one(i), one)))
  return samples


def sample_of(predictor: Predictor, drawn: Prediction, told: Condition) -> Sample:
  """What a drawn sample says about its item, in the camera's frame where a point map was given."""
  if not predictor.placed or told.scale is None:
    return Sample(drawn.occupancy, pose.rotation_only(drawn.rotation))

  # Latents are relative to the point map's scale and shift.
  layout_latents = {name: x for name, x in drawn.latents.items() if name != "shape"}
  said = pose.decode_latents(
    layout_latents,
    told.scale,
    told.shift,
    convention=predictor.convention,
  )
  return Sample(drawn.occupancy, said)


def condition(predictor: Predictor, item: Item) -> Condition:
  """The model's inputs for one item. Raises InputError for a mask that cannot be used."""
  # Masks of data sets are as they are: one that cannot be used ends the run by name.
  try:
    return conditions.condition(
      item.image_HW3,
      item.mask_HW,
      item.pointmap_HW3,
      predictor.form,
    )
  except (windows.MaskError, normalisers.NoValidPoints) as error:
    raise InputError(f"{item.name}: {error}") from error


def write_pair(folder: pathlib.Path, item: Item, found: Sample, seconds: float) -> None:
  """The folder of one item: photo, mask, truth and prediction with their poses, and last the
  record.
  """
  # What is given: photo, mask, truth.
  folder.mkdir(exist_ok=True)
  image = Image.fromarray(item.image_HW3)
  image.save(folder / "image.png")
  mask = item.mask_HW.astype(np.uint8) * 255
  Image.fromarray(mask).save(folder / "mask.png")
  mesh.write_ply(folder / "truth.ply", item.truth)
  if item.pose is not None:
    layout.write_pose(folder / "truth_pose.json", item.pose)

  # What is predicted; no file stands for an empty sample.
  predicted = mesh.from_occupancy(found.occupancy_XYZ)
  pred_file = folder / "pred.ply"
  if predicted is None:
    pred_file.unlink(missing_ok=True)
  else:
    mesh.write_ply(pred_file, predicted)
  layout.write_pose(folder / "pred_pose.json", found.pose)

  record = {
    "group": item.group,
    "subject": item.subject,
    "seconds": round(seconds, 3),
    "voxel_iou": voxel_iou(item, found),
  }
  atomic.write_json(folder / RECORD, record)


def voxel_iou(item: Item, found: Sample) -> float | None:
  """IoU of sampled and true voxels at the model's resolution, both in the model's object frame,
  nothing aligned.
  """
  if item.voxels_N3 is None:
    return None
  resolution = len(found.occupancy_XYZ)
  truth = rows.occupancy(item.voxels_N3, resolution).astype(bool)
  iou_1 = occupancy.voxel_iou(found.occupancy_XYZ[None], truth[None])
  return float(iou_1[0])
