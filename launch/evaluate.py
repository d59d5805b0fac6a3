"""Scores predictions against the truth.

    python -m launch.evaluate --pairs DIR --out DIR

    python -m launch.evaluate --benchmark procedural_1 --checkpoint RUN --decoder VAE --out DIR

    python -m launch.evaluate [--bop DIR | --sa3dao DIR | --photos DIR] --release DIR --out DIR

    python -m launch.evaluate --views DIR [--lpips FILE] --out DIR

    python -m launch.evaluate --votes FILE.csv --out DIR

    python -m launch.evaluate --samples DIR --data DIR --out DIR [--shuffled DIR]

--pairs reads DIR/<object>/{pred,truth}.<glb|obj|ply|stl|off|gltf> with optional pred_pose.json and
truth_pose.json and writes metrics.json, metrics.csv and report.html. --benchmark, --bop, --sa3dao
and --photos sample a set with a trained model first (docs/evaluation.md). --samples scores the
samples.npz of launch.sample on the dataset they were drawn for, with the baselines they have to
beat, and writes metrics.json and preview.png.
"""

import argparse
import os
import pathlib

from launch.console import cli
from launch.console.flags import (
  dry_run_flag,
  input_flags,
  limits_of,
  sampler_flags,
  weights_flags,
)
from launch.console.folders import output_lock
from launch.console.notes import noted
from sam3d_jax.errors import InputError

# modes in which a model is run on an evaluation set
SETS = ("benchmark", "bop", "sa3dao", "photos")
MODES = ("pairs", "samples", "views", "votes", *SETS)
# the lowest value of flags
LOWEST = {
  "points": 1000,
  "workers": 0,
  "rows": 1,
  "batch_size": 1,
  "steps": 1,
  "max": 0,
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--out", required=True, help="folder for the results")
  parser.add_argument(
    "--points", type=int, default=1_000_000, help="surface samples a mesh (shape metrics)"
  )
  parser.add_argument("--workers", type=int, default=0, help="processes that score; 0: one a core")
  dry_run_flag(parser, "check inputs, poses and weights, print the plan")
  pairs = parser.add_argument_group("pairs of meshes")
  pairs.add_argument("--pairs", help="folder with one folder an object")
  sets = parser.add_argument_group("a model on an evaluation set")
  sets.add_argument(
    "--benchmark",
    metavar="NAME[:N]",
    help="frozen benchmark (its first N objects), made on the spot: procedural_1",
  )
  sets.add_argument(
    "--benchmark_data", help="folder to keep the benchmark's photos in (default: OUT/benchmark)"
  )
  sets.add_argument(
    "--bop",
    metavar="DIR",
    help="dataset in BOP format (HB, LM-O, HOPE, YCB-V, ...); --split names its folder of scenes",
  )
  sets.add_argument(
    "--sensor",
    help="of --bop: the one that is read of scenes of several, e.g. cam1 (scene_gt_cam1.json)",
  )
  sets.add_argument("--sa3dao", metavar="DIR", help="SA-3DAO: images, masks, meshes and poses")
  sets.add_argument(
    "--photos",
    metavar="DIR",
    help="your own photos with masks, meshes and poses, in the same layout",
  )
  sets.add_argument("--max", type=int, default=0, help="objects at most, evenly spaced; 0: all")
  weights_flags(sets)
  sets.add_argument(
    "--oracle",
    action="store_true",
    help="take the true voxels and poses in place of a model: the set's ceiling",
  )
  sampler_flags(sets)
  input_flags(parser, "objects of a set")
  sets.add_argument("--seed", type=int, default=0, help="of the noise")
  pictures = parser.add_argument_group("rendered views, and people's choices")
  pictures.add_argument(
    "--views", metavar="DIR", help="DIR/<object>/truth_<view>.png and pred_<view>.png: PSNR, SSIM"
  )
  pictures.add_argument(
    "--lpips",
    metavar="FILE",
    help="weights for LPIPS of views: state dict of lpips.LPIPS, .safetensors or .pth",
  )
  pictures.add_argument(
    "--votes",
    metavar="FILE",
    help="CSV with columns left,right,outcome (left, right or equal): win rates, Elo",
  )
  samples = parser.add_argument_group("samples of a dataset")
  samples.add_argument("--samples", help="folder with samples.npz")
  samples.add_argument(
    "--shuffled",
    help="folder of samples of --shuffle_images (default: every sample meets each other object)",
  )
  samples.add_argument("--data", help="the dataset that was sampled")
  samples.add_argument("--split", default="test", help="of --data or --bop")
  samples.add_argument(
    "--train_data", help="dataset whose mean shape is the constant baseline (default: --data)"
  )
  samples.add_argument("--train_split", default="train")
  samples.add_argument("--rows", type=int, default=8, help="objects in preview.png")


def run(args: argparse.Namespace) -> None:
  """Checks the flags, then hands over to the mode."""
  # One mode, and what belongs to it.
  modes = [mode for mode in MODES if getattr(args, mode) is not None]
  if len(modes) != 1:
    choices = ", ".join(f"--{mode}" for mode in MODES)
    many = f", not {len(modes)} of them" if modes else ""
    raise InputError(f"give one of {choices}{many}")
  (mode,) = modes
  if args.samples is not None and args.data is None:
    raise InputError("--samples needs --data DIR, the dataset that was sampled")
  if mode in SETS:
    check_weights(args)
  for flag, low in LOWEST.items():
    value = getattr(args, flag)
    if value is not None and value < low:
      raise InputError(f"--{flag} {value}: give at least {low}")
  if args.sensor is not None and args.bop is None:
    raise InputError("--sensor goes with --bop")
  if args.lpips is not None and args.views is None:
    raise InputError("--lpips goes with --views")

  # Threads that wait must not spin: the cores are for the other processes.
  os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
  with noted(), output_lock(args.out, "launch.evaluate", dry_run=args.dry_run) as out:
    MODE_RUNS[mode](args, out)


def run_samples(args: argparse.Namespace, out: pathlib.Path) -> None:
  """--samples: scores the samples of a dataset."""
  from launch.scoring import split_scores

  config = split_scores.SplitScoresConfig(
    samples=args.samples,
    data=args.data,
    split=args.split,
    shuffled=args.shuffled,
    train_data=args.train_data,
    train_split=args.train_split,
    rows=args.rows,
    dry_run=args.dry_run,
  )
  split_scores.run(config, out)


def run_pairs(args: argparse.Namespace, out: pathlib.Path) -> None:
  """--pairs: scores the folder that the user gives."""
  from launch.scoring import pairs

  if args.dry_run:
    folders = pairs.find_pairs(pathlib.Path(args.pairs))
    print(f"plan: {len(folders)} pairs of {args.pairs}, {args.points} points a mesh, into {out}")
    return
  workers = pairs.workers_of(args.workers)
  pairs.evaluate(
    pathlib.Path(args.pairs),
    out,
    protocol_of(args),
    workers,
    limits=limits_of(args),
  )


def run_views(args: argparse.Namespace, out: pathlib.Path) -> None:
  """--views: scores rendered pictures."""
  from launch.scoring import views

  if args.dry_run:
    folders = views.find_views(pathlib.Path(args.views))
    print(f"plan: views of {len(folders)} objects of {args.views}, into {out}")
    return
  views.run_views(pathlib.Path(args.views), args.lpips, out)


def run_votes(args: argparse.Namespace, out: pathlib.Path) -> None:
  """--votes: rates models by people's choices."""
  from launch.scoring import views

  if args.dry_run:
    votes = views.read_votes(pathlib.Path(args.votes))
    print(f"plan: {len(votes)} votes of {args.votes}, into {out}")
    return
  views.run_votes(pathlib.Path(args.votes), out)


def run_set(args: argparse.Namespace, out: pathlib.Path) -> None:
  """--benchmark, --bop, --sa3dao, --photos: samples a set with a model and scores it."""
  from launch.scoring import eval_set
  from sam3d_jax.inference.weights import WeightsConfig

  # The oracle needs no weights, nor does a look at the set.
  unneeded = args.oracle or (args.checkpoint is None and args.release is None)
  weights = WeightsConfig(
    checkpoint=args.checkpoint,
    decoder=args.decoder,
    release=args.release,
    which=args.which,
    steps=args.steps,
    guidance=args.guidance,
    shortcut=args.shortcut,
  )
  config = eval_set.EvalSetConfig(
    weights=None if unneeded else weights,
    benchmark=args.benchmark,
    benchmark_data=args.benchmark_data,
    bop=args.bop,
    sa3dao=args.sa3dao,
    photos=args.photos,
    split=args.split,
    sensor=args.sensor,
    most=args.max,
    seed=args.seed,
    batch_size=args.batch_size,
    dry_run=args.dry_run,
    workers=args.workers,
    protocol=protocol_of(args),
    limits=limits_of(args),
    quarantine_budget=args.quarantine_budget,
  )
  eval_set.run(config, out)


def protocol_of(args: argparse.Namespace):
  """How meshes are compared."""
  from sam3d_jax.evaluation.shape import ShapeProtocol

  return ShapeProtocol(points=args.points)


# Each imports what it needs itself, so that --help and wrong flags cost no JAX.
MODE_RUNS = {
  "samples": run_samples,
  "pairs": run_pairs,
  "views": run_views,
  "votes": run_votes,
  **dict.fromkeys(SETS, run_set),
}


def check_weights(args: argparse.Namespace) -> None:
  """Raises InputError unless the flags name exactly one source of predictions."""
  sources = [args.checkpoint is not None, args.release is not None, args.oracle]
  # the poses of a set can be looked at before there is a model
  undecided = args.dry_run and not any(sources)
  if sum(sources) != 1 and not undecided:
    raise InputError("an evaluation set needs one of --checkpoint DIR, --release DIR and --oracle")
  if args.decoder is not None and args.checkpoint is None:
    raise InputError("--decoder goes with --checkpoint; a release folder has its own")


if __name__ == "__main__":
  raise SystemExit(main())
