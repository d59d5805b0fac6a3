"""Pictures and turntables of a file: which camera looks, and what is written."""

import dataclasses
import pathlib

import cv2
import numpy as np
from PIL import Image

from launch.pictures import subjects
from launch.pictures.subjects import Look
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic, view_files
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import preview

SIDE = 512  # pixels, where nothing is said
MARGIN = 1.05  # around what is looked at
NEAR_SHARE = 0.1  # of the distance: splats nearer than that are not drawn, as `near` says at most
WEBP_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class RenderSpec:
  """What is drawn, from where, and what is written."""

  input: pathlib.Path
  out: pathlib.Path
  look: Look
  camera: pathlib.Path | None = None  # None: from `azimuth` and `elevation` (degrees)
  width: int | None = None
  height: int | None = None
  depth: pathlib.Path | None = None
  frames: int = 1
  fps: float = 24.0
  azimuth: float = 30.0
  elevation: float = 20.0
  fov: float = 40.0  # degrees, of the shorter side
  up: str | None = None  # None: as the format says
  dry_run: bool = False


def run(spec: RenderSpec) -> None:
  """Draws and writes. Raises InputError for what cannot be drawn."""
  # From where; a camera file is checked before anything large is read.
  view = None
  if spec.camera is not None:
    view = view_files.read(spec.camera)
    camera = of_file(view.intrinsics, spec)
  else:
    camera = from_around(spec)
  subject = subjects.load(spec.input, spec.look)
  if spec.up is not None:
    subject.up = spec.up
  poses = [view.pose] if view is not None else orbit(subject, spec)

  what = f"{spec.input}: {subject.kind}, {camera.width} x {camera.height} pixels"
  count = "one picture" if len(poses) == 1 else f"{len(poses)} frames"
  print(f"{what}, {count} -> {spec.out}")
  if spec.dry_run:
    return

  drawn = [subject.draw(camera, where) for where in poses]
  frames = [picture.rgb_HW3 for picture in drawn]
  write(spec.out, frames, spec.fps)
  if spec.depth is not None:
    depth = drawn[0].depth_HW.astype(np.float32)
    with atomic.write(spec.depth) as temporary:
      np.save(temporary, depth)
    seen = np.isfinite(depth).mean()
    print(f"depth, known in {seen:.0%} of the pixels -> {spec.depth}")


# --- Cameras --------------------------------------------------------------------------------------


def of_file(stated, spec: RenderSpec) -> Camera:
  """The camera of a file in the size that is asked for. Raises InputError."""
  name = f"--camera {spec.camera}"
  if isinstance(stated, Camera):
    width = spec.width or stated.width
    height = spec.height or stated.height
    if (width, height) == (stated.width, stated.height):
      return stated
    same_aspect = abs(width * stated.height - height * stated.width) < max(width, height)
    if not same_aspect:
      raise InputError(
        f"{name} is of {stated.width} x {stated.height} pixels, --width {width} --height {height} "
        "has another aspect: give both or neither in its aspect"
      )
    return cameras.resized(stated, width, height)
  if spec.width is None or spec.height is None:
    raise InputError(f"{name} states no width and height: add them, or give --width and --height")
  return Camera(*stated, spec.width, spec.height)


def from_around(spec: RenderSpec) -> Camera:
  """The camera that goes around."""
  width = spec.width or spec.height or SIDE
  height = spec.height or spec.width or SIDE
  shorter = min(width, height)
  square = cameras.camera_from_fov(shorter, shorter, np.radians(spec.fov))
  return Camera(
    fx=square.fx,
    fy=square.fy,
    cx=width / 2,
    cy=height / 2,
    width=width,
    height=height,
  )


def orbit(subject, spec: RenderSpec) -> list[Pose]:
  """Places around the box of what is looked at, from which all of it is seen."""
  low, high = subject.box()
  centre = (low + high) / 2
  radius = max(np.linalg.norm(high - low) / 2, 1e-6)
  distance = MARGIN * radius / np.sin(np.radians(spec.fov) / 2)
  # Nothing of a small object is to be cut off.
  near = min(spec.look.near, NEAR_SHARE * distance)
  subject.look = dataclasses.replace(spec.look, near=near)

  # Rows of the file's points turn to z up by this matrix, columns by its transpose.
  to_z_up = subjects.TO_Z_UP[subject.up].T
  poses = []
  for number in range(spec.frames):
    azimuth = spec.azimuth + 360.0 * number / spec.frames
    rotation = preview.orbit(azimuth, spec.elevation) @ to_z_up
    before = np.array([0.0, 0.0, distance])
    poses.append(
      Pose(
        rotation=rotation,
        translation=before - rotation @ centre,
        scale=np.ones(3),
      )
    )
  return poses


# --- Files ----------------------------------------------------------------------------------------


def write(path: pathlib.Path, frames: list[np.ndarray], fps: float) -> None:
  """One picture, or several as an animation, whole or not at all. Raises InputError."""
  suffix = path.suffix.lower()
  with atomic.write(path) as temporary:
    if suffix == ".mp4":
      _write_video(temporary, frames, fps)
      return
    first, *others = [Image.fromarray(frame) for frame in frames]
    options = {"quality": WEBP_QUALITY} if suffix == ".webp" else {}
    if others:
      options |= {"save_all": True, "append_images": others, "loop": 0}
      options["duration"] = round(1000 / fps)
    first.save(temporary, **options)


def _write_video(path: pathlib.Path, frames: list[np.ndarray], fps: float) -> None:
  height, width = frames[0].shape[:2]
  codec = cv2.VideoWriter_fourcc(*"mp4v")
  writer = cv2.VideoWriter(str(path), codec, fps, (width, height))
  if not writer.isOpened():
    raise InputError("--out: this OpenCV writes no .mp4; give a .webp or .gif file")
  for frame in frames:
    writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
  writer.release()
