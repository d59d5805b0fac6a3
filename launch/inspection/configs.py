"""What a configuration's model looks like, here and published, without building it in memory."""

from collections.abc import Iterator
import json

from ml_collections import ConfigDict

from configs import base
from launch.inspection.trees import tree_lines
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import parts

# kind of latents -> the published models that make and read them
AUTOENCODERS = {
  parts.STRUCTURE: (base.structure_vae_model,),
  parts.SLAT: (base.slat_vae_model, base.slat_gaussian_model, base.slat_mesh_model),
}


def model(config: ConfigDict) -> Iterator[str]:
  """The configuration's model as a tree of parameters."""
  yield f"model {config.model.name}, stage {config.stage}"
  abstract = registry.abstract_model(config.model)
  leaves = parameters.flat_params(abstract)
  yield from tree_lines(leaves)


def release_keys(config: ConfigDict) -> Iterator[str]:
  """JSON {part: {published name: shape}} of the model and of the autoencoders it comes with."""
  # A release of a flow model has the encoders and decoders of its latents too.
  sections = [config.model]
  for kind, autoencoders in AUTOENCODERS.items():
    latents = parts.latents_of(config.model, kind)
    others = [make() for make in autoencoders]
    is_flow_model = config.model.name not in [other.name for other in others]
    if latents is None or not is_flow_model:
      continue
    sections += [other for other in others if parts.latents_of(other, kind) == latents]

  keys = {}
  for section in sections:
    shapes = registry.parameter_shapes(section)
    keys |= parts.release_keys(section, shapes)
  yield json.dumps(keys, indent=1)
