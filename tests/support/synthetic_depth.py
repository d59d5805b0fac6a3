"""Point maps made up for photographs that have none: for tests, not measured, not estimated.

    python -m tests.support.synthetic_depth PHOTOS OUT

copies a folder of scenes (image, masks) and puts pointmap.npz beside each image.

The photo is taken to show a floor, seen from 1.5 m under 15 degrees, up to a wall at 6 m; every
mask is an upright half cylinder that stands on the floor at its lowest pixel.
"""

import pathlib
import shutil
import sys

import numpy as np
from PIL import Image

from sam3d_jax.files import mask_files
from sam3d_jax.geometry import cameras

HEIGHT, WALL = 1.5, 6.0  # metres
PITCH, FOV = np.radians(15), np.radians(60)


def make(size: tuple[int, int], masks: list[np.ndarray]) -> tuple[np.ndarray, cameras.Camera]:
  """(points (H, W, 3), camera) for a photo of `size` (H, W)."""
  height, width = size
  camera = cameras.camera_from_fov(width, height, FOV)

  # Floor and wall, whichever is nearer.
  pixels = cameras.pixel_centres(camera)
  up = (camera.cy - pixels[..., 1]) / camera.fy  # of the ray with z = 1
  fall = np.sin(PITCH) - np.cos(PITCH) * up  # downwards per unit of depth
  floor = np.where(fall > 1e-3, HEIGHT / np.maximum(fall, 1e-3), np.inf)
  wall = WALL / (np.cos(PITCH) + np.sin(PITCH) * up)
  background = np.minimum(floor, wall)

  # Half cylinders on the floor, the largest first, so that small ones are seen before it.
  depth = background.copy()
  for mask in sorted(masks, key=lambda mask: -mask.sum()):
    rows, columns = np.nonzero(mask)
    base = background[rows.max(), columns[rows.argmax()]]
    spread = np.ptp(columns)
    across = (np.arange(width) - columns.mean()) / max(1.0, spread / 2)
    bulge = base * spread / 2 / camera.fx * np.sqrt(np.clip(1 - across**2, 0, 1))
    surface = np.maximum(base - 0.5 * bulge, 0.3)
    depth = np.where(mask, surface, depth)
  points = cameras.pointmap_from_depth(depth.astype(np.float32), camera)
  return points, camera


def add(scene: pathlib.Path) -> None:
  """Writes `pointmap.npz` into a scene folder."""
  image = next(scene.glob("image.*"))
  with Image.open(image) as opened:
    size = opened.height, opened.width
  masks = [mask_files.read_mask(path, size) for path in sorted(scene.glob("[0-9]*.png"))]
  points, camera = make(size, masks)
  matrix = np.array(
    [
      [camera.fx, 0, camera.cx],
      [0, camera.fy, camera.cy],
      [0, 0, 1],
    ]
  )
  np.savez_compressed(
    scene / "pointmap.npz",
    pointmap=points.astype(np.float32),
    intrinsics=matrix,
  )


def copy_scenes(source: pathlib.Path, out: pathlib.Path) -> None:
  """Copies every scene folder of `source` and adds a made-up point map."""
  scenes = [path.parent for path in source.rglob("image.*")]
  for scene in sorted(scenes):
    target = out / scene.relative_to(source)
    target.mkdir(parents=True, exist_ok=True)
    for file in scene.iterdir():
      shutil.copyfile(file, target / file.name)
    add(target)


if __name__ == "__main__":
  copy_scenes(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
