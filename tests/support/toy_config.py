"""Training of the toy model on random points, or on the voxels of a dataset."""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
  c = base.training("pretrain")
  c.model = ConfigDict()
  c.model.name = "toy"
  c.model.width = 8
  c.objective = ConfigDict()
  c.objective.name = "toy_regression"
  c.objective.noise = 0.1
  c.data.kind = "fake"
  c.steps = 4
  c.batch_size = 4
  c.checkpoint.every = 2
  c.eval.every = 2
  c.eval.batches = 1
  c.log.every = 1
  return base.finish(c, variant)
