"""What a checkpoint is on disk: its steps, and what was written beside the arrays of each.

    workdir/checkpoints/<step>/state/   every array of the training state (Orbax, sharded)
    workdir/checkpoints/<step>/meta/    JSON: step, configuration, lineage, shape and checksum of
                                        every array, and a seal over it all

No array is read here. `checkpoint_arrays` reads them, `checkpoint_params` takes a model's
parameters from them, `checkpointer` writes and restores the state of a run.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import hashlib
import json
import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import tensorstore as ts

from sam3d_jax.errors import InputError
from sam3d_jax.files import blame
from sam3d_jax.training import agreement, best, damage
from sam3d_jax.training.checksums import CorruptCheckpoint

STEP = re.compile("0|[1-9][0-9]*")  # the name of a step's folder
ARRAY_KEYS = ("/.zarray", "/zarr.json")  # how the key that describes an array ends
FORMAT = 2  # of meta; raised when a reader of the older format could misread


def steps_folder(workdir) -> pathlib.Path:
  """Folder of a work folder's steps, as the storage of arrays wants it: absolute, without '..'."""
  return pathlib.Path(workdir).resolve() / "checkpoints"


def folder_of(workdir, step: int) -> pathlib.Path:
  """Folder of one step, absolute."""
  return steps_folder(workdir) / str(step)


def steps(workdir: str | pathlib.Path) -> list[int]:
  """Steps with a committed checkpoint, ascending.

  One that is being written, or is damaged, has another name.
  """
  folder = pathlib.Path(workdir) / "checkpoints"
  if not folder.is_dir():
    return []
  # A committed step is a folder named by its number, and nothing else is.
  names = [path.name for path in folder.iterdir()]
  return sorted(int(name) for name in names if STEP.fullmatch(name))


def resolve_step(workdir, step: int | None = None) -> int:
  """`step`; without one the best, where the run looks for it (`training.best`), else the newest.

  Raises InputError if there is no such checkpoint.
  """
  found = steps(workdir)
  if not found:
    folder = pathlib.Path(workdir) / "checkpoints"
    why = f"looked for {folder}/<step>"
    if not pathlib.Path(workdir).exists():
      why = "there is no such folder"
    raise InputError(f"{workdir} holds no checkpoint ({why})")
  if step is None:
    chosen = best.step_of(workdir)
    return chosen if chosen in found else found[-1]
  if step not in found:
    listed = ", ".join(map(str, found))
    raise InputError(f"{workdir} has no checkpoint of step {step}; it has {listed}")
  return step


def first_readable(
  workdir,
  candidates: Iterable[int],
  read: Callable[[int], Any],
  bad_steps: list[int] | None = None,
  *,
  together: bool = False,
) -> Any:
  """What `read(step)` gives for the first of the candidates that can be read: the one road past
  damaged steps, of training and of every command that reads a checkpoint.

  A step whose files are not what was written (`read` raises CorruptCheckpoint) is named on standard
  error and added to `bad_steps`. together: every process of the job calls it with the same
  candidates; what one of them cannot read, none reads. Raises CorruptCheckpoint if none is left.
  """
  tried = 0
  for step in candidates:
    tried += 1
    try:
      if not together:
        return read(step)
      return agreement.together(functools.partial(read, step))
    except CorruptCheckpoint as error:
      if bad_steps is not None:
        bad_steps.append(step)
      print(
        f"checkpoint: {workdir}: step {step} is damaged ({error}); trying the one before",
        file=sys.stderr,
      )
  folder = pathlib.Path(workdir) / "checkpoints"
  raise CorruptCheckpoint(
    f"none of the {tried} checkpoints in {folder} can be read: copy the folder again, or give "
    "another one"
  )


def newest_readable(
  workdir,
  read: Callable[[int], Any],
  step: int | None = None,
  *,
  together: bool = False,
) -> Any:
  """What `read(step)` gives for the step that is asked for; without one, for the step that
  `resolve_step` names, or, if that is damaged, for the newest other one that can be read.

  together: every process of the job calls it, and all read the same step. Raises InputError if
  there is no such checkpoint, or none that reads back as it was written; JobFailed if a disk fails.
  """
  candidates = [resolve_step(workdir, step)]
  if step is None:
    newest_first = reversed(steps(workdir))
    candidates += [other for other in newest_first if other not in candidates]
  if together:
    candidates = agreement.of_first(candidates)
  try:
    if step is not None and not together:
      return read(step)
    return first_readable(workdir, candidates, read, together=together)
  except CorruptCheckpoint as error:
    if step is None:
      raise InputError(str(error)) from error
    raise InputError(
      f"{workdir} step {step} is damaged ({error}): copy it again, or give another --step"
    ) from error


def make_meta(
  meta: Mapping[str, Any], step: int, arrays: Mapping[str, Any], sums: Mapping[str, str]
) -> dict[str, Any]:
  """What is written beside the arrays: `meta` with what a reader needs to check them, sealed."""
  # A dtype by its name, then the sizes: JSON has neither.
  shapes = {}
  for path, x in arrays.items():
    dtype = jnp.dtype(x.dtype)
    shapes[path] = [str(dtype), *x.shape]
  whole = {
    **meta,
    "format": FORMAT,
    "step": step,
    "shapes": shapes,
    "checksums": dict(sums),
  }
  return {**whole, "seal": seal(whole)}


def seal(meta: Mapping[str, Any]) -> str:
  """SHA-256 of everything in meta but the seal."""
  # The seal covers everything but itself.
  unsealed = dict(meta)
  unsealed.pop("seal", None)
  # As it reads back: tuples are lists.
  plain = json.loads(json.dumps(unsealed))
  text = json.dumps(plain, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read_meta(workdir, step: int | None = None) -> dict[str, Any]:
  """What was written beside the arrays: step, config, lineage, shapes, checksums.

  step: None for the newest that can be read. Touches no device. Raises CorruptCheckpoint if it is
  not what was written, InputError if another release wrote it, JobFailed if its disk fails.
  """
  if step is None:
    return newest_readable(workdir, functools.partial(read_meta, workdir))
  resolve_step(workdir, step)
  read = functools.partial(_read_meta, workdir, step)
  return damage.agreed(read, folder_of(workdir, step))


def _read_meta(workdir, step: int) -> dict[str, Any]:
  """One look at what was written beside the arrays. Raises OSError too."""
  file = folder_of(workdir, step) / "meta" / "metadata"
  try:
    meta = json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise CorruptCheckpoint(f"{file} cannot be read: {error}") from error
  except OSError as error:
    if not blame.is_of_the_file(error):
      raise
    raise CorruptCheckpoint(f"{file} cannot be read: {error}") from error

  changed = f"{file} differs from what was written"
  if not isinstance(meta, dict):
    raise CorruptCheckpoint(changed)
  # The first format had no seal.
  if "seal" not in meta and meta.get("format") == 1:
    raise InputError(f"{workdir} step {step} has checkpoint format 1, this release reads {FORMAT}")
  # Whatever a disk has changed, the seal no longer fits.
  if meta.get("seal") != seal(meta) or meta["step"] != step:
    raise CorruptCheckpoint(changed)
  written = meta["format"]
  if written != FORMAT:
    raise InputError(
      f"{workdir} step {step} has checkpoint format {written}, this release reads {FORMAT}"
    )
  return meta


def read_whole_meta(workdir, step: int) -> dict[str, Any]:
  """`read_meta` of a step whose arrays are read later, one by one: first the index of the arrays is
  compared with the files that are there, so that a copy that was cut short is found at once.

  No array is read. Raises as `read_meta` does.
  """
  meta = read_meta(workdir, step)
  folder = folder_of(workdir, step)
  keys = damage.agreed(functools.partial(_check_files, folder / "state"), folder)
  arrays = sum(key.endswith(ARRAY_KEYS) for key in keys)
  expected = len(meta["shapes"])
  if arrays < expected:
    raise CorruptCheckpoint(f"its index holds {arrays} of {expected} arrays")
  return meta


def _check_files(folder: pathlib.Path) -> set[str]:
  """The keys of an index of arrays (OCDBT); every part of a file that it names is there.

  Raises one of damage.READ_ERRORS where it is not.
  """
  store = ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
  *_, latest = ts.ocdbt.dump(store).result()["versions"]
  keys = set()
  nodes = [latest["root"]["location"]]
  while nodes:
    node = ts.ocdbt.dump(store, nodes.pop()).result()
    for entry in node["entries"]:
      # a node below this one
      if "location" in entry:
        nodes.append(entry["location"])
        continue
      keys.add(entry["key"].decode())
      location = entry.get("indirect_value")
      if location is None:
        continue
      # "value:<folder>:<file>:<offset>:<length>"
      _, base, name, offset, length = location.split(":")
      file = folder / (base + name)
      needed = int(offset) + int(length)
      held = file.stat().st_size
      if held < needed:
        raise ValueError(f"{file} has {held} bytes, {needed} or more were written")
  return keys


def shapes_of(meta: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape and dtype of every array that a checkpoint holds."""
  shapes = {}
  for path, (name, *shape) in meta["shapes"].items():
    dtype = jnp.dtype(name)
    shapes[path] = jax.ShapeDtypeStruct(tuple(shape), dtype)
  return shapes


def stored_shapes(workdir, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape and dtype of every array of a step, without reading any."""
  return shapes_of(read_meta(workdir, step))


def digest(meta: Mapping[str, Any]) -> str:
  """A short name for the content of a checkpoint, from the checksums of its arrays."""
  # Checksums stand for contents: equal parameters have equal names.
  text = json.dumps(meta["checksums"], sort_keys=True)
  whole = hashlib.sha256(text.encode()).hexdigest()
  return whole[:16]
