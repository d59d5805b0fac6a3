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
from typing import Any

from absl import flags
import grain
from ml_collections import ConfigDict
import numpy as np

from data_pipelines.format import records, schema, voxel_counts
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import fake, kinds, mixture, rows
from data_pipelines.read.augment import AugmentConfig
from data_pipelines.read.packed_order import PackingConfig
from data_pipelines.read.reader import (
  Batch,
  DataConfig,
  PackedReader,
  QuarantineExceeded,
  Reader,
  RowCache,
  Sample,
  packed_order_of,
  read_single,
  read_step,
)
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.geometry import packing

PROBED = 8  # records of each source that are looked at before a run starts


class Loader:
  """This host's rows of the global batches.

  corrupt: unreadable record -> reason, of those met so far; each is said on standard error when it
  is first met.  replaced: unreadable record -> how often another stood in for it.  retries: reads
  that a disk first failed.  left_out: records that found no room in the rows of their steps.
  """

  def __init__(self, reader: Reader, host_index: int, host_count: int):
    self._reader = reader
    self._host_index = host_index
    self.rows = reader.batch_size // host_count
    self.corrupt: dict[str, str] = {}
    self.replaced: Counter[str] = Counter()
    self.retries = 0
    self.left_out = 0

  @property
  def config(self) -> DataConfig:
    """The configuration, with `autoencoder` as found in the data where it was not given."""
    return self._reader.config

  @property
  def spec(self) -> Batch:
    """A batch in shape and type, read from nowhere."""
    return self._reader.kind.spec(self._reader.config, self.rows)

  @property
  def records_a_step(self) -> int:
    """Records that a global batch is made of: its rows, or the objects packed into them."""
    return self._reader.records_a_step

  def __len__(self) -> int:
    """Records of all sources together."""
    return sum(self._reader.mixture.sizes)

  def batch(self, step: int) -> Batch:
    """This host's rows of global batch `step`, read here and now. Raises QuarantineExceeded over
    the budget.
    """
    # Without threads, for evaluation and tests.
    samples = read_step(
      self._reader,
      self._host_index,
      self.rows,
      step,
    )
    return self._collect(samples)

  def iterate(self, start_step: int = 0) -> Iterator[Batch]:
    """Batches start_step, start_step + 1, ... without end, read ahead in the background.

    Close the iterator (`with contextlib.closing(it)`) or exhaust the program to end its threads and
    worker processes.
    """
    whole_steps = self.config.workers > 0
    if whole_steps:
      samples = self._in_processes(start_step)
    else:
      samples = self._in_threads(start_step)
    source = iter(samples)
    try:
      while True:
        if whole_steps:
          read = next(source)
        else:
          read = list(itertools.islice(source, self.rows))
        # here, in the caller's thread: the account of bad records is kept in one place
        yield self._collect(read)
    finally:
      source.close()

  def _in_threads(self, start_step: int) -> grain.IterDataset:
    """This host's samples from a step on, one by one: threads share the work of a batch."""
    config = self.config
    read = functools.partial(
      read_single,
      self._reader,
      self._host_index,
      self.rows,
    )
    # without end: a run is as long as its steps
    first = start_step * self.rows
    ordinals = grain.MapDataset.range(first, sys.maxsize)
    rows_ahead = config.prefetch * self.rows
    options = grain.ReadOptions(
      num_threads=config.threads,
      prefetch_buffer_size=max(config.threads, rows_ahead),
    )
    return ordinals.map(read).to_iter_dataset(options)

  def _in_processes(self, start_step: int) -> grain.IterDataset:
    """This host's samples from a step on, a step at a time: each process reads whole steps."""
    if not flags.FLAGS.is_parsed():
      # Grain's worker start-up reads absl flags, which a program without absl never parses
      flags.FLAGS.mark_as_parsed()
    config = self.config
    read = functools.partial(
      read_step,
      self._reader,
      self._host_index,
      self.rows,
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    # threads and prefetched batches are shared among the processes
    steps_ahead = max(1, config.prefetch // config.workers)
    threads = max(1, config.threads // config.workers)
    options = grain.ReadOptions(
      num_threads=threads,
      prefetch_buffer_size=steps_ahead,
    )
    workers = grain.MultiprocessingOptions(config.workers, steps_ahead)
    read_steps = steps.map(read).to_iter_dataset(options)
    return read_steps.mp_prefetch(workers)

  def metrics(self, step: int) -> dict[str, float]:
    """Counters before `step`: samples and epochs of each source (of the whole job), unreadable
    records and reads that were tried again (of this host).
    """
    # Counted over all hosts: every one knows the whole order.
    position = step * self.records_a_step
    mix = self._reader.mixture
    found = {}
    for name, count in mix.counts(position).items():
      found[f"data/samples/{name}"] = float(count)
    for name, epochs in mix.epochs(position).items():
      found[f"data/epochs/{name}"] = epochs
    return found | self.counters()

  def counters(self) -> dict[str, float]:
    """What this host has met since it was started: unreadable records, reads tried again."""
    counted = {
      "data/corrupt_records": float(len(self.corrupt)),
      "data/read_retries": float(self.retries),
    }
    if isinstance(self._reader, PackedReader):
      counted["data/left_out"] = float(self.left_out)
    return counted

  def _collect(self, samples: list[Sample]) -> Batch:
    """The batch of these samples; keeps the account of what could not be read."""
    # a record is counted and told once, its replacements are counted each time
    budget = self.config.quarantine_budget
    for sample in samples:
      self.retries += sample.retries
      self.left_out += sample.left_out
      for record, reason in sample.corrupt:
        self.replaced[record] += 1
        if record not in self.corrupt:
          self.corrupt[record] = reason
          self._tell(record, reason)

    # too many
    if len(self.corrupt) > budget:
      first_ten = itertools.islice(self.corrupt.items(), 10)
      listed = "\n  ".join(f"{record}: {reason}" for record, reason in first_ten)
      raise QuarantineExceeded(
        f"{len(self.corrupt)} unreadable records, data.quarantine_budget = {budget}:\n  {listed}"
      )

    read = [sample.row for sample in samples]
    return self._reader.kind.collate(read, self.config)

  def _tell(self, record: str, reason: str) -> None:
    """Says at once, in the log of this host, that a record cannot be used."""
    met = len(self.corrupt)
    budget = self.config.quarantine_budget
    print(
      f"data: {record} is unreadable ({reason}): another stands in for it ({met} of "
      f"quarantine_budget = {budget})",
      file=sys.stderr,
      flush=True,
    )


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
  # Before any file is opened.
  batch_kind = kinds.lookup(kind)
  if batch_size < 1 or batch_size % host_count:
    raise ConfigError(f"batch_size = {batch_size} does not divide among {host_count} hosts")
  if not 0 <= host_index < host_count:
    raise ConfigError(f"host {host_index} is not one of {host_count}")

  # the sources
  for name, (path, _) in config.mixture.items():
    if not path:
      raise ConfigError(
        f"data.mixture.{name}.path is not set: add --config.data.mixture.{name}.path=DATASET_FOLDER"
      )
  skip = kinds.unused_fields(batch_kind, config)
  splits = {}
  for name, (path, _) in config.mixture.items():
    splits[name] = records.open_split(path, config.split, skip=skip)
  for name, split in splits.items():
    if batch_kind.records not in ("example", split.kind):
      raise InputError(
        f"source {name!r} ({split.directory}) holds no {batch_kind.records} examples"
      )

  # what of them is read
  if config.min_rating is not None:
    for name, split in splits.items():
      splits[name] = records.accepted(split, config.min_rating)
  if batch_kind.latents:
    config = _probe(config, splits, batch_kind.latents)

  # which of them fit into rows that several share
  counts = {}
  packs = config.packing.per_row > 0
  if packs and batch_kind.packed is None:
    raise ConfigError(
      f"data.packing.per_row = {config.packing.per_row:g}: rows of a {kind} batch hold one record "
      "each; leave it at 0"
    )
  if packs:
    splits, counts = _fitting(config, splits)

  # in which order
  sizes = {name: len(split) for name, split in splits.items()}
  weights = {name: weight for name, (_, weight) in config.mixture.items()}
  try:
    mix = mixture.make_mixture(sizes, weights, seed)
  except ValueError as error:
    raise ConfigError(f"data.mixture: {error}") from error

  # finished rows, where nothing changes them
  cache = None
  if config.cache_mb:
    cache = RowCache(config.cache_mb * 2**20)
  common = (
    config,
    batch_kind,
    splits,
    mix,
    batch_size,
    seed,
    cache,
  )
  if packs:
    order = packed_order_of(config, mix, counts, batch_size)
    reader = PackedReader(*common, order, counts)
  else:
    reader = Reader(*common)
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
  settings = settings_of(
    config,
    model_config,
    kind=kind,
    latents=latents,
    split=split,
    augmented=augmented,
  )
  make = make_loader if config.data.kind == "shards" else fake.FakeLoader
  return make(
    settings,
    kind=kind,
    batch_size=config.batch_size,
    seed=config.seed,
    host_index=host_index,
    host_count=host_count,
  )


def settings_of(
  config: ConfigDict,
  model_config,
  *,
  kind: str,
  latents: tuple[str, ...],
  split: str,
  augmented: bool = True,
) -> DataConfig | rows.SampleConfig:
  """What `from_config` reads and in which form, checked; nothing is opened, no folder needs to be
  there. A SampleConfig for random batches. Raises ConfigError.
  """
  # what is read
  settings = config.data.to_dict()
  source = settings.pop("kind")
  mixture_settings = settings.pop("mixture")
  settings["split"] = split
  # of resuming, not of reading
  settings.pop("accept_changes", None)
  thresholds = settings.pop("thresholds")
  iteration = settings.pop("iteration")
  settings["min_rating"] = threshold(thresholds, iteration)

  # in which form
  settings |= kinds.lookup(kind).form(model_config, latents)
  augment = sections.typed(AugmentConfig, settings.pop("augment"), "data.augment")
  settings["augment"] = augment if augmented and augment.active else None
  if "packing" in settings:
    settings["packing"] = sections.typed(PackingConfig, settings["packing"], "data.packing")

  # random batches have a form and no source
  if source == "fake":
    held = _field_names(rows.SampleConfig)
    of_sample = {key: settings[key] for key in held if key in settings}
    return sections.typed(rows.SampleConfig, of_sample, "data")
  if source != "shards":
    raise ConfigError(f"data.kind = {source!r} is not one of shards, fake")
  settings["mixture"] = _sources(mixture_settings)
  return sections.typed(DataConfig, settings, "data")


def _sources(stated: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, float]]:
  """The mixture of a DataConfig, without sources of weight 0."""
  sources = {}
  for name, entry in stated.items():
    if entry["weight"] != 0:
      sources[name] = (entry["path"], entry["weight"])
  return sources


def threshold(thresholds: Sequence[float], iteration: int) -> float | None:
  """The lowest rating accepted in an iteration of the data engine; past the end of the schedule its
  last value holds.
  """
  if iteration < 0:
    raise ConfigError(f"data.iteration = {iteration} is negative")
  falls = any(later < earlier for earlier, later in itertools.pairwise(thresholds))
  if falls:
    raise ConfigError(
      f"data.thresholds = {tuple(thresholds)}: a threshold never falls from one iteration to the "
      "next"
    )
  if not thresholds:
    return None
  # Later iterations keep the last threshold.
  last = len(thresholds) - 1
  return float(thresholds[min(iteration, last)])


def _field_names(cls) -> set[str]:
  return {field.name for field in dataclasses.fields(cls)}


def _probe(
  config: DataConfig,
  splits: Mapping[str, records.Split],
  sources: Mapping[str, kinds.LatentSource],
) -> DataConfig:
  """Looks at the first records: every latent must occur, structure latents must have the model's
  size, and the autoencoder's digest is fixed from them if not configured.

  Without this a run whose data lacks a latent would train on nothing of it without a word, and one
  with latents of another size would compile first.
  """
  looked_at = list(_first_examples(splits))
  for latent in config.latents:
    # who has it
    source = sources[latent]
    holders = []
    for example in looked_at:
      has_all = all(schema.is_present(example, field) for field in source.fields)
      if has_all:
        holders.append(example)
    if not holders:
      needed = " and ".join(source.fields)
      remedy = ""
      if source.remedy:
        remedy = f" ({source.remedy})"
      listed = ", ".join(f"{name} ({split.directory})" for name, split in splits.items())
      raise InputError(
        f"latent {latent!r} needs {needed}{remedy}; none of the first records of {listed} has that"
      )

    # of which size, and who made it
    if latent == "shape":
      for example in holders:
        rows.check_structure_latent(
          example["structure_latent"], config, f"example {example['key']}"
        )
    if source.autoencoder and not config.autoencoder:
      digest = holders[0][source.autoencoder]
      config = dataclasses.replace(config, autoencoder=digest)
  return config


def _fitting(
  config: DataConfig, splits: Mapping[str, records.Split]
) -> tuple[dict[str, records.Subset], dict[str, np.ndarray]]:
  """The records of each source that a row can hold, and their voxels (format/voxel_counts.py); says
  how many cannot be, and why.
  """
  shape = config.packed.shape
  kept, counts = {}, {}
  unreadable = 0
  for name, split in splits.items():
    counts_N2 = voxel_counts.of(split)
    damaged_N = counts_N2[:, 0] < 0
    has_none_N = counts_N2[:, 0] == 0
    slots_N2 = -(-counts_N2 // packing.BLOCK) * packing.BLOCK
    too_large_N = (slots_N2[:, 0] > shape.voxels) | (slots_N2[:, 1] > shape.coarse)
    indices = np.flatnonzero(~(damaged_N | has_none_N | too_large_N))

    # each reason is told apart
    unreadable += int(damaged_N.sum())
    if len(indices) < len(split):
      print(
        f"data: of {len(split)} records of {name}, {len(split) - len(indices)} are left out: "
        f"{int(too_large_N.sum())} have more voxels than a row (model.row.voxels = "
        f"{shape.voxels}, coarse = {shape.coarse}), {int(has_none_N.sum())} have no structured "
        f"latent, {int(damaged_N.sum())} cannot be read",
        file=sys.stderr,
        flush=True,
      )
    if not len(indices):
      raise InputError(
        f"source {name!r} ({split.directory}) has no record that fits into a row of "
        f"model.row.voxels = {shape.voxels} slots: allow longer rows"
      )
    kept[name] = records.Subset(split, indices)
    counts[name] = counts_N2[indices]

  if unreadable > config.quarantine_budget:
    raise QuarantineExceeded(
      f"{unreadable} unreadable records, data.quarantine_budget = {config.quarantine_budget}"
    )
  return kept, counts


def _first_examples(splits: Mapping[str, records.Split]) -> Iterator[schema.Example]:
  """The first records of every source, those that can be read."""
  for name in sorted(splits):
    split = splits[name]
    few = min(PROBED, len(split))
    for index in range(few):
      try:
        yield split[index]
      except CorruptRecord:  # met again, counted and replaced, when its turn comes
        continue
