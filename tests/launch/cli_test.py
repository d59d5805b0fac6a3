"""Command line: overrides, readable errors, exit codes."""

import subprocess
import sys

import pytest

from launch.console import cli
from sam3d_jax.errors import InputError, JobFailed, Preempted

CONFIG = "configs/pretrain_geometry.py"


def command(run, *argv, **kwargs):
  return cli.run_command(run, description="Test command.", argv=list(argv), **kwargs)


def test_overrides_reach_the_configuration_with_their_type():
  seen = {}
  run = lambda args: seen.update(
    lr=args.config.optim.lr, ema=args.config.optim.ema, steps=args.config.steps
  )
  assert (
    command(
      run,
      f"--config={CONFIG}:tiny",
      "--config.optim.lr=3e-4",
      "--config.optim.ema=(0.9,0.99)",
      "--config.steps=7",
    )
    == 0
  )
  assert seen == {"lr": 3e-4, "ema": (0.9, 0.99), "steps": 7}


@pytest.mark.parametrize(
  "argument, expected",
  [
    ("--config.optim.lrr=1", "the nearest key is 'optim.lr'"),
    ("--config.lr=1", "the nearest key is 'optim.lr'"),
    ("--config.optim.lr=fast", "optim.lr = 'fast' is not of type float"),
    ("--config.optim.lr", "write it as --config.optim.lr=VALUE"),
  ],
)
def test_a_wrong_override_names_key_value_and_nearest_key(capsys, argument, expected):
  assert command(lambda args: 0, "--config", CONFIG, argument) == cli.EXIT_BAD_INPUT
  assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
  "spec, expected",
  [
    ("configs/pretrain_geometri.py", "the nearest is configs/pretrain_geometry.py"),
    (f"{CONFIG}:tinny", "variant 'tinny' is not one of tiny, fake"),
  ],
)
def test_a_wrong_file_or_variant_names_what_exists(capsys, spec, expected):
  assert command(lambda args: 0, "--config", spec) == cli.EXIT_BAD_INPUT
  assert expected in capsys.readouterr().err


def test_a_configuration_of_the_package_is_found_from_another_folder(tmp_path, monkeypatch):
  here = cli.load_config(f"{CONFIG}:tiny", ["--config.steps=7"])
  monkeypatch.chdir(tmp_path)
  assert cli.load_config(f"{CONFIG}:tiny", ["--config.steps=7"]) == here
  with pytest.raises(cli.ConfigError, match="the nearest is configs/pretrain_geometry.py"):
    cli.load_config("configs/pretrain_geometri.py")


def test_a_configuration_of_the_working_folder_comes_before_that_of_the_package(
  tmp_path, monkeypatch
):
  own = tmp_path / CONFIG
  own.parent.mkdir()
  own.write_text("""
from configs import pretrain_geometry


def get_config(variant=""):
  c = pretrain_geometry.get_config(variant)
  c.steps = 5
  return c
""")
  monkeypatch.chdir(tmp_path)
  assert cli.load_config(CONFIG).steps == 5


def test_a_configuration_is_locked():
  config = cli.load_config(CONFIG)
  with pytest.raises(AttributeError):
    config.optim.learning_rate = 1.0


@pytest.mark.parametrize(
  "error, code",
  [(InputError("x"), 2), (Preempted("x"), 75), (KeyboardInterrupt(), 75), (JobFailed("x"), 1)],
)
def test_outcomes_map_to_exit_codes(error, code):
  def run(args):
    raise error

  assert command(run, config="none") == code


def test_a_configuration_error_is_found_before_jax_is_imported():
  code = (
    "import sys; from launch.console import cli;"
    f"argv = ['--config={CONFIG}', '--config.optim.lrr=1'];"
    "code = cli.run_command(lambda a: 0, description='x', argv=argv);"
    "assert code == 2; assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_training_command_rejects_a_missing_dataset_before_jax_is_imported(tmp_path):
  argv = ["--config=configs/pretrain_geometry.py:tiny", f"--workdir={tmp_path}"]
  code = (
    "import contextlib, io, sys; from launch import pretrain; said = io.StringIO()\n"
    f"with contextlib.redirect_stderr(said): code = pretrain.main({argv})\n"
    "assert code == 2 and 'data.mixture.iso_3do.path' in said.getvalue()\n"
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
