"""Shards on disk: ArrayRecord files that together are a TFDS dataset.

A dataset is a folder with `<name>-<split>.array_record-<i>-of-<n>` shards, `dataset_info.json` and
`features.json`, so that

    tfds.builder_from_directory(folder).as_data_source("train")

opens it anywhere. A builder commits each shard atomically with `write_shard` and, once all shards
stand, `write_metadata`; `dataset_info.json` is written last and its presence means that the dataset
is whole.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import tempfile
from typing import Any

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.format import schema, shard_reading
from data_pipelines.format.shard_reading import CorruptRecord
from sam3d_jax.errors import AwayError, InputError, JobFailed
from sam3d_jax.files import atomic, blame, texts

INFO_FILE = "dataset_info.json"  # written last
FEATURES_FILE = "features.json"  # the fields of a record
# the classes of fields, and the keys that name them there (the last one in files of old releases of
# TFDS)
FIELD_PACKAGE = "tensorflow_datasets.core.features."
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
# keys under which TFDS reads fields once more, from a text
HIDING_KEYS = ("jsonFeature", "json_feature", "proto_cls")
BUILD_FILE = "build.json"  # the builder's configuration, lineage and counts
# mean and standard deviation of every channel of the structure latents
STATISTICS_FILE = "latent_statistics.json"
# one line for each input that was rejected: path, reason, detail
QUARANTINE_FILE = "quarantine.jsonl"
_SHARD = re.compile(
  r"(?P<name>\w+)-(?P<split>\w+)\.array_record-(?P<index>\d{5})-of-(?P<count>\d{5})"
)


class DatasetError(InputError):
  """A dataset folder is missing, half built, or of another schema; the message says what to do."""


class AwayDataset(AwayError, DatasetError):
  """A dataset folder, or shards of it, are not there."""


class EmptySplit(DatasetError):
  """A dataset has no such split, or nothing in it that can be read here."""


def shard_path(
  directory: str | os.PathLike, name: str, split: str, index: int, count: int
) -> pathlib.Path:
  """Where shard `index` of `count` lies. TFDS allows letters, digits and underscores in `name` and
  `split`.
  """
  # TFDS's own pattern of names.
  file = f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"
  path = pathlib.Path(directory) / file
  if not _SHARD.fullmatch(path.name):
    raise ValueError(
      f"name {name!r} or split {split!r}: only letters, digits and underscores are allowed"
    )
  return path


def write_json(path: str | os.PathLike, value) -> None:
  """Writes JSON atomically, keys sorted."""
  # Sorted, so that equal contents are equal files.
  text = json.dumps(value, indent=2, sort_keys=True)
  atomic.write_text(path, text + "\n")


def write_shard(
  path: str | os.PathLike, examples: Iterable[schema.Example], *, kind: str = "example"
) -> int:
  """Writes one shard atomically and returns its number of records. Equal examples give equal bytes.

  Raises SchemaError, leaving nothing behind, if an example does not fit.
  """
  return write_bytes(path, (schema.serialise(example, kind) for example in examples))


def write_bytes(path: str | os.PathLike, serialised: Iterable[bytes]) -> int:
  """Writes one ArrayRecord file of records as they are, atomically; returns how many there were.

  Raises OSError for a disk that takes no more.
  """
  count = 0
  with atomic.write(path) as temporary:
    # a group is the unit of random access
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    try:
      for record in serialised:
        writer.write(record)
        count += 1
    finally:
      _close(writer, path)
  return count


def _close(writer, path: str | os.PathLike) -> None:
  """Closes a writer; what the system says of the disk, which ArrayRecord words as an error of its
  own, becomes an OSError again.
  """
  try:
    writer.close()
  except RuntimeError as error:
    number = blame.system_errno(error)
    if number is None:
      raise
    raise OSError(number, os.strerror(number), os.fspath(path)) from error


def read_bytes(path: str | os.PathLike) -> list[bytes]:
  """All records of one ArrayRecord file, as they are. Raises DatasetError if it is damaged,
  JobFailed if its disk fails.
  """
  try:
    return shard_reading.read_all(path)
  except JobFailed:
    raise
  except shard_reading.ERRORS as error:
    raise DatasetError(f"{path} is not a readable ArrayRecord file ({error})") from error


def shard_length(path: str | os.PathLike) -> int:
  """Number of records of a shard. Raises DatasetError if the file is no whole ArrayRecord,
  JobFailed if its disk fails.
  """
  # The footer tells, whatever the size.
  try:
    return shard_reading.length(path)
  except JobFailed:
    raise
  except shard_reading.ERRORS as error:
    raise DatasetError(
      f"{path} is not a readable ArrayRecord file ({error}); delete it and run the build again"
    ) from error


def find_shards(directory: str | os.PathLike) -> dict[tuple[str, str], list[pathlib.Path]]:
  """(name, split) -> shards in order. Raises DatasetError if a split lacks shards or mixes two
  shard counts.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    return {}

  # what the names of files say
  found: dict[tuple[str, str], dict[int, pathlib.Path]] = {}
  counts: dict[tuple[str, str], set[int]] = {}
  for path in sorted(directory.iterdir()):
    match = _SHARD.fullmatch(path.name)
    if match:
      split = (match["name"], match["split"])
      index = int(match["index"])
      count = int(match["count"])
      found.setdefault(split, {})[index] = path
      counts.setdefault(split, set()).add(count)

  # every split is whole
  for split, shards in found.items():
    if len(counts[split]) > 1:
      raise DatasetError(
        f"{directory}: split {split[1]!r} mixes shards of {sorted(counts[split])} files; "
        "delete those of the older build"
      )
    (count,) = counts[split]
    missing = [index for index in range(count) if index not in shards]
    if missing:
      raise DatasetError(
        f"{directory}: split {split[1]!r} has {len(shards)} of {count} shards (first missing: "
        f"{missing[0]}); the build did not finish: run the same command again, it continues"
      )

  in_order = {}
  for split, shards in found.items():
    in_order[split] = [shards[index] for index in sorted(shards)]
  return in_order


def write_metadata(
  directory: str | os.PathLike, *, name: str, kind: str = "example", description: str = ""
) -> dict[str, int]:
  """Declares the shards of `directory` a dataset and returns its number of records per split.

  Raises DatasetError if shards are missing or unreadable or belong to another `name`.
  """
  directory = pathlib.Path(directory)
  shards = find_shards(directory)
  if not shards:
    raise DatasetError(f"{directory} holds no shards: nothing to declare a dataset")

  # shards of another dataset
  foreign = []
  for (other, _), paths in shards.items():
    if other != name:
      foreign += [path.name for path in paths]
  if foreign:
    first_four = ", ".join(sorted(foreign)[:4])
    raise DatasetError(f"{directory} holds shards of another dataset than {name!r}: {first_four}")

  # how much they hold
  totals, infos = {}, {}
  for (_, split), paths in shards.items():
    lengths = [shard_length(path) for path in paths]
    size = sum(path.stat().st_size for path in paths)
    totals[split] = sum(lengths)
    infos[split] = tfds.core.SplitInfo(
      name=split,
      shard_lengths=lengths,
      num_bytes=size,
    )

  # TFDS writes its files elsewhere, they are put in place one by one, the marker last
  with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    # In name order, whatever the order in which shards were found.
    by_name = [infos[split] for split in sorted(infos)]
    _write_tfds_files(scratch, name, kind, description, by_name)
    files = sorted(scratch.glob("*.json"), key=lambda file: file.name == INFO_FILE)
    for file in files:
      atomic.write_text(directory / file.name, file.read_text())
  return totals


def _write_tfds_files(
  scratch: pathlib.Path, name: str, kind: str, description: str, infos: list[tfds.core.SplitInfo]
) -> None:
  # TFDS wants to see files by these names; it does not read them
  for info in infos:
    count = len(info.shard_lengths)
    for index in range(count):
      shard_path(scratch, name, info.name, index, count).touch()
  tfds.folder_dataset.write_metadata(
    data_dir=scratch,
    features=schema.features(kind),
    split_infos=infos,
    version=schema.VERSION,
    check_data=False,
    description=description or f"{name}: image-to-3D examples, schema {schema.VERSION}",
  )


class Split:
  """Random access to the examples of one split; safe to share between threads and to pickle to
  other processes.

  Memory is bounded by the shards' indices (8 bytes a record for the shards touched), not by their
  contents, and so are open files (shard_reading). Fields in `skip` are not decoded and read as
  absent. files: (path, records skipped, records taken) of every shard, in order.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    split: str,
    kind: str,
    files: Sequence[tuple[str, int, int]],
    skip: frozenset[str],
  ):
    self.directory = directory
    self.split = split
    self.kind = kind
    self.skip = skip
    self._files = files
    # Where each shard's part of the split ends.
    self._ends = list(itertools.accumulate(take for _, _, take in files))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> schema.Example:
    """Example `index`; `locate` says where it lies.

    Raises CorruptRecord with the reason if two reads agree that it cannot be used, JobFailed if its
    disk fails for too long.
    """
    path, position = self.locate(index)
    return shard_reading.read(path, position, self._decode)

  def _decode(self, record: bytes) -> schema.Example:
    return schema.deserialise(
      record,
      self.kind,
      skip=self.skip,
    )

  def locate(self, index: int) -> tuple[str, int]:
    """(shard file, record within it) of example `index`. Raises IndexError."""
    if not 0 <= index < len(self):
      where = f"{self.directory} {self.split}"
      raise IndexError(f"record {index} of {len(self)} in {where}")
    # shards are taken in order, each its part of the split
    number = bisect.bisect_right(self._ends, index)
    path, skip, take = self._files[number]
    first = self._ends[number] - take
    return path, skip + index - first


def open_dataset(directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
  """The folder's TFDS builder. Raises DatasetError, with the remedy, if it is not a whole dataset
  of this schema.
  """
  # a folder that is whole
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise AwayDataset(
      f"{directory} does not exist; build it with launch.build_data or correct the path"
    )
  if not (directory / INFO_FILE).is_file():
    shards = find_shards(directory)
    state = "no shards and"
    if shards:
      total = sum(len(paths) for paths in shards.values())
      state = f"{total} shards but"
    raise AwayDataset(
      f"{directory} has {state} no {INFO_FILE}: it is not a finished dataset; "
      "run its launch.build_data command again, it continues where it stopped"
    )

  # a version that this code reads
  _check_features_file(directory / FEATURES_FILE)
  with _described(directory):
    builder = tfds.builder_from_directory(os.fspath(directory))
    version = str(builder.version)
    stored = builder.info.features.get_serialized_info()
    kind = dataset_kind(builder)
  ours = schema.VERSION
  major, _, _ = version.partition(".")
  our_major, _, _ = ours.partition(".")
  if major != our_major:
    raise DatasetError(f"{directory} has schema {version}, this code reads {ours}: build it again")

  # the fields of that version; it may lack those that were added since
  known = schema.features(kind).get_serialized_info()
  expected = {}
  for name, field in known.items():
    if name in stored or name not in schema.ADDED:
      expected[name] = field
  if stored != expected:
    theirs = set(stored)
    needed = set(known) - set(schema.ADDED)
    lacks = sorted(needed - theirs)
    beyond = sorted(theirs - needed)
    raise DatasetError(
      f"{directory} is not a dataset of schema {ours}: it lacks {lacks} and has "
      f"{beyond} beyond it, or a field has another type"
    )
  return builder


@contextlib.contextmanager
def _described(what: str | os.PathLike) -> Iterator[None]:
  """Whatever TFDS raises of the files that describe a dataset becomes a DatasetError."""
  try:
    yield
  except DatasetError:
    raise
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    raise DatasetError(
      f"{what}: {INFO_FILE} or {FEATURES_FILE} is not as TFDS writes it ({blame.said(error)}); "
      "copy the dataset again, or build it"
    ) from error


def _check_features_file(path: pathlib.Path) -> None:
  """Raises DatasetError unless the file names fields of TFDS alone: TFDS imports, and so runs,
  whatever module a field's class is said to lie in.
  """
  try:
    stated = texts.read_json(path)
  # a disk that fails is no damaged dataset
  except (FileNotFoundError, texts.TextError) as error:
    raise DatasetError(f"{path} cannot be read ({error}): build the dataset again") from error
  for key, name in _class_names(stated):
    if key in HIDING_KEYS or name not in _field_classes():
      raise DatasetError(
        f"{path} names the class {name!r} ({key}), expected one of {FIELD_PACKAGE}*: a dataset of "
        "this schema has no fields of its own; build it again, and do not open it with other "
        "programs"
      )


def _class_names(value) -> Iterator[tuple[str, Any]]:
  """(key, value) of what a features file says of classes, at any depth."""
  waiting = [value]
  while waiting:
    found = waiting.pop()
    if isinstance(found, list):
      waiting += found
    elif isinstance(found, dict):
      for key, inner in found.items():
        # a field may be called `type`: it is described by an object
        is_name = key in CLASS_KEYS and not isinstance(inner, dict)
        if is_name or key in HIDING_KEYS:
          yield key, inner
        else:
          waiting.append(inner)


@functools.cache
def _field_classes() -> frozenset[str]:
  """Full names of TFDS's own classes of fields."""
  names = set()
  for found in vars(tfds.features).values():
    if isinstance(found, type) and found.__module__.startswith(FIELD_PACKAGE):
      names.add(f"{found.__module__}.{found.__name__}")
  return frozenset(names)


def dataset_identity(directory: str | os.PathLike) -> dict:
  """What a checkpoint should remember of a dataset: name, schema version, records per split, a
  digest of how it was built, and, for structure latents, the digest of their autoencoder and their
  statistics.
  """
  directory = pathlib.Path(directory)
  builder = open_dataset(directory)
  # datasets that others have built say nothing of how
  build_file = directory / BUILD_FILE
  build = b""
  if build_file.is_file():
    build = build_file.read_bytes()

  # what it holds, and how it was built
  info_file = directory / INFO_FILE
  described = info_file.read_bytes() + build
  counts = {name: info.num_examples for name, info in builder.info.splits.items()}
  identity = {
    "name": builder.name,
    "version": str(builder.version),
    "digest": hashlib.sha256(described).hexdigest(),
    "records": counts,
  }

  # its latents
  recorded = texts.read_own(build_file) or {}
  autoencoder = recorded.get("autoencoder")
  if autoencoder:
    identity["latents"] = {"autoencoder": autoencoder} | _mean_and_std(directory)
  return identity


def dataset_lineage(directory: str | os.PathLike) -> dict:
  """The identity of a dataset with the name of the autoencoder of its structured latents (`slat`),
  as whoever encoded or converted it stated it. Apart from `dataset_identity`, which names builds
  that began before this was known.
  """
  identity = dataset_identity(directory)
  build = texts.read_own(pathlib.Path(directory) / BUILD_FILE) or {}
  settings = (build.get("identity") or {}).get("config") or {}
  slat_autoencoder = build.get("slat_autoencoder") or settings.get("slat_autoencoder")
  if slat_autoencoder:
    identity["slat"] = {"autoencoder": slat_autoencoder}
  return identity


def dataset_contents(directory: str | os.PathLike) -> dict:
  """What tells the records of a dataset from others: how many each split has, and a digest of the
  shards' lengths and sizes and of what they were built from. It stays when the folder moves.

  Raises DatasetError.
  """
  directory = pathlib.Path(directory)
  # The file is read, not the dataset opened: that takes seconds where there are very many shards.
  info = texts.read_own(directory / INFO_FILE, "name", "splits")
  if info is None:
    open_dataset(directory)
    raise DatasetError(f"{directory / INFO_FILE} is damaged: build the dataset again")
  shards, counts = {}, {}
  for split in info["splits"]:
    lengths = [int(length) for length in split.get("shardLengths", ())]
    counts[split["name"]] = sum(lengths)
    shards[split["name"]] = [lengths, int(split.get("numBytes", 0))]
  described = {"name": info["name"], "shards": shards, "build": _build_digest(directory)}
  text = json.dumps(described, sort_keys=True)
  return {"records": counts, "digest": hashlib.sha256(text.encode()).hexdigest()}


def _build_digest(directory: pathlib.Path) -> str:
  """Name of what a dataset was built from; '' where nothing says it."""
  build = texts.read_own(directory / BUILD_FILE)
  if build is None:
    return ""
  if "digest" in build:
    return str(build["digest"])
  # of latents: the whole record
  return hashlib.sha256(json.dumps(build, sort_keys=True).encode()).hexdigest()


def _mean_and_std(directory: pathlib.Path) -> dict:
  """Of each channel of the latents, as far as they are stated."""
  # Of training data, for whoever normalises latents.
  stated = texts.read_own(directory / STATISTICS_FILE) or {}
  return {key: stated[key] for key in ("mean", "std") if key in stated}


def dataset_kind(builder: tfds.core.DatasetBuilder) -> str:
  """Whether the dataset holds plain or preference examples."""
  # one kind has losers, the other has none
  has_losers = "losers" in builder.info.features
  return next(name for name, kind in schema.KINDS.items() if kind.losers == has_losers)


def open_split(
  directory: str | os.PathLike, split: str = "train", *, skip: Iterable[str] = ()
) -> Split:
  """Opens a split (TFDS slices such as "train[:10%]" work too); fields in `skip` are not decoded.

  Raises DatasetError for a missing or half-built folder, an unknown or empty split, or shards that
  have gone missing.
  """
  directory = pathlib.Path(directory)
  builder = open_dataset(directory)
  # A slice is taken of a split that has to be there.
  name, _, _ = split.partition("[")
  if name not in builder.info.splits:
    there_are = ", ".join(sorted(builder.info.splits))
    raise EmptySplit(f"{directory} has no split {split!r}; it has {there_are}")

  # the shards of it, which may be taken in part
  files = []
  with _described(f"{directory} split {split!r}"):
    for file in builder.info.splits[split].file_instructions:
      # a negative number takes all that are left
      take = file.take
      if take < 0:
        take = file.examples_in_shard - file.skip
      files.append((str(file.filename), file.skip, take))
  if not files:
    raise EmptySplit(f"{directory}: split {split!r} is empty")
  # the names of shards follow a template that the folder states
  for path, _, _ in files:
    if os.path.dirname(os.path.abspath(path)) != os.path.abspath(directory):
      raise DatasetError(f"{directory}: its {INFO_FILE} names the shard {path}, outside of it")
  missing = [path for path, _, _ in files if not os.path.isfile(path)]
  if missing:
    raise AwayDataset(
      f"{directory}: {len(missing)} of {len(files)} shards of split {split!r} are missing, "
      f"first {missing[0]}; copy them or build the dataset again"
    )

  # fields that the dataset lacks read as absent
  lacking = set(schema.ADDED) - set(builder.info.features)
  not_decoded = frozenset(skip) | lacking
  return Split(
    directory,
    split,
    dataset_kind(builder),
    files,
    not_decoded,
  )


class Subset:
  """Some examples of a split, in its order; behaves as a split. `left_out` are the others."""

  def __init__(self, split: Split, indices: np.ndarray):
    self.whole = split
    self.indices = indices
    self.directory = split.directory
    self.split = split.split
    self.kind = split.kind
    self.skip = split.skip
    self.left_out = len(split) - len(indices)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> schema.Example:
    return self.whole[int(self.indices[index])]

  def locate(self, index: int) -> tuple[str, int]:
    return self.whole.locate(int(self.indices[index]))


def accepted(split: Split, min_rating: float) -> Subset:
  """The examples rated `min_rating` or better, and those without a rating. 8 bytes of memory and
  one short read each.

  A record that cannot be read stays in: whoever reads it in turn counts and replaces it. Raises
  DatasetError if none is left.
  """
  # nothing but the rating is decoded
  skip = set(schema.features(split.kind)) - {"rating"}
  ratings = open_split(split.directory, split.split, skip=skip)
  count = len(ratings)

  def passes(index: int) -> bool:
    try:
      example = ratings[index]
    except CorruptRecord:
      return True
    is_rated = schema.is_present(example, "rating")
    return not is_rated or float(example["rating"]) >= min_rating

  # short reads wait for the disk, hence threads
  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = pool.map(passes, range(count))
    passed = np.fromiter(results, bool, count)
  indices = np.flatnonzero(passed)
  if not len(indices):
    raise DatasetError(
      f"{split.directory}: none of the {count} examples of split {split.split!r} is rated "
      f"{min_rating:g} or better; lower the threshold (data.thresholds)"
    )
  return Subset(split, indices)
