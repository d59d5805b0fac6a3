"""A chain of pairwise choices, replayed from the choices themselves.

A person sees two candidates and answers "left", "right" or "equal"; the preferred one stays and
meets the next. Order and sides are drawn from the task's seed, so the log of choices and the seed
are all the state there is: whoever resumes a chain, resumes it where the log ends.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import random
from typing import Any

from data_pipelines.annotations import choices


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two candidates to compare, by their numbers in the database."""

  step: int
  left: int
  right: int


@dataclasses.dataclass(frozen=True)
class Chain:
  """How far a chain is. pair: None once all candidates have been shown. standing: the candidate
  that nothing beat so far, None without candidates.
  """

  pair: Pair | None
  standing: int | None
  order: tuple[int, ...]


def replay(candidates: Sequence[int], seed: int, made: Sequence[Mapping[str, Any]]) -> Chain:
  """The chain of candidates after the choices `made`, the payloads that `checked` returned."""
  order = sorted(candidates)
  random.Random(seed).shuffle(order)
  if not order:
    return Chain(None, None, ())

  # who stands after each choice
  standing = order[0]
  for choice in made:
    if choice["answer"] == "equal":
      standing = choice["kept"]
    else:
      standing = choice[choice["answer"]]

  # who comes next, and on which side
  step = len(made)
  if step + 1 >= len(order):
    return Chain(None, standing, tuple(order))
  pair = [standing, order[step + 1]]
  _draw(seed, step, "sides").shuffle(pair)
  return Chain(Pair(step, *pair), standing, tuple(order))


def checked(chain: Chain, seed: int, payload: Mapping[str, Any]) -> dict[str, Any]:
  """The choice as it is stored. Raises ValueError for one that nobody asked for."""
  pair = chain.pair
  if pair is None:
    raise ValueError("every candidate has been compared: send a rating")
  if (payload.get("left"), payload.get("right")) != (pair.left, pair.right):
    raise ValueError(
      f"the pair to compare is {pair.left} and {pair.right}, not {payload.get('left')!r} and "
      f"{payload.get('right')!r}: load the task again"
    )
  answer = payload.get("answer")
  if answer not in choices.ANSWERS:
    raise ValueError(f"answer = {answer!r}: send one of {', '.join(choices.ANSWERS)}")
  stored = {"left": pair.left, "right": pair.right, "answer": answer}
  # of two equal ones one stays, drawn at random
  if answer == "equal":
    stored["kept"] = _draw(seed, pair.step, "kept").choice((pair.left, pair.right))
  return stored


def _draw(seed: int, step: int, purpose: str) -> random.Random:
  """Draws of one purpose at one step, which depend on nothing else."""
  return random.Random(f"{seed} {step} {purpose}")
