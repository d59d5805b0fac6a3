"""Every kind of model, in one explicit table: what the rest of the code must know about it.

A further kind is one more entry of `MODELS`. What other rooms hold about it stands in tables of
theirs, by the same name: batch types (batch.py), batch kinds (data_pipelines/read/kinds.py),
published parts (torch_bridge/parts.py), previews (launch/trainer/previews.py).
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from sam3d_jax import sections
from sam3d_jax.batch import LATENTS, TEXTURE_LATENTS
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import flops, latent_statistics, memory, parameters, slat_flops
from sam3d_jax.models.conditioning import ConditionConfig, DinoConfig, PointmapConfig
from sam3d_jax.models.gaussians import Activations
from sam3d_jax.models.geometry import GeometryConfig, GeometryModel
from sam3d_jax.models.geometry_flow import GeometryFlowConfig
from sam3d_jax.models.latent_statistics import LatentStatistics
from sam3d_jax.models.slat_encoder import SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig
from sam3d_jax.models.slat_mesh import SlatMeshConfig
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.models.slat_vae import SlatGaussianModel, SlatMeshModel, SlatVAE, SlatVAEConfig
from sam3d_jax.models.structure_vae import StructureVAE, StructureVAEConfig
from sam3d_jax.models.texture import RowConfig, TextureConfig, TextureModel
from sam3d_jax.models.texture_flow import TextureFlowConfig


def geometry_config(model: ConfigDict) -> GeometryConfig:
  """The typed configuration of a Geometry model."""
  # condition before flow: the first wrong key is the one that is named
  condition = condition_config(model.condition)
  flow = sections.typed(GeometryFlowConfig, model.flow.to_dict(), "model.flow")
  return GeometryConfig(
    flow=flow,
    condition=condition,
  )


def condition_config(condition: ConfigDict) -> ConditionConfig:
  """The typed configuration of a condition encoder."""
  # The encoders are sections of the condition's.
  settings = condition.to_dict()
  settings["dino"] = sections.typed(DinoConfig, settings["dino"], "model.condition.dino")
  pointmap = settings["pointmap"]
  if pointmap is not None:
    settings["pointmap"] = sections.typed(PointmapConfig, pointmap, "model.condition.pointmap")
  return sections.typed(ConditionConfig, settings, "model.condition")


def texture_config(model: ConfigDict) -> TextureConfig:
  """The typed configuration of a Texture & Refinement model."""
  flow = sections.typed(TextureFlowConfig, model.flow.to_dict(), "model.flow")
  values = {
    "flow": flow,
    "condition": condition_config(model.condition),
    "row": sections.typed(RowConfig, model.row.to_dict(), "model.row"),
    "statistics": statistics(model.latent_statistics),
  }
  return sections.typed(TextureConfig, values, "model")


def statistics(stated: str | ConfigDict) -> LatentStatistics:
  """Latent statistics by name, or as a section with mean and std."""
  if not isinstance(stated, str):
    return sections.typed(LatentStatistics, stated, "model.latent_statistics")
  try:
    return latent_statistics.named(stated)
  except sections.FieldError as error:
    raise ConfigError(f"model.{error}") from error


def structure_vae_config(model: ConfigDict) -> StructureVAEConfig:
  """The typed configuration of a structure VAE."""
  # The section is the configuration, but for the model's name.
  settings = model.to_dict()
  del settings["name"]
  return sections.typed(StructureVAEConfig, settings, "model")


def slat_vae_config(model: ConfigDict) -> SlatVAEConfig:
  """The typed configuration of a SLAT autoencoder."""
  encoder = model.encoder.to_dict()
  encoder["trunk"] = trunk_config(encoder, "model.encoder")
  values = {
    "encoder": sections.typed(SlatEncoderConfig, encoder, "model.encoder"),
    "gaussian": gaussian_config(model.gaussian, "model.gaussian"),
  }
  return sections.typed(SlatVAEConfig, values, "model")


def slat_gaussian_config(model: ConfigDict) -> SlatGaussianConfig:
  """The typed configuration of a Gaussian decoder alone."""
  return gaussian_config(model.gaussian, "model.gaussian")


def slat_mesh_config(model: ConfigDict) -> SlatMeshConfig:
  """The typed configuration of a mesh decoder alone."""
  settings = model.mesh.to_dict()
  settings["trunk"] = trunk_config(settings, "model.mesh")
  return sections.typed(SlatMeshConfig, settings, "model.mesh")


def gaussian_config(gaussian: ConfigDict, section: str) -> SlatGaussianConfig:
  """The typed configuration of a Gaussian decoder. section: its dotted key."""
  settings = gaussian.to_dict()
  settings["trunk"] = trunk_config(settings, section)
  settings["activations"] = sections.typed(
    Activations,
    settings["activations"],
    f"{section}.activations",
  )
  return sections.typed(SlatGaussianConfig, settings, section)


def trunk_config(settings: Mapping[str, Any], section: str) -> TrunkConfig:
  """The typed configuration of the trunk in a section."""
  return sections.typed(TrunkConfig, settings["trunk"], f"{section}.trunk")


@dataclasses.dataclass(frozen=True)
class LaterKey:
  """A key of a `model` section that configurations recorded before it lack.

  value: what their models were trained with. told: how, in words, where a run that was started
  without the key, or with `value`, goes on with `value` whatever its configuration says by now, and
  tells so; '': its configuration has to say `value`.
  """

  value: Any
  told: str = ""


@dataclasses.dataclass(frozen=True)
class ModelKind:
  """One kind of model.

  config: `model` section -> typed configuration. module: (typed configuration, rngs=) -> module.
  objectives: name of each objective (objectives/registry.py) that trains it -> kind of batch
  (data_pipelines/read/kinds.py) that it reads for that. latents: that it generates, in the order in
  which they are listed; none for a model without. cost: (typed configuration, plain=) -> FLOPs of a
  forward pass. activations: (typed configuration, trained=, lanes=) -> bytes that a sample keeps
  for its backward pass; None: they are not estimated. later_keys: path in the `model` section ->
  what models recorded without it had. stacks: dotted sections of `model` that hold a stack of equal
  layers, each with `depth`, `attention` and `remat`. remat: dotted key of `model` with the
  rematerialisation policy that decides the memory of a step; '' for a model without.
  """

  config: Callable[[ConfigDict], Any]
  module: Callable[..., nnx.Module]
  objectives: Mapping[str, str]
  cost: Callable[..., flops.Cost]
  activations: Callable[..., memory.Activations] | None = None
  latents: tuple[str, ...] = ()
  later_keys: Mapping[tuple[str, ...], LaterKey] = dataclasses.field(default_factory=dict)
  stacks: tuple[str, ...] = ()
  remat: str = ""


MODELS: dict[str, ModelKind] = {
  "geometry": ModelKind(
    config=geometry_config,
    module=GeometryModel,
    objectives={
      "flow_matching": "geometry",
      "shortcut": "geometry",
      "dpo": "preference",
    },
    cost=flops.geometry,
    activations=memory.geometry,
    latents=LATENTS,
    later_keys={
      ("flow", "patch"): LaterKey(1),
      ("condition", "pointmap", "resize_twice"): LaterKey(
        False, told="point maps resized in one step"
      ),
    },
    stacks=("flow", "condition.dino"),
    remat="flow.remat",
  ),
  "texture": ModelKind(
    config=texture_config,
    module=TextureModel,
    objectives={"flow_matching": "texture"},
    cost=flops.texture,
    activations=memory.texture,
    latents=TEXTURE_LATENTS,
    stacks=("flow", "condition.dino"),
    remat="flow.remat",
  ),
  "structure_vae": ModelKind(
    config=structure_vae_config,
    module=StructureVAE,
    objectives={"structure_autoencoder": "structure"},
    cost=flops.structure_vae,
    activations=memory.structure_vae,
    later_keys={("patch",): LaterKey(1)},
  ),
  "slat_vae": ModelKind(
    config=slat_vae_config,
    module=SlatVAE,
    objectives={},
    cost=slat_flops.slat_vae,
    stacks=("encoder.trunk", "gaussian.trunk"),
    remat="gaussian.trunk.remat",
  ),
  "slat_gaussian": ModelKind(
    config=slat_gaussian_config,
    module=SlatGaussianModel,
    objectives={},
    cost=slat_flops.slat_gaussian,
    stacks=("gaussian.trunk",),
    remat="gaussian.trunk.remat",
  ),
  "slat_mesh": ModelKind(
    config=slat_mesh_config,
    module=SlatMeshModel,
    objectives={},
    cost=slat_flops.slat_mesh,
    stacks=("mesh.trunk",),
    remat="mesh.trunk.remat",
  ),
}


def lookup(name: str) -> ModelKind:
  """The entry of that name. Raises ConfigError for an unknown one."""
  if name not in MODELS:
    known = ", ".join(MODELS)
    raise ConfigError(f"model.name = {name!r} is not one of {known}")
  return MODELS[name]


def section_of(model: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  """The section, within a `model` section, of the key at `path`; None where it is switched off."""
  # Down to the section that holds the key.
  section = model
  for name in path[:-1]:
    section = section.get(name)
    if section is None:
      return None
  return section


def completed(model: ConfigDict) -> ConfigDict:
  """A `model` section with the keys that it was recorded without. Raises ConfigError for an unknown
  model.
  """
  # Configurations recorded before a key existed mean the value of their time.
  later_keys = lookup(model.name).later_keys
  whole = model.copy_and_resolve_references()
  with whole.unlocked():
    for path, later in later_keys.items():
      key = path[-1]
      section = section_of(whole, path)
      # a section that is switched off lacks nothing
      if section is not None and key not in section:
        section[key] = later.value
  return whole


# keys of a `model` section, wherever in it, that say how it is computed and not what it is
HOW_COMPUTED = frozenset(
  (
    "remat",
    "unroll",
    "attention",
    "dtype",
    "absorb_layout_kv",
    "cls_only",
    # rows of packed objects
    "voxels",
    "coarse",
    "objects",
  )
)


def differing_keys(model: ConfigDict, other: ConfigDict) -> dict[str, tuple[Any, Any]]:
  """Dotted key -> (value in `model`, value in `other`) where two `model` sections are of other
  models; what is only computed in another way does not count.
  """
  found = {}
  one, two = completed(model).to_dict(), completed(other).to_dict()
  for path, ours, theirs in sections.differences(one, two):
    if path[-1] not in HOW_COMPUTED:
      found[".".join(("model", *path))] = ours, theirs
  return found


def told_differences(model: ConfigDict, other: ConfigDict, have: str, lacks: str) -> str:
  """The differing keys as text: "file has model.flow.depth = 3, the configuration 24", '' if none.

  have, lacks: what the sections are those of, as "file" and "the configuration".
  """
  told = []
  for key, (ours, theirs) in differing_keys(model, other).items():
    told.append(f"{have} has {key} = {ours!r}, {lacks} {theirs!r}")
  return "; ".join(told)


def typed_config(model: ConfigDict) -> Any:
  """The frozen dataclass of a `model` section. Raises ConfigError for an unknown model or key."""
  kind = lookup(model.name)
  return kind.config(completed(model))


def build_model(model: ConfigDict, *, rngs: nnx.Rngs) -> nnx.Module:
  """Builds the module of a `model` section with freshly initialised parameters."""
  kind = lookup(model.name)
  cfg = typed_config(model)
  return kind.module(cfg, rngs=rngs)


def abstract_model(model: ConfigDict) -> nnx.Module:
  """The same module with shapes in place of arrays: takes no memory and touches no device."""

  # Drawn from any seed: only shapes come out.
  def build():
    return build_model(model, rngs=nnx.Rngs(0))

  return nnx.eval_shape(build)


def parameter_shapes(model: ConfigDict) -> dict[str, tuple[int, ...]]:
  """Path -> shape of the parameters of a `model` section: takes no memory and touches no device.

  Remembered: tracing a large model takes seconds, and files are checked against it several times.
  """
  traced = lookup(model.name).module, repr(typed_config(model))
  if traced not in _TRACED:
    _TRACED[traced] = parameters.flat_shapes(abstract_model(model))
  return dict(_TRACED[traced])


# (class, configuration in full) -> path -> shape
_TRACED: dict[tuple[type, str], dict[str, tuple[int, ...]]] = {}


def forward_cost(model: ConfigDict, *, plain: bool) -> flops.Cost:
  """FLOPs of a forward pass of a `model` section; `plain`: the fixed reference count."""
  kind = lookup(model.name)
  cfg = typed_config(model)
  return kind.cost(cfg, plain=plain)


def stack_depths(model: ConfigDict) -> dict[str, int]:
  """Layers of each stack of a `model` section: dotted section -> configured depth."""
  stacks = lookup(model.name).stacks
  return {stack: _at(model, stack).depth for stack in stacks}


def attention_backends(model: ConfigDict) -> dict[str, str]:
  """Attention backend of each stack of a `model` section: dotted key -> configured backend."""
  stacks = lookup(model.name).stacks
  return {f"{stack}.attention": _at(model, stack).attention for stack in stacks}


def remat_policy(model: ConfigDict) -> str:
  """The configured rematerialisation policy of a `model` section; '' for a model without."""
  key = lookup(model.name).remat
  if not key:
    return ""
  return _at(model, key)


def _at(model: ConfigDict, key: str) -> Any:
  """The value, or section, of a dotted key."""
  value = model
  for name in key.split("."):
    value = value[name]
  return value
