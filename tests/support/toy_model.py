"""A third kind of model: all that the tree has to know about it, with toy_config.py.

The set model sees points and predicts their mean and extent. It has a batch type, an objective, a
preview and a published form of its own. `register` adds them to the tables.
"""

import dataclasses
import json
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from data_pipelines.format import schema
from data_pipelines.read import kinds, rows
from launch.trainer import previews
from sam3d_jax import batch
from sam3d_jax.models import flops, layers
from sam3d_jax.models import registry as models
from sam3d_jax.objectives import registry as objectives
from sam3d_jax.sharding import rules
from sam3d_jax.torch_bridge import keys, parts

POINTS = 16  # of an example


class ToyBatch(NamedTuple):
  key: np.ndarray  # (B, 2) uint32
  points: np.ndarray  # (B, P, 3) float32


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  width: int


class ToyModel(nnx.Module):
  """(B, P, 3) points -> (B, 2): a number for their mean and one for their extent."""

  def __init__(self, cfg: ToyConfig, *, rngs: nnx.Rngs):
    self.toy = ToyNet(cfg, rngs=rngs)

  def __call__(self, points_BP3):
    return self.toy(points_BP3)


class ToyNet(nnx.Module):
  def __init__(self, cfg: ToyConfig, *, rngs: nnx.Rngs):
    self.hidden = layers.Dense(3, cfg.width, rngs=rngs)
    self.out = layers.Dense(cfg.width, 2, rngs=rngs)

  def __call__(self, points_BP3):
    hidden_BPD = jnp.tanh(self.hidden(points_BP3))
    return self.out(hidden_BPD.mean(1))


def toy_config(model: ConfigDict) -> ToyConfig:
  return ToyConfig(width=model.width)


def toy_cost(cfg: ToyConfig, *, plain: bool) -> flops.Cost:
  del plain
  hidden = 2 * POINTS * 3 * cfg.width
  out = 2 * cfg.width * 2
  return flops.Cost(parts={"toy": flops.Part(hidden + out)})


def toy_regression(model, frozen, batch: ToyBatch, key, *, noise: float):
  """Squared error of mean and extent, of points with noise that is drawn for each step."""
  del frozen
  points = batch.points + noise * jax.random.normal(key, batch.points.shape)
  mean_B, extent_B = points.mean((1, 2)), jnp.ptp(points, axis=(1, 2))
  truth_B2 = jnp.stack([mean_B, extent_B], -1)
  loss = jnp.square(model(points) - truth_B2).mean()
  return loss, {"toy/error": loss}


def toy_row(
  example: schema.Example, config: rows.SampleConfig, rng: np.random.Generator | None, epoch: int
) -> ToyBatch:
  """The first voxels of an example, as points of the unit cube."""
  del rng, epoch
  rows.require(example, "voxels")
  voxels = np.resize(example["voxels"], (POINTS, 3))
  points = (voxels.astype(np.float32) + 0.5) / config.resolution - 0.5
  return ToyBatch(schema.key_words(example["key"]), points)


def toy_spec(config: rows.SampleConfig, count: int) -> ToyBatch:
  del config
  return ToyBatch(
    key=rows.zeros(count, (2,), np.uint32),
    points=rows.zeros(count, (POINTS, 3), np.float32),
  )


def toy_needs(config: rows.SampleConfig) -> set[str]:
  del config
  return {"voxels"}


class ToyPreview:
  """What the model says about one set of points, as a picture of two grey fields."""

  def __init__(self, setup):
    self.setup = setup
    points = np.linspace(-1, 1, POINTS * 3, dtype=np.float32).reshape(1, POINTS, 3)

    def answer(params, frozen):
      return setup.graph.merge({**params, **frozen})(points)[0]

    self.answer = jax.jit(answer)

  def compile(self, params, frozen) -> None:
    self.answer = self.answer.lower(params, frozen).compile()

  def dispatch(self, params, frozen):
    return self.answer(params, frozen)

  def read(self, step: int, sampled) -> tuple[dict[str, float], np.ndarray | None]:
    mean, extent = (float(x) for x in jax.device_get(sampled))
    # kept beside the metrics
    folder = self.setup.workdir / "previews"
    folder.mkdir(exist_ok=True)
    said = json.dumps([mean, extent])
    (folder / f"{step:08d}.json").write_text(said)
    # and looked at
    grey = 128 + 50 * np.array([mean, extent])
    grey = np.clip(grey, 0, 255).astype(np.uint8)
    picture = np.broadcast_to(grey[None, :, None], (2, 2, 3))
    return {"eval/toy_mean": mean, "eval/toy_extent": extent}, picture

  def curve(self, params, frozen) -> Any:
    return None

  def write_curve(self, curve) -> None:
    raise AssertionError("there is no curve")


def wants_pictures(config: ConfigDict) -> bool:
  return config.eval.pictures > 0


def check_preview(config: ConfigDict) -> None:
  """It needs nothing but parameters."""


def toy_parts(cfg: ToyConfig) -> list[parts.Part]:
  del cfg
  published = [
    keys.Rule("hidden.weight", "toy/hidden/kernel", layout="linear"),
    keys.Rule("hidden.bias", "toy/hidden/bias"),
    keys.Rule("out.weight", "toy/out/kernel", layout="linear"),
    keys.Rule("out.bias", "toy/out/bias"),
  ]
  return [parts.Part("toy", "toy", None, published)]


def register(patch) -> None:
  """Adds the model to every table that has to know it; `patch` is pytest's monkeypatch."""
  patch.setitem(batch.TOKEN_AXES, ToyBatch, {"points": 1})
  kind = models.ModelKind(
    config=toy_config,
    module=ToyModel,
    objectives={"toy_regression": "toy"},
    cost=toy_cost,
  )
  patch.setitem(models.MODELS, "toy", kind)
  patch.setitem(objectives.OBJECTIVES, "toy_regression", objectives.Objective(toy_regression))
  kernels = (r"toy/(hidden|out)/kernel", ("fsdp", None))
  patch.setattr(rules, "RULES", (*rules.RULES, kernels))
  data = kinds.BatchKind(row=toy_row, spec=toy_spec, needs=toy_needs, form=kinds.no_form)
  patch.setitem(kinds.KINDS, "toy", data)
  preview = previews.PreviewKind(make=ToyPreview, wanted=wants_pictures, check=check_preview)
  patch.setitem(previews.PREVIEWS, "toy", preview)
  patch.setitem(parts.PUBLISHED, "toy", parts.Published(parts=toy_parts))
