"""A model's parameters from a checkpoint: all of them, those that a stage starts from, the model.

`checkpoint_arrays` reads them, `checkpoint_steps` says what lies where.
"""

from collections.abc import Collection, Iterable, Mapping
import dataclasses
import functools
import pathlib
import re
from typing import Any

import jax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.models import lora, parameters, registry
from sam3d_jax.sharding import rules
from sam3d_jax.training import checkpoint_arrays, checkpoint_steps


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
  return checkpoint_steps.newest_readable(workdir, read, step)


def _read_params(workdir, which: str, step: int) -> dict[str, np.ndarray]:
  """`load_params` of one step. Raises CorruptCheckpoint if it is damaged."""
  stored = checkpoint_steps.stored_shapes(workdir, step)
  sources = param_sources(stored, which)
  # Of the state, only what holds parameters: no moments, no other average.
  wanted = {source: stored[source] for source in sources.values()}
  arrays = checkpoint_arrays.read_arrays(workdir, step, wanted, partial=True)
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
    meta = checkpoint_steps.read_whole_meta(workdir, step)
    return _origin_of(workdir, meta, param_shapes, which, allow, model)

  return checkpoint_steps.newest_readable(workdir, read)


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
    checkpoint_steps.resolve_step(workdir)
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
  stored = checkpoint_steps.shapes_of(meta)
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
  checkpoint_arrays.audit(
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
  the checkpoint are folded into their kernels. Every process of the job calls it.
  """
  _check_parent(workdir)

  def read(step: int):
    meta = checkpoint_steps.read_meta(workdir, step)
    found = _origin_of(workdir, meta, param_shapes, which, allow, model)
    return _read_origin(workdir, found, param_shapes, mesh, which)

  return checkpoint_steps.newest_readable(workdir, read, together=True)


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
  arrays = checkpoint_arrays.read_arrays(workdir, step, placed, partial=True)
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
    "digest": checkpoint_steps.digest(meta),
    "lineage": meta["lineage"],
    "fresh": found.fresh,
    "left_out": found.left_out,
  }
  return params, parent


def restore_model(workdir, *, which: str = "ema", step: int | None = None, together: bool = False):
  """The model of a checkpoint with its parameters, and the configuration it was trained with.

  step: None for the newest that can be read. together: every process of the job calls it, and all
  read the same step.
  """
  read = functools.partial(read_model, workdir, which=which)
  module, meta = checkpoint_steps.newest_readable(workdir, read, step, together=together)
  return module, ConfigDict(meta["config"])


def read_model(workdir, step: int, *, which: str):
  """The model of one step with its parameters, and the step's meta.

  Raises CorruptCheckpoint if it is damaged.
  """
  meta = checkpoint_steps.read_meta(workdir, step)
  config = ConfigDict(meta["config"])
  module = registry.abstract_model(config.model)
  params = _read_params(workdir, which, step)
  # The configuration's model knows nothing of adapters.
  if lora.factor_paths(params):
    scale = lora.scale_of(config)
    params = lora.folded(params, scale)
  parameters.load_params(module, params)
  return module, meta
