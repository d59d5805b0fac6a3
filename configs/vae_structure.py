r"""Sparse-structure VAE: 64^3 surface occupancy <-> 16^3 x 8 latents.

    python -m launch.train_vae --config configs/vae_structure.py --workdir DIR \
        --config.data.mixture.iso_3do.path=DATA

Compiled for v5p:4x4x4 (64 chips, 4 samples each): 9.2 of 95.7 GiB a chip.
Cost: 4.4 TFLOP a sample.

`:tiny` (32^3 on patches of 2^3 voxels <-> 4^3 x 8, two CPU cores, 700 steps) is the quickstart's
model; with 1 000 steps it reached a held-out IoU of 0.60 on its procedural objects.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("train_vae")
  c.model = base.structure_vae_model()
  c.objective = ConfigDict()
  c.objective.name = "structure_autoencoder"
  c.objective.reconstruction = "dice"  # or bce
  c.objective.kl_weight = 1e-3  # of the KL term
  c.data.mixture.iso_3do = base.dataset("")
  return base.finish(c, variant, tiny=tiny, fake=fake)


def tiny(c: ConfigDict) -> None:
  c.model.resolution = 32
  c.model.patch = 2  # convolutions at full resolution are what a CPU is slowest at
  c.model.channels = (16, 32, 64)
  c.model.res_blocks = 0
  c.model.middle_blocks = 1
  c.data.resolution = 32
  c.data.cache_mb = 500
  c.data.threads = 2
  # a narrow bottleneck: fewer details, latents that a small flow model can predict
  c.objective.kl_weight = 3e-2
  c.steps = 700
  c.batch_size = 4
  c.optim.lr = 3e-3
  c.optim.warmup_steps = 20
  c.optim.schedule = "cosine"
  c.optim.ema = (0.98,)  # the average has to follow a short run
  c.checkpoint.every = 400
  c.eval.every = 400
  c.log.every = 50


def fake(c: ConfigDict) -> None:
  tiny(c)
  c.data.kind = "fake"
  c.model.resolution = 16
  c.model.patch = 1
  c.model.channels = (4, 8)
  c.data.resolution = 16
  c.steps = 8
  c.batch_size = 8
  c.checkpoint.every = 4
  c.eval.every = 4
  c.eval.batches = 1
  c.log.every = 2
