"""A further kind of model is entries in tables: it trains, resumes, draws and is published by the
code that is there, and few files have to know it.
"""

import json
import pathlib
import sys

import numpy as np
import pytest

from launch import export_torch, pretrain
from sam3d_jax.models import parameters
from sam3d_jax.torch_bridge import load, release
from sam3d_jax.training import checkpoint_params, checkpoint_steps
from tests.support import jobs, tiny_dataset, toy_model

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("sam3d_jax", "data_pipelines", "launch", "configs")
CONFIG = str(ROOT / "tests/support/toy_config.py")
FILES = 8  # that may have to know a further model, besides its own


def train(workdir: pathlib.Path, *overrides: str) -> int:
  argv = ["--config", CONFIG, "--workdir", str(workdir), *overrides]
  return pretrain.main(argv)


@pytest.fixture(scope="module")
def toy():
  with pytest.MonkeyPatch.context() as patch:
    toy_model.register(patch)
    yield


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("toy") / "unbroken"
  assert train(workdir) == 0
  return workdir


def contents(value) -> object:
  """What of a global can tell that something was added to it or that it was replaced."""
  if isinstance(value, dict):
    return {key: id(entry) for key, entry in value.items()}
  if isinstance(value, (list, set)):
    return [id(entry) for entry in value]
  return id(value)


def place(module: str, value) -> object:
  """Where a global lives: a table that several modules import is one place, by its identity."""
  return id(value) if isinstance(value, (dict, list, set)) else module


def globals_of_the_tree() -> dict[tuple[str, str], tuple[object, object]]:
  """(module, global or attribute of a class) -> (place, contents), for all modules in memory."""
  found = {}
  for name, module in sorted(sys.modules.items()):
    package, _, _ = name.partition(".")
    if package not in PACKAGES:
      continue
    for key, value in vars(module).items():
      found[name, key] = place(name, value), contents(value)
      # Classes are looked into where they are defined.
      if isinstance(value, type) and value.__module__ == name:
        for attribute, inner in vars(value).items():
          found[name, f"{key}.{attribute}"] = name, contents(inner)
  return found


def changed_places(change) -> dict[object, list[str]]:
  """Place -> names of the globals that `change()` changes there. A file with two tables is two."""
  before = globals_of_the_tree()
  change()
  after = globals_of_the_tree()
  places: dict[object, list[str]] = {}
  for name in before.keys() | after.keys():
    then, now = before.get(name), after.get(name)
    if then == now:
      continue
    where, _ = now or then
    places.setdefault(where, []).append(".".join(name))
  return places


def test_a_further_model_is_entries_in_at_most_eight_files():
  with pytest.MonkeyPatch.context() as patch:
    places = changed_places(lambda: toy_model.register(patch))
  tables = sorted(places.values())
  assert any("sam3d_jax.models.registry.MODELS" in names for names in tables)
  assert len(tables) <= FILES, tables


def test_no_file_outside_its_own_names_the_toy_model():
  naming = []
  for package in PACKAGES:
    for path in (ROOT / package).rglob("*.py"):
      text = path.read_text()
      if "toy_model" in text or '"toy"' in text:
        naming.append(path)
  assert naming == []


def test_it_trains_and_draws_its_preview_while_it_trains(unbroken):
  rows = jobs.metric_rows(unbroken)
  assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
  assert checkpoint_steps.steps(unbroken) == [2, 4]

  # The picture of each evaluation is of the numbers that were logged with it.
  files = sorted((unbroken / "previews").iterdir())
  drawn = [json.loads(file.read_text()) for file in files]
  evaluated = [row for row in rows if "eval/loss" in row]
  shown = [[row["eval/toy_mean"], row["eval/toy_extent"]] for row in evaluated]
  assert drawn == shown
  first, second = drawn
  assert first != second


def test_it_resumes_bit_for_bit(unbroken, tmp_path):
  assert train(tmp_path / "run", "--config.steps=2") == 0
  assert train(tmp_path / "run") == 0
  jobs.assert_same_run(unbroken, tmp_path / "run")


def test_it_reads_records_of_a_dataset(toy, tmp_path):
  data = tiny_dataset.write_dataset(tmp_path / "data", 4)
  run = tmp_path / "run"
  code = train(
    run,
    "--config.steps=1",
    "--config.eval.every=0",
    "--config.data.kind=shards",
    f"--config.data.mixture={{'a': {{'path': '{data}', 'weight': 1.0}}}}",
  )
  assert code == 0
  assert checkpoint_steps.steps(run) == [1]


def test_it_is_published_and_read_back(unbroken, tmp_path):
  module, config = checkpoint_params.restore_model(unbroken)
  params = parameters.flat_params(module)
  out = tmp_path / "release"
  argv = ["--checkpoint", str(unbroken), "--out", str(out), "--safetensors"]
  assert export_torch.main(argv) == 0

  # Under its published names, and back.
  file = out / "toy.safetensors"
  assert load.open_state(file).shapes["hidden.weight"] == (8, 3)
  back = release.open_file(file, config.model)
  assert set(back) == set(params)
  for path, value in params.items():
    np.testing.assert_array_equal(back[path], value)


def test_a_wrong_objective_is_refused_with_the_models_that_it_trains(toy, tmp_path, capsys):
  assert train(tmp_path, "--config.objective.name=flow_matching") == 2
  assert "does not train a model of kind 'toy', but geometry" in capsys.readouterr().err
