"""Splats as arrays: colours of degree 0, placing, joining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.geometry import rotations
from sam3d_jax.geometry.pose import Pose, transform_points
from sam3d_jax.render import splats
from sam3d_jax.render.splats import Splats


def some(count, seed=0):
  draw = np.random.default_rng(seed)
  return Splats(
    centres_N3=draw.standard_normal((count, 3)),
    scales_N3=draw.uniform(0.1, 1, (count, 3)),
    rotations_N4=draw.standard_normal((count, 4)),
    opacities_N=draw.uniform(0, 1, count),
    colours_N3=draw.uniform(0, 1, (count, 3)),
  )


def covariances(several):
  turn = rotations.quaternion_to_matrix(several.rotations_N4)
  axes = turn * several.scales_N3[:, None, :]
  return axes @ axes.swapaxes(1, 2)


def test_colours_of_degree_0_are_those_of_the_harmonic():
  # the harmonic of degree 0 is 1 / (2 sqrt(pi)) everywhere
  coefficients = np.array([[1.0, 0.0, -5.0]])
  found = splats.colours_of_sh0(coefficients)
  np.testing.assert_allclose(found, [[0.5 + 0.5 / np.sqrt(np.pi), 0.5, 0]])
  back = splats.sh0_of_colours(found)
  np.testing.assert_allclose(back[:, :2], coefficients[:, :2], atol=1e-12)
  # nothing pulls a colour that is cut at 0
  slope = jax.grad(lambda values: splats.colours_of_sh0(values).sum())(jnp.array(coefficients))
  np.testing.assert_allclose(slope, [[splats.SH_DEGREE_0, splats.SH_DEGREE_0, 0]])


def test_placed_splats_are_moved_turned_and_scaled_as_points_are():
  several = some(6)
  where = Pose(
    rotation=rotations.quaternion_to_matrix(np.array([0.3, -0.5, 0.7, 0.2])),
    translation=np.array([1.0, 2.0, 3.0]),
    scale=np.full(3, 0.4),
  )
  found = splats.placed(several, where)
  points = transform_points(several.centres_N3, where)
  np.testing.assert_allclose(found.centres_N3, points)
  linear = where.rotation * 0.4
  expected = linear @ covariances(several) @ linear.T
  np.testing.assert_allclose(covariances(found), expected, atol=1e-12)
  np.testing.assert_array_equal(found.colours_N3, several.colours_N3)
  with pytest.raises(ValueError, match="differs between axes"):
    splats.placed(several, where._replace(scale=np.array([1.0, 1.0, 2.0])))


def test_joined_splats_stay_in_order():
  joined = splats.join([some(2), some(3, seed=1)])
  assert len(joined.opacities_N) == 5
  np.testing.assert_array_equal(joined.centres_N3[2:], some(3, seed=1).centres_N3)
