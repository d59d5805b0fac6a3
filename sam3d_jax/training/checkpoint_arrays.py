"""The arrays of a checkpoint, checked on the way in, on any mesh.

A checksum is computed on the devices from the array's bits and does not depend on how the array is
sharded, so writing one costs a pass over memory and a restore on another mesh can check it.
`checkpoint_steps` says what lies where.
"""

import asyncio
from collections.abc import Callable, Mapping
import functools
import gc
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from sam3d_jax.errors import InputError
from sam3d_jax.sharding.mesh import path_of
from sam3d_jax.training import agreement, checkpoint_steps, checksums, damage
from sam3d_jax.training.checksums import CorruptCheckpoint

SHOWN_PROBLEMS = 40  # of leaves that do not fit
SHOWN_EXPLAINED = 5  # of those whose cause is known


def flatten(tree) -> dict[str, Any]:
  """A pytree as path -> leaf, paths '/'-separated."""
  # Paths as in the file: what a leaf is called does not depend on its container.
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {path_of(key_path): leaf for key_path, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> dict:
  """path -> leaf as nested dictionaries with string keys, the form on disk."""
  out: dict = {}
  # Each leaf's parents are made as they are met.
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return out


def read_state(workdir, step: int, abstract_state):
  """Reads one step into the structure, dtypes and shardings of `abstract_state`: the state, and the
  step's meta.

  Every array is checked against its checksum. Raises as `read_arrays`.
  """
  # In the order of the leaves, which the dictionary keeps.
  leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_state)
  wanted = {}
  for key_path, leaf in leaves:
    wanted[path_of(key_path)] = leaf
  arrays, meta = _read_with_meta(workdir, step, wanted, partial=False)
  in_order = [arrays[path] for path in wanted]
  return jax.tree_util.tree_unflatten(treedef, in_order), meta


def read_arrays(
  workdir, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool = False
) -> dict[str, jax.Array]:
  """Reads some arrays of one step, checksums verified.

  wanted: path -> shape struct, sharding optional. partial: the step may hold more than is wanted.
  Raises InputError for leaves that are missing, extra or misshapen, CorruptCheckpoint if two reads
  agree that the bytes cannot be read or differ from what was written, JobFailed if the disk fails;
  if the arrays span several processes, in each of them.
  """
  arrays, _ = _read_with_meta(workdir, step, wanted, partial=partial)
  return arrays


def _read_with_meta(
  workdir, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
  """`read_arrays`, and the step's meta."""
  shardings = [leaf.sharding for leaf in wanted.values() if leaf.sharding is not None]
  spread = not all(sharding.is_fully_addressable for sharding in shardings)
  reads = damage.Reads(checkpoint_steps.folder_of(workdir, step))

  while True:
    # Up to here each host is on its own; the checksums are computed by all of them together.
    once = functools.partial(_read_as_written, workdir, step, wanted, partial)
    if spread:
      arrays, meta = agreement.together(once, _content)
    else:
      arrays, meta = once()
    try:
      compare(checksums.on_device(arrays), meta)
      break
    except CorruptCheckpoint as error:
      # The next read needs the memory. All hosts have computed the same sums, so all read again.
      arrays = None
      reads.failed(error)

  # Only now, when the bits are known to be right.
  for path, array in arrays.items():
    dtype = wanted[path].dtype
    if array.dtype != dtype:
      arrays[path] = array.astype(dtype)
  return arrays, meta


def _content(read: tuple[dict[str, jax.Array], dict[str, Any]]) -> str:
  """What hosts compare of what they have read."""
  _, meta = read
  return f"step {meta['step']} (digest {checkpoint_steps.digest(meta)})"


def _read_as_written(
  workdir, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], partial: bool
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
  """The arrays in the dtypes that they were written in, unchecked, and the step's meta."""
  meta = checkpoint_steps.read_meta(workdir, step)
  stored = checkpoint_steps.shapes_of(meta)
  audit(
    wanted,
    stored,
    where=f"{workdir} step {step}",
    partial=partial,
  )

  # Arrays are read as they were written, then checked, then cast: a checksum covers the written
  # bits.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  as_written = {}
  for path, leaf in wanted.items():
    as_written[path] = jax.ShapeDtypeStruct(
      leaf.shape,
      stored[path].dtype,
      sharding=leaf.sharding or here,
    )
  restore_args = ocp.checkpoint_utils.construct_restore_args(nest(as_written))
  read = functools.partial(
    _read,
    workdir,
    step,
    nest(wanted),
    restore_args,
    partial,
  )
  arrays = damage.agreed(read, checkpoint_steps.folder_of(workdir, step))
  return arrays, meta


def _read(workdir, step: int, item, restore_args, partial: bool) -> dict[str, Any]:
  """path -> array, as the storage layer gives it."""
  folder = epath.Path(checkpoint_steps.folder_of(workdir, step) / "state")
  args = ocp.args.PyTreeRestore(
    item=item,
    restore_args=restore_args,
    partial_restore=partial,
  )
  try:
    tree = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
  except Exception:
    collect_unfinished()
    raise
  return flatten(tree)


def collect_unfinished() -> None:
  """Takes the exceptions of reads that nobody can wait for any more.

  Arrays are read beside each other. The first that fails ends the loop that the others run in, and
  what they say is left in it: Python would complain of each when it is thrown away.
  """
  for thing in gc.get_objects():
    if not issubclass(type(thing), asyncio.Future):
      continue
    is_over = thing.done() and not thing.cancelled()
    if is_over and thing.get_loop().is_closed():
      thing.exception()


def compare(sums: Mapping[str, str], meta: Mapping[str, Any]) -> None:
  """Raises CorruptCheckpoint naming what differs from the checksums in meta."""
  # Only what was read is compared: a reader may want a part.
  written = meta["checksums"]
  damaged = [path for path, value in sums.items() if value != written[path]]
  if damaged:
    error = CorruptCheckpoint(
      f"{len(damaged)} arrays differ from what was written, first {damaged[0]}"
    )
    # Two reads agree if they found the same numbers.
    error.evidence = " ".join(sums[path] for path in damaged)
    raise error


READ_BACK = 256 * 2**20  # bytes of arrays that `verify` holds at a time


def verify(workdir, step: int, stop: Callable[[], bool] = lambda: False) -> None:
  """Reads a whole step back, a few arrays at a time, and compares every checksum.

  Into host memory; no device is used. stop: asked between reads; True ends early. Raises
  CorruptCheckpoint if two reads agree on it, JobFailed if the disk fails.
  """
  # Group by group: a state may be larger than the host's free memory.
  meta = checkpoint_steps.read_meta(workdir, step)
  folder = checkpoint_steps.folder_of(workdir, step)
  for group in grouped(checkpoint_steps.shapes_of(meta), READ_BACK):
    if stop():
      return
    check = functools.partial(_check_group, workdir, step, group, meta)
    damage.agreed(check, folder)


def _check_group(workdir, step: int, group: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
  """Reads some arrays as NumPy arrays, so that no device memory is taken, and compares them."""
  in_memory = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in group}
  arrays = _read(
    workdir,
    step,
    nest(group),
    nest(in_memory),
    partial=True,
  )
  sums = {path: checksums.on_host(array) for path, array in arrays.items()}
  compare(sums, meta)


def grouped(arrays: Mapping[str, jax.ShapeDtypeStruct], limit: int):
  """The arrays in groups of at most `limit` bytes (or one that is larger)."""
  group, size = {}, 0
  for path, leaf in arrays.items():
    # A single array may be larger than the limit; it is then a group by itself.
    nbytes = leaf.size * leaf.dtype.itemsize
    full = size + nbytes > limit
    if group and full:
      yield group
      group, size = {}, 0
    group[path] = leaf
    size += nbytes
  if group:
    yield group


def audit(
  wanted: Mapping[str, Any],
  on_disk: Mapping[str, Any],
  *,
  where: str,
  partial: bool = False,
  why: str = "",
  remedy: Callable[[list[str]], str] = lambda paths: "",
) -> None:
  """Raises InputError listing every leaf that is missing, unexpected or of another shape.

  why: what explains them, said before any; then few of them are listed. remedy: of the paths, said
  after the list.
  """
  paths = []
  problems = []

  # On one side only.
  for path in wanted:
    if path not in on_disk:
      paths.append(path)
      problems.append(f"missing on disk  {path}")
  for path in on_disk:
    if path not in wanted and not partial:
      paths.append(path)
      problems.append(f"not in the model  {path}")

  # On both, of different shapes.
  for path, leaf in wanted.items():
    if path not in on_disk:
      continue
    there = tuple(on_disk[path].shape)
    here = tuple(leaf.shape)
    if there != here:
      paths.append(path)
      problems.append(f"shape differs  {path}: {there} on disk, {here} in the model")

  if problems:
    shown = problems[: SHOWN_EXPLAINED if why else SHOWN_PROBLEMS]
    hidden = len(problems) - len(shown)
    if hidden:
      shown.append(f"... and {hidden} more")
    lines = "\n  ".join(shown)
    explained = f"{why}: " if why else ""
    raise InputError(
      f"{where} does not fit: {explained}{len(problems)} differences\n  {lines}{remedy(paths)}"
    )
