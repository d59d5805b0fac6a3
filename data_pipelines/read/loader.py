"""Batches from shards: that of a step is a function of (seed, step), whatever the number of hosts.

    loader = make_loader(
      config, kind="geometry", batch_size=256, seed=0, host_index=0, host_count=1
    )
    loader.batch(1000)              # this host's rows of global batch 1000, as numpy arrays
    for batch in loader.iterate(1000): ...

The only position is the step: to resume, iterate from it. Reading runs in Grain's threads (and
worker processes on request).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import sys
import threading
from typing import Any, NamedTuple

from absl import flags
import grain
from ml_collections import ConfigDict

from data_pipelines.format import records, schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import fake, kinds, mixture, rows
from data_pipelines.read.augment import AugmentConfig
from sam3d_jax.errors import ConfigError, InputError

PROBED = 8  # records of each source that are looked at before a run starts

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
    if not self.mixture:
      raise ConfigError(
        "data.mixture is empty: name at least one dataset folder, e.g. iso_3do = {path: ..., "
        "weight: 1}"
      )
    if self.cache_mb and (self.augment is not None or self.workers):
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


class RowCache:
  """Finished rows by (source, record), up to a number of bytes; then what is in stays, since every
  epoch visits everything.
  """

  def __init__(self, limit: int):
    self.limit, self.bytes = limit, 0
    self._rows: dict[tuple[str, int], Batch] = {}
    self._lock = threading.Lock()

  def get(self, key: tuple[str, int]) -> Batch | None:
    return self._rows.get(key)

  def put(self, key: tuple[str, int], row: Batch) -> None:
    size = rows.nbytes(row)
    with self._lock:
      if key not in self._rows and self.bytes + size <= self.limit:
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
    that can be read.
    """
    draw, corrupt = self.mixture.draw(position), []
    for _ in range(len(self.splits[draw.source])):
      try:
        return Sample(
          self._row(draw, step=position // self.batch_size), draw.source, tuple(corrupt)
        )
      except CorruptRecord as error:
        path, record = self.splits[draw.source].locate(draw.record)
        corrupt.append((f"{path} record {record}", str(error)))
      draw = self.mixture.after(draw)
    raise QuarantineExceeded(
      f"source {draw.source!r} has no readable record; {': '.join(corrupt[0])}"
    )

  def _row(self, draw: mixture.Draw, step: int) -> Batch:
    key = (draw.source, draw.record)
    if self.cache is not None and (row := self.cache.get(key)) is not None:
      return row
    example = self.splits[draw.source][draw.record]
    rng = (
      rows.generator(self.seed, step, example["key"]) if self.config.augment is not None else None
    )
    row = self.kind.row(example, self.config, rng, draw.epoch)
    if self.cache is not None and not self.kind.by_epoch:
      self.cache.put(key, row)
    return row


class Loader:
  """This host's rows of the global batches.

  corrupt: unreadable record -> reason, of those met so far.  replaced: unreadable record -> how
  often another stood in for it.
  """

  def __init__(self, reader: Reader, host_index: int, host_count: int):
    self._reader = reader
    self._host_index, self.rows = host_index, reader.batch_size // host_count
    self.corrupt: dict[str, str] = {}
    self.replaced: Counter[str] = Counter()

  @property
  def config(self) -> DataConfig:
    """The configuration, with `autoencoder` as found in the data where it was not given."""
    return self._reader.config

  @property
  def spec(self) -> Batch:
    """A batch in shape and type, read from nowhere."""
    return self._reader.kind.spec(self._reader.config, self.rows)

  def __len__(self) -> int:
    """Records of all sources together."""
    return sum(self._reader.mixture.sizes)

  def batch(self, step: int) -> Batch:
    """This host's rows of global batch `step`, read here and now. Raises QuarantineExceeded over
    the budget.
    """
    return self._collect(_read_step(self._reader, self._host_index, self.rows, step))

  def iterate(self, start_step: int = 0) -> Iterator[Batch]:
    """Batches start_step, start_step + 1, ... without end, read ahead in the background.

    Close the iterator (`with contextlib.closing(it)`) or exhaust the program to end its threads and
    worker processes.
    """
    config, rows = self._reader.config, self.rows
    if config.workers:
      if not flags.FLAGS.is_parsed():
        # Grain's worker start-up reads absl flags, which a program without absl never parses
        flags.FLAGS.mark_as_parsed()
      per_worker = max(1, config.prefetch // config.workers)
      options = grain.ReadOptions(
        num_threads=max(1, config.threads // config.workers), prefetch_buffer_size=per_worker
      )
      steps = grain.MapDataset.range(start_step, sys.maxsize)
      steps = steps.map(functools.partial(_read_step, self._reader, self._host_index, rows))
      source = steps.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(config.workers, per_worker)
      )
      group = None
    else:
      options = grain.ReadOptions(
        num_threads=config.threads, prefetch_buffer_size=max(config.threads, config.prefetch * rows)
      )
      singles = grain.MapDataset.range(start_step * rows, sys.maxsize)
      source = singles.map(
        functools.partial(_read_single, self._reader, self._host_index, rows)
      ).to_iter_dataset(options)
      group = rows
    iterator = iter(source)
    try:
      while True:
        yield self._collect(
          next(iterator) if group is None else list(itertools.islice(iterator, group))
        )
    finally:
      iterator.close()

  def metrics(self, step: int) -> dict[str, float]:
    """Counters before `step`: samples and epochs of each source (of the whole job), unreadable
    records (of this host).
    """
    position = step * self._reader.batch_size
    counts = {
      f"data/samples/{name}": float(n) for name, n in self._reader.mixture.counts(position).items()
    }
    epochs = {f"data/epochs/{name}": n for name, n in self._reader.mixture.epochs(position).items()}
    return counts | epochs | {"data/corrupt_records": float(len(self.corrupt))}

  def _collect(self, read: list[Sample]) -> Batch:
    for sample in read:
      self.corrupt.update(sample.corrupt)
      self.replaced.update(record for record, _ in sample.corrupt)
    budget = self._reader.config.quarantine_budget
    if len(self.corrupt) > budget:
      listed = "\n  ".join(
        f"{record}: {reason}" for record, reason in list(self.corrupt.items())[:10]
      )
      raise QuarantineExceeded(
        f"{len(self.corrupt)} unreadable records, data.quarantine_budget = {budget}:\n  {listed}"
      )
    return self._reader.kind.collate([sample.row for sample in read], self._reader.config)


def _read_step(reader: Reader, host_index: int, rows: int, step: int) -> list[Sample]:
  """A host's samples of one step."""
  first = step * reader.batch_size + host_index * rows
  return [reader.sample(first + row) for row in range(rows)]


def _read_single(reader: Reader, host_index: int, rows: int, ordinal: int) -> Sample:
  """The `ordinal`-th sample of a host, counted from step 0."""
  step, row = divmod(ordinal, rows)
  return reader.sample(step * reader.batch_size + host_index * rows + row)


def make_loader(
  config: DataConfig,
  *,
  kind: str,
  batch_size: int,
  seed: int,
  host_index: int = 0,
  host_count: int = 1,
) -> Loader:
  """Opens the sources of `config` and checks that they hold what is asked for.

  kind: one of kinds.KINDS, the kind of batch delivered.  batch_size: global, a
  multiple of host_count. Raises InputError for a missing or half-built dataset, a kind or latent
  that no source has, or latents of two autoencoders.
  """
  batch_kind = kinds.lookup(kind)
  if batch_size < 1 or batch_size % host_count:
    raise ConfigError(f"batch_size = {batch_size} does not divide among {host_count} hosts")
  if not 0 <= host_index < host_count:
    raise ConfigError(f"host {host_index} is not one of {host_count}")
  skip = kinds.unused_fields(batch_kind, config)
  splits = {
    name: records.open_split(path, config.split, skip=skip)
    for name, (path, _) in config.mixture.items()
  }
  for name, split in splits.items():
    if batch_kind.records not in ("example", split.kind):
      raise InputError(
        f"source {name!r} ({split.directory}) holds no {batch_kind.records} examples"
      )
  if config.min_rating is not None:
    splits = {name: records.accepted(split, config.min_rating) for name, split in splits.items()}
  if batch_kind.latents:
    config = _probe(config, splits, batch_kind.latents)
  try:
    mix = mixture.make_mixture(
      {n: len(s) for n, s in splits.items()}, {n: w for n, (_, w) in config.mixture.items()}, seed
    )
  except ValueError as error:
    raise ConfigError(f"data.mixture: {error}") from error
  cache = RowCache(config.cache_mb * 2**20) if config.cache_mb else None
  reader = Reader(config, batch_kind, splits, mix, batch_size, seed, cache)
  return Loader(reader, host_index, host_count)


def from_config(
  config: ConfigDict,
  model_config,
  *,
  kind: str,
  latents: tuple[str, ...],
  split: str,
  augmented: bool = True,
  host_index: int = 0,
  host_count: int = 1,
):
  """The loader of a training configuration: `config.data` says what is read, the model and the
  objective in which form.

  `model_config` is the typed configuration of the model; `kind` of batch and `latents` to learn are
  the objective's business. Not `augmented`, rows come as they are stored, for evaluation. Sources
  of weight 0 are left out. Returns a Loader, or a FakeLoader if `config.data.kind` is "fake".
  """
  settings = config.data.to_dict()
  source, sources = settings.pop("kind"), settings.pop("mixture")
  settings |= {
    "split": split,
    "min_rating": threshold(settings.pop("thresholds"), settings.pop("iteration")),
  }
  sources = {name: entry for name, entry in sources.items() if entry["weight"] != 0}
  settings |= kinds.lookup(kind).form(model_config, latents)
  augment = _typed(AugmentConfig, settings.pop("augment"), "data.augment")
  settings["augment"] = augment if augmented and augment.active else None
  place = {
    "kind": kind,
    "batch_size": config.batch_size,
    "seed": config.seed,
    "host_index": host_index,
    "host_count": host_count,
  }
  if source == "fake":
    names = {f.name for f in dataclasses.fields(rows.SampleConfig)}
    return fake.FakeLoader(
      rows.SampleConfig(**{k: v for k, v in settings.items() if k in names}), **place
    )
  if source != "shards":
    raise ConfigError(f"data.kind = {source!r} is not one of shards, fake")
  for name, entry in sources.items():
    if not entry["path"]:
      raise ConfigError(
        f"data.mixture.{name}.path is not set: add --config.data.mixture.{name}.path=DATASET_FOLDER"
      )
  mix = {name: (entry["path"], entry["weight"]) for name, entry in sources.items()}
  return make_loader(_typed(DataConfig, {**settings, "mixture": mix}, "data"), **place)


def threshold(thresholds: Sequence[float], iteration: int) -> float | None:
  """The lowest rating accepted in an iteration of the data engine; past the end of the schedule its
  last value holds.
  """
  if iteration < 0:
    raise ConfigError(f"data.iteration = {iteration} is negative")
  if any(b < a for a, b in itertools.pairwise(thresholds)):
    raise ConfigError(
      f"data.thresholds = {tuple(thresholds)}: a threshold never falls from one iteration to the "
      "next"
    )
  return float(thresholds[min(iteration, len(thresholds) - 1)]) if thresholds else None


def _typed(cls, values: Mapping, section: str):
  known = {f.name for f in dataclasses.fields(cls)}
  unknown = sorted(set(values) - known)
  if unknown:
    raise ConfigError(
      f"{section}.{unknown[0]} is not a key of {cls.__name__}; its keys are "
      f"{', '.join(sorted(known))}"
    )
  return cls(**values)


def _probe(
  config: DataConfig,
  splits: Mapping[str, records.Split],
  sources: Mapping[str, kinds.LatentSource],
) -> DataConfig:
  """Looks at the first records: every latent must occur, and the autoencoder's digest is fixed from
  them if not configured.

  Without this a run whose data lacks a latent would train on nothing of it without a word.
  """
  looked_at = list(_first_examples(splits))
  for latent in config.latents:
    source = sources[latent]
    holders = [e for e in looked_at if all(schema.is_present(e, f) for f in source.fields)]
    if not holders:
      remedy = f" ({source.remedy})" if source.remedy else ""
      listed = ", ".join(f"{name} ({split.directory})" for name, split in splits.items())
      raise InputError(
        f"latent {latent!r} needs {' and '.join(source.fields)}{remedy}; none of the first records "
        f"of {listed} has that"
      )
    if source.autoencoder and not config.autoencoder:
      config = dataclasses.replace(config, autoencoder=holders[0][source.autoencoder])
  return config


def _first_examples(splits: Mapping[str, records.Split]) -> Iterator[schema.Example]:
  for name in sorted(splits):
    for i in range(min(PROBED, len(splits[name]))):
      try:
        yield splits[name][i]
      except CorruptRecord:  # met again, counted and replaced, when its turn comes
        continue
