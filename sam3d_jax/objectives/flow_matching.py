"""Conditional flow matching over a dictionary of latents (arXiv 2511.16624 §3.1; Lipman et al.
2023).

loss = sum over latents m of weight_m * mean over the samples that have m of mean over elements of
|v_m - v_theta_m(x_t, c, t)|^2, with one t a sample. Each latent is averaged over the samples in
which it is PRESENT in the global batch, not over B: a latent's weight then means the same whatever
share of the data mixture is labelled with it. A latent that no sample has contributes zero.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.batch import GeometryBatch, TextureBatch
from sam3d_jax.objectives import draws, paths
from sam3d_jax.objectives import examples as examples_lib
from sam3d_jax.objectives.examples import squared_error
from sam3d_jax.objectives.paths import Latents, VelocityModel
from sam3d_jax.sections import FieldError


class FlowDraw(NamedTuple):
  """Everything random about one flow-matching loss."""

  noise: dict[str, jax.Array]  # latent name -> (B, tokens, channels)
  t_B: jax.Array


def masked_inputs(
  noise: Latents, data: Latents, present: Latents, t_B: jax.Array, sigma_min: float
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """(x_t, target velocity) in which a latent that a sample lacks is plain noise at every t,
  whatever `data` holds there.

  The layout latents attend to each other, so an absent one has to enter the model as something:
  noise carries no information and is never NaN.
  """
  # What an absent latent holds may be NaN, which a weight of zero would not remove.
  clean = {}
  for name, x1 in data.items():
    has = per_element(present[name], x1)
    clean[name] = jnp.where(has, x1.astype(jnp.float32), 0.0)

  # The model sees noise in its place.
  x_t = {}
  on_path = paths.interpolate(
    noise,
    clean,
    t_B,
    sigma_min=sigma_min,
  )
  for name, x in on_path.items():
    has = per_element(present[name], x)
    x_t[name] = jnp.where(has, x, noise[name])

  # Of the cleaned data, so that no target is NaN.
  target = paths.target_velocity(noise, clean, sigma_min=sigma_min)
  return x_t, target


def per_element(mask_B: jax.Array, like: jax.Array) -> jax.Array:
  """A mask, (B,) or that of each slot (R, V), with trailing axes added."""
  mask_B = jnp.asarray(mask_B, bool)
  trailing = (1,) * (like.ndim - mask_B.ndim)
  return mask_B.reshape(*mask_B.shape, *trailing)


def masked_mean(
  values_B: jax.Array, present_B: jax.Array, whole_PB: jax.Array | None = None
) -> jax.Array:
  """Mean over the samples that are present; 0, with zero gradient, if none is.

  whole_PB: for one of P parts of a batch, who is present in all of them; the mean of the P results
  is then the mean over the whole batch, however unevenly the parts are filled.
  """
  # Alone, a batch is its only part.
  if whole_PB is None:
    whole_PB = present_B[None]
  parts = whole_PB.shape[0]

  # Selected rather than multiplied: values of absent samples may not be finite.
  total = jnp.where(present_B, values_B, 0.0).sum()
  # Nobody present: 0 / 1, with zero gradient.
  count = jnp.maximum(whole_PB.sum(), 1)
  return total * (parts / count)


def weighted_errors(
  prediction: Latents,
  target: Latents,
  present: Latents,
  weights: Mapping[str, float],
  whole: Latents | None = None,
  errors_of: Callable[[jax.Array, jax.Array], jax.Array] = squared_error,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
  """The loss, its parts and its samples. whole: see masked_mean. errors_of: (prediction, target) ->
  error of each sample.

  Returns:
    loss: scalar, the weighted sum of the parts.
    parts: latent name -> unweighted mean over the samples that have it.
    loss_B: (B,) weighted sum over the latents that a sample has, for statistics by time.
  Raises:
    ValueError: a weight names a latent that the batch does not hold.
  """
  missing = sorted(set(weights) - set(target))
  if missing:
    named = ", ".join(missing)
    held = ", ".join(sorted(target))
    raise ValueError(
      f"loss weights name {named}, the batch holds {held}: deliver the latent or drop its weight"
    )

  # The error of every sample, also where it lacks the latent: that is masked below.
  errors = {}
  for name in weights:
    errors[name] = errors_of(prediction[name], target[name])

  # Each latent by itself, averaged over the samples that have it.
  parts = {}
  for name, error_B in errors.items():
    present_B = jnp.asarray(present[name], bool)
    whole_PB = None
    if whole is not None:
      whole_PB = whole[name]
    parts[name] = masked_mean(error_B, present_B, whole_PB)

  # Each sample by itself, over the latents that it has.
  loss_B = 0
  for name, weight in weights.items():
    error_B = jnp.where(present[name], errors[name], 0.0)
    loss_B = loss_B + weight * error_B

  loss = sum(weight * parts[name] for name, weight in weights.items())
  return loss, parts, loss_B


def drop_tokens(tokens_BSD: jax.Array, uniform_B: jax.Array, p: float) -> jax.Array:
  """Multiplies the condition tokens of the samples whose draw lies below `p` by zero: the
  unconditional branch of guidance.

  Of packed objects: tokens (R, K, S, D) and draws (R, K).
  """
  # Zero, not absent: shapes stay static, and a zero token is what guidance samples with.
  keep_B = (uniform_B >= p).astype(tokens_BSD.dtype)
  return tokens_BSD * keep_B[..., None, None]


def encode(model: VelocityModel, batch, keys_B: jax.Array, *, drop_pointmap: float) -> jax.Array:
  """Condition tokens with both point-map streams dropped, together and per example, with
  probability `drop_pointmap`.
  """
  # Neither a draw nor a mask, so that nothing is compiled for them.
  if drop_pointmap == 0.0:
    return model.encode(batch.cond)
  drop_B = draws.uniform(keys_B, "drop_pointmap") < drop_pointmap
  return model.encode(batch.cond, drop_B)


def draw(keys_B: jax.Array, latents: Latents, *, time_mean: float, time_std: float) -> FlowDraw:
  """Noise and time of each example of a batch with one a row."""
  # One time for all latents of an example, a noise for each.
  shapes = {name: x.shape[1:] for name, x in latents.items()}
  noise = draws.noise(keys_B, shapes)
  t_B = draw_time(keys_B, time_mean, time_std)
  return FlowDraw(noise, t_B)


def draw_time(keys_B: jax.Array, mean: float, std: float) -> jax.Array:
  """Time of each example, t = sigmoid(N(mean, std))."""
  normal_B = draws.normal(keys_B, "time")
  return paths.lognormal_time(
    normal_B,
    mean=mean,
    std=std,
  )


def check(settings: Any, model_config: Any, rows: int) -> None:
  """Raises FieldError for settings of `flow_matching` that cannot work."""
  del model_config, rows
  check_weights(settings)
  sections.check_not_negative(settings, "time_std")
  sections.check_share(settings, "drop_condition", "drop_pointmap", "sigma_min")


def check_weights(settings: Any) -> None:
  """Raises FieldError unless the weights of the latents are a loss."""
  negative = [name for name, weight in settings.weights.items() if weight < 0]
  if negative:
    name = negative[0]
    raise FieldError(f"weights.{name} = {settings.weights[name]} is negative: give 0 or more")
  if not any(settings.weights.values()):
    raise FieldError("weights names no latent with a weight above 0: there is nothing to learn")


def flow_matching(
  model: VelocityModel,
  frozen,
  batch: GeometryBatch | TextureBatch,
  key: jax.Array,
  *,
  weights: Mapping[str, float],
  time_mean: float = -1.0,
  time_std: float = 1.0,
  drop_condition: float = 0.1,
  drop_pointmap: float = 0.0,
  sigma_min: float = 0.0,
  whole: Latents | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Conditional flow matching.

  Args:
    model: the velocity model; one with a step embedder is fed d = 0, as the sampler does.
    frozen: not used; there is no teacher.
    batch: latents at the data end of the path; those not present are never trained on. Its examples
      may be packed (objectives/examples.py); a mean is over examples, of each its own mean.
    key: depends on the seed and the step; combined with each example's content key.
    weights: latent name -> weight in the loss; a latent without a weight is fed to the model but
    not trained.
    time_mean, time_std: t = sigmoid(N(mean, std)).
    drop_condition: probability that an example's condition tokens are multiplied by zero.
    drop_pointmap: probability that both point-map streams of an example are dropped.
    sigma_min: noise left at t = 1.
    whole: latent name -> (parts, B) presence in all parts of the batch, where `batch` is one of
    them; None: it is all.

  Returns:
    The loss and scalar metrics: `flow/<latent>` (unweighted), `present/<latent>`, and `flow_time_*`
    (paths.bucketed).
  """
  del frozen

  # A point on the path of each example, and where the path leads from there.
  examples = examples_lib.of(batch)
  keys_N = draws.example_keys(key, examples.content_N2)
  noise = examples.noise(keys_N, batch.latents)
  t_N = draw_time(keys_N, time_mean, time_std)
  present = {name: examples.flat(has) for name, has in batch.present.items()}
  x_t, target = masked_inputs(
    noise,
    batch.latents,
    {name: examples.spread(has_N) for name, has_N in present.items()},
    examples.spread(t_N),
    sigma_min,
  )

  # The condition, which some examples go without: the model learns both branches of guidance.
  tokens = encode(model, batch, keys_N, drop_pointmap=drop_pointmap)
  uniform_N = draws.uniform(keys_N, "drop_condition")
  tokens = drop_tokens(tokens, examples.arranged(uniform_N), drop_condition)

  # What the model says, against the path's own velocity.
  velocity = examples.velocity(model)
  d = step_zero(model)
  prediction = velocity(x_t, examples.arranged(t_N), tokens, d)
  if whole is not None:
    whole = {name: examples.flat_parts(has) for name, has in whole.items()}
  loss, parts, loss_N = weighted_errors(
    prediction,
    target,
    present,
    weights,
    whole,
    errors_of=examples.errors,
  )

  # A part's mean alone does not say over how many samples it is.
  metrics = {f"flow/{name}": value for name, value in parts.items()}
  for name in weights:
    present_N = jnp.asarray(present[name], jnp.float32)
    metrics[f"present/{name}"] = present_N.mean()
  # The loss by time shows which end of the path is hard.
  metrics |= paths.bucketed(
    "flow_time",
    loss_N,
    t_N,
    counted_B=examples.exists(present),
  )
  return loss, metrics


def step_zero(model: VelocityModel) -> jax.Array | None:
  """d = 0 for models with a step embedder (see paths.step_size)."""
  return paths.step_size(model, (0.0,))
