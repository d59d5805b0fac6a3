"""The sample at any position of a run: what the threads and processes of a loader share."""

from collections.abc import Callable, Mapping
import dataclasses
import threading
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.format import records
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import kinds, mixture, packed_order, rows
from data_pipelines.read.packed_order import PackedOrder, PackingConfig
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.files import retries
from sam3d_jax.geometry import packing

Batch = Any  # a type of sam3d_jax.batch: the one that the kind of batch delivers


@dataclasses.dataclass(frozen=True)
class DataConfig(rows.SampleConfig):
  """What is read, and how; see SampleConfig for what a row holds.

  mixture: source name -> (dataset folder, weight).  split: of every dataset. threads: reading
  threads.  workers: reading processes, 0 to read in this one. prefetch: batches held ready.
  cache_mb: memory for finished rows; needs augment=None and workers=0. min_rating: examples rated
  lower are left out; those without a rating stay. None: all stay. quarantine_budget: distinct
  unreadable records that this host replaces before the run fails. packing: how records share rows,
  for kinds of batches whose rows hold several.
  """

  mixture: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
  split: str = "train"
  threads: int = 8
  workers: int = 0
  prefetch: int = 4
  cache_mb: int = 0
  min_rating: float | None = None
  quarantine_budget: int = 100
  packing: PackingConfig = PackingConfig()

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
  left_out: int = 0  # records that the rows of their step had no room for


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
      sample = self._at(position)
    return sample._replace(retries=tally.count)

  @property
  def records_a_step(self) -> int:
    """Records that a global batch is made of."""
    return self.batch_size

  def _at(self, position: int) -> Sample:
    step = position // self.batch_size
    draw = self.mixture.draw(position)
    return self._first_readable(draw, step, self.kind.row)

  def _first_readable(
    self,
    draw: mixture.Draw,
    step: int,
    make: Callable,
    stands_in: Callable[[mixture.Draw], bool] | None = None,
  ) -> Sample:
    """What `make` makes of the record at `draw`, or of the next one that can be read and that
    `stands_in` for it.
    """
    # at most every record of the source once
    split = self.splits[draw.source]
    corrupt = []
    for attempt in range(len(split)):
      passed_over = attempt > 0 and stands_in is not None and not stands_in(draw)
      if not passed_over:
        try:
          row = self._row(draw, step, make)
          return Sample(row, draw.source, tuple(corrupt))
        except CorruptRecord as error:
          path, record = split.locate(draw.record)
          where = f"{path} record {record}"
          corrupt.append((where, str(error)))
      draw = self.mixture.after(draw)
    # The first reason stands for all.
    first = ": ".join(corrupt[0])
    raise QuarantineExceeded(f"source {draw.source!r} has no readable record; {first}")

  def _row(self, draw: mixture.Draw, step: int, make: Callable) -> Batch:
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
    row = make(
      example,
      self.config,
      rng,
      draw.epoch,
    )
    if self.cache is not None and not self.kind.by_epoch:
      self.cache.put(key, row)
    return row


@dataclasses.dataclass(frozen=True)
class PackedReader(Reader):
  """Reads rows of several records each.

  order: positions of the records in every row. counts: source -> (records, 2) int32, voxels of
  each record and voxels at half the resolution.
  """

  order: PackedOrder
  counts: Mapping[str, np.ndarray]

  @property
  def records_a_step(self) -> int:
    return self.order.objects

  def _at(self, position: int) -> Sample:
    # the records of the row, each from its own place in the order of the mixture
    step, row = divmod(position, self.batch_size)
    parts, corrupt = [], []
    source = ""
    for place in self.order.row(step, row):
      draw = self.mixture.draw(place)
      slots = self._slots(draw)

      def fits(other: mixture.Draw, slots=slots) -> bool:
        return bool((self._slots(other) <= slots).all())

      read = self._first_readable(draw, step, self._part, fits)
      parts.append(read.row)
      corrupt += read.corrupt
      source = read.source

    # side by side; whoever has the first row tells what found no room
    joined = self.kind.packed.join(parts, self.config)
    left_out = len(self.order.left_out(step)) if row == 0 else 0
    return Sample(joined, source, tuple(corrupt), left_out=left_out)

  def _slots(self, draw: mixture.Draw) -> np.ndarray:
    """Slots that the table of sizes gives a record, at both resolutions."""
    count_2 = self.counts[draw.source][draw.record]
    return -(-count_2 // packing.BLOCK)

  def _part(self, example, config, rng, epoch):
    return self.kind.packed.part(example, config, rng, epoch)


def packed_order_of(
  config: DataConfig, mix: mixture.Mixture, counts: Mapping[str, np.ndarray], batch_size: int
) -> PackedOrder:
  """The order of rows of `batch_size` a step. Raises ConfigError if they have no room."""
  order = packed_order.PackedOrder(
    config.packing,
    config.packed.shape,
    batch_size,
    _CountAt(mix, counts),
  )
  order.check()
  return order


@dataclasses.dataclass(frozen=True)
class _CountAt:
  """Sizes of the record at a position; a class, so that processes can get it."""

  mixture: mixture.Mixture
  counts: Mapping[str, np.ndarray]

  def __call__(self, position: int) -> np.ndarray:
    draw = self.mixture.draw(position)
    return self.counts[draw.source][draw.record]


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
