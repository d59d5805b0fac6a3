r"""Measures training on the devices at hand: step time, samples/s a chip, MFU, input, memory.

    python -m launch.benchmark --config configs/midtrain_os_geometry.py --config.data.kind=fake \
        --steps 30 --write

`--vs FILE[:VARIANT]` measures a second configuration in the same run, taking turns step by step, so
that both see the same machine; `--config.KEY=VALUE` goes to the first, `--vs_set KEY=VALUE` to the
second. `--torch` takes turns with the same model, parameters and batches in eager PyTorch on this
CPU (launch/performance/torch_twin.py). `--write` appends a row for each to docs/benchmarks.md.
Parameters are random and nothing is saved. A configuration that is measured alone runs as in the
training loop, which hands a step to the devices before the one before it is finished, and reads the
next batch meanwhile; where two take turns, every step is waited for.

`--trace DIR` traces two further steps of the first configuration with JAX's profiler (for XProf or
Perfetto) and prints where the time of an NVIDIA GPU goes, kernel by kernel.

`--reading` measures instead, on one core, how fast records are read, made-up ones or those of
`--data DIR`; `--mesh FILE` how long a builder works on one mesh; `--render` how long pictures of
splats and of a mesh take, forward and backward, on the device at hand; `--extract` how long a mesh
of decoded cubes takes; `--sparse` how long the operations over sparse voxels take, with `--torch`
in turns with eager PyTorch on the CPU:

    python -m launch.benchmark --reading [--data DIR]
    python -m launch.benchmark --mesh FILE [--triangles 20000] [--views 8]
    python -m launch.benchmark --render [--splats 20000] [--side 128] [--tile 16]
    python -m launch.benchmark --extract [--voxels 32768]
    python -m launch.benchmark --sparse [--torch] [--counts 4096,32768]
"""

import argparse
import pathlib
import shlex
import sys

from launch.console import cli
from launch.console.flags import dry_run_flag, json_flag, rendering_flags
from launch.console.folders import check_file, check_folder
from launch.trainer import checks
from sam3d_jax.errors import ConfigError, InputError

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  # a configuration's step: against what, how long, and where the figures go
  parser.add_argument(
    "--vs",
    metavar="FILE[:VARIANT]",
    help="a second configuration, measured in turns with the first",
  )
  parser.add_argument(
    "--vs_set",
    metavar="KEY=VALUE",
    action="append",
    default=[],
    help="sets a key of the second configuration",
  )
  parser.add_argument(
    "--torch",
    action="store_true",
    help="measured in turns with the same step or operations in eager PyTorch, fp32, on CPU",
  )
  parser.add_argument(
    "--steps", type=int, default=20, help="measured steps of each, after two that are not counted"
  )
  parser.add_argument(
    "--trace",
    metavar="DIR",
    help="profile two further steps into this folder; on a GPU prints its kernels by time",
  )
  parser.add_argument(
    "--write", action="store_true", help="append a row for each to docs/benchmarks.md"
  )
  json_flag(parser)
  dry_run_flag(parser, "check what is measured, print its plan")
  reading = parser.add_argument_group("reading records, in place of --config")
  reading.add_argument(
    "--reading", action="store_true", help="samples per CPU second of the loader, on one core"
  )
  reading.add_argument(
    "--data", type=pathlib.Path, help="dataset to read; a made-up one if not given"
  )
  reading.add_argument("--size", type=int, default=518, help="side of the made-up photos, pixels")
  reading.add_argument("--repeat", type=int, default=3, help="the best of so many is printed")
  mesh = parser.add_argument_group("building from a mesh, in place of --config")
  mesh.add_argument("--mesh", type=pathlib.Path, help="CPU seconds of every part of the work on it")
  mesh.add_argument("--triangles", type=int, default=0, help="subdivide it until it has so many")
  mesh.add_argument("--views", type=int, default=8, help="views of it that are rendered")
  pictures = parser.add_argument_group("pictures of splats and of a mesh, in place of --config")
  pictures.add_argument("--render", action="store_true", help="seconds of a picture")
  rendering_flags(pictures, splats=20_000, side=128)
  cubes = parser.add_argument_group("meshes of decoded cubes, in place of --config")
  cubes.add_argument("--extract", action="store_true", help="seconds of a mesh of 256^3 cubes")
  cubes.add_argument("--voxels", type=int, default=32_768, help="of the made-up object, in 64^3")
  operations = parser.add_argument_group("operations over sparse voxels, in place of --config")
  operations.add_argument(
    "--sparse", action="store_true", help="seconds of a convolution and of attention"
  )
  operations.add_argument(
    "--counts",
    default="4096,8192,16384,32768",
    metavar="N,...",
    help="numbers of voxels of the made-up objects",
  )
  both = parser.add_argument_group("reading records, building from a mesh")
  both.add_argument("--image_size", type=int, default=518, help="pixels of what is made")
  both.add_argument(
    "--samples", type=int, help="records read (256), or rays a pixel along each axis (2)"
  )


def run(args: argparse.Namespace) -> None:
  asked = (
    args.config is not None,
    args.reading,
    args.mesh is not None,
    args.render,
    args.extract,
    args.sparse,
  )
  if sum(asked) != 1:
    raise ConfigError(
      "give exactly one of --config FILE, --reading, --mesh FILE, --render, --extract, --sparse"
    )
  for name, path in (("data", args.data), ("mesh", args.mesh)):
    if path is not None and not path.exists():
      raise InputError(f"--{name} {path}: no such file or folder")
  if args.render:
    measure_rendering(args)
    return
  if args.extract:
    measure_extraction(args)
    return
  if args.sparse:
    measure_sparse(args)
    return
  if args.dry_run and args.config is None:
    what = args.mesh or args.data or "made-up records"
    print(f"would measure {what}")
    return
  if args.reading:
    measure_reading(args)
  elif args.mesh is not None:
    measure_mesh(args)
  else:
    measure_training(args)


def measure_training(args: argparse.Namespace) -> None:
  # What is wrong by itself is said before JAX is imported.
  if args.steps < 1:
    raise ConfigError(f"--steps {args.steps} is not a positive number")
  if args.vs_set and not args.vs:
    raise ConfigError("--vs_set needs --vs FILE")
  if args.json:
    check_file(args.json, "--json")
  if args.trace:
    check_folder(args.trace, "--trace")
  vs = None
  if args.vs:
    overrides = [f"--config.{pair}" for pair in args.vs_set]
    vs = cli.load_config(args.vs, overrides, flag="--vs")
  for config in (args.config, vs):
    if config is not None:
      checks.check(config, (config.stage,), before_data=args.dry_run)
  # The wall: what is imported here needs JAX.
  from launch.performance import comparison

  spec = comparison.ComparisonSpec(
    config=args.config,
    vs=vs,
    torch=args.torch,
    steps=args.steps,
    trace=pathlib.Path(args.trace) if args.trace else None,
    json=pathlib.Path(args.json) if args.json else None,
    document=DOCUMENT if args.write else None,
    command=shlex.join(["python", "-m", "launch.benchmark", *sys.argv[1:]]),
  )
  if args.dry_run:
    comparison.rehearse(spec)
    return
  comparison.measure(spec)


def measure_reading(args: argparse.Namespace) -> None:
  # Grain and Pillow load in seconds that --help should not take.
  from launch.performance import reading

  spec = reading.ReadingSpec(
    data=args.data,
    size=args.size,
    image_size=args.image_size,
    samples=args.samples or 256,
    repeat=args.repeat,
  )
  reading.measure(spec)


def measure_mesh(args: argparse.Namespace) -> None:
  # Likewise the renderer.
  from data_pipelines.synth import timing

  spec = timing.TimingSpec(
    mesh=args.mesh,
    triangles=args.triangles,
    image_size=args.image_size,
    samples=args.samples or 2,
    views=args.views,
  )
  timing.measure(spec)


def measure_rendering(args: argparse.Namespace) -> None:
  if args.json:
    check_file(args.json, "--json")
  # The wall: what is imported here needs JAX.
  from launch.performance import rendering

  spec = rendering.RenderingSpec(
    splats=args.splats,
    side=args.side,
    tile=args.tile,
    block=args.block,
    lanes=args.lanes,
    slots=args.slots,
    repeat=args.repeat,
    json=pathlib.Path(args.json) if args.json else None,
  )
  if args.dry_run:
    print(f"would measure pictures of {spec.splats} splats, {spec.side} x {spec.side} pixels")
    return
  rendering.measure(spec)


def measure_extraction(args: argparse.Namespace) -> None:
  if args.json:
    check_file(args.json, "--json")
  # The wall: what is imported here needs JAX.
  from launch.performance import extraction

  spec = extraction.ExtractionSpec(
    voxels=args.voxels,
    repeat=args.repeat,
    json=pathlib.Path(args.json) if args.json else None,
  )
  if args.dry_run:
    print(f"would measure meshes of an object of {spec.voxels} voxels")
    return
  extraction.measure(spec)


def measure_sparse(args: argparse.Namespace) -> None:
  if args.json:
    check_file(args.json, "--json")
  try:
    voxels = tuple(int(count) for count in args.counts.split(","))
  except ValueError:
    raise ConfigError(f"--counts {args.counts}: whole numbers, separated by commas") from None
  # The wall: what is imported here needs JAX.
  from launch.performance import sparse_ops

  spec = sparse_ops.SparseSpec(
    voxels=voxels,
    torch=args.torch,
    repeat=args.repeat,
    json=pathlib.Path(args.json) if args.json else None,
  )
  if args.dry_run:
    print(f"would measure operations over {args.counts} voxels, {spec.repeat} times each")
    return
  sparse_ops.measure(spec)


if __name__ == "__main__":
  raise SystemExit(main())
