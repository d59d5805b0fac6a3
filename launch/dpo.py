r"""Aligns a flow model with preferences: a better and a worse shape of each photo.

    python -m launch.dpo --config configs/dpo_geometry.py --workdir DIR \
        --config.init_from=CHECKPOINT --config.data.mixture.preferences.path=DATA
"""

from launch.trainer import command


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return command.main(("dpo",), __doc__, argv)


if __name__ == "__main__":
  raise SystemExit(main())
