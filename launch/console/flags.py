"""Flags that several commands share: one name, one meaning, one default, one text of help."""

import argparse

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
  parser.add_argument("--slots", type=int, help="room for (tile, splat) pairs (default: 8 a splat)")
