r"""Texture & Refinement model, pre-training on isolated objects.

    python -m launch.pretrain --config configs/pretrain_texture.py --workdir DIR \
        --config.data.mixture.iso_3do.path=DATA --config.init_from=IMPORTED_DINOV2

The published run (arXiv 2511.16624, appendix): the 500 K objects of Iso-3DO that look best, input
views under random light and latents of ambient light, conditioned on crop and photo with their
masks, 256 A100, 4 objects each, 245 epochs over meshes, averages of decay 0.9999. Here objects are
packed: a row of 65 536 voxels holds three of a size distribution with median 18 000 voxels, which
fills 88 % of it; 342 rows are the published 1 024 objects. The image encoders are frozen.
Compiled for v5p:4x4x4 (64 chips, a row each): 24.1 of 95.7 GiB a chip.
Cost at 141 TFLOP a row of six objects: 41 M rows, 8 730 v5p or 4 050 H200 chip-hours at 40 % MFU.

`:tiny` is a model for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("pretrain")
  c.model = base.texture_model()
  c.model.flow.remat = "full"  # a row has 20 480 tokens: what a block makes of them is large
  c.batch_size = 256  # rows, one on each of 256 accelerators
  c.data.packing = base.packing(per_row=3.0)  # 768 objects a step
  c.steps = 160_000  # 245 epochs over 500 K objects
  c.optim.lr = 1e-4
  c.optim.frozen = r"condition/(image|mask)_encoder/.*"
  c.objective = base.flow_matching(slat=1.0)
  c.data.mixture.iso_3do = base.dataset("")
  c.sampler = base.sampler()
  c.sampler.rescale_t = 1.0
  c.sampler.guidance = 1.0
  return base.finish(c, variant, tiny=tiny, fake=fake)


def tiny(c: ConfigDict) -> None:
  row = c.model.row
  row.voxels = 8192
  row.coarse = 3072
  row.objects = 1
  c.data.packing.per_row = 0.0  # one a row

  flow = c.model.flow
  flow.width = 96
  flow.depth = 3
  flow.heads = 4
  flow.cond_width = 96
  flow.io_width = 32
  flow.dtype = "float32"
  flow.remat = "none"

  condition = c.model.condition
  condition.width = 96
  condition.hidden_multiplier = 2.0
  condition.dtype = "float32"

  # as the tiny Geometry model's
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
  c.data.cache_mb = 500
  c.data.threads = 2
  c.steps = 1000
  c.batch_size = 4
  c.optim.lr = 2e-3
  c.optim.warmup_steps = 50
  c.optim.schedule = "cosine"
  c.optim.ema = (0.995,)
  c.optim.b2 = 0.98  # a short run cannot wait for a long memory
  c.checkpoint.every = 250
  c.eval.every = 250
  c.log.every = 25
  c.sampler.steps = 12


def fake(c: ConfigDict) -> None:
  tiny(c)
  c.data.kind = "fake"

  row = c.model.row
  row.voxels = 384
  row.coarse = 256
  row.objects = 2

  flow = c.model.flow
  flow.width = 24
  flow.depth = 2
  flow.heads = 2
  flow.cond_width = 16
  flow.io_width = 8
  flow.io_blocks = 1

  c.model.condition.width = 16
  dino = c.model.condition.dino
  dino.width = 16
  dino.depth = 2
  dino.heads = 2
  dino.patch = 8
  dino.image_size = 16
  dino.input_size = 16

  c.data.image_size = 16
  c.steps = 8
  c.batch_size = 8
  c.checkpoint.every = 4
  c.eval.every = 4
  c.eval.batches = 1
  c.log.every = 2
