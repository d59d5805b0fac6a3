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
  # A zero vector stays zero instead of becoming NaN.
  xp = namespace(x)
  length = norm(x)
  return x / xp.maximum(length, NORM_FLOOR)


def norm(x):
  """Euclidean norm over the last axis, which is kept; its gradient at zero is zero."""
  xp = namespace(x)
  squared = (x * x).sum(-1, keepdims=True)
  positive = squared > 0
  # The inner choice keeps the square root's infinite slope out of the gradient.
  safe = xp.where(squared > 0, squared, 1)
  return xp.where(positive, xp.sqrt(safe), 0)


def quaternion_to_matrix(q):
  """(..., 4) of any non-zero length -> (..., 3, 3)."""
  xp = namespace(q)
  w, x, y, z = (q[..., i] for i in range(4))

  # 2 / |q|^2 stands for the length, so that q need not be a unit quaternion.
  squared = (q * q).sum(-1)
  s = 2.0 / squared

  # The nine entries, row by row (PyTorch3D's `quaternion_to_matrix`).
  entries = [
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
  flat = xp.stack(entries, axis=-1)
  lead = q.shape[:-1]
  return flat.reshape(*lead, 3, 3)


def matrix_to_quaternion(matrix):
  """(..., 3, 3) -> (..., 4) with a non-negative real part.

  Of the four equivalent formulas the one with the largest denominator is taken, which is stable for
  every angle (Shepperd 1978).
  """
  xp = namespace(matrix)
  # Entry (row i, column j) of every matrix.
  m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]

  # 4 w^2, 4 x^2, 4 y^2, 4 z^2, and from them 2|w|, 2|x|, 2|y|, 2|z|
  trace = [
    1 + m[0][0] + m[1][1] + m[2][2],
    1 + m[0][0] - m[1][1] - m[2][2],
    1 - m[0][0] + m[1][1] - m[2][2],
    1 - m[0][0] - m[1][1] + m[2][2],
  ]
  squared = xp.stack(trace, axis=-1)
  # The inner choice keeps the gradient finite where a sum is zero.
  positive = squared > 0
  safe = xp.where(squared > 0, squared, 1)
  size = xp.where(positive, xp.sqrt(safe), 0)

  # four times the products of two components
  wx = m[2][1] - m[1][2]
  wy = m[0][2] - m[2][0]
  wz = m[1][0] - m[0][1]
  xy = m[1][0] + m[0][1]
  xz = m[2][0] + m[0][2]
  yz = m[2][1] + m[1][2]
  ww, xx, yy, zz = (squared[..., i] for i in range(4))

  # Row i is the quaternion times four times component i; the row of the largest is taken.
  table = [
    [ww, wx, wy, wz],
    [wx, xx, xy, xz],
    [wy, xy, yy, yz],
    [wz, xz, yz, zz],
  ]
  rows = [xp.stack(row, axis=-1) for row in table]
  candidates = xp.stack(rows, axis=-2)
  # The floor is never the largest one's: of the four, one is at least 1.
  divisor = 2 * xp.maximum(size, 0.1)
  candidates = candidates / divisor[..., None]
  best = xp.argmax(size, axis=-1)
  best = best[..., None, None]
  chosen = xp.take_along_axis(candidates, best, axis=-2)
  return standardise(chosen[..., 0, :])


def standardise(q):
  """The one of q and -q (the same rotation) with a non-negative real part."""
  xp = namespace(q)
  # q and -q double-cover the same rotation; the cover is cut at w = 0.
  negative = q[..., :1] < 0
  return xp.where(negative, -q, q)


def quaternion_multiply(a, b):
  """Hamilton product a b, standardised."""
  xp = namespace(a, b)
  aw, ax, ay, az = (a[..., i] for i in range(4))
  bw, bx, by, bz = (b[..., i] for i in range(4))
  # Real part first, then i, j and k.
  w = aw * bw - ax * bx - ay * by - az * bz
  x = aw * bx + ax * bw + ay * bz - az * by
  y = aw * by - ax * bz + ay * bw + az * bx
  z = aw * bz + ax * by - ay * bx + az * bw
  product = xp.stack([w, x, y, z], axis=-1)
  return standardise(product)


def quaternion_invert(q):
  """Inverse of a unit quaternion."""
  xp = namespace(q)
  # Of unit length, the conjugate is the inverse.
  conjugate = xp.asarray([1, -1, -1, -1], dtype=q.dtype)
  return q * conjugate


def quaternion_apply(q, points):
  """Rotates (..., 3) points by unit quaternions, as columns: matrix(q) p."""
  xp = namespace(q, points)
  w = q[..., :1]
  v = q[..., 1:]
  # p + w t + v x t with t = 2 v x p, which needs no matrix
  t = 2 * xp.cross(v, points)
  return points + w * t + xp.cross(v, t)


def matrix_to_6d(matrix):
  """(..., 3, 3) -> (..., 6): the first column, then the second (arXiv 1812.07035)."""
  xp = namespace(matrix)
  # Columns are the turned x and y axes; the third follows from them.
  first = matrix[..., :, 0]
  second = matrix[..., :, 1]
  return xp.concatenate([first, second], axis=-1)


def matrix_from_6d(six):
  """(..., 6) -> (..., 3, 3) by Gram-Schmidt; the inverse of `matrix_to_6d`.

  It is defined for any two independent vectors.
  """
  xp = namespace(six)
  first = six[..., :3]
  second = six[..., 3:]
  # The first vector stays, the second loses what it has of the first, the third is across both.
  b1 = normalise(first)
  along = (b1 * second).sum(-1, keepdims=True)
  b2 = normalise(second - along * b1)
  b3 = xp.cross(b1, b2)
  return xp.stack([b1, b2, b3], axis=-1)


def normalise_6d(six):
  """6-D rotation -> the latent: zero mean, unit variance over the published training set."""
  return (six - SIX_D_MEAN) / SIX_D_STD


def denormalise_6d(six):
  """Inverse of `normalise_6d`."""
  return six * SIX_D_STD + SIX_D_MEAN
