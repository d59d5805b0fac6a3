"""Where an object stands in the photo: fitted to its mask where nothing else is known, and refined
by render-and-compare.

A silhouette does not change when object and distance grow by the same factor about the camera's
centre. So a mask fixes the pose but for that one factor; it is taken from the point map where there
is one, and assumed where there is none.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from sam3d_jax.geometry import cameras, pose
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import raycast

ASSUMED_DEPTH = 1.0  # of every object, where no depth is known

SEARCH_SIDE = 128  # pixels of the crop in which the search compares silhouettes
WINDOW_FACTOR = 2.0  # side of that crop over the longer side of the mask's box
# rotations, shifts over the mask's side, log scale
FIRST_STEPS = np.array([np.radians(12.0)] * 3 + [0.08] * 2 + [0.12])
# step sizes tried, each half the one before; passes over the six coordinates at each
LEVELS, SWEEPS = 6, 4


class Refined(NamedTuple):
  """`pose` is the better of the two; `accepted` says whether that is the refined one."""

  pose: Pose
  accepted: bool
  iou_before: float
  iou_after: float


def box(mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(centre, size) of the box around a mask, (u, v) in pixels."""
  rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
  low, high = np.array([columns[0], rows[0]], float), np.array([columns[-1], rows[-1]]) + 1.0
  return (low + high) / 2, high - low


def fit_to_mask(
  vertices_P3: np.ndarray,
  rotation_33: np.ndarray,
  mask_HW: np.ndarray,
  camera: Camera,
  depth: float,
  *,
  rounds: int = 8,
) -> Pose:
  """The pose with this rotation and depth whose projected box has the centre and, in the mean of
  both sides, the size of the mask's.

  Args:
    vertices_P3: of the mesh, object frame.
    rotation_33: as in Pose.
    depth: z of the object's origin.
  """
  centre, size = box(mask_HW)
  scale = 0.5 * depth * max(size[0] / camera.fx, size[1] / camera.fy)
  at = centre
  for _ in range(rounds):
    where = Pose(rotation_33, cameras.unproject(at, np.float64(depth), camera), np.full(3, scale))
    points = pose.transform_points(vertices_P3, where)
    pixels, _ = cameras.project(points[points[:, 2] > 0.05 * depth], camera)
    low, high = pixels.min(0), pixels.max(0)
    at = at + centre - (low + high) / 2
    # not around the camera
    scale = min(scale * np.sqrt(np.prod(size / np.maximum(high - low, 1e-6))), depth)
  return Pose(rotation_33, cameras.unproject(at, np.float64(depth), camera), np.full(3, scale))


def rescaled(where: Pose, factor: float) -> Pose:
  """The pose grown about the camera's centre: nearer or farther, with the same silhouette."""
  return Pose(where.rotation, where.translation * factor, where.scale * factor)


def onto_points(
  caster: raycast.Caster, where: Pose, mask_HW: np.ndarray, pointmap_HW3: np.ndarray, camera: Camera
) -> Pose:
  """The pose moved along the rays so that its visible surface has the point map's depth, in the
  median over the mask.

  Returned as it is where mask, silhouette and known points do not meet.
  """
  depth = caster.cast(where, camera).depth_HW
  known = pointmap_HW3[..., 2]
  if known.shape != depth.shape:
    rows, columns = (nearest_index(n, m) for n, m in zip(known.shape, depth.shape, strict=True))
    known = known[rows[:, None], columns]
  ratio = (known / depth)[mask_HW & np.isfinite(known) & np.isfinite(depth)]
  return rescaled(where, float(np.median(ratio))) if len(ratio) else where


def refine(
  caster: raycast.Caster,
  where: Pose,
  mask_HW: np.ndarray,
  camera: Camera,
  pointmap_HW3: np.ndarray | None = None,
) -> Refined:
  """Moves, turns and scales an object so that its silhouette fits the mask; taken only if the mask
  IoU rises.

  A pattern search over six numbers from the better of two starts: the pose as it is, and fitted to
  the mask's box. The mask counts as the whole object, so one that is partly hidden is drawn towards
  its visible part.
  """
  before = raycast.mask_iou(caster, where, mask_HW, camera)
  crop_mask, crop_camera = search_window(mask_HW, camera)
  score = lambda p: raycast.iou(caster.silhouette(p, crop_camera), crop_mask)
  depth = float(where.translation[2]) if where.translation[2] > 0 else ASSUMED_DEPTH
  fitted = fit_to_mask(caster.mesh.vertices, where.rotation, mask_HW, camera, depth)
  start = max((where, fitted), key=score)
  found = search(start, score, box(mask_HW)[1].max() / camera.fx)
  after = raycast.mask_iou(caster, found, mask_HW, camera)
  if not after > before:
    return Refined(where, False, before, after)
  if pointmap_HW3 is not None:
    found = onto_points(caster, found, mask_HW, pointmap_HW3, camera)
  return Refined(found, True, before, after)


def search_window(mask_HW: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
  """(mask, camera) of a square around the mask, SEARCH_SIDE pixels wide; outside the photo the mask
  is empty.
  """
  centre, size = box(mask_HW)
  side = WINDOW_FACTOR * size.max()
  corner, factor = centre - side / 2, SEARCH_SIDE / side
  grid = (np.arange(SEARCH_SIDE) + 0.5) / factor
  columns, rows = (np.floor(corner[i] + grid).astype(int) for i in range(2))
  inside = (
    ((rows >= 0) & (rows < mask_HW.shape[0]))[:, None]
    & (columns >= 0)
    & (columns < mask_HW.shape[1])
  )
  clipped = mask_HW[
    np.clip(rows, 0, mask_HW.shape[0] - 1)[:, None], np.clip(columns, 0, mask_HW.shape[1] - 1)
  ]
  seen_by = Camera(
    camera.fx * factor,
    camera.fy * factor,
    (camera.cx - corner[0]) * factor,
    (camera.cy - corner[1]) * factor,
    SEARCH_SIDE,
    SEARCH_SIDE,
  )
  return clipped & inside, seen_by


def search(start: Pose, score, angle: float) -> Pose:
  """Pattern search for the pose of the highest score.

  angle: size of the mask as a tangent: its side over the focal length, which shifts are relative
  to.
  """
  best, value = start, score(start)
  steps = FIRST_STEPS.copy()
  for _ in range(LEVELS):
    for _ in range(SWEEPS):
      improved = False
      for coordinate in range(6):
        for sign in (1.0, -1.0):
          trial = moved(best, coordinate, sign * steps[coordinate], angle)
          found = score(trial)
          if found > value:
            best, value, improved = trial, found, True
            break
      if not improved:
        break
    steps /= 2
  return best


def moved(where: Pose, coordinate: int, step: float, angle: float) -> Pose:
  """A pose after one step: 0..2 turned about a camera axis through its origin, 3..4 shifted along x
  or y, 5 scaled.
  """
  if coordinate < 3:
    turn = Rotation.from_rotvec(step * np.eye(3)[coordinate]).as_matrix()
    return where._replace(rotation=turn @ where.rotation)
  if coordinate < 5:
    shift = step * angle * where.translation[2]
    return where._replace(translation=where.translation + shift * np.eye(3)[coordinate - 3])
  return where._replace(scale=where.scale * np.exp(step))
