"""Scores predictions against the truth.

    python -m launch.evaluate --pairs DIR --out DIR

    python -m launch.evaluate --samples DIR --data DIR --out DIR [--shuffled DIR]

--pairs reads DIR/<object>/{pred,truth}.<glb|obj|ply|stl|off|gltf> with optional pred_pose.json and truth_pose.json and writes
metrics.json, metrics.csv and report.html. --samples scores the samples.npz of launch.sample on the dataset they were drawn for,
with the baselines they have to beat, and writes metrics.json and preview.png.
"""

import argparse

from launch import cli
from launch.train import prepare_workdir
from sam3d_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--out", required=True, help="folder for the results")
  pairs = parser.add_argument_group("pairs of meshes")
  pairs.add_argument("--pairs", help="folder with one folder an object")
  pairs.add_argument("--points", type=int, default=1_000_000, help="surface samples a mesh")
  pairs.add_argument("--workers", type=int, default=0, help="processes; 0: one for every two cores")
  samples = parser.add_argument_group("samples of a dataset")
  samples.add_argument("--samples", help="folder with samples.npz")
  samples.add_argument("--shuffled", help="folder of samples of --shuffle_images (default: every sample meets each other object)")
  samples.add_argument("--data", help="the dataset that was sampled")
  samples.add_argument("--split", default="test")
  samples.add_argument("--train_data", help="dataset whose mean shape is the constant baseline (default: --data)")
  samples.add_argument("--train_split", default="train")
  samples.add_argument("--rows", type=int, default=8, help="objects in preview.png")


def run(args: argparse.Namespace) -> None:
  """Checks the flags, then hands over to the mode."""
  if (args.pairs is None) == (args.samples is None):
    raise InputError("give one of --pairs DIR and --samples DIR")
  if args.samples is not None and args.data is None:
    raise InputError("--samples needs --data DIR, the dataset that was sampled")
  for flag, low in (("points", 1000), ("workers", 0), ("rows", 1)):
    if getattr(args, flag) < low:
      raise InputError(f"--{flag} {getattr(args, flag)}: give at least {low}")
  out = prepare_workdir(args.out)
  if args.samples is not None:
    from launch import evaluate_samples
    evaluate_samples.run(args, out)
  else:
    from launch import evaluate_pairs
    evaluate_pairs.run(args, out)


if __name__ == "__main__":
  cli.main(run, description=__doc__, flags=flags, config="none")
