"""Random poses in random scenes."""

import numpy as np

from sam3d_jax.geometry import pose_targets, rotations

RNG = np.random.default_rng(2)


def scene_poses(batch=3, objects=1, channels=3, unit=False):
  """Poses of objects in front of the camera. channels: of their scale. unit: scenes of scale 1."""
  scale = np.repeat(RNG.uniform(0.5, 2, (batch, objects, 1)), channels, -1)
  quaternion = rotations.normalise(RNG.standard_normal((batch, objects, 4)))
  quaternion = rotations.standardise(quaternion)
  translation = RNG.standard_normal((batch, objects, 3)) + [0, 0, 4]

  # the normaliser of each scene's points
  scene_scale = np.ones((batch, 3))
  if not unit:
    scene_scale = np.repeat(RNG.uniform(0.5, 2, (batch, 1)), 3, -1)
  scene_shift = RNG.standard_normal((batch, 3))
  return pose_targets.ScenePose(scale, quaternion, translation, scene_scale, scene_shift)
