"""Gaussian splats as arrays: what they are, their colours, how they are moved and joined.

A splat is a Gaussian with a colour and an opacity. All values here are activated: lengths, not
their logarithms; opacities in 0..1, not logits; colours, not coefficients. The frame is the
holder's: the object frame (z up) where nothing else is said. All functions take numpy or JAX
arrays; nothing here imports JAX, so that readers of files can use it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sam3d_jax.geometry import pose, rotations
from sam3d_jax.geometry.arrays import namespace
from sam3d_jax.geometry.pose import Pose

SH_DEGREE_0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))


class Splats(NamedTuple):
  """N Gaussians. An opacity of 0 is a place that is not used, as padding has."""

  centres_N3: np.ndarray  # the frame's unit
  scales_N3: np.ndarray  # standard deviations along the Gaussian's own axes, the frame's unit
  # quaternions (w, x, y, z) of any length but 0; they turn the Gaussian's axes into the frame
  rotations_N4: np.ndarray
  opacities_N: np.ndarray  # 0..1, at the centre
  colours_N3: np.ndarray  # RGB, 0..1, in the space of the pictures (sRGB for published decoders)


def colours_of_sh0(coefficients_N3):
  """RGB of spherical harmonics of degree 0 (`f_dc`): max(0, 0.5 + SH_DEGREE_0 f)."""
  xp = namespace(coefficients_N3)
  shifted = 0.5 + SH_DEGREE_0 * coefficients_N3
  return xp.maximum(shifted, 0.0)


def sh0_of_colours(colours_N3):
  """The inverse of `colours_of_sh0` for colours that are not negative."""
  return (colours_N3 - 0.5) / SH_DEGREE_0


def join(several: Sequence[Splats]) -> Splats:
  """Splats of one frame as one list, in their order."""
  fields = []
  for parts in zip(*several, strict=True):
    xp = namespace(*parts)
    fields.append(xp.concatenate(parts, axis=0))
  return Splats(*fields)


def placed(splats: Splats, where: Pose) -> Splats:
  """Splats of an object in the frame that a pose leads to.

  Activated values are moved, so that objects with other activations can be joined. Degree 0 needs
  no turning of colours.

  Raises ValueError for a scale that differs between axes: it would shear Gaussians.
  """
  scale = np.asarray(where.scale)
  if not np.allclose(scale, scale[0], rtol=1e-4):
    raise ValueError(
      f"scale {scale.tolist()} differs between axes: splats keep their form only under one scale"
    )
  # The pose's turn after the Gaussian's own.
  turn = rotations.matrix_to_quaternion(where.rotation)
  return splats._replace(
    centres_N3=pose.transform_points(splats.centres_N3, where),
    scales_N3=splats.scales_N3 * scale[0],
    rotations_N4=quaternion_product(turn, splats.rotations_N4),
  )


def quaternion_product(first, second):
  """The turn by `second` and then by `first`, quaternions (..., 4) that broadcast."""
  xp = namespace(first, second)
  w, x, y, z = (first[..., i] for i in range(4))
  p, q, r, s = (second[..., i] for i in range(4))
  # Hamilton's product, component by component.
  real = w * p - x * q - y * r - z * s
  i = w * q + x * p + y * s - z * r
  j = w * r - x * s + y * p + z * q
  k = w * s + x * r - y * q + z * p
  return xp.stack([real, i, j, k], axis=-1)
