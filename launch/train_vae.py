"""Trains an autoencoder.

python -m launch.train_vae --config configs/vae_structure.py --workdir DIR --config.data.mixture.iso_3do.path=DATA
"""

from launch.trainer import train

if __name__ == "__main__":
  train.command(("train_vae",), __doc__)
