"""Flags that several commands share: one name, one meaning, one default, one text of help."""

import argparse

from sam3d_jax.errors import InputError

Parser = argparse._ActionsContainer  # a parser, or a group of its flags


def weights_flags(parser: Parser) -> None:
  """Which model is sampled from: a checkpoint of ours or a published release."""
  parser.add_argument("--checkpoint", help="work folder of a Geometry model")
  parser.add_argument(
    "--decoder",
    help="work folder of the structure VAE of its data (default: as the checkpoint says)",
  )
  parser.add_argument("--release", help="release folder with both")
  which_flag(parser)


def which_flag(parser: Parser) -> None:
  """Which of the parameters that a checkpoint holds."""
  parser.add_argument(
    "--which",
    default="ema",
    help="parameters of the checkpoint: raw, ema (default; the slowest decay) or ema:<decay>",
  )


def step_flag(parser: Parser) -> None:
  """Which of the checkpoints of a work folder."""
  parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")


def sampler_flags(parser: Parser) -> None:
  """How samples are drawn."""
  parser.add_argument(
    "--steps", type=int, help="of the sampler (default: as recorded with the weights)"
  )
  parser.add_argument(
    "--guidance", type=float, help="strength (default: as recorded with the weights)"
  )
  parser.add_argument(
    "--shortcut",
    action="store_true",
    help="few-step sampling of a distilled model (4 steps unless --steps)",
  )
  parser.add_argument("--batch_size", type=int, default=32, help="objects sampled at once")


def input_flags(parser: Parser, what: str) -> None:
  """What reading one input may take, and how many may be refused. what: they are, in the plural."""
  parser.add_argument(
    "--limit_memory_gb",
    type=float,
    default=4.0,
    help="memory that reading one input may take, or it is refused; 0: any (default: 4)",
  )
  parser.add_argument(
    "--limit_seconds",
    type=float,
    default=300.0,
    help="seconds that reading one input may take; 0: any (default: 300)",
  )
  parser.add_argument(
    "--quarantine_budget",
    type=float,
    default=0.0,
    help=f"share of the {what} that may be refused (OUT/quarantine.jsonl); with more the command "
    "ends with code 2, after the others are done (default: 0)",
  )


def limits_of(args: argparse.Namespace):
  """The limits that these flags state. Raises InputError."""
  from data_pipelines.build.limited import Limits

  if not 0 <= args.quarantine_budget <= 1:
    raise InputError(f"--quarantine_budget {args.quarantine_budget}: give a share from 0 to 1")
  for flag in ("limit_memory_gb", "limit_seconds"):
    if not getattr(args, flag) >= 0:
      raise InputError(f"--{flag} {getattr(args, flag)}: give 0 (no limit) or more")
  return Limits(args.limit_memory_gb, args.limit_seconds)


def dry_run_flag(parser: Parser, does: str) -> None:
  """does: what is done in place of the work, as "print the plan"."""
  parser.add_argument("--dry_run", action="store_true", help=f"{does} and stop")


def json_flag(parser: Parser) -> None:
  """Where the figures of a command go, beside the screen."""
  parser.add_argument("--json", metavar="FILE", help="write the figures here")


def rendering_flags(parser: Parser, *, splats: int | None, side: int) -> None:
  """Pictures of made-up splats whose cost is measured; the arguments are defaults."""
  parser.add_argument("--splats", type=int, default=splats, metavar="N", help="number of them")
  parser.add_argument("--side", type=int, default=side, help="of the picture, pixels")
  parser.add_argument("--tile", type=int, default=16, help="side of a tile, pixels")
  parser.add_argument("--block", type=int, default=32, help="splats that a tile takes at once")
  parser.add_argument("--lanes", type=int, default=16, help="tiles at once")
  parser.add_argument("--slots", type=int, help="room for (tile, splat) pairs (default: 8 a splat)")
