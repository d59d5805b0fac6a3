"""The published names of the Texture & Refinement model, at full size and without taking memory."""

import dataclasses
import functools
import json

from flax import nnx
import pytest

from launch.console import cli
from sam3d_jax.models import parameters, registry
from sam3d_jax.models.conditioning import ConditionEncoder
from sam3d_jax.models.dinov2 import Dino
from sam3d_jax.models.texture_flow import TextureFlow, TextureFlowConfig
from sam3d_jax.torch_bridge import keys, names_conditioning, names_texture

CONFIG = registry.typed_config(cli.load_config("configs/pretrain_texture.py").model)


def flow_rules(cfg: TextureFlowConfig) -> list[keys.Rule]:
  rules = names_texture.texture_flow_rules(
    cfg.width,
    (cfg.io_width,),
    cfg.io_blocks,
    qk_rms_norm=cfg.qk_rms_norm,
    shortcut=cfg.shortcut,
  )
  return names_texture.texture_generator_rules(rules)


PARTS = {
  "slat_generator": (TextureFlow, CONFIG.flow, flow_rules),
  "slat_condition_embedder": (
    ConditionEncoder,
    CONFIG.condition,
    names_conditioning.condition_encoder_rules,
  ),
  "slat_condition_embedder__bare_dino": (
    Dino,
    CONFIG.condition.dino,
    functools.partial(names_conditioning.dinov2_rules, prefix="backbone."),
  ),
}


@functools.cache
def published(shared_dir):
  return json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())


def shapes_of(model, config):
  """Path -> shape of our parameters, without making them."""
  return parameters.flat_shapes(nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize("part", PARTS)
def test_the_full_size_configuration_has_exactly_the_published_names_and_shapes(shared_dir, part):
  model, config, rules = PARTS[part]
  shapes = shapes_of(model, config)
  entries = published(shared_dir)[part]["entries"]
  expected = {entry["module_name"]: tuple(entry["shape"]) for entry in entries}
  keys.check(rules(config), expected, shapes)
  assert keys.torch_names(rules(config), shapes) == expected

  # what they are stored in, where it is known
  if "dtype_if_use_fp16" in entries[0]:
    half = {entry.name for entry in keys.expand(rules(config), shapes) if entry.rule.half}
    stored = {e["module_name"] for e in entries if e["dtype_if_use_fp16"] == "float16"}
    assert half == stored


def test_a_shortcut_model_has_the_published_extra_names(shared_dir):
  plain = CONFIG.flow
  shortcut = dataclasses.replace(plain, shortcut=True)
  names = [
    set(keys.torch_names(flow_rules(cfg), shapes_of(TextureFlow, cfg))) for cfg in (plain, shortcut)
  ]
  extra = published(shared_dir)["slat_generator__shortcut_extra"]["entries"]
  assert names[1] - names[0] == {entry["module_name"] for entry in extra}


def test_an_object_is_told_5496_tokens():
  assert CONFIG.condition.tokens == 4 * 1374
  assert CONFIG.condition.hidden == 2816
