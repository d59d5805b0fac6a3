"""Every objective, in one explicit table. A stage of training is an objective, its data and what is
frozen; this table holds the first of the three.

Which models an objective trains, and on which kind of batch, is part of the model's entry in
models/registry.py.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import types
import typing
from typing import Any

from sam3d_jax import sections
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry as models
from sam3d_jax.models.flops import Cost, Passes
from sam3d_jax.objectives import autoencoder, dpo, flow_matching, shortcut

# arguments of an objective that are no settings of it
GIVEN = frozenset(("model", "frozen", "batch", "key", "whole"))


def one_pass(settings: Mapping[str, Any], cost: Cost, trained: set[str], plain: bool) -> Passes:
  """The passes of an objective that runs the model once."""
  del settings, cost, trained, plain
  return Passes()


def anything_goes(settings: Any, model_config: Any, rows: int) -> None:
  """The check of an objective that works with any values."""
  del settings, model_config, rows


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss and what it needs besides the model.

  function: `(model, frozen, batch, key, **settings) -> (loss, metrics)`.
  reference: it is given, as `frozen`, a copy of the parameters that the run starts from.
  passes: `(settings, cost of the model, trained parts, plain) -> Passes`, how it runs the model,
    for counting FLOPs.
  check: `(settings, typed configuration of the model, rows) -> None` raises FieldError for settings
    that cannot work; they are those of the configuration with the defaults of the others as
    attributes, rows the examples of a batch, or of a part of it.
  """

  function: Callable
  reference: bool = False
  passes: Callable[[Mapping[str, Any], Cost, set[str], bool], Passes] = one_pass
  check: Callable[[Any, Any, int], None] = anything_goes


OBJECTIVES: dict[str, Objective] = {
  "structure_autoencoder": Objective(autoencoder.structure_autoencoder, check=autoencoder.check),
  "flow_matching": Objective(flow_matching.flow_matching, check=flow_matching.check),
  "dpo": Objective(dpo.dpo, reference=True, passes=dpo.passes, check=dpo.check),
  "shortcut": Objective(shortcut.shortcut, passes=shortcut.passes, check=shortcut.check),
}


def lookup(name: str) -> Objective:
  """The objective of that name. Raises ConfigError."""
  if name not in OBJECTIVES:
    known = ", ".join(OBJECTIVES)
    raise ConfigError(f"objective.name = {name!r} is not one of {known}")
  return OBJECTIVES[name]


def bind(settings: Mapping[str, Any], model: str, model_config: Any, rows: int) -> Callable:
  """`(model, frozen, batch, key) -> (loss, metrics)` of an `objective` section.

  model: kind of model; model_config: its typed configuration. rows: examples of a batch, or of a
  part of it. Raises ConfigError for an objective that does not train this kind of model, a setting
  that it does not take, one that it needs, and values that cannot work.
  """
  # Whether it trains such a model at all.
  settings = dict(settings)
  name = settings.pop("name")
  objective = lookup(name)
  function = objective.function
  batch_kind(name, model)

  # What is left are its keyword arguments: all of them known, none that it needs missing.
  takes = {}
  for key, parameter in inspect.signature(function).parameters.items():
    if key not in GIVEN:
      takes[key] = parameter.default
  unknown = sorted(set(settings) - set(takes))
  if unknown:
    known = ", ".join(sorted(takes))
    raise ConfigError(f"objective.{unknown[0]} is not taken by {name}; it takes {known}")
  for key, default in takes.items():
    if default is inspect.Parameter.empty and key not in settings:
      raise ConfigError(f"objective.{key} is missing: {name} needs it")

  # Their values.
  sections.check_types(typing.get_type_hints(function), settings, "objective")
  values = types.SimpleNamespace(**{**takes, **settings})
  try:
    objective.check(values, model_config, rows)
  except sections.FieldError as error:
    raise ConfigError(f"objective.{error}") from error
  return functools.partial(function, **settings)


def batch_kind(name: str, model: str) -> str:
  """Kind of batch that an objective trains a model with. Raises ConfigError if it does not."""
  kinds = models.lookup(model).objectives
  if name not in kinds:
    # Say which models it would train.
    others = []
    for other, kind in models.MODELS.items():
      if name in kind.objectives:
        others.append(other)
    trains = ", ".join(others)
    raise ConfigError(
      f"objective.name = {name!r} does not train a model of kind {model!r}, but {trains}"
    )
  return kinds[name]


def learned_latents(settings: Mapping[str, Any], model: str) -> tuple[str, ...]:
  """Latents of a kind of model that an `objective` section trains, in the model's order."""
  # Objectives name them under one of two keys; one that names none trains none.
  latents = models.lookup(model).latents
  weights = settings.get("weights")
  named = weights or settings.get("latents") or ()
  unknown = sorted(set(named) - set(latents))
  if unknown:
    known = ", ".join(latents)
    raise ConfigError(f"objective: {unknown[0]!r} is not one of the latents {known}")
  return tuple(name for name in latents if name in named)
