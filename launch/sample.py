"""Reconstructs objects: of a photo, or of the held-out part of a dataset.

    python -m launch.sample --checkpoint DIR --image PHOTO --mask MASK [--mask MASK ...] [--pointmap FILE] --out DIR

    python -m launch.sample --checkpoint DIR --data DIR --split test --out DIR

A photo gives <object>.glb, layout.json, scene.glb and preview.png; a dataset gives samples.npz, which launch.evaluate scores, and
the first objects as GLB. --release DIR takes a published release folder in place of a checkpoint.
"""

import argparse

from launch import cli
from launch.train import prepare_workdir
from sam3d_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  weights = parser.add_argument_group("weights")
  weights.add_argument("--checkpoint", help="work folder of a Geometry model")
  weights.add_argument("--decoder", help="work folder of the structure VAE of its data (default: as the checkpoint says)")
  weights.add_argument("--release", help="release folder with both")
  weights.add_argument("--which", default="ema", help="parameters of the checkpoint: raw, ema (default) or ema:<decay>")
  photo = parser.add_argument_group("a photo")
  photo.add_argument("--image", help="photo; its alpha channel is the mask if no --mask is given")
  photo.add_argument("--mask", action="append", default=[], help="mask of one object, of the photo's size (repeatable)")
  photo.add_argument("--pointmap", help="H x W x 3 camera-frame points (.npy or .npz; x left, y up, z forward; NaN unknown)")
  data = parser.add_argument_group("a dataset")
  data.add_argument("--data", help="dataset folder")
  data.add_argument("--split", default="test")
  data.add_argument("--max", type=int, default=0, help="examples at most, evenly spaced; 0: all")
  data.add_argument("--glb", type=int, default=12, help="how many of the samples are written as GLB")
  data.add_argument("--shuffle_images", action="store_true", help="take each image from another object (baseline)")
  parser.add_argument("--out", required=True, help="folder for the results")
  parser.add_argument("--steps", type=int, help="of the sampler (default: as recorded with the weights)")
  parser.add_argument("--guidance", type=float, help="strength (default: as recorded with the weights)")
  parser.add_argument("--shortcut", action="store_true", help="few-step sampling of a distilled model (4 steps unless --steps)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--batch_size", type=int, default=32, help="objects sampled at once")
  parser.add_argument("--dry_run", action="store_true", help="check the inputs, print the plan and stop")


def run(args: argparse.Namespace) -> None:
  """Checks the flags, then hands over to the mode."""
  if (args.checkpoint is None) == (args.release is None):
    raise InputError("give one of --checkpoint DIR and --release DIR")
  if args.release is not None and args.decoder is not None:
    raise InputError("--decoder goes with --checkpoint; a release folder has its own")
  if (args.image is None) == (args.data is None):
    raise InputError("give one of --image FILE (a photo) and --data DIR (a dataset)")
  if args.image is None and (args.mask or args.pointmap):
    raise InputError("--mask and --pointmap go with --image")
  if args.image is not None and args.shuffle_images:
    raise InputError("--shuffle_images goes with --data")
  for flag, low in (("steps", 1), ("max", 0), ("batch_size", 1), ("glb", 0)):
    value = getattr(args, flag)
    if value is not None and value < low:
      raise InputError(f"--{flag} {value}: give at least {low}")
  out = prepare_workdir(args.out)
  if args.data is not None:
    from launch import sample_dataset
    sample_dataset.run(args, out)
  else:
    from launch import sample_photo
    sample_photo.run(args, out)


def load_predictor(args: argparse.Namespace):
  """The weights that the flags name."""
  from launch import predictor
  settings = dict(steps=args.steps, guidance=args.guidance, shortcut=args.shortcut)
  if args.release is not None:
    return predictor.from_release(args.release, **settings)
  return predictor.from_checkpoint(args.checkpoint, args.decoder, which=args.which, **settings)


if __name__ == "__main__":
  cli.main(run, description=__doc__, flags=flags, config="none")
