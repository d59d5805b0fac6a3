"""Configurations: every experiment loads, every key is explained and taken by something."""

import ast
import dataclasses
import itertools
import pathlib
import re

import pytest

from configs import base
from launch.console import cli
from launch.trainer import checks, setup
from launch.trainer.setup import make_loader
from sam3d_jax.errors import ConfigError
from sam3d_jax.inference import weights
from sam3d_jax.models import registry
from sam3d_jax.models.conditioning import ConditionConfig, DinoConfig, PointmapConfig
from sam3d_jax.models.gaussians import Activations
from sam3d_jax.models.geometry_flow import GeometryFlowConfig
from sam3d_jax.models.slat_encoder import SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig
from sam3d_jax.models.slat_mesh import SlatMeshConfig
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.sampling.generate import SamplerConfig
from sam3d_jax.sharding.mesh import MeshConfig
from sam3d_jax.training.optim import OptimConfig
from sam3d_jax.training.step import GuardConfig

# a model alone, for what is exchanged with others and not trained
MODELS_ALONE = (
  "configs/vae_slat.py",
  "configs/vae_slat_gaussian.py",
  "configs/vae_slat_mesh.py",
)
EXPERIMENTS = sorted(
  p.as_posix()
  for p in pathlib.Path("configs").glob("*.py")
  if p.name not in ("__init__.py", "base.py") and p.as_posix() not in MODELS_ALONE
)


def section_keys(section) -> set[str]:
  return set(section.keys()) - {"name"}


@pytest.mark.parametrize(
  "section, cls",
  [
    (base.training("x").optim, OptimConfig),
    (base.training("x").guard, GuardConfig),
    (base.training("x").mesh, MeshConfig),
    (base.geometry_model().flow, GeometryFlowConfig),
    (base.geometry_model().condition, ConditionConfig),
    (base.geometry_model().condition.dino, DinoConfig),
    (base.geometry_model().condition.pointmap, PointmapConfig),
    (base.structure_vae_model(), StructureVAEConfig),
    (base.slat_trunk(), TrunkConfig),
    (base.slat_encoder(), SlatEncoderConfig),
    (base.slat_gaussian(32), SlatGaussianConfig),
    (base.slat_gaussian(32).activations, Activations),
    (base.slat_mesh_model().mesh, SlatMeshConfig),
    (base.sampler(), SamplerConfig),
  ],
  ids=lambda x: getattr(x, "__name__", ""),
)
def test_section_and_dataclass_have_the_same_keys_and_defaults(section, cls):
  fields = {f.name: f.default for f in dataclasses.fields(cls)}
  assert section_keys(section) == set(fields)
  nested = {"trunk", "activations", "dino", "pointmap"}
  assert {k: v for k, v in section.items() if k not in nested | {"name", "streams"}} == {
    k: v for k, v in fields.items() if k not in nested | {"streams"}
  }


def test_a_model_from_before_the_key_resizes_point_maps_once_wherever_it_is_read():
  config = cli.load_config("configs/midtrain_os_geometry.py:fake", [])
  read = lambda: (
    weights.input_config(config.model).resize_twice,
    make_loader(config, registry.typed_config(config.model), "train").config.resize_twice,
  )
  assert read() == (True, True)
  with config.unlocked():
    del config.model.condition.pointmap["resize_twice"]
  assert read() == (False, False)


def test_every_key_of_the_base_has_a_comment():
  lines = pathlib.Path(base.__file__).read_text().splitlines()
  keys = [
    (above, line)
    for above, line in itertools.pairwise(lines)
    if re.match(r"  [a-z]\.[a-z_.]+ = ", line)
    and not re.search(r"= (ConfigDict|data)\(\)|\.name = ", line)
  ]
  assert len(keys) > 60
  assert [k for above, k in keys if "  # " not in k and not above.strip().startswith("# ")] == []


def test_a_configuration_sets_one_key_a_line():
  several = []
  for path in sorted(pathlib.Path("configs").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        several.append(f"{path}:{node.lineno}")
  assert several == []


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_every_experiment_states_its_command_and_what_it_costs(path):
  text = ast.get_docstring(ast.parse(pathlib.Path(path).read_text()))
  assert re.search(rf"python -m launch\.\w+ --config {path} --workdir DIR", text)
  assert "TFLOP" in text and "Compiled for" in text


@pytest.mark.parametrize("path", EXPERIMENTS)
@pytest.mark.parametrize("variant", ["", ":tiny", ":fake"])
def test_every_experiment_loads_and_its_model_and_objective_take_its_keys(path, variant):
  config = cli.load_config(path + variant)
  registry.typed_config(config.model)
  setup.read(config)


@pytest.mark.parametrize("path", MODELS_ALONE)
def test_a_model_alone_loads_and_takes_its_keys(path):
  config = cli.load_config(path)
  registry.typed_config(config.model)
  with pytest.raises(ConfigError, match="objective is missing"):
    checks.check(config, (config.stage,))


def test_an_objective_setting_that_nothing_takes_is_an_error():
  config = cli.load_config("configs/vae_structure.py:tiny").copy_and_resolve_references()
  with config.unlocked():
    config.objective.kl_wait = 1.0
  with pytest.raises(ConfigError, match="kl_wait"):
    setup.read(config)


def test_a_folder_of_compiled_programs_is_the_same_however_it_is_spelt(monkeypatch, tmp_path):
  # the path is part of JAX's key of a program
  monkeypatch.chdir(tmp_path)
  config = base.training("x")
  config.compile_cache = "programs"
  assert setup.compile_cache(config, None) == str(tmp_path / "programs")
  config.compile_cache = "gs://bucket/programs"
  assert setup.compile_cache(config, None) == "gs://bucket/programs"

  config.compile_cache = ""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "of_all")
  assert setup.compile_cache(config, tmp_path / "run") == str(tmp_path / "of_all")
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  assert setup.compile_cache(config, tmp_path / "run") == str(tmp_path / "run" / "compile_cache")
