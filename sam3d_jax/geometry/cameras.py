"""Pinhole cameras and frames.

Frames of a camera (the third axis of the first two points into the scene):

    pytorch3d  x left,  y up,    z forward    the project's frame
    opencv     x right, y down,  z forward
    gltf       x right, y up,    z backward   (also OpenGL and Blender cameras)

Pixel coordinates are (u right, v down) with the centre of the top left pixel at (0.5, 0.5). Depth
is the z coordinate, not the distance. All functions take numpy or JAX arrays.
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry.arrays import namespace

# Sign of each axis of a frame relative to pytorch3d; a frame change is its own inverse.
AXES = {"pytorch3d": (1.0, 1.0, 1.0), "opencv": (-1.0, -1.0, 1.0), "gltf": (-1.0, 1.0, -1.0)}
# Object frames: glTF meshes are y up, voxels and latents z up, (x, y, z) -> (x, -z, y). These turn
# rows of points, `points @ OBJECT_FROM_GLTF`.
OBJECT_FROM_GLTF = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
GLTF_FROM_OBJECT = OBJECT_FROM_GLTF.T
ASSUMED_FOV_DEG = 60.0  # of a photo's longer side, where no intrinsics are known

MIN_FIT_POINTS = 16  # known points that a camera can be fitted to


class Camera(NamedTuple):
  """Intrinsics in pixels."""

  fx: float
  fy: float
  cx: float
  cy: float
  width: int
  height: int


def camera_from_fov(width: int, height: int, fov_x: float) -> Camera:
  """A camera with square pixels and the principal point in the centre.

  fov_x: horizontal field of view in radians.
  """
  # Half the width is seen under half the angle.
  half_angle = 0.5 * fov_x
  focal = 0.5 * width / np.tan(half_angle)
  return Camera(
    fx=focal,
    fy=focal,
    cx=width / 2,
    cy=height / 2,
    width=width,
    height=height,
  )


def convert_frame(points, source: str, target: str):
  """Camera-frame points or directions (..., 3) from one frame to another."""
  for name in (source, target):
    if name not in AXES:
      raise ValueError(f"camera frame {name!r} is not one of {tuple(AXES)}")
  # Into pytorch3d and out again: both are flips of axes.
  into = np.array(AXES[source])
  out_of = np.array(AXES[target])
  signs = into * out_of
  xp = namespace(points)
  return points * xp.asarray(signs, dtype=points.dtype)


def project(points, camera: Camera):
  """Camera points (..., 3) -> pixel coordinates (..., 2) and depth (...,).

  Points with depth <= 0 are behind the camera.
  """
  xp = namespace(points)
  x = points[..., 0]
  y = points[..., 1]
  depth = points[..., 2]
  # x points left and y up, against columns and rows
  right = camera.fx * x / depth
  u = camera.cx - right
  down = camera.fy * y / depth
  v = camera.cy - down
  pixels = xp.stack([u, v], axis=-1)
  return pixels, depth


def unproject(pixels, depth, camera: Camera):
  """Inverse of `project`: pixel coordinates (..., 2) and depth (...,) -> camera points (..., 3)."""
  xp = namespace(pixels, depth)
  u = pixels[..., 0]
  v = pixels[..., 1]
  # `project` solved for x and y: left and up of the principal point, in pixels, to lengths.
  left = camera.cx - u
  x = left * depth / camera.fx
  up = camera.cy - v
  y = up * depth / camera.fy
  return xp.stack([x, y, depth], axis=-1)


def pixel_centres(camera: Camera) -> np.ndarray:
  """(height, width, 2) pixel coordinates of all pixel centres, fp32."""
  columns = np.arange(camera.width, dtype=np.float32)
  rows = np.arange(camera.height, dtype=np.float32)
  # The centre of the top left pixel is at (0.5, 0.5).
  columns = columns + 0.5
  rows = rows + 0.5
  u, v = np.meshgrid(columns, rows)
  return np.stack([u, v], axis=-1)


def pointmap_from_depth(depth_HW, camera: Camera):
  """Depth (height, width) -> point map (height, width, 3).

  NaN where the depth is not finite or not positive. Raises ValueError if the depth's size is not
  the camera's.
  """
  if depth_HW.shape != (camera.height, camera.width):
    raise ValueError(
      f"depth of shape {depth_HW.shape} does not fit a camera {camera.height} high, {camera.width} "
      "wide"
    )
  # What is not known becomes NaN in all three coordinates.
  xp = namespace(depth_HW)
  known = xp.isfinite(depth_HW) & (depth_HW > 0)
  known_depth = xp.where(known, depth_HW, xp.nan)
  pixels = xp.asarray(pixel_centres(camera), dtype=depth_HW.dtype)
  return unproject(pixels, known_depth, camera)


def resized(camera: Camera, width: int, height: int) -> Camera:
  """The same camera for a picture of another size."""
  # Focal lengths and the principal point are in pixels.
  x = width / camera.width
  y = height / camera.height
  return Camera(
    fx=camera.fx * x,
    fy=camera.fy * y,
    cx=camera.cx * x,
    cy=camera.cy * y,
    width=width,
    height=height,
  )


def _rays(pointmap_HW3: np.ndarray, most: int = 50_000) -> tuple[np.ndarray, np.ndarray]:
  """(pixel centres (P, 2), x / z and y / z (P, 2)) of at most about `most` known points.

  Raises ValueError if there are too few.
  """
  # Indices of the known points, evenly thinned.
  height, width = pointmap_HW3.shape[:2]
  finite = np.isfinite(pointmap_HW3).all(-1)
  in_front = pointmap_HW3[..., 2] > 0
  known = np.flatnonzero(finite & in_front)
  # Every stride-th point: a fit needs no more, and the choice draws nothing.
  stride = max(1, len(known) // most)
  known = known[::stride]
  if len(known) < MIN_FIT_POINTS:
    raise ValueError(
      f"{len(known)} known points; at least {MIN_FIT_POINTS} are needed to find the camera"
    )

  # Where each is seen, and in which direction.
  flat = pointmap_HW3.reshape(-1, 3)
  points = flat[known].astype(np.float64)
  columns = known % width
  rows = known // width
  corners = np.stack([columns, rows], -1)
  pixels = corners + 0.5
  depth = points[:, 2:]
  rays = points[:, :2] / depth
  return pixels, rays


def pixel_trend(pointmap_HW3: np.ndarray) -> tuple[float, float]:
  """Correlation of -x / z with the column and of -y / z with the row.

  Near 1 in the pytorch3d frame, 0 where nothing can be told. Raises ValueError if there are too few
  known points.
  """
  pixels, rays = _rays(pointmap_HW3)
  pixels = pixels - pixels.mean(0)
  rays = rays - rays.mean(0)

  # Pearson's correlation of each axis; without spread there is none.
  covariance = (pixels * rays).mean(0)
  pixel_variance = (pixels**2).mean(0)
  ray_variance = (rays**2).mean(0)
  scale = np.sqrt(pixel_variance * ray_variance)
  divisor = np.where(scale > 0, scale, np.inf)
  across, down = -covariance / divisor
  return float(across), float(down)


def fit_camera(pointmap_HW3: np.ndarray, *, rounds: int = 4) -> tuple[Camera, float]:
  """The pinhole camera that puts a point map's points at their own pixels, and how far off it is.

  Least squares of u = cx - fx x / z and v = cy - fy y / z, repeated without the points that lie off
  by more than three times the median error, so that stray points do not count.

  Args:
    pointmap_HW3: pytorch3d frame, NaN unknown.
    rounds: of the fit.

  Returns:
    The camera and the median distance in pixels between the points' projections and their pixels.
  Raises:
    ValueError: too few points, or points that do not determine a camera (all on one ray, or running
    the wrong way).
  """
  height, width = pointmap_HW3.shape[:2]
  pixels, rays = _rays(pointmap_HW3)
  # All points count in the first round.
  kept = np.ones(len(pixels), bool)
  for _ in range(rounds):
    # Each axis is a line: pixel = centre - focal * ray.
    # Least squares over the points that are kept.
    focal = []
    centre = []
    for axis in range(2):
      ray = rays[kept, axis]
      pixel = pixels[kept, axis]
      # Rays that do not spread leave the slope undetermined.
      if np.ptp(ray) < 1e-6:
        raise ValueError(
          "the known points lie in one row or column: they do not determine a camera"
        )
      slope, offset = np.polyfit(ray, pixel, 1)
      # x is left and y is up, against columns and rows: hence the sign.
      focal.append(-slope)
      centre.append(offset)

    # The next round goes without the points that are far off.
    centres = np.array(centre)
    slopes = np.array(focal)
    found = centres - slopes * rays
    off = found - pixels
    error = np.linalg.norm(off, axis=-1)
    # The floor keeps exact point maps from dropping points by rounding.
    limit = max(3 * np.median(error), 1e-3)
    kept = error <= limit
  # A negative focal length is a frame with an axis turned round.
  if min(focal) <= 0:
    raise ValueError("the points run against the pytorch3d frame: they do not determine a camera")

  camera = Camera(
    fx=float(focal[0]),
    fy=float(focal[1]),
    cx=float(centre[0]),
    cy=float(centre[1]),
    width=width,
    height=height,
  )
  return camera, float(np.median(error))


def assumed_camera(width: int, height: int) -> Camera:
  """The camera of a photo of which nothing is known.

  ASSUMED_FOV_DEG along the longer side, centred, square pixels.
  """
  # The focal length of a square photo with that side.
  longer = max(width, height)
  square = camera_from_fov(longer, longer, np.radians(ASSUMED_FOV_DEG))
  return Camera(
    fx=square.fx,
    fy=square.fx,
    cx=width / 2,
    cy=height / 2,
    width=width,
    height=height,
  )
