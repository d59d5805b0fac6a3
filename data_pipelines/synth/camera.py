"""Pinhole cameras of the renderer and random viewpoints around an object.

Camera frame: x left, y up, z forward. A point projects to pixel coordinates u = cx - fx x / z (to
the right) and v = cy - fy y / z (downwards); the centre of pixel (row r, column c) is (u, v) = (c +
0.5, r + 0.5).
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Camera:
  """Intrinsics in pixels and the pose of the object: p_camera = rotation @ (scale * p_object) +
  translation.
  """

  fx: float
  fy: float
  cx: float
  cy: float
  width: int
  height: int
  rotation: np.ndarray  # (3, 3), acts on column vectors
  translation: np.ndarray  # (3,)
  scale: float = 1.0

  def to_camera(self, points_P3: np.ndarray) -> np.ndarray:
    """Object points in the camera frame."""
    return (self.scale * np.asarray(points_P3)) @ self.rotation.T + self.translation

  def project(self, points_P3: np.ndarray) -> np.ndarray:
    """Pixel coordinates (P, 2) as (u, v) of object points; meaningless for points behind the
    camera.
    """
    x, y, z = self.to_camera(points_P3).T
    return np.stack([self.cx - self.fx * x / z, self.cy - self.fy * y / z], -1)

  def rays(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Directions (..., 3) through pixel coordinates, camera frame, with z = 1: depth times
    direction is the point.
    """
    return np.stack([(self.cx - u) / self.fx, (self.cy - v) / self.fy, np.ones_like(u)], -1)


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


def look_at(azimuth: float, elevation: float, roll: float = 0.0) -> np.ndarray:
  """Rotation (column form) of a camera that looks at the origin from a direction on the sphere;
  angles in radians, z up.

  Azimuth 0 looks from +x, pi/2 from +y. Roll turns the camera about its forward axis.
  """
  position = np.array(
    [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
  )
  forward = -position
  left = np.cross([0.0, 0.0, 1.0], forward)
  left /= np.linalg.norm(left)
  up = np.cross(forward, left)
  c, s = np.cos(roll), np.sin(roll)
  return np.stack([c * left + s * up, c * up - s * left, forward])


def random_view(
  rng: np.random.Generator, config: ViewConfig, *, image_size: int, radius: float, scale: float
) -> tuple[Camera, float]:
  """A camera that sees the whole bounding sphere of `radius` (object units) at `scale` metres, and
  its azimuth (radians).

  The object's origin is off the optical axis by what `fill` leaves free.
  """
  azimuth = np.radians(rng.uniform(*config.azimuth_deg))
  elevation = np.arcsin(rng.uniform(*np.sin(np.radians(config.elevation_deg))))
  roll = np.radians(rng.uniform(*config.roll_deg))
  half = np.radians(rng.uniform(*config.fov_deg)) / 2
  fill = rng.uniform(*config.fill)
  distance = scale * radius / (fill * np.sin(half))
  free = (1 - fill) * distance * np.tan(half)
  offset = rng.uniform(-0.5, 0.5, 2) * free
  focal = image_size / 2 / np.tan(half)
  camera = Camera(
    focal,
    focal,
    image_size / 2,
    image_size / 2,
    image_size,
    image_size,
    look_at(azimuth, elevation, roll),
    np.array([offset[0], offset[1], distance]),
    scale,
  )
  return camera, azimuth
