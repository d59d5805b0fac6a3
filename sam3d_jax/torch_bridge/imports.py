"""From published weights to a checkpoint: what `launch.import_torch` does."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import pathlib
from typing import Any

from flax import nnx
import jax
from ml_collections import ConfigDict
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import locks
from sam3d_jax.models import parameters, registry
from sam3d_jax.models.parameters import LazyParams
from sam3d_jax.torch_bridge import (
  load,
  names_conditioning,
  parts,
  recognise,
  release,
  second_stage,
  slat_identity,
  stream,
)
from sam3d_jax.torch_bridge.release import Release
from sam3d_jax.training import checkpoint_steps


@dataclasses.dataclass(frozen=True)
class Import:
  """What to import.

  source: release folder or state dict file. part: which model of a folder, one of PARTS. encoder:
  file of the encoder of an autoencoder, which the published release lacks. config: the run's
  configuration; a folder can do without. unsafe_pickle: also reads files that run code on loading.
  """

  source: pathlib.Path
  workdir: str
  part: str = "geometry"
  encoder: str | None = None
  config: ConfigDict | None = None
  unsafe_pickle: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
  """What the source holds: the run's configuration, parameters read lazily, and the files.

  notes: what whoever imports it should know.
  """

  config: ConfigDict
  params: LazyParams
  files: list[pathlib.Path]
  notes: tuple[str, ...] = ()


# Makes the run's configuration from a release folder, the `model` section that its yamls say, and
# how that model is sampled, if it is.
MakeConfig = Callable[[Release, ConfigDict, Mapping[str, Any] | None], ConfigDict]
# models of a folder; the first one unless another is asked for
PARTS = ("geometry", "structure_vae", *second_stage.MODELS)


def import_weights(spec: Import, make_config: MakeConfig) -> Found:
  """Opens and checks, then writes the checkpoint; returns what was found, its parameters read again
  if asked for.

  Arrays are converted and written one at a time. Every missing, unexpected or misshapen entry is
  reported before anything is written.
  """
  found = open_source(spec, make_config)

  # Where it comes from, and which decoder it belongs to.
  lineage = {
    "stage": "import",
    "parents": [],
    "datasets": {},
    "source": str(spec.source),
    "files": {str(path): load.file_digest(path) for path in found.files},
  }
  lineage |= latents_beside(spec)

  meta = {"config": found.config.to_dict(), "lineage": lineage}
  with locks.hold(spec.workdir, "launch.import_torch"):
    stream.write_params(spec.workdir, found.params, meta)
  return found


def open_source(spec: Import, make_config: MakeConfig) -> Found:
  """What is to be imported; nothing is written. Raises InputError for a work folder that is taken,
  and for entries that do not fit, all of them.
  """
  if checkpoint_steps.steps(spec.workdir):
    raise InputError(f"--workdir {spec.workdir} already holds a checkpoint; give an empty folder")
  if not spec.source.exists():
    raise InputError(f"--from {spec.source}: there is no such file or folder")
  if spec.source.is_dir():
    return from_release(spec, make_config)
  return from_file(spec)


def count_values(params: LazyParams) -> int:
  """How many numbers the parameters are."""
  return sum(math.prod(shape) for shape in params.shapes.values())


def from_release(spec: Import, make_config: MakeConfig) -> Found:
  """One model of a release folder. Raises InputError if the folder does not have it."""
  folder = release.read_release(spec.source)
  unsafe = spec.unsafe_pickle

  # the autoencoder, from its two files
  if spec.part == "structure_vae":
    if folder.structure_vae is None:
      raise InputError(f"{spec.source} has no ss_decoder.yaml")
    model = ConfigDict(folder.structure_vae)
    config = chosen_config(spec.config, model, folder, make_config)
    params = release.open_structure_vae(
      folder, config.model, encoder=spec.encoder, unsafe_pickle=unsafe
    )
    encoder = pathlib.Path(spec.encoder or folder.files["ss_encoder"])
    return Found(config, params, [folder.files["ss_decoder"], encoder])

  # a model of the second stage
  if spec.part in second_stage.MODELS:
    return from_second_stage(spec, folder, make_config)

  # the flow model with its condition encoder, which belongs to the decoder beside it
  if "ss_decoder" in folder.files:
    folder.verified_file("ss_decoder")
  model = ConfigDict(release.geometry_of(folder))
  config = chosen_config(spec.config, model, folder, make_config, folder.sampler)
  params = release.open_geometry(folder, config.model, unsafe_pickle=unsafe)
  return Found(config, params, [folder.files["ss_generator"]])


def from_second_stage(spec: Import, folder: Release, make_config: MakeConfig) -> Found:
  """One model of the second stage. Raises InputError if the folder does not have it."""
  unsafe = spec.unsafe_pickle
  stage = second_stage.read(folder, spec.part, encoder=spec.encoder, unsafe_pickle=unsafe)
  model = ConfigDict(stage.model)
  config = chosen_config(spec.config, model, folder, make_config, stage.sampler)
  params = second_stage.open_params(folder, stage, config.model, unsafe_pickle=unsafe)

  # a flow model makes latents of the mean and spread that it was trained with
  notes = list(stage.notes)
  if spec.part == second_stage.TEXTURE:
    notes += second_stage.statistics_notes(folder, stage.model, config.model)
  files = list(stage.files.values())
  return Found(config, params, files, tuple(notes))


def chosen_config(
  given: ConfigDict | None,
  model: ConfigDict,
  folder: Release,
  make_config: MakeConfig,
  sampler: Mapping[str, Any] | None = None,
) -> ConfigDict:
  """The configuration to store.

  The given one, if its model has the release's sizes, or one made from the release's yamls. Raises
  ParameterMismatch, listing every difference, if the sizes differ.
  """
  if given is None:
    return make_config(folder, model, sampler)
  released = registry.parameter_shapes(model)
  configured = registry.parameter_shapes(given.model)
  try:
    parameters.check_shapes(configured, released)
  except parameters.ParameterMismatch as error:
    told = registry.told_differences(model, given.model, "the release", "--config")
    raise parameters.ParameterMismatch(f"{folder.folder}: {told}: {error}") from error
  return given


def from_file(spec: Import) -> Found:
  """The configured model from a single state dict file."""
  path, config = spec.source, spec.config
  unsafe = spec.unsafe_pickle
  if config is None:
    raise InputError(
      f"{path} is a single file: say with --config FILE which model it is{_told(path, unsafe)}"
    )

  # an autoencoder, whose other half is in a file of its own
  names = list(parts.files_of(config.model))
  if len(names) > 1:
    if spec.encoder is None:
      raise InputError(f"{path} is taken as the decoder: give the encoder with --encoder FILE")
    files = {}
    for name in names:
      is_encoder = name.endswith("_encoder")
      files[name] = pathlib.Path(spec.encoder) if is_encoder else path
    params = release.open_files(config.model, files, unsafe_pickle=unsafe)
    return Found(config, params, [path, pathlib.Path(spec.encoder)])

  # an original DINOv2 checkpoint, known by its names
  file = load.open_state(path, unsafe_pickle=unsafe)
  is_dinov2 = "cls_token" in file.shapes and "patch_embed.proj.weight" in file.shapes
  if is_dinov2:
    params = with_dinov2(config, file)
    return Found(config, params, [path])

  # a whole model
  params = release.open_file(path, config.model, unsafe_pickle=unsafe)
  return Found(config, params, [path])


def with_dinov2(config: ConfigDict, file: load.StateFile) -> LazyParams:
  """Parameters of the configured model with both image encoders from a DINOv2 state dict.

  Everything else is freshly initialised. Raises KeyMismatch if the file's encoder has other sizes.
  """
  shapes = registry.parameter_shapes(config.model)
  encoders = tuple(f"condition/{name}/" for name in names_conditioning.DINO_MODULES)

  # The two encoders are alike, so one set of converted parameters serves both.
  first = encoders[0]
  encoder_shapes = {}
  for path, shape in shapes.items():
    if path.startswith(first):
      encoder_shapes[path.removeprefix(first)] = shape
  dino = registry.typed_config(config.model).condition.dino
  rules = names_conditioning.dinov2_rules(dino)
  sizes = names_conditioning.dinov2_sizes(dino)
  encoder = load.convert(rules, file, encoder_shapes, sizes)

  # Everything else as a run from scratch would have it.
  @jax.jit  # so that the encoders' random parameters, which are not returned, are never made
  def fresh():
    model = registry.build_model(config.model, rngs=nnx.Rngs(config.seed))
    others = {}
    for path, array in parameters.flat_params(model).items():
      if not path.startswith(encoders):
        others[path] = array
    return others

  others = fresh()

  def make(path: str) -> np.ndarray:
    for prefix in encoders:
      if path.startswith(prefix):
        return encoder[path.removeprefix(prefix)]
    return np.asarray(others[path])

  return LazyParams(shapes, make)


def _told(path: pathlib.Path, unsafe_pickle: bool) -> str:
  """What a file holds, as the end of a sentence; '' for what is no published part."""
  held = recognise.holdings(load.open_state(path, unsafe_pickle=unsafe_pickle).shapes)
  return f"; it holds {recognise.told(held)}" if held else ""


def latents_beside(spec: Import) -> dict[str, Any]:
  """What the lineage says of whose latents an imported model makes or reads, by what lies beside
  it in a folder: `latents` of structure, `slat` of the second stage.
  """
  if not spec.source.is_dir():
    return {}
  folder = release.read_release(spec.source)

  # the second stage: one encoder for all of it
  if spec.part in second_stage.MODELS:
    identity = slat_identity.of_release(folder)
    name = identity.autoencoder
    if name is None and spec.encoder is None:
      name = second_stage.encoded_name(folder, unsafe_pickle=spec.unsafe_pickle)
    recorded = folder.sidecar.get(slat_identity.LINEAGE_KEY) or {}
    known = {**recorded, "autoencoder": name, "files": dict(identity.files)}
    return {slat_identity.LINEAGE_KEY: known}
  if spec.part != PARTS[0]:
    return {}

  # the first stage: what the release says itself, and which file its decoder is
  known = dict(folder.sidecar.get("latents") or {})
  if "ss_decoder" in folder.files:
    known["decoder_sha256"] = load.file_digest(folder.verified_file("ss_decoder"))
    recorded = folder.sidecar.get("decoder", {})
    known.setdefault("autoencoder", recorded.get("autoencoder"))
  return {"latents": known} if known else {}
