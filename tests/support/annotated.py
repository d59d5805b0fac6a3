"""Synthetic annotated items, copies of them with one thing changed, and what is built from them."""

import json
import pathlib
import shutil

from data_pipelines.annotations import dataset, items, layout, synthetic
from data_pipelines.build import shard_jobs
from data_pipelines.format import records

SMALL = synthetic.SyntheticConfig(
  seed=3,
  count=6,
  families=("crate", "mug"),
  image_size=64,
  candidates=3,
)


def edit(path: pathlib.Path, **changes) -> pathlib.Path:
  """A JSON file with some keys changed."""
  stated = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(stated))
  return path


def copy(folder: pathlib.Path, index: int, to: pathlib.Path, **changes) -> pathlib.Path:
  """Copies an item and changes its layout, whose file is returned."""
  shutil.copytree(folder / str(index), to, dirs_exist_ok=True)
  return edit(to / layout.FILE, **changes)


def plan(source, builder: str, **changes) -> shard_jobs.Plan:
  settings = {"min_rating": 3.0, "families": ("sam3d",)} | changes
  recipe = items.Recipe(builder, builder, **settings)
  config = dataset.AnnotationConfig(str(source), recipe, SMALL)
  return dataset.plan(config, test_fraction=0.0, items_per_shard=4)


def built(
  source, builder: str, out: pathlib.Path, *, budget: float = 0.0, **changes
) -> tuple[list[dict], dict[str, int]]:
  """(examples, refused by reason)."""
  planned = plan(source, builder, **changes)
  result = shard_jobs.build(planned, out, workers=1, quarantine_budget=budget)
  split = records.open_split(out)
  return [split[i] for i in range(len(split))], result.refused
