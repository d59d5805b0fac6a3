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
from sam3d_jax.training import checkpoint, checksums

READ_AHEAD = 256 * 2**20  # bytes of small arrays read in one go; an array beyond that is read alone


class Deferred:
  """A leaf of known shape and dtype whose array is made when it is written."""

  def __init__(self, shape: tuple[int, ...], dtype, make: Callable[[], np.ndarray]):
    self.shape, self.dtype, self.make = tuple(shape), np.dtype(dtype), make

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
    for value, info, arg in zip(
      values, infos, args or [type_handlers.SaveArgs()] * len(values), strict=True
    ):
      for write in await super().serialize([value.make()], [info], [arg]):
        write.result()
    return []


def write_params(
  workdir: str | pathlib.Path, params: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
  """Writes parameters as a checkpoint of step 0, from which any stage can start.

  One of them is held in memory at a time. params: path -> array; a lazy mapping is asked for each
  array twice, once for its checksum and once to write it. Raises InputError if the folder has
  checkpoints or an array is not finite; then nothing is written.
  """
  if checkpoint.steps(workdir):
    raise InputError(
      f"{workdir} already holds checkpoints of steps {checkpoint.steps(workdir)}; give an empty "
      "folder"
    )
  leaves, sums = {}, {}
  for path in params:
    array = params[path]
    name = f"params/{path}"
    checksum, bad = checksums.inspect({name: jnp.asarray(array)})
    if bad:
      raise InputError(f"{path} holds a NaN or an infinity; nothing was written")
    sums |= checksum
    leaves[name] = Deferred(array.shape, array.dtype, lambda path=path: np.asarray(params[path]))
    del array
  registry = type_handlers.create_type_handler_registry(
    (Deferred, DeferredHandler(deepcopy_host_arrays=False)),
    (jax.Array, type_handlers.ArrayHandler()),
  )
  handlers = {
    "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
    "meta": ocp.JsonCheckpointHandler(),
  }
  options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
  folder = pathlib.Path(workdir).absolute() / "checkpoints"
  with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
    meta = checkpoint.make_meta(meta, 0, leaves, sums)
    manager.save(
      0,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(checkpoint.nest(leaves)), meta=ocp.args.JsonSave(meta)
      ),
    )


def read_params(workdir: str | pathlib.Path, step: int, sources: Mapping[str, str]) -> LazyParams:
  """Arrays of a checkpoint, checksums verified, read a few at a time as they are asked for.

  sources: path -> path in the checkpoint, in the order in which they will be asked for; another
  order costs time, not memory.
  """
  stored = checkpoint.stored_shapes(workdir, step)
  paths = list(sources)
  order = {path: i for i, path in enumerate(paths)}
  held: dict[str, jax.Array] = {}

  def read_ahead(path: str) -> None:
    """Holds this array and as many of the following ones as may be read in one go."""
    held.clear()
    batch, size = [], 0
    for following in paths[order[path] :]:
      leaf = stored[sources[following]]
      size += leaf.size * leaf.dtype.itemsize
      if batch and size > READ_AHEAD:
        break
      batch.append(following)
    wanted = {sources[p]: stored[sources[p]] for p in batch}
    arrays = checkpoint.read_arrays(workdir, step, wanted, partial=True)
    for following in batch:
      held[following] = arrays[sources[following]]

  def read_from(path: str) -> np.ndarray:
    if path not in held:
      read_ahead(path)
    return np.asarray(held.pop(path))

  return LazyParams(
    {path: tuple(stored[source].shape) for path, source in sources.items()}, read_from
  )
