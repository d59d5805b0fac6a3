"""A dry run of a training command finds what would stop the run, on any devices, before there are
data, and writes nothing.
"""

import pathlib
import re
import shutil

import pytest

from launch import dpo, pretrain, sft, train_vae
from launch.console import cli, machines
from sam3d_jax.errors import ConfigError
from tests.support import tiny_dataset, tiny_release

FULL = "configs/pretrain_geometry.py"
FAKE = "configs/pretrain_geometry.py:fake"


def dry(folder: pathlib.Path, config: str, *flags: str, command=pretrain) -> int:
  return command.main(["--config", config, "--workdir", str(folder), "--dry_run", *flags])


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
  """`name` -> work folder with the checkpoint of a tiny model of that kind."""
  folders = {}
  for name in ("geometry", "structure_vae"):
    config = tiny_release.tiny_config(name)
    folders[name] = tmp_path_factory.mktemp(name)
    params = tiny_release.random_params(config, seed=0)
    tiny_release.save_run(folders[name], config, params, {"stage": "test", "parents": []})
  return folders


@pytest.fixture
def tiny_file(tmp_path) -> str:
  """A configuration of the tiny Geometry model, on random batches."""
  config = tiny_release.tiny_config("geometry")
  full = cli.load_config(FULL)
  config.objective = full.objective
  config.stage = "pretrain"
  config.data.kind = "fake"
  config.batch_size = 8
  return tiny_release.config_file(tmp_path, config)


@pytest.mark.parametrize(
  "devices, mesh, said",
  [
    ("64", "--config.mesh.fsdp=8", "devices 64 cpu, mesh data 8 x fsdp 8"),
    ("8xH100", "--config.mesh.tensor=2", "devices 8 NVIDIA H100 80GB HBM3, mesh data 4 x tensor 2"),
    ("v5p-64", "--config.mesh.fsdp=4", "devices 32 TPU v5, mesh data 8 x fsdp 4"),
    ("2xv6e:4x4", "--config.mesh.dcn_data=2", "devices 32 TPU v6 lite, mesh data 32"),
  ],
)
def test_a_full_recipe_is_planned_for_any_mesh_before_there_are_data_and_no_folder_is_made(
  tmp_path, capsys, devices, mesh, said
):
  workdir = tmp_path / "runs" / "one"
  assert dry(workdir, FULL, "--devices", devices, mesh) == 0
  out = capsys.readouterr().out
  assert said in out
  assert "iso_3do not there yet: 541 M samples" in out
  assert list(tmp_path.iterdir()) == []


def test_sources_that_are_there_are_opened_and_those_that_are_not_are_named(tmp_path, capsys):
  there = tiny_dataset.write_dataset(tmp_path / "data", 4)
  sources = (
    f"--config.data.mixture.rp_3do_osr.path={there}",
    "--config.data.mixture.procthor.weight=1.0",
    "--config.data.split=train",
    "--config.eval.every=0",
    # that of the shards
    "--config.model.flow.shape_resolution=4",
  )
  config = "configs/midtrain_os_geometry.py"
  assert dry(tmp_path / "run", config, "--devices", "256", *sources) == 0
  assert "procthor not there yet" in capsys.readouterr().out
  # what is there has no such split
  split = "--config.data.split=other"
  assert dry(tmp_path / "run", config, "--devices", "256", *sources, split) == cli.EXIT_BAD_INPUT
  assert "other" in capsys.readouterr().err


@pytest.mark.parametrize(
  "flags, message",
  [
    (("--devices", "7"), "batch_size = 8 is global and does not divide over data x fsdp = 7"),
    (("--devices", "8xB300"), "'b300' is not one of a100, h100"),
    (("--devices", "v5p-7"), "counts 2 a chip"),
    (("--config.init_from=nowhere",), "nowhere holds no checkpoint"),
  ],
)
def test_what_would_stop_the_run_ends_its_rehearsal_with_code_2(tmp_path, capsys, flags, message):
  assert dry(tmp_path / "run", FAKE, *flags) == cli.EXIT_BAD_INPUT
  assert message in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


def test_described_devices_are_for_rehearsals_only(tmp_path, capsys):
  code = pretrain.main(["--config", FAKE, "--workdir", str(tmp_path / "run"), "--devices", "8"])
  assert code == cli.EXIT_BAD_INPUT
  assert "--devices 8 goes with --dry_run" in capsys.readouterr().err


def test_init_from_must_fit_the_model(tmp_path, capsys, checkpoint_of, tiny_file):
  parent = f"--config.init_from={checkpoint_of['geometry']}"
  assert dry(tmp_path / "run", tiny_file, parent) == 0
  assert "start: would take the ema parameters of" in capsys.readouterr().out


def test_a_parent_of_another_size_is_told_by_its_keys_with_a_remedy_that_works(
  tmp_path, capsys, checkpoint_of, tiny_file
):
  workdir = tmp_path / "run"
  parent = f"--config.init_from={checkpoint_of['geometry']}"
  other = "--config.model.flow.depth=3"
  assert dry(workdir, tiny_file, parent, other) == 2
  first, *listed = capsys.readouterr().err.splitlines()
  assert "does not fit: the checkpoint has model.flow.depth = 2, the configuration 3: " in first
  *arrays, more, remedy = listed
  assert len(arrays) == 5
  assert "more" in more

  # the expression that it offers
  allow = re.search(r"--config\.init_allow='(.*)'", remedy)[1]
  assert dry(workdir, tiny_file, parent, other, f"--config.init_allow={allow}") == 0
  assert "leaves new" in capsys.readouterr().out


def test_a_work_folder_of_another_size_is_told_by_its_key_and_not_by_its_arrays(
  tmp_path, capsys, checkpoint_of, tiny_file
):
  workdir = shutil.copytree(checkpoint_of["geometry"], tmp_path / "run")
  assert dry(workdir, tiny_file, "--config.model.flow.depth=3") == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert "was started with" in said
  assert "not in the model" not in said


def test_a_work_folder_is_asked_what_it_was_started_with(
  tmp_path, capsys, checkpoint_of, tiny_file
):
  workdir = shutil.copytree(checkpoint_of["geometry"], tmp_path / "run")
  assert dry(workdir, tiny_file) == cli.EXIT_BAD_INPUT
  assert "was started with" in capsys.readouterr().err


@pytest.mark.parametrize(
  "holds, message",
  [
    (None, "holds no checkpoint"),
    ("geometry", "holds a model of kind 'geometry', a structure_vae is needed"),
    ("structure_vae", "the decoder takes latents of 2^3 x 8, the model makes 16^3 x 8"),
  ],
)
def test_the_decoder_of_previews_is_found_and_fits(tmp_path, capsys, checkpoint_of, holds, message):
  decoder = checkpoint_of[holds] if holds else tmp_path / "nowhere"
  code = dry(tmp_path / "run", FULL, f"--config.eval.decoder={decoder}", "--devices", "512")
  assert code == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  assert message in said
  assert "eval.decoder" in said


@pytest.mark.parametrize(
  "command, config",
  [
    (train_vae, "configs/vae_structure.py"),
    (sft, "configs/sft_geometry.py:art"),
    (dpo, "configs/dpo_geometry.py"),
  ],
)
def test_every_stage_is_rehearsed_on_its_pod(tmp_path, capsys, command, config):
  assert dry(tmp_path / "run", config, "--devices", "v5p-256", command=command) == 0
  assert "devices 128 TPU v5" in capsys.readouterr().out


@pytest.mark.parametrize(
  "text, chips, slices, name",
  [
    ("512", 512, 1, "512 devices"),
    ("8xH200", 8, 1, "8 x h200"),
    ("h200:8", 8, 1, "8 x h200"),
    ("8 x H200", 8, 1, "8 x h200"),
    ("v5p-64", 32, 1, "32 x v5p (v5p-64)"),
    ("v5p:4x4x2", 32, 1, "32 x v5p (v5p-64)"),
    ("v5litepod-256", 256, 1, "256 x v5e"),
    ("v6e-64", 64, 1, "64 x v6e"),
    ("2xv5p-64", 64, 2, "64 x v5p (2 x v5p-64)"),
  ],
)
def test_a_name_of_hardware_says_how_many_chips(text, chips, slices, name):
  machine = machines.parse(text, "--on")
  assert (machine.chips, machine.slices, machine.name) == (chips, slices, name)
  assert len({device.slice_index for device in machine.devices()}) == slices


@pytest.mark.parametrize("text", ["", "0", "x8", "v5p-4x4", "v5p-7", "8x", "h100-"])
def test_what_names_no_hardware_is_refused_with_examples(text):
  with pytest.raises(ConfigError, match="8xH100|v5p:4x4x4"):
    machines.parse(text, "--on")
