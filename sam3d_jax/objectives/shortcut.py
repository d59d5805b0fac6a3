"""Shortcut distillation (Frans et al. 2024, "One Step Diffusion via Shortcut Models"; arXiv
2511.16624 §3.4).

The model learns s(x_t, t, d): the velocity that carries x_t straight to x_(t+d). At d = 0 it is the
flow-matching velocity; elsewhere it must agree with itself: one step of 2 d equals two steps of d,
the second target being taken under stop-gradient and, so that the distilled model needs no
guidance, from guided velocities.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import GeometryBatch
from sam3d_jax.models.flops import Cost, Passes
from sam3d_jax.objectives import draws, flow_matching, paths
from sam3d_jax.objectives.paths import Latents, VelocityModel

# (x, t_B, tokens_BSD, d_B) -> latent name -> (B, tokens, channels)
Velocity = Callable[..., dict[str, jax.Array]]


class ConsistencyTarget(NamedTuple):
  """How the self-consistency target is made."""

  # w of (1 + w) conditional - w unconditional; one number, or (guided rows,) of them
  guidance: float | jax.Array
  guided_latents: Sequence[str] | None = None  # latents that take the guided velocity; None for all
  guided_rows: int | None = None  # how many leading samples are guided; None for all


def guided(
  velocity: Velocity, x: Latents, t_B, tokens_BSD, d_B, how: ConsistencyTarget
) -> dict[str, jax.Array]:
  """Velocities for the target: conditional, replaced by (1 + w) v_c - w v_0 for the guided latents
  of the guided rows.

  The unconditional forward sees one zero token in place of S of them: equal keys and values make
  attention uniform, so the result is the same.
  """
  conditional = velocity(x, t_B, tokens_BSD, d_B)
  rows = len(t_B) if how.guided_rows is None else how.guided_rows
  if rows == 0:
    return conditional
  unconditional = velocity(
    {k: v[:rows] for k, v in x.items()},
    t_B[:rows],
    jnp.zeros_like(tokens_BSD[:rows, :1]),
    d_B[:rows],
  )
  names = conditional if how.guided_latents is None else how.guided_latents
  out = dict(conditional)
  for k in names:
    w = jnp.reshape(how.guidance, (-1, 1, 1))
    mixed = (1.0 + w) * conditional[k][:rows] - w * unconditional[k]
    out[k] = jnp.concatenate([mixed, conditional[k][rows:]]) if rows < len(t_B) else mixed
  return out


def consistency_target(
  velocity: Velocity, x: Latents, t_B, d_B, tokens_BSD, how: ConsistencyTarget, fed_d_B=None
) -> dict[str, jax.Array]:
  """stop_gradient((s1 + s2) / 2): the mean velocity of two consecutive steps of size d (Frans et
  al. 2024, eq. 5).

  `fed_d_B` is the step size told to the model where it differs from the size of the step taken,
  e.g. 0 to step along the plain flow.
  """
  fed_d_B = d_B if fed_d_B is None else fed_d_B
  first = guided(velocity, x, t_B, tokens_BSD, fed_d_B, how)
  second = guided(velocity, paths.advance(x, first, d_B), t_B + d_B, tokens_BSD, fed_d_B, how)
  return {k: jax.lax.stop_gradient((first[k] + second[k]) / 2.0) for k in x}


class ShortcutTerms(NamedTuple):
  """The two losses and what they were made of."""

  flow: jax.Array  # scalar; 0 if there is no flow row
  consistency: jax.Array  # scalar; 0 if there is no consistency row
  prediction: dict[str, jax.Array]  # of all rows
  target: dict[str, jax.Array]  # self-consistency target, consistency rows only
  flow_parts: dict[str, jax.Array]
  consistency_parts: dict[str, jax.Array]


def shortcut_terms(
  velocity: Velocity,
  target_velocity: Velocity,
  noise: Latents,
  data: Latents,
  present: Latents,
  t_B,
  d_B,
  tokens_BSD,
  *,
  main_tokens_BSD,
  consistency_rows: np.ndarray,
  weights: Mapping[str, float],
  how: ConsistencyTarget,
  fed_d_B=None,
  sigma_min: float = 0.0,
  whole: Latents | None = None,
) -> ShortcutTerms:
  """The shortcut losses with every draw given: one prediction for all rows at step 2 d, each row
  with its own target.

  Args:
    velocity, target_velocity: (x, t_B, tokens_BSD, d_B) -> velocities, the second for the targets.
    noise, data, present: as in flow matching.
    t_B, d_B: time and half step size of each sample; d is 0 on flow rows and positive on
    consistency rows.
    tokens_BSD: condition tokens for the targets; main_tokens_BSD: those of the prediction (some
    samples zeroed).
    consistency_rows: static, sorted indices of the consistency samples; all others are
    flow-matching samples.
    fed_d_B: see consistency_target; one value for each consistency row.
    whole: as in flow matching; the rows are the same ones of every part.

  Both losses are means over their own rows, so the split does not change how much a sample of
  either kind is worth on average.
  """
  batch = len(t_B)
  flow_rows = np.setdiff1d(np.arange(batch), consistency_rows)
  x_t, flow_target = flow_matching.masked_inputs(noise, data, present, t_B, sigma_min)
  prediction = velocity(x_t, t_B, main_tokens_BSD, 2.0 * d_B)

  def error(rows, target):
    mask = {k: take(present[k], rows) for k in target}
    everywhere = None if whole is None else {k: whole[k][:, rows] for k in weights}
    return flow_matching.weighted_errors(
      {k: take(prediction[k], rows) for k in target}, target, mask, weights, everywhere
    )[:2]

  flow, flow_parts, consistency, consistency_parts, target = (
    jnp.zeros(()),
    {},
    jnp.zeros(()),
    {},
    {},
  )
  if len(flow_rows):
    flow, flow_parts = error(flow_rows, {k: take(v, flow_rows) for k, v in flow_target.items()})
  if len(consistency_rows):
    x, t, d, tokens = jax.tree.map(lambda a: take(a, consistency_rows), (x_t, t_B, d_B, tokens_BSD))
    target = consistency_target(
      target_velocity, x, t, d, jax.lax.stop_gradient(tokens), how, fed_d_B
    )
    consistency, consistency_parts = error(consistency_rows, target)
  return ShortcutTerms(flow, consistency, prediction, target, flow_parts, consistency_parts)


def take(array: jax.Array, rows: np.ndarray) -> jax.Array:
  """array[rows] for static rows.

  Rows that are the same ones of every `period` become an index into (batch / period, period): on a
  mesh whose shards hold whole periods nothing leaves its device.
  """
  batch = array.shape[0]
  if len(rows) == batch:
    return array
  period = next(p for p in range(1, batch + 1) if batch % p == 0 and periodic(rows, batch, p))
  inside = rows[rows < period]
  return array.reshape(batch // period, period, *array.shape[1:])[:, inside].reshape(
    len(rows), *array.shape[1:]
  )


def periodic(rows: np.ndarray, batch: int, period: int) -> bool:
  """Whether the rows are the same ones of every `period` consecutive ones."""
  inside = rows[rows < period]
  return np.array_equal(rows, (np.arange(0, batch, period)[:, None] + inside).reshape(-1))


def spread_rows(batch: int, fraction: float) -> np.ndarray:
  """floor(batch * fraction) row indices spread evenly over the batch, so that every shard of it
  holds its share.
  """
  ends = np.floor(np.arange(batch + 1) * fraction + 1e-9)
  return np.flatnonzero(np.diff(ends))


def shortcut(
  model: VelocityModel,
  frozen: VelocityModel | None,
  batch: GeometryBatch,
  key: jax.Array,
  *,
  weights: Mapping[str, float],
  time_mean: float = -1.0,
  time_std: float = 1.0,
  consistency_fraction: float = 0.25,
  step_sizes: Sequence[float] = tuple(2.0**-i for i in range(8)),
  guidance: float = 2.0,
  guided_latents: Sequence[str] = ("shape",),
  guided_fraction: float = 1.0,
  guided_levels: str = "flow",
  consistency_weight: float = 1.0,
  finest_is_flow: bool = True,
  keep_on_path: bool = True,
  drop_condition: float = 0.1,
  drop_pointmap: float = 0.0,
  sigma_min: float = 0.0,
  whole: Latents | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Shortcut distillation of a trained flow model.

  Args:
    model: a model with a step embedder, initialised from the trained checkpoint.
    frozen: where the targets come from (e.g. a running average of the model); None for the model
      itself.
    consistency_fraction: share of the batch that learns self-consistency; a static split of the
      rows, the rest learns the flow.
    step_sizes: half step sizes d, drawn with equal probability; the prediction is made at 2 d.
    guidance, guided_latents, guided_fraction: weight of guidance in the targets, the latents that
      take it, and the share of consistency rows that do.
    guided_levels: "flow": only targets that step along d = 0 are guided, and larger steps inherit
      it, as in Frans et al. 2024; "all": every target. Guidance of velocities that are guided
      already multiplies what the condition changes by 1 + w at each doubling (the "compounding
      guidance" of arXiv 2510.21250), which diverges.
    consistency_weight: factor of the consistency loss in the total.
    finest_is_flow: the targets of the smallest d step along d = 0, the flow itself, as no smaller
      step teaches that d.
    keep_on_path: moves t back to the last start from which 2 d ends at t <= 1 (to 0 if 2 d >= 1);
      the published loss lets it run over.
    drop_condition: as in flow matching, on flow rows only: a consistency target is always
      conditional.
    whole: as in flow matching. Which rows are consistency rows is decided in each part by itself.

  Raises:
    ValueError: the model has no step embedder, guided_levels is unknown, or the batch is too small
    to hold a consistency row.
  """
  if not model.step_conditioned:
    raise ValueError(
      "shortcut distillation needs a model with a step embedder: set model.flow.shortcut = True"
    )
  if (
    guided_levels not in ("flow", "all")
    or guided_levels == "flow"
    and guidance
    and not finest_is_flow
  ):
    raise ValueError(
      f"guided_levels = {guided_levels!r} is not flow (which needs finest_is_flow) or all"
    )
  rows = spread_rows(len(batch.key), consistency_fraction)
  if consistency_fraction > 0 and not len(rows):
    raise ValueError(
      f"a batch of {len(batch.key)} holds no consistency row at consistency_fraction = "
      f"{consistency_fraction}"
    )
  keys_B = draws.example_keys(key, batch.key)
  noise, t_B = flow_matching.draw(keys_B, batch.latents, time_mean=time_mean, time_std=time_std)
  consistent_B = np.isin(np.arange(len(batch.key)), rows)
  sizes = jnp.asarray(step_sizes, jnp.float32)
  d_B = jnp.where(consistent_B, sizes[draws.choice(keys_B, "step", len(step_sizes))], 0.0)
  if keep_on_path:
    t_B = jnp.minimum(t_B, paths.latest_start(2.0 * d_B))
  fed_d_B = take(d_B, rows)
  if finest_is_flow:
    fed_d_B = jnp.where(fed_d_B == sizes.min(), 0.0, fed_d_B)
  guided_rows = round(guided_fraction * len(rows))
  strength = (
    guidance if guided_levels == "all" else jnp.where(fed_d_B[:guided_rows] == 0.0, guidance, 0.0)
  )
  tokens_BSD = flow_matching.encode(model, batch, keys_B, drop_pointmap=drop_pointmap)
  drop_B = jnp.where(consistent_B, 1.0, draws.uniform(keys_B, "drop_condition"))
  terms = shortcut_terms(
    model.velocity,
    (model if frozen is None else frozen).velocity,
    noise,
    batch.latents,
    batch.present,
    t_B,
    d_B,
    tokens_BSD,
    main_tokens_BSD=flow_matching.drop_tokens(tokens_BSD, drop_B, drop_condition),
    consistency_rows=rows,
    weights=weights,
    how=ConsistencyTarget(strength, guided_latents, guided_rows),
    fed_d_B=fed_d_B,
    sigma_min=sigma_min,
    whole=whole,
  )
  metrics = {"shortcut/flow": terms.flow, "shortcut/consistency": terms.consistency}
  metrics |= {f"flow/{k}": v for k, v in terms.flow_parts.items()}
  metrics |= {f"consistency/{k}": v for k, v in terms.consistency_parts.items()}
  return terms.flow + consistency_weight * terms.consistency, metrics


def passes(settings: Mapping[str, Any], cost: Cost, trained: set[str], plain: bool) -> Passes:
  """One pass, and for the targets of a share of the rows two steps without gradient, of which the
  guided ones take a second pass.
  """
  del trained, plain
  share, guided_share = settings["consistency_fraction"], settings.get("guided_fraction", 1.0)
  forward = 0.0
  for name in cost.streams:
    step = cost.parts[name].forward + guided_share * cost.unconditional[name].forward
    forward += 2 * share * step
  return Passes(forward=forward)
