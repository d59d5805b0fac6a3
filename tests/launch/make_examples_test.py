"""Synthetic inputs written to look at."""

import json

import pytest

from data_pipelines.annotations import layout
from data_pipelines.synth import assets, scenes
from launch import build_data, make_examples
from launch.console import cli


def test_objects_are_written_as_files_that_the_builders_read(tmp_path):
  assert make_examples.main(["objects", "--out", str(tmp_path), "--count", "2"]) == 0
  files = sorted(tmp_path.iterdir())
  assert [f.name for f in files] == ["00000_table.glb", "00001_chair.glb"]
  assert all(assets.load(f).key for f in files)


def test_rooms_are_written_in_the_layout_of_a_photo_folder(tmp_path):
  flags = ["rooms", "--out", str(tmp_path), "--count", "1", "--image_size", "64"]
  assert make_examples.main(flags) == 0
  assert {"image.png", "0.png", "pointmap.npz"} <= {f.name for f in (tmp_path / "room-0").iterdir()}
  found = scenes.list_scenes(scenes.PhotoConfig(source=str(tmp_path)))
  assert [scene.name for scene in found] == ["room-0/image.png"]


def test_items_are_written_as_the_builders_of_annotations_read_them(tmp_path):
  flags = ["items", "--out", str(tmp_path), "--count", "2", "--image_size", "64"]
  assert make_examples.main(flags) == 0
  files = layout.find(tmp_path)
  assert [file.parent.name for file in files] == ["00000", "00001"]
  assert all(layout.read(file).best is not None for file in files)


def test_objects_of_items_stand_on_something_so_that_the_annotated_swap_keeps_them(tmp_path):
  flags = ["items", "--out", str(tmp_path / "items"), "--count", "2"]
  assert make_examples.main(flags) == 0
  # the configuration as it is, but for the seconds that large pictures take
  command = [
    "--config=configs/data/rp_3do_osa.py",
    f"--config.source={tmp_path / 'items'}",
    f"--config.out={tmp_path / 'osa'}",
    "--config.workers=1",
    "--config.image_size=128",
  ]
  assert build_data.main(command) == 0
  built = json.loads((tmp_path / "osa" / "build.json").read_text())
  assert built["counts"]["refused"] == {}
  assert built["counts"]["rejected_draws"] == {}


@pytest.mark.parametrize(
  "flags, expected",
  [
    (["objects", "--out", "x", "--count", "0"], "--count 0: it must be positive"),
    (["benchmark", "--name", "procedural_1"], "--name procedural_1: this benchmark exists"),
  ],
)
def test_a_wrong_value_ends_with_code_2_and_writes_nothing(
  tmp_path, monkeypatch, capsys, flags, expected
):
  monkeypatch.chdir(tmp_path)
  assert make_examples.main(flags) == cli.EXIT_BAD_INPUT
  assert expected in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
