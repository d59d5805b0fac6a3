"""Fine-tuning on rated examples: what the threshold lets through, and how it follows the data
engine.
"""

import numpy as np
import pytest

from data_pipelines.format import records, schema
from data_pipelines.read import loader
from sam3d_jax.errors import ConfigError, InputError
from tests.support import tiny_dataset

RATINGS = (4.0, 2.0, np.nan, 3.0, 5.0, 1.0)


def rated(example):
  """Ratings in the order of the examples; NaN: none was given."""
  rating = RATINGS[rated.count % len(RATINGS)]
  rated.count += 1
  return example | {"rating": rating}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  rated.count = 0
  folder = tmp_path_factory.mktemp("rated")
  return tiny_dataset.write_dataset(folder, len(RATINGS), shards=1, change=rated)


def reader(folder, min_rating):
  config = loader.DataConfig(
    mixture={"mitl_3do": (str(folder), 1.0)},
    shape_resolution=4,
    image_size=16,
    pointmap_size=16,
    min_rating=min_rating,
  )
  return loader.make_loader(config, kind="geometry", batch_size=2, seed=0)


def keys_of(accepted, steps: int) -> list[tuple]:
  """Keys of the examples in the first batches."""
  keys = []
  for step in range(steps):
    batch = accepted.batch(step)
    keys += [tuple(key) for key in batch.key.tolist()]
  return keys


def test_examples_below_the_threshold_are_never_read_and_unrated_ones_stay(dataset):
  accepted = reader(dataset, 3.0)
  split = records.open_split(dataset)
  expected = set()
  for i, rating in enumerate(RATINGS):
    if not rating < 3.0:
      key = schema.key_words(split[i]["key"])
      expected.add(tuple(key.tolist()))
  assert len(accepted) == len(expected) == 4
  assert set(keys_of(accepted, steps=8)) == expected


def test_each_accepted_example_comes_once_an_epoch(dataset):
  keys = keys_of(reader(dataset, 3.0), steps=2)
  assert len(keys) == len(set(keys)) == 4


def test_a_threshold_that_nothing_passes_is_an_error_that_names_it(tmp_path):
  def poor(example):
    return example | {"rating": 1.0}

  folder = tiny_dataset.write_dataset(tmp_path, 2, shards=1, change=poor)
  message = r"none of the 2 examples of split 'train' is rated 2 or better"
  with pytest.raises(InputError, match=message):
    reader(folder, 2.0)


def test_the_threshold_rises_with_the_iteration_and_then_holds():
  found = [loader.threshold((3.0, 3.5, 4.0), k) for k in range(5)]
  assert found == [3.0, 3.5, 4.0, 4.0, 4.0]
  assert loader.threshold((), 7) is None
  with pytest.raises(ConfigError, match="never falls"):
    loader.threshold((4.0, 3.0), 0)
