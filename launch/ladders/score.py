"""Scores one stage of the ladder on held-out photos.

    python -m launch.ladders.score --checkpoint RUN --decoder VAE --data DIR --data DIR --out FILE.json [--shortcut] [--seed N]

Every stage sees the same objects with the same noise. The scores are those of `launch.scoring.held_out`,
here with 95 % bootstrap intervals; the constant is the strongest shape that ignores the photo,
taken from the truth of the very objects that are scored.
"""

import argparse
import pathlib

import numpy as np

from launch.console import cli
from launch.console.progress import Progress
from launch.scoring import held_out
from sam3d_jax.evaluation import aggregate, occupancy
from sam3d_jax.files import atomic
from sam3d_jax.inference import predictor

BATCH = 32
F1_THRESHOLD = 0.05


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", required=True, help="work folder of the model")
  parser.add_argument("--decoder", required=True, help="work folder of the structure VAE")
  parser.add_argument(
    "--data", required=True, action="append", help="dataset of photos; may be given more than once"
  )
  parser.add_argument("--split", default="test")
  parser.add_argument("--max", type=int, default=120, help="objects scored of each dataset")
  parser.add_argument("--shortcut", action="store_true", help="4 steps of the distilled sampler")
  parser.add_argument("--steps", type=int, help="sampling steps")
  parser.add_argument("--seed", type=int, default=0, help="of the samples' noise")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="JSON file")


def run(args: argparse.Namespace) -> None:
  """Writes {dataset: {score: mean, score_interval: [low, high]}} with `constant` and the number of
  objects.
  """
  model = predictor.from_checkpoint(
    args.checkpoint, args.decoder, steps=args.steps, guidance=None, shortcut=args.shortcut
  )
  result = {}
  for folder in args.data:
    objects = held_out.read([folder], args.split, model.row, model.resolution, args.max)
    rows = {}
    with Progress(len(objects), f"scoring {pathlib.Path(folder).name}", "objects") as bar:
      for start in range(0, len(objects), BATCH):
        part = objects[start : start + BATCH]
        found = model(*held_out.batch(part, BATCH), args.seed)
        for i, truth in enumerate(part):
          one = found.one(i)
          row = held_out.score(
            truth, one.occupancy, one.latents, model.trained, f1_threshold=F1_THRESHOLD
          )
          rows[truth.key] = {k: v if np.isfinite(v) else None for k, v in row.items()}
        bar.update(len(part))
    truth = np.stack([o.occupancy for o in objects])
    constant, _ = occupancy.best_constant(truth.mean(0), truth)
    result[pathlib.Path(folder).name] = aggregate.summarise(
      rows, list(held_out.HIGHER_IS_BETTER)
    ) | {"objects": len(objects), "constant": constant}
  args.out.parent.mkdir(parents=True, exist_ok=True)
  atomic.write_json(args.out, result)
  for name, scores in result.items():
    shown = ", ".join(
      f"{k} {scores[k]:.3f}" for k in held_out.HIGHER_IS_BETTER if scores[k] is not None
    )
    print(
      f"{name}: {shown} ({scores['objects']} objects; best constant shape viou "
      f"{scores['constant']:.3f})"
    )


if __name__ == "__main__":
  raise SystemExit(main())
