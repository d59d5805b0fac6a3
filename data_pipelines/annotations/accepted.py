"""Examples of mitl_3do and art_3do: the shape that people accepted for a photo, with its pose and
rating.
"""

from collections.abc import Iterator
import json
from typing import Any

import numpy as np

from data_pipelines.annotations.items import Recipe, SetAside, photo_fields, shape_fields
from data_pipelines.annotations.layout import Candidate, Item
from data_pipelines.format import schema


def mitl_examples(item: Item, recipe: Recipe, name: str) -> Iterator[schema.Example]:
  """The best candidate, if it is rated well enough. Raises Refused; SetAside (no_candidates,
  no_rating, low_rating) where it is not.
  """
  if item.best is None:
    raise SetAside(
      "no_candidates", "an artist's mesh and no candidates; the builder art_3do takes it"
    )
  check_rating(item, recipe)
  yield make_example(item, item.best, recipe, name, rating=item.rating)


def artist_examples(item: Item, recipe: Recipe, name: str) -> Iterator[schema.Example]:
  """The artist's mesh. Raises Refused; SetAside (no_artist_mesh) where there is none."""
  if item.artist is None:
    raise SetAside("no_artist_mesh", "the item has no artist's mesh")
  yield make_example(item, item.artist, recipe, name, rating=None)


def check_rating(item: Item, recipe: Recipe) -> None:
  """Raises SetAside where the item is not rated at least `min_rating`."""
  if item.rating is None:
    if recipe.min_rating > 0:
      raise SetAside(
        "no_rating",
        f"the item states no rating, min_rating = {recipe.min_rating:g} asks for one",
      )
  elif item.rating < recipe.min_rating:
    raise SetAside("low_rating", f"rated {item.rating:g}, below min_rating = {recipe.min_rating:g}")


def make_example(
  item: Item,
  candidate: Candidate,
  recipe: Recipe,
  name: str,
  *,
  rating: float | None,
  kind: str = "example",
  **lineage: Any,
) -> schema.Example:
  """The record of a photo with a candidate's shape. Raises Refused."""
  # what is seen, and the shape
  example = schema.empty_example(kind)
  example.update(photo_fields(item, recipe))
  shape, mesh_key, shape_lineage = shape_fields(candidate, recipe)
  example.update(shape)
  if rating is not None:
    example["rating"] = np.float32(rating)

  # where it comes from
  parents = {
    "builder": recipe.builder,
    "item": name,
    "candidate": candidate.name,
    "generator": candidate.generator,
  }
  parents |= shape_lineage | lineage
  if recipe.synthetic:
    parents["synthetic"] = True
  example.update(
    key=schema.example_key(
      recipe.name, example["image"], example["mask"], mesh_key, candidate.name
    ),
    source=recipe.name,
    mesh_key=mesh_key,
    license=candidate.license or item.license or recipe.license,
    lineage=json.dumps(parents, sort_keys=True),
  )
  return example
