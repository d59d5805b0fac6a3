"""What chooses among several samples of one object: launch.sample --samples N --reward ...

    mask_iou          IoU of silhouette and mask, render-and-compare
    implicit          the implicit reward of a model aligned by preferences, over the reference it started from
    MODULE:FUNCTION   a function of your own: (list of Candidate, all of one object) -> one number each, the highest wins

`sam3d_jax.inference.candidates.Candidate` says what a reward can look at: photo, mask, camera, the model's
inputs, latents, occupancy, mesh, pose.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
import importlib
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import LATENTS, Conditioning
from sam3d_jax.errors import InputError
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.predictor import DroppingPointmap, Predictor, needs_pointmap, row_config
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


def load(args: argparse.Namespace, predictor: Predictor) -> Reward | None:
  """The reward that the flags name; None for a single sample."""
  if args.samples == 1:
    return None
  if args.reward == "mask_iou":
    return Reward("mask_iou", mask_iou)
  if args.reward == "implicit":
    models = [load_model(folder, predictor, args.which) for folder in args.reward_models]
    return Reward("implicit", functools.partial(implicit, build_implicit(*models), args.seed))
  module, _, name = args.reward.partition(":")
  try:
    return Reward(args.reward, getattr(importlib.import_module(module), name))
  except (ImportError, AttributeError) as error:
    raise InputError(f"--reward {args.reward}: {error}") from error


def load_model(folder: str, predictor: Predictor, which: str) -> nnx.Module:
  """A Geometry model with the predictor's inputs and latents."""
  model, config = checkpoint.restore_model(folder, which=which)
  if config.model.name != "geometry":
    raise InputError(
      f"--reward_models {folder} holds a model of kind {config.model.name!r}, a geometry model is "
      "needed"
    )
  if row_config(config.model) != predictor.row:
    raise InputError(
      f"--reward_models {folder} reads or makes other inputs or latents "
      f"({row_config(config.model)}) "
      f"than the sampled model ({predictor.row})"
    )
  return model


def build_implicit(aligned: nnx.Module, reference: nnx.Module):
  """A jitted function (cond, shape latents (N, L, C), drop, key) -> (N,) rewards up to a positive
  factor.

  reward = mean over (t, noise) of err_reference - err_aligned of the shape latents: -beta T w(t)
  (err_aligned - err_reference) of objectives/dpo.py with its factor left out, which does not change
  the order of candidates for one condition.
  """
  graphs, params = zip(*(nnx.split(m) for m in (aligned, reference)), strict=True)

  @jax.jit
  def run(params, cond, data, drop_B, key):
    present = {name: jnp.full(len(drop_B), name == "shape") for name in data}
    models = [
      DroppingPointmap(nnx.merge(g, p), drop_B) for g, p in zip(graphs, params, strict=True)
    ]
    tokens = [m.encode(cond) for m in models]

    def one(k):
      # candidates share time and noise
      keys_B = jnp.broadcast_to(jax.random.fold_in(key, k), drop_B.shape)
      noise = draws.noise(keys_B, {name: x.shape[1:] for name, x in data.items()})
      t_B = jnp.full(drop_B.shape, (k + 0.5) / IMPLICIT_DRAWS)
      error = [
        dpo.candidate_error(m, t, noise, data, present, t_B, {"shape": 1.0}, 0.0)
        for m, t in zip(models, tokens, strict=True)
      ]
      return error[1] - error[0]

    return jax.lax.map(one, jnp.arange(IMPLICIT_DRAWS)).mean(0)

  return functools.partial(run, params)


def implicit(run, seed: int, candidates: Sequence[Candidate]) -> list[float]:
  """Scores of `build_implicit`'s function."""
  first = candidates[0]
  repeat = lambda x: np.broadcast_to(x, (len(candidates), *np.shape(x)))
  cond = Conditioning(**{s: repeat(first.streams[s]) for s in first.predictor.row.streams})
  data = {name: np.stack([c.prediction.latents[name] for c in candidates]) for name in LATENTS}
  drop = first.photo.pointmap_HW3 is None and needs_pointmap(first.predictor.row)
  return np.asarray(run(cond, data, np.full(len(candidates), drop), jax.random.key(seed))).tolist()
