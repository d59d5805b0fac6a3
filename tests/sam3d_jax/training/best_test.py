"""The best state of a run: counted alike in one go and after a restart, kept, and read."""

import json

import pytest

from sam3d_jax.errors import ConfigError
from sam3d_jax.training import best, checkpoint_steps, retention
from sam3d_jax.training.best import Best, StopRule

LOSS = StopRule("eval/loss", higher=False, patience=2)
SCORE = StopRule("eval/viou", higher=True, patience=2)


def counted(rule, workdir, values) -> Best:
  """After evaluations at steps 10, 20, ..."""
  kept = Best(rule, workdir)
  for number, value in enumerate(values, 1):
    kept.take(10 * number, {rule.score: value})
  return kept


def known(kept: Best) -> tuple:
  return kept.step, kept.value, kept.since, kept.over


def write_metrics(workdir, values) -> None:
  lines = []
  for number, value in enumerate(values, 1):
    lines.append(json.dumps({"step": 10 * number, "loss": 9.0}))
    lines.append(json.dumps({"step": 10 * number, "eval/loss": value}))
  text = "\n".join([*lines, '{"step": 999, "eval/lo'])
  (workdir / best.METRICS).write_text(text)


@pytest.mark.parametrize(
  "rule, values, expected",
  [
    (LOSS, [3.0], (10, 3.0, 0, False)),
    (LOSS, [3.0, 2.0, 2.5], (20, 2.0, 1, False)),
    (LOSS, [3.0, 2.0, 2.5, 2.0], (20, 2.0, 2, True)),  # as good is not better
    (LOSS, [3.0, 3.5, 2.0], (30, 2.0, 0, False)),
    (SCORE, [0.3, 0.4, 0.2, 0.1], (20, 0.4, 2, True)),
  ],
)
def test_a_run_is_over_after_so_many_evaluations_without_a_better_one(
  tmp_path, rule, values, expected
):
  kept = counted(rule, tmp_path, values)
  assert known(kept) == expected
  assert json.loads((tmp_path / best.FILE).read_text())["step"] == expected[0]


@pytest.mark.parametrize("evaluations", range(6))
def test_what_is_known_at_a_step_is_the_same_after_a_restart(tmp_path, evaluations):
  values = [3.0, 2.0, 2.5, 1.0, 1.5]
  write_metrics(tmp_path, values)
  resumed = Best(LOSS, tmp_path)
  resumed.resume(10 * evaluations + 5)
  expected = known(counted(LOSS, tmp_path, values[:evaluations]))
  if evaluations:
    assert known(resumed) == expected
  else:
    assert resumed.step is None and not resumed.over


def test_what_it_says_depends_on_whether_the_run_is_over(tmp_path):
  assert counted(LOSS, tmp_path, [3.0, 2.0]).text() == "best eval/loss 2 at step 20"
  over = counted(LOSS, tmp_path, [3.0, 2.0, 2.5, 2.5]).text()
  assert over == "no eval/loss better than 2 (step 20) in 2 evaluations"


def test_a_score_that_no_evaluation_gives_is_a_configuration_error(tmp_path):
  kept = Best(StopRule("eval/iou_3d", higher=True, patience=2), tmp_path)
  scores = {"eval/loss": 1.0, "eval/iou_3d": float("nan")}
  with pytest.raises(ConfigError, match="eval.score = 'iou_3d': .* it gives loss"):
    kept.take(10, scores)


def test_whoever_names_no_step_reads_the_best_one_and_the_newest_where_it_is_not_there(tmp_path):
  for step in (10, 20, 30):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  assert checkpoint_steps.resolve_step(tmp_path) == 30
  counted(LOSS, tmp_path, [3.0, 2.0, 2.5])
  assert checkpoint_steps.resolve_step(tmp_path) == 20
  assert checkpoint_steps.resolve_step(tmp_path, 10) == 10
  (tmp_path / "checkpoints" / "20").rmdir()
  assert checkpoint_steps.resolve_step(tmp_path) == 30


def test_the_best_step_stays_however_old_it_gets(tmp_path):
  for step in range(1, 7):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  keeper = retention.Keeper(tmp_path, 2, verify=lambda workdir, step, stop: None)
  keeper.best = 2
  keeper.committed(6)
  keeper.wait()
  assert checkpoint_steps.steps(tmp_path) == [2, 5, 6]
