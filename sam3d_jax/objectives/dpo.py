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
  reward_win_B, reward_lose_B = -scale_B * (win - ref_win), -scale_B * (lose - ref_lose)
  return -jax.nn.log_sigmoid(reward_win_B - reward_lose_B), reward_win_B, reward_lose_B


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
  x_t, target = flow_matching.masked_inputs(noise, data, present, t_B, sigma_min)
  prediction = model.velocity(x_t, t_B, tokens_BSD, flow_matching.step_zero(model))
  return flow_matching.weighted_errors(prediction, target, present, weights)[2]


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
  weights = dict.fromkeys(latents, 1.0)
  keys_B = draws.example_keys(key, batch.key)
  noise = draws.noise(keys_B, {k: x.shape[1:] for k, x in batch.win.items()})
  t_B = draws.uniform(keys_B, "time")

  def errors(m):
    tokens_BSD = m.encode(batch.cond)
    return [
      candidate_error(m, tokens_BSD, noise, data, batch.present, t_B, weights, sigma_min)
      for data in (batch.win, batch.lose)
    ]

  (win_B, lose_B), (ref_win_B, ref_lose_B) = errors(model), jax.lax.stop_gradient(errors(frozen))
  loss_B, reward_win_B, reward_lose_B = preference_terms(
    win_B, lose_B, ref_win_B, ref_lose_B, beta * T * paths.time_weight(time_weight, t_B)
  )
  usable = lambda present: jnp.stack([jnp.asarray(present[k], bool) for k in latents]).any(0)
  usable_B, usable_PB = usable(batch.present), None if whole is None else usable(whole)
  mean = lambda values_B: flow_matching.masked_mean(values_B, usable_B, usable_PB)
  margin_B = reward_win_B - reward_lose_B
  return mean(loss_B), {
    "dpo/margin": mean(margin_B),
    "dpo/accuracy": mean((margin_B > 0).astype(jnp.float32)),
    "dpo/reward_win": mean(reward_win_B),
    "dpo/reward_lose": mean(reward_lose_B),
    "dpo/error": mean(win_B),
    "dpo/error_ref": mean(ref_win_B),
  }


def passes(settings: Mapping[str, Any], cost: Cost, trained: set[str], plain: bool) -> Passes:
  """Winner and loser pass the streams twice each: by the model and, without gradient, by the
  reference. The condition is encoded once by each of the two.

  A reference that shares frozen encoders could share their tokens: the plain count lets it, the
  executed one counts what is computed.
  """
  del settings
  forward = sum(2 * cost.parts[name].forward for name in cost.streams)
  for name, part in cost.parts.items():
    encodes_again = name in trained or not plain
    if name not in cost.streams and encodes_again:
      forward += part.forward
  return Passes(trained=dict.fromkeys(cost.streams, 2), forward=forward)
