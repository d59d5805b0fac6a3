"""Preference examples: what won a chain of choices, and what lost to it.

Only candidates of the configured generator families take part: Diffusion-DPO compares a model with
its own reference, so its pairs come from the model's own samples. What people rejected is kept as a
loser; where they rejected everything and an artist made the mesh, that mesh wins, if `families`
admits "artist".
"""

from collections.abc import Iterable, Iterator

from data_pipelines.annotations import accepted
from data_pipelines.annotations.items import Recipe, SetAside, shape_fields
from data_pipelines.annotations.layout import ARTIST, Candidate, Item
from data_pipelines.format import schema


def pairs(item: Item, recipe: Recipe) -> list[tuple[Candidate, list[Candidate]]]:
  """(winner, its losers, those that lost last first) of one item, in the order of candidates.

  Raises SetAside: no_rating, low_rating (for pairs = "best"), other_generator (the best is of
  another family), no_pair.
  """
  # who won, with all that it beat
  if recipe.pairs == "all":
    winners = []
    for candidate in _own(item.candidates.values(), recipe):
      losers = _losers_of(candidate, item, recipe)
      winners.append((candidate, losers))
  else:
    winners = [_best_pair(item, recipe)]

  # the hardest of them
  limit = recipe.max_losers or None
  found = []
  for winner, losers in winners:
    if losers:
      found.append((winner, losers[:limit]))
  if not found:
    families = ", ".join(recipe.families) or "any family"
    raise SetAside("no_pair", f"nothing of {families} was preferred to another of them")
  return found


def _own(candidates: Iterable[Candidate], recipe: Recipe) -> list[Candidate]:
  """Those of the recipe's generator families."""
  if not recipe.families:
    return list(candidates)
  return [candidate for candidate in candidates if candidate.family in recipe.families]


def _losers_of(winner: Candidate, item: Item, recipe: Recipe) -> list[Candidate]:
  """What the winner beat, those that lost last first."""
  names = item.verdict.beaten.get(winner.name, ())
  beaten = [item.candidates[name] for name in reversed(names)]
  return _own(beaten, recipe)


def _best_pair(item: Item, recipe: Recipe) -> tuple[Candidate, list[Candidate]]:
  """The best candidate and what lost to it, or the artist's mesh where people rejected all."""
  try:
    accepted.check_rating(item, recipe)
  except SetAside:
    if item.artist is None or not _own([item.artist], recipe):
      raise
    # the best of the rejected ones first
    last_first = reversed(item.verdict.shown)
    names = sorted(last_first, key=lambda name: name != item.verdict.best)
    rejected = [item.candidates[name] for name in names]
    return item.artist, _own(rejected, recipe)

  if item.best is None or not _own([item.best], recipe):
    made_by = ARTIST if item.best is None else item.best.generator
    raise SetAside(
      "other_generator",
      f"the best shape was made by {made_by}, not by one of {', '.join(recipe.families)}",
    )
  return item.best, _losers_of(item.best, item, recipe)


def examples(item: Item, recipe: Recipe, name: str) -> Iterator[schema.Example]:
  """One example a winner. Raises Refused, before anything is yielded."""
  made = []
  for winner, losers in pairs(item, recipe):
    # the winner with the photo; the rating is of the best candidate
    example = accepted.make_example(
      item,
      winner,
      recipe,
      name,
      rating=item.rating if winner is item.best else None,
      kind="preference",
      losers=[loser.name for loser in losers],
    )
    example["generator"] = winner.generator

    # what lost to it
    for loser in losers:
      shape, _, _ = shape_fields(loser, recipe)
      beaten = schema.empty_loser() | shape | {"generator": loser.generator}
      example["losers"].append(beaten)
    made.append(example)
  yield from made
