"""Plans of hardware: estimates against what compilers and an H200 said, what a plan says to set is
what a run accepts, and the documents hold what the command prints.
"""

import json
import pathlib
import re

import pytest

from launch import aot, plan
from launch.console import cli, machines
from launch.performance import measured, plan_text, planning
from launch.performance.estimate import Recipe
from launch.trainer import checks, rehearsal
from launch.trainer.specs import RunSpec
from tests.support import toy_model

DOCS = pathlib.Path(__file__).parents[2] / "docs"
GIB = 2**30
ASSUMED = planning.Assumed()
LORA = r"flow/blocks/layer/.*_attn/(qkv|q|kv|out)"


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
  made = {}
  for name, config in plan.configurations(None).items():
    made[name] = Recipe(name, config)
  return made


def table_of(page: str, heading: str) -> list[list[str]]:
  """The rows of the first table behind a heading, as cells."""
  text = (DOCS / page).read_text()
  _, _, behind = text.partition(heading)
  found = re.search(r"(?:^\|.*\|\n)+", behind, re.MULTILINE)
  _, _, *lines = found.group().splitlines()
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def compared() -> list[list[str]]:
  return table_of("planning.md", "## How far off it is")


@pytest.mark.parametrize("row", compared(), ids=lambda row: "-".join(row[:4]))
def test_an_estimate_is_near_the_compiled_or_measured_step_and_as_the_page_says(row, recipes):
  name, platform, fsdp, policy, at_once, known, estimated, error = row
  memory = recipes[name].memory(
    platform,
    fsdp=int(fsdp),
    policy=policy.replace("–", ""),
    at_once=int(at_once),
  )
  total = memory.total / GIB
  within = 0.1 if fsdp == "1" else 0.34
  assert total == pytest.approx(float(known), rel=within)
  # as the page says
  assert f"{total:.1f}" == estimated
  assert f"{total / float(known) - 1:+.0%}" == error


def test_the_known_bytes_are_those_of_the_benchmarks():
  text = (DOCS / "benchmarks.md").read_text()
  for row in compared():
    known = row[5]
    assert re.search(rf"\b{re.escape(known)}\b", text), known


def test_measured_rates_are_rows_of_the_benchmarks():
  lines = (DOCS / "benchmarks.md").read_text().splitlines()
  for row in measured.ROWS:
    said = f"{100 * row.mfu:.1f}%"
    of_row = [line for line in lines if row.date in line and row.kind in line and said in line]
    assert of_row, row
    (line,) = of_row
    assert (f"remat={row.remat}" in line) == (row.remat != "attention")
    assert ("unroll=True" in line) == row.unroll


@pytest.mark.parametrize(
  "name, on, chip_hours",
  [
    ("pretrain_geometry", "v5p-1024", 17_000),
    ("midtrain_os_geometry", "v5p-512", 1_440),
    ("sft_geometry", "v5p-256", 3_030),
    ("distill_geometry", "v5p-128", 200),
    ("dpo_geometry", "v5p-256", 5.3),
  ],
)
def test_on_its_pod_a_recipe_fits_as_it_is_and_costs_what_its_docstring_says(
  name, on, chip_hours, recipes
):
  made = planning.make(recipes[name], machines.parse(on, "--on"), ASSUMED)
  assert made.fits
  assert made.overrides == ()
  assert made.chip_hours == pytest.approx(chip_hours, rel=0.02)


@pytest.mark.parametrize("on", ["1xA100", "8xH100", "24xH200", "v5p-64", "4xv6e", "2xv5e:16x16"])
def test_what_a_plan_says_to_set_is_accepted_by_a_dry_run(on, recipes, tmp_path, capsys):
  machine = machines.parse(on, "--on")
  for name, recipe in recipes.items():
    made = planning.make(recipe, machine, ASSUMED)
    assert made.fits, name
    config = cli.load_config(f"configs/{name}.py", list(made.overrides))
    checks.check(config, (config.stage,), before_data=True)
    rehearsal.run(RunSpec(config, str(tmp_path / name), dry_run=True, devices=on))
    assert config.mesh.dcn_data == machine.slices
    assert made.at_once * made.accumulate * machine.chips == config.batch_size
    assert config.steps * config.batch_size == pytest.approx(recipe.samples, rel=0.01)
    assert "no whole number" not in capsys.readouterr().out or made.notes


def test_a_larger_batch_at_once_than_the_plan_says_does_not_fit_with_the_margin(recipes):
  recipe = recipes["sft_geometry"]
  made = planning.make(recipe, machines.parse("8xH100", "--on"), ASSUMED)
  for policy, most in made.largest.items():
    for at_once, fits in ((most, True), (most + 1, False)):
      memory = recipe.memory("gpu", fsdp=made.fsdp, policy=policy, at_once=at_once)
      assert (memory.total * planning.MARGIN <= made.capacity) == fits


def test_parameters_are_split_only_where_a_chip_cannot_hold_them(recipes):
  recipe = recipes["pretrain_geometry"]
  whole = planning.make(recipe, machines.parse("8xA100", "--on"), ASSUMED)
  split = planning.make(recipe, machines.parse("16xv5e", "--on"), ASSUMED)
  assert (whole.fsdp, split.fsdp) == (1, 4)
  assert whole.remat == split.remat == "attention"


def test_low_rank_adapters_need_less_state():
  adapted = cli.load_config("configs/sft_geometry.py", [f"--config.lora.targets={LORA}"])
  full = cli.load_config("configs/sft_geometry.py")
  needed = []
  for config in (adapted, full):
    memory = Recipe("sft", config).memory("gpu", fsdp=1, policy="attention", at_once=1)
    needed.append(memory.state)
  assert needed[0] < 0.5 * needed[1]


def test_one_configuration_is_told_in_full_with_its_cost(tmp_path, capsys):
  file = tmp_path / "plan.json"
  code = plan.main(
    [
      "--on",
      "8xH100",
      "--config",
      "configs/sft_geometry.py",
      "--price",
      "2",
      "--json",
      str(file),
    ]
  )
  assert code == 0
  out = capsys.readouterr().out
  assert "sft geometry on 8 x h100: fits" in out
  assert "37.6% of peak as NVIDIA H200" in out
  (found,) = json.loads(file.read_text())
  assert f"set         {' '.join(found['overrides'])}" in out
  assert found["cost"] == pytest.approx(2 * found["chip_hours"])
  assert found["chip_hours"] == pytest.approx(8 * 24 * found["days"])


def test_every_recipe_is_a_row_of_the_table(capsys):
  assert plan.main(["--on", "v5p-64"]) == 0
  out = capsys.readouterr().out
  assert "32 x v5p (v5p-64)" in out
  for path in pathlib.Path(cli.INSTALLED, "configs").glob("*.py"):
    is_recipe = path.name not in plan.NO_RECIPE and "c.objective" in path.read_text()
    assert (f"| {path.stem} |" in out) == is_recipe


def test_what_does_not_fit_ends_with_one_and_says_from_where_on_it_does(capsys):
  assert plan.main(["--on", "1xv5e", "--config", "configs/sft_geometry.py"]) == 1
  out = capsys.readouterr().out
  assert "DOES NOT FIT" in out
  assert "it fits from 4 x v5e on (fsdp 4)" in out


@pytest.mark.parametrize(
  "flags, message",
  [
    ([], "give --on HARDWARE"),
    (["--on", "8xH100", "--minimum"], "give --on HARDWARE"),
    (["--on", "8xB9"], "'b9' is not one of"),
    (["--on", "8"], "say which chips"),
    (["--on", "8xH100", "--mfu", "0"], "--mfu 0.0"),
    (["--on", "8xH100", "--price", "-1"], "--price -1.0"),
    (["--on", "3xH100", "--config.mesh.tensor=2"], "does not divide 3 chips"),
  ],
)
def test_what_cannot_be_planned_is_bad_configuration(flags, message, capsys):
  config = ["--config", "configs/vae_structure.py"]
  assert plan.main([*config, *flags]) == cli.EXIT_BAD_INPUT
  assert message in capsys.readouterr().err


def test_a_kind_of_model_without_an_estimate_says_so(monkeypatch, capsys):
  toy_model.register(monkeypatch)
  config = str(pathlib.Path(__file__).parents[1] / "support/toy_config.py")
  assert plan.main(["--on", "8xH100", "--config", config]) == cli.EXIT_BAD_INPUT
  assert "is not estimated; compile it with launch.aot" in capsys.readouterr().err


@pytest.mark.parametrize("on, code", [("128xA100", 0), ("8xh100", 1)])
def test_aot_gives_a_verdict_on_gpus(on, code, tmp_path, capsys):
  file = tmp_path / "report.json"
  argv = ["--config", "configs/dpo_geometry.py", "--topology", on, "--json", str(file)]
  assert aot.main(argv) == code
  out = capsys.readouterr().out
  assert ("DOES NOT FIT" in out) == bool(code)
  report = json.loads(file.read_text())
  assert report["estimated"]
  assert report["fits"] == (code == 0)
  assert report["hbm_capacity_bytes"] == pytest.approx(0.92 * 79 * GIB)


def test_the_page_of_recipes_holds_the_smallest_hardware_that_the_command_finds(recipes):
  table = planning.minima(list(recipes.values()), ASSUMED)
  assert plan_text.smallest(table) in (DOCS / "recipes.md").read_text()
