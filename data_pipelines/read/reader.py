"""The sample at any position of a run: what the threads and processes of a loader share."""

from collections.abc import Mapping
import dataclasses
import threading
from typing import Any, NamedTuple

from data_pipelines.format import records
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import kinds, mixture, rows
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.files import retries

Batch = Any  # a type of sam3d_jax.batch: the one that the kind of batch delivers


@dataclasses.dataclass(frozen=True)
class DataConfig(rows.SampleConfig):
  """What is read, and how; see SampleConfig for what a row holds.

  mixture: source name -> (dataset folder, weight).  split: of every dataset. threads: reading
  threads.  workers: reading processes, 0 to read in this one. prefetch: batches held ready.
  cache_mb: memory for finished rows; needs augment=None and workers=0. min_rating: examples rated
  lower are left out; those without a rating stay. None: all stay. quarantine_budget: distinct
  unreadable records that this host replaces before the run fails.
  """

  mixture: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
  split: str = "train"
  threads: int = 8
  workers: int = 0
  prefetch: int = 4
  cache_mb: int = 0
  min_rating: float | None = None
  quarantine_budget: int = 100

  def __post_init__(self):
    super().__post_init__()
    sections.check_positive(self, "threads")
    sections.check_not_negative(self, "workers", "prefetch", "cache_mb", "quarantine_budget")
    if not self.mixture:
      raise ConfigError(
        "data.mixture is empty: name at least one dataset folder, e.g. iso_3do = {path: ..., "
        "weight: 1}"
      )
    # rows that change cannot be kept, and processes do not share memory
    rows_change = self.augment is not None
    if self.cache_mb and (rows_change or self.workers):
      raise ConfigError(
        f"data.cache_mb = {self.cache_mb} keeps finished rows, which needs augmentation off and "
        "data.workers = 0"
      )


class QuarantineExceeded(InputError):
  """More records are unreadable than the configuration allows."""


class Sample(NamedTuple):
  """One row and how it came about."""

  row: Batch
  source: str
  corrupt: tuple[tuple[str, str], ...]  # (record, reason) of those passed over at this position
  retries: int = 0  # reads that had to be tried again


class RowCache:
  """Finished rows by (source, record), up to a number of bytes; then what is in stays, since every
  epoch visits everything.
  """

  def __init__(self, limit: int):
    self.limit = limit
    self.bytes = 0
    self._rows: dict[tuple[str, int], Batch] = {}
    self._lock = threading.Lock()

  def get(self, key: tuple[str, int]) -> Batch | None:
    # Reading a dictionary needs no lock in CPython.
    return self._rows.get(key)

  def put(self, key: tuple[str, int], row: Batch) -> None:
    size = rows.nbytes(row)
    # two threads may have made the same row
    with self._lock:
      fits = self.bytes + size <= self.limit
      if fits and key not in self._rows:
        self._rows[key] = row
        self.bytes += size


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the sample at any position; has no state but the cache, so threads share it and processes
  get copies.
  """

  config: DataConfig
  kind: kinds.BatchKind
  splits: Mapping[str, records.Split]
  mixture: mixture.Mixture
  batch_size: int  # global
  seed: int
  cache: RowCache | None

  def sample(self, position: int) -> Sample:
    """The sample at global `position`; an unreadable record is replaced by the next of its source
    that can be read. Raises JobFailed if a disk fails for too long: what it holds is not known, so
    nothing is replaced.
    """
    with retries.counting() as tally:
      sample = self._first_readable(position)
    return sample._replace(retries=tally.count)

  def _first_readable(self, position: int) -> Sample:
    # at most every record of the source once
    step = position // self.batch_size
    draw = self.mixture.draw(position)
    split = self.splits[draw.source]
    corrupt = []
    for _ in range(len(split)):
      try:
        row = self._row(draw, step)
        return Sample(row, draw.source, tuple(corrupt))
      except CorruptRecord as error:
        path, record = split.locate(draw.record)
        where = f"{path} record {record}"
        corrupt.append((where, str(error)))
      draw = self.mixture.after(draw)
    # The first reason stands for all.
    first = ": ".join(corrupt[0])
    raise QuarantineExceeded(f"source {draw.source!r} has no readable record; {first}")

  def _row(self, draw: mixture.Draw, step: int) -> Batch:
    # one that was made before
    key = (draw.source, draw.record)
    if self.cache is not None:
      kept = self.cache.get(key)
      if kept is not None:
        return kept

    # a new one
    # Read and decoded here, in whatever thread asks.
    example = self.splits[draw.source][draw.record]
    rng = None
    if self.config.augment is not None:
      rng = rows.generator(self.seed, step, example["key"])
    row = self.kind.row(
      example,
      self.config,
      rng,
      draw.epoch,
    )
    if self.cache is not None and not self.kind.by_epoch:
      self.cache.put(key, row)
    return row


def read_step(reader: Reader, host_index: int, rows: int, step: int) -> list[Sample]:
  """A host's samples of one step."""
  # A host has consecutive rows of the global batch.
  own = host_index * rows
  first = step * reader.batch_size + own
  end = first + rows
  return [reader.sample(position) for position in range(first, end)]


def read_single(reader: Reader, host_index: int, rows: int, ordinal: int) -> Sample:
  """The `ordinal`-th sample of a host, counted from step 0."""
  step, row = divmod(ordinal, rows)
  own = host_index * rows
  first = step * reader.batch_size + own
  return reader.sample(first + row)
