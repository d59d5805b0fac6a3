"""What launch.sample is asked to reconstruct: one photo by flags, or a folder of photos; read and
checked before a device is touched.

A folder given with --images holds one folder a photo,

    DIR/<name>/image.<jpg|png|...>            the photo
    DIR/<name>/<object>.png (or .npy)         a mask of each object; or
    DIR/<name>/labels.png (or .npy)           a label map; or neither: the photo's alpha channel
    DIR/<name>/pointmap.<npy|npz|exr>         optional; or depth.<png|tiff|exr|npy|npz>
    DIR/<name>/intrinsics.<json|txt|npy>      optional; needed with depth

or, beside them, photos whose alpha channel is the mask. What is none of these is passed over, each
file with the reason.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from data_pipelines.build import limited
from launch.console.notes import noted
from launch.console.progress import Progress
from launch.console.refusals import Refusals
from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import (
  blame,
  camera_files,
  commands,
  folders,
  images,
  mask_files,
  photos,
  pointmaps,
)
from sam3d_jax.files.photos import Photo

COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
RARE_SUFFIXES = (
  *(".avif", ".heic", ".heif", ".hif"),
  *(".jpe", ".jfif", ".mpo", ".jp2", ".gif", ".tga", ".ppm", ".pgm"),
)
PHOTO_SUFFIXES = COMMON_SUFFIXES + RARE_SUFFIXES
MASK_SUFFIXES = (".png", ".npy", ".bmp", ".tif", ".tiff")
# Pictures beside a photo that may be masks or may be pictures: what they hold tells.
MAYBE_MASK_SUFFIXES = tuple(sorted(set(PHOTO_SUFFIXES) - set(MASK_SUFFIXES)))
COLMAP_CAMERAS = "cameras.txt"
SIDE_FILES = ("image", "labels", "pointmap", "depth", "intrinsics")
HIDDEN = "hidden, or another system's"
MADE_SUFFIX = ".npz"  # of the file that --pointmap_command is asked to write
SHOWN_FAULTS = 20  # of photos that cannot be used
SHOWN_SKIPPED = 100  # files that are passed over


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


class Skipped(NamedTuple):
  """A file or folder that is passed over, and why."""

  path: pathlib.Path
  reason: str


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


def find(source: PhotoSource, out: pathlib.Path) -> tuple[list[Job], list[Skipped]]:
  """The jobs of a source, at least one, and what of a folder is passed over. Raises InputError."""
  common = {
    "intrinsics": source.intrinsics,
    "frame": source.pointmap_frame,
    "depth_unit": source.depth_unit,
    "mask_orientation": source.mask_orientation,
    "channels": parse_channels(source.pointmap_channels),
  }
  if source.image is not None:
    return [single_job(source, out, common)], []

  folder = pathlib.Path(source.images)
  if not folder.is_dir():
    raise InputError(f"--images {folder} is not a folder")
  jobs: dict[str, Job] = {}
  skipped: list[Skipped] = []
  for entry in sorted(folder.iterdir()):
    # A folder may be a photo with its files, a file may be a photo with an alpha channel.
    suffix = entry.suffix.lower()
    if is_hidden(entry):
      skipped.append(Skipped(entry, HIDDEN))
      continue
    if entry.is_dir():
      job = folder_job(entry, out / entry.name, common, skipped)
    elif suffix in PHOTO_SUFFIXES:
      job = Job(entry.stem, entry, out / entry.stem, **common)
    else:
      skipped.append(Skipped(entry, why_no_photo(entry)))
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
    listed = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:SHOWN_FAULTS])
    raise InputError(
      f"--images {folder} holds neither folders with a photo image.* nor photos "
      f"({', '.join(PHOTO_SUFFIXES)}){listed}"
    )
  return list(jobs.values()), skipped


def is_hidden(path: pathlib.Path) -> bool:
  """Whether a file or folder is hidden, or another system's."""
  return path.name.startswith(".") or folders.is_foreign(path.name)


def why_no_photo(file: pathlib.Path) -> str:
  """Why a file is not taken for a photo, by its name."""
  if file.name == COLMAP_CAMERAS:
    return "COLMAP's cameras: put that of a photo beside it as DIR/<name>/intrinsics.txt"
  suffix = file.suffix.lower()
  if suffix in images.RAW_SUFFIXES:
    return "a camera's raw file is not read; develop it to JPEG or PNG"
  if suffix == ".jxl":
    return "JPEG XL is not read; save it as JPEG or PNG"
  return f"no picture by its suffix ({suffix or 'none'})"


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


def folder_job(
  folder: pathlib.Path, out: pathlib.Path, common: dict, skipped: list[Skipped]
) -> Job | None:
  """The job of DIR/<name>, None if it has no photo. Adds to `skipped` what it passes over."""
  # What the names of the files say they are.
  photos_found = []
  masks = []
  sides: dict[str, pathlib.Path] = {}
  for file in sorted(folder.iterdir()):
    suffix = file.suffix.lower()
    reason = None
    if is_hidden(file):
      reason = HIDDEN
    elif file.is_dir():
      reason = "a folder within a photo's folder"
    elif file.stem == "image" and suffix in PHOTO_SUFFIXES:
      photos_found.append(file)
    elif file.stem == "image":
      reason = why_no_photo(file)
    elif file.stem in SIDE_FILES:
      taken = sides.setdefault(file.stem, file)
      if taken != file:
        reason = f"{taken.name} is read in its place"
    elif suffix in MASK_SUFFIXES:
      masks.append(file)
    elif suffix in MAYBE_MASK_SUFFIXES:
      reason = why_no_mask(file)
      if reason is None:
        masks.append(file)
    else:
      reason = why_no_photo(file)
    if reason is not None:
      skipped.append(Skipped(file, reason))

  # One photo; of two formats of one the common one.
  if not photos_found:
    skipped.append(Skipped(folder, "a folder without a photo named image.*"))
    return None
  common_ones = [file for file in photos_found if file.suffix.lower() in COMMON_SUFFIXES]
  if len(common_ones) == 1:
    (image,) = common_ones
    for file in photos_found:
      if file != image:
        skipped.append(Skipped(file, f"{image.name} is read in its place"))
  elif len(photos_found) == 1:
    (image,) = photos_found
  else:
    names = ", ".join(file.name for file in photos_found)
    raise InputError(f"--images: {folder} has several photos {names}; keep one")

  # One kind of masks, one point map.
  labels = sides.get("labels")
  if labels is not None and masks:
    raise InputError(
      f"--images: {folder} has both {labels.name} and masks ({masks[0].name}, ...); keep one of "
      "the two"
    )
  pointmap = sides.get("pointmap")
  depth = sides.get("depth")
  if pointmap is None:
    pointmap = depth
  elif depth is not None:
    skipped.append(Skipped(depth, f"{pointmap.name} is read in its place"))

  # Intrinsics of its own go before those of the flag.
  files = {"masks": tuple(masks), "labels": labels, "pointmap": pointmap}
  intrinsics = sides.get("intrinsics")
  if intrinsics is not None:
    files["intrinsics"] = str(intrinsics)
  return Job(folder.name, image, out, **(common | files))


def why_no_mask(path: pathlib.Path) -> str | None:
  """Why a picture beside a photo is not taken for a mask; None if it is."""
  try:
    picture = images.open_image(path, "mask")
  except InputError as error:
    return f"not read as a mask ({error})"
  if mask_files.is_mask_like(picture):
    return None
  return "no mask: it has more than two values"


def check_all(
  jobs: list[Job], limits: limited.Limits, refusals: Refusals
) -> list[tuple[Job, dict[str, int]]]:
  """Reads every job once: those that can be used, each with object -> pixels of its mask."""
  found = []
  with Progress(len(jobs), "reading", "photos") as bar, noted():
    for job in jobs:
      with refusals.input(job.image):
        pixels = limited.call(limits, pixels_of, job)
        found.append((job, pixels))
      bar.update()
  return found


def pixels_of(job: Job) -> dict[str, int]:
  """Object -> pixels of its mask. Raises as `read`."""
  photo = read(job)
  return {name: int(np.count_nonzero(mask)) for name, mask in photo.masks.items()}


def read(job: Job) -> Photo:
  """Reads and checks the files of a job; a camera that nothing tells is assumed.

  Raises InputError; JobFailed for a disk that fails, or a file that may not be read.
  """
  try:
    return read_files(job)
  except OSError as error:
    raise JobFailed(str(blame.explained(error, job.image))) from error


def read_files(job: Job) -> Photo:
  """As `read`; what the system says of a file that is not to blame, as it says it."""
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


def make_pointmaps(
  jobs: Iterable[Job], command: str, limits: limited.Limits, refusals: Refusals
) -> list[Job]:
  """Runs the user's command for every photo without a point map; the jobs with what it made, but
  those for which it made nothing.

  In the command {image} is the photo, upright, as an RGB PNG, and {out} the file to write: any form
  that read_pointmap knows; a suffix that the command adds to the name is fine. Results are kept
  beside the others and made once.

  Raises ConfigError: the command is none.
  """
  # A point map that is given stays.
  estimator = commands.parse(command, "--pointmap_command")
  jobs = list(jobs)
  done = []
  with Progress(len(jobs), "point maps", "photos") as bar:
    for job in jobs:
      with refusals.input(job.image):
        if job.pointmap is None:
          made = make_pointmap(job, estimator, limits)
          job = dataclasses.replace(job, pointmap=made)
        done.append(job)
      bar.update()
  return done


def picture_of(path: pathlib.Path) -> np.ndarray:
  """(H, W, 3) uint8 of a photo. Raises InputError."""
  return photos.read_photo(path).image_HW3


def make_pointmap(
  job: Job, estimator: commands.PhotoCommand, limits: limited.Limits
) -> pathlib.Path:
  """Runs the command for one photo; the file it made, now or earlier.

  Raises InputError, Refused.
  """
  image = limited.call(limits, picture_of, job.image)
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
