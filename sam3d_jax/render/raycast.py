"""The one ray caster (Embree): what rays hit, and posed meshes seen by a pinhole camera.

On it stand the builders' renderer, the previews and, here, depth, silhouettes and how well these
fit a mask.
"""

from typing import NamedTuple

from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
import numpy as np

from sam3d_jax.geometry import cameras, pose
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render.mesh import Mesh

MEASURE_SIDE = 512  # pixels of the longer side of the picture in which mask IoU is counted
NEAR = 1e-6  # depth in front of which a corner cannot be projected


class RayHits(NamedTuple):
  """The nearest hit of each of N rays."""

  face_N: np.ndarray  # int32, -1 where there is nothing
  # float32, in lengths of the ray's direction; anything where there is nothing
  distance_N: np.ndarray
  # float32 weights of the face's second and third corner at the hit
  u_N: np.ndarray
  v_N: np.ndarray


class Hits(NamedTuple):
  """What is seen at every pixel's centre."""

  face_HW: np.ndarray  # int32, -1 where there is nothing
  depth_HW: np.ndarray  # float32 z in the camera's unit, NaN where there is nothing


class Caster:
  """A mesh prepared for ray casting: build once, look often. Both sides of a face are seen.

  Rays are float32 and run in the mesh's own frame, so that a pose costs no new mesh.
  """

  def __init__(self, mesh: Mesh):
    self.mesh = mesh
    self._box_83 = box_corners(mesh.vertices)
    # Triangles register themselves with the scene that they are given.
    self._scene = rtcore_scene.EmbreeScene()
    vertices = np.ascontiguousarray(mesh.vertices, np.float32)
    faces = np.ascontiguousarray(mesh.faces, np.int32)
    TriangleMesh(self._scene, vertices, faces)

  def nearest(self, origins_N3: np.ndarray, directions_N3: np.ndarray) -> RayHits:
    """First hits of rays; directions need not be of length 1."""
    if not len(directions_N3):
      nothing = np.zeros(0, np.float32)
      return RayHits(
        np.zeros(0, np.int32),
        nothing,
        nothing,
        nothing,
      )

    # output=1: where on the face, not only which.
    origins = _rays(origins_N3)
    directions = _rays(directions_N3)
    found = self._scene.run(origins, directions, output=1)
    return RayHits(
      face_N=found["primID"],
      distance_N=found["tfar"],
      u_N=found["u"],
      v_N=found["v"],
    )

  def blocked(self, origins_N3: np.ndarray, directions_N3: np.ndarray) -> np.ndarray:
    """Whether anything lies on each ray, (N,) bool."""
    if not len(directions_N3):
      return np.zeros(0, bool)
    origins = _rays(origins_N3)
    directions = _rays(directions_N3)
    # Embree writes 0 for a ray that meets something.
    occluded = self._scene.run(origins, directions, query="OCCLUDED")
    return occluded == 0

  def cast(self, where: Pose, camera: Camera) -> Hits:
    """First hits of the rays through all pixel centres."""
    # Nothing is seen where no ray is cast.
    size = (camera.height, camera.width)
    face = np.full(size, -1, np.int32)
    depth = np.full(size, np.nan, np.float32)
    top, bottom, left, right = self.window(where, camera)
    if top >= bottom or left >= right:
      return Hits(face, depth)

    # The centres of the pixels that the object can touch.
    columns = np.arange(left, right) + 0.5
    rows = np.arange(top, bottom) + 0.5
    column, row = np.meshgrid(columns, rows)
    pixels = np.stack([column, row], -1)
    pixels = pixels.reshape(-1, 2)

    # Rays of depth 1, turned and scaled into the mesh's frame: the ray parameter stays depth.
    ones = np.ones(len(pixels))
    rays = cameras.unproject(pixels, ones, camera)
    to_object = where.rotation / where.scale
    directions = rays @ to_object
    origin = -where.translation @ to_object
    origins = np.broadcast_to(origin, directions.shape)
    found = self.nearest(origins, directions)

    # Back into the picture.
    hit = found.face_N >= 0
    seen = np.where(hit, found.distance_N, np.nan)
    shape = (bottom - top, right - left)
    face[top:bottom, left:right] = found.face_N.reshape(shape)
    depth[top:bottom, left:right] = seen.reshape(shape)
    return Hits(face, depth)

  def window(self, where: Pose, camera: Camera) -> tuple[int, int, int, int]:
    """Pixel rows and columns that the object can touch: top, bottom, left, right (half open)."""
    # A box that reaches behind the camera can be anywhere.
    corners = pose.transform_points(self._box_83, where)
    nearest = corners[:, 2].min()
    if nearest <= NEAR:
      return 0, camera.height, 0, camera.width

    # The box's corners bound what is inside it in the picture as well.
    pixels, _ = cameras.project(corners, camera)
    # One pixel more on every side, within the picture.
    low = np.floor(pixels.min(0)) - 1
    high = np.ceil(pixels.max(0)) + 1
    limits = [camera.width, camera.height]
    left, top = np.clip(low, 0, limits).astype(int)
    right, bottom = np.clip(high, 0, limits).astype(int)
    return int(top), int(bottom), int(left), int(right)

  def silhouette(self, where: Pose, camera: Camera) -> np.ndarray:
    """(height, width) bool."""
    hits = self.cast(where, camera)
    return hits.face_HW >= 0


def _rays(vectors_N3: np.ndarray) -> np.ndarray:
  """As Embree takes them."""
  return np.ascontiguousarray(vectors_N3, np.float32)


def box_corners(points_P3: np.ndarray) -> np.ndarray:
  """The (8, 3) corners of the axis-aligned box of points."""
  low = points_P3.min(0)
  high = points_P3.max(0)
  ends = zip(low, high, strict=True)
  x, y, z = np.meshgrid(*ends, indexing="ij")
  corners = np.stack([x, y, z], -1)
  return corners.reshape(8, 3)


def iou(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over union of two boolean arrays, 0 if both are empty."""
  union = np.count_nonzero(a | b)
  if not union:
    return 0.0
  shared = np.count_nonzero(a & b)
  return shared / union


def mask_iou(caster: Caster, where: Pose, mask_HW: np.ndarray, camera: Camera) -> float:
  """IoU of the object's silhouette and its mask, in the photo shrunk to MEASURE_SIDE pixels."""
  small_mask, small_camera = shrink(mask_HW, camera, MEASURE_SIDE)
  silhouette = caster.silhouette(where, small_camera)
  return iou(silhouette, small_mask)


def shrink(mask_HW: np.ndarray, camera: Camera, side: int) -> tuple[np.ndarray, Camera]:
  """A mask (nearest) and its camera with a longer side of at most `side` pixels."""
  # Masks are only made smaller.
  height, width = mask_HW.shape
  factor = side / max(height, width)
  if factor >= 1:
    return mask_HW, camera
  small_height = max(1, round(height * factor))
  small_width = max(1, round(width * factor))
  # Nearest: a mask stays a mask.
  rows = nearest_index(height, small_height)
  columns = nearest_index(width, small_width)
  small_mask = mask_HW[rows[:, None], columns]
  return small_mask, cameras.resized(camera, small_width, small_height)
