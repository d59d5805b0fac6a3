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
  imported = {"stage": "import", "source": "release", "files": {"ss_generator.ckpt": "cafe"}}
  first = {
    "stage": "pretrain",
    "datasets": {"iso_3do": {"digest": "beef"}},
    "seed": 3,
    "parents": [
      {"path": "imported", "step": 0, "which": "raw", "digest": "00", "lineage": imported}
    ],
  }
  lineage = {
    "stage": "sft",
    "parents": [{"path": "before", "step": 9, "which": "ema", "digest": "11", "lineage": first}],
  }
  stream.write_params(
    folder, params, {"config": {"model": {"name": "geometry"}}, "lineage": lineage}
  )
  return folder, params


def lines(capsys, *argv) -> list[str]:
  assert inspect.main([str(a) for a in argv]) == 0
  return capsys.readouterr().out.splitlines()


def test_digests_are_sorted_and_are_those_of_the_arrays(run, capsys):
  folder, params = run
  shapes = {"a/x/scale": "()", "b/bias": "(4)", "b/kernel": "(3,4)"}
  digest = lambda path: hashlib.sha256(params[path].tobytes()).hexdigest()
  expected = [f"params/{path} float32 {shape} {digest(path)}" for path, shape in shapes.items()]
  assert lines(capsys, "--checkpoint", folder, "--digest") == expected


def test_the_tree_shows_every_array_and_the_total(run, capsys):
  text = lines(capsys, "--checkpoint", run[0])
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
  text = lines(capsys, "--checkpoint", run[0], "--lineage")
  stages = [line.rpartition("stage ")[2] for line in text if "stage " in line]
  assert stages == ["sft", "pretrain", "import"]
  assert any("ss_generator.ckpt sha256 cafe" in line for line in text) and any(
    "beef" in line for line in text
  )


def test_release_keys_are_the_published_ones(shared_dir, capsys):
  golden = json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())
  printed = json.loads(
    "\n".join(lines(capsys, "--config", "configs/pretrain_geometry.py", "--release_keys"))
  )
  assert set(printed) == {"ss_generator", "ss_condition_embedder", "ss_decoder", "ss_encoder"}
  for part, names in printed.items():
    assert names == {e["name"]: e["shape"] for e in golden[part]["entries"]}


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
