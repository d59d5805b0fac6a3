"""Layers whose derivative is written by hand agree with the derivative taken step by step."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.models import layers

X = jnp.asarray(np.random.default_rng(0).normal(0, 2, (7, 12)), jnp.float32)
WEIGHT = jnp.asarray(np.random.default_rng(1).normal(size=(7, 12)), jnp.float32)


def plain_layer_norm(x, eps):
  centred = x - x.mean(-1, keepdims=True)
  variance = x.var(-1, keepdims=True)
  return centred / jnp.sqrt(variance + eps)


def value_and_gradient(f, x):
  # Weighted, so that every element has a gradient of its own.
  def weighted(x):
    return (f(x) * WEIGHT).sum()

  both = jax.jit(jax.value_and_grad(weighted))
  return both(x)


@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_layer_norm_has_the_derivative_of_its_definition(eps):
  value, gradient = value_and_gradient(lambda x: layers.layer_norm(x, eps), X)
  plain_value, plain_gradient = value_and_gradient(lambda x: plain_layer_norm(x, eps), X)
  np.testing.assert_allclose(value, plain_value, rtol=1e-5)
  np.testing.assert_allclose(gradient, plain_gradient, atol=2e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_gelu_and_its_derivative_are_those_of_jax(exact):
  value, gradient = value_and_gradient(lambda x: layers.gelu(x, exact=exact), X)
  plain_value, plain_gradient = value_and_gradient(
    lambda x: jax.nn.gelu(x, approximate=not exact),
    X,
  )
  np.testing.assert_allclose(value, plain_value, rtol=1e-5)
  np.testing.assert_allclose(gradient, plain_gradient, atol=3e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_gelu_of_half_precision_rounds_once(exact):
  """Value and derivative are the nearest bfloat16 to those of fp32."""

  def gelu(x):
    return layers.gelu(x, exact=exact)

  half = X.astype(jnp.bfloat16)
  wide = half.astype(jnp.float32)
  value, pull_back = jax.vjp(gelu, half)
  wide_value, wide_pull_back = jax.vjp(gelu, wide)
  (gradient,) = pull_back(jnp.ones_like(half))
  (wide_gradient,) = wide_pull_back(jnp.ones_like(wide))
  assert (value == wide_value.astype(jnp.bfloat16)).all()
  assert (gradient == wide_gradient.astype(jnp.bfloat16)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_in_parts_is_the_projection_cut(bias):
  dense = layers.Dense((3, 4), (2, 5), bias=bias, rngs=nnx.Rngs(0))
  if bias:
    dense.bias[...] = jnp.arange(10.0).reshape(2, 5)
  x = X.reshape(7, 3, 4)
  parts = dense.parts(x)
  cuts = jnp.unstack(dense(x), axis=1)
  for part, cut in zip(parts, cuts, strict=True):
    np.testing.assert_allclose(part, cut, atol=1e-5)


def test_an_offset_can_join_the_bias_instead_of_the_input():
  dense = layers.Dense((3, 4), 5, rngs=nnx.Rngs(0))
  dense.bias[...] = jnp.arange(5.0)
  drawn = np.random.default_rng(2).normal(size=(3, 4))
  offset = jnp.asarray(drawn, jnp.float32)
  x = X.reshape(7, 3, 4)
  joined = dense.of_sum(x, offset)
  np.testing.assert_allclose(joined, dense(x + offset), atol=1e-5)
