"""Layout metrics: where the posed prediction is in the scene, against the truth.

A `Pose` (sam3d_jax.geometry.pose) maps object points to the scene: x_scene = R (scale * x) + t.

- iou_3d: intersection over union of the axis-aligned boxes of the two posed shapes, in the scene's
  axes.
- icp_rot_deg: angle of the rotation that ICP still finds from the posed prediction to the posed
  truth. Both are centred and scaled to one size first, so that errors of translation and scale,
  which the other metrics measure, do not disturb it. Protocol in `align`; of equally good rotations
  the smallest counts, so a symmetric object is not punished.
- add_s: mean distance from the points of one posed shape to the nearest of the other, mean of both
  directions ("symmetrised"), over the diameter of the posed truth (largest distance between two of
  its points).
- add_s_01: 1 if add_s < 0.1, else 0; its mean is ADD-S@0.1.
"""

import json
import pathlib
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from sam3d_jax.evaluation import align, surface
from sam3d_jax.evaluation.neighbours import Tree
from sam3d_jax.files import texts
from sam3d_jax.geometry.pose import Pose, is_placed, rotation_only
from sam3d_jax.render.mesh import Mesh

WORST = {"iou_3d": 0.0, "icp_rot_deg": 180.0, "add_s": 1.0, "add_s_01": 0.0}


class PoseError(ValueError):
  """A pose file that cannot be used; the message names file, key and value."""


def load_pose(path: str | pathlib.Path) -> Pose:
  """Reads {"rotation": [w, x, y, z], "translation": [x, y, z], "scale": number or [x, y, z]}.

  translation and scale may both be null: whatever made the pose says nothing of them, and only the
  rotation is scored. Raises PoseError.
  """
  path = pathlib.Path(path)
  try:
    data = texts.read_json(path)
  except (OSError, ValueError) as error:
    raise PoseError(f"{path}: cannot be read as JSON ({error})") from error

  # A quaternion of any length stands for the rotation of its direction.
  quaternion = _numbers(path, data, "rotation", (4,))
  norm = np.linalg.norm(quaternion)
  if not 1e-6 <= norm < np.inf:
    raise PoseError(f"{path}: rotation = {data['rotation']!r} is not a quaternion (norm {norm:g})")
  turn = Rotation.from_quat(quaternion / norm, scalar_first=True)
  rotation = turn.as_matrix()

  # Both null says that there is no place; a key that is missing is an error below.
  no_translation = data.get("translation", 0) is None
  no_scale = data.get("scale", 0) is None
  if no_translation and no_scale:
    return rotation_only(rotation)

  translation = _numbers(path, data, "translation", (3,))
  scale = _numbers(path, data, "scale", (1, 3))
  if (scale <= 0).any():
    raise PoseError(f"{path}: scale = {data['scale']!r} must be positive")
  return Pose(rotation, translation, np.broadcast_to(scale, 3))


def _numbers(path: pathlib.Path, data: Any, name: str, sizes: tuple[int, ...]) -> np.ndarray:
  """The numbers of a key, of which there must be one of `sizes`. Raises PoseError."""
  try:
    value = np.asarray(data[name], np.float64)
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise PoseError(f"{path}: {name} is missing or not numeric") from error
  # A single number and a list of one are the same.
  value = value.reshape(-1)
  is_finite = np.isfinite(value).all()
  if value.size not in sizes or not is_finite:
    counts = " or ".join(map(str, sizes))
    raise PoseError(f"{path}: {name} = {data[name]!r} needs {counts} finite numbers")
  return value


def write_pose(path: str | pathlib.Path, pose: Pose) -> None:
  """Writes what `load_pose` reads; unknown translation and scale become null."""
  # Real part first, as everywhere outside SciPy.
  turn = Rotation.from_matrix(pose.rotation)
  values = {
    "rotation": turn.as_quat(scalar_first=True),
    "translation": None,
    "scale": None,
  }
  if is_placed(pose):
    values["translation"] = pose.translation
    values["scale"] = pose.scale

  # JSON knows lists of numbers, not arrays.
  stated = {}
  for name, value in values.items():
    if value is None:
      stated[name] = None
      continue
    flat = np.reshape(value, -1)
    stated[name] = [float(v) for v in flat]
  text = json.dumps(stated) + "\n"
  pathlib.Path(path).write_text(text)


def place(shape: Mesh, pose: Pose) -> Mesh:
  """The posed shape; only turned where the pose knows nothing but the rotation."""
  if not is_placed(pose):
    return shape.transformed(rotation=pose.rotation)
  return shape.transformed(
    scale=pose.scale,
    rotation=pose.rotation,
    translation=pose.translation,
  )


def box_iou(a_P3: np.ndarray, b_P3: np.ndarray) -> float:
  """IoU of the axis-aligned boxes of two point sets.

  Boxes without volume share none: 1 if they are equal, else 0.
  """
  # Axis-aligned boxes in the scene's frame.
  a_low = a_P3.min(0)
  a_high = a_P3.max(0)
  b_low = b_P3.min(0)
  b_high = b_P3.max(0)

  # Boxes that are apart along an axis have a negative side there.
  low = np.maximum(a_low, b_low)
  high = np.minimum(a_high, b_high)
  sides = np.clip(high - low, 0, None)
  shared = sides.prod()

  a_volume = (a_high - a_low).prod()
  b_volume = (b_high - b_low).prod()
  union = a_volume + b_volume - shared
  if union <= 0:
    same_low = np.array_equal(a_low, b_low)
    same_high = np.array_equal(a_high, b_high)
    return float(same_low and same_high)
  return float(shared / union)


def add_s(pred_P3: np.ndarray, truth_P3: np.ndarray, true_diameter: float) -> float:
  """Symmetrised ADD-S over the true diameter, of points in scene coordinates."""
  # Nearest points of the other shape: a symmetric object is not punished (ADD-S).
  there, _ = Tree(truth_P3).query(pred_P3)
  back, _ = Tree(pred_P3).query(truth_P3)
  both = there.mean() + back.mean()
  mean = float(both) / 2
  return mean / true_diameter


def icp_rotation_deg(
  pred: Mesh,
  truth: Mesh,
  protocol: align.IcpProtocol = align.IcpProtocol(),
  *,
  points: int = 20_000,
  seed: int = 0,
) -> float:
  """Residual rotation in degrees between two posed surfaces, in [0, 180]."""
  # Independent samples: equal ones would hide what a symmetry leaves open.
  pred_points, pred_normals = surface.sample_surface(pred, points, seed + 1)
  truth_points, truth_normals = surface.sample_surface(truth, points, seed)
  moving = align.make_cloud(pred_points, pred_normals)
  fixed = align.make_cloud(truth_points, truth_normals)
  moving = align.centred(moving)
  fixed = align.centred(fixed)

  # The best rotation found, unless staying where it is does about as well.
  found = align.search(moving, fixed, protocol)
  still = align.refine(
    moving,
    fixed,
    align.IDENTITY,
    protocol,
  )
  preferred = align.prefer([still, found], protocol.tie)
  return preferred.angle_deg


def layout_metrics(
  pred: Mesh | None,
  pred_pose: Pose | None,
  truth: Mesh,
  truth_pose: Pose,
  protocol: align.IcpProtocol = align.IcpProtocol(),
  *,
  points: int = 20_000,
  seed: int = 0,
) -> dict[str, float | None]:
  """iou_3d, icp_rot_deg, add_s, add_s_01.

  A prediction without surface or without pose scores WORST. A pose of which only the rotation is
  known has an icp_rot_deg, and None for the metrics that need a place.
  """
  # Nothing to place.
  if pred is None or pred_pose is None:
    return dict(WORST)

  # The rotation can always be compared, the rest needs two places.
  pred = place(pred, pred_pose)
  truth = place(truth, truth_pose)
  angle = icp_rotation_deg(
    pred,
    truth,
    protocol,
    points=points,
    seed=seed,
  )
  both_placed = is_placed(pred_pose) and is_placed(truth_pose)
  if not both_placed:
    unknown = dict.fromkeys(WORST)
    return unknown | {"icp_rot_deg": angle}

  # Distances in units of the true size.
  pred_P3, _ = surface.sample_surface(pred, points, seed)
  truth_P3, _ = surface.sample_surface(truth, points, seed)
  true_diameter = surface.diameter(truth.vertices)
  distance = add_s(pred_P3, truth_P3, true_diameter)
  return {
    "iou_3d": box_iou(pred.vertices, truth.vertices),
    "icp_rot_deg": angle,
    "add_s": distance,
    "add_s_01": float(distance < 0.1),
  }
