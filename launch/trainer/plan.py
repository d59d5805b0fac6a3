"""The plan that a training command prints before it starts; `--dry_run` stops there."""

from collections import defaultdict
from collections.abc import Sequence
import math

import jax

from launch.trainer.setup import Setup
from sam3d_jax.models import registry
from sam3d_jax.sharding import rules
from sam3d_jax.sharding.mesh import BATCH_AXES
from sam3d_jax.training import flops as flops_lib
from sam3d_jax.training import hardware
from sam3d_jax.training.hardware import TERA


def text(setup: Setup, missing: Sequence[str] = ()) -> str:
  """The plan of a prepared run: what is trained, on what, from which data, in how much memory.

  missing: sources of the mixture that are not there yet; the loader is of the others, if any.
  """
  lines = [
    model(setup),
    objective(setup.config),
    devices(setup),
    f"arithmetic {flops(setup)}",
    f"data {data(setup, missing)}",
    f"evaluation {evaluation(setup.config.eval)}",
  ]

  # What will work, but worse than it could.
  whole = rules.replicated(setup.mesh, setup.param_shapes)
  if whole:
    listed = ", ".join(whole)
    lines.append(f"WARNING: replicated on every device although large: {listed}")
  warning = uneven(setup)
  if warning:
    lines.append(warning)
  return "\n".join(lines)


def model(setup: Setup) -> str:
  """What is trained."""
  # Parameters that are trained, of all that there are.
  config = setup.config
  sizes = {}
  for path, leaf in setup.param_shapes.items():
    sizes[path] = math.prod(leaf.shape)
  whole = sum(sizes.values())
  trained = sum(sizes[path] for path in setup.abstract_state.params)

  # Encoder, flow model and whatever else the model is made of.
  parts = [f"{part} {count(n)}" for part, n in by_part(sizes).items()]
  listed = ", ".join(parts)
  return (
    f"{config.stage}: {config.model.name}, {count(whole)} parameters, {count(trained)} trained "
    f"({listed})"
  )


def objective(config) -> str:
  """What it learns, how long and how fast."""
  # Averages of the parameters are named by their decay.
  decays = [f"{decay:g}" for decay in config.optim.ema]
  averages = ", ".join(decays) or "none"
  return (
    f"objective {config.objective.name}; {config.steps} steps of {config.batch_size} samples, "
    f"lr {config.optim.lr:g}, averages {averages}"
  )


def devices(setup: Setup) -> str:
  """On what, and how much of the state each device holds."""
  # Axes of one device split nothing.
  axes = [f"{axis} {n}" for axis, n in setup.mesh.shape.items() if n > 1]
  mesh = " x ".join(axes) or "one device"
  kind = setup.mesh.devices.flat[0].device_kind

  held = bytes_per_device(setup.abstract_state)
  memory = [f"{what} {size(n)}" for what, n in held.items()]
  listed = ", ".join(memory)
  return f"devices {setup.mesh.size} {kind}, mesh {mesh}; per device {listed}"


def uneven(setup: Setup) -> str:
  """A warning, '' without cause, where the rows that learn self-consistency are no whole number on
  every shard of the batch.
  """
  # Only distillation has such rows.
  config = setup.config
  share = config.objective.get("consistency_fraction", 0.0)
  shards = math.prod(setup.mesh.shape[axis] for axis in BATCH_AXES)
  rows = config.batch_size // config.accumulate // shards
  learning = rows * share
  if shards == 1 or learning.is_integer():
    return ""
  return (
    f"WARNING: of {rows} samples on each of {shards} shards a share of {share:g} "
    "(objective.consistency_fraction) is no whole number: samples and their activations then "
    "travel between chips at every step; choose another batch_size or mesh"
  )


def model_flops(setup: Setup, *, plain: bool = True) -> float:
  """Training FLOPs of one sample, see sam3d_jax/models/flops.py."""
  cost = registry.forward_cost(setup.config.model, plain=plain)
  return flops_lib.per_sample(
    cost,
    setup.config.objective.to_dict(),
    setup.abstract_state.params,
    plain=plain,
  )


def flops(setup: Setup) -> str:
  """What a step computes, and the rate at which the devices' peak would allow it."""
  each = model_flops(setup)
  of_sample = each / TERA
  of_step = each * setup.config.batch_size / TERA
  line = f"{of_sample:.3g} TFLOP a sample, {of_step:.3g} TFLOP a step"

  # No rate is claimed for devices whose peak is not known.
  kind = setup.mesh.devices.flat[0].device_kind
  full = hardware.full_rate(kind, each)
  if full is None:
    return line
  peak = hardware.chip(kind).peak / TERA
  return f"{line}; peak {peak:.0f} TFLOP/s a chip: {full:.3g} samples/s a chip at 100 % MFU"


def objects_a_step(config) -> int:
  """Records of a step: its rows, or the objects packed into them."""
  packs = "packing" in config.data and config.data.packing.per_row
  if not packs:
    return config.batch_size
  return round(config.data.packing.per_row * config.batch_size)


def data(setup: Setup, missing: Sequence[str] = ()) -> str:
  """What is read; `missing` as in `text`."""
  settings = setup.config.data
  samples = setup.config.steps * objects_a_step(setup.config)
  if settings.kind == "fake":
    return "random batches"
  if missing:
    listed = ", ".join(missing)
    return (
      f"{listed} not there yet: {count(samples)} samples will be read of split {settings.split}"
    )
  sources = []
  for name, entry in settings.mixture.items():
    if entry.weight:
      sources.append(f"{name} ({entry.path}, weight {entry.weight:g})")
  mixture = ", ".join(sources)

  # Of all sources together.
  records = len(setup.train_loader)
  epochs = samples / records
  rated = setup.train_loader.config.min_rating
  chosen = "" if rated is None else f" (rated {rated:g} or better, or not at all)"
  return f"{mixture}: {records} records of split {settings.split}{chosen}, {epochs:.3g} epochs"


def evaluation(settings) -> str:
  """What is evaluated on the way."""
  if not settings.every:
    return "none"
  losses = (
    f"every {settings.every} steps: losses of {settings.batches} batches of split {settings.split}"
  )
  if settings.stop_after:
    losses += f", stops after {settings.stop_after} without a better {settings.score}"
  if not settings.decoder:
    return f"{losses}; no shapes are sampled (eval.decoder is not set)"
  return (
    f"{losses}, {settings.objects} objects sampled, decoded by {settings.decoder}, scored and drawn"
  )


def by_part(shapes: dict[str, int]) -> dict[str, int]:
  """Parameter count by the first part of the path."""
  parts: dict[str, int] = defaultdict(int)
  for path, n in shapes.items():
    part, _, _ = path.partition("/")
    parts[part] += n
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
  sizes = {}
  for kind, tree in kinds.items():
    held = sum(rules.shard_bytes(leaf) for leaf in jax.tree.leaves(tree))
    if held:
      sizes[kind] = held
  return sizes


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
