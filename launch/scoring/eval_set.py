"""Samples an evaluation set with a trained model and scores it: launch.evaluate --benchmark, --bop,
--sa3dao, --photos.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import time

import numpy as np
from PIL import Image

from data_pipelines.build import shard_jobs
from data_pipelines.eval_sets import reprojection
from data_pipelines.eval_sets.item import EvalSet, Item, Subset
from data_pipelines.format import schema
from data_pipelines.read import rows
from launch import sample
from launch.console.progress import Progress
from launch.scoring import pairs, split_samples
from sam3d_jax.batch import Conditioning
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import layout, occupancy
from sam3d_jax.files import atomic
from sam3d_jax.geometry import normalisers, pose, preprocessing
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference.predictor import Predictor
from sam3d_jax.render import mesh

# in the folder of an item, written last: what the sample was and what the item belongs to
RECORD = "sample.json"
CHECKED = 20  # items whose poses --dry_run checks


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a model says about one item."""

  occupancy_XYZ: np.ndarray  # bool, the model's object frame
  pose: Pose  # object to camera


def run(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Samples what is not sampled yet into OUT/pairs and scores it as pairs."""
  chosen = open_set(args, out)
  print(
    f"plan: {len(chosen.names)} objects of {chosen.identity['set']}, batches of {args.batch_size}, "
    f"into {out}",
    flush=True,
  )
  if args.dry_run:
    check_poses(chosen)
    return
  if args.oracle:
    settings = {"oracle": True}
  else:
    predictor = sample.load_predictor(args)
    settings = {
      "weights": dict(predictor.identity),
      "sampler": dataclasses.asdict(predictor.sampler),
      "seed": args.seed,
    }
  identity = json.loads(json.dumps(chosen.identity | settings))
  folder = prepare_pairs(out, identity)
  draw = oracle if args.oracle else lambda items: predict(predictor, chosen, items, args)
  todo = [i for i, name in enumerate(chosen.names) if not (folder / name / RECORD).exists()]
  size = 1 if args.oracle else args.batch_size
  with Progress(
    len(chosen.names), "sampling", "objects", done=len(chosen.names) - len(todo)
  ) as bar:
    for start in range(0, len(todo), size):
      items = [chosen[i] for i in todo[start : start + size]]
      began = time.monotonic()
      drawn = draw(items)
      seconds = (time.monotonic() - began) / len(items)
      for item, found in zip(items, drawn, strict=True):
        write_pair(folder / item.name, item, found, seconds)
      bar.update(len(items))
  pairs.evaluate(folder, out, pairs.protocol_of(args), pairs.workers_of(args), run=identity)


def open_set(args: argparse.Namespace, out: pathlib.Path) -> EvalSet:
  """The set that the flags name, or `--max` evenly spaced items of it."""
  if args.benchmark is not None:
    whole = open_benchmark(args, out)
  elif args.bop is not None:
    from data_pipelines.eval_sets.bop import BopSet

    whole = BopSet(args.bop, args.split)
  else:
    from data_pipelines.eval_sets.photo_folder import PhotoFolder

    whole = PhotoFolder(args.sa3dao or args.photos, "sa3dao" if args.sa3dao else "photos")
  few = split_samples.choose(len(whole.names), args.max)
  return whole if len(few) == len(whole.names) else Subset(whole, tuple(few))


def open_benchmark(args: argparse.Namespace, out: pathlib.Path) -> EvalSet:
  """The frozen benchmark, built first if it is not there yet."""
  from data_pipelines.eval_sets.procedural import ProceduralSet
  from data_pipelines.synth import benchmark

  chosen = benchmark.load(args.benchmark)
  folder = pathlib.Path(args.benchmark_data or out / "benchmark")
  plan = benchmark.plan(chosen)
  with Progress(
    plan.inputs, f"building {chosen.name}", "photos", done=shard_jobs.finished_inputs(plan, folder)
  ) as bar:
    shard_jobs.build(
      plan,
      folder,
      workers=args.workers or 1,
      quarantine_budget=0.0,
      progress=lambda n, refused: bar.update(n),
    )
  return ProceduralSet(chosen, folder)


def check_poses(chosen: EvalSet) -> None:
  """Prints whether the poses of some items put the truth where the photo shows it."""
  few = [chosen[i] for i in split_samples.choose(len(chosen.names), CHECKED)]
  fits = {item.name: found for item in few if (found := reprojection.fit(item)) is not None}
  if not fits:
    print(
      "poses: no item has both a pose and a camera or point map, so they cannot be checked against "
      "the photos"
    )
    return
  covered = np.median([f.covered for f in fits.values()])
  gaps = [f.depth for f in fits.values() if f.depth is not None]
  print(
    f"poses: placed and projected, the truth covers {covered:.1%} of the mask (median of "
    f"{len(fits)})"
    + (f", the point map lies {np.median(gaps):+.3f} diameters behind it" if gaps else "")
  )
  bad = [name for name, found in fits.items() if found.covered < reprojection.GOOD]
  if bad:
    print(
      f"WARNING: {len(bad)} of {len(fits)} cover less than {reprojection.GOOD:.0%}, first "
      f"{bad[0]}: is their pose in the frame and "
      "form that docs/evaluation.md states?"
    )


def prepare_pairs(out: pathlib.Path, identity: dict) -> pathlib.Path:
  """The folder of sampled items; samples of other settings are dropped."""
  pairs = out / "pairs"
  record, text = pairs / "run.json", json.dumps(identity, sort_keys=True, indent=1)
  if record.exists() and record.read_text() == text:
    return pairs
  if pairs.exists():
    shutil.rmtree(pairs)
  pairs.mkdir()
  atomic.write_text(record, text)
  return pairs


def oracle(items: list[Item]) -> list[Sample]:
  """The truth as a model would have to say it: 64^3 voxels and pose. Its scores are the ceiling of
  the set.
  """
  out = []
  for item in items:
    if item.voxels_N3 is None or item.pose is None:
      raise InputError(
        f"{item.name}: this set does not know the voxels of its objects, so there is no --oracle "
        "for it"
      )
    grid = rows.occupancy(item.voxels_N3, schema.VOXEL_RESOLUTION).astype(bool)
    out.append(Sample(grid, item.pose))
  return out


def predict(
  predictor: Predictor, chosen: EvalSet, items: list[Item], args: argparse.Namespace
) -> list[Sample]:
  """Samples a batch; a short one is padded, so there is one compilation. Noise depends on the seed
  and the item alone.
  """
  rows = [condition(predictor, item) for item in items]
  keys = [schema.key_words(schema.example_key(chosen.identity["set"], item.name)) for item in items]
  spare = args.batch_size - len(items)
  stack = lambda name: np.stack([row[name] for row in rows] + [rows[0][name]] * spare)
  lacks_pointmap = np.array([item.pointmap_HW3 is None for item in items] + [False] * spare)
  found = predictor(
    Conditioning(**{s: stack(s) for s in predictor.row.streams}),
    np.stack(keys + [keys[0]] * spare),
    args.seed,
    lacks_pointmap,
  )
  out = []
  for i, row in enumerate(rows):
    said = pose.rotation_only(found.rotation[i])
    if predictor.placed and "pointmap_scale" in row:
      said = pose.decode_latents(
        {name: x[i] for name, x in found.latents.items() if name != "shape"},
        row["pointmap_scale"],
        row["pointmap_shift"],
        convention=predictor.convention,
      )
    out.append(Sample(found.occupancy[i], said))
  return out


def condition(predictor: Predictor, item: Item) -> dict[str, np.ndarray]:
  """The model's inputs for one item, and the scale and shift of its point map."""
  row = predictor.row
  streams = tuple(
    s for s in row.streams if item.pointmap_HW3 is not None or s not in rows.POINTMAP_STREAMS
  )
  try:
    out = preprocessing.preprocess(
      item.image_HW3,
      item.mask_HW,
      item.pointmap_HW3,
      image_size=row.image_size,
      pointmap_size=row.pointmap_size,
      resize_twice=row.resize_twice,
      streams=streams,
    )
  except (preprocessing.MaskError, normalisers.NoValidPoints) as error:
    raise InputError(f"{item.name}: {error}") from error
  unknown = np.full((row.pointmap_size,) * 2 + (3,), np.nan, np.float32)
  return {s: unknown for s in row.streams if s not in streams} | out


def write_pair(folder: pathlib.Path, item: Item, found: Sample, seconds: float) -> None:
  """The folder of one item: photo, mask, truth and prediction with their poses, and last the
  record.
  """
  folder.mkdir(exist_ok=True)
  Image.fromarray(item.image_HW3).save(folder / "image.png")
  Image.fromarray(item.mask_HW.astype(np.uint8) * 255).save(folder / "mask.png")
  mesh.write_ply(folder / "truth.ply", item.truth)
  if item.pose is not None:
    layout.write_pose(folder / "truth_pose.json", item.pose)
  shape = mesh.from_occupancy(found.occupancy_XYZ)
  if shape is None:
    (folder / "pred.ply").unlink(missing_ok=True)
  else:
    mesh.write_ply(folder / "pred.ply", shape)
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
  truth = rows.occupancy(item.voxels_N3, len(found.occupancy_XYZ)).astype(bool)
  return float(occupancy.voxel_iou(found.occupancy_XYZ[None], truth[None])[0])
