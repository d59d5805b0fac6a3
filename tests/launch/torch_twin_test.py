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
  params = {
    path: rng.normal(0, 0.2, shape).astype(np.float32)
    for path, shape in sorted(parameters.flat_shapes(registry.abstract_model(model_config)).items())
  }
  # the row that nothing reads has no place in a file of one group
  params["condition/group_embed"][2] = 0
  # twice: both models halve it
  size = cfg.condition.dino.input_size * (2 if "rgb_image" in streams else 1)
  cond = {
    s: rng.integers(
      0, 2 if "mask" in s else 256, (BATCH, size, size, 1 if "mask" in s else 3), dtype=np.uint8
    )
    for s in streams
  }
  latents = lambda: {
    k: rng.normal(size=(BATCH, *shape)).astype(np.float32)
    for k, shape in cfg.flow.latent_shapes().items()
  }
  data, noise, t_B = latents(), latents(), np.array([0.1, 0.5, 0.9], np.float32)

  def loss(params):
    model = registry.abstract_model(model_config)
    parameters.load_params(model, params)
    tokens = model.encode(Conditioning(**cond))
    along = t_B[:, None, None]
    x_t = {k: (1 - along) * noise[k] + along * data[k] for k in data}
    velocity = model.velocity(x_t, t_B, tokens, jnp.zeros(BATCH))
    return sum(
      w * jnp.square(velocity[k] - (data[k] - noise[k])).mean() for k, w in WEIGHTS.items()
    )

  expected, gradients = jax.jit(jax.value_and_grad(loss))(params)
  twin = torch_twin.Geometry(cfg)
  twin.load(params)
  images, _ = torch_twin.tensors(types.SimpleNamespace(cond=Conditioning(**cond), latents={}))
  as_torch = lambda arrays: {k: torch.tensor(a) for k, a in arrays.items()}
  found = twin.loss(images, as_torch(data), as_torch(noise), torch.tensor(t_B), WEIGHTS)
  found.backward()
  assert found.item() == pytest.approx(float(expected), rel=1e-5)
  for module, rules, prefix in (
    (twin.flow, backbone_rules(cfg.flow), "flow/"),
    (twin.condition, condition_encoder_rules(cfg.condition), "condition/"),
  ):
    ours = keys.to_torch(
      rules,
      {p.removeprefix(prefix): np.asarray(g) for p, g in gradients.items() if p.startswith(prefix)},
    )
    # a model of the crop alone holds the crop's row twice (names_conditioning.stream_groups)
    if "idx_emb" in ours:
      ours["idx_emb"] = np.asarray(gradients["condition/group_embed"]).sum(0)
    for name, parameter in module.named_parameters():
      grad = (
        np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
      )
      grad = grad.sum(0) if name == "idx_emb" else grad
      scale = max(np.abs(ours[name]).max(), 1e-3)
      np.testing.assert_allclose(grad / scale, ours[name] / scale, atol=2e-4, err_msg=name)


def test_the_twin_trains_on_the_batches_of_a_configuration():
  config = cli.load_config("configs/pretrain_geometry.py:fake", [])
  setup = prepare(config)
  side = TorchSide(
    types.SimpleNamespace(
      setup=setup, state=types.SimpleNamespace(params=jax.jit(setup.random_params)())
    )
  )
  before = {name: p.detach().clone() for name, p in side.training.model.named_parameters()}
  for counted in (False, True):
    side.step(counted=counted)
  side.batches.close()
  after = dict(side.training.model.named_parameters())
  assert all(p.isfinite().all() for p in after.values()) and any(
    not p.equal(before[name]) for name, p in after.items()
  )
  report = side.report(1)
  assert (
    report["steps"] == 1
    and report["batch_size"] == config.batch_size
    and "PyTorch eager" in steps.row(report)
  )


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
