"""Meshes and sharding rules: every parameter has its place, and the place does not change the
numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.console import cli
from launch.trainer.setup import make_loader, read
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry
from sam3d_jax.models.parameters import flat_params
from sam3d_jax.sharding import mesh as mesh_lib
from sam3d_jax.sharding import rules
from sam3d_jax.training.state import ModelGraph, init_state
from sam3d_jax.training.step import make_train_step

pytestmark = pytest.mark.multidevice


FULL = [
  "configs/pretrain_geometry.py",
  "configs/vae_structure.py",
  "configs/pretrain_texture.py",
  "configs/vae_slat.py",
  "configs/vae_slat_gaussian.py",
  "configs/vae_slat_mesh.py",
]


@pytest.mark.parametrize("path", FULL)
def test_every_parameter_of_the_full_models_matches_exactly_one_rule(path):
  shapes = flat_params(registry.abstract_model(cli.load_config(path).model))
  assert len(shapes) > 10
  for name, leaf in shapes.items():
    assert len(rules.rule_of(name)) <= len(leaf.shape), name


def test_a_parameter_that_no_rule_or_two_rules_match_is_an_error():
  for name in ("flow/blocks/layer/novel/thing", "flow/self_attn/qkv/kernel/out/kernel_x"):
    with pytest.raises(ValueError, match="0 sharding rules match"):
      rules.rule_of(name)


@pytest.mark.parametrize("path", ["configs/pretrain_geometry.py", "configs/pretrain_texture.py"])
def test_full_size_parameters_are_split_not_replicated(path):
  shapes = flat_params(registry.abstract_model(cli.load_config(path).model))
  mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1, fsdp=8), jax.devices())
  assert rules.replicated(mesh, shapes) == []
  total = sum(x.size for x in shapes.values())
  split = sum(
    x.size
    for p, x in shapes.items()
    if any(a is not None for a in rules.param_spec(p, x.shape, mesh))
  )
  assert split / total > 0.99


def test_the_guard_names_a_large_replicated_leaf():
  mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1, fsdp=8), jax.devices())
  # 100 is not a multiple of 8
  shapes = {
    "flow/blocks/layer/adaln/kernel": jax.ShapeDtypeStruct((2, 100, 6, 90), jnp.float32),
    "flow/blocks/layer/shape/mlp/up/kernel": jax.ShapeDtypeStruct((2, 64, 256), jnp.float32),
  }
  assert rules.replicated(mesh, shapes) == ["flow/blocks/layer/adaln/kernel"]


@pytest.mark.parametrize(
  "sizes, message",
  [
    (dict(data=3, fsdp=1), "needs 3 devices, there are 8"),
    (dict(data=-1, fsdp=-1), "at most one is -1"),
    (dict(data=-1, fsdp=3), "does not divide 8 devices"),
    (dict(data=-1, dcn_data=3), "mesh.dcn_data = 3 does not divide"),
  ],
)
def test_an_impossible_mesh_is_a_configuration_error(sizes, message):
  with pytest.raises(ConfigError, match=message):
    mesh_lib.make_mesh(mesh_lib.MeshConfig(**sizes))


GEOMETRY = "configs/pretrain_geometry.py:fake"


def three_steps(mesh_config: mesh_lib.MeshConfig, devices: int, path: str = GEOMETRY):
  """Losses and final parameters of three steps of a model on a mesh."""
  config = cli.load_config(path)
  mesh = mesh_lib.make_mesh(mesh_config, jax.devices()[:devices])
  model_config = registry.typed_config(config.model)
  graph = ModelGraph.of(registry.abstract_model(config.model))
  shapes = flat_params(registry.abstract_model(config.model))
  settings = read(config)
  optim = settings.optim
  rng = np.random.default_rng(0)
  # nothing at zero: all paths live
  params = {p: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype) for p, x in shapes.items()}
  state = init_state(optim, params)
  shardings = rules.state_shardings(mesh, jax.eval_shape(lambda: state), shapes)
  state = jax.device_put(state, shardings)
  step = jax.jit(
    make_train_step(graph, settings.objective, optim, settings.guard),
    out_shardings=(shardings, None),
  )
  loader = make_loader(config, model_config, "train")
  losses = []
  for i in range(3):
    state, metrics = step(
      state, mesh_lib.place_batch(mesh, loader.batch(i)), np.float32(1e-3), np.uint32(0)
    )
    losses.append((float(metrics["loss"]), float(metrics["norm/grad"])))
  return np.array(losses), jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device():
  return three_steps(mesh_lib.MeshConfig(), 1)


# Between them the two meshes split along every axis; each axis alone runs in `make test-all`.
MESHES = [dict(data=2, fsdp=2, tensor=2), dict(data=2, fsdp=1, tensor=2, context=2)]
ONE_AXIS = [dict(data=8), dict(data=1, fsdp=8), dict(data=1, tensor=2), dict(data=1, context=8)]


@pytest.mark.parametrize(
  "sizes",
  [*MESHES, *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ONE_AXIS)],
  ids=str,
)
def test_losses_gradients_and_parameters_equal_the_one_device_run(on_one_device, sizes):
  config = mesh_lib.MeshConfig(**sizes)
  count = np.prod([getattr(config, a) for a in mesh_lib.AXES])
  losses, params = three_steps(config, int(count))
  np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
  for path, value in params.items():
    np.testing.assert_allclose(value, on_one_device[1][path], rtol=1e-4, atol=2e-5, err_msg=path)


@pytest.mark.slow
def test_packed_objects_train_alike_on_eight_devices():
  path = "configs/pretrain_texture.py:fake"
  alone_losses, alone_params = three_steps(mesh_lib.MeshConfig(), 1, path)
  losses, params = three_steps(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2), 8, path)
  np.testing.assert_allclose(losses, alone_losses, rtol=1e-5)
  for name, value in params.items():
    np.testing.assert_allclose(value, alone_params[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_a_batch_that_does_not_divide_names_the_nearest_that_does():
  mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=4, fsdp=2))
  with pytest.raises(ConfigError, match="batch_size = 12 .* nearest that does is 16"):
    mesh_lib.check_batch_size(12, mesh)
  with pytest.raises(ConfigError, match="batch_size = 40 .* 4 parts .* nearest that does is 32"):
    mesh_lib.check_batch_size(40, mesh, accumulate=4)
