"""Reading and writing checkpoints a few arrays at a time.

So a model larger than memory can be imported and exported.
"""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from sam3d_jax.errors import InputError
from sam3d_jax.models.parameters import LazyParams
from sam3d_jax.training import checkpoint_arrays, checkpoint_steps, checksums

READ_AHEAD = 256 * 2**20  # bytes of small arrays read in one go; an array beyond that is read alone


class Deferred:
  """A leaf of known shape and dtype whose array is made when it is written."""

  def __init__(self, shape: tuple[int, ...], dtype, make: Callable[[], np.ndarray]):
    self.shape = tuple(shape)
    self.dtype = np.dtype(dtype)
    self.make = make

  @property
  def size(self) -> int:
    return int(np.prod(self.shape))

  @property
  def itemsize(self) -> int:
    return self.dtype.itemsize

  @property
  def nbytes(self) -> int:
    return self.size * self.itemsize


class DeferredHandler(type_handlers.NumpyHandler):
  """Writes deferred leaves strictly one after the other; on disk they are ordinary arrays."""

  async def serialize(self, values, infos, args=None):
    if not args:
      args = [type_handlers.SaveArgs()] * len(values)
    for value, info, arg in zip(values, infos, args, strict=True):
      writes = await super().serialize([value.make()], [info], [arg])
      for write in writes:
        write.result()  # on disk before the next array is made
    return []


def write_params(
  workdir: str | pathlib.Path, params: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
  """Writes parameters as a checkpoint of step 0, from which any stage can start.

  One of them is held in memory at a time. params: path -> array; a lazy mapping is asked for each
  array twice, once for its checksum and once to write it. Raises InputError if the folder has
  checkpoints or an array is not finite; then nothing is written.
  """
  existing = checkpoint_steps.steps(workdir)
  if existing:
    raise InputError(
      f"{workdir} already holds checkpoints of steps {existing}; give an empty folder"
    )

  # First pass: checksums, and that everything is finite, before anything is written.
  leaves, sums = {}, {}
  for path in params:
    array = params[path]
    name = f"params/{path}"
    checksum, bad = checksums.inspect({name: jnp.asarray(array)})
    if bad:
      raise InputError(f"{path} holds a NaN or an infinity; nothing was written")
    sums |= checksum
    leaves[name] = Deferred(array.shape, array.dtype, lambda path=path: np.asarray(params[path]))
    del array  # so that it is gone before the next is made
  meta = checkpoint_steps.make_meta(meta, 0, leaves, sums)

  # Second pass: a checkpoint like any other, each array made when it is written.
  registry = type_handlers.create_type_handler_registry(
    (Deferred, DeferredHandler(deepcopy_host_arrays=False)),
    (jax.Array, type_handlers.ArrayHandler()),
  )
  handlers = {
    "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
    "meta": ocp.JsonCheckpointHandler(),
  }
  items = ocp.args.Composite(
    state=ocp.args.PyTreeSave(checkpoint_arrays.nest(leaves)),
    meta=ocp.args.JsonSave(meta),
  )
  options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
  folder = checkpoint_steps.steps_folder(workdir)
  with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
    manager.save(0, args=items)


def read_params(workdir: str | pathlib.Path, step: int, sources: Mapping[str, str]) -> LazyParams:
  """Arrays of a checkpoint, checksums verified, read a few at a time as they are asked for.

  sources: path -> path in the checkpoint, in the order in which they will be asked for; another
  order costs time, not memory. An array that does not read back as it was written raises InputError
  when it is asked for.
  """
  stored = checkpoint_steps.stored_shapes(workdir, step)
  paths = list(sources)
  position = {path: i for i, path in enumerate(paths)}
  held: dict[str, jax.Array] = {}  # read already, and not yet asked for

  def read_ahead(path: str) -> None:
    """Holds this array and as many of the following ones as may be read in one go."""
    held.clear()

    # which ones
    batch, size = [], 0
    for following in paths[position[path] :]:
      leaf = stored[sources[following]]
      size += leaf.size * leaf.dtype.itemsize
      if batch and size > READ_AHEAD:
        break
      batch.append(following)

    # read them
    names = [sources[following] for following in batch]
    wanted = {name: stored[name] for name in names}
    try:
      arrays = checkpoint_arrays.read_arrays(workdir, step, wanted, partial=True)
    except checksums.CorruptCheckpoint as error:
      raise InputError(
        f"{workdir} step {step} is damaged ({error}): copy it again, or give another --step"
      ) from error
    for following, name in zip(batch, names, strict=True):
      held[following] = arrays[name]

  def read_from(path: str) -> np.ndarray:
    """One array, which is no longer held then."""
    if path not in held:
      read_ahead(path)
    return np.asarray(held.pop(path))

  shapes = {path: tuple(stored[source].shape) for path, source in sources.items()}
  return LazyParams(shapes, read_from)
