"""The plan that a training command prints before it starts; `--dry_run` stops there."""

from collections import defaultdict
import math

import jax

from launch.trainer.setup import Setup
from sam3d_jax.models import registry
from sam3d_jax.sharding import rules
from sam3d_jax.sharding.mesh import BATCH_AXES
from sam3d_jax.training import flops as flops_lib
from sam3d_jax.training import hardware


def text(setup: Setup) -> str:
  """The plan of a prepared run: what is trained, on what, from which data, in how much memory."""
  config = setup.config
  shapes = {p: math.prod(x.shape) for p, x in setup.param_shapes.items()}
  trainable = sum(shapes[p] for p in setup.abstract_state.params)
  mesh = " x ".join(f"{axis} {n}" for axis, n in setup.mesh.shape.items() if n > 1) or "one device"
  lines = [
    f"{config.stage}: {config.model.name}, {count(sum(shapes.values()))} parameters, "
    f"{count(trainable)} trained "
    f"({', '.join(f'{k} {count(n)}' for k, n in by_part(shapes).items())})",
    f"objective {config.objective.name}; {config.steps} steps of {config.batch_size} samples, lr "
    f"{config.optim.lr:g}, "
    f"averages {', '.join(f'{d:g}' for d in config.optim.ema) or 'none'}",
    f"devices {setup.mesh.size} {setup.mesh.devices.flat[0].device_kind}, mesh {mesh}; per device "
    + ", ".join(f"{k} {size(n)}" for k, n in bytes_per_device(setup.abstract_state).items()),
    f"arithmetic {flops(setup)}",
    f"data {data(setup)}",
    f"evaluation {evaluation(setup.config.eval)}",
  ]
  whole = rules.replicated(setup.mesh, setup.param_shapes)
  if whole:
    lines.append(f"WARNING: replicated on every device although large: {', '.join(whole)}")
  if uneven(setup):
    lines.append(uneven(setup))
  return "\n".join(lines)


def uneven(setup: Setup) -> str:
  """A warning, '' without cause, where the rows that learn self-consistency are no whole number on
  every shard of the batch.
  """
  share, shards = (
    setup.config.objective.get("consistency_fraction", 0.0),
    math.prod(setup.mesh.shape[a] for a in BATCH_AXES),
  )
  rows = setup.config.batch_size // setup.config.accumulate // shards
  if shards == 1 or (rows * share).is_integer():
    return ""
  return (
    f"WARNING: of {rows} samples on each of {shards} shards a share of {share:g} "
    "(objective.consistency_fraction) is no whole "
    "number: samples and their activations then travel between chips at every step; choose another "
    "batch_size or mesh"
  )


def model_flops(setup: Setup, *, plain: bool = True) -> float:
  """Training FLOPs of one sample, see sam3d_jax/models/flops.py."""
  cost = registry.forward_cost(setup.config.model, plain=plain)
  objective = setup.config.objective.to_dict()
  return flops_lib.per_sample(cost, objective, setup.abstract_state.params, plain=plain)


def flops(setup: Setup) -> str:
  """What a step computes, and the rate at which the devices' peak would allow it."""
  each = model_flops(setup)
  kind = setup.mesh.devices.flat[0].device_kind
  full = hardware.full_rate(kind, each)
  rate = (
    ""
    if full is None
    else f"; peak {hardware.chip(kind).peak / 1e12:.0f} TFLOP/s a chip: {full:.3g} samples/s a "
    "chip at 100 % MFU"
  )
  return (
    f"{each / 1e12:.3g} TFLOP a sample, {each * setup.config.batch_size / 1e12:.3g} TFLOP a "
    f"step{rate}"
  )


def data(setup: Setup) -> str:
  """What is read."""
  settings = setup.config.data
  if settings.kind == "fake":
    return "random batches"
  sources = ", ".join(
    f"{name} ({entry.path}, weight {entry.weight:g})"
    for name, entry in settings.mixture.items()
    if entry.weight
  )
  epochs = setup.config.steps * setup.config.batch_size / len(setup.train_loader)
  rated = setup.train_loader.config.min_rating
  chosen = "" if rated is None else f" (rated {rated:g} or better, or not at all)"
  return (
    f"{sources}: {len(setup.train_loader)} records of split {settings.split}{chosen}, {epochs:.3g} "
    "epochs"
  )


def evaluation(settings) -> str:
  """What is evaluated on the way."""
  if not settings.every:
    return "none"
  losses = (
    f"every {settings.every} steps: losses of {settings.batches} batches of split {settings.split}"
  )
  if not settings.decoder:
    return f"{losses}; no shapes are sampled (eval.decoder is not set)"
  return (
    f"{losses}, {settings.objects} objects sampled, decoded by {settings.decoder}, scored and drawn"
  )


def by_part(shapes: dict[str, int]) -> dict[str, int]:
  """Parameter count by the first part of the path."""
  parts: dict[str, int] = defaultdict(int)
  for path, n in shapes.items():
    parts[path.split("/")[0]] += n
  return dict(parts)


def bytes_per_device(abstract_state) -> dict[str, int]:
  """Bytes one device holds of each kind of state."""
  kinds = {
    "params": abstract_state.params,
    "frozen": abstract_state.frozen,
    "reference": abstract_state.reference,
    "averages": abstract_state.ema,
    "optimiser": abstract_state.opt,
  }
  sizes = {k: sum(rules.shard_bytes(x) for x in jax.tree.leaves(tree)) for k, tree in kinds.items()}
  return {k: n for k, n in sizes.items() if n}


def count(n: float) -> str:
  """1234567 -> '1.23 M'."""
  for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if n >= scale:
      return f"{n / scale:.3g} {unit}"
  return str(int(n))


def size(n: float) -> str:
  """Bytes as '1.5 GiB'."""
  for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
    if n >= scale:
      return f"{n / scale:.3g} {unit}"
  return f"{int(n)} B"
