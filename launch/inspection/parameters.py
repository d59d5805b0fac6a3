"""The parameters of checkpoints side by side, and their digests by the model's own paths.

A training run holds averages, optimiser state and what is frozen beside its parameters; an import
or an export holds one set of them. What is shown here is that one set, as sampling and exports take
it: of the average that is asked for, low-rank adapters folded into their kernels.
"""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import math
import pathlib
from typing import Any

import numpy as np

from launch.inspection.trees import count_text
from sam3d_jax.errors import InputError
from sam3d_jax.models import lora as adapters
from sam3d_jax.models.parameters import LazyParams
from sam3d_jax.torch_bridge import lora, stream
from sam3d_jax.training import checkpoint_params, checkpoint_steps

SHOWN = 20  # arrays that differ


@dataclasses.dataclass(frozen=True)
class Stored:
  """Parameters of one checkpoint, read as they are asked for. name: for the screen."""

  name: str
  params: LazyParams


@dataclasses.dataclass(frozen=True)
class Difference:
  """One array that is not the same on both sides. size: of the largest difference, NaN without."""

  path: str
  said: str
  size: float = math.nan


def whole_meta(workdir: str, step: int | None) -> dict[str, Any]:
  """What a checkpoint says of itself: of the newest step that can be read, or of the one that is
  asked for. Raises InputError without any.
  """
  read = functools.partial(checkpoint_steps.read_whole_meta, workdir)
  return checkpoint_steps.newest_readable(workdir, read, step)


def open_params(workdir: str, step: int | None, which: str) -> Stored:
  """The parameters of a checkpoint, path -> array, sorted. which: raw, ema or ema:<decay>.

  Raises InputError if the folder holds no checkpoint, or not that average.
  """
  # A release has other names and types of storage.
  if (pathlib.Path(workdir) / "pipeline.yaml").is_file():
    raise InputError(
      f"{workdir} is a release folder; import it first: python -m launch.import_torch --from "
      f"{workdir} --workdir DIR"
    )
  meta = whole_meta(workdir, step)
  step = meta["step"]
  sources = checkpoint_params.param_sources(checkpoint_steps.shapes_of(meta), which)
  in_order = {path: sources[path] for path in sorted(sources)}
  params = stream.read_params(workdir, step, in_order)

  # Adapters count as what they make of their kernels.
  if adapters.factor_paths(in_order):
    scale = adapters.scale_of(meta["config"])
    params = lora.merge(params, params.shapes, scale)
  return Stored(f"{workdir} step {step} ({which})", params)


def digests(workdir: str, step: int | None, which: str) -> Iterator[str]:
  """`params/<path> <dtype> <shape> <sha256>` per parameter, sorted, as a checkpoint that holds
  nothing else says it."""
  for path, array in open_params(workdir, step, which).params.items():
    yield digest_line(f"params/{path}", array)


def digest_line(path: str, array: np.ndarray) -> str:
  """`<path> <dtype> <shape> <sha256>`, of the array's bytes in C order."""
  sizes = map(str, array.shape)
  shape = ",".join(sizes)
  digest = hashlib.sha256(array.tobytes()).hexdigest()
  return f"{path} {array.dtype} ({shape}) {digest}"


def compare(one: Stored, other: Stored) -> list[Difference]:
  """Every array that differs by a bit, by its shape or type, or that one side lacks.

  One array of each side is in memory at a time.
  """
  found: list[Difference] = []

  # On one side only.
  for side, here, there in (("A", one, other), ("B", other, one)):
    for path in here.params:
      if path not in there.params:
        found.append(Difference(path, f"only in {side}"))

  # On both.
  for path in one.params:
    if path not in other.params:
      continue
    difference = _difference(path, one.params[path], other.params[path])
    if difference is not None:
      found.append(difference)
  return found


def _difference(path: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
  """How two arrays differ, None if they are the same bits."""
  # Of another form.
  if a.shape != b.shape:
    return Difference(path, f"shape {a.shape} and {b.shape}")
  if a.dtype != b.dtype:
    return Difference(path, f"type {a.dtype} and {b.dtype}")
  if a.tobytes() == b.tobytes():
    return None

  # Of other values: how many, and by how much beside their size.
  apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
  most = float(apart.max())
  changed = np.count_nonzero(apart)
  size = float(np.abs(a).max())
  said = f"{changed} of {a.size} values, by {most:.3g} at most (of values up to {size:.3g})"
  return Difference(path, said, most)


def report(one: Stored, other: Stored, found: list[Difference]) -> Iterator[str]:
  """The comparison as lines: "identical", or what differs, the largest difference first."""
  yield f"A {one.name}"
  yield f"B {other.name}"
  if not found:
    values = sum(math.prod(shape) for shape in one.params.shapes.values())
    yield f"identical: {len(one.params)} arrays, {count_text(values)} values"
    return

  # What one side lacks or has in another form comes before differences of values.
  found = sorted(found, key=_place)
  for difference in found[:SHOWN]:
    yield f"  {difference.path}: {difference.said}"
  hidden = len(found) - SHOWN
  if hidden > 0:
    yield f"  ... and {hidden} more"
  together = len({*one.params, *other.params})
  yield f"{len(found)} of {together} arrays differ"


def _place(difference: Difference) -> float:
  """Key that sorts the largest difference first, after those that are none of values."""
  if math.isnan(difference.size):
    return -math.inf
  return -difference.size
