"""How many voxels each record has, known without reading the records.

Packing objects into rows needs the sizes of all objects of a step on every host, and a host reads
only its own. So a dataset carries a table, `voxel_counts.npz`: for each shard (records, 2) int32,
voxels and voxels at half the resolution; (0, 0) for a record without a structured latent, (-1, -1)
for one that cannot be read. It is made by `launch.validate_data --voxel_counts`; without it the
records are read once at the start of a run.
"""

import concurrent.futures
import os
import pathlib

import numpy as np

from data_pipelines.format import records, schema
from data_pipelines.format.records import CorruptRecord, Split, Subset
from sam3d_jax.files import atomic

FILE = "voxel_counts.npz"
CONTENTS = "contents"  # name in the table of what it was made from
NO_LATENT = (0, 0)
UNREADABLE = (-1, -1)
READ = frozenset(("voxels", "slat"))  # all that is decoded


def write(directory: str | os.PathLike) -> dict[str, int]:
  """Makes the table of a dataset from its records; records by split. Raises DatasetError, JobFailed
  if a disk fails for too long.
  """
  # every shard of every split
  directory = pathlib.Path(directory)
  builder = records.open_dataset(directory)
  tables = {CONTENTS: np.array(_contents(directory))}
  totals = {}
  for name in sorted(builder.info.splits):
    if not builder.info.splits[name].num_examples:
      continue
    split = records.open_split(directory, name)
    counts_N2 = read(split)
    totals[name] = len(counts_N2)
    tables |= _by_shard(split, counts_N2)

  # one file, whole or absent
  with atomic.write(directory / FILE) as temporary, open(temporary, "wb") as file:
    np.savez(file, **tables)
  return totals


def of(split: Split | Subset) -> np.ndarray:
  """(records, 2) int32 of a split: from the dataset's table if it has one of these very records,
  else from the records themselves.
  """
  path = split.directory / FILE
  if not path.is_file():
    return read(split)
  with np.load(path, allow_pickle=False) as stored:
    tables = dict(stored)
  # a table that was made before the dataset was built again says nothing
  contents = str(tables.pop(CONTENTS, ""))
  if contents != _contents(split.directory):
    return read(split)

  # by where each record lies
  counts_N2 = np.empty((len(split), 2), np.int32)
  for index in range(len(split)):
    shard, record = split.locate(index)
    counts_N2[index] = tables[os.path.basename(shard)][record]
  return counts_N2


def read(split: Split | Subset) -> np.ndarray:
  """(records, 2) int32 of a split, from its records: a read of each, in threads."""
  # images are most of a record, and are not decoded
  skip = set(schema.features(split.kind)) - READ
  indices = range(len(split))
  if isinstance(split, Subset):
    indices = [int(index) for index in split.indices]
  bare = records.open_split(split.directory, split.split, skip=skip)

  def count(index: int) -> tuple[int, int]:
    try:
      example = bare[index]
    except CorruptRecord:
      return UNREADABLE
    return counts_of(example)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = list(pool.map(count, indices))
  return np.array(found, np.int32).reshape(-1, 2)


def counts_of(example: schema.Example) -> tuple[int, int]:
  """Voxels of an example, and voxels at half the resolution; NO_LATENT without a structured
  latent.
  """
  has_latent = schema.is_present(example, "slat") and schema.is_present(example, "voxels")
  if not has_latent:
    return NO_LATENT
  voxels_N3 = example["voxels"]
  # a coarse voxel as one number
  side = schema.VOXEL_RESOLUTION // 2
  halved_N3 = (voxels_N3 // 2).astype(np.int64)
  number_N = (halved_N3[:, 0] * side + halved_N3[:, 1]) * side + halved_N3[:, 2]
  return len(voxels_N3), len(np.unique(number_N))


def _by_shard(split: Split, counts_N2: np.ndarray) -> dict[str, np.ndarray]:
  """Counts of a whole split, by the name of the shard that holds the records."""
  tables: dict[str, list[np.ndarray]] = {}
  for index, counts_2 in enumerate(counts_N2):
    shard, _ = split.locate(index)
    tables.setdefault(os.path.basename(shard), []).append(counts_2)
  return {shard: np.stack(counts) for shard, counts in tables.items()}


def _contents(directory: pathlib.Path) -> str:
  """Name of the records that a table was made from."""
  return records.dataset_contents(directory)["digest"]
