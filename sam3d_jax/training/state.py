"""The training state and how it meets a model's code.

Parameters are flat dictionaries, path -> array; the module's structure (its graph) is static. One
representation serves regular expressions (freezing, sharding), checkpoints and the PyTorch names.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from sam3d_jax.models import lora
from sam3d_jax.training import optim


class TrainState(NamedTuple):
  """Everything that a step changes, and what it reads beside the batch."""

  step: jax.Array  # () int32, updates applied or skipped so far
  params: dict[str, jax.Array]  # trainable parameters, fp32
  frozen: dict[str, jax.Array]  # the rest of the model: no gradient, no optimiser state, no average
  # trainable part of the frozen reference model of DPO; empty otherwise
  reference: dict[str, jax.Array]
  ema: dict[str, dict[str, jax.Array]]  # decay -> averages of `params`, fp32
  opt: optax.OptState
  skipped: jax.Array  # () int32, steps skipped because the gradient was not finite or spiked
  skipped_in_a_row: jax.Array  # () int32
  # () float32, running mean of the accepted gradient norms, for spike detection
  grad_norm_mean: jax.Array


@dataclasses.dataclass(frozen=True)
class ModelGraph:
  """A module without its parameters. Hashable, so it may be closed over by a jitted function."""

  graphdef: nnx.GraphDef
  paths: tuple[tuple, ...]  # key path of every parameter in the module
  lora_scale: float = 0.0  # of the product of low-rank factors, where there are any

  @classmethod
  def of(cls, module: nnx.Module, *, lora_scale: float = 0.0) -> "ModelGraph":
    """Raises ValueError if the module holds state other than parameters."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    # It would neither be trained nor saved.
    others = [path for path, _ in nnx.to_flat_state(rest)]
    if others:
      raise ValueError(f"the module holds state that is not a parameter: {others}")
    flat = nnx.to_flat_state(params)
    paths = tuple(path for path, _ in flat)
    return cls(graphdef, paths, lora_scale)

  def merge(self, params: Mapping[str, jax.Array]) -> nnx.Module:
    """The module with these parameters (path -> array); low-rank factors among them are folded into
    their kernels.
    """
    params = lora.folded(params, self.lora_scale)
    # In the module's own order, by its own key paths.
    flat = []
    for path in self.paths:
      name = "/".join(map(str, path))
      flat.append((path, nnx.Param(params[name])))
    state = nnx.from_flat_state(flat)
    return nnx.merge(self.graphdef, state)


def init_state(
  cfg: optim.OptimConfig, params: Mapping[str, jax.Array], *, keep_reference: bool = False
) -> TrainState:
  """A fresh state around the given model parameters. `keep_reference` keeps a copy of the trainable
  ones as they are now.
  """
  trainable, frozen = optim.split_trainable(cfg, params)

  # Copies: donated buffers must not be shared.
  def copy(tree):
    return jax.tree.map(jnp.copy, tree)

  step = jnp.zeros((), jnp.int32)
  reference = {}
  if keep_reference:
    reference = copy(trainable)
  # Averages start at the parameters, not at zero: there is no bias to correct.
  ema = {}
  for decay in cfg.ema:
    ema[f"{decay:g}"] = copy(trainable)
  optimizer = optim.make_optimizer(cfg)
  opt = optimizer.init(trainable)

  # The guard's memory: nothing skipped, and no norm seen yet.
  return TrainState(
    step=step,
    params=trainable,
    frozen=frozen,
    reference=reference,
    ema=ema,
    opt=opt,
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
    grad_norm_mean=jnp.zeros((), jnp.float32),
  )
