"""Random poses in random scenes."""

import numpy as np

from sam3d_jax.geometry import pose, rotations

RNG = np.random.default_rng(2)


def scene_poses(batch=3, objects=1, channels=3, unit=False):
  scale = np.repeat(RNG.uniform(0.5, 2, (batch, objects, 1)), channels, -1)
  q = rotations.standardise(rotations.normalise(RNG.standard_normal((batch, objects, 4))))
  translation = RNG.standard_normal((batch, objects, 3)) + [0, 0, 4]
  scene_scale = np.ones((batch, 3)) if unit else np.repeat(RNG.uniform(0.5, 2, (batch, 1)), 3, -1)
  return pose.ScenePose(scale, q, translation, scene_scale, RNG.standard_normal((batch, 3)))
