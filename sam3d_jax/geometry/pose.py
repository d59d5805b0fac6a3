"""Object poses, the published pose-target conventions, and the layout latents.

A `Pose` takes object points to the camera, `p_camera = R (scale * p) + t`, with an R that acts on
columns: the orientation of records, of pose files and of everything outside this module. The
published code keeps its transpose, which acts on rows of points, `(p * scale) @ R_rows + t`; the
latents, `ScenePose` and `PoseTarget` are made of R_rows, and only this module turns one into the
other. All functions take numpy or JAX arrays; leading dimensions are free unless stated.

A convention rewrites a pose relative to the scene, whose point map has a scale and a shift
(sam3d_jax/geometry/normalisers.py). With t_rel = t / scene_scale, s_rel = s / scene_scale and
u = (t - scene_shift) / scene_scale:

    convention                             scale          translation            translation_scale
    Identity                               s              t                      1
    Naive                                  s              t_rel                  1
    NormalizedSceneScale                   s_rel          t_rel                  1
    NormalizedSceneScaleAndTranslation     s_rel          t_rel / |t_rel|        |t_rel|
    ApparentSize                           s_rel/|t_rel|  t_rel / |t_rel|        |t_rel|
    DisparitySpace                         s / z          (x/z, y/z, 0) - shift  z / exp(shift_z)
    ScaleShiftInvariant                    s_rel          u                      1
    ScaleShiftInvariantWTranslationScale   s_rel          u / |u|                |u|

ScaleShiftInvariant is the one that the released model was trained with.
"""

from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry import rotations
from sam3d_jax.geometry.arrays import namespace

CONVENTIONS = (
  "Identity",
  "Naive",
  "NormalizedSceneScale",
  "NormalizedSceneScaleAndTranslation",
  "ApparentSize",
  "DisparitySpace",
  "ScaleShiftInvariant",
  "ScaleShiftInvariantWTranslationScale",
)
# average log scale of published training objects, of the baseline that predicts no layout
MEAN_LOG_SCALE = 1.337
UNIT_FLOOR = 1e-7
# Optional whitening of ScaleShiftInvariant targets (statistics of the published training set).
SCALE_MEAN = np.array([1.0232692956924438, 1.0232691764831543, 1.0232692956924438], np.float32)
SCALE_STD = np.array([1.3773751258850098, 1.3773752450942993, 1.3773750066757202], np.float32)
TRANSLATION_MEAN = np.array(
  [0.003191213821992278, 0.017236359417438507, 0.9401122331619263], np.float32
)
TRANSLATION_STD = np.array([1.341888666152954, 0.7665449380874634, 3.175130605697632], np.float32)


class Pose(NamedTuple):
  """Object to camera: p_camera = rotation (scale * p) + translation, of column vectors.

  Where nothing but the rotation is known, translation and scale are NaN (`rotation_only`).
  """

  rotation: np.ndarray  # (..., 3, 3), acts on columns: those are the object's axes in the camera
  translation: np.ndarray  # (..., 3) camera frame, the point map's unit
  scale: np.ndarray  # (..., 3) per object axis


class ScenePose(NamedTuple):
  """Poses of K objects in each of B scenes, with the scenes' normalisation."""

  scale: np.ndarray  # (B, K, 3) or (B, K, 1)
  rotation: np.ndarray  # (B, K, 4) quaternion of R_rows
  translation: np.ndarray  # (B, K, 3)
  scene_scale: np.ndarray  # (B, 3)
  scene_shift: np.ndarray  # (B, 3)


class PoseTarget(NamedTuple):
  """A ScenePose rewritten by a convention."""

  scale: np.ndarray  # (B, K, 3) or (B, K, 1)
  rotation: np.ndarray  # (B, K, 4) quaternion of R_rows
  translation: np.ndarray  # (B, K, 3)
  translation_scale: np.ndarray  # (B, K, 1)
  scene_scale: np.ndarray  # (B, 3)
  scene_shift: np.ndarray  # (B, 3)


class Invariant(NamedTuple):
  """Quantities of a ScenePose that do not depend on the unit of length.

  t_rel and s_rel are relative to the scene's scale.
  """

  rotation: np.ndarray  # (B, K, 4)
  direction: np.ndarray  # (B, K, 3) t_rel / |t_rel|
  distance: np.ndarray  # (B, K, 1) |t_rel|
  scale: np.ndarray  # (B, K, 3) s_rel
  apparent_scale: np.ndarray  # (B, K, 3) s_rel / |t_rel|


def rotation_only(rotation) -> Pose:
  """The pose of an object of which nothing but the rotation is known."""
  unknown = np.full(rotation.shape[:-1], np.nan)
  return Pose(rotation, unknown, unknown)


def is_placed(pose: Pose) -> bool:
  """Whether translation and scale are known, not only the rotation."""
  known_place = np.isfinite(pose.translation).all()
  known_size = np.isfinite(pose.scale).all()
  return bool(known_place and known_size)


def transform_points(points, pose: Pose):
  """Object points (..., P, 3) -> camera points."""
  scaled = points * pose.scale[..., None, :]
  turned = scaled @ transpose(pose.rotation)
  return turned + pose.translation[..., None, :]


def untransform_points(points, pose: Pose):
  """Inverse of `transform_points` for a rotation matrix."""
  centred = points - pose.translation[..., None, :]
  turned = centred @ pose.rotation
  return turned / pose.scale[..., None, :]


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
  # Rows of the linear part, then the translation; the last column is 0, 0, 0, 1.
  xp = namespace(scale, rotation, translation)
  linear = scale[..., :, None] * rotation
  zeros = xp.zeros_like(linear[..., :1])
  top = xp.concatenate([linear, zeros], axis=-1)
  one = xp.ones_like(translation[..., :1])
  bottom = xp.concatenate([translation, one], axis=-1)
  return xp.concatenate([top, bottom[..., None, :]], axis=-2)


def decompose(matrix):
  """4 x 4 row-vector matrix -> (scale, rotation, translation).

  The scales are the norms of the rows of the 3 x 3 part.
  """
  linear = matrix[..., :3, :3]
  scale = rotations.norm(linear)
  rotation = linear / scale
  return scale[..., 0], rotation, matrix[..., 3, :3]


def invariants(pose: ScenePose) -> Invariant:
  """The scale-free description of a pose. It ignores the scene's shift."""
  # Lengths of the scene become 1; an object at the camera has no direction.
  xp = namespace(*pose)
  scene = pose.scene_scale[:, None]
  relative = pose.translation / scene
  distance = xp.maximum(rotations.norm(relative), 1e-8)
  scale = pose.scale / scene
  return Invariant(
    rotation=pose.rotation,
    direction=relative / distance,
    distance=distance,
    scale=scale,
    apparent_scale=scale / distance,
  )


def encode(
  pose: ScenePose, convention: str, *, whiten: bool = False, published_tiling: bool = False
) -> PoseTarget:
  """Rewrites metric poses by a convention (table above).

  Args:
    pose: B scenes with K objects each.
    convention: one of CONVENTIONS.
    whiten: ScaleShiftInvariant only: subtract the mean and divide by the standard deviation of
    scale and translation.
    published_tiling: reproduce the published code where B > 1 and K > 1, which pairs object n = b K
    + k with scene n mod B.

  Raises:
    ValueError: unknown convention, or `whiten` with another one than ScaleShiftInvariant.
  """
  _check(convention, whiten)
  xp = namespace(*pose)
  ones = xp.ones_like(pose.translation[..., :1])
  scene = pose.scene_scale[:, None]
  rotation = pose.rotation

  # One branch for each row of the table, or two that differ in the scale.
  if convention == "Identity":
    scale = pose.scale
    translation = pose.translation
    length = ones

  elif convention in ("Naive", "NormalizedSceneScale"):
    unit = 1 if convention == "Naive" else scene
    scale = pose.scale / unit
    translation = pose.translation / scene
    length = ones

  elif convention in ("NormalizedSceneScaleAndTranslation", "ApparentSize"):
    inv = invariants(pose)
    scale = inv.apparent_scale if convention == "ApparentSize" else inv.scale
    translation = inv.direction
    length = inv.distance

  elif convention == "DisparitySpace":
    depth = pose.translation[..., 2:] / scene[..., 2:]
    across = pose.translation[..., :2] / scene[..., :2]
    offset = across / depth - pose.scene_shift[:, None, :2]
    scale = pose.scale / scene / depth
    translation = xp.concatenate([offset, xp.zeros_like(depth)], axis=-1)
    length = depth / xp.exp(pose.scene_shift[:, None, 2:])

  else:
    # the two that are invariant to scale and shift
    to_unit = 1 / pose.scene_scale
    to_centre = -pose.scene_shift / pose.scene_scale
    scale, rotation, translation = _rescale(pose, to_unit, to_centre, published_tiling)
    length = ones
    if convention == "ScaleShiftInvariantWTranslationScale":
      length = rotations.norm(translation)
      translation = translation / xp.maximum(length, UNIT_FLOOR)

  if whiten:
    scale = (scale - SCALE_MEAN) / SCALE_STD
    translation = (translation - TRANSLATION_MEAN) / TRANSLATION_STD
  return PoseTarget(
    scale=scale,
    rotation=rotation,
    translation=translation,
    translation_scale=length,
    scene_scale=pose.scene_scale,
    scene_shift=pose.scene_shift,
  )


def decode(
  target: PoseTarget, convention: str, *, whiten: bool = False, published_tiling: bool = False
) -> ScenePose:
  """Inverse of `encode`, with the same arguments."""
  _check(convention, whiten)
  xp = namespace(*target)
  scene = target.scene_scale[:, None]
  scale = target.scale
  translation = target.translation
  length = target.translation_scale
  rotation = target.rotation
  if whiten:
    scale = scale * SCALE_STD + SCALE_MEAN
    translation = translation * TRANSLATION_STD + TRANSLATION_MEAN

  # The branches of `encode`, undone; Identity has nothing to undo.
  if convention in ("Naive", "NormalizedSceneScale"):
    unit = 1 if convention == "Naive" else scene
    scale = scale * unit
    translation = translation * scene

  elif convention in ("NormalizedSceneScaleAndTranslation", "ApparentSize"):
    unit = length if convention == "ApparentSize" else 1
    scale = scale * scene * unit
    translation = translation * length * scene

  elif convention == "DisparitySpace":
    depth = length * xp.exp(target.scene_shift[:, None, 2:])
    across = translation[..., :2] + target.scene_shift[:, None, :2]
    ray = xp.concatenate([across, xp.ones_like(depth)], axis=-1)
    scale = scale * depth * scene
    translation = ray * depth * scene

  elif convention != "Identity":
    if convention == "ScaleShiftInvariantWTranslationScale":
      norm = xp.maximum(rotations.norm(translation), UNIT_FLOOR)
      translation = translation / norm * length
    relative = ScenePose(
      scale=scale,
      rotation=rotation,
      translation=translation,
      scene_scale=target.scene_scale,
      scene_shift=target.scene_shift,
    )
    scale, rotation, translation = _rescale(
      relative,
      target.scene_scale,
      target.scene_shift,
      published_tiling,
    )

  return ScenePose(
    scale=scale,
    rotation=rotation,
    translation=translation,
    scene_scale=target.scene_scale,
    scene_shift=target.scene_shift,
  )


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
    whole = xp.broadcast_to(xp.asarray(x), (*lead, *shape))
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
  target = encode(scenes, convention)

  # Rotations as whitened 6-D vectors, lengths as logarithms.
  rows = rotations.quaternion_to_matrix(target.rotation)
  six = rotations.matrix_to_6d(rows)
  out = {
    "rotation": rotations.normalise_6d(six),
    "translation": target.translation,
    "scale": xp.log(target.scale),
    "translation_scale": xp.log(target.translation_scale),
  }
  return {name: xp.reshape(x, (*lead, 1, x.shape[-1])) for name, x in out.items()}


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
    whole = xp.broadcast_to(xp.asarray(x), (*lead, 3))
    return xp.reshape(whole, (-1, 3))

  # Each pose is the one object of a scene of its own.
  six = rotations.denormalise_6d(latents["rotation"]).reshape(-1, 1, 6)
  rows = rotations.matrix_from_6d(six)
  target = PoseTarget(
    scale=xp.exp(latents["scale"]).reshape(-1, 1, 3),
    rotation=rotations.matrix_to_quaternion(rows),
    translation=latents["translation"].reshape(-1, 1, 3),
    translation_scale=xp.exp(latents["translation_scale"]).reshape(-1, 1, 1),
    scene_scale=flat(scene_scale),
    scene_shift=flat(scene_shift),
  )
  scenes = decode(target, convention)

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


def _check(convention, whiten):
  if convention not in CONVENTIONS:
    raise ValueError(f"pose convention {convention!r} is not one of {CONVENTIONS}")
  if whiten and convention != "ScaleShiftInvariant":
    raise ValueError(f"whitening is defined for ScaleShiftInvariant only, not for {convention}")


def _rescale(pose: ScenePose, scene_scale, scene_shift, published_tiling):
  """Follows each pose with p -> p * scene_scale + scene_shift and decomposes the result again."""
  xp = namespace(*pose)

  # The scene of each object.
  batch, objects = pose.translation.shape[:2]
  if published_tiling:
    number = np.arange(batch * objects).reshape(batch, objects)
    index = number % batch
    scene_scale = scene_scale[index]
    scene_shift = scene_shift[index]
  else:
    scene_scale = scene_scale[:, None]
    scene_shift = scene_shift[:, None]

  # Scale, then rotation, then the scene's scale, as one matrix; the norms of its rows are scales.
  scale3 = xp.broadcast_to(pose.scale, pose.translation.shape)
  rows = scale3[..., :, None] * rotations.quaternion_to_matrix(pose.rotation)
  linear = rows * scene_scale[..., None, :]
  norms = rotations.norm(linear)
  rotation = rotations.matrix_to_quaternion(linear / norms)

  # as many scales as the pose came with
  scale = norms[..., 0][..., : pose.scale.shape[-1]]
  translation = pose.translation * scene_scale + scene_shift
  return scale, rotation, translation
