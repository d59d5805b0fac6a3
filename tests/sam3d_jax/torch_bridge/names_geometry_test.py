"""The published names of the Geometry flow model and the structure VAE, at full size and without
taking memory.
"""

import json

from flax import nnx
import numpy as np
import pytest

from sam3d_jax.models import parameters
from sam3d_jax.models.geometry_flow import GeometryFlow, GeometryFlowConfig
from sam3d_jax.models.structure_vae import StructureDecoder, StructureEncoder, StructureVAEConfig
from sam3d_jax.torch_bridge import keys
from sam3d_jax.torch_bridge.names_geometry import (
  geometry_flow_rules,
  structure_decoder_rules,
  structure_encoder_rules,
)
from tests.support.tiny_release import normal_arrays

PARTS = {
  "ss_generator": (GeometryFlow, GeometryFlowConfig(), geometry_flow_rules),
  "ss_encoder": (StructureEncoder, StructureVAEConfig(), structure_encoder_rules),
  "ss_decoder": (StructureDecoder, StructureVAEConfig(), structure_decoder_rules),
}

TINY_FLOW = dict(width=12, heads=2, cond_width=10, shape_resolution=2)
TINY_VAE = dict(resolution=8, channels=(2, 3), res_blocks=1)


def published_entries(shared_dir, part):
  """What the published code says of each entry of a part."""
  file = shared_dir / "golden" / "state_dict_full_keys.json"
  golden = json.loads(file.read_text())
  return golden[part]["entries"]


def shapes_of(model, config):
  """Path -> shape of our parameters, without making them."""
  module = nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))
  return parameters.flat_shapes(module)


@pytest.mark.parametrize("part", PARTS)
def test_default_configuration_has_exactly_the_published_names_and_shapes(shared_dir, part):
  model, config, rules = PARTS[part]
  shapes = shapes_of(model, config)
  expected = {}
  for entry in published_entries(shared_dir, part):
    expected[entry["module_name"]] = tuple(entry["shape"])

  # both ways: nothing is left over on either side
  keys.check(rules(config), expected, shapes)
  assert keys.torch_names(rules(config), shapes) == expected


@pytest.mark.parametrize("part", PARTS)
def test_half_precision_storage_follows_the_published_column(shared_dir, part):
  model, config, rules = PARTS[part]
  # what we store in half
  half = set()
  for entry in keys.expand(rules(config), shapes_of(model, config)):
    if entry.rule.half:
      half.add(entry.name)

  # what the published modules hold in it
  expected = set()
  for entry in published_entries(shared_dir, part):
    if entry["dtype_if_use_fp16"] == "float16":
      expected.add(entry["module_name"])
  assert half == expected


def test_only_the_shape_position_table_is_a_buffer(shared_dir):
  _, config, rules = PARTS["ss_generator"]
  buffers = {rule.torch for rule in rules(config) if rule.ours is None}
  expected = set()
  for entry in published_entries(shared_dir, "ss_generator"):
    if entry["kind"] == "buffer":
      expected.add(entry["module_name"])
  assert buffers == expected


@pytest.mark.parametrize(
  "model, config, rules",
  [
    (
      GeometryFlow,
      GeometryFlowConfig(**TINY_FLOW, depth=2),
      geometry_flow_rules,
    ),
    (
      GeometryFlow,
      GeometryFlowConfig(**TINY_FLOW, depth=1, shortcut=False, qk_rms_norm=False),
      geometry_flow_rules,
    ),
    (
      StructureEncoder,
      StructureVAEConfig(**TINY_VAE),
      structure_encoder_rules,
    ),
    (
      StructureDecoder,
      StructureVAEConfig(**TINY_VAE),
      structure_decoder_rules,
    ),
  ],
  ids=["flow", "flow_without_options", "encoder", "decoder"],
)
def test_there_and_back_again_is_the_identity(model, config, rules):
  shapes = shapes_of(model, config)
  params = normal_arrays(shapes, seed=0)

  # there
  state = keys.to_torch(rules(config), params)
  for name, array in state.items():
    assert array.dtype == np.float32, name

  # and back
  back = keys.to_ours(rules(config), state, shapes)
  assert set(back) == set(params)
  for path, array in params.items():
    np.testing.assert_array_equal(back[path], array, err_msg=path)
