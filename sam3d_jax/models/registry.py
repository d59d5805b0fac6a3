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

from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import flops
from sam3d_jax.models.conditioning import ConditionConfig, DinoConfig, PointmapConfig
from sam3d_jax.models.geometry import GeometryConfig, GeometryModel
from sam3d_jax.models.geometry_flow import GeometryFlowConfig
from sam3d_jax.models.structure_vae import StructureVAE, StructureVAEConfig

# Keys of model.condition.pointmap that configurations recorded in older checkpoints lack, with what
# their models were trained with.
WHEN_ABSENT = {"resize_twice": False}


def geometry_config(model: ConfigDict) -> GeometryConfig:
  """The typed configuration of a Geometry model."""
  condition = dict(model.condition.to_dict())
  dino = _typed(DinoConfig, condition.pop("dino"), "model.condition.dino")
  pointmap = condition.pop("pointmap")
  if pointmap is not None:
    pointmap = {**WHEN_ABSENT, **pointmap}
    pointmap = _typed(PointmapConfig, pointmap, "model.condition.pointmap")
  return GeometryConfig(
    flow=_typed(GeometryFlowConfig, model.flow.to_dict(), "model.flow"),
    condition=_typed(
      ConditionConfig, {**condition, "dino": dino, "pointmap": pointmap}, "model.condition"
    ),
  )


def structure_vae_config(model: ConfigDict) -> StructureVAEConfig:
  """The typed configuration of a structure VAE."""
  return _typed(
    StructureVAEConfig, {k: v for k, v in model.to_dict().items() if k != "name"}, "model"
  )


@dataclasses.dataclass(frozen=True)
class ModelKind:
  """One kind of model.

  config: `model` section -> typed configuration. module: (typed configuration, rngs=) -> module.
  objectives: name of each objective (objectives/registry.py) that trains it -> kind of batch
  (data_pipelines/read/kinds.py) that it reads for that. latents: that it generates, in the order in
  which they are listed; none for a model without. cost: (typed configuration, plain=) -> FLOPs of a
  forward pass.
  """

  config: Callable[[ConfigDict], Any]
  module: Callable[..., nnx.Module]
  objectives: Mapping[str, str]
  cost: Callable[..., flops.Cost]
  latents: tuple[str, ...] = ()


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
    latents=LATENTS,
  ),
  "structure_vae": ModelKind(
    config=structure_vae_config,
    module=StructureVAE,
    objectives={"structure_autoencoder": "structure"},
    cost=flops.structure_vae,
  ),
}


def lookup(name: str) -> ModelKind:
  """The entry of that name. Raises ConfigError for an unknown one."""
  if name not in MODELS:
    raise ConfigError(f"model.name = {name!r} is not one of {', '.join(MODELS)}")
  return MODELS[name]


def typed_config(model: ConfigDict) -> Any:
  """The frozen dataclass of a `model` section. Raises ConfigError for an unknown model or key."""
  return lookup(model.name).config(model)


def build_model(model: ConfigDict, *, rngs: nnx.Rngs) -> nnx.Module:
  """Builds the module of a `model` section with freshly initialised parameters."""
  kind = lookup(model.name)
  return kind.module(kind.config(model), rngs=rngs)


def abstract_model(model: ConfigDict) -> nnx.Module:
  """The same module with shapes in place of arrays: takes no memory and touches no device."""
  return nnx.eval_shape(lambda: build_model(model, rngs=nnx.Rngs(0)))


def forward_cost(model: ConfigDict, *, plain: bool) -> flops.Cost:
  """FLOPs of a forward pass of a `model` section; `plain`: the fixed reference count."""
  kind = lookup(model.name)
  return kind.cost(kind.config(model), plain=plain)


def _typed(cls, values: dict[str, Any], section: str):
  known = {f.name for f in dataclasses.fields(cls)}
  unknown = sorted(set(values) - known)
  if unknown:
    raise ConfigError(
      f"{section}.{unknown[0]} is not a key of {cls.__name__}; its keys are "
      f"{', '.join(sorted(known))}"
    )
  return cls(**values)
