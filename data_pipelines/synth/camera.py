"""Where the renderer looks from: random viewpoints around an object.

A viewpoint is a camera (sam3d_jax/geometry/cameras.py) and the pose in which it sees the object.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from sam3d_jax import sections
from sam3d_jax.geometry import cameras, pose
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose


class Viewpoint(NamedTuple):
  """A camera and the object before it, which is as large along all axes."""

  camera: Camera
  pose: Pose  # object to camera

  @property
  def scale(self) -> float:
    """Camera units along the unit cube's edge."""
    return float(self.pose.scale[0])

  @property
  def eye(self) -> np.ndarray:
    """The camera's centre in the object frame, (3,)."""
    return -self.pose.translation @ self.to_object

  @property
  def to_object(self) -> np.ndarray:
    """(3, 3) that takes directions of the camera frame (rows) to the object frame."""
    return self.pose.rotation / self.scale

  def points(self, points_P3: np.ndarray) -> np.ndarray:
    """Object points in the camera frame."""
    points = np.asarray(points_P3)
    return pose.transform_points(points, self.pose)

  def project(self, points_P3: np.ndarray) -> np.ndarray:
    """Pixel coordinates (P, 2) of object points; meaningless for points behind the camera."""
    in_camera = self.points(points_P3)
    pixels, _ = cameras.project(in_camera, self.camera)
    return pixels

  def moved(self, factor: float) -> "Viewpoint":
    """The object at `factor` of its distance and size: the picture is the same."""
    place = self.pose.translation * factor
    return viewpoint(
      self.camera,
      self.pose.rotation,
      place,
      self.scale * factor,
    )


def viewpoint(
  camera: Camera, rotation_33: np.ndarray, translation_3: np.ndarray, scale: float = 1.0
) -> Viewpoint:
  """A viewpoint from p_camera = rotation (scale p_object) + translation."""
  placed = Pose(rotation_33, translation_3, np.full(3, scale))
  return Viewpoint(camera, placed)


def rays(camera: Camera, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Directions (..., 3) through pixel coordinates; times a depth they are the point at it."""
  pixels = np.stack([u, v], -1)
  depth = np.ones_like(u)
  return cameras.unproject(pixels, depth, camera)


def sample_grid(
  rows: tuple[int, int], columns: tuple[int, int], samples: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Pixel coordinates u and v of `samples` x `samples` points spread evenly in each pixel.

  Both are (rows * samples, columns * samples); one sample is the pixel's centre. Rows and columns
  are half-open ranges.
  """
  # Places within a pixel: the middles of equal parts.
  parts = np.arange(samples) + 0.5
  offset = parts / samples
  first, end = rows
  fine_rows = np.arange(first, end)[:, None] + offset
  first, end = columns
  fine_columns = np.arange(first, end)[:, None] + offset
  v, u = np.meshgrid(fine_rows.ravel(), fine_columns.ravel(), indexing="ij")
  return u, v


@dataclasses.dataclass(frozen=True)
class ViewConfig:
  """Ranges from which `random_view` draws uniformly, unless stated."""

  fov_deg: tuple[float, float] = (30.0, 60.0)
  # above the object's horizon; the draw is uniform on that band of the sphere
  elevation_deg: tuple[float, float] = (-20.0, 60.0)
  azimuth_deg: tuple[float, float] = (0.0, 360.0)
  roll_deg: tuple[float, float] = (-5.0, 5.0)
  fill: tuple[float, float] = (0.65, 0.9)  # bounding sphere over the image
  scale: tuple[float, float] = (0.2, 2.0)  # metres along the unit cube's edge, drawn log-uniformly

  def __post_init__(self):
    sections.check_range(self, "fov_deg", 1, 170)
    sections.check_range(self, "elevation_deg", -90, 90)
    sections.check_range(self, "fill", 0.01, 1)
    sections.check_range(self, "scale", 0.001)


def look_at(azimuth: float, elevation: float, roll: float = 0.0) -> np.ndarray:
  """Rotation (acts on columns) of a camera that looks at the origin; angles in radians, z up.

  Azimuth 0 looks from +x, pi/2 from +y. Roll turns the camera about its forward axis.
  """
  # The camera's axes without roll: it looks from the unit sphere at the middle.
  flat = np.cos(elevation)
  x = flat * np.cos(azimuth)
  y = flat * np.sin(azimuth)
  z = np.sin(elevation)
  position = np.array([x, y, z])
  forward = -position
  left = np.cross([0.0, 0.0, 1.0], forward)
  left /= np.linalg.norm(left)
  up = np.cross(forward, left)

  # Roll turns left and up about the forward axis; rows of the rotation are the axes.
  c = np.cos(roll)
  s = np.sin(roll)
  rolled_left = c * left + s * up
  rolled_up = c * up - s * left
  return np.stack([rolled_left, rolled_up, forward])


def random_view(
  rng: np.random.Generator, config: ViewConfig, *, image_size: int, radius: float, scale: float
) -> tuple[Viewpoint, float]:
  """A view of the whole bounding sphere of `radius` (object units), and its azimuth (radians).

  `scale` is in metres. The object's origin is off the optical axis by what `fill` leaves free.
  """
  # From where: uniform on the band of the sphere between the two elevations.
  azimuth = np.radians(rng.uniform(*config.azimuth_deg))
  ends = np.radians(config.elevation_deg)
  band = np.sin(ends)
  height = rng.uniform(*band)
  elevation = np.arcsin(height)
  roll = np.radians(rng.uniform(*config.roll_deg))
  rotation = look_at(azimuth, elevation, roll)

  # How far: the sphere takes the drawn part of the picture.
  fov = np.radians(rng.uniform(*config.fov_deg))
  half_fov = fov / 2
  fill = rng.uniform(*config.fill)
  distance = scale * radius / (fill * np.sin(half_fov))
  free = (1 - fill) * distance * np.tan(half_fov)
  shift = rng.uniform(-0.5, 0.5, 2)
  across, up = shift * free
  place = np.array([across, up, distance])

  # A square picture, the optical axis through its middle.
  middle = image_size / 2
  focal = middle / np.tan(half_fov)
  camera = Camera(
    fx=focal,
    fy=focal,
    cx=middle,
    cy=middle,
    width=image_size,
    height=image_size,
  )
  return viewpoint(camera, rotation, place, scale), azimuth
