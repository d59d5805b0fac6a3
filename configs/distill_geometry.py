r"""Geometry model, shortcut distillation: 25 guided steps become 4, or 1.

    python -m launch.distill --config configs/distill_geometry.py --workdir DIR \
        --config.init_from=ALIGNED --config.data.mixture.mitl_3do.path=DATA \
        --config.eval.decoder=VAE

The published run (arXiv 2511.16624): about 4 000 iterations from the trained checkpoint on the data
of fine-tuning, three quarters of each batch flow matching at d = 0, one quarter self-consistency
with targets guided at weight 2 in this stage. Learning rate and batch are those of fine-tuning.
Compiled for v5p:4x4x4 (64 chips, so that a quarter of a chip's batch is a whole number): 57.3 of
95.7 GiB a chip.
Cost at 42.5 TFLOP a sample (3.75 forward passes on average and the encoders): 200 v5p or 92 H200
chip-hours at 40 % MFU.
Result: `<workdir>/steps_quality.{csv,png}`, quality at each of eval.steps_curve.
"""

from ml_collections import ConfigDict

from configs import base, sft_geometry


def get_config(variant: str = "") -> ConfigDict:
  c = base.geometry_stage("distill")
  c.batch_size = 768  # 12 on each of 64 accelerators, 3 of which learn self-consistency
  c.steps = 4_000
  c.optim.lr = 1e-5
  c.optim.ema = (0.999,)
  c.objective = ConfigDict()
  c.objective.name = "shortcut"
  # latent -> weight in the loss
  c.objective.weights = ConfigDict()
  c.objective.weights.shape = 1.0
  c.objective.weights.rotation = 0.1
  c.objective.weights.translation = 1.0
  c.objective.weights.scale = 0.1
  c.objective.time_mean = -1.0  # t = sigmoid(normal(time_mean, time_std))
  c.objective.time_std = 1.0  # as time_mean
  c.objective.consistency_fraction = 0.25  # share of each batch that learns self-consistency
  c.objective.step_sizes = tuple(2.0**-i for i in range(8))  # half the steps that are learned
  c.objective.guidance = 2.0  # weight of guidance in its targets
  c.objective.guided_levels = "flow"  # of targets that step along d = 0 alone, or "all"
  c.objective.drop_condition = 0.1  # share of flow-matching samples trained without condition
  c.objective.drop_pointmap = 0.1  # share of samples trained without point maps
  c.eval.steps_curve = (1, 2, 4, 8, 25)  # quality at these numbers of steps, at the end
  c.data.mixture.mitl_3do = base.dataset("")
  c.data.mixture.art_3do = base.dataset("", weight=0.0)  # 0: left out
  c.data.thresholds = (3.0, 3.5, 4.0)  # as in fine-tuning
  return base.finish(c, variant, tiny=tiny, fake=fake)


def tiny(c: ConfigDict) -> None:
  sft_geometry.tiny(c)
  c.steps = 400
  c.optim.lr = 5e-4
  c.optim.ema = (0.99,)
  # few levels: each is seen often enough in minutes
  c.objective.step_sizes = (0.0625, 0.125, 0.25, 0.5)
  c.objective.consistency_fraction = 0.5
  c.checkpoint.every = 200
  c.eval.every = 200


def fake(c: ConfigDict) -> None:
  sft_geometry.fake(c)
