r"""Pre-trains or mid-trains a flow model; the configuration says which.

    python -m launch.pretrain --config configs/pretrain_geometry.py --workdir DIR \
        --config.data.mixture.iso_3do.path=DATA
"""

from launch.trainer import command


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return command.main(("pretrain", "midtrain"), __doc__, argv)


if __name__ == "__main__":
  raise SystemExit(main())
