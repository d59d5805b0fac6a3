"""From checkpoints to a release folder: what `launch.export_torch` does."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from sam3d_jax.errors import InputError
from sam3d_jax.models import lora as adapters
from sam3d_jax.models import parameters
from sam3d_jax.torch_bridge import lora, parts, release_writer, stream
from sam3d_jax.torch_bridge.release_writer import Model, Storage
from sam3d_jax.training import checkpoint


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
  """A release to write. vae, take_from: as in `release_writer.write_release`."""

  model: Source
  out: str
  vae: Source | None = None
  take_from: str | None = None
  storage: Storage = Storage()


def export(spec: Export) -> dict[str, Any]:
  """Opens and checks, then writes; returns what release.json says."""
  model = open_model(spec.model)
  vae = None
  if spec.vae is not None:
    vae = open_model(spec.vae, kind="structure_vae")
  return release_writer.write_release(
    spec.out, model, vae, take_from=spec.take_from, storage=spec.storage
  )


def open_model(source: Source, *, kind: str | None = None) -> Model:
  """A checkpoint as a model to release; arrays are read as they are written.

  Raises InputError if it holds another kind of model than asked for, a kind that has no published
  form, or adapters that are not to be merged.
  """
  workdir, step = source.workdir, checkpoint.resolve_step(source.workdir, source.step)
  meta = checkpoint.read_meta(workdir, step)
  config = ConfigDict(meta["config"])
  if kind is not None and config.model.name != kind:
    raise InputError(f"{workdir} holds a {config.model.name} model, not a {kind} model")
  sources = checkpoint.param_sources(checkpoint.stored_shapes(workdir, step), source.which)
  params = stream.read_params(workdir, step, in_file_order(config.model, sources))

  factors = adapters.factor_paths(sources)
  if factors and not source.merge_lora:
    raise InputError(
      f"{workdir} holds {len(factors)} low-rank factors, which a release cannot hold: give "
      "--merge_lora"
    )
  if source.merge_lora and not factors:
    raise InputError(f"--merge_lora: {workdir} holds no low-rank factors")
  if factors:
    params = lora.merge(params, params.shapes, adapters.scale_of(config))

  parent = {
    "path": str(workdir),
    "step": step,
    "which": source.which,
    "digest": checkpoint.digest(meta),
    "lineage": meta["lineage"],
  }
  makes_latents = config.model.name == "structure_vae"
  return Model(
    config=config,
    params=params,
    shapes=params.shapes,
    lineage={"stage": "export", "parents": [parent], "merged_lora": bool(factors)},
    digest=parent["digest"],
    autoencoder=parameters.params_digest(params) if makes_latents else None,
  )


def in_file_order(model: ConfigDict, sources: Mapping[str, str]) -> dict[str, str]:
  """The paths as the published files hold them, each kernel followed by its low-rank factors."""
  ours = [rule.ours for rule in parts.rules_of(model) if rule.ours is not None]
  rank = {path: i for i, path in enumerate(ours)}

  def place(path: str) -> tuple[int, str]:
    module, _, name = path.rpartition("/")
    beside = f"{module}/kernel" if name.startswith("lora_") else path
    return rank.get(beside, len(rank)), name

  return {path: sources[path] for path in sorted(sources, key=place)}
