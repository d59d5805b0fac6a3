r"""Distils a flow model into one that needs few steps, and draws quality over their number.

    python -m launch.distill --config configs/distill_geometry.py --workdir DIR \
        --config.init_from=CHECKPOINT --config.eval.decoder=VAE
"""

from launch.trainer import command


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return command.main(("distill",), __doc__, argv)


if __name__ == "__main__":
  raise SystemExit(main())
