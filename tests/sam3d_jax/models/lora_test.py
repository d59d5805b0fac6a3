"""Low-rank adapters: what they add, where they start, what is trained, and that folding them in
changes nothing.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.errors import ConfigError
from sam3d_jax.models import lora
from sam3d_jax.models.layers import Dense
from sam3d_jax.models.parameters import flat_params
from sam3d_jax.models.stack import Stack
from sam3d_jax.sharding import rules
from sam3d_jax.training import optim
from sam3d_jax.training.state import ModelGraph, init_state
from sam3d_jax.training.step import GuardConfig, make_train_step

CFG = lora.LoraConfig(targets=r"(trunk/layer|head)", rank=2, alpha=6.0)


class Block(Dense):
  def __init__(self, rngs):
    super().__init__(4, (2, 2), rngs=rngs)

  def __call__(self, x):
    heads = super().__call__(x)
    return jnp.tanh(heads.reshape(x.shape))


class Batch(NamedTuple):
  key: np.ndarray
  x: jax.Array


class Net(nnx.Module):
  """A stack of projections into heads, and a projection out of them: both kinds of kernel."""

  def __init__(self, rngs):
    self.trunk = Stack(Block, 3, rngs=rngs)
    self.head = Dense((2, 2), 3, rngs=rngs)

  def __call__(self, x):
    h = self.trunk(x)
    heads = h.reshape(*x.shape[:-1], 2, 2)
    return self.head(heads)


def adapted_net(seed=0):
  net = Net(nnx.Rngs(seed))
  shapes = lora.factor_shapes(net, CFG)
  factors = lora.random_factors(shapes, seed)
  graph = ModelGraph.of(net, lora_scale=CFG.scale)
  return graph, flat_params(net), factors


def nonzero(factors, seed=1):
  # lora_b starts at zero, which would hide the product.
  rng = np.random.default_rng(seed)
  drawn = {}
  for path, x in factors.items():
    normal = rng.standard_normal(x.shape)
    drawn[path] = jnp.asarray(normal, jnp.float32)
  return drawn


X = jnp.asarray(np.random.default_rng(3).standard_normal((5, 4)), jnp.float32)


def test_an_adapted_model_starts_as_the_model_it_adapts_bit_for_bit():
  graph, params, factors = adapted_net()
  adapted = graph.merge(params | factors)
  plain = graph.merge(params)
  np.testing.assert_array_equal(adapted(X), plain(X))

  # The zero is in lora_b alone: both at zero would never learn.
  for path, x in factors.items():
    if path.endswith("lora_a"):
      assert np.asarray(x).any(), path


def test_an_adapter_adds_its_scaled_low_rank_product_to_each_layers_output():
  graph, params, factors = adapted_net()
  factors = nonzero(factors)
  scale = 3.0  # alpha / rank

  # The stack: every layer has factors of its own.
  x = X
  for layer in range(3):
    kernel = params["trunk/layer/kernel"][layer]
    bias = params["trunk/layer/bias"][layer]
    a = factors["trunk/layer/lora_a"][layer]
    b = factors["trunk/layer/lora_b"][layer]
    plain = jnp.einsum("bi,ihk->bhk", x, kernel) + bias
    added = jnp.einsum("bi,ir,rhk->bhk", x, a, b)
    heads = jnp.tanh(plain + scale * added)
    x = heads.reshape(x.shape)

  # The head, whose input has two dimensions.
  h = x.reshape(-1, 2, 2)
  a = factors["head/lora_a"]
  b = factors["head/lora_b"]
  plain = jnp.einsum("bhk,hko->bo", h, params["head/kernel"]) + params["head/bias"]
  added = jnp.einsum("bhk,hkr,ro->bo", h, a, b)
  expected = plain + scale * added

  found = graph.merge(params | factors)(X)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_folded_parameters_give_the_adapted_models_output():
  graph, params, factors = adapted_net()
  adapted = params | nonzero(factors)
  whole = {path: np.asarray(x) for path, x in adapted.items()}
  folded = lora.folded(whole, CFG.scale)
  assert set(folded) == set(params)

  merged = graph.merge(whole)
  plain = graph.merge(folded)
  np.testing.assert_allclose(plain(X), merged(X), rtol=1e-6, atol=1e-6)


def test_only_the_factors_are_trained_and_only_they_cost_state():
  graph, params, factors = adapted_net()
  cfg = optim.OptimConfig(warmup_steps=0, trainable=lora.PATTERN, ema=(0.9,))
  state = init_state(cfg, params | factors)

  def loss(model, frozen, batch, key):
    error = model(batch.x) - 1.0
    return jnp.square(error).mean(), {}

  # One step.
  step = jax.jit(make_train_step(graph, loss, cfg, GuardConfig()))
  keys = np.zeros((len(X), 2), np.uint32)
  new, _ = step(state, Batch(keys, X), np.float32(1e-2), np.uint32(0))

  # State of the factors alone; everything else is as it was.
  assert set(new.params) == set(new.ema["0.9"]) == set(factors)
  for path, before in params.items():
    np.testing.assert_array_equal(new.frozen[path], before, err_msg=path)
  assert np.asarray(new.params["head/lora_b"]).any()


def test_a_pattern_that_hits_no_projection_is_an_error_that_names_some():
  net = Net(nnx.Rngs(0))
  tail = lora.LoraConfig(targets="tail")
  message = "lora.targets = 'tail' matches no projection; there are head, trunk/layer"
  with pytest.raises(ConfigError, match=message):
    lora.factor_shapes(net, tail)


def test_every_factor_has_one_sharding_rule():
  net = Net(nnx.Rngs(0))
  for path in lora.factor_shapes(net, CFG):
    assert rules.rule_of(path) == ()
