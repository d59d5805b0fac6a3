"""Predictors from the weights on disk: work folders of this project, or a published release."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from sam3d_jax import sections
from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import InputError
from sam3d_jax.geometry.conditions import InputConfig
from sam3d_jax.inference.predictor import Predictor
from sam3d_jax.models import parameters, registry
from sam3d_jax.sampling import generate
from sam3d_jax.torch_bridge import release
from sam3d_jax.training import checkpoint_params, checkpoint_steps, compilation

SHORTCUT_STEPS = 4  # of a distilled model, where nothing else is asked for


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
  """Which weights, and how to sample from them.

  checkpoint: work folder of a Geometry model. decoder: work folder of the structure VAE of its
  data; None: as the checkpoint says. release: release folder with both, in place of the two. which:
  parameters of a checkpoint: raw, ema or ema:<decay>. steps, guidance: of the sampler; None: as
  recorded with the weights. shortcut: few-step sampling of a distilled model.
  """

  checkpoint: str | None = None
  decoder: str | None = None
  release: str | None = None
  which: str = "ema"
  steps: int | None = None
  guidance: float | None = None
  shortcut: bool = False


def check(config: WeightsConfig) -> None:
  """Raises InputError for weights that are not there or do not go together.

  The decoder is read, of the Geometry model only what stands beside its arrays.
  """
  if config.release is not None:
    found = open_release(config.release)
    for name in ("ss_generator", "ss_decoder"):
      found.verified_file(name)
    settings = found.sampler
  else:
    check_folders(config)

    def read(step: int):
      meta = checkpoint_steps.read_whole_meta(config.checkpoint, step)
      _decoder_of(config.checkpoint, meta, config.decoder, config.which)
      return meta

    meta = checkpoint_steps.newest_readable(config.checkpoint, read)
    checkpoint_params.param_sources(checkpoint_steps.shapes_of(meta), config.which)
    settings = meta["config"]["sampler"]
  sampler_config(
    settings,
    steps=config.steps,
    guidance=config.guidance,
    shortcut=config.shortcut,
  )


def check_folders(config: WeightsConfig) -> None:
  """Raises InputError, naming the flags of all of them, for work folders without a checkpoint."""
  wrong = []
  for flag, folder in (("--checkpoint", config.checkpoint), ("--decoder", config.decoder)):
    if folder is None:
      continue
    try:
      checkpoint_steps.resolve_step(folder)
    except InputError as error:
      wrong.append(f"{flag} {error}")
  if wrong:
    raise InputError("; ".join(wrong))


def load(config: WeightsConfig, tell: compilation.Tell = compilation.silent) -> Predictor:
  """The Predictor of some weights. tell: hears of its compilations. Raises InputError."""
  sampler = {
    "steps": config.steps,
    "guidance": config.guidance,
    "shortcut": config.shortcut,
  }
  if config.release is not None:
    predictor = from_release(config.release, **sampler)
  else:
    predictor = from_checkpoint(config.checkpoint, config.decoder, which=config.which, **sampler)
  return dataclasses.replace(predictor, tell=tell)


def from_checkpoint(
  folder: str,
  decoder: str | None = None,
  *,
  which: str = "ema",
  steps: int | None = None,
  guidance: float | None = None,
  shortcut: bool = False,
) -> Predictor:
  """A Predictor from the work folder of a Geometry model and that of its structure VAE.

  Arguments as in WeightsConfig. Raises InputError.
  """

  def read(step: int):
    # What the step says that it is comes before its parameters.
    meta = checkpoint_steps.read_whole_meta(folder, step)
    vae, vae_name, resolution = _decoder_of(folder, meta, decoder, which)
    model, _ = checkpoint_params.read_model(folder, step, which=which)
    return model, meta, vae, vae_name, resolution

  model, meta, vae, vae_name, resolution = checkpoint_steps.newest_readable(folder, read)
  config = ConfigDict(meta["config"])
  lineage = meta["lineage"]

  # An imported model has learned all latents.
  learned = lineage.get("learned") or LATENTS
  sampler = sampler_config(
    config.sampler.to_dict(),
    steps=steps,
    guidance=guidance,
    shortcut=shortcut,
  )
  return Predictor(
    model=model,
    decoder=vae.decoder,
    sampler=sampler,
    form=input_config(config.model),
    latent_shapes=latent_shapes(config.model),
    trained=tuple(learned),
    convention="ScaleShiftInvariant",
    resolution=resolution,
    identity={
      "checkpoint": checkpoint_steps.digest(meta),
      "step": meta["step"],
      "decoder": vae_name,
      "which": which,
    },
  )


def _decoder_of(
  folder: str, meta: Mapping[str, Any], decoder: str | None, which: str
) -> tuple[nnx.Module, str, int]:
  """(structure VAE, the name that its latents carry, resolution of its grids) for a Geometry model.

  folder, meta: the model's. decoder: work folder of the VAE; None: as the model says. Raises
  InputError.
  """
  # Both folders must hold what they are said to hold.
  config = ConfigDict(meta["config"])
  if config.model.name != "geometry":
    raise InputError(
      f"--checkpoint {folder} holds a model of kind {config.model.name!r}, a geometry model is "
      "needed"
    )
  lineage = meta["lineage"]
  decoder = decoder or decoder_folder(lineage)
  if not decoder:
    raise InputError(
      f"--checkpoint {folder} does not say where the structure VAE of its latents is; give it with "
      "--decoder DIR"
    )

  def read(step: int):
    vae_meta = checkpoint_steps.read_whole_meta(decoder, step)
    vae_model = ConfigDict(vae_meta["config"]).model
    if vae_model.name != "structure_vae":
      raise InputError(
        f"--decoder {decoder} holds a model of kind {vae_model.name!r}, a structure_vae is needed"
      )
    return checkpoint_params.read_model(decoder, step, which=which)

  vae, vae_meta = checkpoint_steps.newest_readable(decoder, read)
  vae_model = ConfigDict(vae_meta["config"]).model

  # The decoder must be that of the latents which the model was trained on.
  vae_params = parameters.flat_params(vae)
  vae_name = parameters.params_digest(vae_params)
  given = {
    "autoencoder": vae_name,
    "sha256": None,
    "from": str(decoder),
  }
  release.check_latents(release.latents_of(lineage), given)
  check_latent_shape(config.model, vae_model, decoder)
  return vae, vae_name, vae_model.resolution


def from_release(
  folder: str,
  *,
  steps: int | None = None,
  guidance: float | None = None,
  shortcut: bool = False,
) -> Predictor:
  """A Predictor from a release folder; arguments as in WeightsConfig. Raises InputError."""
  found = open_release(folder)
  model = ConfigDict(found.geometry)
  vae_model = ConfigDict(found.structure_vae)

  # The name of each part, for the record.
  parts = {}
  for name, entry in found.sidecar.get("parts", {}).items():
    parts[name] = entry["sha256"][:16]

  sampler = sampler_config(
    found.sampler,
    steps=steps,
    guidance=guidance,
    shortcut=shortcut,
  )
  return Predictor(
    model=release.restore_geometry(found, model),
    decoder=release.restore_decoder(found),
    sampler=sampler,
    form=input_config(model),
    latent_shapes=latent_shapes(model),
    trained=LATENTS,
    convention=found.pose_convention,
    resolution=vae_model.resolution,
    identity={"release": pathlib.Path(folder).name, "parts": parts},
  )


def open_release(folder: str) -> release.Release:
  """A release folder whose decoder takes its model's latents. Raises InputError."""
  # A release may come without a decoder; its shapes are then of no use here.
  found = release.read_release(folder)
  if found.structure_vae is None:
    raise InputError(f"--release {folder} has no ss_decoder.yaml: its shapes cannot be decoded")
  check_latent_shape(ConfigDict(found.geometry), ConfigDict(found.structure_vae), folder)
  return found


def input_config(model: ConfigDict) -> InputConfig:
  """The form of the inputs that a `model` section reads."""
  # A model without a point-map encoder leaves the defaults of the point maps.
  condition = registry.typed_config(model).condition
  pointmap = condition.pointmap
  form = InputConfig(
    image_size=condition.dino.input_size,
    streams=tuple(condition.streams),
  )
  if not pointmap:
    return form
  return dataclasses.replace(
    form,
    pointmap_size=pointmap.input_size,
    resize_twice=pointmap.resize_twice,
  )


def latent_shapes(model: ConfigDict) -> dict[str, tuple[int, int]]:
  """Latent name -> (tokens, channels) that a `model` section makes."""
  typed = registry.typed_config(model)
  return typed.flow.latent_shapes()


def sampler_config(
  settings: Mapping[str, Any],
  *,
  steps: int | None = None,
  guidance: float | None = None,
  shortcut: bool = False,
) -> generate.SamplerConfig:
  """The sampler recorded with the weights, with what is asked for in place of it."""
  # What is asked for by name comes after what the shortcut implies.
  settings = dict(settings)
  if shortcut:
    settings |= {"shortcut": True, "steps": SHORTCUT_STEPS, "pointmap_guidance": None}
  if steps is not None:
    settings["steps"] = steps
  if guidance is not None:
    settings["guidance"] = guidance
  return sections.typed(generate.SamplerConfig, settings, "sampler")


def decoder_folder(lineage: Mapping[str, Any]) -> str | None:
  """Folder of the structure VAE that encoded the training data.

  None if the lineage does not name it, or it is no longer there.
  """
  # The path is a hint: weights may have been moved since.
  latents = release.latents_of(lineage) or {}
  folder = latents.get("path")
  return folder if folder and checkpoint_steps.steps(folder) else None


def check_latent_shape(geometry: ConfigDict, vae: ConfigDict, where: str) -> None:
  """Raises InputError if the decoder does not take the latents that the model makes."""
  makes = geometry.flow.shape_resolution, geometry.flow.latent_channels
  takes = registry.typed_config(vae).latent_resolution, vae.latent_channels
  if makes != takes:
    raise InputError(
      f"{where}: the decoder takes latents of {takes[0]}^3 x {takes[1]}, "
      f"the model makes {makes[0]}^3 x {makes[1]}"
    )
