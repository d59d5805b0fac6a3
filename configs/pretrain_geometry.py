"""Geometry model, pre-training on isolated objects (arXiv 2511.16624, table of training stages,
first row).

    python -m launch.pretrain --config configs/pretrain_geometry.py --workdir DIR --config.data.mixture.iso_3do.path=DATA \
        --config.init_from=IMPORTED_DINOV2

The published run: Iso-3DO (2.7 M meshes, 24 views each), conditioned on the crop and its mask, 512
A100, 6 samples each, 200 epochs over meshes, shape weight 1 and rotation weight 0.1. The image
encoders are frozen. Compiled for v5p:8x8x8 (512 chips): 38.0 of 95.7 GiB a chip. Cost at 20.8 TFLOP
a sample: 541 M samples, 17 000 v5p or 7 900 H200 chip-hours at 40 % MFU. `:tiny` is the
quickstart's model, trained from scratch, encoders included; it needs no pre-trained weights.
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
  flow, condition = c.model.flow, c.model.condition
  flow.width, flow.depth, flow.heads, flow.cond_width = 96, 3, 4, 96
  flow.shape_resolution, flow.dtype, flow.remat = 4, "float32", "none"
  condition.width, condition.hidden_multiplier, condition.dtype, condition.pointmap = (
    96,
    2.0,
    "float32",
    None,
  )
  dino = condition.dino
  # Four large patches: an encoder that starts from nothing does not learn in minutes to put 64
  # small ones together (docs/quickstart.md).
  dino.width, dino.depth, dino.heads, dino.patch, dino.image_size, dino.input_size, dino.dtype = (
    96,
    1,
    4,
    16,
    32,
    32,
    "float32",
  )
  c.optim.frozen = ""
  c.data.image_size, c.data.resolution, c.data.cache_mb, c.data.threads = 64, 32, 500, 2
  c.steps, c.batch_size = 4000, 16
  c.optim.lr, c.optim.warmup_steps, c.optim.schedule, c.optim.ema = 2e-3, 100, "cosine", (0.995,)
  c.optim.b2 = 0.99  # a short run cannot wait for a long memory
  c.checkpoint.every, c.eval.every, c.log.every = 500, 2000, 25
  c.sampler.guidance = 2.0


def fake(c: ConfigDict) -> None:
  tiny(c)
  c.data.kind = "fake"
  flow, dino = c.model.flow, c.model.condition.dino
  flow.width, flow.depth, flow.heads, flow.cond_width, flow.shape_resolution = 16, 2, 2, 16, 2
  (
    c.model.condition.width,
    dino.width,
    dino.depth,
    dino.heads,
    dino.patch,
    dino.image_size,
    dino.input_size,
  ) = 16, 16, 2, 2, 8, 16, 16
  c.data.image_size, c.data.resolution = 16, 8
  c.steps, c.batch_size, c.checkpoint.every, c.eval.every, c.eval.batches, c.log.every = (
    8,
    8,
    4,
    4,
    1,
    2,
  )
