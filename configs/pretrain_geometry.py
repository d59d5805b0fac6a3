r"""Geometry model, pre-training on isolated objects.

    python -m launch.pretrain --config configs/pretrain_geometry.py --workdir DIR \
        --config.data.mixture.iso_3do.path=DATA --config.init_from=IMPORTED_DINOV2

The published run (arXiv 2511.16624, table of training stages, first row): Iso-3DO (2.7 M meshes, 24
views each), conditioned on the crop and its mask, 512 A100, 6 samples each, 200 epochs over meshes,
shape weight 1 and rotation weight 0.1. The image encoders are frozen.
Compiled for v5p:8x8x8 (512 chips): 38.0 of 95.7 GiB a chip.
Cost at 20.8 TFLOP a sample: 541 M samples, 17 000 v5p or 7 900 H200 chip-hours at 40 % MFU.

`:tiny` is the quickstart's model, trained from scratch, encoders included; it needs no pre-trained
weights. docs/quickstart.md says what it reaches.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("pretrain")
  c.model = base.geometry_model()
  c.model.flow.remat = "attention"  # six samples a chip fit 40 GB, attention not computed twice
  c.model.condition.streams = ("image", "mask")
  c.batch_size = 3072  # 6 on each of 512 accelerators
  c.steps = 176_000  # 200 epochs over 2.7 M meshes, one view of each an epoch
  c.optim.lr = 1e-4
  c.optim.frozen = r"condition/(image|mask)_encoder/.*"
  c.objective = base.flow_matching(shape=1.0, rotation=0.1)
  c.data.mixture.iso_3do = base.dataset("")
  c.sampler = base.sampler()
  return base.finish(c, variant, tiny=tiny, fake=fake)


def tiny(c: ConfigDict) -> None:
  flow = c.model.flow
  flow.width = 128
  flow.depth = 3
  flow.heads = 4
  flow.cond_width = 96
  flow.shape_resolution = 4
  flow.patch = 2  # eight shape tokens: overheads of a small model grow with their number
  flow.dtype = "float32"
  flow.remat = "none"

  condition = c.model.condition
  condition.width = 96
  condition.hidden_multiplier = 2.0
  condition.dtype = "float32"
  condition.pointmap = None  # no point maps before mid-training on scenes

  # Four large patches: an encoder that starts from nothing does not learn in minutes to put 64
  # small ones together (docs/quickstart.md).
  dino = condition.dino
  dino.width = 96
  dino.depth = 1
  dino.heads = 4
  dino.patch = 16
  dino.image_size = 32
  dino.input_size = 32
  dino.dtype = "float32"
  c.optim.frozen = ""  # the encoder is trained too

  c.data.image_size = 64
  c.data.resolution = 32
  c.data.cache_mb = 500
  c.data.threads = 2
  c.steps = 1100
  c.batch_size = 64
  c.optim.lr = 3e-3
  c.optim.warmup_steps = 100
  c.optim.schedule = "cosine"
  c.optim.ema = (0.995,)
  c.optim.b2 = 0.98  # a short run cannot wait for a long memory
  c.checkpoint.every = 400
  c.eval.every = 400
  c.log.every = 25
  c.sampler.guidance = 2.0
  c.sampler.steps = 12  # 25 score the same


def fake(c: ConfigDict) -> None:
  tiny(c)
  c.data.kind = "fake"

  flow = c.model.flow
  flow.width = 16
  flow.depth = 2
  flow.heads = 2
  flow.cond_width = 16
  flow.shape_resolution = 2
  flow.patch = 1

  c.model.condition.width = 16
  dino = c.model.condition.dino
  dino.width = 16
  dino.depth = 2
  dino.heads = 2
  dino.patch = 8
  dino.image_size = 16
  dino.input_size = 16

  c.data.image_size = 16
  c.data.resolution = 8
  c.steps = 8
  c.batch_size = 8
  c.checkpoint.every = 4
  c.eval.every = 4
  c.eval.batches = 1
  c.log.every = 2
