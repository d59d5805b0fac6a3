"""Meshes of a dataset against a reader that shares nothing with ours."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import trimesh

from data_pipelines.build import against
from data_pipelines.build.validation import Choice
from data_pipelines.synth import assets
from launch import build_data, validate_data
from sam3d_jax.errors import ConfigError
from tests.support.tiny_build import ROOT

ONE = against.Reading(np.array([1.0, 2.0, 3.0]), 12, 22.0, 0.5, np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
  "change, word",
  [
    ({"extents_3": np.array([1.0, 2.0, 3.001])}, "extents"),
    ({"extents_3": np.array([1.0, 2.0, np.nan])}, "extents"),
    ({"triangles": 11}, "triangles"),
    ({"area": 21.9}, "area"),
    ({"area": np.nan}, "area"),
    ({"textured": 0.0}, "textured"),
    ({"colour_3": np.array([0.1, 0.25, 0.3])}, "colour"),
  ],
)
def test_every_quantity_that_differs_is_named(change, word):
  (difference,) = against.differences(ONE, dataclasses.replace(ONE, **change))
  assert word in difference


def test_rounding_and_colours_that_one_reader_makes_up_are_no_difference():
  assert against.differences(ONE, ONE) == []
  close = dataclasses.replace(ONE, extents_3=ONE.extents_3 + 1e-5, colour_3=None)
  assert against.differences(ONE, close) == []


def record(name: str, key: str) -> dict:
  return {"lineage": json.dumps({"mesh": name}), "mesh_key": key}


def test_the_meshes_of_a_dataset_are_those_that_its_records_name():
  records = [record("a.glb", "1"), record("a.glb", "1"), record("b/c.obj", "2")]
  records += [record("procedural/0/mug-1", "3"), {"lineage": "", "mesh_key": ""}]
  chosen = [Choice("train", records, list(range(5)))]
  assert against.meshes_of(chosen) == {"a.glb": {"1"}, "b/c.obj": {"2"}}


def test_without_assimp_the_line_that_installs_it_is_said(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "assimp_py", None)
  with pytest.raises(ConfigError, match=r"pip install -r requirements-against\.txt"):
    list(against.compare(tmp_path, {}))
  with pytest.raises(ConfigError, match="no such folder"):
    list(against.compare(tmp_path / "lost", {}))


def test_our_reading_of_a_box_is_its_closed_form(tmp_path):
  box = trimesh.creation.box((1, 2, 3))
  box.visual.vertex_colors = np.tile([0, 255, 0, 255], (8, 1))
  box.export(tmp_path / "box.glb")
  reading = against.read(tmp_path / "box.glb")
  np.testing.assert_allclose(reading.extents_3, [1, 2, 3])
  assert (reading.triangles, reading.area, reading.textured) == (12, pytest.approx(22), 0)
  np.testing.assert_allclose(reading.colour_3, [0, 1, 0])


@pytest.fixture
def assimp():
  return pytest.importorskip("assimp_py", reason="pip install -r requirements-against.txt")


def test_assimp_reads_the_meshes_of_the_sample_folder_as_we_do(assimp, shared_dir):
  folder = shared_dir / "data" / "meshes"
  named = {}
  for path in folder.iterdir():
    if path.suffix.lower() in against.meshes.SUFFIXES:
      named[path.name] = {assets.load(path).key}
  compared = list(against.compare(folder, named))
  assert len(compared) >= 20
  assert [one for one in compared if one.differences or one.unread] == []


def test_a_dataset_whose_meshes_have_changed_fails(assimp, tmp_path, capsys):
  source, out = tmp_path / "meshes", tmp_path / "out"
  source.mkdir()
  for number in range(2):
    trimesh.creation.box((1, 1, 1 + number)).export(source / f"{number}.obj")
  settings = [f"source={source}", f"out={out}", "views=1", "image_size=40", "test_fraction=0.0"]
  config = ["--config", str(ROOT / "configs/data/iso_3do.py")]
  assert build_data.main(config + [f"--config.{setting}" for setting in settings]) == 0
  arguments = ["--data", str(out), "--against", str(source)]
  assert validate_data.main(arguments) == 0
  assert "2 of 2 meshes alike" in capsys.readouterr().out
  trimesh.creation.box((1, 2, 3)).export(source / "0.obj")
  (source / "1.obj").unlink()
  assert validate_data.main(arguments) == 2
  printed = capsys.readouterr().out
  assert "0.obj: its key is not that of the records" in printed and "1.obj: not in" in printed
