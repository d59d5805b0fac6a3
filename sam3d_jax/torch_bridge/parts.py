"""How our models are published: one table from a model's name to parts, yamls and pipeline.

A published module is a part; parts lie in checkpoint files, each with a yaml beside it. What is
published of a further model is one more entry of `PUBLISHED`; what the published pipeline is made
of, trained here or taken over, is `FILES`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters, registry
from sam3d_jax.models.conditioning import ConditionConfig
from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.slat_encoder import SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig
from sam3d_jax.models.slat_mesh import SlatMeshConfig
from sam3d_jax.models.slat_vae import SlatVAEConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.models.texture import TextureConfig
from sam3d_jax.torch_bridge import (
  keys,
  names_conditioning,
  names_geometry,
  names_slat,
  names_texture,
  yaml_files,
  yaml_geometry,
  yaml_pipeline,
  yaml_slat,
  yaml_structure,
  yaml_texture,
)
from sam3d_jax.torch_bridge.recognise import CONDITION_PREFIX, GENERATOR_PREFIX, gaussian_part

# root key of a generator's checkpoint; decoders and encoders are bare state dicts
STATE_DICT = "state_dict"


@dataclasses.dataclass(frozen=True)
class Part:
  """One published module.

  file: without suffix, the checkpoint file that holds it. root: key of the file's outer dict that
  it lies under, None for a bare state dict. rules: with all prefixes. sizes: keys of the
  configuration that its shapes tell.
  """

  name: str
  file: str
  root: str | None
  rules: list[keys.Rule]
  sizes: Sequence[keys.Size] = ()


@dataclasses.dataclass(frozen=True)
class Published:
  """How one of our models is published; every function takes the model's typed configuration.

  parts: the modules that it becomes. yamls: file without suffix -> what describes it, given also
  `sampler` (settings, a mapping) and `half` (whether blocks are held in fp16); of files that the
  model does not become, none is made. latents: kind of latents that it makes or reads (STRUCTURE,
  SLAT) -> their resolution and channels. encodes: regular expression of the parameters whose
  digest its latents carry as their name; '' for a model that makes none from data. settings: what
  pipeline.yaml says of it; without one that says something there is no pipeline.yaml. obstacles:
  why the published classes could not load it.
  """

  parts: Callable[[Any], list[Part]]
  yamls: Mapping[str, Callable[..., dict]] = dataclasses.field(default_factory=dict)
  latents: Mapping[str, Callable[[Any], tuple[int, int]]] = dataclasses.field(default_factory=dict)
  encodes: str = ""
  settings: Callable[..., dict] | None = None
  obstacles: Callable[[Any], list[str]] | None = None


@dataclasses.dataclass(frozen=True)
class PipelineFile:
  """A checkpoint file of a release. required: the published pipeline does not start without.
  named: pipeline.yaml names it, which refuses keys that it does not know.
  """

  name: str  # without suffix
  required: bool = True
  named: bool = True


# Of both stages, in this order.
FILES = (
  PipelineFile("ss_generator"),
  PipelineFile("ss_decoder"),
  PipelineFile("ss_encoder", required=False),
  PipelineFile("slat_generator"),
  PipelineFile("slat_decoder_gs"),
  PipelineFile("slat_decoder_gs_4", required=False),
  PipelineFile("slat_decoder_mesh"),
  PipelineFile("slat_encoder", required=False, named=False),
)

# kinds of latents: the coarse grid of the first stage, those of single voxels of the second
STRUCTURE, SLAT = "structure", "slat"


def geometry_parts(cfg: GeometryConfig) -> list[Part]:
  """Flow model and condition encoder.

  Raises InputError for tokens of several cells.
  """
  if cfg.flow.patch != 1:
    raise InputError(
      f"model.flow.patch = {cfg.flow.patch}: the published flow model has a token for every cell; "
      "train one with model.flow.patch = 1 to exchange it"
    )
  flow = names_geometry.geometry_flow_rules(cfg.flow)
  sizes = names_geometry.geometry_flow_sizes(cfg.flow, GENERATOR_PREFIX)
  return generator_parts("ss", flow, cfg.condition, sizes)


def texture_parts(cfg: TextureConfig) -> list[Part]:
  """Flow model and condition encoder of the second stage."""
  flow = names_texture.texture_flow_rules(
    cfg.flow.width,
    (cfg.flow.io_width,),
    cfg.flow.io_blocks,
    qk_rms_norm=cfg.flow.qk_rms_norm,
    shortcut=cfg.flow.shortcut,
  )
  generator = names_texture.texture_generator_rules(flow)
  return generator_parts("slat", generator, cfg.condition)


def generator_parts(
  stage: str, flow: list[keys.Rule], cfg: ConditionConfig, sizes: Sequence[keys.Size] = ()
) -> list[Part]:
  """Flow model and condition encoder of a stage, "ss" or "slat": both of one run, so in one file,
  as the published trainer saved them. sizes: keys that shapes of the flow model tell.
  """
  file = f"{stage}_generator"
  condition = names_conditioning.condition_encoder_rules(cfg)
  return [
    Part(
      name=file,
      file=file,
      root=STATE_DICT,
      rules=keys.prefixed(flow, torch=GENERATOR_PREFIX, ours="flow/"),
      sizes=sizes,
    ),
    Part(
      name=f"{stage}_condition_embedder",
      file=file,
      root=STATE_DICT,
      rules=keys.prefixed(condition, torch=CONDITION_PREFIX, ours="condition/"),
      sizes=names_conditioning.condition_encoder_sizes(cfg, CONDITION_PREFIX),
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
    bare_part("ss_decoder", decoder, "decoder/", names_geometry.structure_decoder_sizes(cfg)),
    bare_part("ss_encoder", encoder, "encoder/", names_geometry.structure_encoder_sizes(cfg)),
  ]


def bare_part(
  name: str, rules: list[keys.Rule], ours: str, sizes: Sequence[keys.Size] = ()
) -> Part:
  """A module that is a bare state dict in a file of its name. ours: prefix of its paths. sizes:
  keys that its shapes tell.
  """
  own = keys.prefixed(rules, ours=ours)
  return Part(name=name, file=name, root=None, rules=own, sizes=sizes)


def slat_vae_parts(cfg: SlatVAEConfig) -> list[Part]:
  """Encoder and Gaussian decoder, each a bare state dict in a file of its own."""
  encoder = names_slat.encoder_rules(cfg.encoder.trunk.width)
  return [bare_part("slat_encoder", encoder, "encoder/"), *slat_gaussian_parts(cfg.gaussian)]


def slat_gaussian_parts(cfg: SlatGaussianConfig) -> list[Part]:
  """A Gaussian decoder; its file is named by how many Gaussians a voxel has."""
  rules = names_slat.gaussian_decoder_rules(cfg.trunk.width, cfg.first_offsets)
  return [bare_part(gaussian_part(cfg.gaussians), rules, "gaussian/")]


def slat_mesh_parts(cfg: SlatMeshConfig) -> list[Part]:
  """A mesh decoder."""
  rules = names_slat.mesh_decoder_rules(cfg.trunk.width, cfg.up_channels)
  return [bare_part("slat_decoder_mesh", rules, "mesh/")]


def geometry_latents(cfg: GeometryConfig) -> tuple[int, int]:
  """Resolution and channels of the latents that the flow model makes."""
  return cfg.flow.shape_resolution, cfg.flow.latent_channels


def structure_vae_latents(cfg: StructureVAEConfig) -> tuple[int, int]:
  """Resolution and channels of the latents that the decoder reads."""
  return cfg.latent_resolution, cfg.latent_channels


def texture_latents(cfg: TextureConfig) -> tuple[int, int]:
  """Resolution of the voxels and channels of their latents that the flow model makes."""
  return cfg.flow.resolution, cfg.flow.latent_channels


def voxel_latents(
  cfg: SlatEncoderConfig | SlatGaussianConfig | SlatMeshConfig,
) -> tuple[int, int]:
  """Resolution of the voxels and channels of their latents, of a part of the SLAT autoencoder."""
  return cfg.resolution, cfg.latent_channels


def slat_vae_latents(cfg: SlatVAEConfig) -> tuple[int, int]:
  """Resolution of the voxels and channels of the latents that the encoder makes."""
  return voxel_latents(cfg.encoder)


def slat_encoder_yaml(cfg: SlatVAEConfig, settings: yaml_files.Settings) -> dict:
  """slat_encoder.yaml of an autoencoder."""
  return yaml_slat.encoder_yaml(cfg.encoder, settings)


def slat_vae_gaussian_yaml(cfg: SlatVAEConfig, settings: yaml_files.Settings) -> dict:
  """The Gaussian decoder's yaml of an autoencoder."""
  return yaml_slat.gaussian_yaml(cfg.gaussian, settings)


PUBLISHED: dict[str, Published] = {
  "geometry": Published(
    parts=geometry_parts,
    yamls={"ss_generator": yaml_geometry.generator_yaml},
    latents={STRUCTURE: geometry_latents},
    settings=yaml_pipeline.geometry_settings,
    obstacles=yaml_pipeline.obstacles,
  ),
  "structure_vae": Published(
    parts=structure_vae_parts,
    yamls={
      "ss_decoder": yaml_structure.decoder_yaml,
      "ss_encoder": yaml_structure.encoder_yaml,
    },
    latents={STRUCTURE: structure_vae_latents},
    encodes=".*",
  ),
  "texture": Published(
    parts=texture_parts,
    yamls={"slat_generator": yaml_texture.generator_yaml},
    latents={SLAT: texture_latents},
    settings=yaml_texture.pipeline_settings,
    obstacles=yaml_texture.obstacles,
  ),
  "slat_vae": Published(
    parts=slat_vae_parts,
    yamls={
      "slat_encoder": slat_encoder_yaml,
      "slat_decoder_gs": slat_vae_gaussian_yaml,
      "slat_decoder_gs_4": slat_vae_gaussian_yaml,
    },
    latents={SLAT: slat_vae_latents},
    encodes="encoder/.*",
  ),
  "slat_gaussian": Published(
    parts=slat_gaussian_parts,
    yamls={
      "slat_decoder_gs": yaml_slat.gaussian_yaml,
      "slat_decoder_gs_4": yaml_slat.gaussian_yaml,
    },
    latents={SLAT: voxel_latents},
  ),
  "slat_mesh": Published(
    parts=slat_mesh_parts,
    yamls={"slat_decoder_mesh": yaml_slat.mesh_yaml},
    latents={SLAT: voxel_latents},
    obstacles=yaml_slat.mesh_obstacles,
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


def sizes_in(model: ConfigDict, file: str) -> list[keys.Size]:
  """The keys of a `model` section that shapes in one of its files tell. file: without suffix."""
  sizes = []
  for part in parts_of(model):
    if part.file == file:
      sizes += part.sizes
  return sizes


def latents_of(model: ConfigDict, kind: str = STRUCTURE) -> tuple[int, int] | None:
  """Resolution and channels of the latents of a kind that a model makes or reads, if any."""
  latents = published(model).latents.get(kind)
  if latents is None:
    return None
  return latents(registry.typed_config(model))


def latents_name(model: ConfigDict, params: Mapping[str, np.ndarray]) -> str | None:
  """What the latents that a model encodes carry as their autoencoder's name; None for a model that
  encodes none.
  """
  encodes = published(model).encodes
  if not encodes:
    return None
  # of a large model only the encoder is read
  pattern = re.compile(encodes)
  shapes = {}
  for path, shape in parameters.shapes_of(params).items():
    if pattern.fullmatch(path):
      shapes[path] = shape
  encoder = parameters.LazyParams(shapes, params.__getitem__)
  return parameters.params_digest(encoder)


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


def parts_in(model: ConfigDict, file: str) -> list[str]:
  """Published parts of a model that lie in a file (without suffix)."""
  return [part.name for part in parts_of(model) if part.file == file]


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
