"""What the tests of release folders share: runs to export, and a release as users download it."""

import pathlib

import pytest
import torch
import yaml

from sam3d_jax.models import parameters
from sam3d_jax.torch_bridge import parts
from tests.support.tiny_release import STAGE_2, export, random_params, save_run, tiny_config


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> pathlib.Path:
  """Folder with a VAE run, a Geometry run trained on its latents, and the release made of both.

  Tests only read it.
  """
  folder = tmp_path_factory.mktemp("runs")

  # the autoencoder
  vae = tiny_config("structure_vae")
  vae_params = random_params(vae, 0)
  save_run(folder / "vae", vae, vae_params, {"stage": "train_vae"})

  # a flow model whose lineage names it
  latents = {
    "autoencoder": parameters.params_digest(vae_params),
    "mean": [0.0] * 8,
    "std": [1.0] * 8,
  }
  lineage = {
    "stage": "pretrain",
    "parents": [],
    "datasets": {"iso_3do": {"name": "iso_3do", "latents": latents}},
  }
  geometry = tiny_config("geometry")
  save_run(folder / "geometry", geometry, random_params(geometry, 1), lineage)

  assert export(folder / "geometry", folder / "release", vae=folder / "vae") == 0
  return folder


# models of the second stage, in the order in which they are given
SECOND = ("texture", "slat_vae", "slat_gaussian", "slat_mesh")


@pytest.fixture(scope="session")
def second_stage(runs, tmp_path_factory) -> pathlib.Path:
  """Folder with a run of every model of the second stage, and releases of both stages: fp32 and
  fp16.

  Tests only read it.
  """
  folder = tmp_path_factory.mktemp("second_stage")
  vae = tiny_config("slat_vae")
  vae_params = random_params(vae, 2)
  name = parts.latents_name(vae.model, vae_params)

  # a flow model and further decoders, trained on the autoencoder's latents
  latents = {"autoencoder": name, "mean": [0.5] * 8, "std": [2.0] * 8}
  lineage = {"stage": "pretrain", "parents": [], "datasets": {"views": {"slat": latents}}}
  texture = tiny_config("texture")
  with texture.ignore_type():
    texture.model.latent_statistics = {"mean": [0.5] * 8, "std": [2.0] * 8}
  save_run(folder / "texture", texture, random_params(texture, 3), lineage)
  save_run(folder / "slat_vae", vae, vae_params, {"stage": "train_vae"})
  for seed, kind in enumerate(("slat_gaussian", "slat_mesh")):
    decoder = tiny_config(kind)
    save_run(folder / kind, decoder, random_params(decoder, 4 + seed), lineage)

  for dtype in ("fp32", "fp16"):
    code = export(
      runs / "geometry",
      folder / dtype,
      vae=runs / "vae",
      second=[folder / one for one in SECOND],
      dtype=dtype,
    )
    assert code == 0
  return folder


@pytest.fixture
def published_like(runs, tmp_path) -> pathlib.Path:
  """A release folder with second-stage parts and a licence, and no release.json: as a user
  downloads it.
  """
  folder = tmp_path / "published"
  folder.mkdir()

  # the first stage, without what the published release lacks
  lacking = ("release.json", "ss_encoder.ckpt", "ss_encoder.yaml")
  for path in (runs / "release").iterdir():
    if path.name not in lacking:
      (folder / path.name).write_bytes(path.read_bytes())

  # the second stage, of which nothing here knows more than that its files hold tensors
  pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
  for part in STAGE_2:
    torch.save({part: torch.zeros(2)}, folder / f"{part}.ckpt")
    (folder / f"{part}.yaml").write_text("_target_: sam3d_objects.model.backbone.Part\n")
    pipeline[f"{part}_ckpt_path"] = f"{part}.ckpt"
    pipeline[f"{part}_config_path"] = f"{part}.yaml"
  pipeline["slat_mean"] = [0.5] * 8
  pipeline["slat_cfg_strength"] = 1
  (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))

  (folder / "LICENSE").write_text("terms")
  return folder
