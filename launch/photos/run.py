"""Reconstructs the masked objects of photos: launch.sample --image, --images."""

import argparse
from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import itertools
import json
import pathlib
import resource
import time

import numpy as np

from data_pipelines.format import schema
from data_pipelines.read import rows
from launch import sample
from launch.console.progress import Progress
from launch.photos import jobs as photo_jobs
from launch.photos import results
from launch.photos.jobs import Job
from sam3d_jax.batch import Conditioning
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic
from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import preprocessing
from sam3d_jax.inference import rewards
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.predictor import Predictor, needs_pointmap


@dataclasses.dataclass(frozen=True)
class Row:
  """One sample to draw."""

  job: Job
  photo: Photo
  name: str  # of the object
  index: int  # of the sample
  streams: dict[str, np.ndarray]  # without batch axis
  content: np.ndarray  # (2,) uint32


class Phases:
  """Seconds of the parts of the work, on the wall's clock and of this process's threads; time is in
  one part at most.
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self.cpu_seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str):
    start = time.monotonic(), time.process_time()
    try:
      yield
    finally:
      self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start[0]
      self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - start[1]


def run(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Writes the files of every photo that is not done yet (see photo_results)."""
  phases = Phases()
  jobs = photo_jobs.find(args, out)
  if args.pointmap_command and not args.dry_run:
    with phases("point maps"):
      jobs = photo_jobs.make_pointmaps(jobs, args.pointmap_command)
  with phases("read"):
    objects = photo_jobs.check_all(jobs)
  print_plan(args, jobs, objects, out)
  if args.dry_run:
    return
  with phases("load"):
    predictor = sample.load_predictor(args)
    reward = rewards.load(args, predictor)
  settings = {
    "weights": dict(predictor.identity),
    "sampler": dataclasses.asdict(predictor.sampler),
    "seed": args.seed,
    "samples": args.samples,
    "reward": reward.name if reward else None,
    "refine": args.refine,
  }
  settings = json.loads(json.dumps(settings))  # as it will be read back
  inputs = {job.name: job.digest() for job in jobs}
  todo = [
    (job, found)
    for job, found in zip(jobs, objects, strict=True)
    if not results.is_done(job, settings, inputs[job.name])
  ]
  total = args.samples * sum(len(found) for _, found in todo)
  if total:
    # one size for all batches: one compilation
    bucket = min(args.batch_size, 1 << (total - 1).bit_length())
    rows = make_rows([job for job, _ in todo], predictor, args.samples, phases)
    with Progress(
      args.samples * sum(map(len, objects)),
      "sampling",
      "samples",
      done=args.samples * sum(map(len, objects)) - total,
    ) as bar:
      for job, found in itertools.groupby(
        draw(rows, predictor, bucket, args.seed, phases), key=lambda pair: pair[0]
      ):
        drawn = [candidate for _, candidate in found]
        results.write(
          job,
          drawn,
          reward,
          settings | {"inputs": inputs[job.name]},
          refine=args.refine,
          phases=phases,
        )
        bar.update(len(drawn))
  report(jobs, objects, todo, predictor, phases, out)


def print_plan(
  args: argparse.Namespace, jobs: list[Job], objects: list[dict[str, int]], out: pathlib.Path
) -> None:
  count = sum(map(len, objects))
  known = sum(job.pointmap is not None for job in jobs)
  print(
    f"plan: {count} object(s) of {len(jobs)} photo(s), {known} with a point map; {args.samples} "
    f"sample(s) each, into {out}"
  )
  for job, found in itertools.islice(zip(jobs, objects, strict=True), 20):
    print(
      f"  {job.image}: "
      + ", ".join(f"{name} ({pixels} px)" for name, pixels in itertools.islice(found.items(), 12))
      + (", ..." if len(found) > 12 else "")
    )
  if len(jobs) > 20:
    print(f"  ... and {len(jobs) - 20} more photos")


def make_rows(
  jobs: Iterable[Job], predictor: Predictor, count: int, phases: Phases
) -> Iterator[Row]:
  """The samples to draw, photo by photo. Noise depends on the seed, the photo, the object's mask
  and the sample's number.
  """
  for job in jobs:
    with phases("read"):
      photo = photo_jobs.read(job)
    image_key = schema.example_key(photo.image_HW3)
    for name, mask in photo.masks.items():
      with phases("prepare"):
        streams = prepare(predictor, photo, mask, f"{job.image}: {name}")
      for index in range(count):
        content = schema.key_words(schema.example_key(image_key, mask, *([index] if index else [])))
        yield Row(job, photo, name, index, streams, content)


def prepare(
  predictor: Predictor, photo: Photo, mask: np.ndarray, name: str
) -> dict[str, np.ndarray]:
  """The conditioning streams of one object; without a point map its streams are unknown everywhere."""
  row, known = predictor.row, photo.pointmap_HW3 is not None
  streams = tuple(s for s in row.streams if known or s not in rows.POINTMAP_STREAMS)
  try:
    out = preprocessing.preprocess(
      photo.image_HW3,
      mask,
      photo.pointmap_HW3,
      image_size=row.image_size,
      pointmap_size=row.pointmap_size,
      resize_twice=row.resize_twice,
      streams=streams,
    )
  except preprocessing.MaskError as error:
    raise InputError(f"{name}: {error}") from error
  unknown = np.full((row.pointmap_size,) * 2 + (3,), np.nan, np.float32)
  return {s: unknown for s in row.streams if s not in streams} | out


def draw(
  rows: Iterable[Row], predictor: Predictor, bucket: int, seed: int, phases: Phases
) -> Iterator[tuple[Job, Candidate]]:
  """Samples rows in batches of one size. The device works on a batch while the host takes care of
  the one before.
  """
  waiting = None
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, bucket)):
    padded = chunk + [chunk[0]] * (bucket - len(chunk))
    cond = Conditioning(
      **{s: np.stack([row.streams[s] for row in padded]) for s in predictor.row.streams}
    )
    drop_B = np.array(
      [row.photo.pointmap_HW3 is None and needs_pointmap(predictor.row) for row in padded]
    )
    with phases("compile" if not predictor.programs else "sample"):
      started = predictor.start(cond, np.stack([row.content for row in padded]), seed, drop_B)
    if waiting is not None:
      yield from collect(*waiting, predictor, phases)
    waiting = chunk, started
  if waiting is not None:
    yield from collect(*waiting, predictor, phases)


def collect(
  chunk: list[Row], started, predictor: Predictor, phases: Phases
) -> Iterator[tuple[Job, Candidate]]:
  with phases("sample"):
    found = predictor.finish(started)
  for i, row in enumerate(chunk):
    yield row.job, Candidate(row.photo, row.name, row.index, row.streams, predictor, found.one(i))


def report(
  jobs: list[Job],
  objects: list[dict],
  todo: list,
  predictor: Predictor,
  phases: Phases,
  out: pathlib.Path,
) -> None:
  """Says what was made and where the time went, and keeps that as timing.json."""
  done, count = len(jobs) - len(todo), sum(len(found) for _, found in todo)
  seconds, cpu_seconds = (
    {name: round(value, 3) for name, value in found.items()}
    for found in (phases.seconds, phases.cpu_seconds)
  )
  if todo:
    atomic.write_json(
      out / "timing.json",
      {
        "photos": len(todo),
        "objects": count,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "compilations": len(predictor.programs),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "sampler": dataclasses.asdict(predictor.sampler),
      },
    )
    print(
      "seconds: "
      + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
      + f"; {len(predictor.programs)} compilation(s)"
    )
  where = out if len(jobs) == 1 else out / "<photo>"
  print(
    f"{where}: {count} object(s) of {len(todo)} photo(s)"
    + (f", {done} photo(s) were done before" if done else "")
    + "; meshes, layout.json, scene.glb, preview.png"
  )
