"""Releases of others: nothing of them is run, and no file from outside of them is taken."""

import pathlib
import shutil

import pytest
import torch
import yaml

from sam3d_jax.errors import InputError
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import release, release_writer, yaml_files, yaml_pipeline
from tests.support.tiny_release import in_memory, tiny_config


def change(folder: pathlib.Path, **keys) -> None:
  """Sets keys of pipeline.yaml."""
  file = folder / "pipeline.yaml"
  tree = yaml.safe_load(file.read_text()) | keys
  file.write_text(yaml.safe_dump(tree))


def take(folder: pathlib.Path, out: pathlib.Path) -> None:
  release_writer.write_release(out, in_memory("geometry", 1), take_from=folder)


def pipeline(base: dict) -> dict:
  config = tiny_config("geometry")
  typed = registry.typed_config(config.model)
  settings = yaml_files.Settings(config.sampler.to_dict())
  return yaml_pipeline.pipeline_yaml(typed, {}, settings, base)


def test_the_collected_target_never_reaches_our_yaml(hostile_dir):
  base = yaml.safe_load((hostile_dir / "export_keeps_hydra_target" / "pipeline.yaml").read_text())
  written = pipeline(base)
  assert written == pipeline({})


@pytest.mark.parametrize(
  "target",
  [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "sam3d_objects.pipeline.utils.os.system",
    "sam3d_objects.model.io.torch.load",
    "torch.load",
    "torch.hub.load",
    "hydra.utils.call",
    ["os.system"],
    None,
  ],
)
def test_no_target_but_the_pipelines_own_is_taken(published_like, tmp_path, target):
  nested = {"decoders": [{"_target_": target, "command": "id"}]}
  assert target is None or str(target) not in yaml.safe_dump(pipeline({"slat": nested}))
  change(published_like, depth_model={"_target_": target})
  with pytest.raises(InputError, match="depth_model._target_"):
    take(published_like, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_taken_over_yaml_is_looked_at_too(published_like, tmp_path):
  (published_like / "slat_generator.yaml").write_text("module: {_target_: os.system}\n")
  with pytest.raises(InputError, match="slat_generator.yaml: module._target_ = 'os.system'"):
    take(published_like, tmp_path / "out")


def test_the_environment_is_not_read_by_what_is_taken_over(published_like, tmp_path):
  change(published_like, version="${oc.env:HOME}")
  with pytest.raises(InputError, match="version"):
    take(published_like, tmp_path / "out")


def test_the_collected_path_to_a_private_file_is_refused(published_like, tmp_path, hostile_dir):
  (published_like.parent / "home_id_rsa").write_text("secret")
  case = hostile_dir / "export_takes_private_file"
  change(published_like, **yaml.safe_load((case / "pipeline.yaml").read_text()))
  with pytest.raises(InputError, match="home_id_rsa.*leads out of"):
    take(published_like, tmp_path / "out")


@pytest.mark.parametrize("name", ["slat_generator.ckpt", "slat_generator.yaml", "LICENSE"])
def test_a_link_to_a_private_file_is_refused(published_like, tmp_path, name):
  secret = tmp_path / "id_rsa"
  torch.save({"secret": torch.zeros(1)}, secret)
  (published_like / name).unlink()
  (published_like / name).symlink_to(secret)
  with pytest.raises(InputError, match="leads out of"):
    take(published_like, tmp_path / "out")


def test_the_hubs_cache_is_a_release(published_like, tmp_path):
  snapshot = tmp_path / "hub" / "snapshots" / "abc" / "checkpoints"
  blobs = tmp_path / "hub" / "blobs"
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  for number, path in enumerate(sorted(published_like.iterdir())):
    shutil.copy(path, blobs / str(number))
    (snapshot / path.name).symlink_to(f"../../../blobs/{number}")
  take(snapshot, tmp_path / "out")
  assert not (tmp_path / "out" / "slat_generator.ckpt").is_symlink()


def test_a_taken_over_file_holds_tensors_alone(published_like, tmp_path):
  (published_like / "slat_generator.ckpt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
  with pytest.raises(InputError, match="slat_generator.ckpt"):
    take(published_like, tmp_path / "out")


@pytest.mark.parametrize(
  "text",
  [
    "a: &a {b: *a}",
    "[" * 3000,
    "- 1",
    "a: 2024-99-99",
    "!!python/object/apply:os.system ['id']",
    "\0",
  ],
)
def test_a_yaml_that_is_none_is_refused_by_name(tmp_path, text):
  (tmp_path / "pipeline.yaml").write_text(text)
  with pytest.raises(InputError, match="pipeline.yaml"):
    release.read_pipeline(tmp_path)


def test_a_yaml_that_grows_by_its_aliases_is_refused(tmp_path):
  lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
  for i in range(9):
    lines.append(f"a{i + 1}: &a{i + 1} [" + ", ".join(8 * [f"*a{i}"]) + "]")
  (tmp_path / "pipeline.yaml").write_text("\n".join(lines))
  with pytest.raises(InputError, match="more than"):
    release.read_pipeline(tmp_path)
