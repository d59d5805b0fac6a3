r"""Reconstructs objects: of photos, or of the held-out part of a dataset (docs/inference.md).

    python -m launch.sample --checkpoint DIR --image PHOTO --mask MASK [--mask MASK ...] \
        [--pointmap FILE] --out DIR

    python -m launch.sample --checkpoint DIR --images DIR --out DIR

    python -m launch.sample --checkpoint DIR --data DIR --split test --out DIR

A photo gives <object>.glb, layout.json, scene.glb and preview.png; a folder of photos gives a
folder of these for each; a dataset gives samples.npz, which launch.evaluate scores, and the first
objects as GLB. --release DIR takes a published release folder in place of a checkpoint. --viewer
opens the results in the browser; alone with --out it opens those of an earlier run.
"""

import argparse
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
from sam3d_jax.errors import InputError
from sam3d_jax.files import mask_files, pointmaps

# the lowest value of flags
LOWEST = {
  "steps": 1,
  "max": 0,
  "batch_size": 1,
  "glb": 0,
  "samples": 1,
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  weights = parser.add_argument_group("weights")
  weights_flags(weights)
  photo = parser.add_argument_group("photos")
  photo.add_argument(
    "--image", help="photo; its alpha channel is the mask if neither --mask nor --labels is given"
  )
  photo.add_argument(
    "--images",
    help="folder of photos: DIR/<name>/image.jpg with masks beside it (docs/inference.md)",
  )
  photo.add_argument(
    "--mask",
    action="append",
    default=[],
    help="mask of one object, of the photo's size (repeatable)",
  )
  photo.add_argument("--labels", help="label map in place of masks: one object for each id but 0")
  photo.add_argument(
    "--mask_orientation",
    choices=mask_files.MASK_ORIENTATIONS,
    help="how masks of a photo lie that EXIF turns: upright, or stored, as the pixels in its file "
    "(default: as their sizes tell)",
  )
  photo.add_argument("--ids", help="which ids of the label map, e.g. 1,5 (default: all)")
  photo.add_argument(
    "--pointmap",
    help="camera-frame points (.npy, .npz, .exr) or a depth map (also 16-bit .png; needs "
    "--intrinsics)",
  )
  photo.add_argument(
    "--pointmap_command",
    metavar="CMD",
    help="makes the point maps of photos without one: 'CMD {image} {out}'",
  )
  photo.add_argument(
    "--pointmap_frame",
    default="pytorch3d",
    choices=pointmaps.FRAMES,
    help="frame of the points: pytorch3d (default; x left, y up, z forward), opencv or gltf",
  )
  photo.add_argument(
    "--pointmap_channels",
    metavar="CHANNELS",
    help="of OpenEXR files that hold more: the channel of depth, e.g. ViewLayer.Depth.Z, or the "
    "three of points, e.g. P.X,P.Y,P.Z",
  )
  photo.add_argument(
    "--intrinsics",
    help="fx,fy,cx,cy in pixels (of the depth map if there is one), or a file; one that states the "
    "size of its picture is scaled",
  )
  photo.add_argument(
    "--depth_unit",
    type=float,
    default=pointmaps.DEPTH_UNIT,
    help="length of one step of an integer depth map",
  )
  photo.add_argument(
    "--samples",
    type=int,
    default=1,
    help="samples of each object, of which the best by --reward is kept",
  )
  photo.add_argument(
    "--reward",
    default="mask_iou",
    help="mask_iou (default), implicit, or MODULE:FUNCTION (sam3d_jax/inference/rewards.py)",
  )
  photo.add_argument(
    "--reward_models",
    nargs=2,
    metavar=("ALIGNED", "REFERENCE"),
    help="checkpoints of the implicit reward",
  )
  photo.add_argument(
    "--refine",
    action="store_true",
    help="fit each object's place to its mask by render-and-compare",
  )
  photo.add_argument(
    "--viewer",
    action="store_true",
    help="open the results in the browser (requirements-viewer.txt)",
  )
  photo.add_argument(
    "--viewer_host",
    default="127.0.0.1",
    help="address the viewer listens on (default: this machine only)",
  )
  photo.add_argument("--viewer_port", type=int, default=8080)
  photo.add_argument(
    "--viewer_photos",
    action="append",
    default=[],
    metavar="DIR",
    help="folder whose photos the viewer may show beside those of this run (repeatable)",
  )
  input_flags(photo, "photos")
  data = parser.add_argument_group("a dataset")
  data.add_argument("--data", help="dataset folder")
  data.add_argument("--split", default="test")
  data.add_argument("--max", type=int, default=0, help="examples at most, evenly spaced; 0: all")
  data.add_argument(
    "--glb", type=int, default=12, help="how many of the samples are written as GLB"
  )
  data.add_argument(
    "--shuffle_images", action="store_true", help="take each image from another object (baseline)"
  )
  parser.add_argument("--out", required=True, help="folder for the results")
  sampler_flags(parser)
  parser.add_argument("--seed", type=int, default=0)
  dry_run_flag(parser, "check inputs and weights, print the plan")


def run(args: argparse.Namespace) -> None:
  """Checks the flags, then hands over to the mode."""
  inputs = [name for name in ("image", "images", "data") if getattr(args, name) is not None]
  only_look = args.viewer and not inputs
  if not only_look:
    check_flags(args, inputs)

  # Imports here and below, so that --help and wrong flags cost no JAX.
  if args.viewer:
    from launch.photos import viewer

    shown = [*args.viewer_photos]
    if args.images is not None:
      shown.append(args.images)
    elif args.image is not None:
      shown.append(args.image)
    page = viewer.ViewerConfig(
      host=args.viewer_host,
      port=args.viewer_port,
      photos=tuple(shown),
    )
    viewer.check(page)
  if only_look:
    return viewer.run(page, pathlib.Path(args.out))

  # A dataset, or photos.
  with output_lock(args.out, "launch.sample", dry_run=args.dry_run) as out:
    if args.data is not None:
      from launch.scoring import split_samples

      return split_samples.run(split_config(args), out)
    from launch.photos import run as photos

    photos.run(photos_config(args), out)
  if args.viewer and not args.dry_run:
    viewer.run(page, out)


def photos_config(args: argparse.Namespace):
  """What the flags ask to be done with photos."""
  from launch.photos.jobs import PhotoSource
  from launch.photos.run import PhotosConfig
  from sam3d_jax.inference.rewards import RewardConfig

  models = None if args.reward_models is None else tuple(args.reward_models)
  return PhotosConfig(
    source=PhotoSource(
      image=args.image,
      images=args.images,
      masks=tuple(args.mask),
      labels=args.labels,
      ids=args.ids,
      pointmap=args.pointmap,
      intrinsics=args.intrinsics,
      pointmap_frame=args.pointmap_frame,
      depth_unit=args.depth_unit,
      mask_orientation=args.mask_orientation,
      pointmap_channels=args.pointmap_channels,
    ),
    weights=weights_config(args),
    reward=RewardConfig(args.reward, models, args.which),
    pointmap_command=args.pointmap_command,
    samples=args.samples,
    refine=args.refine,
    seed=args.seed,
    batch_size=args.batch_size,
    dry_run=args.dry_run,
    limits=limits_of(args),
    quarantine_budget=args.quarantine_budget,
  )


def split_config(args: argparse.Namespace):
  """What the flags ask to be done with a dataset."""
  from launch.scoring.split_samples import SplitConfig

  return SplitConfig(
    data=args.data,
    split=args.split,
    weights=weights_config(args),
    most=args.max,
    glb=args.glb,
    shuffle_images=args.shuffle_images,
    seed=args.seed,
    batch_size=args.batch_size,
    dry_run=args.dry_run,
  )


def weights_config(args: argparse.Namespace):
  """Which weights the flags name."""
  from sam3d_jax.inference.weights import WeightsConfig

  return WeightsConfig(
    checkpoint=args.checkpoint,
    decoder=args.decoder,
    release=args.release,
    which=args.which,
    steps=args.steps,
    guidance=args.guidance,
    shortcut=args.shortcut,
  )


def check_flags(args: argparse.Namespace, inputs: list[str]) -> None:
  """Raises InputError for flags that do not go together or have no meaning."""
  # Where the weights and the inputs are.
  if (args.checkpoint is None) == (args.release is None):
    raise InputError("give one of --checkpoint DIR and --release DIR")
  if args.release is not None and args.decoder is not None:
    raise InputError("--decoder goes with --checkpoint; a release folder has its own")
  if len(inputs) != 1:
    raise InputError(
      "give one of --image FILE (a photo), --images DIR (a folder of photos) and --data DIR (a "
      "dataset)"
    )

  def given(*names: str) -> str:
    """Those of some flags that are given, as the user writes them."""
    found = [name for name in names if getattr(args, name) not in (None, [], False)]
    return ", ".join(f"--{name}" for name in found)

  # Flags of one kind of input.
  of_photo = given("mask", "pointmap", "labels", "ids")
  if args.image is None and of_photo:
    raise InputError(f"{of_photo} go with --image")
  of_photos = given(
    "pointmap_command", "intrinsics", "mask_orientation", "refine", "viewer", "reward_models"
  )
  if args.data is not None and of_photos:
    raise InputError(f"{of_photos} go with --image or --images")
  if args.data is not None and args.samples != 1:
    raise InputError("--samples goes with --image or --images")
  if args.data is None and args.shuffle_images:
    raise InputError("--shuffle_images goes with --data")

  # Flags that say the same thing, or need another.
  if args.labels is not None and args.mask:
    raise InputError("give one of --mask and --labels")
  if args.ids is not None and args.labels is None:
    raise InputError("--ids chooses among the ids of --labels FILE")
  if args.pointmap is not None and args.pointmap_command is not None:
    raise InputError("give one of --pointmap and --pointmap_command")
  check_reward(args)

  # Numbers out of range.
  for flag, low in LOWEST.items():
    value = getattr(args, flag)
    if value is not None and value < low:
      raise InputError(f"--{flag} {value}: give at least {low}")
  if not args.depth_unit > 0:
    raise InputError(f"--depth_unit {args.depth_unit}: give a positive length")


def check_reward(args: argparse.Namespace) -> None:
  if args.reward not in ("mask_iou", "implicit") and ":" not in args.reward:
    raise InputError(f"--reward {args.reward}: give mask_iou, implicit, or MODULE:FUNCTION")
  if (args.reward == "implicit") != (args.reward_models is not None):
    raise InputError("--reward implicit and --reward_models ALIGNED REFERENCE go together")
  if args.reward != "mask_iou" and args.samples == 1:
    raise InputError(f"--reward {args.reward} chooses among several samples: give --samples N")


if __name__ == "__main__":
  raise SystemExit(main())
