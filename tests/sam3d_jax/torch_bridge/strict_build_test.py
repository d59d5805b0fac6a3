"""Yamls that we write build the published classes, and files that we write load into them strictly.

The published code is not at hand: the classes are those of `tests/support/published_classes.py`,
which are held against the published names and shapes first.
"""

import json

import pytest
import torch
import yaml

from configs import base
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import parts, yaml_files
from tests.support import published_classes

FULL = {
  "ss_generator": (base.geometry_model, "ss_generator", "module.generator.backbone"),
  "ss_condition_embedder": (
    base.geometry_model,
    "ss_generator",
    "module.condition_embedder.backbone",
  ),
  "ss_decoder": (base.structure_vae_model, "ss_decoder", ""),
  "ss_encoder": (base.structure_vae_model, "ss_encoder", ""),
  "slat_generator": (base.texture_model, "slat_generator", "module.generator.backbone"),
  "slat_condition_embedder": (
    base.texture_model,
    "slat_generator",
    "module.condition_embedder.backbone",
  ),
  "slat_encoder": (base.slat_vae_model, "slat_encoder", ""),
  "slat_decoder_gs": (base.slat_vae_model, "slat_decoder_gs", ""),
  "slat_decoder_gs_4": (base.slat_gaussian_model, "slat_decoder_gs_4", ""),
  "slat_decoder_mesh": (base.slat_mesh_model, "slat_decoder_mesh", ""),
}


def at(tree, path: str):
  """The part of a yaml that describes one module."""
  return yaml_files.at(tree, path, "yaml") if path else tree


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("part", FULL)
def test_the_full_size_yaml_builds_what_was_published(shared_dir, part, half):
  make, file, path = FULL[part]
  model = make()
  write = parts.published(model).yamls[file]
  settings = yaml_files.Settings(base.sampler().to_dict(), half)
  tree = yaml.safe_load(yaml.safe_dump(write(registry.typed_config(model), settings)))
  with torch.device("meta"):
    module = published_classes.build(at(tree, path))

  golden = json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())
  dtype = "dtype_if_use_fp16" if half else "dtype"
  expected = {}
  for entry in golden[part]["entries"]:
    stored = entry.get(dtype, entry["dtype"])
    expected[entry["module_name"]] = (tuple(entry["shape"]), f"torch.{stored}")
  built = {}
  for name, tensor in module.state_dict().items():
    built[name] = (tuple(tensor.shape), str(tensor.dtype))
  assert built == expected


def test_an_argument_that_a_class_does_not_take_is_refused():
  tree = {"_target_": "x.ShortCut", "reverse_fn": None, "novel": 1}
  with pytest.raises(TypeError):
    published_classes.build(tree)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_file_loads_strictly_into_what_its_yaml_builds(second_stage, dtype):
  folder = second_stage / dtype
  loaded = set()
  for part, (_, file, path) in FULL.items():
    tree = yaml.safe_load((folder / f"{file}.yaml").read_text())
    module = published_classes.build(at(tree, path))
    state = torch.load(folder / f"{file}.ckpt", weights_only=True)
    prefix = ""
    if "state_dict" in state:
      state = state["state_dict"]
      kind = path.split(".")[1]
      prefix = f"_base_models.{kind}."
    own = {}
    for name, tensor in state.items():
      if name.startswith(prefix):
        own[name.removeprefix(prefix)] = tensor
    module.load_state_dict(own, strict=True)
    for name, tensor in module.state_dict().items():
      assert tensor.dtype == own[name].dtype, name
    loaded.add(part)
  assert loaded == set(FULL)
