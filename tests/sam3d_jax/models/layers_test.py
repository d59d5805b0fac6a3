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
  return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)


def value_and_gradient(f, x):
  return jax.jit(jax.value_and_grad(lambda x: (f(x) * WEIGHT).sum()))(x)


@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_layer_norm_has_the_derivative_of_its_definition(eps):
  ours, plain = (
    value_and_gradient(lambda x, f=f: f(x, eps), X) for f in (layers.layer_norm, plain_layer_norm)
  )
  np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], plain[1], atol=2e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_gelu_and_its_derivative_are_those_of_jax(exact):
  ours = value_and_gradient(lambda x: layers.gelu(x, exact=exact), X)
  plain = value_and_gradient(lambda x: jax.nn.gelu(x, approximate=not exact), X)
  np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], plain[1], atol=3e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_gelu_of_half_precision_rounds_once(exact):
  """Value and derivative are the nearest bfloat16 to those of fp32."""
  x = X.astype(jnp.bfloat16)
  value, gradient = jax.vjp(lambda x: layers.gelu(x, exact=exact), x)
  wide, wide_gradient = jax.vjp(lambda x: layers.gelu(x, exact=exact), x.astype(jnp.float32))
  ones = jnp.ones_like(x)
  assert (value == wide.astype(jnp.bfloat16)).all()
  assert (
    gradient(ones)[0] == wide_gradient(ones.astype(jnp.float32))[0].astype(jnp.bfloat16)
  ).all()


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_in_parts_is_the_projection_cut(bias):
  dense = layers.Dense((3, 4), (2, 5), bias=bias, rngs=nnx.Rngs(0))
  if bias:
    dense.bias[...] = jnp.arange(10.0).reshape(2, 5)
  x = X.reshape(7, 3, 4)
  for part, cut in zip(dense.parts(x), jnp.unstack(dense(x), axis=1), strict=True):
    np.testing.assert_allclose(part, cut, atol=1e-5)


def test_an_offset_can_join_the_bias_instead_of_the_input():
  dense = layers.Dense((3, 4), 5, rngs=nnx.Rngs(0))
  dense.bias[...] = jnp.arange(5.0)
  offset = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32)
  x = X.reshape(7, 3, 4)
  np.testing.assert_allclose(dense.of_sum(x, offset), dense(x + offset), atol=1e-5)
