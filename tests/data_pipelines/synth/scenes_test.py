"""Photo folders: scenes are read back as they were written, reduced exactly, and what cannot be
used is named.
"""

import hashlib
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image
import pytest

from data_pipelines.synth import procedural_scenes, scenes
from sam3d_jax.errors import ConfigError, InputError, Refused
from tests.support import pasting

KITCHEN = "house/kitchen/image.png"
# writes argv[4] to argv[2] and notes in argv[3] what photo it was shown
ESTIMATOR = """
import hashlib, shutil, sys
from PIL import Image

seen = hashlib.sha256(Image.open(sys.argv[1]).convert('RGB').tobytes()).hexdigest()
print(seen, file=open(sys.argv[3], 'a'))
shutil.copy(sys.argv[4], sys.argv[2])
"""


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """One room written as a photo folder, one photo by itself."""
  house = tmp_path / "photos" / "house"
  procedural_scenes.write_room(house / "kitchen", procedural_scenes.make_room(0, 1, 96))
  sky = np.full((50, 70, 3), 99, np.uint8)
  Image.fromarray(sky).save(house / "sky.jpg")
  return tmp_path / "photos"


def load(folder: pathlib.Path, name: str, **settings):
  """(the scene of a photo, what was reported of it)."""
  reports = []
  config = scenes.PhotoConfig(str(folder), **{"image_size": 96} | settings)
  items = {item.name: item for item in scenes.list_scenes(config)}
  scene = scenes.load(config, items[name], lambda *what: reports.append(what))
  return scene, reports


def test_a_written_room_is_read_back_with_its_masks_points_and_camera(folder):
  room = procedural_scenes.make_room(0, 1, 96).scene
  scene, reports = load(folder, KITCHEN)
  assert not reports
  assert scene.license == "CC0-1.0"
  assert len(scene.masks) == len(room.masks)
  np.testing.assert_array_equal(scene.image_HW3, room.image_HW3)
  np.testing.assert_array_equal(scene.masks, room.masks)
  np.testing.assert_allclose(scene.pointmap_HW3, room.pointmap_HW3, atol=1e-4)


def test_a_photo_by_itself_is_a_background(folder):
  background, _ = load(folder, "house/sky.jpg", license="CC-BY-4.0")
  assert background.size == (50, 70)
  assert background.pointmap_HW3 is None
  assert background.license == "CC-BY-4.0"
  assert not background.masks


def test_photos_are_reduced_and_their_points_still_project_to_their_own_pixels(folder):
  scene, _ = load(folder, KITCHEN, image_size=40)
  assert scene.size == (30, 40)
  assert scene.masks[0].shape == (30, 40)
  camera = scene.camera
  x = scene.pointmap_HW3[..., 0]
  depth = scene.pointmap_HW3[..., 2]
  u = camera.cx - camera.fx * x / depth
  centres = np.broadcast_to(np.arange(40) + 0.5, (30, 40))
  np.testing.assert_allclose(u, centres, atol=1e-3)
  small = procedural_scenes.make_room(0, 1, 40).scene
  error = np.abs(depth / small.pointmap_HW3[..., 2] - 1)
  assert np.median(error) < 0.02


def test_masks_and_point_maps_that_cannot_be_used_are_named_and_left_out(folder):
  kitchen = folder / "house" / "kitchen"
  empty = np.zeros((72, 96), np.uint8)
  wrong_size = np.full((10, 10), 255, np.uint8)
  Image.fromarray(empty).save(kitchen / "0.png")
  Image.fromarray(wrong_size).save(kitchen / "1.png")
  np.savez(kitchen / "pointmap.npz", pointmap=np.full((72, 96, 3), np.nan))
  scene, reports = load(folder, KITCHEN)
  assert scene.masks[:2] == (None, None)
  assert scene.pointmap_HW3 is None
  assert [(pathlib.Path(path).name, reason) for path, reason, _ in reports] == [
    ("0.png", "bad_mask"),
    ("1.png", "bad_mask"),
    ("pointmap.npz", "bad_pointmap"),
  ]


def test_a_photo_that_cannot_be_read_is_refused(folder):
  (folder / KITCHEN).write_bytes(b"broken")
  with pytest.raises(Refused, match="bad_image"):
    load(folder, KITCHEN)


def test_swaps_without_depth_say_what_to_do_and_end_with_code_2(folder, tmp_path, capsys):
  (folder / "house" / "kitchen" / "pointmap.npz").unlink()
  out = tmp_path / "out"
  assert pasting.run("rp_3do_osr", f"out={out}", f"photos.source={folder}") == 2
  said = capsys.readouterr().err
  for words in ("needs depth", "pointmap.npz", "--config.photos.depth_command"):
    assert words in said
  assert not out.exists()


def test_a_command_without_places_for_files_is_a_configuration_error(folder):
  (folder / "house" / "kitchen" / "pointmap.npz").unlink()
  with pytest.raises(ConfigError, match="must contain {image} and {out}"):
    pasting.plan("rp_3do_osr", f"photos.source={folder}", "photos.depth_command=estimate")


def test_an_estimator_makes_the_missing_point_maps_once(folder, tmp_path):
  truth = tmp_path / "truth.npz"
  shutil.move(folder / "house" / "kitchen" / "pointmap.npz", truth)
  script = tmp_path / "estimate.py"
  script.write_text(ESTIMATOR)
  calls = tmp_path / "calls"
  command = f"{sys.executable} {script} {{image}} {{out}} {calls} {truth}"
  cache = str(tmp_path / "cache")
  for _ in range(2):
    scene, reports = load(folder, KITCHEN, depth_cache=cache, depth_command=command)
    assert np.isfinite(scene.pointmap_HW3).all()
    assert not reports

  # It was called once, with the photo.
  with Image.open(folder / KITCHEN) as photo:
    seen = hashlib.sha256(photo.convert("RGB").tobytes()).hexdigest()
  assert calls.read_text().splitlines() == [seen]

  # Its failure is told with its own words.
  truth.unlink()
  other = str(tmp_path / "other")
  with pytest.raises(
    InputError, match="(?s)depth_command failed with code 1 for .*image.png.*No such"
  ):
    load(folder, KITCHEN, depth_cache=other, depth_command=command)


def test_photographs_of_a_folder_are_used_and_broken_ones_quarantined(folder, tmp_path):
  (folder / "broken.jpg").write_bytes(b"no photo")
  Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "tiny.png")
  out = tmp_path / "out"
  code = pasting.run(
    "rp_3do_fo",
    f"out={out}",
    f"photos.source={folder}",
    "quarantine_budget=0.4",
    "procedural.count=3",
    "objects_per_shard=2",
    "views=4",
  )
  assert code == 0
  assert {(line["path"], line["reason"]) for line in pasting.quarantine(out)} == {
    ("broken.jpg", "bad_image"),
    ("tiny.png", "small_image"),
  }

  found = pasting.examples(out)
  photos = [pasting.lineage(example)["photo"] for example in found]
  assert set(photos) == {KITCHEN, "house/sky.jpg"}
  for example, photo in zip(found, photos, strict=True):
    assert "synthetic_photo" not in pasting.lineage(example)
    licence = "CC0-1.0" if photo == KITCHEN else "CC0-1.0; unknown"
    assert example["license"] == licence
    # The kitchen's point map is complete; of the sky only the objects' points are known.
    known = np.isfinite(pasting.points(example)).all(-1)
    assert known[pasting.mask(example)].all()
    assert known.all() == (photo == KITCHEN)
