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
  rows = np.flatnonzero(mask_HW.any(1))
  columns = np.flatnonzero(mask_HW.any(0))
  low = np.array([columns[0], rows[0]], float)
  high = np.array([columns[-1], rows[-1]]) + 1.0
  centre = (low + high) / 2
  return centre, high - low


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
  # A first guess: the unit cube's half as large as the mask at that depth.
  centre, size = box(mask_HW)
  across = size[0] / camera.fx
  down = size[1] / camera.fy
  scale = 0.5 * depth * max(across, down)
  at = centre  # the pixel where the object's origin is seen

  def pose_at() -> Pose:
    """The pose with the place and the scale so far."""
    translation = cameras.unproject(at, np.float64(depth), camera)
    return Pose(rotation_33, translation, np.full(3, scale))

  for _ in range(rounds):
    # The box of what is seen of the object; corners near the camera would blow it up.
    points = pose.transform_points(vertices_P3, pose_at())
    in_front = points[:, 2] > 0.05 * depth
    pixels, _ = cameras.project(points[in_front], camera)
    low = pixels.min(0)
    high = pixels.max(0)

    # Move it to the mask's centre, grow it to the mask's size, but not around the camera.
    at = at + centre - (low + high) / 2
    growth = size / np.maximum(high - low, 1e-6)
    scale = min(scale * np.sqrt(np.prod(growth)), depth)
  return pose_at()


def rescaled(where: Pose, factor: float) -> Pose:
  """The pose grown about the camera's centre: nearer or farther, with the same silhouette."""
  return Pose(
    rotation=where.rotation,
    translation=where.translation * factor,
    scale=where.scale * factor,
  )


def onto_points(
  caster: raycast.Caster, where: Pose, mask_HW: np.ndarray, pointmap_HW3: np.ndarray, camera: Camera
) -> Pose:
  """The pose moved along the rays so that its visible surface has the point map's depth, in the
  median over the mask.

  Returned as it is where mask, silhouette and known points do not meet.
  """
  depth = caster.cast(where, camera).depth_HW

  # The point map's depth at the photo's pixels.
  known = pointmap_HW3[..., 2]
  if known.shape != depth.shape:
    rows = nearest_index(known.shape[0], depth.shape[0])
    columns = nearest_index(known.shape[1], depth.shape[1])
    known = known[rows[:, None], columns]

  # How much farther the points are than the surface, where both are known.
  both = mask_HW & np.isfinite(known) & np.isfinite(depth)
  ratio = (known / depth)[both]
  if not len(ratio):
    return where
  return rescaled(where, float(np.median(ratio)))


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

  def score(trial: Pose) -> float:
    """IoU of silhouette and mask, in the crop."""
    silhouette = caster.silhouette(trial, crop_camera)
    return raycast.iou(silhouette, crop_mask)

  # The better of the pose as it is and the mask's box.
  depth = float(where.translation[2])
  if not depth > 0:
    depth = ASSUMED_DEPTH
  fitted = fit_to_mask(
    caster.mesh.vertices,
    where.rotation,
    mask_HW,
    camera,
    depth,
  )
  start = max((where, fitted), key=score)

  # The search measures in a small crop; whether it helped is measured as before.
  _, size = box(mask_HW)
  found = search(start, score, size.max() / camera.fx)
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
  height, width = mask_HW.shape
  centre, size = box(mask_HW)
  side = WINDOW_FACTOR * size.max()
  corner = centre - side / 2
  factor = SEARCH_SIDE / side

  # The photo's pixel at the centre of each of the window's.
  grid = (np.arange(SEARCH_SIDE) + 0.5) / factor
  columns = np.floor(corner[0] + grid).astype(int)
  rows = np.floor(corner[1] + grid).astype(int)

  # Outside the photo there is no mask.
  row_inside = (rows >= 0) & (rows < height)
  column_inside = (columns >= 0) & (columns < width)
  inside = row_inside[:, None] & column_inside
  near_rows = np.clip(rows, 0, height - 1)
  near_columns = np.clip(columns, 0, width - 1)
  mask = mask_HW[near_rows[:, None], near_columns] & inside

  seen_by = Camera(
    fx=camera.fx * factor,
    fy=camera.fy * factor,
    cx=(camera.cx - corner[0]) * factor,
    cy=(camera.cy - corner[1]) * factor,
    width=SEARCH_SIDE,
    height=SEARCH_SIDE,
  )
  return mask, seen_by


def search(start: Pose, score, angle: float) -> Pose:
  """Pattern search for the pose of the highest score.

  angle: size of the mask as a tangent: its side over the focal length, which shifts are relative
  to.
  """
  best = start
  value = score(start)
  steps = FIRST_STEPS.copy()
  for _ in range(LEVELS):
    for _ in range(SWEEPS):
      # A coordinate after the other, in the first direction that helps.
      improved = False
      for coordinate in range(6):
        for sign in (1.0, -1.0):
          trial = moved(best, coordinate, sign * steps[coordinate], angle)
          found = score(trial)
          if found > value:
            best = trial
            value = found
            improved = True
            break
      if not improved:
        break
    steps /= 2
  return best


def moved(where: Pose, coordinate: int, step: float, angle: float) -> Pose:
  """A pose after one step: 0..2 turned about a camera axis through its origin, 3..4 shifted along x
  or y, 5 scaled.
  """
  axes = np.eye(3)
  if coordinate < 3:
    rotvec = step * axes[coordinate]
    turn = Rotation.from_rotvec(rotvec).as_matrix()
    return where._replace(rotation=turn @ where.rotation)
  if coordinate < 5:
    # by a part of the mask's side, at the object's depth
    shift = step * angle * where.translation[2]
    translation = where.translation + shift * axes[coordinate - 3]
    return where._replace(translation=translation)
  return where._replace(scale=where.scale * np.exp(step))
