"""Object poses, and the layout latents that the flow model learns.

A `Pose` takes object points to the camera, `p_camera = R (scale * p) + t`, with an R that acts on
columns: the orientation of records, of pose files and of everything outside this module. The
published code keeps its transpose, which acts on rows of points, `(p * scale) @ R_rows + t`; the
latents and `pose_targets` are made of R_rows, and only this module turns one into the other. All
functions take numpy or JAX arrays; leading dimensions are free unless stated.
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry import pose_targets, rotations
from sam3d_jax.geometry.arrays import namespace
from sam3d_jax.geometry.pose_targets import PoseTarget, ScenePose

# average log scale of published training objects, of the baseline that predicts no layout
MEAN_LOG_SCALE = 1.337


class Pose(NamedTuple):
  """Object to camera: p_camera = rotation (scale * p) + translation, of column vectors.

  Where nothing but the rotation is known, translation and scale are NaN (`rotation_only`).
  """

  rotation: np.ndarray  # (..., 3, 3), acts on columns: those are the object's axes in the camera
  translation: np.ndarray  # (..., 3) camera frame, the point map's unit
  scale: np.ndarray  # (..., 3) per object axis


def rotation_only(rotation) -> Pose:
  """The pose of an object of which nothing but the rotation is known."""
  shape = rotation.shape[:-1]
  unknown = np.full(shape, np.nan)
  return Pose(
    rotation=rotation,
    translation=unknown,
    scale=unknown,
  )


def is_placed(pose: Pose) -> bool:
  """Whether translation and scale are known, not only the rotation."""
  known_place = np.isfinite(pose.translation).all()
  known_size = np.isfinite(pose.scale).all()
  return bool(known_place and known_size)


def transform_points(points, pose: Pose):
  """Object points (..., P, 3) -> camera points."""
  # Objects scale along their own axes, before they are turned.
  scale = pose.scale[..., None, :]
  translation = pose.translation[..., None, :]
  rows = transpose(pose.rotation)
  return (points * scale) @ rows + translation


def untransform_points(points, pose: Pose):
  """Inverse of `transform_points` for a rotation matrix."""
  scale = pose.scale[..., None, :]
  translation = pose.translation[..., None, :]
  # Rows times R are the columns turned back by its transpose.
  turned = (points - translation) @ pose.rotation
  return turned / scale


def transpose(rotation):
  """(..., 3, 3) -> R_rows of R and R of R_rows; a contiguous array in numpy."""
  xp = namespace(rotation)
  swapped = xp.swapaxes(rotation, -1, -2)
  if xp is not np:
    return swapped
  # Products with one point round otherwise where a matrix is only seen as transposed.
  return np.ascontiguousarray(swapped)


def release_quaternion(rotation):
  """(..., 3, 3) of a Pose -> quaternion (w, x, y, z) of R_rows, as the release writes it."""
  rows = transpose(rotation)
  return rotations.matrix_to_quaternion(rows)


def encode_rotation(rotation):
  """(..., 3, 3) of a Pose -> the latent `rotation` (..., 6)."""
  rows = transpose(rotation)
  six = rotations.matrix_to_6d(rows)
  return rotations.normalise_6d(six)


def decode_rotation(latent):
  """The latent `rotation` (..., 6) -> (..., 3, 3) of a Pose; the inverse of `encode_rotation`."""
  six = rotations.denormalise_6d(latent)
  rows = rotations.matrix_from_6d(six)
  return transpose(rows)


def compose(scale, rotation, translation):
  """4 x 4 row-vector matrix of scale, then rotation, then translation: [p, 1] @ M."""
  xp = namespace(scale, rotation, translation)
  # Points are rows, so the scale of axis i multiplies row i.
  linear = scale[..., :, None] * rotation
  zeros = xp.zeros_like(linear[..., :1])
  top = xp.concatenate([linear, zeros], axis=-1)

  # The translation is the last row; the last column is 0, 0, 0, 1.
  one = xp.ones_like(translation[..., :1])
  bottom = xp.concatenate([translation, one], axis=-1)
  bottom = bottom[..., None, :]
  return xp.concatenate([top, bottom], axis=-2)


def decompose(matrix):
  """4 x 4 row-vector matrix -> (scale, rotation, translation).

  The scales are the norms of the rows of the 3 x 3 part.
  """
  linear = matrix[..., :3, :3]
  translation = matrix[..., 3, :3]
  # Rows of a scaled rotation are as long as their scale.
  lengths = rotations.norm(linear)
  scale = lengths[..., 0]
  rotation = linear / lengths
  return scale, rotation, translation


def encode_latents(
  pose: Pose, scene_scale, scene_shift, *, convention: str = "ScaleShiftInvariant"
) -> dict:
  """Metric pose -> the four layout latents, each (..., 1, channels) (see sam3d_jax/batch.py).

  scene_scale, scene_shift: (..., 3), of the point map that the model is shown.
  """
  xp = namespace(*pose)
  lead = pose.translation.shape[:-1]

  def flat(x, *shape: int):
    """(..., *shape) -> (N, *shape) over all poses."""
    # A scene's scale and shift may be shared by many poses.
    array = xp.asarray(x)
    whole = xp.broadcast_to(array, (*lead, *shape))
    return xp.reshape(whole, (-1, *shape))

  # Each pose is the one object of a scene of its own.
  quaternion = release_quaternion(flat(pose.rotation, 3, 3))
  scenes = ScenePose(
    scale=flat(pose.scale, 3)[:, None],
    rotation=quaternion[:, None],
    translation=flat(pose.translation, 3)[:, None],
    scene_scale=flat(scene_scale, 3),
    scene_shift=flat(scene_shift, 3),
  )
  # The convention that the model was trained with is the default.
  target = pose_targets.encode(scenes, convention)

  # Rotations as whitened 6-D vectors, lengths as logarithms.
  rows = rotations.quaternion_to_matrix(target.rotation)
  six = rotations.matrix_to_6d(rows)
  out = {
    "rotation": rotations.normalise_6d(six),
    "translation": target.translation,
    "scale": xp.log(target.scale),
    "translation_scale": xp.log(target.translation_scale),
  }
  # The latents' row axis: one row a pose (batch.py).
  latents = {}
  for name, x in out.items():
    channels = x.shape[-1]
    latents[name] = xp.reshape(x, (*lead, 1, channels))
  return latents


def decode_latents(
  latents: dict,
  scene_scale,
  scene_shift,
  *,
  convention: str = "ScaleShiftInvariant",
  isotropic: bool = True,
) -> Pose:
  """The four layout latents -> metric pose; inverts `encode_latents` for one scale an object.

  isotropic: average the three scales, as the published decoder does.
  """
  xp = namespace(*latents.values())
  lead = latents["translation"].shape[:-2]

  def flat(x):
    """(..., 3) -> (N, 3) over all poses."""
    array = xp.asarray(x)
    whole = xp.broadcast_to(array, (*lead, 3))
    return xp.reshape(whole, (-1, 3))

  # Each pose is the one object of a scene of its own.
  six = rotations.denormalise_6d(latents["rotation"])
  rows = rotations.matrix_from_6d(six.reshape(-1, 1, 6))
  # The logarithms undone, and one object a scene again.
  target = PoseTarget(
    scale=xp.exp(latents["scale"]).reshape(-1, 1, 3),
    rotation=rotations.matrix_to_quaternion(rows),
    translation=latents["translation"].reshape(-1, 1, 3),
    translation_scale=xp.exp(latents["translation_scale"]).reshape(-1, 1, 1),
    scene_scale=flat(scene_scale),
    scene_shift=flat(scene_shift),
  )
  scenes = pose_targets.decode(target, convention)

  # Objects are scaled alike along their axes: the published decoder averages the three.
  scale = scenes.scale
  if isotropic:
    mean = scale.mean(-1, keepdims=True)
    scale = xp.broadcast_to(mean, scale.shape)
  rows = rotations.quaternion_to_matrix(scenes.rotation)
  return Pose(
    rotation=transpose(rows).reshape(*lead, 3, 3),
    translation=scenes.translation.reshape(*lead, 3),
    scale=scale.reshape(*lead, 3),
  )


def average_layout(latents: dict) -> dict:
  """Latents of the baseline that predicts only the rotation.

  It puts an object of average size at the scene's centre.
  """
  xp = namespace(*latents.values())
  average = {
    "translation": xp.zeros_like(latents["translation"]),
    "translation_scale": xp.zeros_like(latents["translation_scale"]),
    "scale": xp.full_like(latents["scale"], MEAN_LOG_SCALE),
  }
  return latents | average
