"""The compositing equation in float64 NumPy, splat by splat: no tiles, no bounds.

Written from the published formulas in matrix form, independently of sam3d_jax/render.
"""

import numpy as np


def render(splats, camera, where, *, blur, compensated, near=0.2, background=(0.0, 0.0, 0.0)):
  """(colour (H, W, 3), alpha (H, W), depth (H, W), NaN where nothing is)."""
  centres, scales, quaternions, opacities, colours = (np.asarray(f, np.float64) for f in splats)
  rotation, translation, scale = (np.asarray(f, np.float64) for f in where)
  # Into OpenCV's axes, in which u = fx x / z + cx.
  linear = np.diag([-1.0, -1.0, 1.0]) @ rotation @ np.diag(scale)
  shift = np.diag([-1.0, -1.0, 1.0]) @ translation
  u = np.arange(camera.width) + 0.5
  v = np.arange(camera.height) + 0.5
  u, v = np.meshgrid(u, v)

  seen = []
  for number in range(len(centres)):
    fields = (centres, scales, quaternions, opacities, colours)
    if not all(np.isfinite(field[number]).all() for field in fields):
      continue
    position = linear @ centres[number] + shift
    if position[2] <= near:
      continue
    ellipse = covariance(linear, position, scales[number], quaternions[number], camera)
    opacity = opacities[number]
    before = max(1e-6, np.linalg.det(ellipse))
    ellipse = ellipse + blur * np.eye(2)
    after = max(1e-6, np.linalg.det(ellipse))
    if compensated:
      factor = np.sqrt(before / (after + 1e-6) + 1e-6)
      opacity = opacity * factor if min(before, after) > 1e-6 else 0.0
    centre = camera.fx * position[0] / position[2] + camera.cx
    middle = camera.fy * position[1] / position[2] + camera.cy
    offset = np.stack([u - centre, v - middle], -1)
    power = -0.5 * np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(ellipse), offset)
    seen.append((position[2], np.minimum(0.99, opacity * np.exp(power)), colours[number]))

  colour = np.zeros((*u.shape, 3))
  weights = np.zeros(u.shape)
  depths = np.zeros(u.shape)
  light = np.ones(u.shape)
  is_open = np.ones(u.shape, bool)
  for depth, alpha, rgb in sorted(seen, key=lambda row: row[0]):
    alpha = np.where(alpha < 1 / 255, 0.0, alpha)
    is_open &= light * (1 - alpha) >= 1e-4
    weight = np.where(is_open, light * alpha, 0.0)
    colour += weight[..., None] * rgb
    weights += weight
    depths += weight * depth
    light = np.where(is_open, light * (1 - alpha), light)
  colour += light[..., None] * np.asarray(background)
  with np.errstate(invalid="ignore"):
    return colour, weights, np.where(weights > 0, depths / weights, np.nan)


def covariance(linear, position, scales, quaternion, camera):
  """(2, 2) of a splat in the picture, px^2."""
  # in the object's frame, then in the camera's
  turn = rotation(quaternion)
  variances = np.diag(scales**2)
  in_object = turn @ variances @ turn.T
  in_camera = linear @ in_object @ linear.T

  # where the projection is linearised: not far outside of the picture
  tx, ty, tz = position
  limit_x = 1.3 * camera.width / (2 * camera.fx)
  limit_y = 1.3 * camera.height / (2 * camera.fy)
  tx = np.clip(tx / tz, -limit_x, limit_x) * tz
  ty = np.clip(ty / tz, -limit_y, limit_y) * tz
  of_x = [camera.fx / tz, 0.0, -camera.fx * tx / tz**2]
  of_y = [0.0, camera.fy / tz, -camera.fy * ty / tz**2]
  jacobian = np.array([of_x, of_y])
  return jacobian @ in_camera @ jacobian.T


def rotation(quaternion):
  """(3, 3) of w x y z: the columns are where the axes go, u + w t + q x t with t = 2 q x u."""
  w, *vector = quaternion / np.linalg.norm(quaternion)
  columns = []
  for axis in np.eye(3):
    twice = 2 * np.cross(vector, axis)
    columns.append(axis + w * twice + np.cross(vector, twice))
  return np.stack(columns, axis=-1)
