"""Laws of what cannot become a release: it is refused by name, and nothing is written."""

import re

import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.torch_bridge import release, release_writer
from tests.support.tiny_release import (
  SAFETENSORS,
  export,
  import_,
  in_memory,
  random_params,
  save_run,
  tiny_config,
)

# The published classes have no patches: key, value and remedy of what is refused.
FLOW_PATCH = r"model\.flow\.patch = 2: .*train one with model\.flow\.patch = 1"
VAE_PATCH = r"model\.patch = 2: .*train one with model\.patch = 1"


def test_a_flow_model_on_patches_is_not_exported(tmp_path, capsys):
  run, out = tmp_path / "run", tmp_path / "release"
  config = tiny_config("geometry")
  config.model.flow.patch = 2
  save_run(run, config, random_params(config, 0), {})

  assert export(run, out, "--safetensors") == 2
  message = capsys.readouterr().err
  assert re.search(FLOW_PATCH, message)
  assert f"{run}: model.flow.patch" in message
  assert not out.exists()


def test_a_structure_vae_on_patches_is_not_exported(runs, tmp_path, capsys):
  vae, out = tmp_path / "vae", tmp_path / "release"
  config = tiny_config("structure_vae")
  config.model.patch = 2
  save_run(vae, config, random_params(config, 0), {})

  # beside a flow model that could be
  assert export(runs / "geometry", out, "--safetensors", vae=vae) == 2
  message = capsys.readouterr().err
  assert re.search(VAE_PATCH, message)
  assert f"{vae}: model.patch" in message

  # alone
  assert export(vae, out, "--safetensors") == 2
  assert re.search(VAE_PATCH, capsys.readouterr().err)
  assert not out.exists()


def test_patches_of_both_models_are_refused_at_once(tmp_path):
  geometry = in_memory("geometry", 1, flow={"patch": 2})
  # its latents are those of the flow model, so that nothing but the patches is in the way
  vae = in_memory("structure_vae", 0, resolution=8, patch=2)
  with pytest.raises(InputError, match=f"(?s){FLOW_PATCH}.*{VAE_PATCH}"):
    release_writer.write_release(tmp_path / "release", geometry, vae, storage=SAFETENSORS)
  assert not list(tmp_path.iterdir())


def test_a_decoder_of_other_latents_is_refused_and_nothing_is_written(tmp_path):
  out = tmp_path / "release"
  right, wrong = in_memory("structure_vae", 0), in_memory("structure_vae", 5)
  latents = {"autoencoder": right.autoencoder}
  geometry = in_memory("geometry", 1, {"datasets": {"a": {"latents": latents}}})

  # of another autoencoder than the lineage names
  with pytest.raises(InputError, match="latents of autoencoder"):
    release_writer.write_release(out, geometry, wrong, storage=SAFETENSORS)
  assert not list(tmp_path.iterdir())

  # of that one
  record = release_writer.write_release(out, geometry, right, storage=SAFETENSORS)
  assert record["decoder"]["verified"]


def test_a_decoder_of_another_size_is_refused(tmp_path):
  geometry = in_memory("geometry", 1)
  vae = in_memory("structure_vae", 0, resolution=8)
  with pytest.raises(InputError, match=r"4\^3 x 8, the flow model's 2\^3 x 8"):
    release_writer.write_release(tmp_path / "release", geometry, vae)
  assert not list(tmp_path.iterdir())


def test_export_reports_every_misfit_of_all_models_at_once(tmp_path):
  geometry = in_memory("geometry", 1)
  vae = in_memory("structure_vae", 0)
  del geometry.shapes["flow/time/out/bias"]
  vae.shapes["decoder/stray"] = (3,)
  words = r"(?s)missing     flow/time/out/bias.*unexpected  decoder/stray"
  with pytest.raises(InputError, match=words):
    release_writer.write_release(tmp_path / "release", geometry, vae)
  assert not list(tmp_path.iterdir())


def test_mixed_latents_are_refused():
  a = {"latents": {"autoencoder": "a"}}
  b = {"latents": {"autoencoder": "b"}}
  with pytest.raises(InputError, match="two autoencoders, a and b"):
    release.latents_of({"datasets": {"a": a, "b": b}})
  parent = {"lineage": {"datasets": {"a": a}}}
  assert release.latents_of({"parents": [parent]}) == {"autoencoder": "a"}


def test_existing_outputs_are_left_alone(runs, capsys):
  geometry, folder = runs / "geometry", runs / "release"
  record = folder / "release.json"
  before = record.stat().st_mtime_ns
  assert export(geometry, folder, vae=runs / "vae") == 2
  assert import_(folder, geometry) == 2
  assert capsys.readouterr().err.count("error:") == 2
  assert record.stat().st_mtime_ns == before
