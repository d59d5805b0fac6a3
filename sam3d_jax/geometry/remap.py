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
  if kind == "exp":
    return xp.concatenate([xy / (1 + z), xp.log1p(z)], axis=-1)
  if kind == "sinh_exp":
    return xp.concatenate([xp.arcsinh(xy), xp.log(xp.maximum(z, MIN_DEPTH))], axis=-1)
  return xp.concatenate([xy / z, xp.log(z)], axis=-1)


def unmap(points, kind: str):
  """Inverse of `remap`."""
  xp, xy, z = _split(points, kind)
  if kind == "linear":
    return points
  if kind == "sinh":
    return xp.sinh(points)
  if kind == "exp":
    depth = xp.expm1(z)
    return xp.concatenate([xy * (1 + depth), depth], axis=-1)
  depth = xp.exp(z)
  return xp.concatenate([xp.sinh(xy) if kind == "sinh_exp" else xy * depth, depth], axis=-1)


REMAPS = ("linear", "sinh", "exp", "sinh_exp", "exp_disparity")


def _split(points, kind):
  if kind not in REMAPS:
    raise ValueError(f"point remap {kind!r} is not one of {REMAPS}")
  return namespace(points), points[..., :2], points[..., 2:]
