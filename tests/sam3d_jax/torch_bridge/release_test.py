"""Laws of release folders: what export writes, import reads back, and what is refused."""

import dataclasses
import json
import pathlib
import sys

from ml_collections import ConfigDict
import numpy as np
import pytest
import yaml

from configs import base
from launch import export_torch, import_torch
from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import (
  export as exporting,
)
from sam3d_jax.torch_bridge import (
  load,
  names_conditioning,
  parts,
  release,
  release_writer,
  save,
  stream,
  yaml_files,
  yaml_geometry,
  yaml_pipeline,
  yaml_structure,
)
from sam3d_jax.training import checkpoint
from sam3d_jax.training.checkpointer import Checkpointer
from tests.support.tiny_release import tiny_model

SAFETENSORS = release_writer.Storage(suffix=".safetensors")
STAGE_2 = [file.name for file in parts.FILES if file.name.startswith("slat_")]


def settings(*, half: bool) -> yaml_files.Settings:
  return yaml_files.Settings(base.sampler().to_dict(), half)


def tiny_config(name: str) -> ConfigDict:
  config = base.training("test")
  if name == "geometry":
    config.model = tiny_model()
    config.sampler = base.sampler()
    config.sampler.steps = 7
  else:
    config.model = base.structure_vae_model()
    config.model.update(dict(resolution=4, channels=(8, 16), res_blocks=1, middle_blocks=1))
  return config


def config_file(folder: pathlib.Path, config: ConfigDict) -> str:
  """The configuration as a file for --config."""
  text = (
    "from ml_collections import ConfigDict\n\n\ndef get_config():\n  return "
    f"ConfigDict({config.to_dict()!r})\n"
  )
  (folder / "config.py").write_text(text)
  return str(folder / "config.py")


def random_params(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  shapes = parameters.flat_shapes(registry.abstract_model(config.model))
  return {p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pathlib.Path:
  """Folder with a VAE run, a Geometry run trained on its latents, and the release made of both."""
  folder = tmp_path_factory.mktemp("runs")
  vae, geometry = tiny_config("structure_vae"), tiny_config("geometry")
  stream.write_params(
    folder / "vae",
    random_params(vae, 0),
    {"config": vae.to_dict(), "lineage": {"stage": "train_vae"}},
  )
  latents = {
    "autoencoder": parameters.params_digest(random_params(vae, 0)),
    "mean": [0.0] * 8,
    "std": [1.0] * 8,
  }
  lineage = {
    "stage": "pretrain",
    "parents": [],
    "datasets": {"iso_3do": {"name": "iso_3do", "latents": latents}},
  }
  stream.write_params(
    folder / "geometry",
    random_params(geometry, 1),
    {"config": geometry.to_dict(), "lineage": lineage},
  )
  assert export(folder / "geometry", folder / "release", vae=folder / "vae") == 0
  return folder


def export(run, out, *extra: str, **flags) -> int:
  argv = ["--checkpoint", str(run), "--out", str(out), *extra]
  for name, value in flags.items():
    argv += [f"--{name}", str(value)]
  return export_torch.main(argv)


def in_memory(name: str, seed: int, lineage: dict | None = None, **model) -> release_writer.Model:
  """A random model to release that never was a checkpoint."""
  config = tiny_config(name)
  config.model.update(model)
  params = random_params(config, seed)
  return release_writer.Model(
    config=config,
    params=params,
    shapes={p: a.shape for p, a in params.items()},
    lineage=lineage or {},
    digest=f"{name} {seed}",
    autoencoder=parameters.params_digest(params) if name == "structure_vae" else None,
  )


def import_(source, workdir, *extra: str) -> int:
  return import_torch.main(["--from", str(source), "--workdir", str(workdir), *extra])


def assert_same_arrays(a, b):
  """Two checkpoints hold the same arrays, bit for bit."""
  assert checkpoint.read_meta(a)["checksums"] == checkpoint.read_meta(b)["checksums"]


def test_importing_an_export_gives_the_same_arrays(runs, tmp_path):
  assert import_(runs / "release", tmp_path / "geometry") == 0
  assert_same_arrays(tmp_path / "geometry", runs / "geometry")
  config, trained = (
    checkpoint.read_meta(run)["config"] for run in (tmp_path / "geometry", runs / "geometry")
  )
  for model in (config["model"], trained["model"]):
    # their order in a configuration means nothing
    model["condition"]["streams"] = sorted(model["condition"]["streams"])
  assert registry.typed_config(ConfigDict(config["model"])) == registry.typed_config(
    ConfigDict(trained["model"])
  )
  sampler = config["sampler"]
  assert (sampler["steps"], sampler["guidance"], list(sampler["interval"])) == (7, 7.0, [0.0, 0.5])
  assert import_(runs / "release", tmp_path / "vae", "--part", "structure_vae") == 0
  assert_same_arrays(tmp_path / "vae", runs / "vae")


def published_rows(generator: dict) -> tuple[int, dict[str, int]]:
  """Rows that the published fuser would give its table, and which one each stream reads: groups
  counted by first appearance.
  """
  pairs = [
    pair
    for _, streams in generator["module"]["condition_embedder"]["backbone"]["embedder_list"]
    for pair in streams
  ]
  order = list(dict.fromkeys(group for _, group in pairs))
  return len(order) + 1, {name: order.index(group) for name, group in pairs}


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
  model = in_memory("geometry", 3)
  model.config.model.condition.streams = streams
  release_writer.write_release(tmp_path / "release", model, storage=SAFETENSORS)
  rows, row_of = published_rows(
    yaml.safe_load((tmp_path / "release" / "ss_generator.yaml").read_text())
  )
  file = load.open_state(tmp_path / "release" / "ss_generator.safetensors")
  table, ours = (
    file.read("_base_models.condition_embedder.idx_emb"),
    model.params["condition/group_embed"],
  )
  assert len(table) == rows == 3 and set(row_of) == set(streams)
  for name, row in row_of.items():
    np.testing.assert_array_equal(
      table[row], ours[1 if name.startswith("rgb_") else 0], err_msg=name
    )
  opened = release.open_geometry(
    release.read_release(tmp_path / "release"), tiny_config("geometry").model
  )
  # the rows that nothing reads included
  np.testing.assert_array_equal(opened["condition/group_embed"], ours)
  assert not any(
    "group embedding" in why
    for why in yaml_pipeline.obstacles(registry.typed_config(model.config.model))
  )


def test_safetensors_releases_need_no_torch(runs, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "torch", None)
  assert export(runs / "geometry", tmp_path / "x", vae=runs / "vae") == 2
  assert "--safetensors" in capsys.readouterr().err
  assert export(runs / "geometry", tmp_path / "release", "--safetensors", vae=runs / "vae") == 0
  assert import_(tmp_path / "release", tmp_path / "geometry") == 0
  assert_same_arrays(tmp_path / "geometry", runs / "geometry")
  assert import_(runs / "release", tmp_path / "y") == 2  # .ckpt files do need it
  assert "requirements-torch.txt" in capsys.readouterr().err


def test_the_folder_is_what_the_published_pipeline_reads(runs):
  torch = pytest.importorskip("torch")
  folder = runs / "release"
  file = torch.load(folder / "ss_generator.ckpt", weights_only=True)
  assert list(file) == ["state_dict"]
  assert all(
    name.startswith(
      ("_base_models.generator.reverse_fn.backbone.", "_base_models.condition_embedder.")
    )
    for name in file["state_dict"]
  )
  decoder = torch.load(folder / "ss_decoder.ckpt", weights_only=True)
  assert "state_dict" not in decoder and decoder["input_layer.weight"].shape == (16, 8, 3, 3, 3)
  pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
  assert (
    pipeline["ss_generator_ckpt_path"] == "ss_generator.ckpt"
    and pipeline["ss_inference_steps"] == 7
  )
  assert pipeline["ss_cfg_interval"] == [0.0, 500.0] and "slat_generator_ckpt_path" not in pipeline
  for name in ("ss_generator.yaml", "ss_decoder.yaml", "ss_encoder.yaml"):
    assert "&id" not in (folder / name).read_text()  # no yaml aliases


def test_the_sidecar_says_where_everything_comes_from(runs):
  record = json.loads((runs / "release" / "release.json").read_text())
  assert record["lineage"]["parents"][0]["lineage"]["stage"] == "pretrain"
  assert record["lineage"]["parents"][0]["digest"] == checkpoint.digest(
    checkpoint.read_meta(runs / "geometry")
  )
  assert record["latents"]["std"] == [1.0] * 8 and record["decoder"]["verified"]
  assert record["config"]["model"]["flow"]["width"] == 16
  for part, entry in record["parts"].items():
    assert entry["sha256"] == load.file_digest(runs / "release" / entry["file"]), part
  assert not record["published_pipeline"]["loads"]
  assert any(
    "slat_generator is missing" in why for why in record["published_pipeline"]["obstacles"]
  )


@pytest.mark.parametrize("twice", (True, False))
def test_a_pipeline_says_whether_point_maps_are_resized_twice(twice):
  model = base.geometry_model()
  model.condition.pointmap.resize_twice = twice
  cfg = registry.typed_config(model)
  tree = yaml_pipeline.pipeline_yaml(cfg, {}, settings(half=False), base=None)
  assert yaml_pipeline.resizes_twice(tree, model.to_dict()) == twice
  assert yaml_pipeline.resizes_twice(None, model.to_dict())


def test_every_yaml_reads_back_as_the_configuration_it_was_written_from():
  full, small = base.geometry_model(), tiny_model()
  crop = base.geometry_model()
  crop.condition.streams = ("image", "mask")
  no_points = base.geometry_model()
  no_points.condition.streams, no_points.condition.pointmap, no_points.flow.shortcut = (
    ("image", "rgb_image"),
    None,
    False,
  )
  compute = {"dtype", "remat", "unroll", "attention", "absorb_layout_kv", "cls_only"}
  for model in (full, small, crop, no_points):
    cfg = registry.typed_config(model)
    tree = yaml.safe_load(yaml.safe_dump(yaml_geometry.generator_yaml(cfg, settings(half=False))))
    back = yaml_geometry.geometry_section(tree, "x.yaml")
    for section, written in (
      ("flow", model.flow),
      ("condition", model.condition),
      ("dino", model.condition.dino),
      ("pointmap", model.condition.pointmap),
    ):
      got = back[section] if section in back else back["condition"][section]
      if written is None:
        assert got is None
        continue
      # the published encoder's own, and the preprocessor's, which stands in pipeline.yaml
      fixed = {"heads", "mlp_ratio", "resize_twice"} if section == "pointmap" else set()
      for key in set(written.keys()) - compute - fixed - {"dino", "pointmap", "streams"}:
        assert got[key] == written[key], (section, key)
    assert set(back["condition"]["streams"]) == set(model.condition.streams)
    assert yaml_pipeline.sampler_section(tree, None, "x.yaml")["steps"] == 25


def test_the_default_model_is_described_as_published():
  cfg = registry.typed_config(base.geometry_model())
  tree = yaml_geometry.generator_yaml(cfg, settings(half=True))["module"]
  generator, fuser = tree["generator"]["backbone"], tree["condition_embedder"]["backbone"]
  backbone = generator["reverse_fn"]["backbone"]
  assert generator["_target_"] == "sam3d_objects.model.backbone.generator.shortcut.model.ShortCut"
  assert backbone["use_fp16"] and backbone["num_blocks"] == 24 and backbone["is_shortcut_model"]
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
  assert [(e[0].get("dino_model"), e[1]) for e in fuser["embedder_list"]] == [
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
  *parents, key = ("module.generator.backbone." + path).split(".")
  node = yaml_files.at(tree, ".".join(parents), "x.yaml")
  if value is None:
    del node[key]
  else:
    node[key] = value
  with pytest.raises(InputError, match=words):
    yaml_geometry.geometry_section(tree, "x.yaml")


def test_the_average_asked_for_is_exported(tmp_path):
  config = tiny_config("structure_vae")
  raw, fast, slow = (random_params(config, seed) for seed in range(3))
  writer = Checkpointer(tmp_path / "run")
  writer.save(
    5,
    {"params": raw, "ema": {"0.9": fast, "0.99": slow}},
    {"config": config.to_dict(), "lineage": {}},
  )
  writer.close()
  for which, expected in (("raw", raw), ("ema", slow), ("ema:0.9", fast)):
    model = exporting.open_model(exporting.Source(str(tmp_path / "run"), which))
    for path in ("decoder/conv_in/kernel", "encoder/conv_out/bias"):
      np.testing.assert_array_equal(model.params[path], expected[path])
  with pytest.raises(InputError, match="0.5"):
    exporting.open_model(exporting.Source(str(tmp_path / "run"), "ema:0.5"))


def test_adapters_are_merged_when_asked_and_refused_otherwise(tmp_path, capsys):
  config = tiny_config("geometry")
  config.lora = ConfigDict({"targets": "flow/time/out", "rank": 2, "alpha": 4.0})
  params = random_params(config, 0)
  shape = params["flow/time/out/kernel"].shape
  rng = np.random.default_rng(9)
  factors = {
    "flow/time/out/lora_a": rng.standard_normal((shape[0], 2), dtype=np.float32),
    "flow/time/out/lora_b": rng.standard_normal((2, shape[1]), dtype=np.float32),
  }
  stream.write_params(
    tmp_path / "run", params | factors, {"config": config.to_dict(), "lineage": {}}
  )
  assert export(tmp_path / "run", tmp_path / "release", "--safetensors") == 2
  assert "--merge_lora" in capsys.readouterr().err
  assert export(tmp_path / "run", tmp_path / "release", "--safetensors", "--merge_lora") == 0
  opened = release.open_geometry(release.read_release(tmp_path / "release"), config.model)
  merged = (
    params["flow/time/out/kernel"]
    + 2 * factors["flow/time/out/lora_a"] @ factors["flow/time/out/lora_b"]
  )
  np.testing.assert_allclose(opened["flow/time/out/kernel"], merged, rtol=1e-5, atol=1e-5)


def test_a_decoder_of_other_latents_is_refused_and_nothing_is_written(tmp_path):
  right, wrong = in_memory("structure_vae", 0), in_memory("structure_vae", 5)
  geometry = in_memory(
    "geometry", 1, {"datasets": {"a": {"latents": {"autoencoder": right.autoencoder}}}}
  )
  with pytest.raises(InputError, match="latents of autoencoder"):
    release_writer.write_release(tmp_path / "release", geometry, wrong, storage=SAFETENSORS)
  assert not list(tmp_path.iterdir())
  assert release_writer.write_release(tmp_path / "release", geometry, right, storage=SAFETENSORS)[
    "decoder"
  ]["verified"]


def test_a_decoder_of_another_size_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"4\^3 x 8, the flow model's 2\^3 x 8"):
    release_writer.write_release(
      tmp_path / "release", in_memory("geometry", 1), in_memory("structure_vae", 0, resolution=8)
    )
  assert not list(tmp_path.iterdir())


def test_export_reports_every_misfit_of_all_models_at_once(tmp_path):
  geometry, vae = in_memory("geometry", 1), in_memory("structure_vae", 0)
  del geometry.shapes["flow/time/out/bias"]
  vae.shapes["decoder/stray"] = (3,)
  with pytest.raises(
    InputError, match=r"(?s)missing     flow/time/out/bias.*unexpected  decoder/stray"
  ):
    release_writer.write_release(tmp_path / "release", geometry, vae)
  assert not list(tmp_path.iterdir())


def test_mixed_latents_are_refused():
  data = {name: {"latents": {"autoencoder": name}} for name in ("a", "b")}
  with pytest.raises(InputError, match="two autoencoders, a and b"):
    release.latents_of({"datasets": data})
  assert release.latents_of({"parents": [{"lineage": {"datasets": {"a": data["a"]}}}]}) == {
    "autoencoder": "a"
  }


@pytest.fixture
def published_like(runs, tmp_path) -> pathlib.Path:
  """A release folder with second-stage parts and a licence, and no release.json: as a user
  downloads it.
  """
  folder = tmp_path / "published"
  folder.mkdir()
  pipeline = yaml.safe_load((runs / "release" / "pipeline.yaml").read_text())
  for path in (runs / "release").iterdir():
    if path.name not in ("release.json", "ss_encoder.ckpt", "ss_encoder.yaml"):
      (folder / path.name).write_bytes(path.read_bytes())
  for part in STAGE_2:
    (folder / f"{part}.ckpt").write_bytes(part.encode())
    (folder / f"{part}.yaml").write_text("_target_: x\n")
    pipeline |= {f"{part}_ckpt_path": f"{part}.ckpt", f"{part}_config_path": f"{part}.yaml"}
  pipeline |= {"slat_mean": [0.5] * 8, "slat_cfg_strength": 1}
  (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
  (folder / "LICENSE").write_text("terms")
  return folder


def test_parts_not_trained_here_are_taken_over(published_like, tmp_path):
  record = release_writer.write_release(
    tmp_path / "out", in_memory("geometry", 1), take_from=published_like
  )
  assert record["parts"] == json.loads((tmp_path / "out" / "release.json").read_text())["parts"]
  for part in (*STAGE_2, "ss_decoder"):
    # linked, not copied
    assert (tmp_path / "out" / f"{part}.ckpt").samefile(published_like / f"{part}.ckpt")
    assert record["parts"][part]["sha256"] == load.file_digest(published_like / f"{part}.ckpt")
  pipeline = yaml.safe_load((tmp_path / "out" / "pipeline.yaml").read_text())
  assert (
    pipeline["slat_mean"] == [0.5] * 8
    and pipeline["slat_decoder_mesh_ckpt_path"] == "slat_decoder_mesh.ckpt"
  )
  assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
  assert not any("missing" in why for why in record["published_pipeline"]["obstacles"])


def test_a_published_release_can_be_continued_and_given_back(runs, published_like, tmp_path):
  assert import_(published_like, tmp_path / "start") == 0
  meta = checkpoint.read_meta(tmp_path / "start")
  assert list(meta["lineage"]["files"]) == [str(published_like / "ss_generator.ckpt")]
  assert export(tmp_path / "start", tmp_path / "out", take_from=published_like) == 0
  record = json.loads((tmp_path / "out" / "release.json").read_text())
  assert record["decoder"]["verified"]  # it is the very decoder that lay beside the imported model
  # a hard link by now: writing into it would change both
  (published_like / "ss_decoder.ckpt").unlink()
  (published_like / "ss_decoder.ckpt").write_bytes(
    (runs / "release" / "ss_encoder.ckpt").read_bytes()
  )
  other = release_writer.decoder_identity(None, release.read_release(published_like))
  assert not release.check_latents(release.latents_of(meta["lineage"]), other)


def test_a_taken_over_file_that_changed_since_is_refused(runs, tmp_path):
  broken = tmp_path / "broken"
  broken.mkdir()
  for path in (runs / "release").iterdir():
    (broken / path.name).write_bytes(path.read_bytes())
  (broken / "ss_encoder.ckpt").write_bytes(b"something else")
  with pytest.raises(InputError, match="ss_encoder.ckpt is not the file that"):
    release_writer.write_release(tmp_path / "out", in_memory("geometry", 1), take_from=broken)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_existing_outputs_are_left_alone(runs, tmp_path, capsys):
  before = (runs / "release" / "release.json").stat().st_mtime_ns
  assert export(runs / "geometry", runs / "release", vae=runs / "vae") == 2
  assert import_(runs / "release", runs / "geometry") == 2
  assert capsys.readouterr().err.count("error:") == 2
  assert (runs / "release" / "release.json").stat().st_mtime_ns == before


def test_an_import_that_does_not_fit_lists_everything_and_writes_nothing(runs, tmp_path, capsys):
  config = tiny_config("geometry")
  config.model.flow.shortcut = False
  config.model.flow.depth = 3
  source = runs / "release" / "ss_generator.ckpt"
  assert import_(source, tmp_path / "run", "--config", config_file(tmp_path, config)) == 2
  text = capsys.readouterr().err
  assert text.count("unexpected  _base_models.generator.reverse_fn.backbone.d_embedder.") == 4
  assert (
    "missing     _base_models.generator.reverse_fn.backbone.blocks.2.mlp.shape.mlp.0.weight" in text
  )
  assert not (tmp_path / "run").exists()


def test_an_original_dinov2_file_fills_both_encoders(runs, tmp_path):
  config = tiny_config("geometry")
  rules = names_conditioning.dinov2_rules(registry.typed_config(config.model).condition.dino)
  params = random_params(config, 3)
  prefix = "condition/image_encoder/"
  encoder = {p.removeprefix(prefix): a for p, a in params.items() if p.startswith(prefix)}
  shapes = {p: a.shape for p, a in encoder.items()}
  save.write_state(tmp_path / "dino.pth", rules, encoder, shapes)
  assert (
    import_(tmp_path / "dino.pth", tmp_path / "run", "--config", config_file(tmp_path, config)) == 0
  )
  got = checkpoint.load_params(tmp_path / "run", which="raw")
  assert set(got) == set(params)
  for path, array in encoder.items():
    np.testing.assert_array_equal(got["condition/image_encoder/" + path], array)
    np.testing.assert_array_equal(got["condition/mask_encoder/" + path], array)
  assert 0 < got["flow/time/hidden/kernel"].std() < 1  # initialised, not taken from anywhere


def test_models_of_a_release_come_back_in_memory(runs):
  opened = release.read_release(runs / "release")
  decoder = release.restore_decoder(opened)
  geometry = release.restore_geometry(opened, ConfigDict(opened.geometry))
  trained = checkpoint.load_params(runs / "vae", which="raw")
  np.testing.assert_array_equal(
    parameters.flat_params(decoder)["conv_in/kernel"], trained["decoder/conv_in/kernel"]
  )
  trained = checkpoint.load_params(runs / "geometry", which="raw")
  np.testing.assert_array_equal(
    parameters.flat_params(geometry)["flow/time/out/bias"], trained["flow/time/out/bias"]
  )
  assert parts.find_file(runs / "release", "slat_generator") is None


def test_an_entry_of_the_table_is_all_that_an_export_needs(tmp_path, monkeypatch):
  model = in_memory("structure_vae", 0)

  def toy_parts(cfg):
    rules = [rule for part in parts.structure_vae_parts(cfg) for rule in part.rules]
    names = [f"{number}.weight" for number in range(len(rules))]
    renamed = [dataclasses.replace(r, torch=n) for r, n in zip(rules, names, strict=True)]
    return [parts.Part("toy", "toy_file", None, renamed)]

  def toy_yaml(cfg, settings):
    return {"channels": cfg.latent_channels, "half": settings.half}

  monkeypatch.delitem(parts.PUBLISHED, "structure_vae")
  with pytest.raises(InputError, match="a structure_vae model has no published form"):
    release_writer.write_release(tmp_path / "out", model, storage=SAFETENSORS)
  entry = parts.Published(parts=toy_parts, yamls={"toy_file": toy_yaml})
  monkeypatch.setitem(parts.PUBLISHED, "structure_vae", entry)
  record = release_writer.write_release(tmp_path / "out", model, storage=SAFETENSORS)
  files = sorted(path.name for path in (tmp_path / "out").iterdir())
  assert files == ["release.json", "toy_file.safetensors", "toy_file.yaml"]
  assert not record["published_pipeline"]["loads"]
  assert yaml.safe_load((tmp_path / "out" / "toy_file.yaml").read_text())["channels"] == 8
  opened = release.open_file(tmp_path / "out" / "toy_file.safetensors", model.config.model)
  for path, array in model.params.items():
    np.testing.assert_array_equal(opened[path], array, err_msg=path)
