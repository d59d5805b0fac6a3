"""Encodes the shapes of a dataset with a structure VAE: shards in, the same shards with latents
out.

    python -m launch.encode_latents --data DIR --checkpoint VAE_WORKDIR --out DIR

Every example keeps its fields and gets `structure_latent` (the posterior's mean) and the digest of
the autoencoder. Beside the shards stands `latent_statistics.json`, the mean and standard deviation
of each channel. Finished shards are never rewritten, so a killed job continues; several jobs share
the work with --task_index and --task_count, the last of them declares the dataset whole.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import json
import pathlib
import shutil

import numpy as np

from data_pipelines.format import records, schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import rows
from launch.console import cli
from launch.console.progress import Progress
from sam3d_jax.errors import InputError

STATISTICS_FILE = records.STATISTICS_FILE
REPORTS = "reports"


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--data", required=True, type=pathlib.Path, metavar="DIR", help="dataset to encode"
  )
  parser.add_argument(
    "--checkpoint", required=True, metavar="DIR", help="work folder of a structure VAE"
  )
  parser.add_argument(
    "--out", required=True, type=pathlib.Path, metavar="DIR", help="folder of the new dataset"
  )
  parser.add_argument("--which", default="ema", help="parameters to use: ema, ema:<decay> or raw")
  parser.add_argument("--batch_size", type=int, default=16, help="shapes encoded at a time")
  parser.add_argument(
    "--task_index", type=int, default=0, help="this job's number among those that share the work"
  )
  parser.add_argument("--task_count", type=int, default=1, help="how many jobs share the work")


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard of the dataset: records start..start + length of its split."""

  split: str
  index: int
  count: int
  start: int
  length: int


def list_shards(data: pathlib.Path) -> list[Shard]:
  """All shards of a dataset, in order."""
  shards = []
  for split, info in sorted(records.open_dataset(data).info.splits.items()):
    start = 0
    for index, length in enumerate(info.shard_lengths):
      shards.append(Shard(split, index, len(info.shard_lengths), start, length))
      start += length
  return shards


def autoencoder_digest(vae) -> str:
  """Digest of an autoencoder's parameters: names, shapes and values (encoder and decoder, since a
  latent needs both).
  """

  from sam3d_jax.models import parameters

  return parameters.params_digest(parameters.flat_params(vae))


def make_encoder(vae, batch_size: int) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
  """Voxel lists -> latents (x, y, z, C); compiled once, for batches of one size (a short batch is
  filled up).
  """
  from flax import nnx
  import jax

  graph, state = nnx.split(vae.encoder)
  encode = jax.jit(lambda state, occupancy: nnx.merge(graph, state)(occupancy)[0])

  def encode_all(voxels: list[np.ndarray]) -> list[np.ndarray]:
    latents = []
    for first in range(0, len(voxels), batch_size):
      part = [rows.occupancy(v, vae.cfg.resolution) for v in voxels[first : first + batch_size]]
      filled = np.stack(part + [np.zeros_like(part[0])] * (batch_size - len(part)))
      latents += list(np.asarray(encode(state, filled), np.float32)[: len(part)])
    return latents

  return encode_all


def encode_shard(
  examples: list[schema.Example], encode: Callable, digest: str
) -> Iterator[schema.Example]:
  """The examples with latents. Shapes that several views share are encoded once."""
  candidates = [
    c
    for example in examples
    for c in (example, *example.get("losers", ()))
    if schema.is_present(c, "voxels")
  ]
  shapes = {c["voxels"].tobytes(): c["voxels"] for c in candidates}
  latents = dict(zip(shapes, encode(list(shapes.values())), strict=True))
  for example in examples:
    for candidate in (example, *example.get("losers", ())):
      if schema.is_present(candidate, "voxels"):
        candidate |= {
          "structure_latent": latents[candidate["voxels"].tobytes()],
          "structure_latent_autoencoder": digest,
        }
    yield example


def read_shard(data: pathlib.Path, shard: Shard) -> list[schema.Example]:
  """All examples of a shard. Raises InputError for an unreadable one: a dataset is encoded as a
  whole.
  """
  if not shard.length:
    return []
  split = records.open_split(data, f"{shard.split}[{shard.start}:{shard.start + shard.length}]")
  try:
    return [split[i] for i in range(len(split))]
  except CorruptRecord as error:
    raise InputError(
      f"{data} split {shard.split} shard {shard.index}: {error}; launch.validate_data lists all "
      "such records, "
      "delete the shard and build it again"
    ) from error


def moments(examples: list[schema.Example]) -> dict:
  """Sums over a shard's latents, channel by channel, in double precision."""
  latents = [
    e["structure_latent"].astype(np.float64)
    for e in examples
    if schema.is_present(e, "structure_latent")
  ]
  if not latents:
    return {"cells": 0, "sum": [], "sum_of_squares": []}
  cells = np.concatenate([x.reshape(-1, x.shape[-1]) for x in latents])
  return {
    "cells": len(cells),
    "sum": cells.sum(0).tolist(),
    "sum_of_squares": (cells**2).sum(0).tolist(),
  }


def combine(reports: list[dict]) -> dict:
  """Mean and standard deviation of every channel over all shards."""
  filled = [r for r in reports if r["cells"]]
  count = sum(r["cells"] for r in filled)
  mean = np.sum([r["sum"] for r in filled], 0) / count
  variance = np.sum([r["sum_of_squares"] for r in filled], 0) / count - mean**2
  return {"cells": count, "mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 0)).tolist()}


def claim(out: pathlib.Path, identity: dict) -> None:
  """Writes what the folder is going to hold; raises InputError if it holds something else."""
  file = out / records.BUILD_FILE
  if file.is_file():
    before = json.loads(file.read_text())
    if before != identity:
      different = [k for k in identity if before.get(k) != identity[k]]
      raise InputError(
        f"--out {out} is another encoding (different: {', '.join(different)}); give another folder"
      )
  elif out.is_dir() and any(out.iterdir()):
    raise InputError(f"--out {out} is not empty and holds no encoding; give an empty folder")
  else:
    records.write_json(file, identity)


def check(args: argparse.Namespace) -> None:
  """Raises InputError for arguments that make no sense together."""
  if args.out.resolve() == args.data.resolve():
    raise InputError(f"--out {args.out} is the dataset itself; give another folder")
  if args.batch_size < 1:
    raise InputError(f"--batch_size {args.batch_size}: give a positive number")
  if not 0 <= args.task_index < args.task_count:
    raise InputError(f"--task_index {args.task_index} is not below --task_count {args.task_count}")


def run(args: argparse.Namespace) -> int:
  """Encodes what is not encoded yet."""
  check(args)
  shards, source = list_shards(args.data), records.dataset_identity(args.data)
  from sam3d_jax.training import checkpoint

  meta = checkpoint.read_meta(args.checkpoint)
  if meta["config"]["model"]["name"] != "structure_vae":
    raise InputError(
      f"--checkpoint {args.checkpoint} is a {meta['config']['model']['name']} model, a "
      "structure_vae is needed"
    )
  vae, _ = checkpoint.restore_model(args.checkpoint, which=args.which)
  digest = autoencoder_digest(vae)
  latent = {"resolution": vae.cfg.latent_resolution, "channels": vae.cfg.latent_channels}
  claim(
    args.out,
    {
      "source": source,
      "autoencoder": digest,
      "which": args.which,
      "step": meta["step"],
      "batch_size": args.batch_size,
      "latent": latent,
    },
  )
  mine = [s for n, s in enumerate(shards) if n % args.task_count == args.task_index]
  done = [s for s in mine if out_path(args.out, source["name"], s).is_file()]
  print(
    f"{args.data}: {sum(s.length for s in shards)} examples in {len(shards)} shards, autoencoder "
    f"{digest[:12]} -> {args.out}"
  )
  encode, kind = (
    make_encoder(vae, args.batch_size),
    records.dataset_kind(records.open_dataset(args.data)),
  )
  with Progress(
    sum(s.length for s in mine), "encoding", "examples", done=sum(s.length for s in done)
  ) as progress:
    for shard in mine:
      if shard not in done:
        examples = list(encode_shard(read_shard(args.data, shard), encode, digest))
        # before the shard: who sees a shard finds its report
        records.write_json(report_path(args.out, shard), moments(examples))
        records.write_shard(out_path(args.out, source["name"], shard), examples, kind=kind)
        progress.update(shard.length)
  finish(args.data, args.out, source["name"], kind, shards)
  return 0


def out_path(out: pathlib.Path, name: str, shard: Shard) -> pathlib.Path:
  return records.shard_path(out, name, shard.split, shard.index, shard.count)


def report_path(out: pathlib.Path, shard: Shard) -> pathlib.Path:
  return out / REPORTS / f"{shard.split}-{shard.index:05d}.json"


def finish(
  data: pathlib.Path, out: pathlib.Path, name: str, kind: str, shards: list[Shard]
) -> None:
  """Once every shard stands, writes the statistics and declares the dataset whole."""
  left = [s for s in shards if not out_path(out, name, s).is_file()]
  if left:
    print(f"{len(left)} of {len(shards)} shards are left to other jobs")
    return
  statistics = combine([json.loads(report_path(out, s).read_text()) for s in shards])
  records.write_json(out / STATISTICS_FILE, statistics)
  if (data / records.QUARANTINE_FILE).is_file():
    shutil.copyfile(data / records.QUARANTINE_FILE, out / records.QUARANTINE_FILE)
  counts = records.write_metadata(out, name=name, kind=kind)
  spread = ", ".join(
    f"{m:.2f} +- {s:.2f}" for m, s in zip(statistics["mean"], statistics["std"], strict=True)
  )
  print(
    f"{out}: {', '.join(f'{n} {split}' for split, n in counts.items())} examples; latents {spread}"
  )


if __name__ == "__main__":
  cli.main(run, description=__doc__, flags=flags, config="none")
