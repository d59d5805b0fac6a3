"""Preference metrics: what pairwise votes say about models. A vote is "left", "right" or "equal"
between two named models.

- Win rate: wins plus half the ties, over votes; interval by Wilson's score (Wilson 1927), which
  stays within [0, 1] and is
  defined for a handful of votes.
- Elo: the ratings under which the votes are most likely (Bradley & Terry 1952) on the Elo scale,
  where a difference of 400 means
  odds of 10 to 1. Unlike the update-by-update form it does not depend on the order of the votes.
  Ties count half for each side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

OUTCOMES = {"left": 1.0, "right": 0.0, "equal": 0.5}  # points for the left model
ELO_PER_NAT = 400 / np.log(10)


class Vote(NamedTuple):
  left: str
  right: str
  outcome: str  # key of OUTCOMES


class WinRate(NamedTuple):
  rate: float  # NaN without votes
  low: float
  high: float
  votes: int


def wilson_interval(points: float, votes: int, level: float = 0.95) -> tuple[float, float]:
  """Score interval of a proportion; (0, 1) without votes."""
  if not votes:
    return 0.0, 1.0
  z = norm.ppf((1 + level) / 2)
  share = points / votes
  centre = (share + z**2 / (2 * votes)) / (1 + z**2 / votes)
  half = z / (1 + z**2 / votes) * np.sqrt(share * (1 - share) / votes + z**2 / (4 * votes**2))
  return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def win_rate(votes: Sequence[Vote], model: str, against: str, level: float = 0.95) -> WinRate:
  """How often `model` is preferred to `against`."""
  points = [
    OUTCOMES[v.outcome] if v.left == model else 1 - OUTCOMES[v.outcome]
    for v in votes
    if {v.left, v.right} == {model, against}
  ]
  rate = float(np.mean(points)) if points else float("nan")
  return WinRate(rate, *wilson_interval(sum(points), len(points), level), len(points))


def elo(votes: Sequence[Vote], *, mean: float = 1000.0, prior: float = 0.1) -> dict[str, float]:
  """Model -> rating; ratings average to `mean`.

  prior: imaginary ties of every model with an average one; they keep the rating of a model that
  never lost finite.
  """
  names = sorted({name for v in votes for name in (v.left, v.right)})
  index = {name: i for i, name in enumerate(names)}
  points = np.zeros((len(names), len(names)))  # points[i, j]: points of i against j
  for v in votes:
    points[index[v.left], index[v.right]] += OUTCOMES[v.outcome]
    points[index[v.right], index[v.left]] += 1 - OUTCOMES[v.outcome]

  def negative_log_likelihood(rating):
    lead = rating[:, None] - rating[None]
    loss = (points * np.logaddexp(0, -lead)).sum() + prior / 2 * (
      np.logaddexp(0, rating) + np.logaddexp(0, -rating)
    ).sum()
    pull = points * expit(-lead)
    return loss, pull.sum(0) - pull.sum(1) + prior / 2 * (expit(rating) - expit(-rating))

  found = minimize(
    negative_log_likelihood, np.zeros(len(names)), jac=True, method="BFGS", options={"gtol": 1e-7}
  )
  rating = found.x * ELO_PER_NAT
  return {name: float(r) for name, r in zip(names, rating - rating.mean() + mean, strict=True)}


def elo_intervals(
  votes: Sequence[Vote], *, level: float = 0.95, draws: int = 200, seed: int = 0, prior: float = 0.1
) -> dict[str, tuple[float, float]]:
  """Percentile bootstrap interval of each rating over the votes; a draw in which a model has no
  votes says nothing about it.
  """
  rng = np.random.default_rng(seed)
  drawn = [
    elo([votes[i] for i in rng.integers(0, len(votes), len(votes))], prior=prior)
    for _ in range(draws)
  ]
  quantiles = (1 - level) / 2, (1 + level) / 2
  out = {}
  for name in sorted({name for v in votes for name in (v.left, v.right)}):
    low, high = np.quantile([d[name] for d in drawn if name in d], quantiles)
    out[name] = (float(low), float(high))
  return out
