"""Arithmetic of a training step in closed form and as XLA counts it, collectives read from
programs, and launch.aot on host devices.
"""

import json

import pytest

from launch import aot
from launch.console import cli
from launch.performance import compiled, counting, hlo, search
from launch.trainer import lowering, plan
from launch.trainer.setup import prepare
from sam3d_jax.models.stack import REMAT_POLICIES
from sam3d_jax.training import compilation, hardware

RECIPES = {  # TFLOP a sample: anchors of the published recipe, counted from shapes
  "configs/pretrain_geometry.py": 20.8,
  "configs/midtrain_fo_geometry.py": 27.9,
  "configs/midtrain_os_geometry.py": 33.4,
  "configs/pretrain_texture.py": 141.1,
}

VAE = "configs/vae_structure.py:fake"  # the smallest step

PROGRAM = """HloModule step
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = f32[16,4]{1,0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}
}
%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(24)
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%init), condition=%cond, body=%body, COUNT
  %sum = bf16[100]{0} all-reduce(%g), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %alone = f32[7]{0} all-reduce(%h), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
""".replace("COUNT", 'backend_config={"known_trip_count":{"n":"24"}}')


@pytest.mark.parametrize("path, teraflops", RECIPES.items())
def test_closed_form_of_the_full_recipes_is_the_reference_count(path, teraflops):
  config = compiled.without_data(cli.load_config(path), batch_size=1)
  counted = plan.model_flops(prepare(config))
  assert counted / 1e12 == pytest.approx(teraflops, rel=2e-3)


def test_forms_that_save_arithmetic_do_so_in_the_executed_count_and_not_in_the_reference():
  config = cli.load_config("configs/midtrain_os_geometry.py")
  saving = compiled.without_data(config, batch_size=1)
  plain = compiled.without_data(
    config,
    batch_size=1,
    model__flow__absorb_layout_kv=False,
    model__condition__pointmap__cls_only=False,
  )
  of_saving, of_plain = prepare(saving), prepare(plain)
  reference = plan.model_flops(of_plain)
  assert plan.model_flops(of_saving) == reference
  # what attend_few adds
  heads_at_once = plan.model_flops(of_plain, plain=False) - reference
  assert 0 < heads_at_once < 3e-3 * reference
  executed = plan.model_flops(of_saving, plain=False)
  assert executed / reference == pytest.approx(30.0 / 33.4, rel=0.02)


def test_closed_form_agrees_with_xlas_count_of_the_full_size_step_within_five_percent():
  config = cli.load_config("configs/midtrain_os_geometry.py")
  counted = counting.xla_flops_per_sample(config)
  setup = prepare(compiled.without_data(config, batch_size=1))
  closed = plan.model_flops(setup, plain=False)
  assert counted == pytest.approx(closed, rel=0.05)


@pytest.mark.slow
def test_so_does_that_of_the_full_size_texture_step():
  config = cli.load_config("configs/pretrain_texture.py")
  counted = counting.xla_flops_per_sample(config)
  setup = prepare(compiled.without_data(config, batch_size=1))
  closed = plan.model_flops(setup, plain=False)
  assert counted == pytest.approx(closed, rel=0.05)
  # the step up in resolution is multiplied at half of it
  assert closed < plan.model_flops(setup)


def test_collectives_in_a_loop_count_as_often_as_it_runs_and_lone_groups_not_at_all():
  assert hlo.summary(hlo.collectives(PROGRAM)) == {
    "all-gather": {"count": 24, "bytes": 24 * 256, "traffic": 24 * 128.0},
    "all-reduce": {"count": 1, "bytes": 200, "traffic": 2 * 200 * 7 / 8},
  }


def test_a_collective_whose_group_spans_slices_is_booked_on_the_network():
  found = hlo.summary(hlo.collectives(PROGRAM, slice_of=[0, 0, 0, 0, 1, 1, 1, 1]))
  assert set(found) == {"all-gather", "all-reduce/dcn"}


@pytest.mark.parametrize(
  "text, groups",
  [
    ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
  ],
)
def test_groups_are_read_in_every_way_they_are_printed(text, groups):
  assert hlo._groups(text) == groups


def run(tmp_path, *arguments: str):
  """(exit code, report or None) of the command."""
  path = tmp_path / "report.json"
  code = aot.main(["--json", str(path), *arguments])
  report = json.loads(path.read_text()) if path.exists() else None
  return code, report


@pytest.mark.parametrize(
  "path", [VAE, pytest.param("configs/pretrain_geometry.py:fake", marks=pytest.mark.slow)]
)
def test_the_report_is_of_the_program_that_training_runs(tmp_path, path):
  code, report = run(tmp_path, "--config", path, "--topology", "cpu:1")
  assert code == 0
  assert report["fits"]
  assert report["fingerprint"] == fingerprint(path)
  assert {name for name, found in report["gpus"].items() if found["fits"]} == {
    "a100",
    "h100",
    "h200",
  }
  assert set(report) >= {
    "hbm_bytes",
    "hbm_capacity_bytes",
    "model_flops_per_sample",
    "xla_flops_per_step",
    "collectives",
    "compile_seconds",
    "chips",
    "batch_size",
  }


def fingerprint(path: str, *overrides: str) -> str:
  """Of the program that training runs."""
  config = cli.load_config(path, [f"--config.{override}" for override in overrides])
  lowered = lowering.step(prepare(config))
  return compilation.fingerprint(lowered)


def test_another_batch_is_another_program_another_seed_or_learning_rate_is_not():
  program = fingerprint(VAE)
  assert program != fingerprint(VAE, "batch_size=4")
  # inputs of one program
  assert program == fingerprint(VAE, "seed=7", "optim.lr=0.5")


def chip_of(memory: float) -> hardware.Chip:
  """A slow chip with so many bytes."""
  return hardware.Chip(peak=1e12, memory=memory, bandwidth=1e10, link=1e9, network=1e9)


def test_a_step_that_does_not_fit_ends_with_one(tmp_path, monkeypatch):
  monkeypatch.setitem(hardware.CHIPS, "cpu", chip_of(1e5))
  code, report = run(tmp_path, "--config", VAE, "--topology", "cpu:1")
  assert code == 1
  assert not report["fits"]
  assert report["hbm_bytes"] > report["hbm_capacity_bytes"]


def test_slices_exchange_each_gradient_once_shared_out_among_the_chips_that_hold_it():
  assert compiled.between_slices(1600, data=8, slices=1) == 0
  assert compiled.between_slices(1600, data=8, slices=2) == 2 * 0.5 * 800 / 4


@pytest.mark.parametrize(
  "bytes_at",
  [
    lambda n: 10 + 7 * n,
    lambda n: 30 + 5 * n + n % 3,
    lambda n: 60 * (n < 3) + 2 * n,
    lambda n: 2 * n**1.3,
    lambda n: 99 + n,
    lambda n: 200,
    lambda n: n / 10,
    lambda n: 45 * n,
  ],
)
def test_the_search_ends_at_the_last_batch_that_fits_after_few_compilations(bytes_at):
  asked = []

  def compiled_at(n: int) -> float:
    asked.append(n)
    return bytes_at(n)

  found = search.largest(compiled_at, 100)
  fitting = [n for n in range(1, search.SEARCHED_UP_TO + 1) if bytes_at(n) <= 100]
  assert found == max(fitting, default=0)
  assert len(asked) == len(set(asked)) <= 6


def test_the_search_compiles_until_a_batch_does_not_fit(tmp_path, monkeypatch, capsys):
  vae = ("--config", VAE, "--topology", "cpu:1")
  used = {}
  for n in (2, 3):
    _, report = run(tmp_path, *vae, f"--config.batch_size={n}")
    used[n] = report["hbm_bytes"]
  # a chip between the two
  monkeypatch.setitem(hardware.CHIPS, "cpu", chip_of((used[2] + used[3]) / 2))
  code, report = run(tmp_path, *vae, "--search")
  assert code == 0
  (row,) = report["search"]
  assert row == {"remat": "", "batch_per_shard": 2, "batch_per_chip": 2.0, "hbm_bytes": used[2]}
  # the first that does not fit was compiled, not guessed
  assert "3 samples on each of 1 shards" in capsys.readouterr().err


@pytest.mark.parametrize(
  "path, names, message",
  [
    (
      "configs/pretrain_geometry.py:fake",
      "full,half",
      "'half' is not one of none, operands, dots, attention, full",
    ),
    ("configs/vae_structure.py:fake", "full", "no rematerialisation policies"),
  ],
)
def test_a_search_over_unknown_policies_is_bad_configuration(
  tmp_path, capsys, path, names, message
):
  code, _ = run(tmp_path, "--config", path, "--topology", "cpu:1", "--search", names)
  assert code == cli.EXIT_BAD_INPUT
  assert message in capsys.readouterr().err


def test_a_search_names_policies_or_takes_all():
  config = cli.load_config("configs/pretrain_geometry.py:fake")
  assert search.searched("full,dots", config) == ("full", "dots")
  assert search.searched("", config) == REMAT_POLICIES
