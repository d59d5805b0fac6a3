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
  if recipe.pairs == "all":
    winners = []
    for candidate in _own(item.candidates.values(), recipe):
      winners.append((candidate, _losers_of(candidate, item, recipe)))
  else:
    winners = [_best_pair(item, recipe)]
  limit = recipe.max_losers or None
  winners = [(winner, losers[:limit]) for winner, losers in winners if losers]
  if not winners:
    raise SetAside(
      "no_pair",
      f"nothing of {', '.join(recipe.families) or 'any family'} was preferred to another of them",
    )
  return winners


def _own(candidates: Iterable[Candidate], recipe: Recipe) -> list[Candidate]:
  """Those of the recipe's generator families."""
  return [c for c in candidates if not recipe.families or c.family in recipe.families]


def _losers_of(winner: Candidate, item: Item, recipe: Recipe) -> list[Candidate]:
  """What the winner beat, those that lost last first."""
  beaten = item.verdict.beaten.get(winner.name, ())
  return _own((item.candidates[name] for name in reversed(beaten)), recipe)


def _best_pair(item: Item, recipe: Recipe) -> tuple[Candidate, list[Candidate]]:
  """The best candidate and what lost to it, or the artist's mesh where people rejected all."""
  try:
    accepted.check_rating(item, recipe)
  except SetAside:
    if item.artist is None or not _own([item.artist], recipe):
      raise
    # the best of the rejected ones first
    rejected = sorted(reversed(item.verdict.shown), key=lambda name: name != item.verdict.best)
    return item.artist, _own((item.candidates[name] for name in rejected), recipe)
  if item.best is None or not _own([item.best], recipe):
    made_by = item.best.generator if item.best is not None else ARTIST
    raise SetAside(
      "other_generator",
      f"the best shape was made by {made_by}, not by one of {', '.join(recipe.families)}",
    )
  return item.best, _losers_of(item.best, item, recipe)


def examples(item: Item, recipe: Recipe, name: str) -> Iterator[schema.Example]:
  """One example a winner. Raises Refused, before anything is yielded."""
  made = []
  for winner, losers in pairs(item, recipe):
    rating = item.rating if winner is item.best else None
    example = accepted.make_example(
      item, winner, recipe, name, rating=rating, kind="preference", losers=[c.name for c in losers]
    )
    example["generator"] = winner.generator
    example["losers"] = [
      schema.empty_loser() | shape_fields(c, recipe)[0] | {"generator": c.generator} for c in losers
    ]
    made.append(example)
  yield from made
