"""From a configuration's `model` section to a module. One explicit table; nothing is looked up by
reflection.
"""

import dataclasses
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from sam3d_jax.errors import ConfigError
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


CONFIGS = {"geometry": geometry_config, "structure_vae": structure_vae_config}
MODELS = {"geometry": GeometryModel, "structure_vae": StructureVAE}


def typed_config(model: ConfigDict) -> Any:
  """The frozen dataclass of a `model` section. Raises ConfigError for an unknown model or key."""
  if model.name not in CONFIGS:
    raise ConfigError(f"model.name = {model.name!r} is not one of {', '.join(CONFIGS)}")
  return CONFIGS[model.name](model)


def build_model(model: ConfigDict, *, rngs: nnx.Rngs) -> nnx.Module:
  """Builds the module of a `model` section with freshly initialised parameters."""
  return MODELS[model.name](typed_config(model), rngs=rngs)


def abstract_model(model: ConfigDict) -> nnx.Module:
  """The same module with shapes in place of arrays: takes no memory and touches no device."""
  return nnx.eval_shape(lambda: build_model(model, rngs=nnx.Rngs(0)))


def _typed(cls, values: dict[str, Any], section: str):
  known = {f.name for f in dataclasses.fields(cls)}
  unknown = sorted(set(values) - known)
  if unknown:
    raise ConfigError(
      f"{section}.{unknown[0]} is not a key of {cls.__name__}; its keys are "
      f"{', '.join(sorted(known))}"
    )
  return cls(**values)
