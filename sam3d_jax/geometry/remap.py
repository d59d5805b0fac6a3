"""Point remaps: invertible maps that compress the range of camera-frame points, and their inverses.

Points are (..., 3) with z forward. Formulas, with x standing for both x and y:

    linear          x                 z
    sinh            asinh x           asinh z
    exp             x / (1 + z)       log(1 + z)
    sinh_exp        asinh x           log max(z, 1e-8)
    exp_disparity   x / z             log z
"""

from sam3d_jax.geometry.arrays import namespace

MIN_DEPTH = 1e-8  # of sinh_exp


def remap(points, kind: str):
  """Applies the named remap."""
  xp, xy, z = _split(points, kind)
  if kind == "linear":
    return points
  if kind == "sinh":
    return xp.arcsinh(points)

  # The other maps treat x and y unlike z.
  if kind == "exp":
    across = xy / (1 + z)
    depth = xp.log1p(z)
  elif kind == "sinh_exp":
    across = xp.arcsinh(xy)
    depth = xp.log(xp.maximum(z, MIN_DEPTH))
  else:
    across = xy / z
    depth = xp.log(z)
  return xp.concatenate([across, depth], axis=-1)


def unmap(points, kind: str):
  """Inverse of `remap`."""
  xp, xy, z = _split(points, kind)
  if kind == "linear":
    return points
  if kind == "sinh":
    return xp.sinh(points)

  # The depth first, because x and y may be relative to it.
  if kind == "exp":
    depth = xp.expm1(z)
    across = xy * (1 + depth)
  elif kind == "sinh_exp":
    depth = xp.exp(z)
    across = xp.sinh(xy)
  else:
    depth = xp.exp(z)
    across = xy * depth
  return xp.concatenate([across, depth], axis=-1)


REMAPS = ("linear", "sinh", "exp", "sinh_exp", "exp_disparity")


def _split(points, kind):
  if kind not in REMAPS:
    raise ValueError(f"point remap {kind!r} is not one of {REMAPS}")
  xp = namespace(points)
  return xp, points[..., :2], points[..., 2:]
