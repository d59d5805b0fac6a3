"""From a chain of pairwise choices to who beat whom.

A person sees two candidates and answers "left", "right" or "equal". The preferred one stays and
meets the next; of two equal ones one stays, drawn at random (`kept` names it; without that, the
next choice shows it, and after the last one it is the one that stood before). So the chain ends
with the best candidate.

    a : b -> left        a beats b
    a : c -> equal       a and c are alike; c stays
    c : d -> right       d beats c, and by way of it a and b

A loser was beaten, directly or by way of others. Candidates that are alike are never winner and
loser of each other; what beats one of them beats both, and what one of them beats both beat,
because the person could not tell them apart.
"""

from collections.abc import Mapping, Sequence
import dataclasses

ANSWERS = ("left", "right", "equal")


class ChoiceError(ValueError):
  """The choices are no chain; the message names the choice, the value and the remedy."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """One comparison."""

  left: str
  right: str
  answer: str
  kept: str = ""  # of two equal ones, the one that stayed


@dataclasses.dataclass(frozen=True)
class Verdict:
  """best: the candidate left at the end, "" if there is none.  beaten: winner -> its losers, in the
  order in which they lost. shown: the candidates that were looked at, in order.
  """

  best: str
  beaten: Mapping[str, tuple[str, ...]]
  shown: tuple[str, ...]


def judge(names: Sequence[str], choices: Sequence[Choice]) -> Verdict:
  """Who beat whom among the candidates `names`; those in no choice beat nobody. Raises ChoiceError
  where the choices are no chain.
  """
  if not choices:
    return _without_choices(names)

  # the candidate that stays, those that are like it (itself included), all that they beat
  standing, alike, below = "", [], []
  beaten: dict[str, list[str]] = {}
  shown: dict[str, None] = {}  # in order
  for number, choice in enumerate(choices):
    # who is met: the one that stays, or one like it, and one that is new
    _check(number, choice, names)
    pair = (choice.left, choice.right)
    shown.update(dict.fromkeys(pair))
    if not standing:
      standing, alike = choice.left, [choice.left]
    fresh = [name for name in pair if name not in alike and name not in below]
    meets = any(name in alike for name in pair)
    if len(fresh) != 1 or not meets:
      raise ChoiceError(
        f"choices[{number}] compares {choice.left!r} with {choice.right!r}: in a chain the one "
        f"that stays ({standing!r}) meets one that was not shown before"
      )
    new = fresh[0]
    old = choice.right if new == choice.left else choice.left

    # who stays, and who beat whom
    preferred = choice.left if choice.answer == "left" else choice.right
    if choice.answer == "equal":
      standing = choice.kept or old
      alike.append(new)
      beaten[new] = list(below)
    elif preferred == new:
      below = below + alike
      standing, alike = new, [new]
      beaten[new] = list(below)
    else:
      standing = old
      below = below + [new]
      for name in alike:
        beaten.setdefault(name, []).append(new)

  winners = {winner: tuple(losers) for winner, losers in beaten.items() if losers}
  return Verdict(standing, winners, tuple(shown))


def _without_choices(names: Sequence[str]) -> Verdict:
  """The verdict on one candidate or none. Raises ChoiceError for more."""
  if len(names) > 1:
    raise ChoiceError(
      f"choices = []: {len(names)} candidates need a chain of choices; add it, or leave one "
      "candidate"
    )
  best = names[0] if names else ""
  return Verdict(best, {}, tuple(names))


def _check(number: int, choice: Choice, names: Sequence[str]) -> None:
  """Raises ChoiceError for a choice that means nothing by itself."""
  place = f"choices[{number}]"
  stated = (choice.left, choice.right, choice.answer, choice.kept)
  if not all(isinstance(value, str) for value in stated):
    raise ChoiceError(f"{place} = {stated}: left, right, answer and kept are texts")
  if choice.answer not in ANSWERS:
    raise ChoiceError(f"{place}.answer = {choice.answer!r}: write one of {', '.join(ANSWERS)}")
  for side in ("left", "right"):
    name = getattr(choice, side)
    if name not in names:
      raise ChoiceError(
        f"{place}.{side} = {name!r}: no such candidate; there are {', '.join(names)}"
      )
  if choice.left == choice.right:
    raise ChoiceError(f"{place} compares {choice.left!r} with itself")

  # which of two equal ones stayed
  names_one_of_two = choice.kept in (choice.left, choice.right)
  may_name = choice.answer == "equal" and names_one_of_two
  if choice.kept and not may_name:
    raise ChoiceError(
      f'{place}.kept = {choice.kept!r}: it names one of the two candidates of an "equal" answer'
    )


def from_scores(scores: Mapping[str, float], *, tie: float = 0.0) -> list[Choice]:
  """The chain that a judge with these scores (higher is better) would make, in the order given;
  differences up to `tie` are equal.
  """
  standing, *others = scores
  chain = []
  for name in others:
    lead = scores[standing] - scores[name]
    if abs(lead) <= tie:
      chain.append(Choice(standing, name, "equal", kept=standing))
    elif lead > 0:
      chain.append(Choice(standing, name, "left"))
    else:
      chain.append(Choice(standing, name, "right"))
      standing = name
  return chain
