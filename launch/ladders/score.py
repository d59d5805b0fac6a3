"""Scores one stage of the ladder on held-out photos: the step `launch.ladder score`.

Every stage sees the same objects with the same noise. The scores are those of
`launch.scoring.held_out`, here with 95 % bootstrap intervals; the constant is the strongest shape
that ignores the photo, taken from the truth of the very objects that are scored.
"""

import dataclasses
import pathlib

import numpy as np

from launch.console.progress import Progress, say
from launch.scoring import held_out
from sam3d_jax.evaluation import aggregate, occupancy
from sam3d_jax.files import atomic
from sam3d_jax.inference import weights
from sam3d_jax.inference.predictor import Predictor
from sam3d_jax.inference.weights import WeightsConfig

BATCH = 32
F1_THRESHOLD = 0.05


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """Which model is scored on which photos.

  data: datasets of photos. most: objects scored of each. seed: of the samples' noise.
  """

  weights: WeightsConfig
  data: tuple[str, ...]
  split: str = "test"
  most: int = 120
  seed: int = 0


def run(config: ScoreConfig, out: pathlib.Path) -> None:
  """Writes {dataset: scores} to the JSON file `out`.

  Scores are `name: mean` and `name_interval: [low, high]`, beside `constant` and the number of
  `objects`.
  """
  model = weights.load(config.weights, say)
  result = {}
  for folder in config.data:
    objects = held_out.read([folder], config.split, model.form, model.resolution, config.most)
    name = pathlib.Path(folder).name
    rows = score_objects(model, objects, config.seed, name)
    scores = aggregate.summarise(rows, list(held_out.HIGHER_IS_BETTER))

    # the strongest shape that ignores the photo
    truth = np.stack([one.occupancy for one in objects])
    constant, _ = occupancy.best_constant(truth.mean(0), truth)
    result[name] = scores | {"objects": len(objects), "constant": constant}

  out.parent.mkdir(parents=True, exist_ok=True)
  atomic.write_json(out, result)
  for name, scores in result.items():
    shown = []
    for score in held_out.HIGHER_IS_BETTER:
      if scores[score] is not None:
        shown.append(f"{score} {scores[score]:.3f}")
    print(
      f"{name}: {', '.join(shown)} ({scores['objects']} objects; best constant shape viou "
      f"{scores['constant']:.3f})"
    )


def score_objects(
  model: Predictor, objects: list[held_out.Object], seed: int, name: str
) -> dict[str, dict[str, float | None]]:
  """Key of each object -> its scores, None where it cannot be scored."""
  rows = {}
  with Progress(len(objects), f"scoring {name}", "objects") as bar:
    # every batch is padded to one size, so that one program serves them all
    for start in range(0, len(objects), BATCH):
      part = objects[start : start + BATCH]
      found = model(held_out.requests(part), BATCH, seed)
      for number, truth in enumerate(part):
        one = found.one(number)
        scores = held_out.score(
          truth,
          one.occupancy,
          one.latents,
          model.trained,
          f1_threshold=F1_THRESHOLD,
        )
        rows[truth.key] = {name: finite_or_none(value) for name, value in scores.items()}
      bar.update(len(part))
  return rows


def finite_or_none(value: float) -> float | None:
  """The form of a score in JSON, which has no NaN."""
  return value if np.isfinite(value) else None
