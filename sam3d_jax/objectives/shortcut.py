"""Shortcut distillation (Frans et al. 2024, "One Step Diffusion via Shortcut Models"; arXiv
2511.16624 §3.4).

The model learns s(x_t, t, d): the velocity that carries x_t straight to x_(t+d). At d = 0 it is the
flow-matching velocity; elsewhere it must agree with itself: one step of 2 d equals two steps of d,
the second target being taken under stop-gradient and, so that the distilled model needs no
guidance, from guided velocities.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax import sections
from sam3d_jax.batch import GeometryBatch
from sam3d_jax.models.flops import Cost, Passes
from sam3d_jax.objectives import draws, flow_matching, paths
from sam3d_jax.objectives.paths import Latents, VelocityModel
from sam3d_jax.sections import FieldError

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
  batch = len(t_B)
  rows = how.guided_rows
  if rows is None:
    rows = batch
  if rows == 0:
    return conditional

  # The unconditional branch, of the guided rows alone, which is all that it costs.
  unconditional = velocity(
    {name: latent[:rows] for name, latent in x.items()},
    t_B[:rows],
    jnp.zeros_like(tokens_BSD[:rows, :1]),
    d_B[:rows],
  )

  # Both mixed; the other latents and rows keep the conditional velocity.
  names = how.guided_latents
  if names is None:
    names = conditional
  out = dict(conditional)
  for name in names:
    # One strength for all rows, or one each: (rows or 1, 1, 1) broadcasts over latents.
    w = jnp.reshape(how.guidance, (-1, 1, 1))
    mixed = (1.0 + w) * conditional[name][:rows] - w * unconditional[name]
    if rows < batch:
      mixed = jnp.concatenate([mixed, conditional[name][rows:]])
    out[name] = mixed
  return out


def consistency_target(
  velocity: Velocity, x: Latents, t_B, d_B, tokens_BSD, how: ConsistencyTarget, fed_d_B=None
) -> dict[str, jax.Array]:
  """stop_gradient((s1 + s2) / 2): the mean velocity of two consecutive steps of size d (Frans et
  al. 2024, eq. 5).

  `fed_d_B` is the step size told to the model where it differs from the size of the step taken,
  e.g. 0 to step along the plain flow.
  """
  if fed_d_B is None:
    fed_d_B = d_B

  # Two steps, the second from where the first one ends.
  first = guided(
    velocity,
    x,
    t_B,
    tokens_BSD,
    fed_d_B,
    how,
  )
  half_way = paths.advance(x, first, d_B)
  second = guided(
    velocity,
    half_way,
    t_B + d_B,
    tokens_BSD,
    fed_d_B,
    how,
  )

  # The mean velocity of both steps is that of one step of 2 d.
  target = {}
  for name in x:
    mean = (first[name] + second[name]) / 2.0
    target[name] = jax.lax.stop_gradient(mean)
  return target


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
  # One prediction for all rows: flow rows have d = 0, the others take a step of 2 d.
  x_t, flow_target = flow_matching.masked_inputs(
    noise,
    data,
    present,
    t_B,
    sigma_min,
  )
  prediction = velocity(
    x_t,
    t_B,
    main_tokens_BSD,
    2.0 * d_B,
  )

  def error(rows, target):
    """(loss, its parts) of some rows."""
    # The same rows of everything; `whole` has the parts of the batch before its rows.
    mask = {name: take(present[name], rows) for name in target}
    everywhere = None
    if whole is not None:
      everywhere = {name: whole[name][:, rows] for name in weights}
    predicted = {name: take(prediction[name], rows) for name in target}
    loss, parts, _ = flow_matching.weighted_errors(
      predicted,
      target,
      mask,
      weights,
      everywhere,
    )
    return loss, parts

  flow, flow_parts = jnp.zeros(()), {}
  consistency, consistency_parts = jnp.zeros(()), {}
  target = {}

  # Flow rows learn the path's own velocity.
  flow_rows = np.setdiff1d(np.arange(len(t_B)), consistency_rows)
  if len(flow_rows):
    rows_target = {name: take(v, flow_rows) for name, v in flow_target.items()}
    flow, flow_parts = error(flow_rows, rows_target)

  # Consistency rows learn two steps of d in one.
  if len(consistency_rows):
    x, t, d, tokens = jax.tree.map(
      lambda array: take(array, consistency_rows),
      (x_t, t_B, d_B, tokens_BSD),
    )
    # Targets teach the flow, not the encoder.
    tokens = jax.lax.stop_gradient(tokens)
    target = consistency_target(
      target_velocity,
      x,
      t,
      d,
      tokens,
      how,
      fed_d_B,
    )
    consistency, consistency_parts = error(consistency_rows, target)

  return ShortcutTerms(
    flow,
    consistency,
    prediction,
    target,
    flow_parts,
    consistency_parts,
  )


def take(array: jax.Array, rows: np.ndarray) -> jax.Array:
  """array[rows] for static rows.

  Rows that are the same ones of every `period` become an index into (batch / period, period): on a
  mesh whose shards hold whole periods nothing leaves its device.
  """
  batch, *features = array.shape
  if len(rows) == batch:
    return array

  # The shortest period that the rows have; the whole batch always is one.
  period = 1
  while batch % period or not periodic(rows, batch, period):
    period += 1

  # Each period gives the rows at the same places of it.
  inside = rows[rows < period]
  by_period = array.reshape(batch // period, period, *features)
  taken = by_period[:, inside]
  return taken.reshape(len(rows), *features)


def periodic(rows: np.ndarray, batch: int, period: int) -> bool:
  """Whether the rows are the same ones of every `period` consecutive ones."""
  inside = rows[rows < period]
  starts = np.arange(0, batch, period)
  # The same places of every period, in order.
  repeated = starts[:, None] + inside
  return np.array_equal(rows, repeated.reshape(-1))


def spread_rows(batch: int, fraction: float) -> np.ndarray:
  """floor(batch * fraction) row indices spread evenly over the batch, so that every shard of it
  holds its share.
  """
  # A row is one of them where the running count of them reaches the next whole number; the small
  # term is for fractions that are not exact in binary.
  counts = np.arange(batch + 1) * fraction
  whole = np.floor(counts + 1e-9)
  reaches_next = np.diff(whole)
  return np.flatnonzero(reaches_next)


LEVELS = ("flow", "all")  # of guided_levels


def check(settings: Any, model_config: Any, rows: int) -> None:
  """Raises FieldError for settings of `shortcut` that cannot work with a Geometry model of this
  configuration and batches of this many rows.
  """
  # as in flow matching
  flow_matching.check_weights(settings)
  sections.check_not_negative(settings, "time_std", "guidance", "consistency_weight")
  sections.check_share(settings, "drop_condition", "drop_pointmap", "sigma_min")

  # what learns self-consistency, and how
  sections.check_share(settings, "consistency_fraction", "guided_fraction")
  sections.check_choice(settings, "guided_levels", LEVELS)
  flow_alone = settings.guided_levels == "flow" and settings.guidance
  if flow_alone and not settings.finest_is_flow:
    raise FieldError("guided_levels = 'flow' needs finest_is_flow = True; or give 'all'")
  for size in settings.step_sizes:
    if not 0 < size <= 1:
      raise FieldError(
        f"step_sizes = {tuple(settings.step_sizes)} holds {size}: give numbers above 0 up to 1"
      )
  share = settings.consistency_fraction
  if share > 0 and not len(spread_rows(rows, share)):
    enough = math.ceil(1 / share)
    raise FieldError(
      f"consistency_fraction = {share} of a batch of {rows} is no row: give a batch_size of "
      f"{enough} or more (of each of the accumulate parts), or a larger share"
    )
  if not model_config.flow.shortcut:
    raise FieldError(
      "name = 'shortcut' needs a model with a step embedder: set model.flow.shortcut = True"
    )


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
  # What cannot work.
  if not model.step_conditioned:
    raise ValueError(
      "shortcut distillation needs a model with a step embedder: set model.flow.shortcut = True"
    )
  known = guided_levels in LEVELS
  nothing_guided = guided_levels == "flow" and guidance and not finest_is_flow
  if not known or nothing_guided:
    raise ValueError(
      f"guided_levels = {guided_levels!r} is not flow (which needs finest_is_flow) or all"
    )
  size = len(batch.key)
  rows = spread_rows(size, consistency_fraction)
  if consistency_fraction > 0 and not len(rows):
    raise ValueError(
      f"a batch of {size} holds no consistency row at consistency_fraction = {consistency_fraction}"
    )

  # Noise and time of each example, and a step size where it learns self-consistency.
  keys_B = draws.example_keys(key, batch.key)
  noise, t_B = flow_matching.draw(
    keys_B,
    batch.latents,
    time_mean=time_mean,
    time_std=time_std,
  )
  consistent_B = np.isin(np.arange(size), rows)
  # Drawn for every row; only the consistency rows use it.
  sizes = jnp.asarray(step_sizes, jnp.float32)
  drawn_B = sizes[draws.choice(keys_B, "step", len(step_sizes))]
  d_B = jnp.where(consistent_B, drawn_B, 0.0)
  if keep_on_path:
    latest_B = paths.latest_start(2.0 * d_B)
    t_B = jnp.minimum(t_B, latest_B)

  # How the targets step and where they are guided.
  fed_d_B = take(d_B, rows)
  if finest_is_flow:
    finest_B = fed_d_B == sizes.min()
    fed_d_B = jnp.where(finest_B, 0.0, fed_d_B)
  guided_rows = round(guided_fraction * len(rows))
  strength = guidance
  if guided_levels == "flow":
    along_flow = fed_d_B[:guided_rows] == 0.0
    strength = jnp.where(along_flow, guidance, 0.0)
  how = ConsistencyTarget(strength, guided_latents, guided_rows)

  # Condition tokens; a draw of 1 is never dropped.
  tokens_BSD = flow_matching.encode(
    model,
    batch,
    keys_B,
    drop_pointmap=drop_pointmap,
  )
  uniform_B = draws.uniform(keys_B, "drop_condition")
  drop_B = jnp.where(consistent_B, 1.0, uniform_B)
  main_tokens_BSD = flow_matching.drop_tokens(tokens_BSD, drop_B, drop_condition)

  # The two losses.
  teacher = model if frozen is None else frozen
  terms = shortcut_terms(
    model.velocity,
    teacher.velocity,
    noise,
    batch.latents,
    batch.present,
    t_B,
    d_B,
    tokens_BSD,
    main_tokens_BSD=main_tokens_BSD,
    consistency_rows=rows,
    weights=weights,
    how=how,
    fed_d_B=fed_d_B,
    sigma_min=sigma_min,
    whole=whole,
  )
  # Each loss, and of which latents it is made.
  metrics = {
    "shortcut/flow": terms.flow,
    "shortcut/consistency": terms.consistency,
  }
  for name, value in terms.flow_parts.items():
    metrics[f"flow/{name}"] = value
  for name, value in terms.consistency_parts.items():
    metrics[f"consistency/{name}"] = value
  loss = terms.flow + consistency_weight * terms.consistency
  return loss, metrics


def passes(settings: Mapping[str, Any], cost: Cost, trained: set[str], plain: bool) -> Passes:
  """One pass, and for the targets of a share of the rows two steps without gradient, of which the
  guided ones take a second pass.
  """
  del trained, plain
  share = settings["consistency_fraction"]
  guided_share = settings.get("guided_fraction", 1.0)
  # Tokens are computed once, for prediction and targets; only the streams run again.
  forward = 0.0
  for name in cost.streams:
    # Two steps for a target; an unguided one has no second pass.
    conditional = cost.parts[name].forward
    unconditional = cost.unconditional[name].forward
    step = conditional + guided_share * unconditional
    forward += 2 * share * step
  return Passes(forward=forward)
