r"""Imports published weights as a checkpoint from which any stage can start.

    python -m launch.import_torch --from RELEASE --workdir DIR \
        [--part texture] [--encoder FILE]
    python -m launch.import_torch --from FILE --workdir DIR --config CONFIG

A release is a folder, of which the Geometry model is imported or another part: the structure VAE,
the texture model, the SLAT autoencoder or one of its decoders. Which file is which is decided by
the shapes in it. A file is a .ckpt, .pt, .pth or .safetensors of the configured model. An original
DINOv2 checkpoint goes into the image and the mask encoder of the configured model; the other
parameters are initialised at random. Arrays are converted and written one at a time. A file that is
not the one which release.json describes, and every missing, unexpected or misshapen entry, is
reported before anything is written.
"""

import argparse
from collections.abc import Mapping
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from configs import base
from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.folders import check_folder

PARTS = (
  "geometry",
  "structure_vae",
  "texture",
  "slat_vae",
  "slat_decoder_gs",
  "slat_decoder_gs_4",
  "slat_decoder_mesh",
)


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
    "--encoder",
    help="state dict of the encoder of an autoencoder, where the release lacks it",
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
    found = imports.open_source(spec, make_config)
  else:
    found = imports.import_weights(spec, make_config)
  for note in found.notes:
    print(f"note: {note}", file=sys.stderr)
  millions = imports.count_values(found.params) / 1e6
  did = "would import" if args.dry_run else "imported"
  print(f"{did} {len(found.params)} arrays, {millions:.1f} M parameters, into {args.workdir}")


def make_config(release, model: ConfigDict, sampler: Mapping[str, Any] | None) -> ConfigDict:
  """A configuration for one model of a release, from its yamls. release: torch_bridge's Release.
  sampler: how the model is sampled, None for one that is not.
  """
  config = base.training("import")
  config.model = model

  # a flow model's photos, point maps and sampling; `interval` may be a tuple or None
  if sampler is not None:
    config.data.image_size = model.condition.dino.input_size
    if model.condition.pointmap is not None:
      config.data.pointmap_size = model.condition.pointmap.input_size
    config.sampler = base.sampler()
    with config.ignore_type():
      config.sampler.update(sampler)

  # the voxels that the first stage's latents decode to
  if release.structure_vae is not None:
    config.data.resolution = release.structure_vae["resolution"]
  return config


if __name__ == "__main__":
  raise SystemExit(main())
