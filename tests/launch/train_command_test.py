"""Training commands end to end on random batches: they run, stop, resume, and end where an unbroken
run ends.
"""

import shutil
import signal

import numpy as np
import pytest

from launch.console import cli
from launch.trainer import command
from sam3d_jax.training import checkpoint_arrays, checkpoint_params, checkpoint_steps
from tests.support import jobs

GEOMETRY = "configs/pretrain_geometry.py"
VAE = "configs/vae_structure.py"
STAGES = {GEOMETRY: "pretrain", VAE: "train_vae"}


def run(config, workdir, *flags) -> int:
  argv = [
    "--config",
    f"{config}:fake",
    "--workdir",
    str(workdir),
    *flags,
  ]
  return command.main((STAGES[config],), "x", argv)


def arrays_of(workdir, step: int | None):
  """The step, by default the newest, and every array of it."""
  step = checkpoint_steps.resolve_step(workdir, step)
  stored = checkpoint_steps.stored_shapes(workdir, step)
  return step, checkpoint_arrays.read_arrays(workdir, step, stored)


def assert_same_run(a, b, step: int | None = None) -> None:
  step_a, arrays_a = arrays_of(a, step)
  step_b, arrays_b = arrays_of(b, step)
  assert step_a == step_b
  assert set(arrays_a) == set(arrays_b)
  for path, array in arrays_a.items():
    np.testing.assert_array_equal(array, arrays_b[path], err_msg=path)


def metric_rows(workdir) -> list[dict]:
  """In order of steps: an evaluation is written when it is ready, which may be some steps late."""
  rows = jobs.metric_rows(workdir)
  return sorted(rows, key=lambda row: (row["step"], "eval/loss" in row))


def losses(workdir) -> list[float]:
  return [row["loss"] for row in metric_rows(workdir) if "loss" in row]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken")
  assert run(GEOMETRY, folder) == 0
  return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """A run of its own that ended half-way; tests go on with a copy."""
  folder = tmp_path_factory.mktemp("stopped")
  assert run(GEOMETRY, folder, "--config.steps=4") == 0
  return folder


def copy(folder, to):
  return shutil.copytree(folder, to / "run")


def test_a_run_leaves_checkpoints_metrics_and_a_ledger(unbroken):
  assert checkpoint_steps.steps(unbroken) == [4, 8]
  rows = metric_rows(unbroken)
  logged = [row["step"] for row in rows if "loss" in row]
  evaluated = [row["step"] for row in rows if "eval/loss" in row]
  assert logged == [2, 4, 6, 8]
  assert evaluated == [4, 8]
  assert np.all(np.isfinite(losses(unbroken)))
  assert list((unbroken / "tensorboard").iterdir())

  meta = checkpoint_steps.read_meta(unbroken)
  assert meta["config"]["stage"] == "pretrain"
  assert meta["lineage"]["versions"]["jax"]


def test_the_ledger_sums_to_the_wall_time(unbroken):
  *_, last = jobs.ledger_rows(unbroken)[0]
  assert last["event"] == "end"
  total = sum(last["seconds"].values())
  np.testing.assert_allclose(total, last["wall"], rtol=0.01)
  assert {"compile", "step", "checkpoint", "eval"} <= set(last["seconds"])


def science_after(workdir, step: int) -> list[dict]:
  """Metrics of later steps but for times."""
  found = []
  for row in metric_rows(workdir):
    if row["step"] > step:
      found.append({name: value for name, value in row.items() if not name.startswith("time/")})
  return found


def test_resumed_equals_unbroken_bit_for_bit(unbroken, stopped, tmp_path):
  resumed = copy(stopped, tmp_path)
  assert run(GEOMETRY, resumed) == 0
  assert_same_run(unbroken, resumed)
  assert science_after(resumed, 4) == science_after(unbroken, 4) != []


def test_a_finished_run_is_not_trained_again(unbroken, capsys):
  metrics = unbroken / "metrics.jsonl"
  before = metrics.read_text()
  assert run(GEOMETRY, unbroken) == 0
  assert "already trained" in capsys.readouterr().out
  assert metrics.read_text() == before


def test_a_dry_run_in_a_work_folder_says_where_it_would_resume(unbroken, capsys):
  before = sorted(unbroken.rglob("*"))
  assert run(GEOMETRY, unbroken, "--dry_run") == 0
  assert f"start: would resume {unbroken} at step 8 of 8" in capsys.readouterr().out
  assert sorted(unbroken.rglob("*")) == before


def test_a_work_folder_of_another_experiment_is_refused(unbroken, capsys):
  code = run(GEOMETRY, unbroken, "--config.optim.lr=0.5")
  assert code == cli.EXIT_BAD_INPUT
  assert "optim.lr = 0.003, now it is 0.5" in capsys.readouterr().err


def test_speed_may_change_on_resume(stopped, tmp_path):
  resumed = copy(stopped, tmp_path)
  faster = ("--config.data.prefetch=2", "--config.model.flow.remat=full")
  assert run(GEOMETRY, resumed, *faster) == 0
  assert checkpoint_steps.steps(resumed)[-1] == 8


def test_the_same_seed_gives_the_same_run(unbroken, stopped):
  assert_same_run(unbroken, stopped, step=4)


def test_another_seed_gives_another_run(tmp_path):
  one = ("--config.steps=1", "--config.eval.every=0")
  for seed in (0, 1):
    assert run(VAE, tmp_path / str(seed), *one, f"--config.seed={seed}") == 0
  with pytest.raises(AssertionError):
    assert_same_run(tmp_path / "0", tmp_path / "1")


@pytest.mark.multidevice
def test_dry_run_prints_the_plan_and_writes_no_checkpoint(tmp_path, capsys):
  assert run(GEOMETRY, tmp_path, "--dry_run", "--config.mesh.fsdp=2") == 0
  out = capsys.readouterr().out
  assert "parameters" in out
  assert "fsdp 2" in out
  assert "optimiser" in out
  assert checkpoint_steps.steps(tmp_path) == []


def test_a_stage_starts_from_another_runs_averages_and_says_where_it_comes_from(unbroken, tmp_path):
  code = run(
    GEOMETRY,
    tmp_path,
    f"--config.init_from={unbroken}",
    "--config.optim.lr=1e-30",
    "--config.steps=1",
    "--config.eval.every=0",
  )
  assert code == 0
  parent = checkpoint_params.load_params(unbroken, which="ema")
  child = checkpoint_params.load_params(tmp_path, which="raw")
  for path, array in parent.items():
    np.testing.assert_array_equal(array, child[path], err_msg=path)

  (record,) = checkpoint_steps.read_meta(tmp_path)["lineage"]["parents"]
  assert record["step"] == 8
  assert record["digest"] == checkpoint_steps.digest(checkpoint_steps.read_meta(unbroken))


def test_init_from_another_architecture_lists_what_differs(unbroken, tmp_path, capsys):
  code = run(
    GEOMETRY,
    tmp_path,
    f"--config.init_from={unbroken}",
    "--config.model.flow.mlp_ratio=2.0",
  )
  assert code == cli.EXIT_BAD_INPUT
  assert "shape differs  flow/blocks/layer/layout/mlp/down/kernel" in capsys.readouterr().err


def test_the_vae_trains_and_its_reconstruction_improves(tmp_path):
  code = run(
    VAE,
    tmp_path,
    "--config.steps=30",
    "--config.log.every=5",
    "--config.optim.warmup_steps=1",
  )
  assert code == 0
  first, *_, last = losses(tmp_path)
  assert last < first


@pytest.mark.parametrize(
  "command",
  [
    "launch.train_vae",
    pytest.param("launch.pretrain", marks=pytest.mark.slow),
  ],
)
def test_sigterm_saves_exits_75_and_the_next_start_ends_where_an_unbroken_run_does(
  tmp_path, command
):
  overrides = (
    "--config.steps=100",
    "--config.batch_size=2",
    "--config.checkpoint.every=1000",
    "--config.eval.every=0",
  )
  broken = tmp_path / "broken"
  unbroken = tmp_path / "unbroken"

  # Told to stop once two steps are done.
  with jobs.Job(broken, overrides, command=command) as job:
    assert job.until(lambda: len(jobs.metric_rows(broken)) >= 2), job.output()
    job.signal(signal.SIGTERM)
    assert job.wait() == [cli.EXIT_RETRY], job.output()
  (saved,) = checkpoint_steps.steps(broken)
  assert 0 < saved < 100

  # Gone on with, and beside it never stopped.
  for workdir in (broken, unbroken):
    with jobs.Job(workdir, overrides, command=command) as job:
      assert job.wait() == [0], job.output()
  assert_same_run(broken, unbroken)


# Nothing is learned at this rate: the first evaluation stays the best.
STANDSTILL = (
  "--config.optim.lr=1e-30",
  "--config.eval.every=2",
  "--config.eval.stop_after=2",
  "--config.checkpoint.keep=1",
)


def test_a_run_without_a_better_held_out_score_stops_and_its_best_state_is_what_is_read(
  tmp_path, capsys
):
  long = (*STANDSTILL, "--config.steps=20", "--config.checkpoint.every=3")
  assert run(GEOMETRY, tmp_path / "unbroken", *long) == 0
  out = capsys.readouterr().out
  assert "stops after 2 without a better loss" in out
  assert "(step 2) in 2 evaluations; step 2 is what is read" in out
  assert "trained to step 6" in out
  assert checkpoint_steps.steps(tmp_path / "unbroken") == [2, 6]
  assert checkpoint_steps.resolve_step(tmp_path / "unbroken") == 2
  logged = [row["step"] for row in metric_rows(tmp_path / "unbroken") if "loss" in row]
  assert logged == [2, 4, 6]

  # it does not begin again
  assert run(GEOMETRY, tmp_path / "unbroken", *long) == 0
  assert "already trained: no eval/loss better" in capsys.readouterr().out

  # a run that was interrupted on the way ends in the same states
  assert run(GEOMETRY, tmp_path / "resumed", *STANDSTILL, "--config.steps=4") == 0
  assert run(GEOMETRY, tmp_path / "resumed", *long) == 0
  assert_same_run(tmp_path / "unbroken", tmp_path / "resumed", step=2)
  assert_same_run(tmp_path / "unbroken", tmp_path / "resumed", step=6)
  files = [(tmp_path / name / "best.json").read_text() for name in ("unbroken", "resumed")]
  assert files[0] == files[1]


@pytest.mark.parametrize(
  "flags, said",
  [
    (("--config.eval.stop_after=-1",), "eval.stop_after = -1"),
    (("--config.eval.stop_after=2", "--config.eval.every=0"), "set eval.every"),
    (
      ("--config.eval.stop_after=2", "--config.eval.score=viuo"),
      "eval.score = 'viuo' is not one of loss, viou",
    ),
    (("--config.eval.stop_after=2", "--config.eval.score=viou"), "--config.eval.decoder=DIR"),
  ],
)
def test_a_rule_for_stopping_that_cannot_work_is_a_configuration_error(
  tmp_path, capsys, flags, said
):
  assert run(GEOMETRY, tmp_path, *flags) == cli.EXIT_BAD_INPUT
  assert said in capsys.readouterr().err
