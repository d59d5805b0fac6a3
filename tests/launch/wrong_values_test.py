"""Values of a training configuration that cannot work: exit code 2 with key, value and remedy,
before a device is touched or a folder is made.
"""

import pytest

from launch import aot
from launch.console import cli
from launch.trainer import command, hosts, setup
from sam3d_jax.errors import ConfigError
from tests.support import tiny_dataset

GEOMETRY = "configs/sft_geometry.py:fake"
SHORTCUT = "configs/distill_geometry.py:fake"
PREFERENCE = "configs/dpo_geometry.py:fake"
VAE = "configs/vae_structure.py:fake"

# configuration, override -> what is said
WRONG = {
  # counts and durations
  (GEOMETRY, "seed=-1"): "seed = -1 is not a whole number from 0 to 4294967295",
  (GEOMETRY, "steps=0"): "steps = 0 is not a positive number",
  (GEOMETRY, "accumulate=3"): "the nearest that do are accumulate = 4, or batch_size = 9",
  (GEOMETRY, "watchdog.factor=0"): "watchdog.factor = 0.0 is not a positive number",
  (GEOMETRY, "guard.max_in_a_row=0"): "guard.max_in_a_row = 0 is not a positive number",
  # the model
  (GEOMETRY, "model.flow.dtype=bf16"): "model.flow.dtype = 'bf16' is not one of bfloat16, float16",
  (GEOMETRY, "model.flow.remat=al"): "model.flow.remat = 'al' is not one of none, operands",
  (GEOMETRY, "model.flow.attention=flash"): "model.flow.attention = 'flash' is not one of auto",
  (GEOMETRY, "model.flow.attention=cudnn"): "model.flow.attention = 'cudnn' needs dtype = bfloat16",
  (GEOMETRY, "model.flow.heads=7"): "model.flow.heads = 7 does not divide width = 16; the nearest",
  (GEOMETRY, "model.flow.heads=0"): "model.flow.heads = 0 is not a positive number",
  (GEOMETRY, "model.flow.depth=-1"): "model.flow.depth = -1 is not a positive number",
  (GEOMETRY, "model.condition.dino.remat=x"): "model.condition.dino.remat = 'x' is not one of",
  (GEOMETRY, "model.condition.pointmap.remap=x"): "model.condition.pointmap.remap = 'x' is not one",
  (GEOMETRY, "model.condition.streams=image,mask"): "streams = 'image,mask': read as the one text",
  (GEOMETRY, "model.condition.streams=('image','maks')"): "'maks' is no stream; the nearest is",
  (GEOMETRY, "model.condition.streams=()"): "model.condition.streams = (): names none",
  (VAE, "model.channels=()"): "model.channels = (): give a positive width",
  (VAE, "model.dtype=fp32"): "model.dtype = 'fp32' is not one of",
  # the objective
  (GEOMETRY, "objective.drop_condition=1.5"): "objective.drop_condition = 1.5 is not a share",
  (GEOMETRY, "objective.weights.shape=-1"): "objective.weights.shape = -1.0 is negative",
  (
    PREFERENCE,
    "objective.time_weight=late",
  ): "objective.time_weight = 'late' is not one of uniform",
  (PREFERENCE, "objective.latents=('form',)"): "'form' is not one of the latents shape",
  (SHORTCUT, "objective.guided_levels=none"): "objective.guided_levels = 'none' is not one of flow",
  (SHORTCUT, "model.flow.shortcut=False"): "set model.flow.shortcut = True",
  (SHORTCUT, "objective.consistency_fraction=0.01"): "give a batch_size of 100 or more",
  (VAE, "objective.reconstruction=dicee"): "is not one of dice, bce; the nearest is 'dice'",
  # the optimiser
  (GEOMETRY, "optim.lr=0"): "optim.lr = 0.0 is not a positive number",
  (GEOMETRY, "optim.b2=1"): "optim.b2 = 1.0: a decay of Adam",
  (GEOMETRY, "optim.clip_norm=-1"): "optim.clip_norm = -1.0 is negative",
  # sampling, evaluation and data
  (GEOMETRY, "sampler.method=heun"): "sampler.method = 'heun' is not one of euler, midpoint, rk4",
  (GEOMETRY, "sampler.interval=(0.5,0.1)"): "sampler.interval = (0.5, 0.1): give two times",
  (GEOMETRY, "sampler.interval=(0.5,)"): "sampler.interval = (0.5,) is not a tuple of 2",
  (GEOMETRY, "eval.batches=0"): "eval.every = 0 switches evaluation off",
  (
    GEOMETRY,
    "eval.steps_curve=(1,0)",
  ): "eval.steps_curve = (1, 0): 0 is not a positive whole number",
  (GEOMETRY, "data.image_size=0"): "data.image_size = 0 is not a positive number",
  (GEOMETRY, "data.augment.kernel=(2,)"): "data.augment.kernel = (2,) is not a tuple of 2",
  # where it starts
  (GEOMETRY, "init_which=best"): "init_which = 'best' is not one of raw, ema, ema:<decay>",
  (GEOMETRY, "init_allow=("): "init_allow = '(' is not a regular expression",
}


@pytest.mark.parametrize("file, override", WRONG, ids=lambda text: text.removeprefix("configs/"))
def test_it_is_refused_with_key_value_and_remedy(file, override, tmp_path, monkeypatch, capsys):
  def connect(spec):
    raise AssertionError("the job went on to its devices")

  monkeypatch.setattr(hosts, "connect", connect)
  workdir = tmp_path / "run"
  stage = cli.load_config(file).stage
  argv = ["--config", file, "--workdir", str(workdir), f"--config.{override}"]
  assert command.main((stage,), "x", argv) == cli.EXIT_BAD_INPUT
  assert WRONG[file, override] in capsys.readouterr().err
  assert not workdir.exists()


def test_a_configuration_of_another_stage_names_the_command_that_runs_it(tmp_path, capsys):
  argv = ["--config", "configs/midtrain_os_geometry.py:fake", "--workdir", str(tmp_path)]
  assert command.main(("sft",), "x", argv) == cli.EXIT_BAD_INPUT
  assert "this command runs sft: use launch.pretrain" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["accumulate=0", "model.flow.dtype=bf16"])
def test_a_step_that_is_only_compiled_is_refused_likewise(override, capsys):
  argv = ["--config", GEOMETRY, f"--config.{override}", "--topology", "v5p:2x2x1"]
  assert aot.main(argv) == cli.EXIT_BAD_INPUT
  key, _, _ = override.partition("=")
  assert f"{key} = " in capsys.readouterr().err


def test_reading_is_checked_before_any_data_exist():
  config = cli.load_config("configs/sft_geometry.py", ["--config.data.threads=0"])
  with pytest.raises(ConfigError, match="data.threads = 0 is not a positive number"):
    setup.read(config)


@pytest.mark.parametrize("flags", [(), ("--dry_run",)], ids=["run", "dry run"])
def test_a_dataset_without_the_split_that_is_evaluated_on_tells_the_ways_out(
  flags, tmp_path, capsys
):
  data = tiny_dataset.write_dataset(tmp_path / "data", 3, split="train")
  argv = [
    "--config=configs/vae_structure.py:tiny",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.mixture.iso_3do.path={data}",
    *flags,
  ]
  assert command.main(("train_vae",), "x", argv) == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert f"eval.split = 'test': {data} has no split 'test'; it has train" in said
  assert "--config.eval.split=train" in said
  assert "--config.eval.every=0" in said


@pytest.mark.parametrize("backend, needed", [("splash", "TPU"), ("cudnn", "GPU")])
def test_an_attention_backend_that_the_devices_do_not_have_is_refused(
  backend, needed, tmp_path, capsys
):
  argv = [
    "--config",
    GEOMETRY,
    "--workdir",
    str(tmp_path),
    f"--config.model.flow.attention={backend}",
    "--config.model.flow.dtype=bfloat16",
  ]
  assert command.main(("sft",), "x", argv) == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert f"model.flow.attention = '{backend}' needs a {needed}, the devices are CPUs" in said
