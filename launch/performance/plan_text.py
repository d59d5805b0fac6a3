"""Plans of launch.plan as text: one in full, several as a table, the fewest chips of each kind."""

from collections.abc import Sequence

from launch.performance.estimate import MARGIN
from launch.performance.planning import GIB, Plan
from launch.trainer.plan import count, size

COLUMNS = (
  "recipe",
  "samples",
  "TFLOP a sample",
  "set",
  "at once a chip, remat",
  "state + work + activations, GiB",
  "of GiB",
  "samples/s a chip (at most)",
  "days",
  "chip-hours",
)


def full(plan: Plan) -> str:
  """One plan, step by step."""
  memory = plan.memory
  remat = plan.remat or "none"
  verdict = "fits" if plan.fits else "DOES NOT FIT"
  shards = f"fsdp {plan.fsdp}" if plan.fsdp > 1 else "parameters whole on every chip"
  lines = [
    f"{plan.recipe} on {plan.machine.name}: {verdict}",
    f"  batch       {plan.batch} samples a step, {plan.at_once:g} at once on a chip, "
    f"{plan.accumulate} part(s), {plan.steps} steps",
    f"  mesh        {shards}, remat {remat}",
    f"  memory      state {size(memory.state)} + gradients and copies {size(memory.work)} + "
    f"activations {size(memory.activations)}",
    f"              = {size(memory.total)} of {size(plan.capacity)} a chip",
    f"  at most     {largest(plan)} (samples at once on a chip, {MARGIN - 1:.0%} to spare)",
    f"  arithmetic  {plan.flops / 1e12:.3g} TFLOP a sample",
    f"  speed       {plan.rate:.3g} samples/s a chip ({plan.rate_from}), at most "
    f"{plan.rate_bound:.3g}",
    f"  time        {count(plan.samples)} samples: {duration(plan)}, {hours(plan.chip_hours)} "
    "chip-hours",
  ]
  if plan.cost:
    lines.append(f"  cost        {plan.cost:,.0f}")
  set_keys = " ".join(plan.overrides)
  lines.append(f"  set         {set_keys or 'nothing, the recipe as it is'}")
  lines += [f"  note        {note}" for note in plan.notes]
  return "\n".join(lines)


def remedy(plan: Plan, fewest: Plan | None) -> str:
  """What would make a plan fit that does not."""
  family = plan.machine.family
  if fewest is None:
    return f"  remedy      no number of {family} fits it: chips with more memory, or mesh.tensor"
  return f"  remedy      it fits from {fewest.machine.chips} x {family} on (fsdp {fewest.fsdp})"


def largest(plan: Plan) -> str:
  """The largest batch of every policy."""
  shown = []
  for policy, most in plan.largest.items():
    # a model without policies has one that has no name
    shown.append(f"{policy} {most}".strip())
  return ", ".join(shown)


def table(plans: Sequence[Plan]) -> str:
  """One row a recipe, and the sums; Markdown."""
  priced = any(plan.cost for plan in plans)
  columns = [*COLUMNS, "cost"] if priced else list(COLUMNS)
  lines = [row(columns), row(["---"] * len(columns))]
  for plan in plans:
    cells = cells_of(plan)
    if priced:
      cells.append(f"{plan.cost:,.0f}")
    lines.append(row(cells))

  # all of them after each other
  days = sum(plan.days for plan in plans)
  chip_hours = sum(plan.chip_hours for plan in plans)
  cost = sum(plan.cost for plan in plans)
  empty = len(COLUMNS) - 3
  sums = ["all", *[""] * empty, f"{days:.3g}", hours(chip_hours)]
  if priced:
    sums.append(f"{cost:,.0f}")
  lines.append(row(sums))
  return "\n".join(lines)


def cells_of(plan: Plan) -> list[str]:
  """A row of `table`."""
  memory = plan.memory
  parts = (memory.state, memory.work, memory.activations)
  sizes = " + ".join(f"{part / GIB:.1f}" for part in parts)
  needed = f"{sizes} = {memory.total / GIB:.1f}"
  if not plan.fits:
    needed += " DOES NOT FIT"
  changed = [override.removeprefix("--config.") for override in plan.overrides]
  remat = f", {plan.remat}" if plan.remat else ""
  return [
    plan.recipe,
    count(plan.samples),
    f"{plan.flops / 1e12:.3g}",
    " ".join(changed) or "–",
    f"{plan.at_once:g}{remat}",
    needed,
    f"{plan.capacity / GIB:.1f}",
    f"{plan.rate:.3g} ({plan.rate_bound:.3g})",
    f"{plan.days:.3g}",
    hours(plan.chip_hours),
  ]


def smallest(rows: dict[str, dict[str, Plan | None]]) -> str:
  """recipe -> family -> the plan on the fewest chips, as a table; Markdown."""
  # the families are those of any row
  first, *_ = rows.values()
  columns = ["recipe", *first]
  lines = [row(columns), row(["---"] * len(columns))]
  for recipe, plans in rows.items():
    cells = [recipe]
    for plan in plans.values():
      cells.append(fewest(plan))
    lines.append(row(cells))
  return "\n".join(lines)


def fewest(plan: Plan | None) -> str:
  """The fewest chips, with what makes it fit."""
  if plan is None:
    return "–"
  # how they hold it
  total = plan.memory.total / GIB
  how = [f"{total:.0f} GiB"]
  if plan.fsdp > 1:
    how.append(f"fsdp {plan.fsdp}")
  if plan.remat:
    how.append(plan.remat)
  held = ", ".join(how)
  return f"{plan.machine.chips} ({held}): {hours(plan.chip_hours)} h"


def row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def duration(plan: Plan) -> str:
  """Days, or hours of what takes less than one."""
  if plan.days >= 1:
    return f"{plan.days:.3g} days"
  return f"{plan.hours:.3g} hours"


def hours(value: float) -> str:
  """Three digits, in thousands from ten thousand on."""
  if value >= 10_000:
    return f"{value / 1000:,.3g} k"
  return f"{float(f'{value:.3g}'):g}"
