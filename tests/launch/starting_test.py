"""Where a run may go on: what its work folder was started with, against the configuration."""

import pathlib

import pytest

from launch.console import cli
from launch.trainer import starting
from sam3d_jax.errors import ConfigError

CONFIGS = [
  ("configs/pretrain_geometry.py:fake", ("model", "flow")),
  ("configs/vae_structure.py:fake", ("model",)),
]


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
