"""Command line: overrides, readable errors, exit codes."""

import errno
import subprocess
import sys

import pytest

from launch.console import cli
from launch.trainer import checks
from sam3d_jax.errors import ConfigError, InputError, JobFailed, Preempted

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
  "override, said",
  [
    ("optim.ema=None", "its element None is none of numbers"),
    ("optim.ema=nan", "its element 'nan' is none of numbers"),
    ("optim.ema=", "its element '' is none of numbers"),
    ("optim.ema=('0.9',)", "its element '0.9' is none of numbers"),
    ("optim.ema=(True,)", "its element True is none of numbers"),
    ("optim.ema=((0.9,),)", "its element (0.9,) is none of numbers"),
    ("optim.lr=nan", "give a number"),
    ("data.mixture.iso_3do.weight=nan", "give a number"),
    ("model.condition.streams=image,mask", "write several as"),
    ("model.condition.streams=(image,mask)", "write several as"),
    ("model.condition.streams=", "write several as"),
    ("model.condition.streams=None", "its element None is none of texts"),
    ("model.condition.streams=(1,2)", "its element 1 is none of texts"),
    ("eval.steps_curve=None", "its element None is none of texts or numbers"),
    ("eval.steps_curve=4;8", "write several as"),
    ("sampler.pointmap_guidance=strong", "is not of type float"),
    ("sampler.pointmap_guidance=nan", "give a number"),
    ("init_from=None", "for none write --config.init_from="),
    ("model=geometry", "is not of type ConfigDict"),
    ("model.condition.pointmap=yes", "set it in a configuration file"),
  ],
)
def test_a_value_that_cannot_be_meant_is_named_with_file_key_and_remedy(capsys, override, said):
  key, _, value = override.partition("=")
  assert command(lambda args: 0, f"--config={CONFIG}:tiny", f"--config.{override}") == 2
  told = capsys.readouterr().err
  assert f"{CONFIG}: {key} = {value!r}" in told.replace('"', "'") or repr(value) in told
  assert said in told


@pytest.mark.parametrize(
  "override, expected",
  [
    ("optim.ema=0.9,0.99", (0.9, 0.99)),
    ("optim.ema=[0.9]", (0.9,)),
    ("optim.ema=()", ()),
    ("sampler.interval=(0,1)", (0, 1)),  # whole numbers are numbers
    ("model.condition.streams=image", ("image",)),
    ("model.condition.streams=('image','mask')", ("image", "mask")),
    ("eval.steps_curve=4,8", (4, 8)),
    ("data.thresholds=(3,3.5)", (3, 3.5)),
    ("sampler.pointmap_guidance=5", 5.0),
    ("sampler.pointmap_guidance=None", None),
  ],
)
def test_a_value_that_can_be_meant_is_taken(override, expected):
  config = cli.load_config(f"{CONFIG}:tiny", [f"--config.{override}"])
  key, _, _ = override.partition("=")
  for name in key.split("."):
    config = config[name]
  assert config == expected


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


def test_a_file_that_is_not_there_is_named_with_the_flag_that_gave_it():
  with pytest.raises(ConfigError, match="--vs none.py: no such configuration file"):
    cli.load_config("none.py", flag="--vs")


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


@pytest.mark.parametrize(
  "content, said",
  [
    (b"def get_config(:\n", "line 1: SyntaxError"),
    (b"x = 1\nimport not_there\n", "line 2: ModuleNotFoundError"),
    (b"def get_config(variant=''):\n  return {}['a']\n", "line 2: KeyError"),
    (b"x = 1\n", "get_config"),
    (b"def get_config(variant=''):\n  return 5\n", "gives int, expected a ConfigDict"),
    (b"x = 'S\xfcd'\n", "SyntaxError"),
    (b"", "get_config"),
  ],
)
def test_a_mistake_in_a_configuration_file_is_named(tmp_path, capsys, monkeypatch, content, said):
  # the library gives every file the same module
  monkeypatch.delitem(sys.modules, "config_config", raising=False)
  file = tmp_path / "own.py"
  file.write_bytes(content)
  assert command(lambda args: 0, "--config", str(file)) == cli.EXIT_BAD_INPUT
  told = capsys.readouterr().err
  assert str(file) in told and said in told


def test_a_configuration_is_locked():
  config = cli.load_config(CONFIG)
  with pytest.raises(AttributeError):
    config.optim.learning_rate = 1.0


@pytest.mark.parametrize(
  "error, code",
  [
    (InputError("x"), 2),
    (Preempted("x"), 75),
    (KeyboardInterrupt(), 75),
    (JobFailed("x"), 1),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
    (OSError(errno.EIO, "Input/output error", "x"), 1),
    (OSError(errno.ENOSPC, "No space left on device"), 1),
  ],
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


@pytest.mark.parametrize(
  "override, said",
  [
    ("data.mixture.iso_3do.weight=inf", "data.mixture.iso_3do.weight = inf is no weight"),
    ("data.mixture.iso_3do.weight=-1", "data.mixture.iso_3do.weight = -1.0 is no weight"),
    ("eval.steps_curve=many", "eval.steps_curve = ('many',): 'many' is not a positive whole"),
    ("data.thresholds=high", "data.thresholds = ('high',): 'high' is not a number"),
  ],
)
def test_a_number_of_the_run_is_checked_before_anything_else(override, said):
  config = cli.load_config(f"{CONFIG}:tiny", [f"--config.{override}"])
  with pytest.raises(InputError) as refused:
    checks.check(config, ("pretrain",))
  assert said in str(refused.value)


def test_a_training_command_rejects_a_missing_dataset_before_jax_is_imported(tmp_path):
  argv = ["--config=configs/pretrain_geometry.py:tiny", f"--workdir={tmp_path}"]
  code = (
    "import contextlib, io, sys; from launch import pretrain; said = io.StringIO()\n"
    f"with contextlib.redirect_stderr(said): code = pretrain.main({argv})\n"
    "assert code == 2 and 'data.mixture.iso_3do.path' in said.getvalue()\n"
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_output_that_nobody_reads_any_more_ends_without_a_traceback():
  command = (*"-m launch.inspect --config configs/pretrain_geometry.py --release_keys".split(),)
  job = subprocess.Popen(
    [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  job.stdout.close()  # as `| head` does
  said = job.stderr.read()
  assert job.wait() == 1
  assert "Traceback" not in said and "Exception ignored" not in said
