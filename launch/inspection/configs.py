"""What a configuration's model looks like, here and published, without building it in memory."""

from collections.abc import Iterator
import json

from ml_collections import ConfigDict

from configs import base
from launch.inspection.trees import tree_lines
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import parts


def model(config: ConfigDict) -> Iterator[str]:
  """The configuration's model as a tree of parameters."""
  yield f"model {config.model.name}, stage {config.stage}"
  abstract = registry.abstract_model(config.model)
  leaves = parameters.flat_params(abstract)
  yield from tree_lines(leaves)


def release_keys(config: ConfigDict) -> Iterator[str]:
  """JSON {part: {published name: shape}} of the model and of the structure VAE it comes with."""
  # A release of a flow model has the autoencoder of its latents too.
  sections = [config.model]
  vae = base.structure_vae_model()
  if config.model.name != vae.name:
    if parts.latents_of(config.model) == parts.latents_of(vae):
      sections.append(vae)

  keys = {}
  for section in sections:
    shapes = parameters.flat_shapes(registry.abstract_model(section))
    keys |= parts.release_keys(section, shapes)
  yield json.dumps(keys, indent=1)
