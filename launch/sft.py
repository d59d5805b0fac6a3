r"""Fine-tunes a flow model on chosen data: all of it, part of it, or low-rank adapters.

    python -m launch.sft --config configs/sft_geometry.py --workdir DIR \
        --config.init_from=CHECKPOINT --config.data.mixture.mitl_3do.path=DATA
"""

from launch.trainer import command


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return command.main(("sft",), __doc__, argv)


if __name__ == "__main__":
  raise SystemExit(main())
