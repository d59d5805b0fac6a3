"""What a checkpoint is on disk, and reading it: checked on the way in, on any mesh.

    workdir/checkpoints/<step>/state/   every array of the training state (Orbax, sharded)
    workdir/checkpoints/<step>/meta/    JSON: step, configuration, lineage, shape and checksum of
                                        every array, and a seal over it all

A checksum is computed on the devices from the array's bits and does not depend on how the array is
sharded, so writing one costs a pass over memory and a restore on another mesh can check it.
`checkpointer` writes and restores the state of a run.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import dataclasses
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
import tensorstore as ts

from sam3d_jax.errors import InputError
from sam3d_jax.models import lora, parameters, registry
from sam3d_jax.sharding import rules
from sam3d_jax.sharding.mesh import path_of
from sam3d_jax.training import best, checksums
from sam3d_jax.training.checksums import CorruptCheckpoint

STEP = re.compile("0|[1-9][0-9]*")  # the name of a step's folder
ARRAY_KEYS = ("/.zarray", "/zarr.json")  # how the key that describes an array ends
FORMAT = 2  # of meta; raised when a reader of the older format could misread
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


def folder_of(workdir, step: int) -> pathlib.Path:
  """Folder of one step, absolute."""
  # Absolute, as Orbax wants it.
  return pathlib.Path(workdir).absolute() / "checkpoints" / str(step)


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
) -> Any:
  """What `read(step)` gives for the first of the candidates that can be read: the one road past
  damaged steps, of training and of every command that reads a checkpoint.

  A step whose files are not what was written (`read` raises CorruptCheckpoint) is named on standard
  error and added to `bad_steps`. Raises CorruptCheckpoint if none is left.
  """
  tried = 0
  for step in candidates:
    tried += 1
    try:
      return read(step)
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


def newest_readable(workdir, read: Callable[[int], Any], step: int | None = None) -> Any:
  """What `read(step)` gives for the step that is asked for; without one, for the step that
  `resolve_step` names, or, if that is damaged, for the newest other one that can be read.

  Raises InputError if there is no such checkpoint, or none that reads back as it was written.
  """
  asked = resolve_step(workdir, step)
  try:
    if step is not None:
      return read(asked)
    newest_first = reversed(steps(workdir))
    others = [other for other in newest_first if other != asked]
    return first_readable(workdir, [asked, *others], read)
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
  not what was written, InputError if another release wrote it.
  """
  if step is None:
    return newest_readable(workdir, functools.partial(read_meta, workdir))
  resolve_step(workdir, step)
  file = folder_of(workdir, step) / "meta" / "metadata"
  try:
    meta = json.loads(file.read_text())
  except (OSError, ValueError, RecursionError) as error:
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
  folder = folder_of(workdir, step) / "state"
  try:
    keys = _check_files(folder)
  except READ_ERRORS as error:
    raise CorruptCheckpoint(_unreadable(error)) from error
  arrays = sum(key.endswith(ARRAY_KEYS) for key in keys)
  expected = len(meta["shapes"])
  if arrays < expected:
    raise CorruptCheckpoint(f"its index holds {arrays} of {expected} arrays")
  return meta


def _check_files(folder: pathlib.Path) -> set[str]:
  """The keys of an index of arrays (OCDBT); every part of a file that it names is there.

  Raises one of READ_ERRORS where it is not.
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


def read_state(workdir, step: int, abstract_state):
  """Reads one step into the structure, dtypes and shardings of `abstract_state`.

  Every array is checked against its checksum.
  """
  # In the order of the leaves, which the dictionary keeps.
  leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_state)
  wanted = {}
  for key_path, leaf in leaves:
    wanted[path_of(key_path)] = leaf
  arrays = read_arrays(workdir, step, wanted)
  in_order = [arrays[path] for path in wanted]
  return jax.tree_util.tree_unflatten(treedef, in_order)


def read_arrays(
  workdir, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool = False
) -> dict[str, jax.Array]:
  """Reads some arrays of one step, checksums verified.

  wanted: path -> shape struct, sharding optional. partial: the step may hold more than is wanted.
  Raises InputError for leaves that are missing, extra or misshapen, CorruptCheckpoint (in every
  process, if the arrays span several) if the bytes cannot be read or differ from what was written.
  """
  meta = read_meta(workdir, step)
  stored = shapes_of(meta)
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
  arrays = {}
  problem = ""
  try:
    arrays = _read(
      workdir,
      step,
      nest(wanted),
      restore_args,
      partial,
    )
  except READ_ERRORS as error:
    problem = _unreadable(error)

  # What one host cannot read, all give up: the next step is tried together.
  shardings = [leaf.sharding for leaf in wanted.values() if leaf.sharding is not None]
  spread = not all(sharding.is_fully_addressable for sharding in shardings)
  if spread:
    has_failed = np.array(bool(problem))
    failed = multihost_utils.process_allgather(has_failed)
    if failed.any():
      problem = problem or "another host cannot read its part"
  if problem:
    raise CorruptCheckpoint(problem)

  compare(checksums.on_device(arrays), meta)

  # Only now, when the bits are known to be right.
  for path, array in arrays.items():
    dtype = wanted[path].dtype
    if array.dtype != dtype:
      arrays[path] = array.astype(dtype)
  return arrays


def _unreadable(error: Exception) -> str:
  """What the storage layer says, in a line."""
  lines = str(error).splitlines()
  said = lines[0] if lines else type(error).__name__
  return f"its arrays cannot be read: {said}"


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
  folder = epath.Path(folder_of(workdir, step) / "state")
  args = ocp.args.PyTreeRestore(
    item=item,
    restore_args=restore_args,
    partial_restore=partial,
  )
  tree = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
  return flatten(tree)


def compare(sums: Mapping[str, str], meta: Mapping[str, Any]) -> None:
  """Raises CorruptCheckpoint naming what differs from the checksums in meta."""
  # Only what was read is compared: a reader may want a part.
  written = meta["checksums"]
  damaged = [path for path, value in sums.items() if value != written[path]]
  if damaged:
    raise CorruptCheckpoint(
      f"{len(damaged)} arrays differ from what was written, first {damaged[0]}"
    )


READ_BACK = 256 * 2**20  # bytes of arrays that `verify` holds at a time


def verify(workdir, step: int, stop: Callable[[], bool] = lambda: False) -> None:
  """Reads a whole step back, a few arrays at a time, and compares every checksum.

  Into host memory; no device is used. stop: asked between reads; True ends early. Raises
  CorruptCheckpoint.
  """
  # Group by group: a state may be larger than the host's free memory.
  meta = read_meta(workdir, step)
  for group in grouped(shapes_of(meta), READ_BACK):
    if stop():
      return
    # As NumPy arrays, so that no device memory is taken.
    in_memory = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in group}
    try:
      arrays = _read(
        workdir,
        step,
        nest(group),
        nest(in_memory),
        partial=True,
      )
    except READ_ERRORS as error:
      raise CorruptCheckpoint(_unreadable(error)) from error
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


def param_sources(stored: Iterable[str], which: str) -> dict[str, str]:
  """Model parameter path -> path in the checkpoint.

  which: raw, ema (slowest decay) or ema:<decay>. Frozen parameters have no average and come from
  where they are. Raises InputError if the average asked for is not there.
  """
  stored = list(stored)
  kind, _, decay = which.partition(":")
  if kind not in ("raw", "ema"):
    raise InputError(f"which = {which!r} is not one of raw, ema, ema:<decay>")

  # The averages that there are, the slowest last.
  averages = [path.split("/") for path in stored if path.startswith("ema/")]
  decays = sorted({parts[1] for parts in averages}, key=float)
  if decay and decay not in decays:
    there = ", ".join(decays) or "none"
    raise InputError(f"the checkpoint has no average of decay {decay}; it has {there}")

  # A run without averages gives its parameters for one.
  trained = "params/"
  if kind == "ema" and decays:
    chosen = decay or decays[-1]
    trained = f"ema/{chosen}/"

  sources = {}
  for prefix in (trained, "frozen/"):
    for path in stored:
      if path.startswith(prefix):
        sources[path.removeprefix(prefix)] = path
  return sources


def load_params(workdir, *, which: str = "ema", step: int | None = None) -> dict[str, np.ndarray]:
  """All model parameters of a checkpoint on the host: path -> array.

  which: raw, ema (slowest decay) or ema:<decay>. step: None for the newest that can be read.
  """
  read = functools.partial(_read_params, workdir, which)
  return newest_readable(workdir, read, step)


def _read_params(workdir, which: str, step: int) -> dict[str, np.ndarray]:
  """`load_params` of one step. Raises CorruptCheckpoint if it is damaged."""
  stored = stored_shapes(workdir, step)
  sources = param_sources(stored, which)
  # Of the state, only what holds parameters: no moments, no other average.
  wanted = {source: stored[source] for source in sources.values()}
  arrays = read_arrays(workdir, step, wanted, partial=True)
  # On the host, under the model's own paths.
  params = {}
  for path, source in sources.items():
    params[path] = np.asarray(arrays[source])
  return params


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a stage takes from the checkpoint that it starts from.

  stored: path in the checkpoint -> shape and dtype. sources: parameter -> path in the checkpoint.
  factors: of low-rank adapters among them. fits: parameters that are taken over. fresh, left_out:
  parameters that only the model, or only the checkpoint, has, or in another shape.
  """

  step: int
  meta: Mapping[str, Any]
  stored: Mapping[str, jax.ShapeDtypeStruct]
  sources: Mapping[str, str]
  factors: Collection[str]
  fits: Collection[str]
  fresh: list[str]
  left_out: list[str]


def origin(
  workdir,
  param_shapes: Mapping[str, jax.ShapeDtypeStruct],
  *,
  which: str,
  allow: str = "",
  model=None,
) -> Origin:
  """What a stage would take from the newest checkpoint that can be read; no array is read.

  Every parameter must come from the checkpoint and the other way round, but for those whose path
  `allow` (a regular expression, full match) names. model: `model` section of the stage, against
  which a misfit is explained. Raises InputError listing every other parameter that is missing,
  unexpected or of another shape.
  """
  _check_parent(workdir)

  def read(step: int) -> Origin:
    meta = read_whole_meta(workdir, step)
    return _origin_of(workdir, meta, param_shapes, which, allow, model)

  return newest_readable(workdir, read)


def _other_model(meta: Mapping[str, Any], model: ConfigDict | None) -> str:
  """The keys in which a checkpoint's model differs from a configured one, '' if there are none."""
  recorded = ConfigDict(meta["config"]).get("model")
  if model is None or not recorded or recorded.get("name") not in registry.MODELS:
    return ""
  return registry.told_differences(recorded, model, "the checkpoint", "the configuration")


def allowed(paths: list[str]) -> str:
  """How to start all the same, without the parameters of these paths."""
  # as few words as name no parameter beyond the modules that are concerned
  modules = sorted({"/".join(path.split("/")[:2]) for path in paths})
  pattern = "|".join(f"{re.escape(module)}(/.*)?" for module in modules)
  return (
    "\n  to draw these at random (or leave out what the model lacks): "
    f"--config.init_allow='{pattern}'"
  )


def _check_parent(workdir) -> None:
  """Raises InputError for a folder that no stage starts from: a release, or one without steps."""
  release = pathlib.Path(workdir) / "pipeline.yaml"
  if release.is_file():
    raise InputError(
      f"init_from {workdir} is a release folder; import it first: python -m launch.import_torch"
    )
  try:
    resolve_step(workdir)
  except InputError as error:
    raise InputError(f"init_from {error}") from error


def _origin_of(
  workdir,
  meta: Mapping[str, Any],
  param_shapes: Mapping[str, jax.ShapeDtypeStruct],
  which: str,
  allow: str,
  model: ConfigDict | None,
) -> Origin:
  """`origin` of one step."""
  # What the checkpoint has, by the model's paths.
  step = meta["step"]
  stored = shapes_of(meta)
  sources = param_sources(stored, which)

  # Whatever is not allowed to differ must fit, both ways.
  factors = lora.factor_paths(sources)
  on_disk = {path: stored[source] for path, source in sources.items() if path not in factors}
  fits = set()
  for path, leaf in on_disk.items():
    here = param_shapes.get(path)
    if here is None:
      continue
    same_shape = tuple(leaf.shape) == tuple(here.shape)
    if same_shape:
      fits.add(path)
  differing = {*on_disk, *param_shapes} - fits
  loose = {path for path in differing if re.fullmatch(allow, path)}
  audit(
    {path: leaf for path, leaf in param_shapes.items() if path not in loose},
    {path: leaf for path, leaf in on_disk.items() if path not in loose},
    where=f"init_from {workdir} step {step}",
    why=_other_model(meta, model),
    remedy=allowed,
  )
  return Origin(
    step=step,
    meta=meta,
    stored=stored,
    sources=sources,
    factors=factors,
    fits=fits,
    fresh=sorted(loose & set(param_shapes)),
    left_out=sorted(loose & set(on_disk)),
  )


def initial_params(
  workdir,
  param_shapes: Mapping[str, jax.ShapeDtypeStruct],
  mesh,
  *,
  which: str,
  allow: str = "",
  model=None,
):
  """Parameters to start a stage from, laid out on `mesh`, and the parent for the lineage.

  What comes from the checkpoint, and the errors, are `origin`'s: the record lists under `fresh`
  what the caller has to make, under `left_out` what the model has no use for. Low-rank adapters of
  the checkpoint are folded into their kernels.
  """
  _check_parent(workdir)

  def read(step: int):
    meta = read_meta(workdir, step)
    found = _origin_of(workdir, meta, param_shapes, which, allow, model)
    return _read_origin(workdir, found, param_shapes, mesh, which)

  return newest_readable(workdir, read)


def _read_origin(
  workdir, found: Origin, param_shapes: Mapping[str, jax.ShapeDtypeStruct], mesh, which: str
):
  """`initial_params` of one step. Raises CorruptCheckpoint if it is damaged."""
  step, meta, stored = found.step, found.meta, found.stored
  sources, factors = found.sources, found.factors

  # Read onto the mesh, the factors of adapters too.
  wanted = {path: leaf for path, leaf in param_shapes.items() if path in found.fits}
  wanted |= {path: stored[sources[path]] for path in factors}
  shardings, placed = {}, {}
  for path, leaf in wanted.items():
    spec = rules.param_spec(path, tuple(leaf.shape), mesh)
    sharding = NamedSharding(mesh, spec)
    shardings[path] = sharding
    placed[sources[path]] = jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=sharding,
    )
  arrays = read_arrays(workdir, step, placed, partial=True)
  params = {path: arrays[sources[path]] for path in wanted}

  # A stage starts from the adapted model; its own adapters, if any, start anew.
  if factors:
    scale = lora.scale_of(meta["config"])
    fold = functools.partial(lora.folded, scale=scale)
    folded = {path: sharding for path, sharding in shardings.items() if path not in factors}
    on_devices = jax.jit(fold, out_shardings=folded)
    params = on_devices(params)

  parent = {
    "path": str(workdir),
    "step": step,
    "which": which,
    "digest": digest(meta),
    "lineage": meta["lineage"],
    "fresh": found.fresh,
    "left_out": found.left_out,
  }
  return params, parent


def digest(meta: Mapping[str, Any]) -> str:
  """A short name for the content of a checkpoint, from the checksums of its arrays."""
  # Checksums stand for contents: equal parameters have equal names.
  text = json.dumps(meta["checksums"], sort_keys=True)
  whole = hashlib.sha256(text.encode()).hexdigest()
  return whole[:16]


def restore_model(workdir, *, which: str = "ema", step: int | None = None):
  """The model of a checkpoint with its parameters, and the configuration it was trained with.

  step: None for the newest that can be read.
  """
  read = functools.partial(read_model, workdir, which=which)
  module, meta = newest_readable(workdir, read, step)
  return module, ConfigDict(meta["config"])


def read_model(workdir, step: int, *, which: str):
  """The model of one step with its parameters, and the step's meta.

  Raises CorruptCheckpoint if it is damaged.
  """
  meta = read_meta(workdir, step)
  config = ConfigDict(meta["config"])
  module = registry.abstract_model(config.model)
  params = _read_params(workdir, which, step)
  # The configuration's model knows nothing of adapters.
  if lora.factor_paths(params):
    scale = lora.scale_of(config)
    params = lora.folded(params, scale)
  parameters.load_params(module, params)
  return module, meta
