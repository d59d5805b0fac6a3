"""The published pose-target conventions: a pose relative to its scene.

`ScenePose` and `PoseTarget` are made of R_rows, the rotation that acts on rows of points, as the
published code keeps it; `sam3d_jax/geometry/pose.py` turns it into that of a `Pose`. All functions
take numpy or JAX arrays.

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
UNIT_FLOOR = 1e-7
# Optional whitening of ScaleShiftInvariant targets (statistics of the published training set).
SCALE_MEAN = np.array([1.0232692956924438, 1.0232691764831543, 1.0232692956924438], np.float32)
SCALE_STD = np.array([1.3773751258850098, 1.3773752450942993, 1.3773750066757202], np.float32)
TRANSLATION_MEAN = np.array(
  [0.003191213821992278, 0.017236359417438507, 0.9401122331619263], np.float32
)
TRANSLATION_STD = np.array([1.341888666152954, 0.7665449380874634, 3.175130605697632], np.float32)


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
    # Naive leaves the object's size in the point map's unit.
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
    # Depth and direction of the ray, both relative to the scene's scale.
    depth = pose.translation[..., 2:] / scene[..., 2:]
    across = pose.translation[..., :2] / scene[..., :2]
    # The shift of DisparitySpace is that of (x/z, y/z, log z).
    offset = across / depth - pose.scene_shift[:, None, :2]
    scale = pose.scale / scene / depth
    zero = xp.zeros_like(depth)
    translation = xp.concatenate([offset, zero], axis=-1)
    length = depth / xp.exp(pose.scene_shift[:, None, 2:])

  else:
    # the two that are invariant to scale and shift
    # p -> (p - shift) / scale, as one affine map.
    to_unit = 1 / pose.scene_scale
    to_centre = -pose.scene_shift / pose.scene_scale
    scale, rotation, translation = _rescale(
      pose,
      to_unit,
      to_centre,
      published_tiling,
    )
    length = ones
    if convention == "ScaleShiftInvariantWTranslationScale":
      # A unit direction and its length apart.
      length = rotations.norm(translation)
      translation = translation / xp.maximum(length, UNIT_FLOOR)

  # Statistics of the published training set, for ScaleShiftInvariant alone.
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
  # In the order opposite to `encode`: whitening was last there.
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
    # A ray of depth 1, then out to its depth.
    one = xp.ones_like(depth)
    ray = xp.concatenate([across, one], axis=-1)
    scale = scale * depth * scene
    translation = ray * depth * scene

  elif convention != "Identity":
    if convention == "ScaleShiftInvariantWTranslationScale":
      # A predicted direction need not be of unit length.
      norm = xp.maximum(rotations.norm(translation), UNIT_FLOOR)
      translation = translation / norm * length
    # p -> p * scale + shift, the inverse of the map in `encode`.
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
    # Published: the scenes are tiled over objects where they should be repeated.
    number = np.arange(batch * objects)
    index = number.reshape(batch, objects) % batch
    scene_scale = scene_scale[index]
    scene_shift = scene_shift[index]
  else:
    scene_scale = scene_scale[:, None]
    scene_shift = scene_shift[:, None]

  # Scale, then rotation, then the scene's scale, as one matrix; the norms of its rows are scales.
  scale3 = xp.broadcast_to(pose.scale, pose.translation.shape)
  of_row = scale3[..., :, None]
  rows = of_row * rotations.quaternion_to_matrix(pose.rotation)
  linear = rows * scene_scale[..., None, :]
  norms = rotations.norm(linear)
  rotation = rotations.matrix_to_quaternion(linear / norms)

  # as many scales as the pose came with
  count = pose.scale.shape[-1]
  scale = norms[..., 0][..., :count]
  translation = pose.translation * scene_scale + scene_shift
  return scale, rotation, translation
