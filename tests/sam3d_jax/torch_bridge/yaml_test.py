"""Laws of the yamls of a release folder: what they say of a model, and what is read from them."""

import pytest
import yaml

from configs import base
from sam3d_jax.errors import InputError
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import yaml_files, yaml_geometry, yaml_pipeline, yaml_structure
from tests.support.tiny_release import tiny_model

# what is no question of the weights
COMPUTE = {"dtype", "remat", "unroll", "attention", "absorb_layout_kv", "cls_only"}
SECTIONS = {"dino", "pointmap", "streams"}  # compared on their own
# the published point-map encoder's own, and the preprocessor's, which stands in pipeline.yaml
POINTMAP_FIXED = {"heads", "mlp_ratio", "resize_twice"}


def settings(*, half: bool) -> yaml_files.Settings:
  return yaml_files.Settings(base.sampler().to_dict(), half)


@pytest.mark.parametrize("twice", (True, False))
def test_a_pipeline_says_whether_point_maps_are_resized_twice(twice):
  model = base.geometry_model()
  model.condition.pointmap.resize_twice = twice
  cfg = registry.typed_config(model)
  tree = yaml_pipeline.pipeline_yaml(cfg, {}, settings(half=False), base=None)
  assert yaml_pipeline.resizes_twice(tree, model.to_dict()) == twice
  assert yaml_pipeline.resizes_twice(None, model.to_dict())


def crop_alone():
  """The published model, which looks at the crop only."""
  model = base.geometry_model()
  model.condition.streams = ("image", "mask")
  return model


def without_options():
  """The published model with neither point maps nor shortcuts."""
  model = base.geometry_model()
  model.condition.streams = ("image", "rgb_image")
  model.condition.pointmap = None
  model.flow.shortcut = False
  return model


def assert_equal_but(left_out, read, section):
  """What was read says the same as the section, for all its keys but these."""
  for key in section.keys():
    if key not in left_out:
      assert read[key] == section[key], key


@pytest.mark.parametrize(
  "make", [base.geometry_model, tiny_model, crop_alone, without_options], ids=lambda f: f.__name__
)
def test_every_yaml_reads_back_as_the_configuration_it_was_written_from(make):
  model = make()
  cfg = registry.typed_config(model)
  written = yaml_geometry.generator_yaml(cfg, settings(half=False))
  tree = yaml.safe_load(yaml.safe_dump(written))
  back = yaml_geometry.geometry_section(tree, "x.yaml")
  flow, condition = back["flow"], back["condition"]

  # everything that is neither a question of speed nor fixed by the published classes
  assert_equal_but(COMPUTE, flow, model.flow)
  assert_equal_but(COMPUTE | SECTIONS, condition, model.condition)
  assert_equal_but(COMPUTE, condition["dino"], model.condition.dino)
  if model.condition.pointmap is None:
    assert condition["pointmap"] is None
  else:
    assert_equal_but(COMPUTE | POINTMAP_FIXED, condition["pointmap"], model.condition.pointmap)

  assert set(condition["streams"]) == set(model.condition.streams)
  assert yaml_pipeline.sampler_section(tree, None, "x.yaml")["steps"] == 25


def test_the_default_model_is_described_as_published():
  cfg = registry.typed_config(base.geometry_model())
  tree = yaml_geometry.generator_yaml(cfg, settings(half=True))["module"]

  # the generator
  generator = tree["generator"]["backbone"]
  assert generator["_target_"] == "sam3d_objects.model.backbone.generator.shortcut.model.ShortCut"
  backbone = generator["reverse_fn"]["backbone"]
  assert backbone["use_fp16"]
  assert backbone["num_blocks"] == 24
  assert backbone["is_shortcut_model"]
  assert list(backbone["latent_mapping"]) == [
    "6drotation_normalized",
    "scale",
    "shape",
    "translation",
    "translation_scale",
  ]
  assert backbone["latent_share_transformer"] == {
    "6drotation_normalized": ["6drotation_normalized", "translation", "scale", "translation_scale"]
  }

  # the condition encoder
  embedders = []
  for network, streams in tree["condition_embedder"]["backbone"]["embedder_list"]:
    embedders.append((network.get("dino_model"), streams))
  assert embedders == [
    ("dinov2_vitl14_reg", [["image", "cropped"], ["rgb_image", "full"]]),
    ("dinov2_vitl14_reg", [["mask", "cropped"], ["rgb_image_mask", "full"]]),
    (None, [["pointmap", "cropped"], ["rgb_pointmap", "full"]]),
  ]

  assert yaml_pipeline.obstacles(cfg) == []
  vae = registry.typed_config(base.structure_vae_model())
  assert yaml_structure.decoder_yaml(vae, settings(half=False))["channels"] == [512, 128, 32]


@pytest.mark.parametrize(
  "path, value, words",
  [
    ("reverse_fn.backbone.pe_mode", "rope", "pe_mode = 'rope'"),
    ("reversed_timestamp", True, "reversed_timestamp = True"),
    ("reverse_fn.backbone.latent_mapping", {"shape": {}}, "latent_mapping has shape"),
    ("reverse_fn.backbone.model_channels", None, "has no module.generator|model_channels"),
  ],
)
def test_a_yaml_that_asks_for_more_than_is_implemented_is_refused(path, value, words):
  cfg = registry.typed_config(base.geometry_model())
  tree = yaml_geometry.generator_yaml(cfg, settings(half=False))
  parent, _, key = f"module.generator.backbone.{path}".rpartition(".")
  node = yaml_files.at(tree, parent, "x.yaml")
  if value is None:
    del node[key]
  else:
    node[key] = value
  with pytest.raises(InputError, match=words):
    yaml_geometry.geometry_section(tree, "x.yaml")
