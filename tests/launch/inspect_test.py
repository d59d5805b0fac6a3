"""Laws of `launch.inspect`."""

import hashlib
import json

import numpy as np
import pytest

from launch import inspect
from sam3d_jax.torch_bridge import stream
from sam3d_jax.training import checkpoint_params
from tests.support import tiny_checkpoints, tiny_dataset


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


FIRST_STAGE = {"ss_generator", "ss_condition_embedder", "ss_decoder", "ss_encoder"}
SECOND_STAGE = {
  "slat_generator",
  "slat_condition_embedder",
  "slat_encoder",
  "slat_decoder_gs",
  "slat_decoder_gs_4",
  "slat_decoder_mesh",
}


@pytest.mark.parametrize(
  "config, parts",
  [
    ("pretrain_geometry", FIRST_STAGE),
    ("pretrain_texture", SECOND_STAGE),
    ("vae_slat", {"slat_encoder", "slat_decoder_gs"}),
    ("vae_slat_gaussian", {"slat_decoder_gs_4"}),
    ("vae_slat_mesh", {"slat_decoder_mesh"}),
  ],
)
def test_release_keys_are_the_published_ones(shared_dir, config, parts, capsys):
  file = shared_dir / "golden" / "state_dict_full_keys.json"
  golden = json.loads(file.read_text())
  text = lines(capsys, "--config", f"configs/{config}.py", "--release_keys")
  printed = json.loads("\n".join(text))
  assert set(printed) == parts
  for part, names in printed.items():
    entries = golden[part]["entries"]
    assert names == {entry["name"]: entry["shape"] for entry in entries}


def test_a_configuration_is_shown_without_building_it(capsys):
  text = lines(capsys, "--config", "configs/vae_structure.py")
  assert text[0] == "model structure_vae, stage train_vae"
  assert "132.969 M values" in text[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run with averages and frozen parameters, and an import of its slowest average."""
  folder = tmp_path_factory.mktemp("trained")
  tiny_checkpoints.saved(folder / "run", 3)
  params = checkpoint_params.load_params(folder / "run", which="ema")
  stream.write_params(folder / "import", params, tiny_checkpoints.META)
  return folder / "run", folder / "import"


def test_the_digests_of_an_average_are_those_of_a_checkpoint_that_holds_nothing_else(
  trained, capsys
):
  run, imported = trained
  average = lines(capsys, "--checkpoint", run, "--digest", "--which", "ema")
  assert average == lines(capsys, "--checkpoint", imported, "--digest")
  assert [line.split()[0] for line in average] == [
    "params/a/kernel",
    "params/b/bias",
    "params/c/x",
  ]
  raw = lines(capsys, "--checkpoint", run, "--digest", "--which", "raw")
  assert raw[0] != average[0]
  # what is frozen has no average
  assert raw[2] == average[2]


def test_equal_parameters_are_identical_whatever_else_a_checkpoint_holds(trained, capsys):
  run, imported = trained
  assert lines(capsys, "--compare", run, imported) == [
    f"A {run} step 3 (ema)",
    f"B {imported} step 0 (ema)",
    "identical: 3 arrays, 43 values",
  ]


def test_what_differs_is_named_with_its_size_the_largest_first(trained, tmp_path, capsys):
  run, imported = trained
  params = checkpoint_params.load_params(imported)
  kernel = params["a/kernel"].copy()
  kernel[3, 1] += 0.5
  params["a/kernel"] = kernel
  params["b/bias"] = params["b/bias"] + 2
  params["d/new"] = params.pop("c/x")
  stream.write_params(tmp_path, params, tiny_checkpoints.META)

  assert inspect.main(["--compare", str(run), str(tmp_path)]) == 1
  said = capsys.readouterr().out.splitlines()
  assert said[2:] == [
    "  c/x: only in A",
    "  d/new: only in B",
    "  b/bias: 5 of 5 values, by 2 at most (of values up to 6)",
    "  a/kernel: 1 of 32 values, by 0.5 at most (of values up to 186)",
    "4 of 4 arrays differ",
  ]

  # against other parameters of the same run
  argv = ["--compare", str(run), str(imported), "--which", "raw"]
  assert inspect.main(argv) == 1
  assert "2 of 3 arrays differ" in capsys.readouterr().out


def test_adapters_are_compared_as_what_they_make_of_their_kernels(tmp_path, capsys):
  rng = np.random.default_rng(0)
  plain = {"q/kernel": rng.standard_normal((4, 4), dtype=np.float32)}
  adapters = {
    "q/lora_a": rng.standard_normal((4, 2), dtype=np.float32),
    "q/lora_b": np.zeros((2, 4), np.float32),
  }
  meta = {"config": {"lora": {"targets": "q", "rank": 2, "alpha": 2.0}}, "lineage": {}}
  stream.write_params(tmp_path / "adapted", plain | adapters, meta)
  stream.write_params(tmp_path / "plain", plain, meta)
  text = lines(capsys, "--compare", tmp_path / "adapted", tmp_path / "plain")
  assert text[-1] == "identical: 1 arrays, 16 values"


def test_a_release_folder_is_to_be_imported_before_it_is_compared(trained, tmp_path, capsys):
  (tmp_path / "pipeline.yaml").write_text("")
  assert inspect.main(["--compare", str(trained[0]), str(tmp_path)]) == 2
  assert "python -m launch.import_torch --from" in capsys.readouterr().err


@pytest.mark.parametrize(
  "argv, words",
  [
    ([], "exactly one"),
    (["--compare", "x", "y", "--data", "z"], "exactly one"),
    (["--compare", "x", "y", "--digest"], "--checkpoint DIR"),
    (["--checkpoint", "x", "--which", "raw"], "--digest or --compare"),
    (["--data", "x", "--step", "1"], "--step goes with"),
    (["--compare", "/nonexistent", "y"], "no checkpoint"),
    (["--checkpoint", "x", "--data", "y"], "exactly one"),
    (["--data", "x", "--digest"], "--checkpoint DIR"),
    (["--checkpoint", "x", "--release_keys"], "--config FILE"),
    (["--checkpoint", "/nonexistent"], "no checkpoint"),
  ],
)
def test_what_cannot_be_shown_is_an_input_error(argv, words, capsys):
  assert inspect.main(argv) == 2
  assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quarantine.jsonl", "build.json"])
@pytest.mark.parametrize("content", [b'{"reason"', b"\xff\xfe\x00"])
def test_a_damaged_file_of_a_dataset_is_named(tmp_path, capsys, name, content):
  folder = tiny_dataset.write_dataset(tmp_path / "d", 1)
  (folder / name).write_bytes(content)
  assert inspect.main(["--data", str(folder)]) == 2
  assert name in capsys.readouterr().err
