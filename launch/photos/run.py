"""Reconstructs the masked objects of photos: launch.sample --image, --images."""

from collections import deque
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import pathlib
import resource
import sys
import time
import warnings

from data_pipelines.build import limited
from launch.console.findings import Findings
from launch.console.progress import Progress, say
from launch.console.refusals import Refusals
from launch.photos import jobs as photo_jobs
from launch.photos.jobs import Job, PhotoSource, Skipped
from sam3d_jax.errors import InputError, InputNote, JobFailed, Preempted
from sam3d_jax.files import atomic
from sam3d_jax.files.photos import Photo
from sam3d_jax.inference import rewards, scene_files, weights
from sam3d_jax.inference.predictor import Predictor
from sam3d_jax.inference.reconstruction import Choice, Reconstructor
from sam3d_jax.inference.rewards import RewardConfig
from sam3d_jax.inference.scene import Scene
from sam3d_jax.inference.weights import WeightsConfig

SHOWN_PHOTOS, SHOWN_OBJECTS = 20, 12  # in the plan


@dataclasses.dataclass(frozen=True)
class PhotosConfig:
  """What launch.sample does with photos.

  pointmap_command: makes the point maps of photos without one; None: they stay without. samples: of
  each object, of which the best by `reward` is kept. refine: fit each object's place to its mask.
  batch_size: objects sampled at once. dry_run: check the inputs, print the plan and stop. limits:
  of reading a photo. quarantine_budget: share of the photos that may be refused.
  """

  source: PhotoSource
  weights: WeightsConfig
  reward: RewardConfig = RewardConfig()
  pointmap_command: str | None = None
  samples: int = 1
  refine: bool = False
  seed: int = 0
  batch_size: int = 32
  dry_run: bool = False
  limits: limited.Limits = limited.NONE
  quarantine_budget: float = 0.0


class Phases:
  """Seconds of the parts of the work, on the wall's clock and of this process's threads.

  Time is in one part at most.
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self.cpu_seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str):
    # Time counts also where the part ends with an error.
    start = time.monotonic()
    cpu_start = time.process_time()
    try:
      yield
    finally:
      spent = time.monotonic() - start
      cpu_spent = time.process_time() - cpu_start
      self.seconds[name] = self.seconds.get(name, 0.0) + spent
      self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + cpu_spent


def run(config: PhotosConfig, out: pathlib.Path) -> None:
  """Writes the files of every photo that is not done yet (see sam3d_jax.inference.scene_files)."""
  if config.dry_run:
    rehearse(config, out)
    return

  # Every photo is read and checked before a model is loaded.
  phases = Phases()
  jobs, skipped = photo_jobs.find(config.source, out)
  print_skipped(skipped)
  for job in jobs:
    scene_files.check_own(job.out)
  total = len(jobs)
  refusals = Refusals("photos")
  if config.pointmap_command:
    with phases("point maps"):
      jobs = photo_jobs.make_pointmaps(jobs, config.pointmap_command, config.limits, refusals)
  with phases("read"):
    usable = photo_jobs.check_all(jobs, config.limits, refusals)
  if not usable:
    raise InputError(refusals.said(total))
  if refusals.found:
    print(f"refused, the others go on:\n{refusals.said(total)}", file=sys.stderr, flush=True)
  print_plan(config, usable, out)

  # The model, and what chooses among its samples.
  with phases("load"):
    predictor = weights.load(config.weights, say)
    reward = None
    if config.samples > 1:
      reward = rewards.load(config.reward, predictor, config.seed)
  model = Reconstructor(predictor, batch_size=config.batch_size)
  choice = Choice(
    seed=config.seed,
    samples=config.samples,
    reward=reward,
    refine=config.refine,
  )

  # What is done already is left alone; settings are compared as they are read back.
  settings = json.loads(json.dumps(model.settings(choice)))
  settings_of = {}
  counts: dict[Job, int] = {}
  for job, found in usable:
    with refusals.input(job.image):
      settings_of[job.name] = settings | {"inputs": job.digest()}
      if not is_done(job, settings_of[job.name]):
        counts[job] = config.samples * len(found)

  # Scenes come one by one and are written at once.
  left = sum(counts.values())
  made = []
  if counts:
    every = config.samples * sum(len(found) for _, found in usable)
    sampling = Sampling(model, choice, left, config.limits, refusals, phases)
    with Progress(every, "sampling", "samples", done=every - left) as bar:
      for job, scene in sampling.scenes(list(counts)):
        with refusals.input(job.image):
          scene = dataclasses.replace(scene, settings=settings_of[job.name])
          scene.save(job.out, phases=phases)
          made.append(job)
        bar.update(counts[job])

  # What was made, then what was not.
  objects = sum(counts[job] for job in made) // config.samples
  done = len(usable) - len(counts)
  report(done, len(made), objects, predictor, phases, out)
  refusals.write(out)
  refusals.check(total, config.quarantine_budget)


def rehearse(config: PhotosConfig, out: pathlib.Path) -> None:
  """Prints the plan. Raises InputError with what is missing or wrong of photos and weights."""
  found = Findings()
  with found.looking():
    jobs, skipped = photo_jobs.find(config.source, out)
    print_skipped(skipped)
    for job in jobs:
      scene_files.check_own(job.out)
    refusals = Refusals("photos")
    usable = photo_jobs.check_all(jobs, config.limits, refusals)
    if usable:
      print_plan(config, usable, out)
    refusals.check(len(jobs), config.quarantine_budget if usable else 0.0)
  with found.looking():
    weights.check(config.weights)
  found.tell()


class Sampling:
  """Makes scenes of photos; what goes wrong with one costs that one alone.

  count: samples of all photos together, which decides the size of a batch.
  """

  def __init__(
    self,
    model: Reconstructor,
    choice: Choice,
    count: int,
    limits: limited.Limits,
    refusals: Refusals,
    phases: Phases,
  ):
    self._model = model
    self._choice = choice
    self._count = count
    self._limits = limits
    self._refusals = refusals
    self._phases = phases

  def scenes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Scene]]:
    """Each photo's scene as soon as it is there, all of them in one stream of batches."""
    # Photos are taken from one end while scenes come out at the other.
    waiting = deque(jobs)
    taken: deque[Job] = deque()
    failure = None
    try:
      for scene in self._stream(waiting, taken):
        yield taken.popleft(), scene
    except (JobFailed, Preempted):
      raise
    # of which photo is not known: those that are left go on one by one
    except Exception as error:
      failure = error
    if failure is None:
      return

    worked = False
    for job in (*taken, *waiting):
      scene = None
      with self._refusals.input(job.image):
        scene = next(self._stream(deque([job]), deque()), None)
      if scene is not None:
        worked = True
        yield job, scene
    # nothing can be sampled at all, and no photo is said to be at fault
    if not worked and not isinstance(failure, InputError):
      raise failure

  def _stream(self, waiting: deque[Job], taken: deque[Job]) -> Iterator[Scene]:
    photos = self._photos(waiting, taken)
    return self._model.reconstruct(photos, self._choice, count=self._count, phases=self._phases)

  def _photos(self, waiting: deque[Job], taken: deque[Job]) -> Iterator[Photo]:
    """The photos of jobs, read when they are asked for, which moves them to `taken`."""
    while waiting:
      job = waiting.popleft()
      photo = None
      with self._refusals.input(job.image), self._phases("read"), warnings.catch_warnings():
        # what is to be noted was noted when all photos were checked
        warnings.simplefilter("ignore", InputNote)
        photo = limited.call(self._limits, photo_jobs.read, job)
      if photo is not None:
        taken.append(job)
        yield photo


def is_done(job: Job, settings: dict) -> bool:
  """Whether the job's folder holds the complete results of these settings."""
  layout = scene_files.read_layout(job.out)
  if layout is None or layout["settings"] != settings:
    return False
  listed = scene_files.files_of(layout)
  is_whole = len(listed) == len(layout["files"])
  return is_whole and all((job.out / name).is_file() for name in listed)


def print_skipped(skipped: list[Skipped]) -> None:
  """Says what of a folder is passed over, each file with its reason."""
  if not skipped:
    return
  print(f"passed over: {len(skipped)} file(s) or folder(s)")
  for path, reason in skipped[: photo_jobs.SHOWN_SKIPPED]:
    print(f"  {path}: {reason}")
  if len(skipped) > photo_jobs.SHOWN_SKIPPED:
    print(f"  ... and {len(skipped) - photo_jobs.SHOWN_SKIPPED} more")


def print_plan(
  config: PhotosConfig, usable: list[tuple[Job, dict[str, int]]], out: pathlib.Path
) -> None:
  """Says what will be reconstructed. usable: photos, each with object -> pixels of its mask."""
  count = sum(len(found) for _, found in usable)
  known = sum(job.pointmap is not None for job, _ in usable)
  print(
    f"plan: {count} object(s) of {len(usable)} photo(s), {known} with a point map; "
    f"{config.samples} sample(s) each, into {out}"
  )

  # The first photos, and of each the first objects.
  for job, found in usable[:SHOWN_PHOTOS]:
    named = [f"{name} ({pixels} px)" for name, pixels in found.items()]
    shown = ", ".join(named[:SHOWN_OBJECTS])
    more = ", ..." if len(named) > SHOWN_OBJECTS else ""
    print(f"  {job.image}: {shown}{more}")
  if len(usable) > SHOWN_PHOTOS:
    print(f"  ... and {len(usable) - SHOWN_PHOTOS} more photos")


def report(
  done: int, made: int, objects: int, predictor: Predictor, phases: Phases, out: pathlib.Path
) -> None:
  """Says what was made and where the time went, and keeps that as timing.json.

  done: photos that were done before. made, objects: photos of this run, and their objects.
  """
  # Where the time went; a run that found everything done keeps the times of the one before.
  compilations = len(predictor.programs)
  if made:
    timing = {
      "photos": made,
      "objects": objects,
      "seconds": rounded(phases.seconds),
      "cpu_seconds": rounded(phases.cpu_seconds),
      "compilations": compilations,
      "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
      "sampler": dataclasses.asdict(predictor.sampler),
    }
    atomic.write_json(out / "timing.json", timing)
    shown = ", ".join(f"{name} {value:.1f}" for name, value in phases.seconds.items())
    print(f"seconds: {shown}; {compilations} compilation(s)")

  # Where the results are.
  where = out if done + made == 1 else out / "<photo>"
  before = f", {done} photo(s) were done before" if done else ""
  print(
    f"{where}: {objects} object(s) of {made} photo(s){before}"
    "; meshes, layout.json, scene.glb, preview.png"
  )


def rounded(seconds: dict[str, float]) -> dict[str, float]:
  """Seconds to a millisecond."""
  return {name: round(value, 3) for name, value in seconds.items()}
