r"""What fits on some hardware, how long it takes and what it costs; nothing of it has to be there.

    python -m launch.plan --on 8xH100 [--config configs/sft_geometry.py] [--price 2.5] [--json FILE]

"I have 8 H100": state, estimated activations and total against the memory of a chip,
rematerialisation and batch that fit, samples/s, days and chip-hours, and the keys to set; for one
configuration, or for every recipe in configs/ as one table. `--on` takes 8xH100, 4xA100, 8xH200,
v5p-64 (32 chips: the number counts TensorCores), v6e-64 (64 chips) or a topology, v5p:4x4x4, and
may be given several times. Rates are measured ones where there are any (docs/benchmarks.md), else
`--mfu` of the chip's peak. `--minimum` prints the fewest chips of each kind that every recipe fits.
Memory is an estimate (docs/planning.md says how far off it is); launch.aot compiles.
"""

import argparse
import json
import pathlib
from typing import Any

from launch.console import cli, machines
from launch.console.flags import dry_run_flag, json_flag
from launch.console.folders import check_file
from launch.trainer import checks
from sam3d_jax.errors import ConfigError
from sam3d_jax.files import atomic

# recipes in the order in which a model goes through them
STAGES = ("train_vae", "pretrain", "midtrain", "sft", "dpo", "distill")
NO_RECIPE = ("__init__.py", "base.py")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--on",
    action="append",
    default=[],
    metavar="HARDWARE",
    help="8xH100, 4xA100, v5p-64, v5p:4x4x4, 2xv6e:16x16; may be repeated",
  )
  parser.add_argument(
    "--minimum", action="store_true", help="the fewest chips of each kind, in place of --on"
  )
  parser.add_argument(
    "--mfu", type=float, default=0.4, help="share of the peak where none was measured (0.4)"
  )
  parser.add_argument("--price", type=float, default=0.0, help="of a chip-hour, for the cost")
  json_flag(parser)
  dry_run_flag(parser, "check hardware and configurations")


def run(args: argparse.Namespace) -> int:
  """Prints the plans; 1 if one of them does not fit."""
  # What is asked for, before JAX is imported.
  if args.json:
    check_file(args.json, "--json")
  if bool(args.on) == args.minimum:
    raise ConfigError("give --on HARDWARE (8xH100, v5p-64) or --minimum")
  asked = [machines.parse(text, "--on") for text in args.on]
  recipes = configurations(args.config)
  for config in recipes.values():
    checks.check(config, (config.stage,), before_data=True)
  if args.dry_run:
    print(f"would plan {', '.join(recipes)}")
    return 0
  # The wall: what is imported here needs JAX.
  from launch.performance import plan_text, planning
  from launch.performance.estimate import Recipe

  assumed = planning.Assumed(mfu=args.mfu, price=args.price)
  made = [Recipe(name, config) for name, config in recipes.items()]

  # The fewest chips of every kind.
  if args.minimum:
    table = planning.minima(made, assumed)
    print(plan_text.smallest(table))
    found = []
    for plans in table.values():
      found += [plan for plan in plans.values() if plan is not None]
    write(args.json, [planning.as_json(plan) for plan in found])
    return 0

  # One plan in full, or a table for every machine.
  plans = []
  for machine in asked:
    of_machine = [planning.make(recipe, machine, assumed) for recipe in made]
    plans += of_machine
    if len(of_machine) == 1:
      (plan,) = of_machine
      print(plan_text.full(plan))
      if not plan.fits:
        fewest = planning.minimum(made[0], machine.family, assumed)
        print(plan_text.remedy(plan, fewest))
    else:
      print(f"{machine.name}\n\n{plan_text.table(of_machine)}\n")
  write(args.json, [planning.as_json(plan) for plan in plans])
  return 0 if all(plan.fits for plan in plans) else 1


def configurations(given: Any) -> dict[str, Any]:
  """Name -> configuration: the given one, or every recipe in configs/, in the order of stages."""
  if given is not None:
    return {f"{given.stage} {given.model.name}": given}
  folder = pathlib.Path(cli.INSTALLED, cli.CONFIGS)
  found = {}
  for path in sorted(folder.glob("*.py")):
    if path.name in NO_RECIPE:
      continue
    config = cli.load_config(str(path))
    # a model alone is no recipe
    if "objective" in config:
      found[path.stem] = config
  return dict(sorted(found.items(), key=place))


def place(recipe: tuple[str, Any]) -> int:
  """Of a recipe among the stages; one of another stage comes last."""
  _, config = recipe
  if config.stage in STAGES:
    return STAGES.index(config.stage)
  return len(STAGES)


def write(path: str | None, plans: list[dict[str, Any]]) -> None:
  """Writes the figures, if they are asked for."""
  if path is not None:
    atomic.write_text(pathlib.Path(path), json.dumps(plans, indent=2) + "\n")


if __name__ == "__main__":
  raise SystemExit(main())
