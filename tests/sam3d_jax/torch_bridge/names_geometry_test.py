"""The published names of the Geometry flow model and the structure VAE, at full size and without
taking memory.
"""

import json

from flax import nnx
import jax
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

PARTS = {
  "ss_generator": (GeometryFlow, GeometryFlowConfig, geometry_flow_rules),
  "ss_encoder": (StructureEncoder, StructureVAEConfig, structure_encoder_rules),
  "ss_decoder": (StructureDecoder, StructureVAEConfig, structure_decoder_rules),
}


def _published(shared_dir, part):
  return json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())[part][
    "entries"
  ]


def _abstract(part):
  model, config, rules = PARTS[part]
  return nnx.eval_shape(lambda: model(config(), rngs=nnx.Rngs(0))), rules(config())


@pytest.mark.parametrize("part", PARTS)
def test_default_configuration_has_exactly_the_published_names_and_shapes(shared_dir, part):
  model, rules = _abstract(part)
  expected = {e["module_name"]: tuple(e["shape"]) for e in _published(shared_dir, part)}
  keys.check(rules, expected, parameters.flat_shapes(model))
  assert keys.torch_names(rules, parameters.flat_shapes(model)) == expected


@pytest.mark.parametrize("part", PARTS)
def test_half_precision_storage_follows_the_published_column(shared_dir, part):
  model, rules = _abstract(part)
  half = {
    name for name, rule, _, _ in keys.expand(rules, parameters.flat_shapes(model)) if rule.half
  }
  assert half == {
    e["module_name"] for e in _published(shared_dir, part) if e["dtype_if_use_fp16"] == "float16"
  }


def test_only_the_shape_position_table_is_a_buffer(shared_dir):
  _, rules = _abstract("ss_generator")
  buffers = {
    e["module_name"] for e in _published(shared_dir, "ss_generator") if e["kind"] == "buffer"
  }
  assert {r.torch for r in rules if r.ours is None} == buffers


@pytest.mark.parametrize(
  "model, config, rules",
  [
    (
      GeometryFlow,
      GeometryFlowConfig(width=12, depth=2, heads=2, cond_width=10, shape_resolution=2),
      geometry_flow_rules,
    ),
    (
      GeometryFlow,
      GeometryFlowConfig(
        width=12,
        depth=1,
        heads=2,
        cond_width=10,
        shape_resolution=2,
        shortcut=False,
        qk_rms_norm=False,
      ),
      geometry_flow_rules,
    ),
    (
      StructureEncoder,
      StructureVAEConfig(resolution=8, channels=(2, 3), res_blocks=1),
      structure_encoder_rules,
    ),
    (
      StructureDecoder,
      StructureVAEConfig(resolution=8, channels=(2, 3), res_blocks=1),
      structure_decoder_rules,
    ),
  ],
  ids=["flow", "flow_without_options", "encoder", "decoder"],
)
def test_there_and_back_again_is_the_identity(model, config, rules):
  shapes = parameters.flat_shapes(nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(0)
  params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
  state = keys.to_torch(rules(config), params)
  back = keys.to_ours(rules(config), state, shapes)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, back))
  assert all(a.dtype == np.float32 for a in state.values())
