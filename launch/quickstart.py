"""From nothing to a picture: data, autoencoder, Geometry model, samples and scores, all small.

    python -m launch.quickstart --workdir DIR

Runs the same commands as a large run, one after the other, each in its own process with a `:tiny`
configuration. Interrupted, it continues where it stopped; finished steps are not repeated.
`--dry_run` prints the commands.
"""

import argparse
import json
import pathlib
import shutil

from launch.console import cli
from launch.console.chain import Step, commands, run_all
from launch.console.flags import dry_run_flag
from launch.console.folders import output_folder
from launch.console.progress import duration
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic

FREE_BYTES_NEEDED = 1 << 30
CHECKED_EXAMPLES = 200  # of each split; the builder itself refuses what is wrong with a mesh


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir", default="quickstart_run", help="folder for everything that is made (about 200 MB)"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of the whole run: the same seed gives the same figures"
  )
  dry_run_flag(parser, "print the commands")


def chain(work: pathlib.Path, seed: int) -> list[Step]:
  """The commands, in order."""
  data = work / "data" / "iso_3do"
  latents = work / "data" / "iso_3do_latents"
  vae = work / "vae"
  geometry = work / "geometry"
  samples = work / "samples"

  def built(path: pathlib.Path) -> tuple[str, str]:
    return f"--config.data.mixture.iso_3do.path={path}", f"--config.seed={seed}"

  return [
    command(
      "build_data",
      "make objects, render and voxelise them",
      "--config", "configs/data/iso_3do.py:tiny",
      f"--config.out={data}",
      f"--config.seed={seed}",
    ),
    command(
      "validate_data",
      "check records of every shard",
      "--data", data,
      "--html", work / "data.html",
      "--max_examples", CHECKED_EXAMPLES,
    ),
    command(
      "train_vae",
      "train the structure autoencoder",
      "--config", "configs/vae_structure.py:tiny",
      "--workdir", vae,
      *built(data),
    ),
    command(
      "encode_latents",
      "encode every shape",
      "--data", data,
      "--checkpoint", vae,
      "--out", latents,
    ),
    command(
      "pretrain",
      "train the Geometry model",
      "--config", "configs/pretrain_geometry.py:tiny",
      "--workdir", geometry,
      *built(latents),
    ),
    command(
      "sample",
      "reconstruct held-out objects",
      "--checkpoint", geometry,
      "--decoder", vae,
      "--data", latents,
      "--split", "test",
      "--seed", seed,
      "--out", samples,
    ),
    command(
      "evaluate",
      "score",
      "--samples", samples,
      "--data", latents,
      "--split", "test",
      "--out", work,
    ),
  ]  # fmt: skip


def command(name: str, says: str, *arguments) -> Step:
  """The step that runs `launch.<name>`."""
  return Step(name, says, (f"launch.{name}", *map(str, arguments)))


def run(args: argparse.Namespace) -> int:
  """Runs what is not done yet and prints the figures."""
  work = output_folder(args.workdir, dry_run=args.dry_run, flag="--workdir")
  steps = chain(work, args.seed)
  if args.dry_run:
    print(commands(steps))
    return 0
  free = shutil.disk_usage(work).free
  if free < FREE_BYTES_NEEDED:
    raise InputError(
      f"--workdir {work}: {free >> 20} MB are free on that disk, {FREE_BYTES_NEEDED >> 20} MB are "
      "needed; free some or "
      "give a folder on another disk (make quickstart WORK=DIR)"
    )
  report(work, run_all(steps, work))
  return 0


def report(work: pathlib.Path, seconds: float) -> None:
  """Adds the time to metrics.json and prints what there is to see and to do next."""
  path = work / "metrics.json"
  metrics = {**json.loads(path.read_text()), "seconds": round(seconds, 1)}
  atomic.write_json(path, metrics)
  score = metrics["voxel_iou"]
  constant = metrics["voxel_iou_constant"]
  shuffled = metrics["voxel_iou_shuffled"]
  print(f"""
held-out voxel IoU {score:.3f}
  {score / constant:.2f} x the best constant shape ({constant:.3f})
  {score / shuffled:.2f} x shuffled images ({shuffled:.3f})
time {duration(seconds)}

look at    {work / "preview.png"}         input, mask, truth and sample from two views
           {work / "samples"}/*.glb       the meshes, for any viewer
           {work / "data.html"}           the training data
           tensorboard --logdir {work}
try next   python -m launch.sample --checkpoint {work / "geometry"} --decoder {work / "vae"} \\
             --image PHOTO --mask MASK --out DIR
           python -m launch.pretrain --config configs/pretrain_geometry.py:tiny \\
             --config.steps=20000 ...   (longer is better)
           docs/quickstart.md walks through what happened and how the same commands scale""")


if __name__ == "__main__":
  raise SystemExit(main())
