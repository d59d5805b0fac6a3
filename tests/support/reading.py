"""Loaders of the tiny dataset, and batches as flat lists of arrays."""

import numpy as np

from data_pipelines.read import loader
from data_pipelines.read.augment import AugmentConfig

COUNT = 24  # records of the first dataset
AUGMENT = {
  "augment": AugmentConfig(
    erode=0.3,
    dilate=0.3,
    blur=0.5,
    colour=0.8,
    light=0.5,
    box_factor=(1.0, 1.4),
    shift=0.1,
  )
}


def config(folder, **changes) -> loader.DataConfig:
  settings = {
    "mixture": {"a": (str(folder), 1.0)},
    "image_size": 24,
    "pointmap_size": 16,
    "resolution": 16,
    "shape_resolution": 4,
    "threads": 2,
    "prefetch": 2,
  }
  return loader.DataConfig(**{**settings, **changes})


def make(
  folder, *, kind="geometry", batch_size=8, seed=0, host_index=0, host_count=1, **changes
) -> loader.Loader:
  return loader.make_loader(
    config(folder, **changes),
    kind=kind,
    batch_size=batch_size,
    seed=seed,
    host_index=host_index,
    host_count=host_count,
  )


def leaves(batch, name: str = "") -> list[tuple[str, np.ndarray]]:
  """(path, array) of every array of a batch."""
  if batch is None:
    return []
  if isinstance(batch, dict):
    items = sorted(batch.items())
  elif isinstance(batch, tuple):
    items = batch._asdict().items()
  else:
    return [(name, batch)]
  found = []
  for key, value in items:
    found += leaves(value, f"{name}/{key}")
  return found


def join(batches) -> dict[str, np.ndarray]:
  """path -> array of the batches of several hosts, one after another."""
  parts = [dict(leaves(batch)) for batch in batches]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal(one, other) -> None:
  assert_same_arrays(dict(leaves(one)), dict(leaves(other)))


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
  assert list(one) == list(other)
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
