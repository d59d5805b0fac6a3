r"""Fine-tunes a flow model on chosen data: all of it, the part that a regular expression names, or
low-rank adapters.

    python -m launch.sft --config configs/sft_geometry.py --workdir DIR --config.init_from=CHECKPOINT \
        --config.data.mixture.mitl_3do.path=DATA
"""

from launch.trainer import train

if __name__ == "__main__":
  train.command(("sft",), __doc__)
