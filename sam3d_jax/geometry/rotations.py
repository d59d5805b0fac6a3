"""Rotations: quaternions (w, x, y, z), 3 x 3 matrices, and the 6-D form of the flow model.

Conversions follow PyTorch3D: `quaternion_to_matrix(q)` is the textbook matrix of q, which acts on
columns as `quaternion_apply` does.
"""

import numpy as np

from sam3d_jax.geometry.arrays import namespace

# mean and standard deviation of the 6-D rotation over the published training set
SIX_D_MEAN = np.array(
  [-0.06366085, 0.00843822, 0.00017085, 0.00071266, -0.00309167, 0.51660938], np.float32
)
SIX_D_STD = np.array(
  [0.66569720, 0.67870123, 0.30345011, 0.43945044, 0.39817974, 0.61762869], np.float32
)
NORM_FLOOR = 1e-12  # smallest norm that a vector is divided by


def normalise(x):
  """x / max(|x|, 1e-12) over the last axis."""
  xp = namespace(x)
  return x / xp.maximum(norm(x), NORM_FLOOR)


def norm(x):
  """Euclidean norm over the last axis, which is kept; its gradient at zero is zero."""
  xp = namespace(x)
  squared = (x * x).sum(-1, keepdims=True)
  return xp.where(squared > 0, xp.sqrt(xp.where(squared > 0, squared, 1)), 0)


def quaternion_to_matrix(q):
  """(..., 4) of any non-zero length -> (..., 3, 3)."""
  xp = namespace(q)
  w, x, y, z = (q[..., i] for i in range(4))
  s = 2.0 / (q * q).sum(-1)
  rows = [
    1 - s * (y * y + z * z),
    s * (x * y - z * w),
    s * (x * z + y * w),
    s * (x * y + z * w),
    1 - s * (x * x + z * z),
    s * (y * z - x * w),
    s * (x * z - y * w),
    s * (y * z + x * w),
    1 - s * (x * x + y * y),
  ]
  return xp.stack(rows, axis=-1).reshape(*q.shape[:-1], 3, 3)


def matrix_to_quaternion(matrix):
  """(..., 3, 3) -> (..., 4) with a non-negative real part.

  Of the four equivalent formulas the one with the largest denominator is taken, which is stable for
  every angle (Shepperd 1978).
  """
  xp = namespace(matrix)
  m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
  trace = [
    1 + m[0][0] + m[1][1] + m[2][2],
    1 + m[0][0] - m[1][1] - m[2][2],
    1 - m[0][0] + m[1][1] - m[2][2],
    1 - m[0][0] - m[1][1] + m[2][2],
  ]
  squared = xp.stack(trace, axis=-1)
  # 2|w|, 2|x|, 2|y|, 2|z|
  size = xp.where(squared > 0, xp.sqrt(xp.where(squared > 0, squared, 1)), 0)
  wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
  xy, xz, yz = m[1][0] + m[0][1], m[2][0] + m[0][2], m[2][1] + m[1][2]
  ww, xx, yy, zz = (squared[..., i] for i in range(4))
  table = [[ww, wx, wy, wz], [wx, xx, xy, xz], [wy, xy, yy, yz], [wz, xz, yz, zz]]
  candidates = (
    xp.stack([xp.stack(row, axis=-1) for row in table], axis=-2)
    / (2 * xp.maximum(size, 0.1))[..., None]
  )
  best = xp.argmax(size, axis=-1)[..., None, None]
  return standardise(xp.take_along_axis(candidates, best, axis=-2)[..., 0, :])


def standardise(q):
  """The one of q and -q (the same rotation) with a non-negative real part."""
  return namespace(q).where(q[..., :1] < 0, -q, q)


def quaternion_multiply(a, b):
  """Hamilton product a b, standardised."""
  xp = namespace(a, b)
  aw, ax, ay, az = (a[..., i] for i in range(4))
  bw, bx, by, bz = (b[..., i] for i in range(4))
  return standardise(
    xp.stack(
      [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
      ],
      axis=-1,
    )
  )


def quaternion_invert(q):
  """Inverse of a unit quaternion."""
  return q * namespace(q).asarray([1, -1, -1, -1], dtype=q.dtype)


def quaternion_apply(q, points):
  """Rotates (..., 3) points by unit quaternions, as columns: matrix(q) p."""
  xp = namespace(q, points)
  v = q[..., 1:]
  t = 2 * xp.cross(v, points)
  return points + q[..., :1] * t + xp.cross(v, t)


def matrix_to_6d(matrix):
  """(..., 3, 3) -> (..., 6): the first column, then the second (arXiv 1812.07035)."""
  return namespace(matrix).concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def matrix_from_6d(six):
  """(..., 6) -> (..., 3, 3) by Gram-Schmidt; the inverse of `matrix_to_6d`.

  It is defined for any two independent vectors.
  """
  xp = namespace(six)
  first, second = six[..., :3], six[..., 3:]
  b1 = normalise(first)
  b2 = normalise(second - (b1 * second).sum(-1, keepdims=True) * b1)
  return xp.stack([b1, b2, xp.cross(b1, b2)], axis=-1)


def normalise_6d(six):
  """6-D rotation -> the latent: zero mean, unit variance over the published training set."""
  return (six - SIX_D_MEAN) / SIX_D_STD


def denormalise_6d(six):
  """Inverse of `normalise_6d`."""
  return six * SIX_D_STD + SIX_D_MEAN
