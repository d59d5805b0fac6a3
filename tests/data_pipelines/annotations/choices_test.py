"""What a chain of choices between candidates says."""

import numpy as np
import pytest

from data_pipelines.annotations import choices
from data_pipelines.annotations.choices import Choice, judge


@pytest.mark.parametrize("seed", range(8))
def test_the_chain_ends_with_the_best_and_every_loser_scored_less_than_its_winner(seed):
  rng = np.random.default_rng(seed)
  scores = dict(zip("abcdefgh", rng.integers(0, 5, 8).tolist(), strict=True))
  verdict = judge(list(scores), choices.from_scores(scores))
  assert scores[verdict.best] == max(scores.values())
  assert all(
    scores[winner] > scores[loser] for winner, losers in verdict.beaten.items() for loser in losers
  )
  alike = sum(score == scores[verdict.best] for score in scores.values())
  # everything else lost to the best
  assert len(verdict.beaten.get(verdict.best, ())) == len(scores) - alike


def test_equal_candidates_share_their_fate_and_never_lose_to_each_other():
  verdict = judge(
    "abcd", [Choice("a", "b", "left"), Choice("a", "c", "equal"), Choice("c", "d", "right")]
  )
  assert verdict == choices.Verdict(
    "d", {"a": ("b",), "c": ("b",), "d": ("b", "a", "c")}, ("a", "b", "c", "d")
  )
  assert judge("ab", [Choice("a", "b", "equal", kept="b")]) == choices.Verdict("b", {}, ("a", "b"))


@pytest.mark.parametrize(
  "made, words",
  [
    ([Choice("a", "b", "up")], r"choices\[0\].answer = 'up': write one of left, right, equal"),
    ([Choice("a", "x", "left")], r"choices\[0\].right = 'x': no such candidate; there are a, b, c"),
    (
      [Choice("a", "b", "left"), Choice("b", "c", "left")],
      r"choices\[1\] compares 'b' with 'c': in a chain the one that stays \('a'\)",
    ),
    ([Choice("a", "b", "left"), Choice("a", "b", "right")], r"choices\[1\]"),
    ([], "3 candidates need a chain"),
    ([Choice("a", "b", "left", kept="a")], "kept"),
  ],
)
def test_what_is_no_chain_is_named(made, words):
  with pytest.raises(choices.ChoiceError, match=words):
    judge("abc", made)
