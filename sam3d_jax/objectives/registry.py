"""Objectives by name. A stage of training is an objective, its data and what is frozen; this table
holds the first of the three.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
from typing import Any

from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import ConfigError
from sam3d_jax.objectives import autoencoder, dpo, flow_matching, shortcut


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss `function(model, frozen, batch, key, **settings) -> (loss, metrics)` and what it needs
  besides the model.

  models: kinds of model that it trains.  pairs: reads preference pairs in place of single examples.
  reference: is given a frozen copy of the parameters that the run starts from.
  """

  function: Callable
  models: tuple[str, ...]
  pairs: bool = False
  reference: bool = False


OBJECTIVES = {
  "structure_autoencoder": Objective(autoencoder.structure_autoencoder, ("structure_vae",)),
  "flow_matching": Objective(flow_matching.flow_matching, ("geometry",)),
  "dpo": Objective(dpo.dpo, ("geometry",), pairs=True, reference=True),
  "shortcut": Objective(shortcut.shortcut, ("geometry",)),
}
# kind of single examples that a model reads
BATCH_OF_MODEL = {"structure_vae": "structure", "geometry": "geometry"}


def lookup(name: str) -> Objective:
  """The objective of that name. Raises ConfigError."""
  if name not in OBJECTIVES:
    raise ConfigError(f"objective.name = {name!r} is not one of {', '.join(OBJECTIVES)}")
  return OBJECTIVES[name]


def bind(settings: Mapping[str, Any], model: str) -> Callable:
  """`(model, frozen, batch, key) -> (loss, metrics)` of an `objective` section. Raises ConfigError
  for what does not fit.
  """
  settings = dict(settings)
  name = settings.pop("name")
  objective = lookup(name)
  if model not in objective.models:
    raise ConfigError(
      f"objective.name = {name!r} does not train a model of kind {model!r}, but "
      f"{', '.join(objective.models)}"
    )
  takes = set(inspect.signature(objective.function).parameters) - {
    "model",
    "frozen",
    "batch",
    "key",
    "whole",
  }
  unknown = sorted(set(settings) - takes)
  if unknown:
    raise ConfigError(
      f"objective.{unknown[0]} is not taken by {name}; it takes {', '.join(sorted(takes))}"
    )
  return functools.partial(objective.function, **settings)


def batch_kind(name: str, model: str) -> str:
  """Kind of batch (data_pipelines.read.rows.KINDS) that a model is trained with under an objective."""
  return "preference" if lookup(name).pairs else BATCH_OF_MODEL[model]


def learned_latents(settings: Mapping[str, Any]) -> tuple[str, ...]:
  """Latents that an `objective` section trains, in their canonical order; none for a model without
  latents.
  """
  named = settings.get("weights") or settings.get("latents") or ()
  unknown = sorted(set(named) - set(LATENTS))
  if unknown:
    raise ConfigError(f"objective: {unknown[0]!r} is not one of the latents {', '.join(LATENTS)}")
  return tuple(n for n in LATENTS if n in named)
