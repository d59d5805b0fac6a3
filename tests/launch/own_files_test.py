"""Commands delete what they have made themselves, and nothing else."""

import json
import shutil

import numpy as np
import pytest

from launch.scoring import eval_set, pairs
from launch.trainer import evaluation
from sam3d_jax.errors import InputError
from sam3d_jax.inference import scene_files
from sam3d_jax.render import preview

OWN = {
  "format": 1,
  "settings": {},
  "camera": {},
  "scene": {},
  "objects": {},
  "files": ["cup.glb", "preview.png"],
}


def test_pairs_of_the_users_own_are_not_touched(tmp_path, hostile_dir):
  shutil.copytree(hostile_dir / "evaluate_deletes_pairs" / "pairs", tmp_path / "pairs")
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(InputError, match="pairs was not made by this command"):
    eval_set.prepare_pairs(tmp_path, {"set": "benchmark"})
  (tmp_path / "pairs" / "run.json").write_text('{"mine": 1}')
  with pytest.raises(InputError, match="pairs was not made by this command"):
    eval_set.prepare_pairs(tmp_path, {"set": "benchmark"})
  (tmp_path / "pairs" / "run.json").unlink()
  assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_pairs_elsewhere_is_not_followed(tmp_path):
  elsewhere = eval_set.prepare_pairs(tmp_path, {"set": "a"})
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "pairs").symlink_to(elsewhere)
  with pytest.raises(InputError, match="not made by this command"):
    eval_set.prepare_pairs(tmp_path / "out", {"set": "b"})
  assert (elsewhere / "run.json").exists()


def test_pairs_of_other_settings_are_made_anew(tmp_path):
  folder = eval_set.prepare_pairs(tmp_path, {"set": "a"})
  (folder / "cup").mkdir()
  (folder / "cup" / "sample.json").write_text("{}")
  eval_set.prepare_pairs(tmp_path, {"set": "a"})
  assert (folder / "cup").exists()
  eval_set.prepare_pairs(tmp_path, {"set": "b"})
  assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["[]", "{", '{"score": 1}'])
def test_a_score_file_of_the_users_own_is_not_overwritten(tmp_path, content):
  path = tmp_path / "cup.json"
  path.write_text(content)
  with pytest.raises(InputError, match="not written by this command"):
    pairs.is_scored(path, "x")


def test_a_layout_that_comes_from_elsewhere_deletes_nothing(tmp_path, hostile_dir):
  out = tmp_path / "scratch" / "out"
  out.mkdir(parents=True)
  shutil.copy(hostile_dir / "layout_json_deletes" / "layout.json", out)
  victim = tmp_path / "out" / "victim.txt"
  victim.parent.mkdir()
  victim.write_text("mine")
  with pytest.raises(InputError, match="layout.json was not made by this program"):
    scene_files.discard(out)
  assert victim.exists() and (out / "layout.json").exists()


@pytest.mark.parametrize(
  "name", ["../victim.glb", "/{root}/victim.glb", "notes.txt", "deep/victim.glb", "link.glb", 3]
)
def test_a_layout_names_files_right_beside_it_only(tmp_path, name):
  out = tmp_path / "out"
  (out / "deep").mkdir(parents=True)
  for path in ("victim.glb", "out/notes.txt", "out/deep/victim.glb", "out/cup.glb"):
    (tmp_path / path).write_text("x")
  (out / "link.glb").symlink_to(tmp_path / "victim.glb")
  if isinstance(name, str):
    name = name.replace("/{root}", str(tmp_path))
  layout = OWN | {"files": [*OWN["files"], name]}
  (out / "layout.json").write_text(json.dumps(layout))
  scene_files.discard(out)
  left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
  assert left == {"victim.glb", "out/notes.txt", "out/deep/victim.glb", "out/link.glb"}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1, "files": "a"}'])
def test_a_layout_of_another_program_stays(tmp_path, text):
  (tmp_path / "layout.json").write_text(text)
  assert scene_files.read_layout(tmp_path) is None
  with pytest.raises(InputError, match="layout.json was not made"):
    scene_files.check_own(tmp_path)
  assert (tmp_path / "layout.json").read_text() == text


def test_previews_stay_in_their_folder_and_remove_their_own_alone(tmp_path):
  folder = tmp_path / "previews"
  grid = np.zeros((4, 4, 4), bool)
  grid[1:3, 1:3, 1:3] = True
  (folder / "notes").mkdir(parents=True)
  picture = preview.grid([[np.zeros((8, 8, 3), np.uint8)]], ["a"], ["b"], size=16)
  for step in range(5):
    evaluation.write_previews(folder, step, picture, {"../../../escaped": grid})
  kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
  assert kept == ["00000002", "00000003", "00000004", "notes"]
  assert not list(tmp_path.glob("*.glb")) and not list(tmp_path.parent.glob("*.glb"))
  assert len(list(folder.rglob("*.glb"))) == 3
