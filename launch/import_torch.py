"""Imports published weights as a checkpoint from which any stage can start.

    python -m launch.import_torch --from RELEASE --workdir DIR
        [--part structure_vae] [--encoder FILE]
    python -m launch.import_torch --from FILE --workdir DIR --config configs/x.py

A release is a folder, of which the Geometry model is imported or another part; a file is a .ckpt,
.pt, .pth or .safetensors of the configured model. An original DINOv2 checkpoint goes into the image
and the mask encoder of the configured model; the other parameters are initialised at random. Arrays
are converted and written one at a time. A file that is not the one which release.json describes,
and every missing, unexpected or misshapen entry, is reported before anything is written.
"""

import argparse
import pathlib

from ml_collections import ConfigDict

from configs import base
from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.folders import check_folder

PARTS = ("geometry", "structure_vae")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--from", dest="source", required=True, help="release folder or state dict file"
  )
  parser.add_argument(
    "--workdir", required=True, help="folder for the checkpoint; must not hold one"
  )
  parser.add_argument(
    "--part", choices=PARTS, default=PARTS[0], help="model of a release folder (default: geometry)"
  )
  parser.add_argument(
    "--encoder", help="state dict of the structure encoder, which the published release lacks"
  )
  parser.add_argument(
    "--unsafe_pickle",
    action="store_true",
    help="also read files that run code on loading: trusted ones only",
  )
  dry_run_flag(parser, "check that every array fits")


def run(args: argparse.Namespace) -> None:
  """Opens and checks, then writes."""
  check_folder(args.workdir)
  # The wall: what knows JAX is imported only once there is work to do.
  from sam3d_jax.torch_bridge import imports

  spec = imports.Import(
    source=pathlib.Path(args.source),
    workdir=args.workdir,
    part=args.part,
    encoder=args.encoder,
    config=args.config,
    unsafe_pickle=args.unsafe_pickle,
  )
  if args.dry_run:
    params = imports.open_source(spec, make_config).params
    millions = imports.count_values(params) / 1e6
    print(f"would import {len(params)} arrays, {millions:.1f} M parameters, into {args.workdir}")
    return
  params = imports.import_weights(spec, make_config)
  millions = imports.count_values(params) / 1e6
  print(f"imported {len(params)} arrays, {millions:.1f} M parameters, into {args.workdir}")


def make_config(release, model: ConfigDict) -> ConfigDict:
  """A configuration for one model of a release, from its yamls. release: torch_bridge's Release."""
  config = base.training("import")
  config.model = model

  # a flow model's photos, point maps and sampling; `interval` may be a tuple or None
  if model.name == "geometry":
    config.data.image_size = model.condition.dino.input_size
    if model.condition.pointmap is not None:
      config.data.pointmap_size = model.condition.pointmap.input_size
    config.sampler = base.sampler()
    with config.ignore_type():
      config.sampler.update(release.sampler)

  # the voxels that its latents decode to
  if release.structure_vae is not None:
    config.data.resolution = release.structure_vae["resolution"]
  return config


if __name__ == "__main__":
  raise SystemExit(main())
