"""Metrics leave in several places under the same names."""

import sys
import types

import numpy as np
import pytest

from launch.console import cli
from launch.trainer import checks
from sam3d_jax.errors import ConfigError
from sam3d_jax.training.writers import Writers


class Recorder:
  """Stands in for the package wandb: keeps what it is given."""

  def __init__(self):
    self.started = []
    self.rows = []
    self.finished = 0

  def init(self, **settings):
    self.started.append(settings)
    return types.SimpleNamespace(
      log=self.rows.append,
      finish=self.finish,
      define_metric=lambda name, step_metric: None,
    )

  def finish(self):
    self.finished += 1

  Image = staticmethod(lambda picture: picture)


def test_one_run_in_weights_and_biases_goes_on_over_restarts_with_the_same_rows_as_the_file(
  tmp_path, monkeypatch
):
  # A run of one step, and its continuation.
  recorder = Recorder()
  monkeypatch.setitem(sys.modules, "wandb", recorder)
  for resume_step in (0, 1):
    writers = Writers(
      tmp_path,
      resume_step=resume_step,
      wandb="shapes",
      config={"seed": 3},
    )
    step = resume_step + 1
    writers.scalars(step, {"loss": 0.5})
    writers.picture(step, "samples", np.zeros((4, 4, 3), np.uint8))
    writers.close()

  first, second = recorder.started
  assert first == second
  assert first["project"] == "shapes"
  assert first["config"] == {"seed": 3}
  assert first["resume"] == "allow"
  assert recorder.finished == 2

  scalars = [row for row in recorder.rows if "loss" in row]
  pictures = [row for row in recorder.rows if "samples" in row]
  assert scalars == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
  assert [row["step"] for row in pictures] == [1, 2]


def test_a_project_without_the_package_is_a_configuration_error(monkeypatch):
  monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
  config = cli.load_config("configs/vae_structure.py:fake", ["--config.log.wandb=shapes"])
  with pytest.raises(ConfigError, match="log.wandb = 'shapes'.*pip install wandb"):
    checks.check(config, ("train_vae",))
