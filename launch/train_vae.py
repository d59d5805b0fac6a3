r"""Trains an autoencoder.

    python -m launch.train_vae --config configs/vae_structure.py --workdir DIR \
        --config.data.mixture.iso_3do.path=DATA
"""

from launch.trainer import command


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return command.main(("train_vae",), __doc__, argv)


if __name__ == "__main__":
  raise SystemExit(main())
