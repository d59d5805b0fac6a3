r"""Geometry model, supervised fine-tuning on annotated photographs (MITL-3DO, Art-3DO).

    python -m launch.sft --config configs/sft_geometry.py --workdir DIR \
        --config.init_from=MIDTRAINED_OS --config.data.mixture.mitl_3do.path=DATA \
        --config.data.iteration=0

Variant `:art` trains on artists' meshes (Art-3DO), which comes after the alignment.
The published run (arXiv 2511.16624, table of training stages): 0.6 M meshes, 100 epochs over them
on 128 H200, 6 samples each, lr 1e-5. Examples rated below data.thresholds[data.iteration] are left
out; the threshold rises with each iteration of the data engine.
Compiled for v5p:4x4x8 (128 chips): 41.6 of 95.7 GiB a chip.
Cost at 33.4 TFLOP a sample: 60 M samples, 3 030 v5p or 1 410 H200 chip-hours at 40 % MFU.

Parts of the model: layout alone, with every shape staying what it was bit for bit,

    LATENTS='latents/(rotation|translation|scale|translation_scale)'
    --config.optim.trainable="flow/($LATENTS|blocks/layer/layout)/.*"

low-rank adapters on the attention of both streams (exported merged: launch.export_torch
--merge_lora),

    --config.lora.targets='flow/blocks/layer/.*_attn/(qkv|q|kv|out)' --config.lora.rank=16 \
        --config.optim.lr=1e-4
"""

from ml_collections import ConfigDict

from configs import base, midtrain_os_geometry


def get_config(variant: str = "") -> ConfigDict:
  c = base.geometry_stage("sft")
  c.batch_size = 768  # 6 on each of 128 accelerators
  c.steps = 78_000  # 100 epochs over 0.6 M meshes
  c.optim.lr = 1e-5
  c.optim.ema = (0.999,)  # as published for fine-tuning the second stage
  c.objective = midtrain_os_geometry.with_layout(base.flow_matching(shape=1.0, rotation=0.1))
  c.data.mixture.mitl_3do = base.dataset("")
  c.data.mixture.art_3do = base.dataset("", weight=0.0)  # 0: left out
  c.data.thresholds = (3.0, 3.5, 4.0)  # of ratings, one an iteration of the data engine
  return base.finish(c, variant, tiny=tiny, art=art, fake=fake)


def art(c: ConfigDict) -> None:
  """Artists' meshes alone; starts from the aligned MITL model.

  Their examples carry no rating, so none is left out.
  """
  c.data.mixture.mitl_3do.weight = 0.0
  c.data.mixture.art_3do.weight = 1.0


def tiny(c: ConfigDict) -> None:
  midtrain_os_geometry.tiny(c)
  c.init_allow = ""  # the model it starts from has every parameter
  c.steps = 300
  c.optim.lr = 5e-4
  c.optim.ema = (0.99,)
  c.checkpoint.every = 150
  c.eval.every = 150


def fake(c: ConfigDict) -> None:
  midtrain_os_geometry.fake(c)
