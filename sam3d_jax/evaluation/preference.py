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

  # Wilson 1927: the shares that are within z standard errors of what was seen.
  shrink = 1 + z**2 / votes
  towards_half = z**2 / (2 * votes)
  centre = (share + towards_half) / shrink
  of_share = share * (1 - share) / votes
  of_size = z**2 / (4 * votes**2)
  spread = np.sqrt(of_share + of_size)
  half = z / shrink * spread

  # Rounding may leave [0, 1] by an ulp.
  low = float(centre - half)
  high = float(centre + half)
  return max(0.0, low), min(1.0, high)


def win_rate(votes: Sequence[Vote], model: str, against: str, level: float = 0.95) -> WinRate:
  """How often `model` is preferred to `against`."""
  # Points of the model in the votes between the two.
  pair = {model, against}
  points = []
  for vote in votes:
    if {vote.left, vote.right} != pair:
      continue
    for_left = OUTCOMES[vote.outcome]
    is_left = vote.left == model
    points.append(for_left if is_left else 1 - for_left)
  rate = float("nan")
  if points:
    rate = float(np.mean(points))
  low, high = wilson_interval(sum(points), len(points), level)
  return WinRate(rate, low, high, votes=len(points))


def models(votes: Sequence[Vote]) -> list[str]:
  """Names that occur in votes, sorted."""
  names = set()
  for vote in votes:
    names.add(vote.left)
    names.add(vote.right)
  return sorted(names)


def elo(votes: Sequence[Vote], *, mean: float = 1000.0, prior: float = 0.1) -> dict[str, float]:
  """Model -> rating; ratings average to `mean`.

  prior: imaginary ties of every model with an average one; they keep the rating of a model that
  never lost finite.
  """
  # points[i, j]: points of i against j.
  names = models(votes)
  index = {name: i for i, name in enumerate(names)}
  count = len(names)
  points = np.zeros((count, count))
  for vote in votes:
    left = index[vote.left]
    right = index[vote.right]
    for_left = OUTCOMES[vote.outcome]
    points[left, right] += for_left
    points[right, left] += 1 - for_left

  def negative_log_likelihood(rating):
    """Of the votes and the imaginary ties, and its gradient."""
    # A point of i against j has the likelihood expit(lead).
    lead = rating[:, None] - rating[None]
    surprise = np.logaddexp(0, -lead)
    of_votes = points * surprise

    # An imaginary tie is half a win and half a loss against a rating of 0.
    won = np.logaddexp(0, rating)
    lost = np.logaddexp(0, -rating)
    ties = (won + lost).sum()
    of_ties = prior / 2 * ties
    loss = of_votes.sum() + of_ties

    # Its derivative by each rating.
    pull = points * expit(-lead)
    drawn = expit(rating) - expit(-rating)
    pull_of_ties = prior / 2 * drawn
    gradient = pull.sum(0) - pull.sum(1) + pull_of_ties
    return loss, gradient

  found = minimize(
    negative_log_likelihood,
    np.zeros(len(names)),
    jac=True,
    method="BFGS",
    options={"gtol": 1e-7},
  )

  # From log odds to the Elo scale, about the asked mean.
  rating = found.x * ELO_PER_NAT
  centred = rating - rating.mean() + mean
  return dict(zip(names, centred.tolist(), strict=True))


def elo_intervals(
  votes: Sequence[Vote], *, level: float = 0.95, draws: int = 200, seed: int = 0, prior: float = 0.1
) -> dict[str, tuple[float, float]]:
  """Percentile bootstrap interval of each rating over the votes.

  A draw in which a model has no votes says nothing about it.
  """
  # Ratings of votes drawn with replacement.
  rng = np.random.default_rng(seed)
  drawn = []
  for _ in range(draws):
    chosen = rng.integers(0, len(votes), len(votes))
    picked = [votes[i] for i in chosen]
    drawn.append(elo(picked, prior=prior))

  # A model has as many ratings as draws in which it occurs.
  outside = (1 - level) / 2
  quantiles = outside, (1 + level) / 2
  out = {}
  for name in models(votes):
    ratings = [draw[name] for draw in drawn if name in draw]
    low, high = np.quantile(ratings, quantiles)
    out[name] = (float(low), float(high))
  return out
