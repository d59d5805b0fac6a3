"""Random batches in the form of real ones, for `:fake` configurations, compile checks and
benchmarks: no files needed.
"""

from collections.abc import Iterator
import concurrent.futures
import itertools
from typing import Any

import numpy as np

from data_pipelines.format import schema
from data_pipelines.read import kinds, rows
from sam3d_jax.errors import ConfigError


class FakeLoader:
  """Stands in for `loader.Loader`; row r of global batch s is a pure function of (seed, s, r), for
  any number of hosts.
  """

  def __init__(
    self,
    config: rows.SampleConfig,
    *,
    kind: str,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
  ):
    if batch_size < 1 or batch_size % host_count:
      raise ConfigError(f"batch_size = {batch_size} does not divide among {host_count} hosts")
    self.config = config
    self.kind = kinds.lookup(kind)
    self.seed = seed
    self.batch_size = batch_size
    self.rows = batch_size // host_count
    self.host_index = host_index
    self.corrupt: dict[str, str] = {}

  @property
  def spec(self) -> Any:
    """A batch in shape and type."""
    return self.kind.spec(self.config, self.rows)

  def batch(self, step: int) -> Any:
    """This host's rows of global batch `step`."""
    template = self.kind.spec(self.config, 1)
    # Rows are numbered over all hosts and steps.
    own = self.host_index * self.rows
    first = step * self.batch_size + own
    end = first + self.rows
    made = []
    for position in range(first, end):
      row = self._row(template, position)
      made.append(row)
    return self.kind.collate(made, self.config)

  def iterate(self, start_step: int = 0) -> Iterator[Any]:
    """Batches start_step, start_step + 1, ... without end; the next one is made in a thread while
    the last is in use.
    """
    # One batch ahead.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      ahead = pool.submit(self.batch, start_step)
      for step in itertools.count(start_step + 1):
        batch = ahead.result()
        ahead = pool.submit(self.batch, step)
        yield batch

  def metrics(self, step: int) -> dict[str, float]:
    """Samples drawn before `step`."""
    samples = step * self.batch_size
    return {"data/samples/fake": float(samples)}

  def counters(self) -> dict[str, float]:
    """Nothing that is not read can be unreadable."""
    return {}

  def _row(self, template: Any, position: int) -> Any:
    # Keyed as a record would be, so that draws in training differ from row to row.
    key = schema.example_key("fake", self.seed, position)
    words = schema.key_words(key)
    rng = np.random.default_rng(words.tolist())
    row = self.kind.random(template, rng)
    if template.key.ndim == 2:
      return row._replace(key=words)

    # several objects a row, each with a key of its own
    of_objects = []
    for place in range(template.key.shape[1]):
      key = schema.example_key("fake", self.seed, position, place)
      of_objects.append(schema.key_words(key))
    return row._replace(key=np.stack(of_objects))
