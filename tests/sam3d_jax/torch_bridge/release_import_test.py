"""Laws of what an import reads from release folders and state dict files."""

import pathlib

from ml_collections import ConfigDict
import numpy as np
import pytest

from launch import inspect
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import names_conditioning, parts, release, save
from sam3d_jax.training import checkpoint_params, checkpoint_steps
from tests.support.tiny_release import (
  assert_same_arrays,
  config_file,
  import_,
  random_params,
  tiny_config,
)


@pytest.fixture(scope="module")
def imported(runs, tmp_path_factory) -> pathlib.Path:
  """Work folder of the Geometry model, imported from the release it was exported to."""
  folder = tmp_path_factory.mktemp("imported")
  assert import_(runs / "release", folder) == 0
  return folder


def test_importing_an_export_gives_the_same_arrays(runs, imported, tmp_path, capsys):
  assert_same_arrays(imported, runs / "geometry")
  assert inspect.main(["--compare", str(imported), str(runs / "geometry")]) == 0
  assert "identical" in capsys.readouterr().out

  vae = tmp_path / "vae"
  assert import_(runs / "release", vae, "--part", "structure_vae") == 0
  assert_same_arrays(vae, runs / "vae")


def test_importing_an_export_gives_the_same_configuration(runs, imported):
  typed = []
  for run in (imported, runs / "geometry"):
    model = ConfigDict(checkpoint_steps.read_meta(run)["config"]["model"])
    # their order in a configuration means nothing
    model.condition.streams = tuple(sorted(model.condition.streams))
    typed.append(registry.typed_config(model))
  assert typed[0] == typed[1]

  sampler = checkpoint_steps.read_meta(imported)["config"]["sampler"]
  assert sampler["steps"] == 7
  assert sampler["guidance"] == 7.0
  assert list(sampler["interval"]) == [0.0, 0.5]


def test_models_of_a_release_come_back_in_memory(runs):
  folder = release.read_release(runs / "release")

  # the decoder alone
  decoder = release.restore_decoder(folder)
  got = parameters.flat_params(decoder)
  trained = checkpoint_params.load_params(runs / "vae", which="raw")
  np.testing.assert_array_equal(got["conv_in/kernel"], trained["decoder/conv_in/kernel"])

  # the flow model with its condition encoder
  geometry = release.restore_geometry(folder, ConfigDict(folder.geometry))
  got = parameters.flat_params(geometry)
  trained = checkpoint_params.load_params(runs / "geometry", which="raw")
  np.testing.assert_array_equal(got["flow/time/out/bias"], trained["flow/time/out/bias"])

  # of the second stage there is nothing
  assert parts.find_file(runs / "release", "slat_generator") is None


def test_an_import_that_does_not_fit_lists_everything_and_writes_nothing(runs, tmp_path, capsys):
  # no step sizes, and a block more
  config = tiny_config("geometry")
  config.model.flow.shortcut = False
  config.model.flow.depth = 3
  file = config_file(tmp_path, config)

  source = runs / "release" / "ss_generator.ckpt"
  workdir = tmp_path / "run"
  assert import_(source, workdir, "--config", file) == 2
  text = capsys.readouterr().err
  backbone = "_base_models.generator.reverse_fn.backbone"
  assert text.count(f"unexpected  {backbone}.d_embedder.") == 4
  assert f"missing     {backbone}.blocks.2.mlp.shape.mlp.0.weight" in text
  assert not workdir.exists()

  # what is behind it comes first
  first, *_ = text.splitlines()
  assert f"{source}: file has model.flow.depth = 2, the configuration 3: " in first


def test_a_file_of_another_size_is_told_by_the_keys_of_the_configuration(runs, tmp_path, capsys):
  config = tiny_config("geometry")
  config.model.flow.width = 24
  config.model.flow.heads = 3
  config.model.condition.dino.depth = 1
  source = runs / "release" / "ss_generator.ckpt"
  file = config_file(tmp_path, config)
  assert import_(source, tmp_path / "run", "--config", file) == 2
  first, *_ = capsys.readouterr().err.splitlines()
  assert "file has model.flow.width = 16, the configuration 24" in first
  assert "file has model.flow.heads = 2, the configuration 3" in first
  assert "file has model.condition.dino.depth = 2, the configuration 1" in first


def test_a_configuration_of_another_size_than_the_release_is_told_by_its_key(
  runs, tmp_path, capsys
):
  config = tiny_config("geometry")
  config.model.flow.depth = 3
  file = config_file(tmp_path, config)
  assert import_(runs / "release", tmp_path / "run", "--config", file) == 2
  first, *_ = capsys.readouterr().err.splitlines()
  assert "the release has model.flow.depth = 2, --config 3" in first


def test_a_path_that_is_not_there_is_said_to_be_so(tmp_path, capsys):
  missing = tmp_path / "checkpoints"
  assert import_(missing, tmp_path / "run") == 2
  assert f"--from {missing}: there is no such file or folder" in capsys.readouterr().err


def test_an_original_dinov2_file_fills_both_encoders(tmp_path):
  config = tiny_config("geometry")
  params = random_params(config, 3)

  # the image encoder's parameters under the names of an original checkpoint
  prefix = "condition/image_encoder/"
  encoder = {}
  for path, array in params.items():
    if path.startswith(prefix):
      encoder[path.removeprefix(prefix)] = array
  dino = registry.typed_config(config.model).condition.dino
  rules = names_conditioning.dinov2_rules(dino)
  file = tmp_path / "dino.pth"
  save.write_state(file, rules, encoder, parameters.shapes_of(encoder))

  workdir = tmp_path / "run"
  assert import_(file, workdir, "--config", config_file(tmp_path, config)) == 0
  got = checkpoint_params.load_params(workdir, which="raw")
  assert set(got) == set(params)

  # both encoders are the file's; the rest is initialised, not taken from anywhere
  for path, array in encoder.items():
    np.testing.assert_array_equal(got["condition/image_encoder/" + path], array)
    np.testing.assert_array_equal(got["condition/mask_encoder/" + path], array)
  assert 0 < got["flow/time/hidden/kernel"].std() < 1
