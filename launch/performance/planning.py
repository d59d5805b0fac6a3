"""What a recipe needs of some hardware, how long it takes there and what that costs: the plans that
launch.plan prints.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any

from launch.console.machines import FAMILIES, Machine
from launch.performance import measured
from launch.performance.estimate import MARGIN, USABLE, Memory, Recipe
from sam3d_jax.errors import ConfigError
from sam3d_jax.training import hardware

GIB = 2**30
HOURS_A_DAY = 24
SECONDS_AN_HOUR = 3600
MOST_CHIPS = 512  # that the smallest hardware is looked for among
COMPARED = ("a100", "h100", "h200", "v5e", "v5p", "v6e")  # of which the fewest chips are said
FULL = "full"  # the policy that takes the least memory


@dataclasses.dataclass(frozen=True)
class Assumed:
  """What is not known of the hardware.

  mfu: share of the peak where none was measured. price: of a chip-hour; 0: no cost is said.
  """

  mfu: float = 0.4
  price: float = 0.0

  def __post_init__(self):
    if not 0 < self.mfu <= 1:
      raise ConfigError(f"--mfu {self.mfu}: it is a share of the peak, above 0 and at most 1")
    if self.price < 0:
      raise ConfigError(f"--price {self.price}: it must not be negative")


@dataclasses.dataclass(frozen=True)
class Plan:
  """One recipe on one machine.

  fsdp: ways that parameters are split. remat: policy, '' for a model without. batch, steps: of the
  run; the recipe's, or the nearest that the chips divide, with as many samples. at_once: samples on
  a chip in one of `accumulate` parts. largest: policy -> the most samples at once on a chip.
  capacity: bytes of a chip that a program may use. rate: samples/s a chip, from `rate_from`.
  rate_bound: at 100 % MFU. fits: False where no way was found; the figures are then those of the
  smallest one.
  """

  recipe: str
  machine: Machine
  fits: bool
  fsdp: int
  remat: str
  batch: int
  steps: int
  at_once: float
  accumulate: int
  memory: Memory
  capacity: float
  largest: dict[str, int]
  flops: float
  rate: float
  rate_from: str
  rate_bound: float
  hours: float
  cost: float
  overrides: tuple[str, ...]
  notes: tuple[str, ...]

  @property
  def samples(self) -> int:
    return self.batch * self.steps

  @property
  def chip_hours(self) -> float:
    return self.hours * self.machine.chips

  @property
  def days(self) -> float:
    return self.hours / HOURS_A_DAY


@dataclasses.dataclass(frozen=True)
class Split:
  """A way to lay a run on a machine; as in Plan."""

  fsdp: int
  remat: str
  batch: int
  accumulate: int
  at_once: float


def make(recipe: Recipe, machine: Machine, assumed: Assumed) -> Plan:
  """The plan of a recipe on a machine: its own policy with the least splitting that fits; without
  one, the policy that takes the least memory. Raises ConfigError for chips that it cannot use.
  """
  capacity = usable(machine)
  if machine.chips % recipe.shared:
    raise ConfigError(
      f"mesh.tensor x mesh.context = {recipe.shared} does not divide {machine.chips} chips"
    )
  found = first_fitting(recipe, machine, capacity)
  fits = found is not None
  if found is None:
    found = smallest(recipe, machine)
  memory = recipe.memory(
    machine.platform,
    fsdp=found.fsdp,
    policy=found.remat,
    at_once=found.at_once,
    accumulate=found.accumulate,
  )

  # how fast, how long
  steps = math.ceil(recipe.samples / found.batch)
  rate, source = rate_of(recipe, machine, found.remat, assumed)
  hours = recipe.samples / (rate * machine.chips) / SECONDS_AN_HOUR
  return Plan(
    recipe=recipe.name,
    machine=machine,
    fits=fits,
    fsdp=found.fsdp,
    remat=found.remat,
    batch=found.batch,
    steps=steps,
    at_once=found.at_once,
    accumulate=found.accumulate,
    memory=memory,
    capacity=capacity,
    largest=largest_batches(recipe, machine, capacity, found.fsdp),
    flops=recipe.flops,
    rate=rate,
    rate_from=source,
    rate_bound=hardware.full_rate(machine.kind, recipe.flops),
    hours=hours,
    cost=hours * machine.chips * assumed.price,
    overrides=overrides(recipe, machine, found, steps),
    notes=notes(recipe, machine, found),
  )


def usable(machine: Machine) -> float:
  """Bytes of a chip that a program may use. Raises ConfigError for chips that are not known."""
  chip = hardware.chip(machine.kind)
  if chip is None:
    known = ", ".join(FAMILIES)
    raise ConfigError(f"--on {machine.name}: say which chips, one of {known} (8xH100, v5p-64)")
  return chip.memory * USABLE[machine.platform]


def ways_to_split(machine: Machine, shared: int) -> Iterator[int]:
  """Sizes of the fsdp axis: powers of two that divide the chips of a slice."""
  chips = machine.chips // machine.slices // shared
  ways = 1
  while chips % ways == 0:
    yield ways
    ways *= 2


def first_fitting(recipe: Recipe, machine: Machine, capacity: float) -> Split | None:
  """The first way that fits: the recipe's policy before the smallest, little splitting before much.

  None if there is none.
  """
  smallest_policy = FULL if recipe.remat else ""
  for policy in dict.fromkeys((recipe.remat, smallest_policy)):
    for fsdp in ways_to_split(machine, recipe.shared):
      # in one part, else in several, whose sum takes memory too
      for at_least in (1, 2):
        most = recipe.largest(
          machine.platform,
          capacity,
          fsdp=fsdp,
          policy=policy,
          accumulate=at_least,
        )
        batch, accumulate = parts(recipe, machine, most)
        found = accumulate == 1 if at_least == 1 else accumulate > 1
        if found:
          at_once = at_once_of(recipe, machine, batch, accumulate)
          return Split(fsdp, policy, batch, accumulate, at_once)
  return None


def smallest(recipe: Recipe, machine: Machine) -> Split:
  """The way that takes the least memory, fitting or not: one sample at once, all chips split."""
  *_, fsdp = ways_to_split(machine, recipe.shared)
  policy = FULL if recipe.remat else ""
  batch, accumulate = parts(recipe, machine, 1)
  at_once = at_once_of(recipe, machine, batch, accumulate)
  return Split(fsdp, policy, batch, accumulate, at_once)


def at_once_of(recipe: Recipe, machine: Machine, batch: int, accumulate: int) -> float:
  """Samples in a part on every chip that holds samples of its own."""
  return batch / accumulate / (machine.chips // recipe.shared)


def parts(recipe: Recipe, machine: Machine, most: int) -> tuple[int, int]:
  """(batch, parts in which it is taken) with at most `most` samples a shard at once; (batch, 0) if
  not even one fits.

  The batch is the recipe's, or the nearest that gives every shard as many, and, in distillation,
  whole numbers of rows that learn self-consistency.
  """
  # samples that stay together, where they fit
  shards = machine.chips // recipe.shared
  unit = rows_together(recipe, shards)
  if unit > most:
    unit = 1

  # the batch
  wanted = recipe.config.batch_size / shards
  units = max(1, round(wanted / unit))
  each = units * unit
  batch = each * shards

  # as few parts as fit
  for accumulate in range(1, each + 1):
    samples, left = divmod(each, accumulate)
    even = left == 0 and samples % unit == 0
    if even and samples <= most:
      return batch, accumulate
  return batch, 0


def rows_together(recipe: Recipe, shards: int) -> int:
  """Samples on a shard of which the share that learns self-consistency is a whole number."""
  share = recipe.config.objective.get("consistency_fraction", 0.0)
  if not share or shards == 1:
    return 1
  return max(1, round(1 / share))


def largest_batches(recipe: Recipe, machine: Machine, capacity: float, fsdp: int) -> dict[str, int]:
  """Policy -> the most samples at once on a chip, from least memory to most."""
  found = {}
  for policy in recipe.policies():
    found[policy] = recipe.largest(machine.platform, capacity, fsdp=fsdp, policy=policy)
  return found


def rate_of(recipe: Recipe, machine: Machine, remat: str, assumed: Assumed) -> tuple[float, str]:
  """(samples/s a chip, where that comes from): what was measured, else the assumed share of the
  bound.
  """
  bound = hardware.full_rate(machine.kind, recipe.flops)
  known = measured.utilisation(machine.kind, remat)
  if known is None or not recipe.remat:
    return bound * assumed.mfu, f"{assumed.mfu:.0%} of peak assumed"
  share, source = known
  return bound * share, f"{share:.1%} of peak {source}"


def overrides(recipe: Recipe, machine: Machine, found: Split, steps: int) -> tuple[str, ...]:
  """What of the configuration has to be set for the plan."""
  wanted = {
    "mesh.fsdp": (found.fsdp, recipe.config.mesh.fsdp),
    # only copies of the model lie in different slices
    "mesh.dcn_data": (machine.slices, recipe.config.mesh.dcn_data),
    "batch_size": (found.batch, recipe.config.batch_size),
    "steps": (steps, recipe.config.steps),
    "accumulate": (found.accumulate, recipe.config.accumulate),
  }
  if recipe.remat:
    wanted[f"model.{recipe.remat_key}"] = (found.remat, recipe.remat)
  changed = []
  for key, (value, now) in wanted.items():
    if value != now:
      changed.append(f"--config.{key}={value}")
  return tuple(changed)


def notes(recipe: Recipe, machine: Machine, found: Split) -> tuple[str, ...]:
  """What to know of a plan."""
  said = []
  if found.batch != recipe.config.batch_size:
    said.append(
      f"the recipe's batch of {recipe.config.batch_size} does not suit {machine.chips} chips: "
      f"{found.batch} does, with as many samples in all"
    )
  unit = rows_together(recipe, machine.chips // recipe.shared)
  if found.at_once % unit:
    said.append(
      f"{found.at_once:g} samples at once hold no whole number of self-consistency rows: samples "
      "travel between chips at every step"
    )
  best = measured.fastest(machine.kind)
  if best is not None and recipe.remat and best.remat != found.remat:
    said.append(
      f"measured faster where it fits: --config.model.{recipe.remat_key}={best.remat} "
      f"--config.model.flow.unroll={best.unroll}, {best.mfu:.1%} of peak"
    )
  if machine.platform == "gpu" and machine.chips > 8 and found.fsdp > 8:
    said.append("parameters are gathered across the network between hosts, which was not measured")
  return tuple(said)


def minimum(recipe: Recipe, family: str, assumed: Assumed) -> Plan | None:
  """The plan on the fewest chips of a family, a power of two, that fit; None above MOST_CHIPS."""
  chips = recipe.shared
  while chips <= MOST_CHIPS:
    plan = make(recipe, Machine(family, chips), assumed)
    if plan.fits:
      return plan
    chips *= 2
  return None


def minima(recipes: Sequence[Recipe], assumed: Assumed) -> dict[str, dict[str, Plan | None]]:
  """recipe -> family -> `minimum`."""
  table = {}
  for recipe in recipes:
    plans = {}
    for family in COMPARED:
      plans[family] = minimum(recipe, family, assumed)
    table[recipe.name] = plans
  return table


def as_json(plan: Plan) -> dict[str, Any]:
  """A plan as plain data; bytes, seconds and hours."""
  return {
    "recipe": plan.recipe,
    "on": plan.machine.name,
    "device_kind": plan.machine.kind,
    "chips": plan.machine.chips,
    "fits": plan.fits,
    "mesh_fsdp": plan.fsdp,
    "remat": plan.remat,
    "batch_size": plan.batch,
    "steps": plan.steps,
    "samples": plan.samples,
    "samples_at_once_a_chip": plan.at_once,
    "accumulate": plan.accumulate,
    "state_bytes": plan.memory.state,
    "work_bytes": plan.memory.work,
    "activation_bytes": plan.memory.activations,
    "hbm_bytes": plan.memory.total,
    "hbm_capacity_bytes": plan.capacity,
    "margin": MARGIN,
    "largest_batch_a_chip": plan.largest,
    "model_flops_per_sample": plan.flops,
    "samples_per_second_per_chip": plan.rate,
    "rate_from": plan.rate_from,
    "samples_per_second_per_chip_upper_bound": plan.rate_bound,
    "days": plan.days,
    "chip_hours": plan.chip_hours,
    "cost": plan.cost,
    "overrides": list(plan.overrides),
    "notes": list(plan.notes),
  }
