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
from sam3d_jax.models import parameters, registry
from sam3d_jax.models.parameters import LazyParams
from sam3d_jax.torch_bridge import load, names_conditioning, release, stream
from sam3d_jax.torch_bridge.release import Release
from sam3d_jax.training import checkpoint_steps


@dataclasses.dataclass(frozen=True)
class Import:
  """What to import.

  source: release folder or state dict file. part: which model of a folder, geometry or
  structure_vae. encoder: file of the structure encoder, which the published release lacks. config:
  the run's configuration; a folder can do without. unsafe_pickle: also reads files that run code on
  loading.
  """

  source: pathlib.Path
  workdir: str
  part: str = "geometry"
  encoder: str | None = None
  config: ConfigDict | None = None
  unsafe_pickle: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
  """What the source holds: the run's configuration, parameters read lazily, and the files."""

  config: ConfigDict
  params: LazyParams
  files: list[pathlib.Path]


# Makes the run's configuration from a release folder and the `model` section that its yamls say.
MakeConfig = Callable[[Release, ConfigDict], ConfigDict]


def import_weights(spec: Import, make_config: MakeConfig) -> LazyParams:
  """Opens and checks, then writes the checkpoint; returns the parameters, read again if asked for.

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
  latents = latents_beside(spec.source, found.params)
  if latents:
    lineage["latents"] = latents

  meta = {"config": found.config.to_dict(), "lineage": lineage}
  stream.write_params(spec.workdir, found.params, meta)
  return found.params


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

  # the flow model with its condition encoder, which belongs to the decoder beside it
  if "ss_decoder" in folder.files:
    folder.verified_file("ss_decoder")
  model = ConfigDict(folder.geometry)
  config = chosen_config(spec.config, model, folder, make_config)
  params = release.open_geometry(folder, config.model, unsafe_pickle=unsafe)
  return Found(config, params, [folder.files["ss_generator"]])


def chosen_config(
  given: ConfigDict | None, model: ConfigDict, folder: Release, make_config: MakeConfig
) -> ConfigDict:
  """The configuration to store.

  The given one, if its model has the release's sizes, or one made from the release's yamls. Raises
  ParameterMismatch, listing every difference, if the sizes differ.
  """
  if given is None:
    return make_config(folder, model)
  released = parameters.flat_shapes(registry.abstract_model(model))
  configured = parameters.flat_shapes(registry.abstract_model(given.model))
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
    raise InputError(f"{path} is a single file: say with --config FILE which model it is")

  # a structure VAE, whose other half is in a file of its own
  if config.model.name == "structure_vae":
    if spec.encoder is None:
      raise InputError(f"{path} is taken as the decoder: give the encoder with --encoder FILE")
    encoder = pathlib.Path(spec.encoder)
    params = release.open_autoencoder(path, encoder, config.model, unsafe_pickle=unsafe)
    return Found(config, params, [path, encoder])

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
  shapes = parameters.flat_shapes(registry.abstract_model(config.model))
  encoders = tuple(f"condition/{name}/" for name in names_conditioning.DINO_MODULES)

  # The two encoders are alike, so one set of converted parameters serves both.
  first = encoders[0]
  encoder_shapes = {}
  for path, shape in shapes.items():
    if path.startswith(first):
      encoder_shapes[path.removeprefix(first)] = shape
  dino = registry.typed_config(config.model).condition.dino
  rules = names_conditioning.dinov2_rules(dino)
  encoder = load.convert(rules, file, encoder_shapes)

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


def latents_beside(source: pathlib.Path, params: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
  """Which decoder an imported flow model belongs to: the one that lies beside it, if any."""
  is_flow_model = any(path.startswith("flow/") for path in params)
  if not source.is_dir() or not is_flow_model:
    return None

  # what the release says itself, and which file its decoder is
  folder = release.read_release(source)
  known = dict(folder.sidecar.get("latents") or {})
  if "ss_decoder" in folder.files:
    known["decoder_sha256"] = load.file_digest(folder.verified_file("ss_decoder"))
    recorded = folder.sidecar.get("decoder", {})
    known.setdefault("autoencoder", recorded.get("autoencoder"))
  return known or None
