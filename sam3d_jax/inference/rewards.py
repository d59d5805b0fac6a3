"""What chooses among several samples of one object: launch.sample --samples N --reward ...

    mask_iou          IoU of silhouette and mask, render-and-compare
    implicit          the implicit reward of a model aligned by preferences, over the reference it
                      started from
    MODULE:FUNCTION   a function of your own: (list of Candidate, all of one object) -> one number
                      each, the highest wins

`sam3d_jax.inference.candidates.Candidate` says what a reward can look at: photo, mask, camera, the
model's inputs, latents, occupancy, mesh, pose.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import importlib
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import LATENTS
from sam3d_jax.errors import InputError
from sam3d_jax.inference import weights
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.predictor import Predictor
from sam3d_jax.objectives import dpo, draws
from sam3d_jax.training import checkpoint

# (time, noise) pairs that the implicit reward averages over, the same for all candidates
IMPLICIT_DRAWS = 8


@dataclasses.dataclass(frozen=True)
class Reward:
  """A named score; calling it checks what came back."""

  name: str
  score: Callable[[Sequence[Candidate]], Sequence[float]]

  def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
    scores = [float(v) for v in np.asarray(self.score(candidates)).ravel()]
    if len(scores) != len(candidates) or not all(map(math.isfinite, scores)):
      raise InputError(
        f"--reward {self.name} gave {scores} for {len(candidates)} samples; one finite number each "
        "is needed"
      )
    return scores


def mask_iou(candidates: Sequence[Candidate]) -> list[float]:
  """IoU of each candidate's silhouette, where it stands, and the mask."""
  return [candidate.mask_iou for candidate in candidates]


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Which reward chooses among several samples of an object.

  name: mask_iou, implicit, or MODULE:FUNCTION. models: work folders of the implicit reward's
  aligned and reference model. which: parameters of these two, as in WeightsConfig.
  """

  name: str = "mask_iou"
  models: tuple[str, str] | None = None
  which: str = "ema"


def load(config: RewardConfig, predictor: Predictor, seed: int) -> Reward:
  """The reward that a configuration names. Raises InputError.

  seed: of the times and noise that the implicit reward averages over.
  """
  if config.name == "mask_iou":
    return Reward("mask_iou", mask_iou)
  if config.name == "implicit":
    aligned, reference = (load_model(folder, predictor, config.which) for folder in config.models)
    run = build_implicit(aligned, reference)
    return Reward("implicit", functools.partial(implicit, run, seed))
  module, _, name = config.name.partition(":")
  try:
    return Reward(config.name, getattr(importlib.import_module(module), name))
  except (ImportError, AttributeError) as error:
    raise InputError(f"--reward {config.name}: {error}") from error


def load_model(folder: str, predictor: Predictor, which: str) -> nnx.Module:
  """A Geometry model with the predictor's inputs and latents. Raises InputError."""
  model, config = checkpoint.restore_model(folder, which=which)
  if config.model.name != "geometry":
    raise InputError(
      f"--reward_models {folder} holds a model of kind {config.model.name!r}, a geometry model is "
      "needed"
    )
  form, shapes = weights.input_config(config.model), weights.latent_shapes(config.model)
  if (form, shapes) != (predictor.form, predictor.latent_shapes):
    raise InputError(
      f"--reward_models {folder} reads or makes other inputs or latents ({form}, {shapes}) than "
      f"the sampled model ({predictor.form}, {predictor.latent_shapes})"
    )
  return model


def build_implicit(aligned: nnx.Module, reference: nnx.Module):
  """A jitted (cond, latents name -> (N, L, C), key) -> (N,) rewards up to a positive factor.

  reward = mean over (t, noise) of err_reference - err_aligned of the shape latents: -beta T w(t)
  (err_aligned - err_reference) of objectives/dpo.py with its factor left out, which does not change
  the order of candidates for one condition.
  """
  graphs, params = zip(*(nnx.split(m) for m in (aligned, reference)), strict=True)

  @jax.jit
  def run(params, cond, data, key):
    count = len(data["shape"])
    present = {name: jnp.full(count, name == "shape") for name in data}
    models = [nnx.merge(g, p) for g, p in zip(graphs, params, strict=True)]
    tokens = [model.encode(cond) for model in models]

    def one(k):
      # candidates share time and noise
      keys_B = jnp.broadcast_to(jax.random.fold_in(key, k), (count,))
      noise = draws.noise(keys_B, {name: x.shape[1:] for name, x in data.items()})
      t_B = jnp.full(count, (k + 0.5) / IMPLICIT_DRAWS)
      of_aligned, of_reference = (
        dpo.candidate_error(model, tokens_BSD, noise, data, present, t_B, {"shape": 1.0}, 0.0)
        for model, tokens_BSD in zip(models, tokens, strict=True)
      )
      return of_reference - of_aligned

    return jax.lax.map(one, jnp.arange(IMPLICIT_DRAWS)).mean(0)

  return functools.partial(run, params)


def implicit(run, seed: int, candidates: Sequence[Candidate]) -> list[float]:
  """Scores of `build_implicit`'s function for the candidates of one object."""

  def repeated(x):
    return np.broadcast_to(x, (len(candidates), *np.shape(x)))

  cond = jax.tree.map(repeated, candidates[0].condition.streams)
  data = {name: np.stack([c.prediction.latents[name] for c in candidates]) for name in LATENTS}
  return np.asarray(run(cond, data, jax.random.key(seed))).tolist()
