"""A work folder whose newest step was copied in part: every reading command names that step and
takes the one before, or says what to do.
"""

import json
import pathlib
import shutil

import pytest

from launch import export_torch, inspect
from sam3d_jax.errors import InputError
from sam3d_jax.inference import structure_encoder, weights
from sam3d_jax.torch_bridge import export
from sam3d_jax.training import checkpoint_steps
from tests.support import tiny_weights

NAMED = "step 9999 is damaged"


def _half_copied(folder: str, meta: bool) -> pathlib.Path:
  """Adds a newest step of which an empty folder of arrays arrived, with or without its meta."""
  step = pathlib.Path(folder) / "checkpoints" / "9999"
  (step / "state").mkdir(parents=True)
  if meta:
    whole = checkpoint_steps.read_meta(folder, 0)
    del whole["seal"], whole["format"]
    shapes, sums = checkpoint_steps.shapes_of(whole), whole["checksums"]
    (step / "meta").mkdir()
    text = json.dumps(checkpoint_steps.make_meta(whole, 9999, shapes, sums))
    (step / "meta" / "metadata").write_text(text)
  return pathlib.Path(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Work folders of a Geometry model and a structure VAE, each of one step."""
  folder = tmp_path_factory.mktemp("whole")
  tiny_weights.save_random(
    "configs/pretrain_geometry.py:fake", tiny_weights.GEOMETRY, folder / "geometry"
  )
  tiny_weights.save_vae(folder / "vae")
  return folder


@pytest.fixture(params=["state alone", "state and meta"])
def halves(request, whole, tmp_path):
  """Copies of both, with a newest step that is not whole."""
  shutil.copytree(whole, tmp_path / "runs")
  for name in ("geometry", "vae"):
    _half_copied(str(tmp_path / "runs" / name), meta=request.param != "state alone")
  return tmp_path / "runs"


def test_sampling_takes_the_step_before(halves, capsys):
  predictor = weights.from_checkpoint(str(halves / "geometry"), str(halves / "vae"))
  assert predictor.identity["step"] == 0
  said = capsys.readouterr().err
  assert said.count(f"geometry: {NAMED}") == said.count(f"vae: {NAMED}") == 1


def test_encoding_takes_the_step_before(halves, capsys):
  encoder = structure_encoder.from_checkpoint(str(halves / "vae"), which="ema", batch_size=2)
  assert encoder.step == 0
  assert NAMED in capsys.readouterr().err


@pytest.mark.parametrize("view", [[], ["--digest"], ["--lineage"]])
def test_inspecting_takes_the_step_before(halves, capsys, view):
  assert inspect.main(["--checkpoint", str(halves / "vae"), *view]) == 0
  out, said = capsys.readouterr()
  assert NAMED in said and "step 9999" not in out


def test_inspecting_the_step_itself_says_what_to_do(halves, capsys):
  assert inspect.main(["--checkpoint", str(halves / "vae"), "--step", "9999"]) == 2
  assert "copy it again, or give another --step" in capsys.readouterr().err


def test_an_export_takes_the_step_before(halves, capsys):
  model = export.open_model(export.Source(str(halves / "vae"), "ema"))
  assert model.lineage["parents"][0]["step"] == 0
  assert NAMED in capsys.readouterr().err


def test_an_export_of_an_array_that_is_damaged_ends_with_2(whole, tmp_path, capsys):
  shutil.copytree(whole / "vae", tmp_path / "vae")
  state = tmp_path / "vae" / "checkpoints" / "0" / "state"
  files = [file for file in state.rglob("d/*") if file.is_file()]
  largest = max(files, key=lambda file: file.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(bytes(data))
  argv = ["--checkpoint", str(tmp_path / "vae"), "--out", str(tmp_path / "out")]
  assert export_torch.main(argv) == 2
  assert "step 0 is damaged" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_without_a_whole_step_the_folder_is_named(whole, tmp_path):
  shutil.copytree(whole / "vae", tmp_path / "vae")
  shutil.rmtree(tmp_path / "vae" / "checkpoints" / "0" / "state")
  with pytest.raises(InputError, match="none of the 1 checkpoints in .*vae"):
    structure_encoder.from_checkpoint(str(tmp_path / "vae"), which="ema", batch_size=2)
