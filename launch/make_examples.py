"""Writes synthetic inputs to look at, or to copy a layout from.

    python -m launch.make_examples objects --out MESHES --count 40  # procedural objects, GLB files
    python -m launch.make_examples rooms --out PHOTOS --count 8  # rooms, a folder of photos
    python -m launch.make_examples items --out ITEMS --count 12  # annotated photos
    python -m launch.make_examples benchmark --name procedural_2  # searches a new benchmark

Nothing is downloaded, and what is written is a pure function of kind, seed and number. Folders can
be built as they are (`launch.build_data`). A benchmark is frozen beside those that ship with the
project (`launch.evaluate --benchmark`); its name has to be new.
"""

import argparse
from collections.abc import Callable
import dataclasses
import pathlib

from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.folders import check_folder
from sam3d_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ExamplesSpec:
  """How many examples of a kind to write, and where."""

  out: pathlib.Path
  count: int
  seed: int
  image_size: int  # pixels along the longer side, of kinds that have pictures


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of example, what it is without flags, and what writes it."""

  help: str
  count: int
  image_size: int
  write: Callable[[ExamplesSpec], None]


# The writers load the renderer, which --help does without.


def write_objects(spec: ExamplesSpec) -> None:
  """Procedural objects as y-up GLB files."""
  from data_pipelines.synth import procedural

  procedural.write_glbs(spec.out, seed=spec.seed, count=spec.count)


def write_rooms(spec: ExamplesSpec) -> None:
  """Procedural rooms in the layout of a photo folder."""
  from data_pipelines.synth import procedural_scenes

  for index in range(spec.count):
    room = procedural_scenes.make_room(spec.seed, index, spec.image_size)
    procedural_scenes.write_room(spec.out / f"room-{index}", room)


def write_items(spec: ExamplesSpec) -> None:
  """Annotated photos with candidates and choices; their annotation.json shows every key."""
  from data_pipelines.annotations import synthetic

  config = synthetic.SyntheticConfig(
    seed=spec.seed,
    count=spec.count,
    image_size=spec.image_size,
  )
  for index in range(spec.count):
    folder = spec.out / f"{index:05d}"
    synthetic.write_item(folder, index, config)


KINDS = {
  "objects": Kind(
    help="procedural objects as GLB files",
    count=19,
    image_size=0,
    write=write_objects,
  ),
  "rooms": Kind(
    help="rooms in the layout of a photo folder",
    count=8,
    image_size=518,
    write=write_rooms,
  ),
  "items": Kind(
    help="annotated photos, a folder an item",
    count=12,
    image_size=160,
    write=write_items,
  ),
}
BENCHMARK_SEED = 20_251_120
BENCHMARK_OBJECTS = 57  # three of each family
BENCHMARK_SIZE = 384


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

  # what is written to a folder
  for name, kind in KINDS.items():
    sub = kinds.add_parser(name, help=kind.help, allow_abbrev=False)
    sub.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    sub.add_argument("--count", type=int, default=kind.count, help="how many (%(default)s)")
    sub.add_argument("--seed", type=int, default=0)
    dry_run_flag(sub, "say what would be written")
    if kind.image_size:
      sub.add_argument(
        "--image_size",
        type=int,
        default=kind.image_size,
        help="pixels wide (%(default)s)",
      )

  # what is frozen beside the benchmarks that ship with the project
  benchmark = kinds.add_parser("benchmark", help="a new frozen benchmark", allow_abbrev=False)
  benchmark.add_argument("--name", required=True, help="of the new benchmark")
  benchmark.add_argument("--count", type=int, default=BENCHMARK_OBJECTS, help="objects")
  benchmark.add_argument("--seed", type=int, default=BENCHMARK_SEED)
  benchmark.add_argument("--image_size", type=int, default=BENCHMARK_SIZE, help="pixels a side")
  dry_run_flag(benchmark, "say what would be searched")


def run(args: argparse.Namespace) -> None:
  """Writes what was asked for."""
  # kinds without pictures have no image_size
  for name in ("count", "image_size"):
    value = getattr(args, name, 1)
    if value < 1:
      raise InputError(f"--{name} {value}: it must be positive")
  if args.kind == "benchmark":
    freeze_benchmark(args)
    return

  check_folder(args.out, "--out")
  kind = KINDS[args.kind]
  spec = ExamplesSpec(
    out=args.out,
    count=args.count,
    seed=args.seed,
    image_size=getattr(args, "image_size", 0),
  )
  if args.dry_run:
    print(f"would write {spec.count} {args.kind} to {spec.out}")
    return
  kind.write(spec)
  print(f"wrote {spec.count} {args.kind} to {spec.out}")


def freeze_benchmark(args: argparse.Namespace) -> None:
  """Searches the occluders of a new benchmark; a name that exists is refused."""
  name = args.name
  from data_pipelines.synth import benchmark

  if name in benchmark.names():
    raise InputError(f"--name {name}: this benchmark exists; frozen ones are not made anew")
  if args.dry_run:
    print(f"would search a benchmark {name} of {args.count} objects")
    return
  benchmark.freeze(name, seed=args.seed, objects=args.count, image_size=args.image_size)


if __name__ == "__main__":
  raise SystemExit(main())
