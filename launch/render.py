r"""Draws splats and meshes: a picture, a turntable, depth.

    python -m launch.render --input object.ply --out object.png
    python -m launch.render --input scene.glb --out scene.webp --frames 48
    python -m launch.render --input object.ply --camera camera.json --out view.png --depth view.npy

`--input` is a .ply file of Gaussian splats, a mesh (.glb, .gltf, .obj, .ply, .stl, .off), or a
folder of launch.sample, of which scene.ply or scene.glb is drawn. Splats are composited as the
decoders were trained (`--kernel mip`) or as viewers show them (`classic`); meshes are ray cast with
their textures, under two lights or with `--unlit` in their own colours. Without `--camera` the
camera goes around the middle, at `--azimuth` and `--elevation`, far enough to see all of it.

A camera file is {"width", "height", "fx", "fy", "cx", "cy", "world_to_camera": 4 x 4}; the matrix
leads from the coordinates of the input file to OpenCV's camera (x right, y down, z forward), and
the centre of the top left pixel is (0.5, 0.5). `--depth` writes camera z at the pixels' centres,
float32, NaN where nothing is (docs/rendering.md).
"""

import argparse
import pathlib

from launch.console import cli
from launch.console.flags import dry_run_flag
from launch.console.folders import check_file
from sam3d_jax.errors import ConfigError, InputError

KERNELS = ("mip", "classic")
UPS = ("y", "z", "-y")
PICTURES = (".png", ".webp", ".jpg")
ANIMATIONS = (".webp", ".gif", ".mp4")
SCENES = ("scene.ply", "scene.glb")  # of a folder of launch.sample
MOST_SIDE = 16384  # pixels


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--input", required=True, metavar="FILE", help="splats, mesh or folder")
  parser.add_argument(
    "--out", required=True, metavar="FILE", help=".png, .webp or .jpg; turntable: .webp, .gif, .mp4"
  )
  parser.add_argument("--depth", metavar="FILE.npy", help="write the depth of the picture too")
  dry_run_flag(parser, "read the input, print the plan")

  # from where
  parser.add_argument("--camera", metavar="FILE.json", help="camera file; else around the middle")
  parser.add_argument("--width", type=int, help="pixels (512, or as the camera file says)")
  parser.add_argument("--height", type=int, help="pixels, likewise")
  parser.add_argument("--azimuth", type=float, default=30.0, help="degrees around the up axis (30)")
  parser.add_argument("--elevation", type=float, default=20.0, help="degrees above level (20)")
  parser.add_argument("--fov", type=float, default=40.0, help="degrees, of the shorter side (40)")
  parser.add_argument(
    "--up", choices=UPS, help="axis that points up (splats: z; meshes: as their format says)"
  )
  parser.add_argument("--frames", type=int, default=1, metavar="N", help="of a turntable")
  parser.add_argument("--fps", type=float, default=24.0, help="frames a second (24)")

  # how it looks
  parser.add_argument(
    "--background", default="0,0,0", metavar="R,G,B", help="0..1, or 0..255 if any is above 1"
  )
  parser.add_argument("--kernel", choices=KERNELS, default="mip", help="of splats (mip)")
  parser.add_argument(
    "--near", type=float, default=0.2, help="camera z up to which splats are not drawn (0.2)"
  )
  parser.add_argument("--unlit", action="store_true", help="meshes in their colours, without light")


def run(args: argparse.Namespace) -> None:
  # What is wrong by itself is said before anything is read.
  source = input_file(args.input)
  check_numbers(args)
  check_outputs(args)
  background = colour(args.background)
  # The wall: what is imported here needs JAX.
  from launch.pictures import run as pictures
  from launch.pictures.subjects import Look

  look = Look(
    background_3=background,
    kernel=args.kernel,
    near=args.near,
    lit=not args.unlit,
  )
  spec = pictures.RenderSpec(
    input=source,
    out=pathlib.Path(args.out),
    look=look,
    camera=pathlib.Path(args.camera) if args.camera else None,
    width=args.width,
    height=args.height,
    depth=pathlib.Path(args.depth) if args.depth else None,
    frames=args.frames,
    fps=args.fps,
    azimuth=args.azimuth,
    elevation=args.elevation,
    fov=args.fov,
    up=args.up,
    dry_run=args.dry_run,
  )
  pictures.run(spec)


def input_file(given: str) -> pathlib.Path:
  """The file to draw. Raises InputError."""
  path = pathlib.Path(given)
  if path.is_dir():
    scenes = [path / name for name in SCENES if (path / name).is_file()]
    if not scenes:
      raise InputError(
        f"--input {given}: a folder without {' or '.join(SCENES)}; give a file, or a folder that "
        "launch.sample wrote for one photo"
      )
    return scenes[0]
  if not path.is_file():
    raise InputError(f"--input {given}: no such file or folder")
  return path


def check_numbers(args: argparse.Namespace) -> None:
  """Raises ConfigError for a number that means nothing."""
  for name in ("width", "height"):
    value = getattr(args, name)
    if value is not None and not 1 <= value <= MOST_SIDE:
      raise ConfigError(f"--{name} {value}: give 1 to {MOST_SIDE} pixels")
  if args.frames < 1:
    raise ConfigError(f"--frames {args.frames} is not a positive number")
  if not 0 < args.fov < 170:
    raise ConfigError(f"--fov {args.fov:g}: give degrees between 0 and 170")
  if not 0 < args.fps <= 1000:
    raise ConfigError(f"--fps {args.fps:g}: give a number above 0")
  if not args.near >= 0:
    raise ConfigError(f"--near {args.near:g} is negative")
  if abs(args.elevation) > 90:
    raise ConfigError(f"--elevation {args.elevation:g}: give degrees between -90 and 90")
  if args.camera and args.frames > 1:
    raise ConfigError("--frames goes around the middle: give it without --camera")


def check_outputs(args: argparse.Namespace) -> None:
  """Raises ConfigError or InputError for files that cannot be written."""
  suffix = pathlib.Path(args.out).suffix.lower()
  known = PICTURES if args.frames == 1 else ANIMATIONS
  if suffix not in known:
    what = "a picture" if args.frames == 1 else "a turntable"
    raise ConfigError(f"--out {args.out}: {what} is written as {', '.join(known)}")
  check_file(args.out, "--out")
  if args.depth:
    if args.frames > 1:
      raise ConfigError("--depth is that of one picture: give it without --frames")
    if pathlib.Path(args.depth).suffix != ".npy":
      raise ConfigError(f"--depth {args.depth}: depth is written as .npy")
    check_file(args.depth, "--depth")


def colour(given: str) -> tuple[float, float, float]:
  """ "r,g,b" as numbers in 0..1. Raises ConfigError."""
  try:
    values = [float(word) for word in given.split(",")]
  except ValueError:
    values = []
  largest = max(values, default=-1)
  if len(values) != 3 or min(values) < 0 or not largest <= 255:
    raise ConfigError(f"--background {given}: give r,g,b in 0..1 or in 0..255, as 1,1,1")
  scale = 255 if largest > 1 else 1
  red, green, blue = (value / scale for value in values)
  return red, green, blue


if __name__ == "__main__":
  raise SystemExit(main())
