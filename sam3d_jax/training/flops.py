"""Model FLOPs that training on one sample takes: those of the model, as often as its objective runs
it (models/flops.py counts a forward pass).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sam3d_jax.models.flops import Cost
from sam3d_jax.objectives import registry


def per_sample(
  cost: Cost, objective: Mapping[str, Any], trainable: Iterable[str], *, plain: bool = True
) -> float:
  """Training FLOPs of one sample (of one pair for preference alignment).

  cost: of the model. objective: the `objective` section. trainable: paths of what is trained.
  plain: as `cost` was counted: the fixed reference; False is what the configured forms compute.
  """
  # Parts of which nothing is trained cost less: no gradient of their weights.
  trained = cost.trained(trainable)
  kind = registry.lookup(objective["name"])
  passes = kind.passes(objective, cost, trained, plain)

  # Passes without gradient, then those with.
  total = passes.forward
  for name, part in cost.parts.items():
    once = part.training(
      trained=name in trained,
      passes_gradient=cost.passes_gradient(name, trained),
    )
    times = passes.trained.get(name, 1)
    total += times * once
  return total
