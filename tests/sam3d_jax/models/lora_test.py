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
    return jnp.tanh(super().__call__(x).reshape(x.shape))


class Batch(NamedTuple):
  key: np.ndarray
  x: jax.Array


class Net(nnx.Module):
  """A stack of projections into heads, and a projection out of them: both kinds of kernel."""

  def __init__(self, rngs):
    self.trunk = Stack(Block, 3, rngs=rngs)
    self.head = Dense((2, 2), 3, rngs=rngs)

  def __call__(self, x):
    return self.head(self.trunk(x).reshape(*x.shape[:-1], 2, 2))


def adapted_net(seed=0):
  net = Net(nnx.Rngs(seed))
  factors = lora.random_factors(lora.factor_shapes(net, CFG), seed)
  return ModelGraph.of(net, lora_scale=CFG.scale), flat_params(net), factors


def nonzero(factors, seed=1):
  rng = np.random.default_rng(seed)
  return {p: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for p, x in factors.items()}


X = jnp.asarray(np.random.default_rng(3).standard_normal((5, 4)), jnp.float32)


def test_an_adapted_model_starts_as_the_model_it_adapts_bit_for_bit():
  graph, params, factors = adapted_net()
  np.testing.assert_array_equal(graph.merge(params | factors)(X), graph.merge(params)(X))
  assert all((np.asarray(x) != 0).any() for p, x in factors.items() if p.endswith("lora_a"))


def test_an_adapter_adds_its_scaled_low_rank_product_to_each_layers_output():
  graph, params, factors = adapted_net()
  factors = nonzero(factors)
  x = X
  for layer in range(3):
    a, b = factors["trunk/layer/lora_a"][layer], factors["trunk/layer/lora_b"][layer]
    plain = (
      jnp.einsum("bi,ihk->bhk", x, params["trunk/layer/kernel"][layer])
      + params["trunk/layer/bias"][layer]
    )
    x = jnp.tanh(plain + 3.0 * jnp.einsum("bi,ir,rhk->bhk", x, a, b)).reshape(x.shape)
  h = x.reshape(-1, 2, 2)
  expected = (
    jnp.einsum("bhk,hko->bo", h, params["head/kernel"])
    + params["head/bias"]
    + 3.0 * jnp.einsum("bhk,hkr,ro->bo", h, factors["head/lora_a"], factors["head/lora_b"])
  )
  np.testing.assert_allclose(graph.merge(params | factors)(X), expected, rtol=1e-5, atol=1e-5)


def test_folded_parameters_give_the_adapted_models_output():
  graph, params, factors = adapted_net()
  whole = {p: np.asarray(x) for p, x in (params | nonzero(factors)).items()}
  folded = lora.folded(whole, CFG.scale)
  assert set(folded) == set(params)
  np.testing.assert_allclose(graph.merge(folded)(X), graph.merge(whole)(X), rtol=1e-6, atol=1e-6)


def test_only_the_factors_are_trained_and_only_they_cost_state():
  graph, params, factors = adapted_net()
  cfg = optim.OptimConfig(warmup_steps=0, trainable=lora.PATTERN, ema=(0.9,))
  state = init_state(cfg, params | factors)
  loss = lambda model, frozen, batch, key: (jnp.square(model(batch.x) - 1.0).mean(), {})
  step = jax.jit(make_train_step(graph, loss, cfg, GuardConfig()))
  new, _ = step(state, Batch(np.zeros((len(X), 2), np.uint32), X), np.float32(1e-2), np.uint32(0))
  assert set(new.params) == set(new.ema["0.9"]) == set(factors)
  for path, before in params.items():
    np.testing.assert_array_equal(new.frozen[path], before, err_msg=path)
  assert (np.asarray(new.params["head/lora_b"]) != 0).any()


def test_a_pattern_that_hits_no_projection_is_an_error_that_names_some():
  with pytest.raises(
    ConfigError, match="lora.targets = 'tail' matches no projection; there are head, trunk/layer"
  ):
    lora.factor_shapes(Net(nnx.Rngs(0)), lora.LoraConfig(targets="tail"))


def test_every_factor_has_one_sharding_rule():
  for path in lora.factor_shapes(Net(nnx.Rngs(0)), CFG):
    assert rules.rule_of(path) == ()
