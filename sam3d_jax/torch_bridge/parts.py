"""How our models are published: one table from a model's name to parts, yamls and pipeline.

A published module is a part; parts lie in checkpoint files, each with a yaml beside it. What is
published of a further model is one more entry of `PUBLISHED`; what the published pipeline is made
of, trained here or taken over, is `FILES`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from sam3d_jax.errors import InputError
from sam3d_jax.models import registry
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.torch_bridge import (
  keys,
  names_conditioning,
  names_geometry,
  yaml_geometry,
  yaml_pipeline,
  yaml_structure,
)

GENERATOR_PREFIX = "_base_models.generator."
CONDITION_PREFIX = "_base_models.condition_embedder."
# root key of a generator's checkpoint; decoders and encoders are bare state dicts
STATE_DICT = "state_dict"


@dataclasses.dataclass(frozen=True)
class Part:
  """One published module.

  file: without suffix, the checkpoint file that holds it. root: key of the file's outer dict that
  it lies under, None for a bare state dict. rules: with all prefixes.
  """

  name: str
  file: str
  root: str | None
  rules: list[keys.Rule]


@dataclasses.dataclass(frozen=True)
class Published:
  """How one of our models is published; every function takes the model's typed configuration.

  parts: the modules that it becomes. yamls: file without suffix -> what describes it, given also
  `sampler` (settings, a mapping) and `half` (whether blocks are held in fp16). latents: resolution
  and channels of the structure latents that it makes or reads, if any. pipeline: makes
  pipeline.yaml, for the model that a pipeline starts with. obstacles: why the published classes
  could not load it.
  """

  parts: Callable[[Any], list[Part]]
  yamls: Mapping[str, Callable[..., dict]] = dataclasses.field(default_factory=dict)
  latents: Callable[[Any], tuple[int, int]] | None = None
  pipeline: Callable[..., dict] | None = None
  obstacles: Callable[[Any], list[str]] | None = None


@dataclasses.dataclass(frozen=True)
class PipelineFile:
  """A checkpoint file that the published pipeline reads. required: it does not start without."""

  name: str  # without suffix
  required: bool = True


# Of the first stage made here, of the second taken over from another release, in this order.
FILES = (
  PipelineFile("ss_generator"),
  PipelineFile("ss_decoder"),
  PipelineFile("ss_encoder", required=False),
  PipelineFile("slat_generator"),
  PipelineFile("slat_decoder_gs"),
  PipelineFile("slat_decoder_gs_4", required=False),
  PipelineFile("slat_decoder_mesh"),
)


def geometry_parts(cfg: GeometryConfig) -> list[Part]:
  """Flow model and condition encoder, in one file.

  Raises InputError for tokens of several cells.
  """
  if cfg.flow.patch != 1:
    raise InputError(
      f"model.flow.patch = {cfg.flow.patch}: the published flow model has a token for every cell; "
      "train one with model.flow.patch = 1 to exchange it"
    )
  flow = names_geometry.geometry_flow_rules(cfg.flow)
  condition = names_conditioning.condition_encoder_rules(cfg.condition)
  # both of one run, so in one file, as the published trainer saved them
  return [
    Part(
      name="ss_generator",
      file="ss_generator",
      root=STATE_DICT,
      rules=keys.prefixed(flow, torch=GENERATOR_PREFIX, ours="flow/"),
    ),
    Part(
      name="ss_condition_embedder",
      file="ss_generator",
      root=STATE_DICT,
      rules=keys.prefixed(condition, torch=CONDITION_PREFIX, ours="condition/"),
    ),
  ]


def structure_vae_parts(cfg: StructureVAEConfig) -> list[Part]:
  """Decoder and encoder, each a bare state dict in a file of its own.

  Raises InputError for a model on patches.
  """
  if cfg.patch != 1:
    raise InputError(
      f"model.patch = {cfg.patch}: the published structure VAE sees single voxels; train one with "
      "model.patch = 1 to exchange it"
    )
  decoder = names_geometry.structure_decoder_rules(cfg)
  encoder = names_geometry.structure_encoder_rules(cfg)
  return [
    Part(
      name="ss_decoder",
      file="ss_decoder",
      root=None,
      rules=keys.prefixed(decoder, ours="decoder/"),
    ),
    Part(
      name="ss_encoder",
      file="ss_encoder",
      root=None,
      rules=keys.prefixed(encoder, ours="encoder/"),
    ),
  ]


def geometry_latents(cfg: GeometryConfig) -> tuple[int, int]:
  """Resolution and channels of the latents that the flow model makes."""
  return cfg.flow.shape_resolution, cfg.flow.latent_channels


def structure_vae_latents(cfg: StructureVAEConfig) -> tuple[int, int]:
  """Resolution and channels of the latents that the decoder reads."""
  return cfg.latent_resolution, cfg.latent_channels


PUBLISHED: dict[str, Published] = {
  "geometry": Published(
    parts=geometry_parts,
    yamls={"ss_generator": yaml_geometry.generator_yaml},
    latents=geometry_latents,
    pipeline=yaml_pipeline.pipeline_yaml,
    obstacles=yaml_pipeline.obstacles,
  ),
  "structure_vae": Published(
    parts=structure_vae_parts,
    yamls={
      "ss_decoder": yaml_structure.decoder_yaml,
      "ss_encoder": yaml_structure.encoder_yaml,
    },
    latents=structure_vae_latents,
  ),
}


def published(model: ConfigDict) -> Published:
  """The table's entry of a `model` section. Raises InputError if it has none."""
  if model.name not in PUBLISHED:
    raise InputError(
      f"a {model.name} model has no published form; there are {', '.join(PUBLISHED)}"
    )
  return PUBLISHED[model.name]


def parts_of(model: ConfigDict) -> list[Part]:
  """The parts that a model of this `model` section becomes.

  Raises InputError if the published classes have no such model.
  """
  entry = published(model)
  return entry.parts(registry.typed_config(model))


def rules_by_part(model: ConfigDict) -> dict[str, list[keys.Rule]]:
  """Name of a part -> its rules."""
  return {part.name: part.rules for part in parts_of(model)}


def rules_of(model: ConfigDict) -> list[keys.Rule]:
  """The rules of all parts, in the order of the files."""
  rules = []
  for part in parts_of(model):
    rules += part.rules
  return rules


def latents_of(model: ConfigDict) -> tuple[int, int] | None:
  """Resolution and channels of the structure latents that a model makes or reads, if any."""
  latents = published(model).latents
  if latents is None:
    return None
  return latents(registry.typed_config(model))


def files_of(model: ConfigDict) -> dict[str, tuple[str | None, list[keys.Rule]]]:
  """File name without suffix -> (root key, rules of everything in it)."""
  files: dict[str, tuple[str | None, list[keys.Rule]]] = {}
  for part in parts_of(model):
    # parts that share a file lie under one root, that of the first
    if part.file in files:
      root, rules = files[part.file]
    else:
      root, rules = part.root, []
    files[part.file] = (root, [*rules, *part.rules])
  return files


def release_keys(
  model: ConfigDict, our_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, tuple[int, ...]]]:
  """Part -> published name -> shape. Takes no memory."""
  names = {}
  for part in parts_of(model):
    names[part.name] = keys.torch_names(part.rules, our_shapes)
  return names


def find_file(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  """The checkpoint file of a release folder: .ckpt before .safetensors before .pt; None if none."""
  for suffix in (".ckpt", ".safetensors", ".pt"):
    file = folder / f"{stem}{suffix}"
    if file.is_file():
      return file
  return None
