r"""Geometry model, preference alignment of shapes (Diffusion-DPO).

    python -m launch.dpo --config configs/dpo_geometry.py --workdir DIR \
        --config.init_from=FINETUNED --config.data.mixture.preferences.path=DATA

The reference is the fine-tuned model that the run starts from.
The published run (arXiv 2511.16624, table of training stages): one epoch over 44 K pairs from 31 K
images on 128 A100, lr 2.5e-6, shapes only. Its beta is not published: beta T = 2 000, as in Wallace
et al. 2024 for errors averaged over elements.
Compiled for v5p:4x4x8 (128 chips): 55.5 of 95.7 GiB a chip.
Cost of a pair: 6 trained and 2 reference forward passes of 9.8 TFLOP and the encoders, 79.6 TFLOP;
of the run: 5.3 v5p or 2.4 H200 chip-hours at 40 % MFU.
"""

from ml_collections import ConfigDict

from configs import base, sft_geometry


def get_config(variant: str = "") -> ConfigDict:
  c = base.geometry_stage("dpo")
  c.batch_size = 768  # pairs, 6 on each of 128 accelerators
  c.steps = 57  # one epoch over 44 K pairs
  c.optim.lr = 2.5e-6
  c.optim.warmup_steps = 5
  c.optim.ema = (0.99,)  # as published for aligning the second stage
  c.checkpoint.every = 20
  c.eval.every = 20
  c.log.every = 5
  c.objective = ConfigDict()
  c.objective.name = "dpo"
  c.objective.beta = 2.0  # strength of the pull to the reference
  c.objective.T = 1000.0  # diffusion steps that it stands for; only beta T matters
  c.objective.latents = ("shape",)  # which latents are compared
  # w(t): uniform, noisy (favours global structure), clean (favours detail)
  c.objective.time_weight = "uniform"
  c.data.mixture.preferences = base.dataset("")
  return base.finish(c, variant, tiny=tiny, fake=fake)


def tiny(c: ConfigDict) -> None:
  sft_geometry.tiny(c)
  c.data.cache_mb = 0  # a pair shows another loser each epoch
  c.steps = 100
  c.batch_size = 16
  c.optim.lr = 5e-5
  c.optim.warmup_steps = 10
  c.optim.ema = (0.95,)
  c.checkpoint.every = 50
  c.eval.every = 50
  c.log.every = 10


def fake(c: ConfigDict) -> None:
  sft_geometry.fake(c)
