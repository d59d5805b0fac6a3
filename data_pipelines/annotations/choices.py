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
    if len(names) > 1:
      raise ChoiceError(
        f"choices = []: {len(names)} candidates need a chain of choices; add it, or leave one "
        "candidate"
      )
    return Verdict(names[0] if names else "", {}, tuple(names))
  # the candidate that stays, those that are like it (itself included), all that they beat
  standing, alike, below = "", [], []
  beaten: dict[str, list[str]] = {}
  for number, choice in enumerate(choices):
    _check(number, choice, names)
    pair = (choice.left, choice.right)
    if not standing:
      standing, alike = choice.left, [choice.left]
    fresh = [n for n in pair if n not in alike and n not in below]
    if len(fresh) != 1 or not set(pair) & set(alike):
      raise ChoiceError(
        f"choices[{number}] compares {choice.left!r} with {choice.right!r}: in a chain the one "
        "that stays "
        f"({standing!r}) meets one that was not shown before"
      )
    new, old = fresh[0], next(n for n in pair if n != fresh[0])
    if choice.answer == "equal":
      standing = choice.kept or old
      alike.append(new)
      beaten[new] = list(below)
    elif (choice.answer == "left") == (choice.left == new):
      standing, below, alike = new, below + alike, [new]
      beaten[new] = list(below)
    else:
      standing, below = old, below + [new]
      for name in alike:
        beaten.setdefault(name, []).append(new)
  shown = dict.fromkeys(name for choice in choices for name in (choice.left, choice.right))
  return Verdict(
    standing, {winner: tuple(losers) for winner, losers in beaten.items() if losers}, tuple(shown)
  )


def _check(number: int, choice: Choice, names: Sequence[str]) -> None:
  if choice.answer not in ANSWERS:
    raise ChoiceError(
      f"choices[{number}].answer = {choice.answer!r}: write one of {', '.join(ANSWERS)}"
    )
  for side in ("left", "right"):
    if getattr(choice, side) not in names:
      raise ChoiceError(
        f"choices[{number}].{side} = {getattr(choice, side)!r}: no such candidate; there are "
        f"{', '.join(names)}"
      )
  if choice.left == choice.right:
    raise ChoiceError(f"choices[{number}] compares {choice.left!r} with itself")
  if choice.kept and (choice.answer != "equal" or choice.kept not in (choice.left, choice.right)):
    raise ChoiceError(
      f'choices[{number}].kept = {choice.kept!r}: it names one of the two candidates of an "equal" '
      "answer"
    )


def from_scores(scores: Mapping[str, float], *, tie: float = 0.0) -> list[Choice]:
  """The chain that a judge with these scores (higher is better) would make, in the order given;
  differences up to `tie` are equal.
  """
  names = list(scores)
  standing, made = names[0], []
  for name in names[1:]:
    difference = scores[standing] - scores[name]
    answer = "equal" if abs(difference) <= tie else "left" if difference > 0 else "right"
    made.append(Choice(standing, name, answer, kept=standing if answer == "equal" else ""))
    standing = name if answer == "right" else standing
  return made
