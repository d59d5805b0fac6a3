"""Laws of `launch.inspect`."""

import hashlib
import json

import numpy as np
import pytest

from launch import inspect
from sam3d_jax.torch_bridge import stream


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A checkpoint with a lineage of two parents, and its parameters."""
  folder = tmp_path_factory.mktemp("run")
  rng = np.random.default_rng(0)
  params = {
    "b/kernel": rng.standard_normal((3, 4), dtype=np.float32),
    "b/bias": np.zeros(4, np.float32),
    "a/x/scale": np.ones((), np.float32),
  }

  # imported, pre-trained, fine-tuned
  imported = {
    "stage": "import",
    "source": "release",
    "files": {"ss_generator.ckpt": "cafe"},
  }
  pretrained = {
    "stage": "pretrain",
    "datasets": {"iso_3do": {"digest": "beef"}},
    "seed": 3,
    "parents": [
      {"path": "imported", "step": 0, "which": "raw", "digest": "00", "lineage": imported}
    ],
  }
  tuned = {
    "stage": "sft",
    "parents": [
      {"path": "before", "step": 9, "which": "ema", "digest": "11", "lineage": pretrained}
    ],
  }
  meta = {"config": {"model": {"name": "geometry"}}, "lineage": tuned}
  stream.write_params(folder, params, meta)
  return folder, params


def lines(capsys, *argv) -> list[str]:
  """What the command prints."""
  assert inspect.main([str(word) for word in argv]) == 0
  printed = capsys.readouterr().out
  return printed.splitlines()


def test_digests_are_sorted_and_are_those_of_the_arrays(run, capsys):
  folder, params = run
  expected = []
  for path, shape in {"a/x/scale": "()", "b/bias": "(4)", "b/kernel": "(3,4)"}.items():
    content = params[path].tobytes()
    digest = hashlib.sha256(content).hexdigest()
    expected.append(f"params/{path} float32 {shape} {digest}")
  assert lines(capsys, "--checkpoint", folder, "--digest") == expected


def test_the_tree_shows_every_array_and_the_total(run, capsys):
  folder, _ = run
  text = lines(capsys, "--checkpoint", folder)
  assert "step 0, model geometry, stage sft, digest" in text[0]
  assert text[2:] == [
    "params/  17",
    "  a/  1",
    "    x/  1",
    "      scale  () float32",
    "  b/  16",
    "    bias  (4,) float32",
    "    kernel  (3, 4) float32",
    "3 arrays, 17 values, 0.0 MiB",
  ]


def test_the_lineage_goes_back_to_the_files_it_began_with(run, capsys):
  folder, _ = run
  text = lines(capsys, "--checkpoint", folder, "--lineage")
  stages = []
  for line in text:
    if "stage " in line:
      stages.append(line.rpartition("stage ")[2])
  assert stages == ["sft", "pretrain", "import"]
  whole = "\n".join(text)
  assert "ss_generator.ckpt sha256 cafe" in whole
  assert "beef" in whole


def test_release_keys_are_the_published_ones(shared_dir, capsys):
  file = shared_dir / "golden" / "state_dict_full_keys.json"
  golden = json.loads(file.read_text())
  text = lines(capsys, "--config", "configs/pretrain_geometry.py", "--release_keys")
  printed = json.loads("\n".join(text))
  assert set(printed) == {"ss_generator", "ss_condition_embedder", "ss_decoder", "ss_encoder"}
  for part, names in printed.items():
    entries = golden[part]["entries"]
    assert names == {entry["name"]: entry["shape"] for entry in entries}


def test_a_configuration_is_shown_without_building_it(capsys):
  text = lines(capsys, "--config", "configs/vae_structure.py")
  assert text[0] == "model structure_vae, stage train_vae"
  assert "132.969 M values" in text[-1]


@pytest.mark.parametrize(
  "argv, words",
  [
    ([], "exactly one"),
    (["--checkpoint", "x", "--data", "y"], "exactly one"),
    (["--data", "x", "--digest"], "--checkpoint DIR"),
    (["--checkpoint", "x", "--release_keys"], "--config FILE"),
    (["--checkpoint", "/nonexistent"], "no checkpoint"),
  ],
)
def test_what_cannot_be_shown_is_an_input_error(argv, words, capsys):
  assert inspect.main(argv) == 2
  assert words in capsys.readouterr().err
