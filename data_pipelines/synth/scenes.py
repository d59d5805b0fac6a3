"""Photographs to paste into: a folder of photos with masks and point maps, or procedural rooms.

    <scene>/image.jpg                 the photo (any format of images.py); a licence may lie beside
                                      it as image.jpg.license
    <scene>/0.png, 1.png, ...         masks of its objects, size of the photo
    <scene>/pointmap.{npz,npy,exr}    optional: points or depth as pointmaps.py reads them, or
                                      depth.{png,tiff,exr,npy,npz}
    <scene>/intrinsics.{json,txt,npy} optional: fx fy cx cy of that map, in its pixels; needed for
                                      depth without its own
    <anything else>.jpg               a photo by itself, in a folder that is no scene: a background

Scenes lie at any depth. Where a photo has no point map, an estimator can make it: `depth_command`
is run with {image}, the upright photo as PNG, and {out} replaced by file names and has to write
{out}, a .npz for pointmaps.py; its results are kept in `depth_cache`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

import cv2
import numpy as np
from PIL import Image

from data_pipelines.format import schema
from data_pipelines.synth import assets, procedural_scenes, sources
from data_pipelines.synth.scene import Scene
from data_pipelines.synth.sources import PROCEDURAL, Input
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError, Refused
from sam3d_jax.files import (
  camera_files,
  commands,
  folders,
  images,
  mask_files,
  photos,
  pointmaps,
)
from sam3d_jax.geometry import cameras

SUFFIXES = (
  *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"),
  *(".avif", *images.HEIF_SUFFIXES),
)
# photos that no reader here knows
UNREAD = (*images.RAW_SUFFIXES, ".jxl", ".gif", ".psd", ".mp4", ".mov")
POINTMAP_NAMES = (
  "pointmap.npz",
  "pointmap.npy",
  "pointmap.exr",
  "depth.npz",
  "depth.npy",
  "depth.exr",
  "depth.png",
  "depth.tiff",
)
INTRINSICS_NAMES = ("intrinsics.json", "intrinsics.txt", "intrinsics.npy")
MIN_SIDE = 32  # pixels of a photo that is worth pasting into


@dataclasses.dataclass(frozen=True)
class PhotoConfig:
  """`source` is a folder laid out as above or "procedural": `count` rooms. `image_size` is the
  longer side of the photos that are used.
  """

  source: str
  seed: int = 0
  count: int = 24
  image_size: int = 518
  frame: str = "pytorch3d"  # of point maps, one of cameras.AXES
  depth_unit: float = pointmaps.DEPTH_UNIT  # of integer depth maps, metres
  depth_command: str = ""
  depth_cache: str = ""
  license: str = "unknown"  # of photos without a licence beside them

  def __post_init__(self):
    sections.check_choice(self, "frame", cameras.AXES)
    sections.check_positive(self, "depth_unit", "image_size")


@dataclasses.dataclass(frozen=True)
class Files:
  """What a scene is made of on disk."""

  image: pathlib.Path
  masks: tuple[pathlib.Path, ...] = ()
  pointmap: pathlib.Path | None = None
  intrinsics: pathlib.Path | None = None
  # fx, fy, cx, cy in pixels of the photo, where it is known
  camera: tuple[float, float, float, float] | None = None
  frame: str = ""  # of the point map; empty: as configured


def list_scenes(config: PhotoConfig) -> list[Input]:
  """Every photo in the order of its identity. Raises ConfigError if there are none."""
  if config.source == PROCEDURAL:
    return _list_rooms(config)
  root = pathlib.Path(config.source)
  if not config.source or not root.is_dir():
    raise ConfigError(
      f"photos.source = {config.source!r} is not a folder; give --config.photos.source=DIR with "
      f"photos, or {PROCEDURAL!r} for synthetic rooms"
    )
  if config.frame not in cameras.AXES:
    known = ", ".join(cameras.AXES)
    raise ConfigError(f"photos.frame = {config.frame!r} is not one of {known}")

  # In the folder of a scene only the photo counts: the other pictures are its masks and maps.
  pictures = []
  files = sources.files_below(root)
  for path in files:
    if path.suffix.lower() in SUFFIXES:
      pictures.append(path)
  scene_folders = {path.parent for path in pictures if path.stem == "image"}
  items = []
  for path in pictures:
    if path.stem == "image" or path.parent not in scene_folders:
      name = folders.shown(path.relative_to(root))
      items.append(Input(name, sources.file_digest(path)))
  folders.tell_unread(root, files, UNREAD)
  if not items:
    suffixes = ", ".join(SUFFIXES)
    raise ConfigError(f"photos.source = {config.source!r} holds no photos ({suffixes})")
  return sorted(items, key=lambda item: (item.identity, item.name))


def license_warning(config: PhotoConfig, items: Sequence[Input]) -> tuple[str, ...]:
  """What to say of photos whose licence nothing states; nothing if all have one."""
  if config.source == PROCEDURAL or config.license not in sources.UNSTATED:
    return ()
  unstated = []
  for item in items:
    image = folders.located(config.source, item.name)
    if not image.with_name(image.name + ".license").is_file():
      unstated.append(item.name)
  remedy = "with FILE.license beside the photo"
  return sources.unlicensed(
    "photos", unstated, len(items), config.license, "photos.license", remedy
  )


def _list_rooms(config: PhotoConfig) -> list[Input]:
  """Procedural rooms in the order of their identity."""
  if config.count <= 0:
    raise ConfigError(f"photos.count = {config.count}: it must be positive")
  rooms = []
  for i in range(config.count):
    name = f"room-{i}"
    made_of = f"{config.seed} {name}"
    identity = sources.short_digest(made_of.encode())
    rooms.append(Input(name, identity))
  return sorted(rooms, key=lambda room: room.identity)


def find_files(root: pathlib.Path, name: str) -> Files:
  """The files of the scene whose photo is `name`, relative to `root`."""
  image = folders.located(root, name)
  folder = image.parent
  if image.stem != "image":
    return Files(image)
  # Masks are numbered; 10 comes after 9.
  numbered = []
  for path in folder.iterdir():
    is_png = path.suffix.lower() == ".png"
    if is_png and path.stem.isdigit():
      numbered.append(path)
  masks = sorted(numbered, key=lambda path: int(path.stem))
  return Files(
    image=image,
    masks=tuple(masks),
    pointmap=_first_file(folder, POINTMAP_NAMES),
    intrinsics=_first_file(folder, INTRINSICS_NAMES),
  )


def _first_file(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
  for name in names:
    path = folder / name
    if path.is_file():
      return path
  return None


def content_digest(config: PhotoConfig, items: list[Input]) -> str:
  """Changes when a photo, a mask or a point map is added, removed, renamed or altered."""
  if config.source == PROCEDURAL:
    return sources.digest(items)
  root = pathlib.Path(config.source)
  # A photo's own digest, and those of what lies beside it.
  lines = []
  for item in items:
    lines.append(f"{item.name} {item.identity}")
    files = find_files(root, item.name)
    for path in (*files.masks, files.pointmap, files.intrinsics):
      if path is not None:
        lines.append(f"{path.name} {sources.file_digest(path)}")
  text = "\n".join(lines)
  return sources.short_digest(text.encode())


def has_depth(config: PhotoConfig, item: Input) -> bool:
  """Whether the scene has a point map or can be given one."""
  if config.source == PROCEDURAL or config.depth_command:
    return True
  files = find_files(pathlib.Path(config.source), item.name)
  return files.pointmap is not None


def load(config: PhotoConfig, item: Input, report: Callable[[str, str, str], None]) -> Scene:
  """The scene at its working size; see `read`."""
  if config.source == PROCEDURAL:
    index = int(item.name.rpartition("-")[2])
    room = procedural_scenes.make_room(config.seed, index, config.image_size)
    return room.scene
  files = find_files(pathlib.Path(config.source), item.name)
  return read(config, item, files, report)


def load_reporting(
  config: PhotoConfig, item: Input
) -> tuple[Scene, tuple[tuple[str, str, str], ...]]:
  """As `load`, with what it reports."""
  reports: list[tuple[str, str, str]] = []

  def report(path: str, reason: str, detail: str) -> None:
    reports.append((path, reason, detail))

  return load(config, item, report), tuple(reports)


def read(
  config: PhotoConfig, item: Input, files: Files, report: Callable[[str, str, str], None]
) -> Scene:
  """The scene at its working size. `report(path, reason, detail)` is told of masks and point maps
  that cannot be used and are left out (bad_mask, bad_pointmap).

  Raises Refused with reason bad_image, small_image or unreadable (its licence); InputError if the
  estimator fails.
  """
  try:
    photo = photos.read_photo(files.image)
  except InputError as error:
    raise Refused("bad_image", str(error)) from error
  height, width = photo.size
  if min(height, width) < MIN_SIDE:
    detail = f"{files.image} is {width} x {height} pixels; {MIN_SIDE} a side are needed"
    raise Refused("small_image", detail)

  # Larger photos are reduced to the working size, and what belongs to them with them.
  longer = max(height, width)
  by = min(1.0, config.image_size / longer)
  shown_height = max(1, round(height * by))
  shown_width = max(1, round(width * by))
  shown = (shown_height, shown_width)
  image = _resized(photo.image_HW3, shown)
  masks = [_read_mask(photo, path, shown, report) for path in files.masks]
  points, camera = None, None
  try:
    points, camera = _read_pointmap(
      config,
      item,
      files,
      photo,
      shown,
    )
  except Refused as error:
    # Without its point map the photo is still a background.
    blamed = files.pointmap or files.image
    report(str(blamed), error.reason, error.detail)

  # A licence beside the photo goes before the configured one.
  license_file = files.image.with_name(files.image.name + ".license")
  license = config.license
  if license_file.is_file():
    license = assets.read_license(license_file)
  return Scene(
    name=item.name,
    image_HW3=image,
    masks=tuple(masks),
    pointmap_HW3=points,
    camera=camera,
    license=license,
  )


def _resized(image_HW3: np.ndarray, shown: tuple[int, int]) -> np.ndarray:
  """The photo at the working size (height, width)."""
  if image_HW3.shape[:2] == shown:
    return image_HW3
  height, width = shown
  photo = Image.fromarray(image_HW3)
  resized = photo.resize((width, height), Image.Resampling.LANCZOS)
  return np.asarray(resized)


def _read_mask(photo: photos.Photo, path: pathlib.Path, shown, report) -> np.ndarray | None:
  """The mask at the working size; None, and reported, if it is unusable."""
  height, width = shown
  try:
    mask = photo.read_mask(path)
    # How much of each pixel is object: half of it makes a pixel.
    share = cv2.resize(
      mask.astype(np.float32),
      (width, height),
      interpolation=cv2.INTER_AREA,
    )
    return mask_files.check_mask(share >= 0.5, f"mask {path}, reduced,")
  except InputError as error:
    report(str(path), "bad_mask", str(error))
    return None


def _read_pointmap(config: PhotoConfig, item: Input, files: Files, photo: photos.Photo, shown):
  """(points of every pixel at the working size, camera); None, None where there is no point map.

  Each pixel takes the depth of the map's pixel that it falls into and is put on its own ray again,
  so that points project exactly. Raises Refused (bad_pointmap); InputError if the estimator fails.
  """
  path = files.pointmap
  if path is None and config.depth_command:
    path = _estimated(config, item, photo)
  if path is None:
    return None, None

  # The map and the camera that it was taken with.
  intrinsics = None
  try:
    if files.intrinsics is not None:
      intrinsics = camera_files.parse_intrinsics(str(files.intrinsics), "intrinsics")
    elif files.camera is not None:
      photo = photo.with_camera(files.camera)
    photo = photo.with_pointmap(
      path,
      intrinsics=intrinsics,
      intrinsics_name=f"intrinsics {files.intrinsics}",
      frame=files.frame or config.frame,
      depth_unit=config.depth_unit,
    )
  except InputError as error:
    raise Refused("bad_pointmap", str(error)) from error
  found = photo.pointmap_camera
  if found is None:
    detail = f"{path}: no pinhole camera fits its points; give intrinsics beside it"
    raise Refused("bad_pointmap", detail)

  # That camera at the working size.
  shown_height, shown_width = shown
  height, width = photo.pointmap_HW3.shape[:2]
  camera = cameras.Camera(
    fx=found.fx * shown_width / width,
    fy=found.fy * shown_height / height,
    cx=found.cx * shown_width / width,
    cy=found.cy * shown_height / height,
    width=shown_width,
    height=shown_height,
  )

  # Depths at the pixels' centres, back on their rays; what half precision cannot hold is unknown.
  row_centres = np.arange(shown_height) + 0.5
  column_centres = np.arange(shown_width) + 0.5
  rows = row_centres * height / shown_height
  columns = column_centres * width / shown_width
  rows = rows.astype(int)
  columns = columns.astype(int)
  depth = photo.pointmap_HW3[rows[:, None], columns, 2]
  points = cameras.pointmap_from_depth(depth, camera)
  points = points.astype(np.float32)
  beyond = np.abs(points) > schema.POINTMAP_MAX
  points[beyond.any(-1)] = np.nan
  return points, camera


def _estimated(config: PhotoConfig, item: Input, photo: photos.Photo) -> pathlib.Path:
  """The point map that `depth_command` makes of the photo, made once.

  Raises InputError if the command fails.
  """
  # Kept under a name that another photo or another command does not have.
  estimator = commands.parse(config.depth_command, "photos.depth_command")
  made_of = f"{config.depth_command} {item.identity}"
  name = sources.short_digest(made_of.encode())
  return estimator.make_once(
    photo.image_HW3,
    pathlib.Path(config.depth_cache),
    name,
    suffix=".npz",
    photo=str(photo.path),
  )
