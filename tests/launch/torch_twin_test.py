"""The PyTorch model that launch.benchmark measures against computes what ours does."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from launch.console import cli
from launch.performance import comparison, steps, torch_twin
from launch.performance.torch_side import TorchSide
from launch.trainer.setup import prepare
from sam3d_jax.batch import Conditioning
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import keys
from sam3d_jax.torch_bridge.names_conditioning import condition_encoder_rules
from sam3d_jax.torch_bridge.names_geometry import backbone_rules

WEIGHTS = {"shape": 1.0, "rotation": 0.1}
BATCH = 3


@pytest.mark.parametrize(
  "streams", [("image", "mask"), ("image", "mask", "rgb_image", "rgb_image_mask")]
)
def test_same_loss_and_gradients_from_the_same_parameters(streams):
  model_config = cli.load_config(
    "configs/pretrain_geometry.py:fake", [f"--config.model.condition.streams={streams}"]
  ).model
  cfg = registry.typed_config(model_config)
  rng = np.random.default_rng(0)

  # random parameters
  shapes = parameters.flat_shapes(registry.abstract_model(model_config))
  params = {}
  for path in sorted(shapes):
    drawn = rng.normal(0, 0.2, shapes[path])
    params[path] = drawn.astype(np.float32)
  # the row that nothing reads has no place in a file of one group
  params["condition/group_embed"][2] = 0

  # random inputs; those of a photo are of twice the size, which both models halve
  size = cfg.condition.dino.input_size
  if "rgb_image" in streams:
    size *= 2
  cond = {}
  for stream in streams:
    values, channels = (2, 1) if "mask" in stream else (256, 3)
    cond[stream] = rng.integers(0, values, (BATCH, size, size, channels), dtype=np.uint8)

  def latents() -> dict[str, np.ndarray]:
    drawn = {}
    for name, shape in cfg.flow.latent_shapes().items():
      drawn[name] = rng.normal(size=(BATCH, *shape)).astype(np.float32)
    return drawn

  data, noise = latents(), latents()
  t_B = np.array([0.1, 0.5, 0.9], np.float32)

  def loss(params):
    model = registry.abstract_model(model_config)
    parameters.load_params(model, params)
    tokens = model.encode(Conditioning(**cond))
    along = t_B[:, None, None]
    x_t = {name: (1 - along) * noise[name] + along * data[name] for name in data}
    velocity = model.velocity(x_t, t_B, tokens, jnp.zeros(BATCH))
    total = 0
    for name, weight in WEIGHTS.items():
      error = velocity[name] - (data[name] - noise[name])
      total = total + weight * jnp.square(error).mean()
    return total

  # the same loss
  expected, gradients = jax.jit(jax.value_and_grad(loss))(params)
  twin = torch_twin.Geometry(cfg)
  twin.load(params)
  images, _ = torch_twin.tensors(types.SimpleNamespace(cond=Conditioning(**cond), latents={}))
  found = twin.loss(images, as_torch(data), as_torch(noise), torch.tensor(t_B), WEIGHTS)
  found.backward()
  assert found.item() == pytest.approx(float(expected), rel=1e-5)

  # and the same gradients, by their published names
  for module, rules, prefix in (
    (twin.flow, backbone_rules(cfg.flow), "flow/"),
    (twin.condition, condition_encoder_rules(cfg.condition), "condition/"),
  ):
    own = {}
    for path, gradient in gradients.items():
      if path.startswith(prefix):
        own[path.removeprefix(prefix)] = np.asarray(gradient)
    ours = keys.to_torch(rules, own)
    # a model of the crop alone holds the crop's row twice (names_conditioning.stream_groups)
    if "idx_emb" in ours:
      ours["idx_emb"] = np.asarray(gradients["condition/group_embed"]).sum(0)
    for name, parameter in module.named_parameters():
      grad = np.zeros(parameter.shape, np.float32)
      if parameter.grad is not None:
        grad = parameter.grad.numpy()
      if name == "idx_emb":
        grad = grad.sum(0)
      scale = max(np.abs(ours[name]).max(), 1e-3)
      np.testing.assert_allclose(grad / scale, ours[name] / scale, atol=2e-4, err_msg=name)


def as_torch(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
  return {name: torch.tensor(array) for name, array in arrays.items()}


def test_the_twin_trains_on_the_batches_of_a_configuration():
  config = cli.load_config("configs/pretrain_geometry.py:fake", [])
  setup = prepare(config)
  state = types.SimpleNamespace(params=jax.jit(setup.random_params)())
  side = TorchSide(types.SimpleNamespace(setup=setup, state=state))
  before = {}
  for name, parameter in side.training.model.named_parameters():
    before[name] = parameter.detach().clone()
  for counted in (False, True):
    side.step(counted=counted)
  side.batches.close()

  # something was learned, and nothing went wrong
  after = dict(side.training.model.named_parameters())
  assert all(parameter.isfinite().all() for parameter in after.values())
  assert any(not parameter.equal(before[name]) for name, parameter in after.items())

  report = side.report(1)
  assert report["steps"] == 1
  assert report["batch_size"] == config.batch_size
  assert "PyTorch eager" in steps.row(report)


@pytest.mark.parametrize(
  "stage, overrides, message",
  [
    (
      "pretrain",
      ["optim.frozen=flow/.*", "accumulate=2"],
      r"set optim.frozen='' \(it is 'flow/.*accumulate=1",
    ),
    ("pretrain", ["optim.clip_norm=0.0"], "optim.clip_norm above 0"),
    ("pretrain", ["model.flow.dtype=bfloat16"], "model.flow.dtype='float32'"),
    ("midtrain_os", ["optim.frozen="], "no point maps"),
  ],
)
def test_what_the_twin_does_otherwise_is_refused_before_anything_is_compiled(
  stage, overrides, message
):
  config = cli.load_config(
    f"configs/{stage}_geometry.py:fake", [f"--config.{o}" for o in overrides]
  )
  with pytest.raises(ConfigError, match=message):
    comparison.check_torch(types.SimpleNamespace(config=config, vs=None))


def test_a_model_with_point_maps_is_refused():
  cfg = registry.typed_config(cli.load_config("configs/sft_geometry.py:fake", []).model)
  with pytest.raises(ConfigError, match="no point maps"):
    torch_twin.Geometry(cfg)
