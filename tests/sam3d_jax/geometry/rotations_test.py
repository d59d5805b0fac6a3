"""Quaternions, matrices and the 6-D form."""

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry import rotations

QUATERNIONS = np.random.default_rng(2).standard_normal((50, 4))
MATRICES = rotations.quaternion_to_matrix(QUATERNIONS)


def test_matrices_of_quaternions_are_rotations():
  products = MATRICES @ np.swapaxes(MATRICES, -1, -2)
  identities = np.broadcast_to(np.eye(3), (50, 3, 3))
  np.testing.assert_allclose(products, identities, atol=1e-12)
  np.testing.assert_allclose(np.linalg.det(MATRICES), 1, atol=1e-12)

  point = np.array([1.0, 2.0, 3.0])
  unit = rotations.normalise(QUATERNIONS)
  turned = rotations.quaternion_apply(unit, point)
  np.testing.assert_allclose(turned, MATRICES @ point, atol=1e-12)


def test_quaternions_are_w_x_y_z():
  quarter_turn_about_z = np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
  matrix = rotations.quaternion_to_matrix(quarter_turn_about_z)
  np.testing.assert_allclose(matrix @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_matrix_to_quaternion_inverts_for_every_angle():
  half_turns = np.array(
    [
      [0, 1, 0, 0],
      [0, 0, 1, 0],
      [0, 0, 0, 1],
      [1, 0, 0, 0],
      [0, 0.6, 0.8, 0],
      [1e-9, 0.6, 0, -0.8],
    ]
  )
  for q in (rotations.normalise(QUATERNIONS), half_turns):
    matrix = rotations.quaternion_to_matrix(q)
    back = rotations.matrix_to_quaternion(matrix)
    assert (back[:, 0] >= 0).all()
    cosine = (back * q).sum(-1)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-7)


def test_quaternion_product_composes_column_rotations():
  a = rotations.normalise(QUATERNIONS[:25])
  b = rotations.normalise(QUATERNIONS[25:])
  product = rotations.quaternion_multiply(a, b)
  matrix = rotations.quaternion_to_matrix(product)
  np.testing.assert_allclose(matrix, MATRICES[:25] @ MATRICES[25:], atol=1e-12)

  inverse = rotations.quaternion_invert(a)
  identity = rotations.quaternion_multiply(a, inverse)
  expected = np.broadcast_to([1, 0, 0, 0], (25, 4))
  np.testing.assert_allclose(identity, expected, atol=1e-12)


def test_six_d_is_the_first_two_columns_and_inverts_by_gram_schmidt():
  six = rotations.matrix_to_6d(MATRICES)
  first = six[:, :3]
  second = six[:, 3:]
  np.testing.assert_array_equal(first, MATRICES[:, :, 0])
  np.testing.assert_allclose(rotations.matrix_from_6d(six), MATRICES, atol=1e-12)

  # neither lengths nor what the second has of the first matter
  stretched = np.concatenate([3 * first, 0.5 * second + 2 * first], -1)
  np.testing.assert_allclose(rotations.matrix_from_6d(stretched), MATRICES, atol=1e-12)

  latent = rotations.normalise_6d(six)
  np.testing.assert_allclose(rotations.denormalise_6d(latent), six, atol=1e-12)


def test_gradients_stay_finite_at_degenerate_rotations():
  def through(six):
    matrix = rotations.matrix_from_6d(six)
    return rotations.matrix_to_quaternion(matrix).sum()

  zero = [0.0] * 6
  parallel = [1.0, 0, 0, 1, 0, 0]
  identity = [1.0, 0, 0, 0, 1, 0]
  gradient = jax.jit(jax.vmap(jax.grad(through)))
  found = gradient(jnp.array([zero, parallel, identity]))
  assert np.isfinite(found).all()
