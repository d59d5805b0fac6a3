"""The smallest Geometry model that a release can hold."""

from ml_collections import ConfigDict

from configs import base


def tiny_model() -> ConfigDict:
  """A Geometry model with every kind of part, small."""
  model = base.geometry_model()
  model.flow.update(dict(width=16, depth=2, heads=2, cond_width=16, shape_resolution=2))
  model.condition.update(dict(width=16, hidden_multiplier=2.0))
  model.condition.dino.update(dict(width=16, depth=2, heads=2, patch=4, image_size=8, input_size=8))
  model.condition.pointmap.update(dict(width=16, input_size=8, patch=4))
  return model
