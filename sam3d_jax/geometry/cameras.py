"""Pinhole cameras and frames.

Frames of a camera (the third axis of the first two points into the scene):

    pytorch3d  x left,  y up,    z forward    the project's frame
    opencv     x right, y down,  z forward
    gltf       x right, y up,    z backward   (also OpenGL and Blender cameras)

Pixel coordinates are (u right, v down) with the centre of the top left pixel at (0.5, 0.5). Depth is the z coordinate, not the
distance. All functions take numpy or JAX arrays.
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry.arrays import namespace

# Sign of each axis of a frame relative to pytorch3d; a frame change is its own inverse.
AXES = {"pytorch3d": (1.0, 1.0, 1.0), "opencv": (-1.0, -1.0, 1.0), "gltf": (-1.0, 1.0, -1.0)}
# Object frames, row-vector form: glTF meshes are y up, voxels and latents z up: (x, y, z) -> (x, -z, y).
OBJECT_FROM_GLTF = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
GLTF_FROM_OBJECT = OBJECT_FROM_GLTF.T


class Camera(NamedTuple):
  """Intrinsics in pixels."""

  fx: float
  fy: float
  cx: float
  cy: float
  width: int
  height: int


def camera_from_fov(width: int, height: int, fov_x: float) -> Camera:
  """A camera with square pixels, the principal point in the centre and horizontal field of view `fov_x` in radians."""
  focal = 0.5 * width / np.tan(0.5 * fov_x)
  return Camera(focal, focal, width / 2, height / 2, width, height)


def convert_frame(points, source: str, target: str):
  """Camera-frame points or directions (..., 3) from one frame to another; rotations have a row-vector matrix's last axis."""
  for name in (source, target):
    if name not in AXES:
      raise ValueError(f"camera frame {name!r} is not one of {tuple(AXES)}")
  xp = namespace(points)
  return points * xp.asarray(np.array(AXES[source]) * np.array(AXES[target]), dtype=points.dtype)


def project(points, camera: Camera):
  """Camera points (..., 3) -> pixel coordinates (..., 2) and depth (...,). Points with depth <= 0 are behind the camera."""
  xp = namespace(points)
  depth = points[..., 2]
  u = camera.cx - camera.fx * points[..., 0] / depth
  v = camera.cy - camera.fy * points[..., 1] / depth
  return xp.stack([u, v], axis=-1), depth


def unproject(pixels, depth, camera: Camera):
  """Inverse of `project`: pixel coordinates (..., 2) and depth (...,) -> camera points (..., 3)."""
  xp = namespace(pixels, depth)
  x = (camera.cx - pixels[..., 0]) * depth / camera.fx
  y = (camera.cy - pixels[..., 1]) * depth / camera.fy
  return xp.stack([x, y, depth], axis=-1)


def pixel_centres(camera: Camera) -> np.ndarray:
  """(height, width, 2) pixel coordinates of all pixel centres, fp32."""
  u, v = np.meshgrid(np.arange(camera.width, dtype=np.float32) + 0.5, np.arange(camera.height, dtype=np.float32) + 0.5)
  return np.stack([u, v], axis=-1)


def pointmap_from_depth(depth_HW, camera: Camera):
  """Depth (height, width) -> point map (height, width, 3); NaN where the depth is not finite or not positive.

  Raises ValueError if the depth's size is not the camera's.
  """
  if depth_HW.shape != (camera.height, camera.width):
    raise ValueError(f"depth of shape {depth_HW.shape} does not fit a camera {camera.height} high, {camera.width} wide")
  xp = namespace(depth_HW)
  known = xp.isfinite(depth_HW) & (depth_HW > 0)
  return unproject(xp.asarray(pixel_centres(camera), dtype=depth_HW.dtype), xp.where(known, depth_HW, xp.nan), camera)
