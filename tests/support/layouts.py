"""Poses by angles, and an alignment of few points."""

import numpy as np
from scipy.spatial.transform import Rotation

from sam3d_jax.evaluation import align
from sam3d_jax.geometry.pose import Pose

FAST = align.IcpProtocol(
  spiral=101,
  scan_points=128,
  keep=8,
  coarse_points=400,
  medium_points=2000,
  fine_points=2000,
)


def pose(rotvec_deg=(0, 0, 0), translation=(0, 0, 0), scale=1.0) -> Pose:
  """rotvec_deg: axis times angle, degrees. scale: one number or three."""
  rotation = Rotation.from_rotvec(rotvec_deg, degrees=True)
  return Pose(
    rotation.as_matrix(),
    np.array(translation, float),
    np.broadcast_to(np.float64(scale), 3),
  )
