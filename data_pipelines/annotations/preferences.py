"""Preference examples: what won a chain of choices, and what lost to it.

Only candidates of the configured generator families take part: Diffusion-DPO compares a model with
its own reference, so its pairs come from the model's own samples. What people rejected is kept as a
loser; where they rejected everything and an artist made the mesh, that mesh wins, if `families`
admits "artist".
"""

from collections.abc import Iterator

from data_pipelines.annotations import accepted
from data_pipelines.annotations.items import Recipe, SetAside, shape_fields
from data_pipelines.annotations.layout import ARTIST, Candidate, Item
from data_pipelines.format import schema


def pairs(item: Item, recipe: Recipe) -> list[tuple[Candidate, list[Candidate]]]:
  """(winner, its losers, those that lost last first) of one item; winners in the order of
  candidates.

  Raises SetAside: no_rating, low_rating (for pairs = "best"), other_generator (the best is of
  another family), no_pair.
  """
  own = lambda c: not recipe.families or c.family in recipe.families
  losers_of = lambda name: [
    item.candidates[n]
    for n in reversed(item.verdict.beaten.get(name, ()))
    if own(item.candidates[n])
  ]
  if recipe.pairs == "all":
    winners = [(c, losers_of(name)) for name, c in item.candidates.items() if own(c)]
  else:
    winners = _of_the_best(item, recipe, own, losers_of)
  winners = [(winner, losers[: recipe.max_losers or None]) for winner, losers in winners if losers]
  if not winners:
    raise SetAside(
      "no_pair",
      f"nothing of {', '.join(recipe.families) or 'any family'} was preferred to another of them",
    )
  return winners


def _of_the_best(
  item: Item, recipe: Recipe, own, losers_of
) -> list[tuple[Candidate, list[Candidate]]]:
  try:
    accepted.check_rating(item, recipe)
  except SetAside:
    if item.artist is None or not own(item.artist):
      raise
    # the best of them first
    rejected = sorted(reversed(item.verdict.shown), key=lambda name: name != item.verdict.best)
    return [(item.artist, [item.candidates[n] for n in rejected if own(item.candidates[n])])]
  if item.best is None or not own(item.best):
    made_by = item.best.generator if item.best is not None else ARTIST
    raise SetAside(
      "other_generator",
      f"the best shape was made by {made_by}, not by one of {', '.join(recipe.families)}",
    )
  return [(item.best, losers_of(item.best.name))]


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
