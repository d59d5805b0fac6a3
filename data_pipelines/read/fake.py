"""Random batches in the form of real ones, for `:fake` configurations, compile checks and
benchmarks: no files needed.
"""

from collections.abc import Iterator
import concurrent.futures
import itertools
from typing import Any

import numpy as np

from data_pipelines.format import schema
from data_pipelines.read import rows
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
    self.config, self.kind, self.seed = config, kind, seed
    self.batch_size, self.rows, self.host_index = batch_size, batch_size // host_count, host_index
    self.corrupt: dict[str, str] = {}

  @property
  def spec(self) -> Any:
    """A batch in shape and type."""
    return rows.spec(self.config, self.kind, self.rows)

  def batch(self, step: int) -> Any:
    """This host's rows of global batch `step`."""
    template = rows.spec(self.config, self.kind, 1)
    first = step * self.batch_size + self.host_index * self.rows
    return rows.stack([self._row(template, first + row) for row in range(self.rows)])

  def iterate(self, start_step: int = 0) -> Iterator[Any]:
    """Batches start_step, start_step + 1, ... without end; the next one is made in a thread while
    the last is in use.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      ahead = pool.submit(self.batch, start_step)
      for step in itertools.count(start_step + 1):
        rows, ahead = ahead.result(), pool.submit(self.batch, step)
        yield rows

  def metrics(self, step: int) -> dict[str, float]:
    """Samples drawn before `step`."""
    return {"data/samples/fake": float(step * self.batch_size)}

  def _row(self, template: Any, position: int) -> Any:
    key = schema.key_words(schema.example_key("fake", self.seed, position))
    rng = np.random.default_rng(key.tolist())
    return _fill(template, rng)._replace(key=key)


def _fill(template: Any, rng: np.random.Generator, name: str = "") -> Any:
  """A row like the one row of `template`, with random content: images full range, masks and
  occupancy of their two values.
  """
  if template is None:
    return None
  if isinstance(template, dict):
    return {k: _fill(v, rng, k) for k, v in template.items()}
  if isinstance(template, tuple):
    return type(template)(*(_fill(v, rng, k) for k, v in template._asdict().items()))
  shape, dtype = template.shape[1:], template.dtype
  if dtype == np.bool_:
    return np.ones(shape, dtype)
  if np.issubdtype(dtype, np.floating):
    return rng.standard_normal(shape, np.float32).astype(dtype)
  if name == "occupancy" or "mask" in name:
    return rng.integers(0, 2, shape, dtype)
  return rng.integers(0, 256, shape, dtype)
