"""From splats to ellipses in a picture (EWA splatting, Zwicker et al. 2001).

The kernels are published: `mip` is what the SAM 3D and TRELLIS decoders were trained with (a low
pass of 0.1 px^2, opacity compensated for what it spreads, Mip-Splatting), `classic` what splat
viewers do (0.3 px^2, not compensated: thin splats look fatter and brighter).

Everything runs over vectors of N numbers: a last axis of 3 would be padded to 128 on TPUs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render.splats import Splats

ALPHA_MIN = 1 / 255  # what covers less of a pixel is left out
ALPHA_MAX = 0.99
JACOBIAN_LIMIT = 1.3  # half fields of view, beyond which the projection is not linearised
DETERMINANT_MIN = 1e-6  # px^4; what is thinner is invisible under the compensated kernel
ROTATION_MIN = 1e-24  # squared length of a quaternion below which it says nothing
FARTHEST = 1e15  # of a coordinate, in the splats' unit: beyond it float32 overflows
WIDEST = 1e8  # px, of a standard deviation, likewise


@dataclasses.dataclass(frozen=True)
class Kernel:
  """How a splat is made as wide as a pixel at least."""

  blur: float  # px^2, added to both variances of the ellipse
  compensated: bool  # whether opacity falls as the ellipse grows


KERNELS = {
  "mip": Kernel(blur=0.1, compensated=True),
  "classic": Kernel(blur=0.3, compensated=False),
}


class Ellipses(NamedTuple):
  """N splats in a picture. What is not visible has opacity 0 and harmless other values."""

  # pixels, the centre of the top left pixel is (0.5, 0.5)
  u_N: jax.Array
  v_N: jax.Array
  # exponent at an offset (x, y): -(xx x^2 + 2 xy x y + yy y^2) / 2
  xx_N: jax.Array
  xy_N: jax.Array
  yy_N: jax.Array
  opacity_N: jax.Array  # at the centre, compensated where the kernel says so
  depth_N: jax.Array  # camera z of the centre
  # half the width and height of the box in which it covers at least ALPHA_MIN of a pixel
  reach_u_N: jax.Array
  reach_v_N: jax.Array
  visible_N: jax.Array  # bool
  valid_N: jax.Array  # bool: all values finite, a rotation that is one


def project(splats: Splats, camera: Camera, where: Pose, kernel: Kernel, near: float) -> Ellipses:
  """The ellipses of splats, differentiable in all of them, in the camera and in the pose.

  Args:
    splats: in a frame of their own.
    camera: pinhole; numbers or scalars of JAX.
    where: from the splats' frame to the camera's (x left, y up, z forward).
    kernel: one of KERNELS.
    near: camera z up to which splats are not drawn.

  Splats that hold NaN, infinity or an empty quaternion, or that are so far away (FARTHEST) or wide
  (WIDEST) that float32 overflows, are invalid: not visible, gradient zero.
  """
  splats, valid = _without_invalid(splats)

  # Centres in the camera's frame, and what lies before it.
  linear = where.rotation * where.scale[None, :]
  position = [splats.centres_N3[:, i] for i in range(3)]
  x, y, z = _transformed(linear, position)
  x = x + where.translation[0]
  y = y + where.translation[1]
  z = z + where.translation[2]
  in_front = z > near
  depth = jnp.where(in_front, z, 1.0)

  # Where they are seen; x points left and y up, against columns and rows.
  slope_x = x / depth
  slope_y = y / depth
  u = camera.cx - camera.fx * slope_x
  v = camera.cy - camera.fy * slope_y

  # What would overflow is taken out before it does, and with it its gradient.
  per_x = camera.fx / depth
  per_y = camera.fy / depth
  longest = jnp.abs(splats.scales_N3).max(-1)
  in_camera = longest * jnp.linalg.norm(linear)
  in_picture = in_camera * jnp.maximum(per_x, per_y)
  is_narrow = in_picture < WIDEST
  scales = jnp.where(is_narrow[:, None], splats.scales_N3, 1.0)
  splats = splats._replace(scales_N3=scales)
  valid = valid & is_narrow

  # The slope of the projection there, held back far outside the picture, where it is no plane.
  half_field_x = 0.5 * camera.width / camera.fx
  half_field_y = 0.5 * camera.height / camera.fy
  limit_x = JACOBIAN_LIMIT * half_field_x
  limit_y = JACOBIAN_LIMIT * half_field_y
  held_x = jnp.clip(slope_x, -limit_x, limit_x)
  held_y = jnp.clip(slope_y, -limit_y, limit_y)

  # Each axis of the Gaussian, as long as its standard deviation, in the picture.
  across = []
  down = []
  for axis in _axes(splats):
    ax, ay, az = _transformed(linear, axis)
    to_right = held_x * az - ax
    to_below = held_y * az - ay
    across.append(per_x * to_right)
    down.append(per_y * to_below)

  # Variances of the ellipse. The determinant is that of the cross product, which does not cancel.
  uu = _dot(across, across)
  uv = _dot(across, down)
  vv = _dot(down, down)
  normal = _cross(across, down)
  sharp = _dot(normal, normal)
  # Of the blurred ellipse: (uu + blur) (vv + blur) - uv^2, multiplied out.
  blur = kernel.blur
  blurred = sharp + blur * (uu + vv) + blur * blur

  # Its inverse, and the opacity.
  xx = (vv + blur) / blurred
  xy = -uv / blurred
  yy = (uu + blur) / blurred
  opacity = splats.opacities_N
  if kernel.compensated:
    opacity = opacity * _compensation(sharp, blurred)

  # As far as it covers at least ALPHA_MIN: opacity exp(-r^2 / 2) = ALPHA_MIN.
  fixed = jax.lax.stop_gradient((uu + blur, vv + blur, opacity))
  variance_u, variance_v, fixed_opacity = fixed
  ratio = jnp.maximum(fixed_opacity / ALPHA_MIN, 1.0)
  squared = 2.0 * jnp.log(ratio)
  reach_u = jnp.sqrt(squared * variance_u)
  reach_v = jnp.sqrt(squared * variance_v)

  visible = valid & in_front & (fixed_opacity >= ALPHA_MIN)
  return Ellipses(
    u_N=jnp.where(visible, u, 0.0),
    v_N=jnp.where(visible, v, 0.0),
    xx_N=jnp.where(visible, xx, 1.0),
    xy_N=jnp.where(visible, xy, 0.0),
    yy_N=jnp.where(visible, yy, 1.0),
    opacity_N=jnp.where(visible, opacity, 0.0),
    depth_N=jnp.where(visible, z, 0.0),
    reach_u_N=jnp.where(visible, reach_u, 0.0),
    reach_v_N=jnp.where(visible, reach_v, 0.0),
    visible_N=visible,
    valid_N=valid,
  )


def _without_invalid(splats: Splats) -> tuple[Splats, jax.Array]:
  """Splats with harmless values where a value cannot be used, and which are valid.

  Values are replaced before anything is computed with them: else their gradients would be NaN.
  """
  count = splats.centres_N3.shape[0]
  valid = jnp.ones(count, bool)
  for field in splats:
    flat = field.reshape(count, -1)
    finite = jnp.isfinite(flat).all(-1)
    valid = valid & finite
  squared = (splats.rotations_N4**2).sum(-1)
  valid = valid & (squared > ROTATION_MIN)
  farthest = jnp.abs(splats.centres_N3).max(-1)
  valid = valid & (farthest < FARTHEST)

  # A small, unturned, transparent one in their place.
  harmless = Splats(
    centres_N3=jnp.zeros(3),
    scales_N3=jnp.ones(3),
    rotations_N4=jnp.array([1.0, 0.0, 0.0, 0.0]),
    opacities_N=jnp.zeros(()),
    colours_N3=jnp.zeros(3),
  )
  fields = []
  for field, instead in zip(splats, harmless, strict=True):
    chosen = valid.reshape(-1, *[1] * instead.ndim)
    fields.append(jnp.where(chosen, field, instead))
  return Splats(*fields), valid


def _axes(splats: Splats) -> list[list[jax.Array]]:
  """The three axes of every Gaussian, each as three vectors of N numbers."""
  w, x, y, z = (splats.rotations_N4[:, i] for i in range(4))
  # 2 / |q|^2 stands for the length, so that q need not be a unit quaternion.
  squared = w * w + x * x + y * y + z * z
  s = 2.0 / squared
  xx, yy, zz = s * x * x, s * y * y, s * z * z
  xy, xz, yz = s * x * y, s * x * z, s * y * z
  wx, wy, wz = s * w * x, s * w * y, s * w * z
  # Columns of the rotation matrix.
  first = [1 - yy - zz, xy + wz, xz - wy]
  second = [xy - wz, 1 - xx - zz, yz + wx]
  third = [xz + wy, yz - wx, 1 - xx - yy]

  # Each as long as the Gaussian is wide along it.
  axes = []
  for number, column in enumerate((first, second, third)):
    length = splats.scales_N3[:, number]
    axis = [length * component for component in column]
    axes.append(axis)
  return axes


def _transformed(linear_33: jax.Array, vector: list[jax.Array]) -> list[jax.Array]:
  """A matrix times vectors that are given by component."""
  x, y, z = vector
  rows = []
  for row in range(3):
    a, b, c = linear_33[row]
    rows.append(a * x + b * y + c * z)
  return rows


def _dot(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
  ax, ay, az = a
  bx, by, bz = b
  return ax * bx + ay * by + az * bz


def _cross(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
  ax, ay, az = a
  bx, by, bz = b
  return [
    ay * bz - az * by,
    az * bx - ax * bz,
    ax * by - ay * bx,
  ]


def _compensation(sharp_N: jax.Array, blurred_N: jax.Array) -> jax.Array:
  """How much of the opacity is left once the ellipse is blurred (Mip-Splatting's formula)."""
  before = jnp.maximum(sharp_N, DETERMINANT_MIN)
  after = jnp.maximum(blurred_N, DETERMINANT_MIN)
  ratio = before / (after + DETERMINANT_MIN)
  factor = jnp.sqrt(ratio + DETERMINANT_MIN)
  # Thinner than that in the picture, a splat is left out.
  was_solid = before > DETERMINANT_MIN
  is_solid = after > DETERMINANT_MIN
  return jnp.where(was_solid & is_solid, factor, 0.0)
