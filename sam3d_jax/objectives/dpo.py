"""Direct preference optimisation of a flow-matching model (Wallace et al. 2024, "Diffusion-DPO";
arXiv 2511.16624 §3.3).

    delta = (err_theta(win) - err_ref(win)) - (err_theta(lose) - err_ref(lose))
    loss  = -log sigmoid(-beta T w(t) delta)

where err is the squared velocity error of flow matching (mean over elements) and all four share one
t and one noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.batch import PreferenceBatch
from sam3d_jax.models.flops import Cost, Passes
from sam3d_jax.objectives import draws, flow_matching, paths
from sam3d_jax.objectives.paths import Latents, VelocityModel


def preference_terms(
  win: jax.Array, lose: jax.Array, ref_win: jax.Array, ref_lose: jax.Array, scale_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(loss_B, reward_win_B, reward_lose_B) from the four errors, each (B,), and scale_B = beta T
  w(t).

  The implicit reward of a candidate is -scale (err_theta - err_ref); the margin is the winner's
  minus the loser's, and the loss is -log sigmoid(margin).
  """
  # Rewards of a candidate: how much less wrong the model is about it than the reference.
  reward_win_B = -scale_B * (win - ref_win)
  reward_lose_B = -scale_B * (lose - ref_lose)
  # Bradley and Terry's probability that the winner wins, as a loss.
  margin_B = reward_win_B - reward_lose_B
  loss_B = -jax.nn.log_sigmoid(margin_B)
  return loss_B, reward_win_B, reward_lose_B


def candidate_error(
  model: VelocityModel,
  tokens_BSD: jax.Array,
  noise: Latents,
  data: Latents,
  present: Latents,
  t_B: jax.Array,
  weights: Mapping[str, float],
  sigma_min: float,
) -> jax.Array:
  """Weighted squared velocity error of one candidate, (B,); absent latents count zero."""
  # As in pre-training, but per sample: the loss of a pair is no mean over the batch.
  x_t, target = flow_matching.masked_inputs(
    noise,
    data,
    present,
    t_B,
    sigma_min,
  )
  d = flow_matching.step_zero(model)
  prediction = model.velocity(x_t, t_B, tokens_BSD, d)
  _, _, error_B = flow_matching.weighted_errors(
    prediction,
    target,
    present,
    weights,
  )
  return error_B


def check(settings: Any, model_config: Any, rows: int) -> None:
  """Raises FieldError for settings of `dpo` that cannot work."""
  del model_config, rows
  sections.check_positive(settings, "beta", "T")
  sections.check_choice(settings, "time_weight", paths.TIME_WEIGHTS)
  sections.check_share(settings, "sigma_min")


def dpo(
  model: VelocityModel,
  frozen: VelocityModel,
  batch: PreferenceBatch,
  key: jax.Array,
  *,
  beta: float,
  T: float = 1000.0,
  latents: Sequence[str] = ("shape",),
  time_weight: str = "uniform",
  sigma_min: float = 0.0,
  whole: Latents | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Preference alignment against a frozen reference.

  Args:
    model, frozen: the model being aligned and the reference it started from.
    batch: winners and losers of the same condition; a pair that lacks one of `latents` in a sample
      is not trained on it.
    beta, T: strength of the pull to the reference and number of diffusion steps it stands for; only
      their product matters.
    latents: which latents are compared, with equal weights. All that the batch holds are fed to the
      model.
    time_weight: name of w(t) in paths.TIME_WEIGHTS. t is uniform.
    whole: as in flow matching.

  Returns:
    The loss, and metrics: `dpo/margin` (reward of the winner minus that of the loser),
    `dpo/accuracy` (share of pairs with a positive margin), `dpo/reward_win`, `dpo/reward_lose`, and
    the winner's plain flow error of model and reference, `dpo/error`, `dpo/error_ref`.

  Raises:
    ValueError: there is no frozen reference.
  """
  if frozen is None:
    raise ValueError("preference alignment needs the frozen reference model")

  # One noise and one time of each pair, shared by both candidates and both models.
  keys_B = draws.example_keys(key, batch.key)
  shapes = {name: x.shape[1:] for name, x in batch.win.items()}
  noise = draws.noise(keys_B, shapes)
  t_B = draws.uniform(keys_B, "time")

  # The four errors. Each model encodes the condition once.
  weights = dict.fromkeys(latents, 1.0)

  def errors(of_model):
    tokens_BSD = of_model.encode(batch.cond)
    # One encoding serves both candidates: they are of the same photo.
    both = []
    for candidate in (batch.win, batch.lose):
      error_B = candidate_error(
        of_model,
        tokens_BSD,
        noise,
        candidate,
        batch.present,
        t_B,
        weights,
        sigma_min,
      )
      both.append(error_B)
    return both

  # The reference is a constant, also where it is the model itself.
  win_B, lose_B = errors(model)
  ref_win_B, ref_lose_B = jax.lax.stop_gradient(errors(frozen))

  # What the model prefers more than the reference does.
  scale_B = beta * T * paths.time_weight(time_weight, t_B)
  loss_B, reward_win_B, reward_lose_B = preference_terms(
    win_B,
    lose_B,
    ref_win_B,
    ref_lose_B,
    scale_B,
  )

  # Means over the pairs that have one of the latents.
  usable_B = has_any(batch.present, latents)
  usable_PB = None
  if whole is not None:
    usable_PB = has_any(whole, latents)

  def mean(values_B):
    return flow_matching.masked_mean(values_B, usable_B, usable_PB)

  margin_B = reward_win_B - reward_lose_B
  loss = mean(loss_B)
  return loss, {
    "dpo/margin": mean(margin_B),
    "dpo/accuracy": mean((margin_B > 0).astype(jnp.float32)),
    "dpo/reward_win": mean(reward_win_B),
    "dpo/reward_lose": mean(reward_lose_B),
    "dpo/error": mean(win_B),
    "dpo/error_ref": mean(ref_win_B),
  }


def has_any(present: Latents, latents: Sequence[str]) -> jax.Array:
  """Whether a sample has one of the latents: (B,) or (parts, B) bool, as `present` holds them."""
  has = [jnp.asarray(present[name], bool) for name in latents]
  return jnp.stack(has).any(0)


def passes(settings: Mapping[str, Any], cost: Cost, trained: set[str], plain: bool) -> Passes:
  """Winner and loser pass the streams twice each: by the model and, without gradient, by the
  reference. The condition is encoded once by each of the two.

  A reference that shares frozen encoders could share their tokens: the plain count lets it, the
  executed one counts what is computed.
  """
  del settings
  # The reference's streams, for both candidates.
  forward = sum(2 * cost.parts[name].forward for name in cost.streams)
  # The reference's encoders.
  for name, part in cost.parts.items():
    if name in cost.streams:
      continue
    encodes_again = name in trained or not plain
    if encodes_again:
      forward += part.forward
  # With a gradient, the streams run once a candidate.
  both_candidates = dict.fromkeys(cost.streams, 2)
  return Passes(trained=both_candidates, forward=forward)
