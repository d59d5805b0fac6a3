"""Laws of a chain of choices."""

import random

import pytest

from data_pipelines.annotations import choices
from data_pipelines.engine import chain


def run(numbers, seed, answer):
  """The chain to its end, and the choices that led there."""
  made = []
  while True:
    state = chain.replay(numbers, seed, made)
    if state.pair is None:
      return state, made
    pair = state.pair
    payload = {"left": pair.left, "right": pair.right, "answer": answer(pair)}
    made.append(chain.checked(state, seed, payload))


@pytest.mark.parametrize("seed", range(20))
def test_the_best_wins_whatever_the_order_and_the_sides(seed):
  numbers = list(range(10, 18))
  state, made = run(numbers, seed, lambda pair: "left" if pair.left > pair.right else "right")
  assert state.standing == 17
  assert len(made) == len(numbers) - 1


@pytest.mark.parametrize("seed", range(20))
def test_the_stored_choices_are_the_chain_that_the_builders_read(seed):
  """Whatever a person answers, equal ones included, the builders find the same winner."""
  rng = random.Random(seed)
  numbers = list(range(6))
  state, made = run(numbers, seed, lambda pair: rng.choice(choices.ANSWERS))
  stated = []
  for one in made:
    kept = str(one["kept"]) if "kept" in one else ""
    stated.append(choices.Choice(str(one["left"]), str(one["right"]), one["answer"], kept))
  verdict = choices.judge([str(number) for number in numbers], stated)
  assert verdict.best == str(state.standing)


def test_sides_and_orders_vary_between_tasks():
  firsts = {chain.replay(range(8), seed, []).pair for seed in range(50)}
  assert len({pair.left for pair in firsts}) > 4
  lefts = [chain.replay((0, 1), seed, []).pair.left for seed in range(200)]
  assert 60 < sum(lefts) < 140


@pytest.mark.parametrize(
  "payload, words",
  [
    ({"left": 1, "right": 2, "answer": "both"}, "send one of left, right, equal"),
    ({"left": 1, "right": 9, "answer": "left"}, "load the task again"),
    ({}, "load the task again"),
  ],
)
def test_what_was_not_asked_for_is_no_choice(payload, words):
  state = chain.replay((1, 2), 0, [])
  pair = state.pair
  if payload.get("right") == 2:
    payload |= {"left": pair.left, "right": pair.right}
  with pytest.raises(ValueError, match=words):
    chain.checked(state, 0, payload)


def test_one_candidate_needs_no_choice_and_none_has_no_winner():
  assert chain.replay((5,), 0, []) == chain.Chain(None, 5, (5,))
  assert chain.replay((), 0, []).standing is None
  with pytest.raises(ValueError, match="send a rating"):
    chain.checked(chain.replay((5,), 0, []), 0, {})
