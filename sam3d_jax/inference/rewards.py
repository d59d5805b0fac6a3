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
from sam3d_jax.training import checkpoint_params

# (time, noise) pairs that the implicit reward averages over, the same for all candidates
IMPLICIT_DRAWS = 8


@dataclasses.dataclass(frozen=True)
class Reward:
  """A named score; calling it checks what came back."""

  name: str
  score: Callable[[Sequence[Candidate]], Sequence[float]]

  def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
    # A user's function may return anything.
    given = np.asarray(self.score(candidates))
    scores = [float(v) for v in given.ravel()]
    all_finite = all(map(math.isfinite, scores))
    if len(scores) != len(candidates) or not all_finite:
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
    aligned_folder, reference_folder = config.models
    aligned = load_model(aligned_folder, predictor, config.which)
    reference = load_model(reference_folder, predictor, config.which)
    run = build_implicit(aligned, reference)
    return Reward("implicit", functools.partial(implicit, run, seed))

  # A function of the user's own.
  module_name, _, name = config.name.partition(":")
  try:
    module = importlib.import_module(module_name)
    function = getattr(module, name)
  except (ImportError, AttributeError) as error:
    raise InputError(f"--reward {config.name}: {error}") from error
  return Reward(config.name, function)


def load_model(folder: str, predictor: Predictor, which: str) -> nnx.Module:
  """A Geometry model with the predictor's inputs and latents. Raises InputError."""
  # Any Geometry model can be restored ...
  model, config = checkpoint_params.restore_model(folder, which=which)
  if config.model.name != "geometry":
    raise InputError(
      f"--reward_models {folder} holds a model of kind {config.model.name!r}, a geometry model is "
      "needed"
    )

  # ... but it must be shown the same inputs, and judge the same latents.
  form = weights.input_config(config.model)
  shapes = weights.latent_shapes(config.model)
  if form != predictor.form or shapes != predictor.latent_shapes:
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
  aligned_graph, aligned_params = nnx.split(aligned)
  reference_graph, reference_params = nnx.split(reference)

  @jax.jit
  def run(params, cond, data, key):
    # Only the shape latents count.
    count = len(data["shape"])
    present = {name: jnp.full(count, name == "shape") for name in data}
    shapes = {name: x.shape[1:] for name, x in data.items()}

    # Both models look at the condition once.
    aligned_params, reference_params = params
    aligned = nnx.merge(aligned_graph, aligned_params)
    reference = nnx.merge(reference_graph, reference_params)
    aligned_tokens_BSD = aligned.encode(cond)
    reference_tokens_BSD = reference.encode(cond)

    def one(k):
      # Candidates share time and noise.
      key_k = jax.random.fold_in(key, k)
      keys_B = jnp.broadcast_to(key_k, (count,))
      noise = draws.noise(keys_B, shapes)
      t_B = jnp.full(count, (k + 0.5) / IMPLICIT_DRAWS)

      def error(model, tokens_BSD):
        return dpo.candidate_error(
          model,
          tokens_BSD,
          noise,
          data,
          present,
          t_B,
          {"shape": 1.0},
          0.0,
        )

      of_aligned = error(aligned, aligned_tokens_BSD)
      of_reference = error(reference, reference_tokens_BSD)
      return of_reference - of_aligned

    rewards_KB = jax.lax.map(one, jnp.arange(IMPLICIT_DRAWS))
    return rewards_KB.mean(0)

  return functools.partial(run, (aligned_params, reference_params))


def implicit(run, seed: int, candidates: Sequence[Candidate]) -> list[float]:
  """Scores of `build_implicit`'s function for the candidates of one object."""
  count = len(candidates)

  def repeated(x):
    return np.broadcast_to(x, (count, *np.shape(x)))

  # One condition for all, the latents of each.
  cond = jax.tree.map(repeated, candidates[0].condition.streams)
  data = {}
  for name in LATENTS:
    data[name] = np.stack([c.prediction.latents[name] for c in candidates])
  key = jax.random.key(seed)
  rewards = run(cond, data, key)
  return np.asarray(rewards).tolist()
