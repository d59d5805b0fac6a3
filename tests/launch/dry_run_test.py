"""Every command has --dry_run: it checks what it can, says what it would do, and writes nothing."""

import importlib
import os
import pathlib
import tomllib

import pytest

from data_pipelines.engine import project
from launch import ladder
from launch.console import cli
from tests.support import sampling, tiny_dataset, tiny_release, tiny_weights

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
FAKE = "configs/pretrain_geometry.py:fake"
SPLIT = ["--split", "train", "--out", "{new}"]
SPEC = str(ROOT / "tests/golden/cluster/gpu.yaml")

# command -> what it is called with; {name} is an input of `inputs`, {new} no folder yet
CALLS = {
  "annotate": ["--project", "{engine}", "--port", "8765"],
  "aot": ["--config", FAKE, "--topology", "v5p:2x2x1"],
  "benchmark": ["--config", FAKE],
  "build_data": [
    "--config",
    "configs/data/iso_3do.py:tiny",
    "--config.out={new}",
    "--config.procedural.count=3",
  ],
  "cluster": ["--spec", "{spec}", "--out", "{new}"],
  "distill": ["--config", "configs/distill_geometry.py", "--workdir", "{new}", "--devices", "64"],
  "dpo": ["--config", "configs/dpo_geometry.py", "--workdir", "{new}", "--devices", "128"],
  "encode_latents": ["--data", "{data}", "--checkpoint", "{full_vae}", "--out", "{new}"],
  "engine": ["create", "--project", "{new}"],
  "evaluate": ["--pairs", "{pairs}", "--out", "{new}"],
  "export_torch": ["--checkpoint", "{run}", "--out", "{new}", "--safetensors"],
  "import_torch": ["--from", "{release}", "--workdir", "{new}"],
  "inspect": ["--checkpoint", "{geometry}"],
  "ladder": ["--workdir", "{new}"],
  "make_examples": ["objects", "--out", "{new}", "--count", "2"],
  "plan": ["--on", "8xH100"],
  "pretrain": ["--config", "configs/pretrain_geometry.py", "--workdir", "{new}", "--devices", "8"],
  "quickstart": ["--workdir", "{new}"],
  "render": ["--input", "{mesh}", "--out", "{new}.png"],
  "sample": ["--checkpoint", "{geometry}", "--decoder", "{vae}", "{photo}", "--out", "{new}"],
  "sft": ["--config", "configs/sft_geometry.py", "--workdir", "{new}", "--devices", "v5p-256"],
  "sweep": ["--sweep", "configs/sweeps/lr.py", "--workdir", "{new}"],
  "train_vae": ["--config", "configs/vae_structure.py", "--workdir", "{new}", "--devices", "8"],
  "validate_data": ["--data", "{data}"],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
  """What the commands read, by the names in CALLS; a list stands for several words."""
  folder = tmp_path_factory.mktemp("inputs")
  geometry = tiny_weights.save_random(FAKE, tiny_weights.GEOMETRY, folder / "geometry")
  full_size = ("--config.model.resolution=64", "--config.model.channels=(4,8)")

  # what is exported and imported
  config = tiny_release.tiny_config("geometry")
  params = tiny_release.random_params(config, seed=0)
  tiny_release.save_run(folder / "run", config, params, {"stage": "test", "parents": []})
  assert tiny_release.export(folder / "run", folder / "release", "--safetensors") == 0

  # what is read
  tiny_dataset.write_dataset(folder / "data", 3)
  sampling.write_cup_photo(folder)
  (folder / "pairs" / "cup").mkdir(parents=True)
  (folder / "pairs" / "cup" / "truth.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
  engine = folder / "engine"
  project.create(engine, project.Settings()).close()
  return {
    "engine": str(engine),
    "geometry": geometry,
    "vae": tiny_weights.save_vae(folder / "vae"),
    "full_vae": tiny_weights.save_random(
      "configs/vae_structure.py:fake", full_size, folder / "full_vae"
    ),
    "run": str(folder / "run"),
    "release": str(folder / "release"),
    "data": str(folder / "data"),
    "pairs": str(folder / "pairs"),
    "mesh": str(folder / "pairs" / "cup" / "truth.obj"),
    "photo": sampling.photo_flags(folder, "cup"),
    "spec": SPEC,
  }


def main_of(name: str):
  """The function of a command."""
  module, _, function = SCRIPTS[f"sam3d-{name}"].partition(":")
  return getattr(importlib.import_module(module), function)


def words_of(call: list[str], inputs: dict, new: pathlib.Path) -> list[str]:
  """The words of a call, with the inputs in their places."""
  words = []
  for word in call:
    value = inputs.get(word.strip("{}"))
    if isinstance(value, list):
      words += value
    else:
      words.append(word.format(new=new, **inputs))
  return words


def files_below(*folders: pathlib.Path) -> set[tuple[str, int]]:
  """(path, time of the last change) of everything below some folders."""
  found = set()
  for folder in folders:
    for path in folder.rglob("*"):
      found.add((str(path), os.stat(path).st_mtime_ns))
  return found


def test_the_calls_below_are_of_all_commands():
  assert {f"sam3d-{name}" for name in CALLS} == set(SCRIPTS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_dry_run_of_every_command_says_what_it_would_do_and_writes_nothing(
  name, inputs, tmp_path, monkeypatch, capsys
):
  read = pathlib.Path(inputs["run"]).parent
  monkeypatch.chdir(tmp_path)
  before = files_below(tmp_path, read)
  words = words_of(CALLS[name], inputs, tmp_path / "some" / "new")
  assert main_of(name)([*words, "--dry_run"]) == 0, capsys.readouterr().err
  assert capsys.readouterr().out
  assert files_below(tmp_path, read) == before


@pytest.mark.parametrize(
  "name, call",
  [
    ("evaluate", ["--benchmark", "procedural_1:1", "--oracle", "--out", "{new}"]),
    ("sample", ["--checkpoint", "{geometry}", "--decoder", "{vae}", "--data", "{data}", *SPLIT]),
    ("make_examples", ["benchmark", "--name", "new_1"]),
    ("inspect", ["--compare", "{geometry}", "{geometry}"]),
    ("benchmark", ["--reading"]),
  ],
)
def test_other_modes_of_a_command_write_nothing_either(
  name, call, inputs, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert main_of(name)([*words_of(call, inputs, tmp_path / "new"), "--dry_run"]) == 0
  assert capsys.readouterr().out
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", sorted(ladder.OWN_STEPS))
def test_a_dry_run_of_the_ladders_own_steps_writes_nothing(step, inputs, tmp_path, capsys):
  words = ["--data", inputs["data"], "--out", str(tmp_path / "new"), "--dry_run"]
  if step != "rated":
    words += ["--checkpoint", inputs["geometry"], "--decoder", inputs["vae"]]
  assert ladder.main([step, *words]) == 0, capsys.readouterr().err
  assert "would write" in capsys.readouterr().out
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("sample", ["--decoder", "{geometry}"], "a structure_vae is needed"),
    ("sample", ["--decoder", "{full_vae}"], "the decoder takes latents of"),
    ("sample", ["--decoder", "nowhere"], "nowhere"),
    ("sample", ["--which", "ema:0.5"], "no average of decay 0.5"),
    ("encode_latents", ["--checkpoint", "{geometry}"], "a structure_vae is needed"),
    ("evaluate", ["--pairs", "nowhere"], "--pairs nowhere is not a folder"),
    ("export_torch", ["--out", "{run}"], "is not an empty folder"),
    ("export_torch", ["--step", "7"], "has no checkpoint of step 7"),
    ("import_torch", ["--workdir", "{run}"], "already holds a checkpoint"),
    ("aot", ["--topology", "v9:2x2"], "'v9' is not one of"),
    ("validate_data", ["--data", "nowhere"], "nowhere"),
    ("inspect", ["--checkpoint", "nowhere"], "nowhere holds no checkpoint"),
    ("build_data", ["--config.out={data}"], "it was not made by this command"),
    ("build_data", ["--config.out={spec}/x"], "is no folder that you may write to"),
    ("quickstart", ["--workdir", "{spec}/x"], "is no folder that you may write to"),
    # the kernel's views, which a superuser has the right to write to
    ("sample", ["--out", "/proc/samples"], "/proc is no folder that you may write to"),
    ("build_data", ["--config.out=/sys/kernel/data"], "is no folder that you may write to"),
  ],
)
def test_a_dry_run_finds_what_would_stop_the_command(
  name, change, message, inputs, tmp_path, capsys
):
  words = words_of([*CALLS[name], *change], inputs, tmp_path / "new")
  assert main_of(name)([*words, "--dry_run"]) == cli.EXIT_BAD_INPUT
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  "name, call, messages",
  [
    (
      "encode_latents",
      ["--data", "no_data", "--checkpoint", "no_vae"],
      ["--data no_data does not exist", "--checkpoint no_vae holds no checkpoint"],
    ),
    # what is there is looked at although something else is missing
    (
      "encode_latents",
      ["--data", "no_data", "--checkpoint", "{geometry}"],
      ["--data no_data does not exist", "a structure_vae is needed"],
    ),
    (
      "sample",
      ["--checkpoint", "no_run", "--decoder", "no_vae", "--data", "no_data"],
      ["--data no_data", "--checkpoint no_run holds no", "--decoder no_vae holds no"],
    ),
    (
      "sample",
      ["--release", "no_release", "--image", "no.png", "--mask", "no_mask.png"],
      ["no_release is not there", "photo no.png: no such file"],
    ),
    (
      "sample",
      ["--checkpoint", "{geometry}", "--decoder", "{full_vae}", "--data", "no_data"],
      ["--data no_data", "the decoder takes latents of"],
    ),
    (
      "evaluate",
      ["--samples", "no_samples", "--data", "no_data", "--train_data", "no_train"],
      ["no_samples/samples.npz", "--data no_data", "--train_data no_train"],
    ),
    (
      "evaluate",
      ["--photos", "no_photos", "--checkpoint", "no_run"],
      ["--photos no_photos", "--checkpoint no_run holds no"],
    ),
  ],
)
def test_a_dry_run_names_everything_that_is_missing(
  name, call, messages, inputs, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  words = words_of(call, inputs, tmp_path / "new")
  assert main_of(name)([*words, "--out", "new", "--dry_run"]) == cli.EXIT_BAD_INPUT
  said = capsys.readouterr().err
  missing = [message for message in messages if message not in said]
  assert not missing, said
  assert list(tmp_path.iterdir()) == []
