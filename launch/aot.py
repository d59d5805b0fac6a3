r"""Compiles a configuration's training step for hardware that is not there; fit and cost.

    python -m launch.aot --config configs/pretrain_geometry.py --topology v5p:8x8x8 \
        --config.mesh.fsdp=8 --json report.json

The step is the one that `launch.trainer.train` runs: same code, shardings and donation.
`--topology` is a TPU slice as `v5p:4x4x4`, `v5e:16x16` or `v6e:16x16` (needs requirements-tpu.txt,
no TPU), several of them with `--slices N`, or `cpu:N` for N host devices. No data and no checkpoint
is read. `8xh100`, `8xh200` or `8xa100` gives an estimate for GPUs, whose compiler does not run
without one; every report has their verdict too. Exit code 1 if the step does not fit the memory of
a chip. `--search attention,full` finds the largest batch a chip for each of these rematerialisation
policies, in about five compilations each.

Pictures of splats, forward and backward, are compiled for one chip of the topology in place of a
configuration:

    python -m launch.aot --topology v5p:2x2x1 --splats 1000000 --side 512

A decoder of the second stage, which has no training step of its own, is compiled for a row of
voxels on one chip, forward and with its backward pass:

    python -m launch.aot --config configs/vae_slat_mesh.py --topology v5p:2x2x1 --voxels 32768
"""

import argparse
import pathlib

from launch.console import cli
from launch.console.flags import dry_run_flag, json_flag, rendering_flags
from launch.console.folders import check_file
from launch.performance import topologies
from sam3d_jax.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--topology",
    required=True,
    help="what to compile for: v5p:4x4x4, v5e:16x16, v6e:16x16, cpu:8; 8xh100: estimated",
  )
  parser.add_argument(
    "--slices", type=int, default=1, help="number of such slices, joined by the data-centre network"
  )
  json_flag(parser)
  dry_run_flag(parser, "check configuration and topology, print the plan of the run")
  parser.add_argument(
    "--search",
    nargs="?",
    const="",
    metavar="POLICY,...",
    help="find the largest batch per chip for each rematerialisation policy, or for those named",
  )
  parser.add_argument(
    "--voxels", type=int, metavar="N", help="compile a decoder for a row of so many, not a step"
  )
  pictures = parser.add_argument_group("pictures of splats, in place of --config")
  rendering_flags(pictures, splats=None, side=512)


def run(args: argparse.Namespace) -> int:
  if args.json:
    check_file(args.json, "--json")
  if (args.config is None) == (args.splats is None):
    raise ConfigError("give exactly one of --config FILE, --splats N")
  if args.voxels is not None and args.config is None:
    raise ConfigError("--voxels needs --config FILE, whose decoder is compiled")
  topologies.prepare_environment(args.topology)
  if args.splats is not None:
    return compile_pictures(args)
  if args.voxels is not None:
    return compile_decoder(args)
  # The wall: what is imported here needs JAX, which reads that environment.
  from launch.performance import ahead

  spec = ahead.AheadSpec(
    config=args.config,
    topology=args.topology,
    slices=args.slices,
    policies=args.search,
    json=pathlib.Path(args.json) if args.json else None,
  )
  if args.dry_run:
    ahead.rehearse(spec)
    return 0
  return 0 if ahead.run(spec) else 1


def compile_decoder(args: argparse.Namespace) -> int:
  if args.search is not None or args.slices != 1:
    raise ConfigError("--voxels compiles for one chip: it goes without --search and --slices")
  check_one_chip(args.topology)
  # The wall, as above.
  from launch.performance import decoding

  spec = decoding.DecodingSpec(
    config=args.config,
    voxels=args.voxels,
    json=pathlib.Path(args.json) if args.json else None,
  )
  if args.dry_run:
    name = args.config.model.name
    print(f"would compile {name} at {spec.voxels} voxels for one chip of {args.topology}")
    return 0
  return 0 if decoding.compile_for(spec, args.topology) else 1


def check_one_chip(topology: str) -> None:
  """Raises ConfigError for a topology that does not exist or has no compiler here."""
  topologies.machine_of(topology, 1)
  if topologies.is_gpu(topology):
    raise ConfigError(f"--topology {topology}: nothing is compiled for GPUs; name a TPU slice")


def compile_pictures(args: argparse.Namespace) -> int:
  if args.search is not None or args.slices != 1:
    raise ConfigError("--splats compiles for one chip: --search and --slices need --config FILE")
  check_one_chip(args.topology)
  # The wall, as above.
  from launch.performance import rendering

  spec = rendering.RenderingSpec(
    splats=args.splats,
    side=args.side,
    tile=args.tile,
    block=args.block,
    lanes=args.lanes,
    slots=args.slots,
    json=pathlib.Path(args.json) if args.json else None,
  )
  if args.dry_run:
    print(f"would compile pictures of {spec.splats} splats for one chip of {args.topology}")
    return 0
  return 0 if rendering.compile_for(spec, args.topology) else 1


if __name__ == "__main__":
  raise SystemExit(main())
