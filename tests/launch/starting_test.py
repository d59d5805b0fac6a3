"""Where a run may go on: what its work folder was started with, against the configuration."""

import pathlib
import types

import pytest

from launch.console import cli
from launch.trainer import identity, starting
from launch.trainer import setup as setup_lib
from sam3d_jax.errors import ConfigError
from sam3d_jax.training.checkpointer import Checkpointer
from tests.support import tiny_checkpoints

CONFIGS = [
  ("configs/pretrain_geometry.py:fake", ("model", "flow")),
  ("configs/vae_structure.py:fake", ("model",)),
]
WITH_POINTMAPS = "configs/midtrain_os_geometry.py:fake"


@pytest.mark.parametrize("path, sections", CONFIGS)
def test_a_run_from_before_patches_goes_on_without_them_and_only_so(path, sections):
  config = cli.load_config(path, [])
  workdir = pathlib.Path("run")
  section = config
  recorded = config.to_dict()
  then = recorded
  for name in sections:
    section = section[name]
    then = then[name]
  del then["patch"]
  section.patch = 1
  starting.check_same_run(recorded, config, workdir)
  section.patch = 2
  with pytest.raises(ConfigError, match=r"patch = None, now it is 2"):
    starting.check_same_run(recorded, config, workdir)


def settings_of_before() -> dict:
  """What a run has recorded that began before point maps could be resized twice."""
  recorded = cli.load_config(WITH_POINTMAPS).to_dict()
  del recorded["model"]["condition"]["pointmap"]["resize_twice"]
  return recorded


def save(workdir, step: int, recorded: dict) -> None:
  checkpointer = Checkpointer(workdir)
  meta = {"config": recorded, "lineage": {}}
  checkpointer.save(step, tiny_checkpoints.make_state(step), meta)
  checkpointer.close()


def start(workdir):
  """One start of the command: the step it goes on from and its configuration."""
  config = cli.load_config(WITH_POINTMAPS)
  recorded = starting.recorded_meta(workdir)
  starting.keep_recorded_values(config, recorded["config"], workdir)
  setup = types.SimpleNamespace(
    config=config,
    workdir=workdir,
    abstract_state=tiny_checkpoints.abstract(tiny_checkpoints.make_state()),
  )
  checkpointer = Checkpointer(workdir)
  _, _, setup = starting.starting_state(setup, checkpointer, identity.of(config))
  checkpointer.close()
  return checkpointer.restored["step"], setup.config


def resizes_twice(config) -> bool:
  return config.model.condition.pointmap.resize_twice


def test_a_run_from_before_the_key_goes_on_with_one_resize_at_every_start(tmp_path):
  save(tmp_path, 1, settings_of_before())
  for step in (1, 2, 3):
    began_at, config = start(tmp_path)
    assert began_at == step
    assert not resizes_twice(config)
    save(tmp_path, step + 1, config.to_dict())


def test_a_run_that_began_with_the_key_keeps_it_and_may_not_lose_it(tmp_path):
  recorded = cli.load_config(WITH_POINTMAPS).to_dict()
  save(tmp_path, 1, recorded)
  _, config = start(tmp_path)
  assert resizes_twice(config)
  config.model.condition.pointmap.resize_twice = False
  with pytest.raises(ConfigError, match="resize_twice = True, now it is False"):
    starting.check_same_run(recorded, config, tmp_path)


@pytest.mark.parametrize("damaged", ["numbers", "settings"])
def test_an_older_step_is_gone_on_with_as_it_recorded_where_the_newest_is_damaged(
  tmp_path, monkeypatch, damaged
):
  save(tmp_path, 1, settings_of_before())
  save(tmp_path, 2, cli.load_config(WITH_POINTMAPS).to_dict())
  if damaged == "numbers":
    tiny_checkpoints.damage_data(tmp_path, 2)
  else:
    meta = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
    tiny_checkpoints.flip(meta)

  # what reads the data is made for the step that is gone on with
  made = []

  def prepare(config, workdir):
    made.append(resizes_twice(config))
    return types.SimpleNamespace(config=config, workdir=workdir)

  monkeypatch.setattr(setup_lib, "prepare", prepare)
  step, config = start(tmp_path)
  assert step == 1
  assert not resizes_twice(config)
  assert made == ([False] if damaged == "numbers" else [])
