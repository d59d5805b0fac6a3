"""Laws of the second stage in release folders: both ways bit for bit, files known by their shapes,
decoders of one encoder's latents.
"""

import json
import pathlib
import shutil

from ml_collections import ConfigDict
import ml_dtypes
import numpy as np
import pytest
import yaml

from sam3d_jax.errors import InputError
from sam3d_jax.models import registry
from sam3d_jax.torch_bridge import export as exporting
from sam3d_jax.torch_bridge import load, parts, recognise, release, release_writer
from sam3d_jax.torch_bridge import second_stage as reading
from sam3d_jax.training import checkpoint_params, checkpoint_steps
from sam3d_jax.training.checkpointer import Checkpointer
from tests.support.tiny_release import (
  SAFETENSORS,
  assert_same_arrays,
  config_file,
  export,
  import_,
  in_memory,
  normal_arrays,
  random_params,
  save_run,
  tiny_config,
)

# part of a folder -> the run that it was exported from
PARTS = {
  "texture": "texture",
  "slat_vae": "slat_vae",
  "slat_decoder_gs_4": "slat_gaussian",
  "slat_decoder_mesh": "slat_mesh",
}


@pytest.fixture
def downloaded(second_stage, tmp_path) -> pathlib.Path:
  """The release as others have it: without the record of who made it."""
  folder = tmp_path / "downloaded"
  shutil.copytree(second_stage / "fp32", folder)
  (folder / "release.json").unlink()
  return folder


def swap(one: pathlib.Path, other: pathlib.Path) -> None:
  """Exchanges two files."""
  aside = one.with_suffix(".aside")
  one.rename(aside)
  other.rename(one)
  aside.rename(other)


@pytest.fixture(scope="module")
def imported(second_stage, tmp_path_factory) -> pathlib.Path:
  """Work folders of the release's models, by part."""
  folder = tmp_path_factory.mktemp("imported")
  for part in PARTS:
    assert import_(second_stage / "fp32", folder / part, "--part", part) == 0
  return folder


@pytest.mark.parametrize("part", PARTS)
def test_importing_an_export_gives_the_same_arrays_and_model(second_stage, imported, part):
  trained = second_stage / PARTS[part]
  assert_same_arrays(imported / part, trained)

  typed = []
  for run in (imported / part, trained):
    model = ConfigDict(checkpoint_steps.read_meta(run)["config"]["model"])
    # their order in a configuration means nothing
    if part == "texture":
      model.condition.streams = tuple(sorted(model.condition.streams))
    typed.append(registry.typed_config(model))
  assert typed[0] == typed[1]


def test_a_texture_model_is_sampled_as_its_release_says(second_stage, imported):
  config = checkpoint_steps.read_meta(imported / "texture")["config"]
  assert config["sampler"]["steps"] == 7
  assert config["model"]["latent_statistics"] == {"mean": [0.5] * 8, "std": [2.0] * 8}
  pipeline = yaml.safe_load((second_stage / "fp32" / "pipeline.yaml").read_text())
  assert pipeline["slat_inference_steps"] == 7
  assert pipeline["slat_mean"] == [0.5] * 8
  # keys that the published pipeline does not know would end it
  assert not any(key.startswith("slat_encoder") for key in pipeline)
  assert pipeline["slat_decoder_gs_4_ckpt_path"] == "slat_decoder_gs_4.ckpt"


@pytest.mark.parametrize("part", ["slat_vae"])
def test_half_storage_comes_back_as_it_was_rounded(second_stage, tmp_path, part):
  assert import_(second_stage / "fp16", tmp_path / "run", "--part", part) == 0
  got = checkpoint_params.load_params(tmp_path / "run", which="raw")
  trained = checkpoint_params.load_params(second_stage / PARTS[part], which="raw")
  rounded = 0
  for path, array in trained.items():
    halved = np.asarray(array, np.float16).astype(np.float32)
    exact = np.array_equal(got[path], array)
    assert exact or np.array_equal(got[path], halved), path
    rounded += not exact
  assert rounded > 4


def test_bfloat16_storage_rounds_kernels_alone(tmp_path):
  model = in_memory("slat_gaussian", 0)
  storage = release_writer.Storage("bf16", ".safetensors")
  release_writer.write_release(tmp_path / "out", model, storage=storage)
  file = tmp_path / "out" / "slat_decoder_gs_4.safetensors"
  opened = release.open_file(file, model.config.model)
  for path, array in model.params.items():
    expected = np.asarray(array)
    if path.endswith("kernel"):
      expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(opened[path], expected, err_msg=path)


# --------------------------------------------------------------------------------------------------
# What a file really is
# --------------------------------------------------------------------------------------------------


def test_full_size_files_are_known_by_their_shapes(shared_dir):
  golden = json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())
  files = {
    "ss_generator": ("ss_generator", "ss_condition_embedder"),
    "slat_generator": ("slat_generator", "slat_condition_embedder"),
  }
  for part in ("ss_decoder", "ss_encoder", "slat_encoder", "slat_decoder_mesh"):
    files[part] = (part,)
  for part in ("slat_decoder_gs", "slat_decoder_gs_4"):
    files[part] = (part,)
  for held in files.values():
    shapes = {}
    for part in held:
      for entry in golden[part]["entries"]:
        shapes[entry["name"]] = tuple(entry["shape"])
    assert [one.part for one in recognise.holdings(shapes)] == list(held)


def test_a_decoder_under_the_encoders_name_is_told_for_what_it_is(downloaded, tmp_path, capsys):
  wrong = downloaded / "slat_encoder.ckpt"
  encoder = tmp_path / "encoder.ckpt"
  wrong.rename(encoder)
  shutil.copyfile(downloaded / "slat_decoder_gs.ckpt", wrong)
  assert import_(downloaded, tmp_path / "run", "--part", "slat_vae") == 2
  said = capsys.readouterr().err
  assert f"{wrong} holds slat_decoder_gs (a Gaussian decoder, 32 a voxel" in said
  assert "--encoder FILE" in said
  assert not (tmp_path / "run").exists()

  # as a file that is given by hand, too
  code = import_(downloaded, tmp_path / "run", "--part", "slat_vae", "--encoder", str(wrong))
  assert code == 2
  assert "not slat_encoder: give the right file" in capsys.readouterr().err

  # with the right one
  assert import_(downloaded, tmp_path / "run", "--part", "slat_vae", "--encoder", str(encoder)) == 0


def test_decoders_under_each_others_names_are_taken_for_what_they_are(
  downloaded, second_stage, tmp_path, capsys
):
  large, small = (downloaded / f"slat_decoder_{name}.ckpt" for name in ("gs", "gs_4"))
  swap(large, small)
  assert import_(downloaded, tmp_path / "run", "--part", "slat_decoder_gs_4") == 0
  note = capsys.readouterr().err
  assert f"note: {small} holds slat_decoder_gs" in note
  assert f"slat_decoder_gs_4 is taken from {large}" in note
  assert_same_arrays(tmp_path / "run", second_stage / "slat_gaussian")


def test_a_single_file_is_told_for_what_it_is(second_stage, tmp_path, capsys):
  folder = second_stage / "fp32"
  # without a configuration
  assert import_(folder / "slat_decoder_gs.ckpt", tmp_path / "run") == 2
  assert "it holds slat_decoder_gs (a Gaussian decoder, 32 a voxel" in capsys.readouterr().err

  # with one of another model
  config = config_file(tmp_path, tiny_config("geometry"))
  assert import_(folder / "slat_generator.ckpt", tmp_path / "run", "--config", config) == 2
  said = capsys.readouterr().err
  assert "holds slat_generator (the second stage's flow model of 2 blocks)" in said
  assert "not ss_generator and ss_condition_embedder: give the right file" in said

  # with its own
  config = config_file(tmp_path, tiny_config("slat_gaussian"))
  assert import_(folder / "slat_decoder_gs_4.ckpt", tmp_path / "run", "--config", config) == 0


def test_an_encoder_without_a_yaml_has_the_sizes_of_its_file(downloaded, second_stage, tmp_path):
  (downloaded / "slat_encoder.yaml").unlink()
  assert import_(downloaded, tmp_path / "run", "--part", "slat_vae") == 0
  typed = []
  for run in (tmp_path / "run", second_stage / "slat_vae"):
    model = ConfigDict(checkpoint_steps.read_meta(run)["config"]["model"])
    typed.append(registry.typed_config(model))
  assert typed[0] == typed[1]


def test_a_second_stage_alone_is_a_release(tmp_path):
  model = in_memory("texture", 0)
  release_writer.write_release(tmp_path / "out", model, storage=SAFETENSORS)
  folder = release.read_release(tmp_path / "out")
  found = reading.read(folder, "texture")
  opened = reading.open_params(folder, found, model.config.model)
  for path, array in model.params.items():
    np.testing.assert_array_equal(opened[path], array, err_msg=path)
  with pytest.raises(InputError, match="it holds a second stage alone"):
    release.open_geometry(folder, model.config.model)


# --------------------------------------------------------------------------------------------------
# Whose latents
# --------------------------------------------------------------------------------------------------


def trained_on(autoencoder: str) -> dict:
  """A lineage of latents of that name."""
  return {"datasets": {"views": {"slat": {"autoencoder": autoencoder}}}}


def test_a_decoder_of_other_latents_is_refused_and_nothing_is_written(tmp_path):
  vae = in_memory("slat_vae", 0)
  texture = in_memory("texture", 1, trained_on(vae.autoencoder))
  geometry = in_memory("geometry", 2)
  out = tmp_path / "out"
  for wrong in (in_memory("slat_gaussian", 3, trained_on("another")), in_memory("slat_vae", 4)):
    with pytest.raises(InputError, match="is of SLAT latents of autoencoder"):
      release_writer.write_release(out, geometry, None, [texture, wrong], storage=SAFETENSORS)
  assert not list(tmp_path.iterdir())

  right = in_memory("slat_gaussian", 3, trained_on(vae.autoencoder))
  record = release_writer.write_release(
    out, geometry, None, [texture, vae, right], storage=SAFETENSORS
  )
  assert record["slat"]["verified"]
  assert record["slat"]["autoencoder"] == vae.autoencoder


def test_a_decoder_that_does_not_say_is_reported(tmp_path):
  texture = in_memory("texture", 1, trained_on("one"))
  silent = in_memory("slat_gaussian", 3)
  record = release_writer.write_release(
    tmp_path / "out", in_memory("geometry", 2), None, [texture, silent], storage=SAFETENSORS
  )
  assert record["slat"]["verified"] is False


def test_files_that_lay_beside_an_imported_model_belong_to_it(downloaded, runs, tmp_path):
  # nobody says whose latents they are: neither a record nor an encoder
  for name in ("slat_encoder.ckpt", "slat_encoder.yaml"):
    (downloaded / name).unlink()
  assert import_(downloaded, tmp_path / "texture", "--part", "texture") == 0
  assert import_(downloaded, tmp_path / "small", "--part", "slat_decoder_gs_4") == 0
  second = [tmp_path / "texture", tmp_path / "small"]
  out = tmp_path / "out"
  assert export(runs / "geometry", out, "--safetensors", second=second, take_from=downloaded) == 0
  record = json.loads((out / "release.json").read_text())
  assert record["slat"]["verified"]
  assert record["slat"]["autoencoder"] is None
  assert record["parts"]["slat_decoder_gs"]["origin"].startswith("taken over")


def test_decoders_of_another_release_are_refused_if_they_belong_to_other_latents(
  second_stage, runs, tmp_path, capsys
):
  config = tiny_config("texture")
  save_run(tmp_path / "texture", config, random_params(config, 9), trained_on("another"))
  code = export(
    runs / "geometry",
    tmp_path / "out",
    "--safetensors",
    second=[tmp_path / "texture"],
    take_from=second_stage / "fp32",
  )
  assert code == 2
  assert "is of SLAT latents of autoencoder another" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_an_import_knows_the_encoder_beside_it(second_stage, downloaded, tmp_path):
  assert import_(downloaded, tmp_path / "run", "--part", "slat_decoder_gs_4") == 0
  lineage = checkpoint_steps.read_meta(tmp_path / "run")["lineage"]
  vae = exporting.open_model(exporting.Source(str(second_stage / "slat_vae"), "raw"))
  assert lineage["slat"]["autoencoder"] == vae.autoencoder


def test_other_latent_statistics_than_the_weights_are_warned_of(second_stage, tmp_path, capsys):
  config = tiny_config("texture")
  config.model.latent_statistics = "trellis"
  file = config_file(tmp_path, config)
  folder = second_stage / "fp32"
  texture = ("--part", "texture", "--dry_run")
  assert import_(folder, tmp_path / "run", *texture, "--config", file) == 0
  note = capsys.readouterr().err
  assert "trained on latents with mean 0.5, ... and std 2, ..." in note
  assert "model.latent_statistics 'trellis'" in note

  # of the same there is nothing to say
  assert import_(folder, tmp_path / "again", *texture) == 0
  assert "note" not in capsys.readouterr().err


def test_a_record_of_other_statistics_than_the_pipelines_is_warned_of(
  second_stage, tmp_path, capsys
):
  folder = tmp_path / "release"
  shutil.copytree(second_stage / "fp32", folder)
  file = folder / "pipeline.yaml"
  tree = yaml.safe_load(file.read_text())
  for key in ("slat_mean", "slat_std"):
    del tree[key]  # then the published pipeline takes those of TRELLIS
  file.write_text(yaml.safe_dump(tree))
  assert import_(folder, tmp_path / "run", "--part", "texture", "--dry_run") == 0
  assert "pipeline.yaml has latent statistics 'trellis', release.json" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# What goes in
# --------------------------------------------------------------------------------------------------


def test_two_models_of_one_file_are_refused(tmp_path):
  small = [in_memory("slat_gaussian", seed) for seed in (0, 1)]
  with pytest.raises(InputError, match="both become slat_decoder_gs_4: give one"):
    release_writer.write_release(tmp_path / "out", in_memory("geometry", 2), None, small)
  assert not list(tmp_path.iterdir())


def test_latents_of_different_sizes_are_refused(tmp_path):
  second = [in_memory("texture", 0), in_memory("slat_gaussian", 1, gaussian={"resolution": 16})]
  with pytest.raises(InputError, match=r"texture 8\^3 x 8, slat_gaussian 16\^3 x 8"):
    release_writer.write_release(tmp_path / "out", in_memory("geometry", 2), None, second)


def test_a_model_of_the_first_stage_is_none_of_the_second(runs, tmp_path, capsys):
  assert export(runs / "geometry", tmp_path / "out", second=[runs / "vae"]) == 2
  assert "holds a structure_vae model, which is none of the second stage" in capsys.readouterr().err


def test_adapters_and_averages_of_the_second_stage_are_chosen_too(runs, tmp_path, capsys):
  # a run with an average and one adapted kernel
  config = tiny_config("texture")
  config.lora = ConfigDict({"targets": "flow/time/out", "rank": 2, "alpha": 4.0})
  average = random_params(config, 0)
  width_in, width_out = average["flow/time/out/kernel"].shape
  shapes = {"flow/time/out/lora_a": (width_in, 2), "flow/time/out/lora_b": (2, width_out)}
  factors = normal_arrays(shapes, seed=9)
  raw = {path: 0 * array for path, array in average.items()} | factors
  state = {"params": raw, "ema": {"0.9": average | factors}}
  run = str(tmp_path / "run")
  writer = Checkpointer(run)
  writer.save(5, state, {"config": config.to_dict(), "lineage": {}})
  writer.close()

  out = tmp_path / "out"
  assert export(runs / "geometry", out, "--safetensors", second=[run]) == 2
  assert "--merge_lora" in capsys.readouterr().err
  assert export(runs / "geometry", out, "--safetensors", "--merge_lora", second=[run]) == 0
  file = load.open_state(out / "slat_generator.safetensors")
  a, b = factors.values()
  merged = average["flow/time/out/kernel"] + 2 * a @ b  # alpha / rank = 2
  stored = file.read("_base_models.generator.reverse_fn.backbone.t_embedder.mlp.2.weight")
  np.testing.assert_allclose(stored, merged.T, rtol=1e-5, atol=1e-5)

  # and the parameters themselves
  raw_out = tmp_path / "raw"
  code = export(
    runs / "geometry", raw_out, "--safetensors", "--merge_lora", second=[run], second_which="raw"
  )
  assert code == 0
  assert load.file_digest(raw_out / "slat_generator.safetensors") != load.file_digest(
    out / "slat_generator.safetensors"
  )


def test_the_record_and_the_card_name_every_model(second_stage):
  folder = second_stage / "fp32"
  record = json.loads((folder / "release.json").read_text())
  assert [one["config"]["model"]["name"] for one in record["second_stage"]] == [
    "texture",
    "slat_vae",
    "slat_gaussian",
    "slat_mesh",
  ]
  for one in record["second_stage"]:
    for name in one["parts"]:
      entry = record["parts"][name]
      assert entry["origin"] == one["checkpoint"]
      assert entry["sha256"] == load.file_digest(folder / entry["file"])
  text = (folder / "MODEL_CARD.md").read_text()
  assert "| texture | `slat_generator` |" in text
  assert "| slat_vae | `slat_encoder`, `slat_decoder_gs` |" in text
  assert f"autoencoder `{record['slat']['autoencoder']}`" in text


def test_every_kind_of_the_second_stage_has_latents_of_the_same_size():
  sizes = {parts.latents_of(tiny_config(name).model, parts.SLAT) for name in PARTS.values()}
  assert sizes == {(8, 8)}
