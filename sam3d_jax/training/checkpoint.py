"""Checkpoints: written whole or not at all, checked on the way in, readable on any mesh.

    workdir/checkpoints/<step>/state/   every array of the training state (Orbax, sharded, asynchronous)
    workdir/checkpoints/<step>/meta/    JSON: step, configuration, lineage, shape and checksum of every array, and a seal over it all

A checksum is computed on the devices from the array's bits and does not depend on how the array is
sharded, so writing one costs a pass over memory and a restore on another mesh can check it. A step
that fails the check is named and the one before it is used.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import hashlib
import json
import pathlib
import re
import sys
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.models import lora, parameters, registry
from sam3d_jax.sharding import rules
from sam3d_jax.sharding.mesh import path_of
from sam3d_jax.training import checksums, retention
from sam3d_jax.training.checksums import CorruptCheckpoint

FORMAT = 2  # of meta; raised when a reader of the older format could misread


class NonFiniteState(JobFailed):
  """The state holds a NaN or an infinity; such a state is never written."""


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


def folder_of(workdir, step: int) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / "checkpoints" / str(step)


def steps(workdir: str | pathlib.Path) -> list[int]:
  """Steps with a committed checkpoint, ascending. (One that is being written, or is damaged, has
  another name.)
  """
  folder = pathlib.Path(workdir) / "checkpoints"
  return (
    sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
  )


def resolve_step(workdir, step: int | None = None) -> int:
  """`step`, or the newest one. Raises InputError if there is no such checkpoint."""
  found = steps(workdir)
  if not found:
    raise InputError(
      f"{workdir} holds no checkpoint (looked for {pathlib.Path(workdir) / 'checkpoints'}/<step>)"
    )
  if step is None:
    return found[-1]
  if step not in found:
    raise InputError(
      f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
    )
  return step


def make_meta(
  meta: Mapping[str, Any], step: int, arrays: Mapping[str, Any], sums: Mapping[str, str]
) -> dict[str, Any]:
  """What is written beside the arrays: `meta` with what a reader needs to check them, sealed."""
  shapes = {path: [str(jnp.dtype(x.dtype)), *x.shape] for path, x in arrays.items()}
  meta = {**meta, "format": FORMAT, "step": step, "shapes": shapes, "checksums": dict(sums)}
  return {**meta, "seal": seal(meta)}


def seal(meta: Mapping[str, Any]) -> str:
  """SHA-256 of everything in meta but the seal."""
  # as it reads back: tuples are lists
  plain = json.loads(json.dumps({k: v for k, v in meta.items() if k != "seal"}))
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_meta(workdir, step: int | None = None) -> dict[str, Any]:
  """What was written beside the arrays: step, config, lineage, shapes, checksums. Touches no
  device.

  Raises CorruptCheckpoint if it is not what was written, InputError if another release wrote it.
  """
  step = resolve_step(workdir, step)
  file = folder_of(workdir, step) / "meta" / "metadata"
  try:
    meta = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise CorruptCheckpoint(f"{file} cannot be read: {error}") from error
  if isinstance(meta, dict) and "seal" not in meta and meta.get("format") == 1:
    raise InputError(f"{workdir} step {step} has checkpoint format 1, this release reads {FORMAT}")
  if not isinstance(meta, dict) or meta.get("seal") != seal(meta) or meta["step"] != step:
    raise CorruptCheckpoint(f"{file} differs from what was written")
  if meta["format"] != FORMAT:
    raise InputError(
      f"{workdir} step {step} has checkpoint format {meta['format']}, this release reads {FORMAT}"
    )
  return meta


class Checkpointer:
  """Writes and restores the training state of one work folder; every process of the job has one and
  calls it alike.
  """

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 3):
    self.workdir = pathlib.Path(workdir).absolute()
    self.bad_steps: list[int] = []  # steps found unreadable by `restore`
    # agreed by all processes, unlike a look at a network disk
    self.present = set(steps(self.workdir))
    self.keeper = (
      retention.Keeper(self.workdir, keep, verify=verify) if jax.process_index() == 0 else None
    )
    self.writing: int | None = None
    self.restored: dict[str, Any] | None = None  # meta of the step that `restore` gave
    options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=True, create=True, cleanup_tmp_directories=True
    )
    self.manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)

  def prepare(self, state) -> None:
    """Compiles what a save computes on the devices (after a restore it is compiled), so that the
    first one does not hold training up.
    """
    if self.restored is None:
      checksums.inspect(flatten(state))

  def save(self, step: int, state, meta: Mapping[str, Any]) -> bool:
    """Starts writing `state` as of `step` and returns; False if that step is there already.

    Returns when the arrays are copied to the host (and the save before is committed); the disk is written in the background.
    Raises NonFiniteState naming the leaves if any is not finite: such a state is never written.
    """
    if step in self.present:
      return False
    flat = flatten(state)
    sums, bad = checksums.inspect(flat)
    if bad:
      raise NonFiniteState(
        f"step {step} is not saved: {len(bad)} arrays are not finite, first {bad[0]}"
      )
    self.wait()
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(nest(flat)),
      meta=ocp.args.JsonSave(make_meta(meta, step, flat, sums)),
    )
    with writing(self.workdir):
      self.manager.save(step, args=args)
    self.writing = step
    self.present.add(step)
    return True

  def wait(self) -> None:
    """Returns when everything started is committed; what was committed is then read back in the
    background.
    """
    with writing(self.workdir):
      self.manager.wait_until_finished()
    if self.writing is not None and self.keeper is not None:
      self.keeper.committed(self.writing)
    self.writing = None

  def read_back(self) -> None:
    """Waits until the newest step was read back. Raises JobFailed if it did not survive being
    written.
    """
    if self.keeper is not None:
      self.keeper.wait()
      if self.latest() in self.keeper.damaged:
        raise JobFailed(
          f"step {self.latest()} did not read back as it was written; "
          f"{self.workdir / 'checkpoints'} is on a bad disk"
        )

  def close(self) -> None:
    """Commits what was started and ends all threads."""
    self.wait()
    self.manager.close()
    if self.keeper is not None:
      self.keeper.close()

  def latest(self) -> int | None:
    """The newest committed step, or None."""
    return max(self.present, default=None)

  def restore(self, abstract_state):
    """The newest readable state and its meta, or None if nothing was ever saved.

    abstract_state: the state as shape structs with shardings; every one of its leaves must come
    from disk and every leaf on disk
    must be in it, or InputError lists the differences. Steps that fail their checksums are reported, remembered in `bad_steps`, and
    the one before is tried; CorruptCheckpoint is raised if none is left.
    """
    for step in sorted(self.present, reverse=True):
      try:
        state, meta = read_state(self.workdir, step, abstract_state), read_meta(self.workdir, step)
        if self.keeper is not None:
          self.keeper.good = step
        self.restored = meta
        return state, meta
      except CorruptCheckpoint as error:
        self.bad_steps.append(step)
        print(
          f"checkpoint: step {step} is damaged ({error}); trying the one before", file=sys.stderr
        )
    if self.present:
      raise CorruptCheckpoint(
        f"none of the {len(self.present)} checkpoints in {self.workdir / 'checkpoints'} can be read"
      )
    return None

  def discard_bad_steps(self) -> None:
    """Moves the damaged steps out of the way (to `<step>.damaged`), so that training can write them
    again.
    """
    for step in self.bad_steps:
      if jax.process_index() == 0:
        retention.set_aside(folder_of(self.workdir, step))
      self.present.discard(step)
    if self.bad_steps and jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged steps are out of the way")
    self.manager.reload()


class writing:
  """Turns what the storage layer raises while writing into a JobFailed that names the folder."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if isinstance(error, (OSError, ValueError, RuntimeError)) and not isinstance(error, JobFailed):
      raise JobFailed(
        f"a checkpoint could not be written to {self.workdir / 'checkpoints'}: "
        f"{str(error).splitlines()[0]} "
        "(is the disk full or gone? the checkpoints before it are untouched)"
      ) from error
    return False


def read_state(workdir, step: int, abstract_state):
  """Reads one step into the structure, dtypes and shardings of `abstract_state` and checks every
  array against its checksum.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(abstract_state)
  wanted = {path_of(p): leaf for p, leaf in flat}
  arrays = read_arrays(workdir, step, wanted)
  return jax.tree_util.tree_unflatten(treedef, [arrays[path_of(p)] for p, _ in flat])


def read_arrays(
  workdir, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool = False
) -> dict[str, jax.Array]:
  """Reads the arrays `wanted` (path -> shape struct, sharding optional) of one step, checksums
  verified.

  partial: the step may hold more than is wanted. Raises InputError for leaves that are missing,
  extra or misshapen, CorruptCheckpoint (in every process, if the arrays span several) if the bytes
  cannot be read or differ from what was written.
  """
  meta = read_meta(workdir, step)
  stored = shapes_of(meta)
  audit(wanted, stored, where=f"{workdir} step {step}", partial=partial)
  # Arrays are read as they were written, then checked, then cast: a checksum covers the written
  # bits.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  as_written = {
    p: jax.ShapeDtypeStruct(x.shape, stored[p].dtype, sharding=x.sharding or here)
    for p, x in wanted.items()
  }
  restore_args = ocp.checkpoint_utils.construct_restore_args(nest(as_written))
  arrays, problem = {}, ""
  try:
    arrays = _read(workdir, step, nest(wanted), restore_args, partial)
  except READ_ERRORS as error:
    problem = f"its arrays cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
  spread = any(
    x.sharding is not None and not x.sharding.is_fully_addressable for x in wanted.values()
  )
  if spread and multihost_utils.process_allgather(np.array(bool(problem))).any():
    problem = problem or "another host cannot read its part"
  if problem:
    raise CorruptCheckpoint(problem)
  compare(checksums.on_device(arrays), meta)
  return {
    p: x if x.dtype == wanted[p].dtype else x.astype(wanted[p].dtype) for p, x in arrays.items()
  }


# What the storage layer has been seen to raise over damaged files.
READ_ERRORS = (
  OSError,
  ValueError,
  KeyError,
  RuntimeError,
  TypeError,
  AttributeError,
  AssertionError,
)


def _read(workdir, step: int, item, restore_args, partial: bool) -> dict[str, Any]:
  """path -> array, as the storage layer gives it."""
  args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
  return flatten(
    ocp.PyTreeCheckpointHandler().restore(epath.Path(folder_of(workdir, step) / "state"), args=args)
  )


def compare(sums: Mapping[str, str], meta: Mapping[str, Any]) -> None:
  """Raises CorruptCheckpoint naming what differs from the checksums in meta."""
  damaged = [p for p, value in sums.items() if value != meta["checksums"][p]]
  if damaged:
    raise CorruptCheckpoint(
      f"{len(damaged)} arrays differ from what was written, first {damaged[0]}"
    )


READ_BACK = 256 * 2**20  # bytes of arrays that `verify` holds at a time


def verify(workdir, step: int, stop: Callable[[], bool] = lambda: False) -> None:
  """Reads a whole step back into host memory, a few arrays at a time, and compares every checksum.
  Uses no device.

  stop: asked between reads; True ends early. Raises CorruptCheckpoint.
  """
  meta = read_meta(workdir, step)
  for group in grouped(shapes_of(meta), READ_BACK):
    if stop():
      return
    restore_args = nest({p: ocp.RestoreArgs(restore_type=np.ndarray) for p in group})
    try:
      arrays = _read(workdir, step, nest(group), restore_args, partial=True)
    except READ_ERRORS as error:
      raise CorruptCheckpoint(
        f"its arrays cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
      ) from error
    compare({p: checksums.on_host(a) for p, a in arrays.items()}, meta)


def grouped(arrays: Mapping[str, jax.ShapeDtypeStruct], limit: int):
  """The arrays in groups of at most `limit` bytes (or one that is larger)."""
  group, size = {}, 0
  for path, x in arrays.items():
    n = x.size * x.dtype.itemsize
    if group and size + n > limit:
      yield group
      group, size = {}, 0
    group[path] = x
    size += n
  if group:
    yield group


def shapes_of(meta: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape and dtype of every array that a checkpoint holds."""
  return {
    p: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    for p, (dtype, *shape) in meta["shapes"].items()
  }


def stored_shapes(workdir, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape and dtype of every array of a step, without reading any."""
  return shapes_of(read_meta(workdir, step))


def audit(
  wanted: Mapping[str, Any], on_disk: Mapping[str, Any], *, where: str, partial: bool = False
) -> None:
  """Raises InputError listing every leaf that is missing, unexpected or of another shape."""
  problems = [f"missing on disk  {p}" for p in wanted if p not in on_disk]
  problems += [] if partial else [f"not in the model  {p}" for p in on_disk if p not in wanted]
  problems += [
    f"shape differs  {p}: {tuple(on_disk[p].shape)} on disk, {tuple(x.shape)} in the model"
    for p, x in wanted.items()
    if p in on_disk and tuple(on_disk[p].shape) != tuple(x.shape)
  ]
  if problems:
    shown = "\n  ".join(
      problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
    )
    raise InputError(f"{where} does not fit: {len(problems)} differences\n  {shown}")


def param_sources(stored: Iterable[str], which: str) -> dict[str, str]:
  """Model parameter path -> path in the checkpoint, for `which` = raw, ema (slowest decay) or
  ema:<decay>.

  Frozen parameters have no average and come from where they are. Raises InputError if the average
  asked for is not there.
  """
  stored = list(stored)
  kind, _, decay = which.partition(":")
  if kind not in ("raw", "ema"):
    raise InputError(f"which = {which!r} is not one of raw, ema, ema:<decay>")
  decays = sorted({p.split("/")[1] for p in stored if p.startswith("ema/")}, key=float)
  if decay and decay not in decays:
    raise InputError(
      f"the checkpoint has no average of decay {decay}; it has {', '.join(decays) or 'none'}"
    )
  averaged = f"ema/{decay or decays[-1]}/" if kind == "ema" and decays else "params/"
  return {
    p.removeprefix(prefix): p
    for prefix in (averaged, "frozen/")
    for p in stored
    if p.startswith(prefix)
  }


def load_params(workdir, *, which: str = "ema", step: int | None = None) -> dict[str, np.ndarray]:
  """All model parameters of a checkpoint on the host: path -> array. `which`: raw, ema (slowest
  decay) or ema:<decay>.
  """
  step = resolve_step(workdir, step)
  stored = stored_shapes(workdir, step)
  sources = param_sources(stored, which)
  arrays = read_arrays(workdir, step, {p: stored[p] for p in sources.values()}, partial=True)
  return {path: np.asarray(arrays[source]) for path, source in sources.items()}


def initial_params(
  workdir, param_shapes: Mapping[str, jax.ShapeDtypeStruct], mesh, *, which: str, allow: str = ""
):
  """Parameters to start a stage from, laid out on `mesh`, and a record of the parent for the
  lineage.

  Every parameter must come from the checkpoint and the other way round. Those whose path `allow` (a
  regular expression, full match) names may differ: the record lists under `fresh` what the caller
  has to make, under `left_out` what the model has no use for. Low-rank adapters of the checkpoint
  are folded into their kernels. Raises InputError listing every other parameter that is missing,
  unexpected or of another shape.
  """
  if (pathlib.Path(workdir) / "pipeline.yaml").is_file():
    raise InputError(
      f"init_from {workdir} is a release folder; import it first: python -m launch.import_torch"
    )
  step = resolve_step(workdir)
  stored = stored_shapes(workdir, step)
  sources = param_sources(stored, which)
  factors = lora.factor_paths(sources)
  on_disk = {p: stored[source] for p, source in sources.items() if p not in factors}
  fits = {
    p
    for p in on_disk
    if p in param_shapes and tuple(on_disk[p].shape) == tuple(param_shapes[p].shape)
  }
  loose = {p for p in {*on_disk, *param_shapes} - fits if re.fullmatch(allow, p)}
  strict = lambda shapes: {p: x for p, x in shapes.items() if p not in loose}
  audit(strict(param_shapes), strict(on_disk), where=f"init_from {workdir} step {step}")
  wanted = {p: param_shapes[p] for p in param_shapes if p in fits} | {
    p: stored[sources[p]] for p in factors
  }
  shardings = {
    p: NamedSharding(mesh, rules.param_spec(p, tuple(x.shape), mesh)) for p, x in wanted.items()
  }
  arrays = read_arrays(
    workdir,
    step,
    {
      sources[p]: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[p])
      for p, x in wanted.items()
    },
    partial=True,
  )
  params, meta = {p: arrays[sources[p]] for p in wanted}, read_meta(workdir, step)
  if factors:
    fold = functools.partial(lora.folded, scale=lora.scale_of(meta["config"]))
    params = jax.jit(fold, out_shardings={p: shardings[p] for p in wanted if p not in factors})(
      params
    )
  parent = {
    "path": str(workdir),
    "step": step,
    "which": which,
    "digest": digest(meta),
    "lineage": meta["lineage"],
    "fresh": sorted(loose & set(param_shapes)),
    "left_out": sorted(loose & set(on_disk)),
  }
  return params, parent


def digest(meta: Mapping[str, Any]) -> str:
  """A short name for the content of a checkpoint, from the checksums of its arrays."""
  return hashlib.sha256(json.dumps(meta["checksums"], sort_keys=True).encode()).hexdigest()[:16]


def restore_model(workdir, *, which: str = "ema", step: int | None = None):
  """The model of a checkpoint with its parameters, and the configuration it was trained with."""
  config = ConfigDict(read_meta(workdir, step)["config"])
  module = registry.abstract_model(config.model)
  params = load_params(workdir, which=which, step=step)
  if lora.factor_paths(params):
    params = lora.folded(params, lora.scale_of(config))
  parameters.load_params(module, params)
  return module, config


def write_params(workdir, params: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
  """Writes parameters alone as a checkpoint of step 0, from which any stage can start. Refuses a
  folder that has one.
  """
  if steps(workdir):
    raise InputError(
      f"{workdir} already holds checkpoints of steps {steps(workdir)}; give an empty folder"
    )
  checkpointer = Checkpointer(workdir, keep=1)
  checkpointer.save(0, {"params": {p: jnp.asarray(a) for p, a in params.items()}}, meta)
  checkpointer.close()
