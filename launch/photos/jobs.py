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
from sam3d_jax.files import camera_files, commands, photos, pointmaps
from sam3d_jax.files.photos import Photo

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".npy", ".bmp", ".tif", ".tiff")
SIDE_FILES = ("image", "labels", "pointmap", "depth", "intrinsics")
MADE_SUFFIX = ".npz"  # of the file that --pointmap_command is asked to write
SHOWN_FAULTS = 20  # of photos that cannot be used


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
  mask_orientation: str | None = None
  channels: tuple[str, ...] = ()

  def digest(self) -> str:
    """Of everything that is read."""
    how_read = [self.ids, self.frame, self.depth_unit]
    # Later settings count where they are given, so that older results stay valid.
    if self.mask_orientation is not None:
      how_read.append(self.mask_orientation)
    if self.channels:
      how_read.append(self.channels)
    digest = hashlib.sha256(repr(tuple(how_read)).encode())
    for path in (self.image, *self.masks, self.labels, self.pointmap):
      if path is None:
        continue
      # The stem counts, because it names the object.
      contents = hashlib.sha256(path.read_bytes())
      digest.update(path.stem.encode())
      digest.update(contents.digest())
    if self.intrinsics is not None:
      numbers = camera_files.parse_intrinsics(self.intrinsics)
      digest.update(repr(numbers).encode())
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
  mask_orientation: str | None = None
  pointmap_channels: str | None = None


def find(source: PhotoSource, out: pathlib.Path) -> list[Job]:
  """The jobs of a source, at least one. Raises InputError."""
  common = {
    "frame": source.pointmap_frame,
    "depth_unit": source.depth_unit,
    "mask_orientation": source.mask_orientation,
    "channels": parse_channels(source.pointmap_channels),
  }
  if source.image is not None:
    return [single_job(source, out, common)]

  folder = pathlib.Path(source.images)
  if not folder.is_dir():
    raise InputError(f"--images {folder} is not a folder")
  jobs: dict[str, Job] = {}
  for entry in sorted(folder.iterdir()):
    # A folder may be a photo with its files, a file may be a photo with an alpha channel.
    if entry.name.startswith("."):
      continue
    if entry.is_dir():
      job = folder_job(entry, out / entry.name, common)
    elif entry.suffix.lower() in PHOTO_SUFFIXES:
      job = Job(
        entry.stem,
        entry,
        out / entry.stem,
        intrinsics=source.intrinsics,
        **common,
      )
    else:
      continue
    if job is None:
      continue

    # Two photos must not write into one folder.
    if job.name in jobs:
      raise InputError(
        f"--images {folder}: {job.image} and {jobs[job.name].image} would both be named "
        f"{job.name}; rename one"
      )
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

  # Its results go into the folder itself, not into one of its name.
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


def parse_channels(text: str | None) -> tuple[str, ...]:
  """ "P.X,P.Y,P.Z" -> ("P.X", "P.Y", "P.Z")."""
  if text is None:
    return ()
  channels = tuple(word.strip() for word in text.split(","))
  if len(channels) not in (1, 3) or not all(channels):
    raise InputError(
      f"--pointmap_channels {text}: give one channel of depth, or three of points with commas "
      "between them"
    )
  return channels


def parse_ids(text: str) -> tuple[int, ...]:
  """ "1,5,9" -> (1, 5, 9)."""
  words = text.split(",")
  try:
    ids = [int(word) for word in words]
  except ValueError as error:
    raise InputError(f"--ids {text}: give whole numbers with commas between them") from error
  if min(ids) < 1:
    raise InputError(f"--ids {text}: ids are 1 and above, 0 is background")
  return tuple(dict.fromkeys(ids))


def folder_job(folder: pathlib.Path, out: pathlib.Path, common: dict) -> Job | None:
  """The job of DIR/<name>, None if it has no photo."""
  # What the names of the files say they are.
  images = []
  masks = []
  others: dict[str, pathlib.Path] = {}
  for file in sorted(folder.iterdir()):
    if not file.is_file() or file.name.startswith("."):
      continue
    suffix = file.suffix.lower()
    if file.stem == "image" and suffix in PHOTO_SUFFIXES:
      images.append(file)
    if file.stem in SIDE_FILES:
      others.setdefault(file.stem, file)
    elif suffix in MASK_SUFFIXES:
      masks.append(file)

  # One photo, one kind of masks.
  if not images:
    return None
  if len(images) > 1:
    names = ", ".join(file.name for file in images)
    raise InputError(f"--images: {folder} has several photos {names}; keep one")
  labels = others.get("labels")
  if labels is not None and masks:
    raise InputError(
      f"--images: {folder} has both {labels.name} and masks ({masks[0].name}, ...); keep one of "
      "the two"
    )

  intrinsics = others.get("intrinsics")
  return Job(
    folder.name,
    images[0],
    out,
    masks=tuple(masks),
    labels=labels,
    pointmap=others.get("pointmap") or others.get("depth"),
    intrinsics=None if intrinsics is None else str(intrinsics),
    **common,
  )


def check_all(jobs: list[Job]) -> list[dict[str, int]]:
  """Reads every job once; object -> pixels of its mask, for each. Raises one InputError for all
  faults.
  """
  found = []
  faults = []
  with Progress(len(jobs), "reading", "photos") as bar:
    for job in jobs:
      try:
        photo = read(job)
        found.append({name: int(mask.sum()) for name, mask in photo.masks.items()})
      except InputError as error:
        faults.append(str(error))
      bar.update()
  if not faults:
    return found

  # All faults at once, but not more than can be read.
  lines = faults[:SHOWN_FAULTS]
  if len(faults) > SHOWN_FAULTS:
    lines.append(f"... and {len(faults) - SHOWN_FAULTS} more")
  if len(jobs) > 1:
    lines.append(f"({len(faults)} of {len(jobs)} photos cannot be used)")
  raise InputError("\n".join(lines))


def read(job: Job) -> Photo:
  """Reads and checks the files of a job; a camera that nothing tells is assumed.

  Raises InputError.
  """
  # Masks from the label map, from files, or from the alpha channel.
  photo = photos.read_photo(job.image, mask_orientation=job.mask_orientation)
  if job.labels is not None:
    photo = photo.with_labels(job.labels, job.ids)
  else:
    photo = photo.with_masks(job.masks)

  # A point map may bring the camera, or need it.
  intrinsics = None
  if job.intrinsics is not None:
    intrinsics = camera_files.parse_intrinsics(job.intrinsics)
  if job.pointmap is not None:
    photo = photo.with_pointmap(
      job.pointmap,
      intrinsics=intrinsics,
      intrinsics_name=f"--intrinsics {job.intrinsics}",
      frame=job.frame,
      depth_unit=job.depth_unit,
      channels=job.channels,
    )
    photos.check_cover(photo, job.pointmap)
  elif intrinsics is not None:
    name = f"--intrinsics {job.intrinsics}"
    camera = camera_files.of_picture(intrinsics, photo.size, name)
    photo = photo.with_camera(camera)
  return photo.with_some_camera()


def make_pointmaps(jobs: Iterable[Job], command: str) -> list[Job]:
  """Runs the user's command for every photo without a point map; the jobs with what it made.

  In the command {image} is the photo, upright, as an RGB PNG, and {out} the file to write: any form
  that read_pointmap knows; a suffix that the command adds to the name is fine. Results are kept
  beside the others and made once.

  Raises InputError: the command fails or writes nothing.
  """
  # A point map that is given stays.
  estimator = commands.parse(command, "--pointmap_command")
  jobs = list(jobs)
  done = []
  with Progress(len(jobs), "point maps", "photos") as bar:
    for job in jobs:
      if job.pointmap is None:
        made = make_pointmap(job, estimator)
        job = dataclasses.replace(job, pointmap=made)
      done.append(job)
      bar.update()
  return done


def make_pointmap(job: Job, estimator: commands.PhotoCommand) -> pathlib.Path:
  """Runs the command for one photo; the file it made, now or earlier."""
  image = photos.read_photo(job.image).image_HW3
  # Named by picture and command: one that is there was made of these.
  identity = repr((image.shape, list(estimator.words)))
  digest = hashlib.sha256(image.tobytes() + identity.encode())
  key = digest.hexdigest()[:12]
  return estimator.make_once(
    image,
    job.out,
    f"pointmap_{key}",
    suffix=MADE_SUFFIX,
    photo=str(job.image),
  )
