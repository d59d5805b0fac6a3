"""Laws of what an export writes: the folder, its record, and which parameters go into it."""

import dataclasses
import json
import sys

from ml_collections import ConfigDict
import numpy as np
import pytest
import yaml

from sam3d_jax.errors import InputError
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import export as exporting
from sam3d_jax.torch_bridge import load, parts, release, release_writer, yaml_pipeline
from sam3d_jax.training import checkpoint_steps
from sam3d_jax.training.checkpointer import Checkpointer
from tests.support.tiny_release import (
  SAFETENSORS,
  assert_same_arrays,
  export,
  import_,
  in_memory,
  normal_arrays,
  random_params,
  save_run,
  tiny_config,
)


def test_the_model_card_says_what_the_record_says(runs):
  folder = runs / "release"
  record = json.loads((folder / "release.json").read_text())
  text = (folder / "MODEL_CARD.md").read_text()
  assert "$" not in text
  assert text.startswith("# Model card: release\n")
  assert "as it is after stage `pretrain`" in text
  for entry in record["parts"].values():
    assert entry["file"] in text and entry["sha256"][:16] in text
  assert "- dataset `iso_3do`" in text
  assert "the one whose latents the model was trained on" in text
  learning_rate = record["config"]["optim"]["lr"]
  assert f"| `optim.lr` | `{learning_rate}` |" in text
  # nobody else's terms
  assert "No file was taken over" in text and "Licence files in this folder: none." in text


def test_the_folder_is_what_the_published_pipeline_reads(runs):
  torch = pytest.importorskip("torch")
  folder = runs / "release"

  # generators lie under a root key, with the prefixes of the published trainer
  file = torch.load(folder / "ss_generator.ckpt", weights_only=True)
  assert list(file) == ["state_dict"]
  prefixes = ("_base_models.generator.reverse_fn.backbone.", "_base_models.condition_embedder.")
  for name in file["state_dict"]:
    assert name.startswith(prefixes), name

  # decoders are bare state dicts
  decoder = torch.load(folder / "ss_decoder.ckpt", weights_only=True)
  assert "state_dict" not in decoder
  assert decoder["input_layer.weight"].shape == (16, 8, 3, 3, 3)

  pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
  assert pipeline["ss_generator_ckpt_path"] == "ss_generator.ckpt"
  assert pipeline["ss_inference_steps"] == 7
  assert pipeline["ss_cfg_interval"] == [0.0, 500.0]
  assert "slat_generator_ckpt_path" not in pipeline
  for name in ("ss_generator.yaml", "ss_decoder.yaml", "ss_encoder.yaml"):
    assert "&id" not in (folder / name).read_text()  # no yaml aliases


def test_the_sidecar_says_where_everything_comes_from(runs):
  record = json.loads((runs / "release" / "release.json").read_text())

  # the checkpoint
  parent = record["lineage"]["parents"][0]
  trained = checkpoint_steps.read_meta(runs / "geometry")
  assert parent["lineage"]["stage"] == "pretrain"
  assert parent["digest"] == checkpoint_steps.digest(trained)
  assert record["config"]["model"]["flow"]["width"] == 16

  # the latents and their decoder
  assert record["latents"]["std"] == [1.0] * 8
  assert record["decoder"]["verified"]

  # the files
  for part, entry in record["parts"].items():
    assert entry["sha256"] == load.file_digest(runs / "release" / entry["file"]), part

  # what the published pipeline would miss
  pipeline = record["published_pipeline"]
  assert not pipeline["loads"]
  assert "slat_generator is missing" in "\n".join(pipeline["obstacles"])


def published_rows(generator: dict) -> tuple[int, dict[str, int]]:
  """Rows that the published fuser would give its table, and which one each stream reads: groups
  counted by first appearance.
  """
  embedders = generator["module"]["condition_embedder"]["backbone"]["embedder_list"]
  group_of = {}
  for _, streams in embedders:
    group_of |= dict(streams)
  order = list(dict.fromkeys(group_of.values()))
  row_of = {stream: order.index(group) for stream, group in group_of.items()}
  return len(order) + 1, row_of


@pytest.mark.parametrize(
  "streams",
  [
    ("image", "mask"),
    ("rgb_image", "rgb_image_mask", "rgb_pointmap"),
    ("mask", "rgb_image"),
    ("image", "mask", "rgb_image", "rgb_image_mask", "pointmap", "rgb_pointmap"),
  ],
)
def test_every_stream_reads_its_groups_row_of_a_published_table_of_three(tmp_path, streams):
  folder = tmp_path / "release"
  model = in_memory("geometry", 3)
  model.config.model.condition.streams = streams
  release_writer.write_release(folder, model, storage=SAFETENSORS)
  ours = model.params["condition/group_embed"]

  # the published module would find the group of every stream
  rows, row_of = published_rows(yaml.safe_load((folder / "ss_generator.yaml").read_text()))
  file = load.open_state(folder / "ss_generator.safetensors")
  table = file.read("_base_models.condition_embedder.idx_emb")
  assert len(table) == rows == 3
  assert set(row_of) == set(streams)
  for name, row in row_of.items():
    group = 1 if name.startswith("rgb_") else 0
    np.testing.assert_array_equal(table[row], ours[group], err_msg=name)

  # read back, the rows that nothing reads included
  opened = release.open_geometry(release.read_release(folder), model.config.model)
  np.testing.assert_array_equal(opened["condition/group_embed"], ours)
  obstacles = yaml_pipeline.obstacles(registry.typed_config(model.config.model))
  assert "group embedding" not in "\n".join(obstacles)


def test_safetensors_releases_need_no_torch(runs, tmp_path, monkeypatch, capsys):
  geometry, vae = runs / "geometry", runs / "vae"
  monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails

  # .ckpt files do need it, to write and to read
  assert export(geometry, tmp_path / "x", vae=vae) == 2
  assert "--safetensors" in capsys.readouterr().err
  assert import_(runs / "release", tmp_path / "y") == 2
  assert "requirements-torch.txt" in capsys.readouterr().err

  # there and back without
  folder, back = tmp_path / "release", tmp_path / "geometry"
  assert export(geometry, folder, "--safetensors", vae=vae) == 0
  assert import_(folder, back) == 0
  assert_same_arrays(back, geometry)


def test_the_average_asked_for_is_exported(tmp_path):
  # a run with two averages
  run = str(tmp_path / "run")
  config = tiny_config("structure_vae")
  raw = random_params(config, 0)
  fast = random_params(config, 1)
  slow = random_params(config, 2)
  state = {"params": raw, "ema": {"0.9": fast, "0.99": slow}}
  writer = Checkpointer(run)
  writer.save(5, state, {"config": config.to_dict(), "lineage": {}})
  writer.close()

  for which, expected in (("raw", raw), ("ema", slow), ("ema:0.9", fast)):
    model = exporting.open_model(exporting.Source(run, which))
    for path in ("decoder/conv_in/kernel", "encoder/conv_out/bias"):
      np.testing.assert_array_equal(model.params[path], expected[path])
  with pytest.raises(InputError, match="0.5"):
    exporting.open_model(exporting.Source(run, "ema:0.5"))


def test_adapters_are_merged_when_asked_and_refused_otherwise(tmp_path, capsys):
  run, out = tmp_path / "run", tmp_path / "release"

  # a run with one adapted kernel
  config = tiny_config("geometry")
  config.lora = ConfigDict({"targets": "flow/time/out", "rank": 2, "alpha": 4.0})
  params = random_params(config, 0)
  kernel = params["flow/time/out/kernel"]
  width_in, width_out = kernel.shape
  shapes = {"flow/time/out/lora_a": (width_in, 2), "flow/time/out/lora_b": (2, width_out)}
  factors = normal_arrays(shapes, seed=9)
  save_run(run, config, params | factors, {})

  # not asked for
  assert export(run, out, "--safetensors") == 2
  assert "--merge_lora" in capsys.readouterr().err

  # asked for
  assert export(run, out, "--safetensors", "--merge_lora") == 0
  opened = release.open_geometry(release.read_release(out), config.model)
  a, b = factors.values()
  merged = kernel + 2 * a @ b  # alpha / rank = 2
  np.testing.assert_allclose(opened["flow/time/out/kernel"], merged, rtol=1e-5, atol=1e-5)


def test_an_entry_of_the_table_is_all_that_an_export_needs(tmp_path, monkeypatch):
  model = in_memory("structure_vae", 0)
  out = tmp_path / "out"

  def toy_parts(cfg):
    """The structure VAE as one file whose entries are numbered."""
    rules = []
    for part in parts.structure_vae_parts(cfg):
      for rule in part.rules:
        rules.append(dataclasses.replace(rule, torch=f"{len(rules)}.weight"))
    return [parts.Part("toy", "toy_file", None, rules)]

  def toy_yaml(cfg, settings):
    return {"channels": cfg.latent_channels, "half": settings.half}

  # without an entry
  monkeypatch.delitem(parts.PUBLISHED, "structure_vae")
  with pytest.raises(InputError, match="a structure_vae model has no published form"):
    release_writer.write_release(out, model, storage=SAFETENSORS)

  # with one
  entry = parts.Published(parts=toy_parts, yamls={"toy_file": toy_yaml})
  monkeypatch.setitem(parts.PUBLISHED, "structure_vae", entry)
  record = release_writer.write_release(out, model, storage=SAFETENSORS)
  files = sorted(path.name for path in out.iterdir())
  assert files == ["MODEL_CARD.md", "release.json", "toy_file.safetensors", "toy_file.yaml"]
  assert not record["published_pipeline"]["loads"]
  assert yaml.safe_load((out / "toy_file.yaml").read_text())["channels"] == 8
  opened = release.open_file(out / "toy_file.safetensors", model.config.model)
  for path, array in model.params.items():
    np.testing.assert_array_equal(opened[path], array, err_msg=path)
