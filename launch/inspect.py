"""Shows what a checkpoint, a dataset, a configuration or the ledger of a run holds.

    python -m launch.inspect --checkpoint DIR [--step N] [--digest | --lineage]
    python -m launch.inspect --data DIR
    python -m launch.inspect --config configs/pretrain_geometry.py [--release_keys]
    python -m launch.inspect --goodput DIR

A checkpoint is shown as a tree of arrays; --digest prints `<path> <dtype> <shape> <sha256>` for
every array, sorted, one a line;
--lineage the chain of parents. --release_keys prints the published names and shapes as JSON. --goodput says where the wall
time of a run went over all its starts, work done twice included. None of it builds a model in memory.
"""

import argparse
from collections.abc import Mapping
import hashlib
import json
import math
import pathlib

from launch.console import cli
from sam3d_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", help="work folder")
  parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
  parser.add_argument(
    "--digest", action="store_true", help="one line per array, with the SHA-256 of its bytes"
  )
  parser.add_argument(
    "--lineage", action="store_true", help="where the checkpoint comes from, parents first"
  )
  parser.add_argument("--data", help="dataset folder")
  parser.add_argument(
    "--release_keys",
    action="store_true",
    help="published names and shapes of the configured model, as JSON",
  )
  parser.add_argument(
    "--goodput",
    metavar="DIR",
    help="work folder: seconds by phase, lost work, every start and how it ended",
  )


def run(args: argparse.Namespace) -> None:
  """Prints the view that was asked for."""
  if sum(x is not None for x in (args.checkpoint, args.data, args.config, args.goodput)) != 1:
    raise InputError(
      "give exactly one of --checkpoint DIR, --data DIR, --config FILE, --goodput DIR"
    )
  if (args.digest or args.lineage or args.step is not None) and args.checkpoint is None:
    raise InputError("--digest, --lineage and --step go with --checkpoint DIR")
  if args.release_keys and args.config is None:
    raise InputError("--release_keys goes with --config FILE")
  if args.config is not None:
    lines = release_keys(args.config) if args.release_keys else config_lines(args.config)
  elif args.goodput is not None:
    lines = goodput_lines(args.goodput)
  elif args.data is not None:
    lines = data_lines(args.data)
  else:
    view = digest_lines if args.digest else lineage_lines if args.lineage else checkpoint_lines
    lines = view(args.checkpoint, args.step)
  for line in lines:
    print(line)


def release_keys(config):
  """JSON {part: {published name: shape}} of the configured model and of the structure VAE that a
  release of it comes with.
  """
  from configs import base
  from sam3d_jax.models import parameters, registry
  from sam3d_jax.torch_bridge import parts

  sections = [config.model]
  vae = base.structure_vae_model()
  if config.model.name != vae.name and parts.latents_of(config.model) == parts.latents_of(vae):
    sections.append(vae)
  out = {}
  for section in sections:
    shapes = parameters.flat_shapes(registry.abstract_model(section))
    out |= parts.release_keys(section, shapes)
  yield json.dumps(out, indent=1)


def config_lines(config):
  """The configuration's model as a tree of parameters."""
  from sam3d_jax.models import parameters, registry

  yield f"model {config.model.name}, stage {config.stage}"
  yield from tree_lines(parameters.flat_params(registry.abstract_model(config.model)))


def checkpoint_lines(workdir: str, step: int | None):
  """A checkpoint's arrays as a tree."""
  from sam3d_jax.training import checkpoint

  step = checkpoint.resolve_step(workdir, step)
  meta = checkpoint.read_meta(workdir, step)
  model = (meta["config"].get("model") or {}).get("name", "unknown")
  others = [s for s in checkpoint.steps(workdir) if s != step]
  yield f"{workdir} step {step}, model {model}, stage {meta['lineage'].get('stage', 'unknown')}, digest {checkpoint.digest(meta)}"
  yield f"other steps: {', '.join(map(str, others)) or 'none'}"
  yield from tree_lines(checkpoint.stored_shapes(workdir, step))


def tree_lines(leaves: Mapping):
  """An indented tree of (shape, dtype) leaves; every folder with its number of parameters, and the
  total in bytes.
  """
  totals: dict[str, int] = {}
  for path, leaf in leaves.items():
    parents = path.split("/")[:-1]
    for depth in range(len(parents)):
      folder = "/".join(parents[: depth + 1])
      totals[folder] = totals.get(folder, 0) + math.prod(leaf.shape)
  shown: set[str] = set()
  for path in sorted(leaves, key=lambda p: p.split("/")):
    *parents, name = path.split("/")
    for depth in range(len(parents)):
      folder = "/".join(parents[: depth + 1])
      if folder not in shown:
        shown.add(folder)
        yield f"{'  ' * depth}{parents[depth]}/  {count(totals[folder])}"
    leaf = leaves[path]
    yield f"{'  ' * len(parents)}{name}  {tuple(leaf.shape)} {leaf.dtype}"
  bytes_ = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves.values())
  yield f"{len(leaves)} arrays, {count(sum(math.prod(x.shape) for x in leaves.values()))} values, {bytes_ / 2**20:.1f} MiB"


def count(n: int) -> str:
  """1234567 -> '1.235 M'."""
  return f"{n / 1e6:.3f} M" if n >= 1e6 else f"{n / 1e3:.1f} K" if n >= 1000 else str(n)


def digest_lines(workdir: str, step: int | None):
  """`<path> <dtype> <shape> <sha256>` per array, sorted; the hash is of the array's bytes in C
  order.
  """
  import numpy as np

  from sam3d_jax.torch_bridge import stream
  from sam3d_jax.training import checkpoint

  step = checkpoint.resolve_step(workdir, step)
  arrays = stream.read_params(
    workdir, step, {path: path for path in sorted(checkpoint.stored_shapes(workdir, step))}
  )
  for path in arrays:
    array = np.asarray(arrays[path])
    shape = "(" + ",".join(map(str, array.shape)) + ")"
    yield f"{path} {array.dtype} {shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def lineage_lines(workdir: str, step: int | None):
  """The chain from the first ancestor to this checkpoint."""
  from sam3d_jax.training import checkpoint

  step = checkpoint.resolve_step(workdir, step)
  meta = checkpoint.read_meta(workdir, step)
  yield from ancestors(
    meta["lineage"], f"{workdir} step {step}  digest {checkpoint.digest(meta)}", 0
  )


def ancestors(lineage: Mapping, name: str, depth: int):
  """This checkpoint, what it was made from and on, and then its parents, each a level deeper."""
  pad = "  " * depth
  yield f"{pad}{name}  stage {lineage.get('stage', 'unknown')}"
  for key in ("source", "commit", "seed"):
    if lineage.get(key) not in (None, ""):
      yield f"{pad}  {key} {lineage[key]}"
  for file, sha in lineage.get("files", {}).items():
    yield f"{pad}  file {file} sha256 {sha}"
  for dataset, identity in lineage.get("datasets", {}).items():
    yield f"{pad}  dataset {dataset} {json.dumps(identity, sort_keys=True)}"
  if lineage.get("latents"):
    yield f"{pad}  latents {json.dumps(lineage['latents'], sort_keys=True)}"
  for parent in lineage.get("parents", ()):
    for what, name in (("fresh", "new leaves"), ("left_out", "leaves not taken over")):
      if parent.get(what):
        yield f"{pad}  {len(parent[what])} {name}: {', '.join(parent[what][:4])}{' ...' if len(parent[what]) > 4 else ''}"
    label = (
      f"from {parent['path']} step {parent['step']} ({parent['which']})  digest {parent['digest']}"
    )
    yield from ancestors(parent["lineage"], label, depth + 1)


def data_lines(folder: str):
  """A dataset's splits, fields, shards and quarantined inputs."""
  from data_pipelines.format import records

  builder = records.open_dataset(folder)
  yield f"{folder}: {builder.name} {builder.version}, {records.dataset_kind(builder)} examples"
  for name, info in builder.info.splits.items():
    yield f"split {name}: {info.num_examples} records in {info.num_shards} shards, {info.num_bytes / 2**20:.1f} MiB"
  for name, feature in builder.info.features.items():
    yield f"  {name}  {feature.shape if hasattr(feature, 'shape') else ''} {getattr(feature, 'np_dtype', '')}".rstrip()
  quarantine = pathlib.Path(folder) / "quarantine.jsonl"
  rows = (
    [json.loads(line) for line in quarantine.read_text().splitlines() if line.strip()]
    if quarantine.is_file()
    else []
  )
  reasons: dict[str, int] = {}
  for row in rows:
    reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
  yield "quarantined: " + (
    ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "none"
  )
  build = pathlib.Path(folder) / "build.json"
  if build.is_file():
    yield f"build: {json.dumps(json.loads(build.read_text()), sort_keys=True)}"


def goodput_lines(workdir: str):
  """Where the wall time of a run went: seconds by phase, then one line a start."""
  from sam3d_jax.training import ledger

  path = pathlib.Path(workdir) / "goodput.jsonl"
  processes = ledger.read(path) if path.is_file() else []
  if not processes:
    raise InputError(f"{path} holds no ledger: give the work folder of a run that was started")
  yield from ledger.table(ledger.summarize(processes))
  for number, rows in enumerate(processes, 1):
    started = next((row["step"] for row in rows if row["event"] == "start"), None)
    steps = "no step" if started is None else f"steps {started} to {rows[-1]['step']}"
    stuck = sum(row["event"] == "stuck" for row in rows)
    yield (
      f"start {number}: {steps}, {rows[-1]['wall']:.1f} s, "
      f"{rows[-1].get('outcome', 'no end recorded (killed, or still running)')}"
      f"{f', stuck {stuck} times' if stuck else ''}"
    )
  for name, value in processes[-1][0].get("environment", {}).items():
    yield f"  {name}={value}"


if __name__ == "__main__":
  raise SystemExit(main())
