"""What a checkpoint holds and where it comes from, as lines of text."""

from collections.abc import Iterator, Mapping
import json
from typing import Any

import numpy as np

from launch.inspection.parameters import digest_line, whole_meta
from launch.inspection.trees import tree_lines
from sam3d_jax.torch_bridge import stream
from sam3d_jax.training import best, checkpoint_steps

SHOWN_PATHS = 4  # of leaves that differ between a checkpoint and its parent


def arrays(workdir: str, step: int | None) -> Iterator[str]:
  """A checkpoint's arrays as a tree."""
  meta = whole_meta(workdir, step)
  step = meta["step"]

  # what it is
  section = meta["config"].get("model") or {}
  model = section.get("name", "unknown")
  stage = meta["lineage"].get("stage", "unknown")
  digest = checkpoint_steps.digest(meta)
  yield f"{workdir} step {step}, model {model}, stage {stage}, digest {digest}"

  # what lies beside it, and in it
  steps = checkpoint_steps.steps(workdir)
  others = [str(other) for other in steps if other != step]
  yield f"other steps: {', '.join(others) or 'none'}"
  chosen = best.step_of(workdir)
  if chosen is not None:
    yield f"best step by the run's held-out score: {chosen} (best.json)"
  leaves = checkpoint_steps.shapes_of(meta)
  yield from tree_lines(leaves)


def digests(workdir: str, step: int | None) -> Iterator[str]:
  """`<path> <dtype> <shape> <sha256>` per array, sorted; of the array's bytes in C order."""
  meta = whole_meta(workdir, step)
  sources = {path: path for path in sorted(meta["shapes"])}
  stored = stream.read_params(workdir, meta["step"], sources)
  for path in stored:
    array = np.asarray(stored[path])
    yield digest_line(path, array)


def lineage(workdir: str, step: int | None) -> Iterator[str]:
  """The chain from this checkpoint to its first ancestors."""
  meta = whole_meta(workdir, step)
  digest = checkpoint_steps.digest(meta)
  name = f"{workdir} step {meta['step']}  digest {digest}"
  yield from _ancestors(meta["lineage"], name, depth=0)


def _ancestors(recorded: Mapping[str, Any], name: str, depth: int) -> Iterator[str]:
  """A checkpoint, what it was made from and on, and then its parents, each a level deeper."""
  pad = "  " * depth

  # the checkpoint itself
  yield f"{pad}{name}  stage {recorded.get('stage', 'unknown')}"
  for key in ("source", "commit", "seed"):
    value = recorded.get(key)
    if value not in (None, ""):
      yield f"{pad}  {key} {value}"

  # what it was made from and on
  for file, digest in recorded.get("files", {}).items():
    yield f"{pad}  file {file} sha256 {digest}"
  for dataset, identity in recorded.get("datasets", {}).items():
    said = json.dumps(identity, sort_keys=True)
    yield f"{pad}  dataset {dataset} {said}"
  if recorded.get("latents"):
    said = json.dumps(recorded["latents"], sort_keys=True)
    yield f"{pad}  latents {said}"

  # its parents, with what was not taken over from them
  for parent in recorded.get("parents", ()):
    if parent.get("fresh"):
      yield f"{pad}  {_listed(parent['fresh'], 'new leaves')}"
    if parent.get("left_out"):
      yield f"{pad}  {_listed(parent['left_out'], 'leaves not taken over')}"
    where = f"{parent['path']} step {parent['step']} ({parent['which']})"
    label = f"from {where}  digest {parent['digest']}"
    yield from _ancestors(parent["lineage"], label, depth + 1)


def _listed(paths: list[str], said: str) -> str:
  """How many leaves, and the first few."""
  shown = ", ".join(paths[:SHOWN_PATHS])
  if len(paths) > SHOWN_PATHS:
    shown += " ..."
  return f"{len(paths)} {said}: {shown}"
