"""Posed meshes seen by a pinhole camera, by ray casting (Embree): depth, silhouettes, and how well
these fit a mask.
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry import cameras, pose
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render.mesh import Mesh

MEASURE_SIDE = 512  # pixels of the longer side of the picture in which mask IoU is counted


class Hits(NamedTuple):
  """What is seen at every pixel's centre."""

  face_HW: np.ndarray  # int32, -1 where there is nothing
  depth_HW: np.ndarray  # float32 z in the camera's unit, NaN where there is nothing


class Caster:
  """A mesh prepared for ray casting: build once, look at many poses. Both sides of a face are seen."""

  def __init__(self, mesh: Mesh):
    from embreex import rtcore_scene  # loaded only where something is rendered
    from embreex.mesh_construction import TriangleMesh

    self.mesh = mesh
    self.scene = rtcore_scene.EmbreeScene()
    TriangleMesh(
      self.scene,
      np.ascontiguousarray(mesh.vertices, np.float32),
      np.ascontiguousarray(mesh.faces, np.int32),
    )
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    self.corners_83 = np.stack(
      np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1
    ).reshape(8, 3)

  def cast(self, where: Pose, camera: Camera) -> Hits:
    """First hits of the rays through all pixel centres; rays run in the object's frame, so that a
    pose costs no new mesh.
    """
    face = np.full((camera.height, camera.width), -1, np.int32)
    depth = np.full((camera.height, camera.width), np.nan, np.float32)
    top, bottom, left, right = self.window(where, camera)
    if top < bottom and left < right:
      column, row = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
      pixels = np.stack([column, row], -1).reshape(-1, 2)
      rays = cameras.unproject(pixels, np.ones(len(pixels)), camera)
      inverse = where.rotation / where.scale
      directions = np.ascontiguousarray(rays @ inverse, np.float32)
      origins = np.ascontiguousarray(
        np.broadcast_to(-where.translation @ inverse, directions.shape), np.float32
      )
      found = self.scene.run(origins, directions, output=1)
      shape = (bottom - top, right - left)
      face[top:bottom, left:right] = found["primID"].reshape(shape)
      depth[top:bottom, left:right] = np.where(found["primID"] >= 0, found["tfar"], np.nan).reshape(
        shape
      )
    return Hits(face, depth)

  def window(self, where: Pose, camera: Camera) -> tuple[int, int, int, int]:
    """Pixel rows and columns that the object can touch: top, bottom, left, right (half open)."""
    corners = pose.transform_points(self.corners_83, where)
    if corners[:, 2].min() <= 1e-6:
      return 0, camera.height, 0, camera.width
    pixels, _ = cameras.project(corners, camera)
    limits = [camera.width, camera.height]
    low = np.clip(np.floor(pixels.min(0)) - 1, 0, limits).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 1, 0, limits).astype(int)
    return int(low[1]), int(high[1]), int(low[0]), int(high[0])

  def silhouette(self, where: Pose, camera: Camera) -> np.ndarray:
    """(height, width) bool."""
    return self.cast(where, camera).face_HW >= 0


def iou(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over union of two boolean arrays, 0 if both are empty."""
  union = np.count_nonzero(a | b)
  return np.count_nonzero(a & b) / union if union else 0.0


def mask_iou(caster: Caster, where: Pose, mask_HW: np.ndarray, camera: Camera) -> float:
  """IoU of the object's silhouette and its mask, counted in the photo shrunk to MEASURE_SIDE
  pixels.
  """
  mask_HW, camera = shrink(mask_HW, camera, MEASURE_SIDE)
  return iou(caster.silhouette(where, camera), mask_HW)


def shrink(mask_HW: np.ndarray, camera: Camera, side: int) -> tuple[np.ndarray, Camera]:
  """A mask (nearest) and its camera with a longer side of at most `side` pixels."""
  factor = side / max(mask_HW.shape)
  if factor >= 1:
    return mask_HW, camera
  height, width = (max(1, round(n * factor)) for n in mask_HW.shape)
  rows, columns = nearest_index(mask_HW.shape[0], height), nearest_index(mask_HW.shape[1], width)
  return mask_HW[rows[:, None], columns], cameras.resized(camera, width, height)
