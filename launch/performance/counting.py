"""XLA's own count of a step's FLOPs, to hold the closed form against."""

import jax
from ml_collections import ConfigDict

from launch.performance.compiled import without_data
from launch.trainer import lowering
from launch.trainer.setup import prepare
from sam3d_jax.models import registry
from sam3d_jax.models.stack import unrolled

ROWS = 4  # enough for an objective that treats a quarter of its rows in another way


def xla_flops_per_sample(config: ConfigDict) -> float:
  """XLA's own count of the step's FLOPs for one sample, element-wise operations and the optimiser's
  share included.

  Counted on programs of one device with XLA attention, no rematerialisation and stacks unrolled, at
  one and two layers of each stack, then scaled to the configured depths: its cost analysis counts
  the body of a loop once and a kernel as nothing.
  """
  depths = registry.stack_depths(config.model)
  shallow = dict.fromkeys(depths, 1)
  base = flops_at(config, shallow)
  # what each further layer of a stack adds, in the order of the stacks
  deeper = 0
  for stack, depth in depths.items():
    layer = flops_at(config, shallow | {stack: 2}) - base
    deeper += (depth - 1) * layer
  return (base + deeper) / ROWS


def flops_at(config: ConfigDict, depths: dict[str, int]) -> float:
  """FLOPs of a step of ROWS samples as XLA counts them. depths: layers of each stack."""
  # one device, whole in one part
  changes = {"batch_size": ROWS, "accumulate": 1}
  for axis in config.mesh:
    changes[f"mesh.{axis}"] = 1
  # nothing that the count does not see or sees twice
  for stack, depth in depths.items():
    changes[f"model.{stack}.attention"] = "xla"
    changes[f"model.{stack}.remat"] = "none"
    changes[f"model.{stack}.depth"] = depth
  setup = prepare(without_data(config, **changes), devices=jax.devices("cpu")[:1])
  with unrolled():
    return lowering.step(setup).cost_analysis()["flops"]
