"""Pre-trains or mid-trains a flow model; the configuration says which.

python -m launch.pretrain --config configs/pretrain_geometry.py --workdir DIR --config.data.mixture.iso_3do.path=DATA
"""

from launch.trainer import train

if __name__ == "__main__":
  train.command(("pretrain", "midtrain"), __doc__)
