"""The Texture & Refinement model goes through the training command as the others do."""

import pathlib

import pytest

from launch import pretrain
from sam3d_jax.training import checkpoint_steps
from tests.support import jobs

CONFIG = "configs/pretrain_texture.py:fake"


def train(workdir: pathlib.Path, *overrides: str) -> int:
  argv = ["--config", CONFIG, "--workdir", str(workdir), "--config.steps=4"]
  return pretrain.main([*argv, *overrides])


def test_its_plan_names_its_parts_and_what_a_row_costs(tmp_path, capsys):
  assert train(tmp_path, "--dry_run") == 0
  told = capsys.readouterr().out
  assert "texture" in told and "condition" in told and "flow" in told
  assert "TFLOP a sample" in told


@pytest.mark.parametrize(
  "override, words",
  [
    ("--config.model.row.voxels=1000", "model.row.voxels = 1000 is not a multiple of 128"),
    ("--config.model.row.objects=9", "voxels = 384 slots do not hold objects = 9"),
    ("--config.model.latent_statistics=trelis", "the nearest is 'trellis'"),
    ("--config.model.flow.latent_channels=4", "8 channels and flow.latent_channels = 4"),
    ("--config.model.condition.streams=('image','pointmap')", "leave out pointmap"),
  ],
)
def test_wrong_values_are_refused_with_key_and_remedy(tmp_path, capsys, override, words):
  assert train(tmp_path, override) == 2
  assert words in capsys.readouterr().err


@pytest.mark.slow
def test_it_trains_evaluates_and_resumes_bit_for_bit(tmp_path):
  assert train(tmp_path / "unbroken") == 0
  assert train(tmp_path / "run", "--config.steps=2", "--config.checkpoint.every=2") == 0
  assert checkpoint_steps.steps(tmp_path / "run") == [2]
  assert train(tmp_path / "run") == 0
  jobs.assert_same_run(tmp_path / "unbroken", tmp_path / "run")
  rows = jobs.metric_rows(tmp_path / "unbroken")
  assert any("eval/flow/slat" in row for row in rows)
