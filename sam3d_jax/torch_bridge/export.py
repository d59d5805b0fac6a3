"""From checkpoints to a release folder: what `launch.export_torch` does."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from sam3d_jax.errors import InputError
from sam3d_jax.models import lora as adapters
from sam3d_jax.torch_bridge import lora, parts, release_writer, stream
from sam3d_jax.torch_bridge.release_writer import Model, Storage
from sam3d_jax.training import checkpoint_params, checkpoint_steps


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint to export.

  which: raw, ema (slowest decay) or ema:<decay>. step: None for the newest. merge_lora: folds
  low-rank adapters into the kernels they adapt; without it they are refused.
  """

  workdir: str
  which: str = "ema"
  step: int | None = None
  merge_lora: bool = False


@dataclasses.dataclass(frozen=True)
class Export:
  """A release to write. vae, second, take_from: as in `release_writer.write_release`."""

  model: Source
  out: str
  vae: Source | None = None
  second: tuple[Source, ...] = ()
  take_from: str | None = None
  storage: Storage = Storage()


def export(spec: Export) -> dict[str, Any]:
  """Opens and checks, then writes; returns what release.json says."""
  model, vae, second = open_models(spec)
  return release_writer.write_release(
    spec.out,
    model,
    vae,
    second,
    take_from=spec.take_from,
    storage=spec.storage,
  )


def check(spec: Export) -> None:
  """Raises InputError for what `export` would refuse; writes nothing."""
  model, vae, second = open_models(spec)
  release_writer.check_release(
    spec.out,
    model,
    vae,
    second,
    take_from=spec.take_from,
    storage=spec.storage,
  )


def open_models(spec: Export) -> tuple[Model, Model | None, list[Model]]:
  """The model to release, the structure VAE if one is given, the models of the second stage.

  Raises InputError.
  """
  model = open_model(spec.model)
  vae = None
  if spec.vae is not None:
    vae = open_model(spec.vae, kind="structure_vae")
  second = []
  for source in spec.second:
    one = open_model(source)
    if parts.latents_of(one.config.model, parts.SLAT) is None:
      raise InputError(
        f"{source.workdir} holds a {one.config.model.name} model, which is none of the second stage"
      )
    second.append(one)

  # adapters that are to be merged are in one of them
  merged = [one for one in (model, *second) if one.lineage["merged_lora"]]
  if spec.model.merge_lora and not merged:
    raise InputError(f"--merge_lora: {spec.model.workdir} holds no low-rank factors")
  return model, vae, second


def open_model(source: Source, *, kind: str | None = None) -> Model:
  """A checkpoint as a model to release; arrays are read as they are written.

  Raises InputError if it holds another kind of model than asked for, one that has no published
  form (a kind that is not published, a flow model or structure VAE on patches), or adapters that
  are not to be merged.
  """
  # What the checkpoint says that it is.
  workdir = source.workdir
  read = functools.partial(checkpoint_steps.read_whole_meta, workdir)
  meta = checkpoint_steps.newest_readable(workdir, read, source.step)
  step = meta["step"]
  config = ConfigDict(meta["config"])
  if kind is not None and config.model.name != kind:
    raise InputError(f"{workdir} holds a {config.model.name} model, not a {kind} model")

  # Parameters in the order of the published files; a model without published form is refused here.
  stored = checkpoint_steps.stored_shapes(workdir, step)
  sources = checkpoint_params.param_sources(stored, source.which)
  try:
    ordered = in_file_order(config.model, sources)
  except InputError as error:
    raise InputError(f"{workdir}: {error}") from error
  params = stream.read_params(workdir, step, ordered)

  # Published files have no adapters: they are folded into what they adapt.
  factors = adapters.factor_paths(sources)
  if factors and not source.merge_lora:
    raise InputError(
      f"{workdir} holds {len(factors)} low-rank factors, which a release cannot hold: give "
      "--merge_lora"
    )
  if factors:
    params = lora.merge(params, params.shapes, adapters.scale_of(config))

  # Where it comes from; an autoencoder also has the name that its latents carry.
  digest = checkpoint_steps.digest(meta)
  parent = {
    "path": str(workdir),
    "step": step,
    "which": source.which,
    "digest": digest,
    "lineage": meta["lineage"],
  }
  return Model(
    config=config,
    params=params,
    shapes=params.shapes,
    lineage={"stage": "export", "parents": [parent], "merged_lora": bool(factors)},
    digest=digest,
    autoencoder=parts.latents_name(config.model, params),
  )


def in_file_order(model: ConfigDict, sources: Mapping[str, str]) -> dict[str, str]:
  """The paths as the published files hold them, each kernel followed by its low-rank factors.

  model: a `model` section. sources: path -> path in the checkpoint. Raises InputError if the model
  has no published form.
  """
  # Where each parameter stands in the files.
  rank: dict[str, int] = {}
  for rule in parts.rules_of(model):
    if rule.ours is not None:
      rank[rule.ours] = len(rank)

  def place(path: str) -> tuple[int, str]:
    """A factor stands beside its kernel; what no rule names comes last, and is refused later."""
    module, _, name = path.rpartition("/")
    if name.startswith("lora_"):
      path = f"{module}/kernel"
    return rank.get(path, len(rank)), name

  ordered = sorted(sources, key=place)
  return {path: sources[path] for path in ordered}
