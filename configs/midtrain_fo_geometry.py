r"""Geometry model, mid-training on render-and-paste photos with flying occlusions (RP-3DO FO).

    python -m launch.pretrain --config configs/midtrain_fo_geometry.py --workdir DIR \
        --config.init_from=PRETRAINED --config.data.mixture.rp_3do_fo.path=DATA

The published run (arXiv 2511.16624, table of training stages): 2.87 M meshes, 50 epochs over them
on 320 A100 and 50 more on 128, 6 samples each, lr 1e-4, shape weight 1 and rotation weight 0.1;
from here on the model also sees the whole photo.
Compiled for v5p:4x4x20 (320 chips): 38.8 of 95.7 GiB a chip.
Cost at 27.9 TFLOP a sample: 287 M samples, 12 100 v5p or 5 600 H200 chip-hours at 40 % MFU.
"""

from ml_collections import ConfigDict

from configs import base, pretrain_geometry


def get_config(variant: str = "") -> ConfigDict:
  c = base.geometry_stage("midtrain")
  c.model.condition.streams = ("image", "mask", "rgb_image", "rgb_image_mask")
  c.batch_size = 1920  # 6 on each of 320 accelerators
  c.steps = 149_500  # 100 epochs over 2.87 M meshes
  c.optim.lr = 1e-4
  c.objective = base.flow_matching(shape=1.0, rotation=0.1)
  c.data.mixture.rp_3do_fo = base.dataset("")
  c.data.augment = base.augmentations()
  return base.finish(c, variant, tiny=tiny, fake=fake)


def tiny(c: ConfigDict) -> None:
  pretrain_geometry.tiny(c)
  c.data.augment = base.augment()  # none, so that the cache can be used
  c.data.cache_mb = 500
  c.steps = 400
  c.batch_size = 16
  c.optim.lr = 1e-3
  c.optim.warmup_steps = 20
  c.checkpoint.every = 200
  c.eval.every = 200


def fake(c: ConfigDict) -> None:
  pretrain_geometry.fake(c)
  c.data.augment = base.augment()
  c.data.cache_mb = 0
