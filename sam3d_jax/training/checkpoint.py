"""Checkpoints: written whole or not at all, checked on the way in, readable on any mesh.

    workdir/checkpoints/<step>/state/   every array of the training state (Orbax, sharded, asynchronous)
    workdir/checkpoints/<step>/meta/    JSON: step, configuration, lineage, and one checksum per array

A checksum is computed on the devices from the array's bits and does not depend on how the array is sharded, so writing one costs a
pass over memory and a restore on another mesh can check it. A step that fails the check is named and the one before it is used.
"""

from collections.abc import Iterable, Mapping
import hashlib
import json
import pathlib
import sys
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp

from sam3d_jax.errors import InputError
from sam3d_jax.sharding import rules
from sam3d_jax.sharding.mesh import path_of

FORMAT = 1  # of meta; raised when a reader of the older format could misread


class CorruptCheckpoint(RuntimeError):
  """A checkpoint that was written whole no longer reads back as it was written."""


def flatten(tree) -> dict[str, Any]:
  """A pytree as path -> leaf, paths '/'-separated."""
  return {path_of(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nest(flat: Mapping[str, Any]) -> dict:
  """path -> leaf as nested dictionaries with string keys, the form on disk."""
  out: dict = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return out


def _bits(x) -> jax.Array:
  """The array's bits as flat uint32 words (smaller types widened word by word)."""
  if jnp.issubdtype(x.dtype, jnp.bool_):
    x = x.astype(jnp.uint8)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
  return jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)


@jax.jit  # one small program per shape, shared by all arrays of that shape: a program over all arrays takes long to compile
def _checksum(x) -> jax.Array:
  """Two position-weighted sums of the bits, modulo 2**32: order of summation, hence sharding, does not matter."""
  words = _bits(x)
  index = jnp.zeros(words.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  mixed = (words ^ (index * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 15)) * (2 * index + 1)
  return jnp.stack([jnp.sum(words * (2 * index + 1), dtype=jnp.uint32), jnp.sum(mixed, dtype=jnp.uint32)])


def checksums(flat: Mapping[str, jax.Array]) -> dict[str, str]:
  """path -> checksum of every array, as 16 hexadecimal digits."""
  sums = {path: np.asarray(_checksum(x)) for path, x in flat.items()}  # one at a time: hundreds of collectives in flight can deadlock
  return {path: f"{int(a):08x}{int(b):08x}" for path, (a, b) in sums.items()}


@jax.jit
def _finite(x) -> jax.Array:
  return jnp.isfinite(x).all()


def non_finite(flat: Mapping[str, jax.Array]) -> list[str]:
  """Paths of the arrays that hold a NaN or an infinity."""
  return [p for p, x in flat.items() if jnp.issubdtype(x.dtype, jnp.inexact) and not bool(_finite(x))]


def steps(workdir: str | pathlib.Path) -> list[int]:
  """Steps with a committed checkpoint, ascending."""
  folder = epath.Path(workdir) / "checkpoints"
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "meta").is_dir())


def resolve_step(workdir, step: int | None = None) -> int:
  """`step`, or the newest one. Raises InputError if there is no such checkpoint."""
  found = steps(workdir)
  if not found:
    raise InputError(f"{workdir} holds no checkpoint (looked for {pathlib.Path(workdir) / 'checkpoints'}/<step>)")
  if step is None:
    return found[-1]
  if step not in found:
    raise InputError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
  return step


def read_meta(workdir, step: int | None = None) -> dict[str, Any]:
  """What was written beside the arrays: step, config, lineage, checksums. Touches no device."""
  step = resolve_step(workdir, step)
  folder = epath.Path(workdir) / "checkpoints" / str(step) / "meta"
  files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith("_")]
  meta = json.loads(files[0].read_text())
  if meta["format"] != FORMAT:
    raise InputError(f"{workdir} step {step} has checkpoint format {meta['format']}, this release reads {FORMAT}")
  return meta


class Checkpointer:
  """Writes and restores the training state of one work folder."""

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 3):
    self.workdir = pathlib.Path(workdir).absolute()
    self.bad_steps: list[int] = []  # steps found unreadable by `restore`
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
    self.manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)

  def save(self, step: int, state, meta: Mapping[str, Any]) -> bool:
    """Starts writing `state` as of `step` and returns; False if that step is there already.

    Raises FloatingPointError naming the leaves if any is not finite: such a state is never written.
    """
    if step in self.manager.all_steps():
      return False
    flat = flatten(state)
    bad = non_finite(flat)
    if bad:
      raise FloatingPointError(f"step {step} is not saved: {len(bad)} arrays are not finite, first {bad[0]}")
    meta = {**meta, "format": FORMAT, "step": step, "checksums": checksums(flat)}
    self.manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(nest(flat)), meta=ocp.args.JsonSave(meta)))
    return True

  def wait(self) -> None:
    """Returns when everything started is committed."""
    self.manager.wait_until_finished()

  def close(self) -> None:
    self.manager.wait_until_finished()
    self.manager.close()

  def latest(self) -> int | None:
    """The newest committed step, or None."""
    return self.manager.latest_step()

  def restore(self, abstract_state):
    """The newest readable state and its meta, or None if nothing was ever saved.

    abstract_state: the state as shape structs with shardings; every one of its leaves must come from disk and every leaf on disk
    must be in it, or InputError lists the differences. Steps that fail their checksums are reported, remembered in `bad_steps`, and
    the one before is tried; CorruptCheckpoint is raised if none is left.
    """
    found = sorted(self.manager.all_steps(), reverse=True)
    for step in found:
      try:
        state = read_state(self.workdir, step, abstract_state)
        return state, read_meta(self.workdir, step)
      except CorruptCheckpoint as error:
        self.bad_steps.append(step)
        print(f"checkpoint: step {step} is damaged ({error}); trying the one before", file=sys.stderr)
    if found:
      raise CorruptCheckpoint(f"none of the {len(found)} checkpoints in {self.workdir / 'checkpoints'} can be read")
    return None

  def discard_bad_steps(self) -> None:
    """Moves the damaged steps out of the way (to `<step>.damaged`), so that training can write them again."""
    for step in self.bad_steps:
      folder = self.workdir / "checkpoints" / str(step)
      if jax.process_index() == 0 and folder.exists():
        folder.rename(folder.with_name(f"{step}.damaged"))
    self.manager.reload()


def read_state(workdir, step: int, abstract_state):
  """Reads one step into the structure, dtypes and shardings of `abstract_state` and checks every array against its checksum."""
  flat, treedef = jax.tree_util.tree_flatten_with_path(abstract_state)
  wanted = {path_of(p): leaf for p, leaf in flat}
  arrays = read_arrays(workdir, step, wanted)
  return jax.tree_util.tree_unflatten(treedef, [arrays[path_of(p)] for p, _ in flat])


def read_arrays(workdir, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool = False) -> dict[str, jax.Array]:
  """Reads the arrays `wanted` (path -> shape struct, sharding optional) of one step, checksums verified.

  partial: the step may hold more than is wanted. Raises InputError for leaves that are missing, extra or misshapen,
  CorruptCheckpoint if the bytes cannot be read or differ from what was written.
  """
  folder = pathlib.Path(workdir).absolute() / "checkpoints" / str(step) / "state"
  meta = read_meta(workdir, step)
  handler = ocp.PyTreeCheckpointHandler()
  try:
    on_disk = flatten(handler.metadata(epath.Path(folder)).tree)
  except (OSError, ValueError, KeyError) as error:
    raise CorruptCheckpoint(f"its index cannot be read: {error}") from error
  audit(wanted, on_disk, where=f"{workdir} step {step}", partial=partial)
  item = nest({p: x for p, x in wanted.items()})
  # Arrays are read as they were written, then checked, then cast: a checksum covers the written bits.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  as_written = {p: jax.ShapeDtypeStruct(x.shape, on_disk[p].dtype, sharding=x.sharding or here) for p, x in wanted.items()}
  restore_args = ocp.checkpoint_utils.construct_restore_args(nest(as_written))
  try:
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
    arrays = flatten(handler.restore(epath.Path(folder), args=args))
  except (OSError, ValueError, KeyError) as error:
    raise CorruptCheckpoint(f"its arrays cannot be read: {str(error).splitlines()[0]}") from error
  got = checksums(arrays)
  damaged = [p for p, value in got.items() if value != meta["checksums"][p]]
  if damaged:
    raise CorruptCheckpoint(f"{len(damaged)} arrays differ from what was written, first {damaged[0]}")
  return {p: x if x.dtype == wanted[p].dtype else x.astype(wanted[p].dtype) for p, x in arrays.items()}


def audit(wanted: Mapping[str, Any], on_disk: Mapping[str, Any], *, where: str, partial: bool = False) -> None:
  """Raises InputError listing every leaf that is missing, unexpected or of another shape."""
  problems = [f"missing on disk  {p}" for p in wanted if p not in on_disk]
  problems += [] if partial else [f"not in the model  {p}" for p in on_disk if p not in wanted]
  problems += [f"shape differs  {p}: {tuple(on_disk[p].shape)} on disk, {tuple(x.shape)} in the model"
               for p, x in wanted.items() if p in on_disk and tuple(on_disk[p].shape) != tuple(x.shape)]
  if problems:
    shown = "\n  ".join(problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else []))
    raise InputError(f"{where} does not fit: {len(problems)} differences\n  {shown}")


def stored_shapes(workdir, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape and dtype of every array of a step, without reading any."""
  step = resolve_step(workdir, step)
  folder = epath.Path(workdir).absolute() / "checkpoints" / str(step) / "state"
  tree = flatten(ocp.PyTreeCheckpointHandler().metadata(folder).tree)
  return {p: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype) for p, x in tree.items()}


def param_sources(stored: Iterable[str], which: str) -> dict[str, str]:
  """Model parameter path -> path in the checkpoint, for `which` = raw, ema (slowest decay) or ema:<decay>.

  Frozen parameters have no average and come from where they are. Raises InputError if the average asked for is not there.
  """
  stored = list(stored)
  kind, _, decay = which.partition(":")
  if kind not in ("raw", "ema"):
    raise InputError(f"which = {which!r} is not one of raw, ema, ema:<decay>")
  decays = sorted({p.split("/")[1] for p in stored if p.startswith("ema/")}, key=float)
  if decay and decay not in decays:
    raise InputError(f"the checkpoint has no average of decay {decay}; it has {', '.join(decays) or 'none'}")
  averaged = f"ema/{decay or decays[-1]}/" if kind == "ema" and decays else "params/"
  return {p.removeprefix(prefix): p for prefix in (averaged, "frozen/") for p in stored if p.startswith(prefix)}


def load_params(workdir, *, which: str = "ema", step: int | None = None) -> dict[str, np.ndarray]:
  """All model parameters of a checkpoint on the host: path -> array. `which`: raw, ema (slowest decay) or ema:<decay>."""
  step = resolve_step(workdir, step)
  stored = stored_shapes(workdir, step)
  sources = param_sources(stored, which)
  arrays = read_arrays(workdir, step, {p: stored[p] for p in sources.values()}, partial=True)
  return {path: np.asarray(arrays[source]) for path, source in sources.items()}


def initial_params(workdir, param_shapes: Mapping[str, jax.ShapeDtypeStruct], mesh, *, which: str):
  """Parameters to start a stage from, laid out on `mesh`, and a record of the parent for the lineage.

  Raises InputError listing every parameter that is missing, unexpected or of another shape.
  """
  step = resolve_step(workdir)
  stored = stored_shapes(workdir, step)
  sources = param_sources(stored, which)
  audit(param_shapes, {p: stored[source] for p, source in sources.items()}, where=f"init_from {workdir} step {step}")
  wanted = {sources[p]: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, rules.param_spec(p, tuple(x.shape), mesh)))
            for p, x in param_shapes.items()}
  arrays = read_arrays(workdir, step, wanted, partial=True)
  meta = read_meta(workdir, step)
  parent = {"path": str(workdir), "step": step, "which": which, "digest": digest(meta), "lineage": meta["lineage"]}
  return {p: arrays[source] for p, source in sources.items()}, parent


def digest(meta: Mapping[str, Any]) -> str:
  """A short name for the content of a checkpoint, from the checksums of its arrays."""
  return hashlib.sha256(json.dumps(meta["checksums"], sort_keys=True).encode()).hexdigest()[:16]


def restore_model(workdir, *, which: str = "ema", step: int | None = None):
  """The model of a checkpoint with its parameters, and the configuration it was trained with."""
  from sam3d_jax.models import registry
  from sam3d_jax.torch_bridge import keys

  config = ConfigDict(read_meta(workdir, step)["config"])
  module = registry.abstract_model(config.model)
  keys.load_params(module, load_params(workdir, which=which, step=step))
  return module, config


def write_params(workdir, params: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
  """Writes parameters alone as a checkpoint of step 0, from which any stage can start. Refuses a folder that has one."""
  if steps(workdir):
    raise InputError(f"{workdir} already holds checkpoints of steps {steps(workdir)}; give an empty folder")
  checkpointer = Checkpointer(workdir, keep=1)
  checkpointer.save(0, {"params": {p: jnp.asarray(a) for p, a in params.items()}}, meta)
  checkpointer.close()
