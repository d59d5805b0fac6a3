"""Adds structure latents to a dataset: shards in, the same shards with latents out.

One job a shard, written as every other shard is (shard_jobs.py): its report before it, the shard
whole or absent, finished ones never again. The folder holds, beside shards and reports:

    build.json               what the latents are: source, autoencoder, how they were made
    latent_statistics.json   mean and standard deviation of each channel over the whole dataset
    quarantine.jsonl         the source's

The encoder is a function, since nothing here touches a device.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from data_pipelines.build import shard_jobs
from data_pipelines.format import records, schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import rows
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic, locks, texts


@dataclasses.dataclass(frozen=True)
class Encoder:
  """What makes latents. `encode` takes occupancy grids (R, R, R) and gives one latent each.

  identity: what the latents depend on beside the shapes, as JSON; goes into build.json.
  """

  encode: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
  resolution: int  # R
  digest: str  # name of the autoencoder
  identity: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Share:
  """The shards that one of several processes encodes: every `count`-th, from `index` on."""

  index: int = 0
  count: int = 1

  def __post_init__(self):
    if not 0 <= self.index < self.count:
      raise InputError(f"--task_index {self.index} is not below --task_count {self.count}")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a job reads: records start..stop of a split of a dataset."""

  data: pathlib.Path
  split: str
  index: int
  start: int
  stop: int


def make_plan(data: pathlib.Path, encoder: Encoder) -> shard_jobs.Plan:
  """One job for every shard of the dataset, in its place and with its name."""
  builder = records.open_dataset(data)
  source = records.dataset_identity(data)

  # a shard holds the records from `start` on
  jobs = []
  for split, info in sorted(builder.info.splits.items()):
    count = len(info.shard_lengths)
    start = 0
    for index, length in enumerate(info.shard_lengths):
      spec = Source(data, split, index, start, start + length)
      jobs.append(shard_jobs.ShardJob(split, index, count, length, spec))
      start += length

  return shard_jobs.Plan(
    name=source["name"],
    jobs=tuple(jobs),
    make=functools.partial(encoded_examples, encoder=encoder),
    identity={"source": source, "autoencoder": encoder.digest, **encoder.identity},
    lineage={},
    kind=records.dataset_kind(builder),
  )


def encode(
  plan: shard_jobs.Plan,
  out: pathlib.Path,
  *,
  share: Share,
  progress: Callable[[int], None],
) -> dict[str, int] | None:
  """Encodes what is left of this process's share and declares the dataset whole once all is there.

  Returns examples per split, or None while shards are left to other processes. `progress(examples)`
  is called after every shard. Raises InputError if `out` holds something else or the source cannot
  be read, InUse if another process works on this share or writes something else there.
  """
  with locks.hold(
    out,
    f"launch.encode_latents, task {share.index} of {share.count}",
    slot=f"task-{share.index}",
    group=f"encoding in {share.count} tasks",
  ):
    return _encode(plan, out, share, progress)


def _encode(
  plan: shard_jobs.Plan, out: pathlib.Path, share: Share, progress: Callable[[int], None]
) -> dict[str, int] | None:
  claim(plan, out)
  if (out / records.INFO_FILE).is_file():
    return records.dataset_identity(out)["records"]

  # what is left of this share
  for job in mine(plan, share):
    if shard_jobs.finished_report(plan, out, job) is None:
      shard_jobs.run_job(job, make=plan.make, out=out, name=plan.name, kind=plan.kind)
      progress(job.inputs)

  # whoever comes last declares the dataset whole
  reports = [shard_jobs.finished_report(plan, out, job) for job in plan.jobs]
  if None in reports:
    return None
  try:
    with locks.hold(out / shard_jobs.REPORTS, "the last task of launch.encode_latents"):
      return finish(plan, out, reports)
  # two that come last at once: one of them does it
  except locks.InUse:
    return None


def mine(plan: shard_jobs.Plan, share: Share) -> tuple[shard_jobs.ShardJob, ...]:
  """The jobs of a share."""
  return plan.jobs[share.index :: share.count]


def finished_examples(plan: shard_jobs.Plan, out: pathlib.Path, share: Share) -> int:
  """Examples of a share whose shards stand already."""
  jobs = mine(plan, share)
  return sum(job.inputs for job in jobs if _stands(plan, out, job))


def shards_left(plan: shard_jobs.Plan, out: pathlib.Path) -> int:
  """How many shards do not stand yet, whoever is to write them."""
  return sum(not _stands(plan, out, job) for job in plan.jobs)


def _stands(plan: shard_jobs.Plan, out: pathlib.Path, job: shard_jobs.ShardJob) -> bool:
  return shard_jobs.shard_path(plan.name, out, job).is_file()


def claim(plan: shard_jobs.Plan, out: pathlib.Path) -> None:
  """Writes what the folder is going to hold; raises InputError if it holds something else."""
  if not check_claim(plan, out):
    records.write_json(out / records.BUILD_FILE, plan.identity)


def check_claim(plan: shard_jobs.Plan, out: pathlib.Path) -> bool:
  """Whether the folder says already what it is going to hold; raises InputError if it holds
  something else.
  """
  file = out / records.BUILD_FILE
  before = texts.read_own(file, "source", "autoencoder")
  if before is not None:
    # those from before the packages counted say nothing of them
    now = dict(plan.identity)
    if "versions" not in before:
      now.pop("versions", None)
    if before == now:
      return True
    different = [key for key, value in now.items() if before.get(key) != value]
    raise InputError(
      f"--out {out} is another encoding (different: {', '.join(different)}); give another folder"
    )
  names = [path.name for path in out.iterdir()] if out.is_dir() else []
  if set(names) - {locks.FOLDER, records.BUILD_FILE}:
    raise InputError(f"--out {out} is not empty and holds no encoding; give an empty folder")
  return False


def read_statistics(out: pathlib.Path) -> dict[str, Any]:
  """Mean and standard deviation of each channel, of a folder that is whole."""
  text = (out / records.STATISTICS_FILE).read_text()
  return json.loads(text)


def finish(plan: shard_jobs.Plan, out: pathlib.Path, reports: list[dict]) -> dict[str, int]:
  """Writes the statistics of all shards and declares the dataset whole."""
  atomic.remove_leftovers(out)

  # beside the shards: their statistics, and what the source's builder refused
  moments = [report["moments"] for report in reports]
  records.write_json(out / records.STATISTICS_FILE, combined(moments))
  source: Source = plan.jobs[0].spec
  quarantined = source.data / records.QUARANTINE_FILE
  if quarantined.is_file():
    shutil.copyfile(quarantined, out / records.QUARANTINE_FILE)

  # last: its presence declares the dataset whole
  return records.write_metadata(out, name=plan.name, kind=plan.kind)


def encoded_examples(
  source: Source, refuse: shard_jobs.Refusals, *, encoder: Encoder
) -> Iterator[schema.Example]:
  """The examples of one shard with latents. Shapes that several views share are encoded once."""
  examples = read_shard(source)

  # Every candidate with a shape: the example itself and, of preferences, those that lost.
  candidates = []
  for example in examples:
    for candidate in (example, *example.get("losers", ())):
      if schema.is_present(candidate, "voxels"):
        candidates.append(candidate)

  # Equal shapes have equal bytes.
  shapes = {candidate["voxels"].tobytes(): candidate["voxels"] for candidate in candidates}
  grids = [rows.occupancy(voxels, encoder.resolution) for voxels in shapes.values()]
  latents = dict(zip(shapes, encoder.encode(grids), strict=True))
  for candidate in candidates:
    candidate["structure_latent"] = latents[candidate["voxels"].tobytes()]
    candidate["structure_latent_autoencoder"] = encoder.digest

  refuse.notes["moments"] = moments_of(examples)
  yield from examples


def read_shard(source: Source) -> list[schema.Example]:
  """All examples of a shard.

  Raises InputError for an unreadable one: a dataset is encoded as a whole.
  """
  if source.start == source.stop:
    return []
  span = f"{source.split}[{source.start}:{source.stop}]"
  split = records.open_split(source.data, span)
  try:
    return [split[index] for index in range(len(split))]
  except CorruptRecord as error:
    raise InputError(
      f"{source.data} split {source.split} shard {source.index}: {error}; launch.validate_data "
      "lists all such records, delete the shard and build it again"
    ) from error


def moments_of(examples: list[schema.Example]) -> dict[str, Any]:
  """Sums over the latents of a shard's examples, channel by channel, in double precision."""
  # every cell of every latent is one observation of its channels
  observations = []
  for example in examples:
    if schema.is_present(example, "structure_latent"):
      latent_XYZC = example["structure_latent"].astype(np.float64)
      observations.append(latent_XYZC.reshape(-1, latent_XYZC.shape[-1]))
  if not observations:
    return {"cells": 0, "sum": [], "sum_of_squares": []}

  cells_PC = np.concatenate(observations)
  squares_PC = cells_PC**2
  return {
    "cells": len(cells_PC),
    "sum": cells_PC.sum(0).tolist(),
    "sum_of_squares": squares_PC.sum(0).tolist(),
  }


def combined(moments: list[dict[str, Any]]) -> dict[str, Any]:
  """Mean and standard deviation of every channel over all shards."""
  filled = [one for one in moments if one["cells"]]
  cells = sum(one["cells"] for one in filled)
  total_C = np.sum([one["sum"] for one in filled], 0)
  squares_C = np.sum([one["sum_of_squares"] for one in filled], 0)

  # rounding may leave a variance of nothing below zero
  mean_C = total_C / cells
  variance_C = squares_C / cells - mean_C**2
  deviation_C = np.sqrt(np.maximum(variance_C, 0))
  return {
    "cells": cells,
    "mean": mean_C.tolist(),
    "std": deviation_C.tolist(),
  }
