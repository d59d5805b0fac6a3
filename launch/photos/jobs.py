"""What launch.sample is asked to reconstruct: one photo by flags, or a folder of photos; read and
checked before a device is touched.

A folder given with --images holds one folder a photo,

    DIR/<name>/image.<jpg|png|...>            the photo
    DIR/<name>/<object>.png (or .npy)         a mask of each object; or
    DIR/<name>/labels.png (or .npy)           a label map; or neither: the photo's alpha channel
    DIR/<name>/pointmap.<npy|npz|exr>         optional; or depth.<png|tiff|exr|npy|npz>
    DIR/<name>/intrinsics.<json|txt|npy>      optional; needed with depth

or, beside them, photos whose alpha channel is the mask.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import pathlib

from launch.console.progress import Progress
from sam3d_jax.errors import InputError
from sam3d_jax.files import commands, photos, pointmaps
from sam3d_jax.files.photos import Photo

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".npy", ".bmp", ".tif", ".tiff")
SIDE_FILES = ("image", "labels", "pointmap", "depth", "intrinsics")
MADE_SUFFIX = ".npz"  # of the file that --pointmap_command is asked to write


@dataclasses.dataclass(frozen=True)
class Job:
  """The files of one photo and where its results go."""

  name: str
  image: pathlib.Path
  out: pathlib.Path
  masks: tuple[pathlib.Path, ...] = ()
  labels: pathlib.Path | None = None
  ids: tuple[int, ...] | None = None
  pointmap: pathlib.Path | None = None
  intrinsics: str | None = None
  frame: str = "pytorch3d"
  depth_unit: float = pointmaps.DEPTH_UNIT

  def digest(self) -> str:
    """Of everything that is read."""
    digest = hashlib.sha256(repr((self.ids, self.frame, self.depth_unit)).encode())
    for path in (self.image, *self.masks, self.labels, self.pointmap):
      if path is not None:
        digest.update(path.stem.encode() + hashlib.sha256(path.read_bytes()).digest())
    if self.intrinsics is not None:
      digest.update(repr(pointmaps.parse_intrinsics(self.intrinsics)).encode())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class PhotoSource:
  """Which photos, as launch.sample's flags of the same names say."""

  image: str | None = None
  images: str | None = None
  masks: tuple[str, ...] = ()
  labels: str | None = None
  ids: str | None = None
  pointmap: str | None = None
  intrinsics: str | None = None
  pointmap_frame: str = "pytorch3d"
  depth_unit: float = pointmaps.DEPTH_UNIT


def find(source: PhotoSource, out: pathlib.Path) -> list[Job]:
  """The jobs of a source, at least one. Raises InputError."""
  common = {"frame": source.pointmap_frame, "depth_unit": source.depth_unit}
  if source.image is not None:
    return [single_job(source, out, common)]
  folder = pathlib.Path(source.images)
  if not folder.is_dir():
    raise InputError(f"--images {folder} is not a folder")
  jobs: dict[str, Job] = {}
  for entry in sorted(folder.iterdir()):
    if entry.name.startswith("."):
      continue
    if entry.is_dir():
      job = folder_job(entry, out / entry.name, common)
    elif entry.suffix.lower() in PHOTO_SUFFIXES:
      job = Job(entry.stem, entry, out / entry.stem, intrinsics=source.intrinsics, **common)
    else:
      continue
    if job is not None and job.name in jobs:
      raise InputError(
        f"--images {folder}: {job.image} and {jobs[job.name].image} would both be named "
        f"{job.name}; rename one"
      )
    if job is not None:
      jobs[job.name] = job
  if not jobs:
    raise InputError(
      f"--images {folder} holds neither folders with a photo image.* nor photos "
      f"({', '.join(PHOTO_SUFFIXES)})"
    )
  return list(jobs.values())


def single_job(source: PhotoSource, out: pathlib.Path, common: dict) -> Job:
  """The job of a photo that is given by flags."""

  def path_of(value: str | None) -> pathlib.Path | None:
    return None if value is None else pathlib.Path(value)

  image = pathlib.Path(source.image)
  return Job(
    image.stem,
    image,
    out,
    masks=tuple(map(pathlib.Path, source.masks)),
    labels=path_of(source.labels),
    ids=None if source.ids is None else parse_ids(source.ids),
    pointmap=path_of(source.pointmap),
    intrinsics=source.intrinsics,
    **common,
  )


def parse_ids(text: str) -> tuple[int, ...]:
  """ "1,5,9" -> (1, 5, 9)."""
  try:
    ids = tuple(int(v) for v in text.split(","))
  except ValueError as error:
    raise InputError(f"--ids {text}: give whole numbers with commas between them") from error
  if min(ids) < 1:
    raise InputError(f"--ids {text}: ids are 1 and above, 0 is background")
  return tuple(dict.fromkeys(ids))


def folder_job(folder: pathlib.Path, out: pathlib.Path, common: dict) -> Job | None:
  """The job of DIR/<name>, None if it has no photo."""
  files = [f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.startswith(".")]
  images = [f for f in files if f.stem == "image" and f.suffix.lower() in PHOTO_SUFFIXES]
  if not images:
    return None
  if len(images) > 1:
    raise InputError(
      f"--images: {folder} has several photos {', '.join(f.name for f in images)}; keep one"
    )
  named = lambda stem: next((f for f in files if f.stem == stem), None)
  masks = [f for f in files if f.suffix.lower() in MASK_SUFFIXES and f.stem not in SIDE_FILES]
  labels, intrinsics = named("labels"), named("intrinsics")
  if labels is not None and masks:
    raise InputError(
      f"--images: {folder} has both {labels.name} and masks ({masks[0].name}, ...); keep one of "
      "the two"
    )
  return Job(
    folder.name,
    images[0],
    out,
    tuple(masks),
    labels,
    None,
    named("pointmap") or named("depth"),
    None if intrinsics is None else str(intrinsics),
    **common,
  )


def check_all(jobs: list[Job]) -> list[dict[str, int]]:
  """Reads every job once; object -> pixels of its mask, for each. Raises one InputError for all
  faults.
  """
  found, faults = [], []
  with Progress(len(jobs), "reading", "photos") as bar:
    for job in jobs:
      try:
        found.append({name: int(mask.sum()) for name, mask in read(job).masks.items()})
      except InputError as error:
        faults.append(str(error))
      bar.update()
  if faults:
    more = f"\n({len(faults)} of {len(jobs)} photos cannot be used)" if len(jobs) > 1 else ""
    raise InputError(
      "\n".join(faults[:20])
      + (f"\n... and {len(faults) - 20} more" if len(faults) > 20 else "")
      + more
    )
  return found


def read(job: Job) -> Photo:
  """Reads and checks the files of a job; a camera that nothing tells is assumed.

  Raises InputError.
  """
  photo = photos.read_photo(job.image)
  if job.labels is not None:
    photo = photo.with_labels(job.labels, job.ids)
  else:
    photo = photo.with_masks(job.masks)

  intrinsics = None if job.intrinsics is None else pointmaps.parse_intrinsics(job.intrinsics)
  if job.pointmap is not None:
    photo = photo.with_pointmap(
      job.pointmap, intrinsics=intrinsics, frame=job.frame, depth_unit=job.depth_unit
    )
    photos.check_cover(photo, job.pointmap)
  elif intrinsics is not None:
    photo = photo.with_camera(intrinsics)

  return photo.with_some_camera()


def make_pointmaps(jobs: Iterable[Job], command: str) -> list[Job]:
  """Runs the user's command for every photo without a point map; the jobs with what it made.

  In the command {image} is the photo, upright, as an RGB PNG, and {out} the file to write: any form
  that read_pointmap knows; a suffix that the command adds to the name is fine. Results are kept
  beside the others and made once.

  Raises InputError: the command fails or writes nothing.
  """
  estimator = commands.parse(command, "--pointmap_command")
  jobs, done = list(jobs), []
  with Progress(len(jobs), "point maps", "photos") as bar:
    for job in jobs:
      if job.pointmap is None:
        job = dataclasses.replace(job, pointmap=make_pointmap(job, estimator))
      done.append(job)
      bar.update()
  return done


def make_pointmap(job: Job, estimator: commands.PhotoCommand) -> pathlib.Path:
  """Runs the command for one photo; the file it made, now or earlier."""
  image = photos.read_photo(job.image).image_HW3
  identity = repr((image.shape, list(estimator.words)))
  key = hashlib.sha256(image.tobytes() + identity.encode()).hexdigest()[:12]
  return estimator.make_once(
    image, job.out, f"pointmap_{key}", suffix=MADE_SUFFIX, photo=str(job.image)
  )
