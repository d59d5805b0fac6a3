"""One training step for every stage."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sam3d_jax import sections
from sam3d_jax.batch import MAY_LACK_LATENTS
from sam3d_jax.training import optim
from sam3d_jax.training.state import ModelGraph, TrainState

NORM_MEMORY = 0.99  # of the running mean that a spike is measured against


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """When an update is refused. A refused update changes nothing but the counters."""

  # refuse gradients whose norm exceeds this multiple of the running mean; 0 switches it off
  spike_factor: float = 0.0
  spike_warmup: int = 100  # steps before spikes are looked for
  max_in_a_row: int = 20  # refused updates in a row that stop the job

  def __post_init__(self):
    sections.check_not_negative(self, "spike_factor", "spike_warmup")
    sections.check_positive(self, "max_in_a_row")


def make_train_step(
  graph: ModelGraph,
  objective: Callable,
  cfg: optim.OptimConfig,
  guard: GuardConfig,
  *,
  accumulate: int = 1,
) -> Callable[[TrainState, Any, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns `train_step(state, batch, lr, seed) -> (state, metrics)`; learning rate and seed are
  inputs, so that runs share a program.

  objective: (model, frozen, batch, key) -> (loss, metrics); `frozen` is the reference model or
  None. All randomness comes from (seed, step, example key). With `accumulate` = k the batch is
  taken in k parts, one after the other, and the gradients are averaged in fp32, which equals the
  gradient of the whole batch. Where samples may lack what is learned (batch.MAY_LACK_LATENTS), the
  objective is then told as `whole` who has it in all parts, since a mean over those who do is no
  mean of the parts' means.
  """
  tx = optim.make_optimizer(cfg)

  def loss_and_grad(state: TrainState, batch, key, **whole):
    def loss_fn(params):
      # Frozen parameters are constants of the loss.
      model = graph.merge({**params, **state.frozen})
      reference = None
      if state.reference:
        reference = graph.merge({**state.reference, **state.frozen})
      return objective(model, reference, batch, key, **whole)

    # In the trainable parameters alone: what is frozen costs no gradient.
    differentiated = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, metrics), grads = differentiated(state.params)
    return {**metrics, "loss": loss}, grads

  def train_step(state: TrainState, batch, lr, seed):
    # The gradient, and whether it is to be trusted.
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    metrics, grads = accumulated(
      loss_and_grad,
      state,
      batch,
      key,
      accumulate,
    )
    # Before clipping, which would hide a spike.
    norm = optax.global_norm(grads)
    ok = accept(norm, metrics["loss"], state, guard)

    # The update, accepted or not: one program serves both.
    updates, opt = tx.update(grads, state.opt, state.params)

    def moved(parameter, update):
      return parameter - lr * update

    params = jax.tree.map(moved, state.params, updates)
    ema = {}
    for decay, average in state.ema.items():
      ema[decay] = optax.incremental_update(params, average, 1 - float(decay))

    # A refused update leaves everything but the counters as it was.
    def chosen(new, old):
      return jnp.where(ok, new, old)

    def keep(new, old):
      return jax.tree.map(chosen, new, old)

    at_start = state.step == 0
    running = NORM_MEMORY * state.grad_norm_mean + (1 - NORM_MEMORY) * norm
    mean = jnp.where(at_start, norm, running)
    new = state._replace(
      step=state.step + 1,
      params=keep(params, state.params),
      ema=keep(ema, state.ema),
      opt=keep(opt, state.opt),
      skipped=state.skipped + ~ok,
      skipped_in_a_row=jnp.where(ok, 0, state.skipped_in_a_row + 1),
      grad_norm_mean=keep(mean, state.grad_norm_mean),
    )
    return new, {
      **metrics,
      "norm/grad": norm,
      "norm/params": optax.global_norm(new.params),
      "lr": lr,
      "data/fingerprint": fingerprint(batch.key),
      "skipped": new.skipped,
      "skipped_in_a_row": new.skipped_in_a_row,
    }

  return train_step


def fingerprint(key_B2):
  """() float32 below 2**24: which examples a batch holds and in which order, the same on any number
  of devices and hosts.
  """
  # Odd weights, so that no bit of a key is lost modulo 2**32.
  index = jnp.arange(key_B2.size, dtype=jnp.uint32)
  index = index.reshape(key_B2.shape)
  weight = 2 * index + 1
  total = jnp.sum(key_B2 * weight, dtype=jnp.uint32)
  # float32 holds 24 bits exactly.
  return (total >> 8).astype(jnp.float32)


def accept(norm, loss, state: TrainState, guard: GuardConfig):
  """() bool: the gradient is finite and no spike."""
  # A loss can be infinite where its gradient is not.
  ok = jnp.isfinite(norm) & jnp.isfinite(loss)
  if guard.spike_factor:
    # The first gradients are large, and their mean is of a few.
    warming_up = state.step < guard.spike_warmup
    no_spike = norm <= guard.spike_factor * state.grad_norm_mean
    ok &= warming_up | no_spike
  return ok


def accumulated(loss_and_grad: Callable, state: TrainState, batch, key, parts: int):
  """Metrics and gradients of a batch taken in `parts` equal parts, averaged."""
  if parts == 1:
    return loss_and_grad(state, batch, key)

  # Part i takes rows i, i + parts, ...: with the batch dimension sharded, every device then works
  # on every part.
  def split(x):
    count = x.shape[0] // parts
    by_part = x.reshape(count, parts, *x.shape[1:])
    return jnp.moveaxis(by_part, 1, 0)

  batch = jax.tree.map(split, batch)

  # Who has a latent in all parts, where a sample may lack one.
  whole = {}
  if type(batch) in MAY_LACK_LATENTS:
    whole = {"whole": batch.present}

  def of_part(part):
    return loss_and_grad(state, part, key, **whole)

  # One part after the other, summed in fp32.
  def zeros(shape):
    return jnp.zeros(shape.shape, jnp.float32)

  def first_of(x):
    return x[0]

  def with_share(total, value):
    return total + value.astype(jnp.float32) / parts

  first = jax.tree.map(first_of, batch)
  shapes = jax.eval_shape(of_part, first)
  zero = jax.tree.map(zeros, shapes)

  # One part's activations are alive at a time: that is what is saved.
  def add(total, part):
    found = of_part(part)
    return jax.tree.map(with_share, total, found), None

  mean, _ = jax.lax.scan(add, zero, batch)
  return mean
