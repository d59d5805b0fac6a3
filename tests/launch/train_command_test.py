"""Training commands end to end on random batches: they run, stop, resume, and end where an unbroken
run ends.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch.console import cli
from launch.trainer import command
from sam3d_jax.training import checkpoint

STAGES = {"configs/pretrain_geometry.py": "pretrain", "configs/vae_structure.py": "train_vae"}


def run(config, workdir, *overrides, dry_run=False):
  argv = [
    "--config",
    f"{config}:fake",
    "--workdir",
    str(workdir),
    *(["--dry_run"] if dry_run else []),
    *overrides,
  ]
  return command.main((STAGES[config],), "x", argv)


def final_arrays(workdir, step=None):
  step = checkpoint.resolve_step(workdir, step)
  stored = checkpoint.stored_shapes(workdir, step)
  return step, {p: np.asarray(x) for p, x in checkpoint.read_arrays(workdir, step, stored).items()}


def assert_same_run(a, b, step=None):
  (step_a, arrays_a), (step_b, arrays_b) = final_arrays(a, step), final_arrays(b, step)
  assert step_a == step_b and set(arrays_a) == set(arrays_b)
  for path in arrays_a:
    np.testing.assert_array_equal(arrays_a[path], arrays_b[path], err_msg=path)


def metric_rows(workdir):
  """In order of steps: an evaluation is written when it is ready, which may be some steps late."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return sorted(rows, key=lambda r: (r["step"], "eval/loss" in r))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken")
  assert run("configs/pretrain_geometry.py", folder) == 0
  return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """A run of its own that ended half-way; tests go on with a copy."""
  folder = tmp_path_factory.mktemp("stopped")
  assert run("configs/pretrain_geometry.py", folder, "--config.steps=4") == 0
  return folder


def copy(folder, to):
  return shutil.copytree(folder, to / "run")


def test_a_run_leaves_checkpoints_metrics_and_a_ledger(unbroken):
  assert checkpoint.steps(unbroken) == [4, 8]
  rows = metric_rows(unbroken)
  assert [r["step"] for r in rows if "loss" in r] == [2, 4, 6, 8] and [
    r["step"] for r in rows if "eval/loss" in r
  ] == [4, 8]
  assert all(np.isfinite(r["loss"]) for r in rows if "loss" in r)
  assert list((unbroken / "tensorboard").iterdir())
  meta = checkpoint.read_meta(unbroken)
  assert meta["config"]["stage"] == "pretrain" and meta["lineage"]["versions"]["jax"]


def test_the_ledger_sums_to_the_wall_time(unbroken):
  rows = [json.loads(line) for line in (unbroken / "goodput.jsonl").read_text().splitlines()]
  assert rows[-1]["event"] == "end"
  np.testing.assert_allclose(sum(rows[-1]["seconds"].values()), rows[-1]["wall"], rtol=0.01)
  assert {"compile", "step", "checkpoint", "eval"} <= set(rows[-1]["seconds"])


def test_resumed_equals_unbroken_bit_for_bit(unbroken, stopped, tmp_path):
  resumed = copy(stopped, tmp_path)
  assert run("configs/pretrain_geometry.py", resumed) == 0
  assert_same_run(unbroken, resumed)
  strip = lambda rows: [
    {k: v for k, v in r.items() if not k.startswith("time/")} for r in rows if r["step"] > 4
  ]
  assert strip(metric_rows(resumed)) == strip(metric_rows(unbroken))


def test_a_finished_run_is_not_trained_again(unbroken, capsys):
  before = (unbroken / "metrics.jsonl").read_text()
  assert run("configs/pretrain_geometry.py", unbroken) == 0
  assert (
    "already trained" in capsys.readouterr().out
    and (unbroken / "metrics.jsonl").read_text() == before
  )


def test_a_work_folder_of_another_experiment_is_refused(unbroken, capsys):
  assert (
    run("configs/pretrain_geometry.py", unbroken, "--config.optim.lr=0.5") == cli.EXIT_BAD_INPUT
  )
  assert "optim.lr = 0.002, now it is 0.5" in capsys.readouterr().err


def test_speed_may_change_on_resume(stopped, tmp_path):
  resumed = copy(stopped, tmp_path)
  assert (
    run(
      "configs/pretrain_geometry.py",
      resumed,
      "--config.data.prefetch=2",
      "--config.model.flow.remat=full",
    )
    == 0
  )
  assert checkpoint.steps(resumed)[-1] == 8


def test_the_same_seed_gives_the_same_run_and_another_seed_another(unbroken, stopped, tmp_path):
  assert_same_run(unbroken, stopped, step=4)
  one = ("--config.steps=1", "--config.eval.every=0")
  for seed in (0, 1):
    workdir = tmp_path / str(seed)
    assert run("configs/vae_structure.py", workdir, *one, f"--config.seed={seed}") == 0
  with pytest.raises(AssertionError):
    assert_same_run(tmp_path / "0", tmp_path / "1")


@pytest.mark.multidevice
def test_dry_run_prints_the_plan_and_writes_no_checkpoint(tmp_path, capsys):
  assert run("configs/pretrain_geometry.py", tmp_path, "--config.mesh.fsdp=2", dry_run=True) == 0
  out = capsys.readouterr().out
  assert "parameters" in out and "fsdp 2" in out and "optimiser" in out
  assert checkpoint.steps(tmp_path) == []


def test_a_stage_starts_from_another_runs_averages_and_says_where_it_comes_from(unbroken, tmp_path):
  assert (
    run(
      "configs/pretrain_geometry.py",
      tmp_path,
      f"--config.init_from={unbroken}",
      "--config.optim.lr=1e-30",
      "--config.steps=1",
      "--config.eval.every=0",
    )
    == 0
  )
  parent = checkpoint.load_params(unbroken, which="ema")
  child = checkpoint.load_params(tmp_path, which="raw")
  for path in parent:
    np.testing.assert_array_equal(parent[path], child[path], err_msg=path)
  (record,) = checkpoint.read_meta(tmp_path)["lineage"]["parents"]
  assert record["step"] == 8 and record["digest"] == checkpoint.digest(
    checkpoint.read_meta(unbroken)
  )


def test_init_from_another_architecture_lists_what_differs(unbroken, tmp_path, capsys):
  assert (
    run(
      "configs/pretrain_geometry.py",
      tmp_path,
      f"--config.init_from={unbroken}",
      "--config.model.flow.mlp_ratio=2.0",
    )
    == cli.EXIT_BAD_INPUT
  )
  assert "shape differs  flow/blocks/layer/layout/mlp/down/kernel" in capsys.readouterr().err


def test_the_vae_trains_and_its_reconstruction_improves(tmp_path):
  assert (
    run(
      "configs/vae_structure.py",
      tmp_path,
      "--config.steps=30",
      "--config.log.every=5",
      "--config.optim.warmup_steps=1",
    )
    == 0
  )
  losses = [r["loss"] for r in metric_rows(tmp_path) if "loss" in r]
  assert losses[-1] < losses[0]


@pytest.mark.parametrize(
  "command, config",
  [
    ("launch.train_vae", "configs/vae_structure.py"),
    pytest.param("launch.pretrain", "configs/pretrain_geometry.py", marks=pytest.mark.slow),
  ],
)
def test_sigterm_saves_exits_75_and_the_next_start_ends_where_an_unbroken_run_does(
  tmp_path, command, config
):
  overrides = (
    "--config.steps=100",
    "--config.batch_size=2",
    "--config.checkpoint.every=1000",
    "--config.eval.every=0",
  )
  argv = [sys.executable, "-m", command, "--config", f"{config}:fake", *overrides]
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  child = subprocess.Popen(
    [*argv, "--workdir", str(tmp_path / "broken")],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  metrics = tmp_path / "broken" / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
    assert child.poll() is None and time.monotonic() < deadline, child.stdout.read().decode()
    time.sleep(0.01)
  child.send_signal(signal.SIGTERM)
  output = child.communicate()[0].decode()
  assert child.returncode == cli.EXIT_RETRY, output
  (saved,) = checkpoint.steps(tmp_path / "broken")
  assert 0 < saved < 100
  for folder in ("broken", "unbroken"):
    subprocess.run(
      [*argv, "--workdir", str(tmp_path / folder)], env=env, check=True, capture_output=True
    )
  assert_same_run(tmp_path / "broken", tmp_path / "unbroken")
