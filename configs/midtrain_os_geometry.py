r"""Geometry model, mid-training on photos with swapped objects (RP-3DO OS-R) and point maps.

    python -m launch.pretrain --config configs/midtrain_os_geometry.py --workdir DIR \
        --config.init_from=MIDTRAINED_FO --config.data.mixture.rp_3do_osr.path=DATA

In each photo an object was replaced by a random mesh where it stood.
The published run (arXiv 2511.16624, table of training stages): OS-R and ProcTHOR scenes, 2.38 M
meshes, 12 epochs over them on 256 A100, 6 samples each, lr 1e-4, weights shape 1, rotation 0.1,
translation 1, scale 0.1. The point maps come in here, dropped in a tenth of the samples. ProcTHOR
is left out unless its folder and weight are given (data.mixture.procthor.{path,weight}).
Compiled for v5p:4x8x8 (256 chips): 39.8 of 95.7 GiB a chip.
Cost at 33.4 TFLOP a sample: 28.6 M samples, 1 440 v5p or 670 H200 chip-hours at 40 % MFU.
"""

from ml_collections import ConfigDict

from configs import base, midtrain_fo_geometry, pretrain_geometry


def get_config(variant: str = "") -> ConfigDict:
  c = base.geometry_stage("midtrain")
  c.batch_size = 1536  # 6 on each of 256 accelerators
  c.steps = 18_600  # 12 epochs over 2.38 M meshes
  c.optim.lr = 1e-4
  c.objective = with_layout(base.flow_matching(shape=1.0, rotation=0.1))
  c.data.mixture.rp_3do_osr = base.dataset("")
  c.data.mixture.procthor = base.dataset("", weight=0.0)  # 0: left out
  c.data.augment = base.augmentations()
  return base.finish(c, variant, tiny=tiny, fake=fake)


def with_layout(objective: ConfigDict) -> ConfigDict:
  """The objective from here on: the whole pose is learned, with and without point maps."""
  objective.weights.translation = 1.0
  objective.weights.scale = 0.1
  objective.drop_pointmap = 0.1  # so that none is needed
  return objective


def tiny(c: ConfigDict) -> None:
  midtrain_fo_geometry.tiny(c)
  # the tiny pre-training has no point-map encoder
  c.init_allow = r"condition/pointmap_(encoder|projection)/.*"
  small_pointmap(c, size=64, width=64)


def fake(c: ConfigDict) -> None:
  pretrain_geometry.fake(c)
  c.data.augment = base.augment()
  c.data.cache_mb = 0
  c.init_allow = r"condition/pointmap_(encoder|projection)/.*"
  small_pointmap(c, size=16, width=16)


def small_pointmap(c: ConfigDict, *, size: int, width: int) -> None:
  """The point-map encoder of the small variants, which switch it off until point maps are there."""
  c.model.condition.pointmap = base.geometry_model().condition.pointmap
  pointmap = c.model.condition.pointmap
  pointmap.width = width
  pointmap.heads = 4
  pointmap.input_size = size
  pointmap.patch = 8
  pointmap.dtype = "float32"
  c.data.pointmap_size = size
