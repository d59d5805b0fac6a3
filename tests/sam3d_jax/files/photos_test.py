"""A photo with what belongs to it: files that fit together, by one rule for all who read them."""

import json

import numpy as np
from PIL import Image
import pytest

from data_pipelines.annotations import items
from data_pipelines.annotations import layout as annotation_layout
from data_pipelines.eval_sets.photo_folder import PhotoFolder
from data_pipelines.synth import scenes, sources
from launch.photos import jobs
from sam3d_jax.errors import InputError, Refused
from sam3d_jax.files import photos
from sam3d_jax.geometry import cameras

SIZE = (42, 64)  # of the photo
CAMERA = (60.0, 62.0, 31.0, 20.0)


def plane(height: int, width: int) -> np.ndarray:
  """Points of a wall two metres away, seen by CAMERA resized to this size."""
  of_photo = cameras.Camera(*CAMERA, SIZE[1], SIZE[0])
  camera = cameras.resized(of_photo, width, height)
  depth = np.full((height, width), 2.0, np.float32)
  return cameras.pointmap_from_depth(depth, camera)


@pytest.fixture
def folder(tmp_path):
  """A photo, its mask and what the various readers ask for beside them."""
  rng = np.random.default_rng(0)
  values = rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)
  mask = np.zeros(SIZE, np.uint8)
  mask[10:30, 20:40] = 255
  Image.fromarray(values).save(tmp_path / "image.png")
  Image.fromarray(mask).save(tmp_path / "mask.png")
  return tmp_path


def read(folder):
  return photos.read_photo(folder / "image.png")


@pytest.mark.parametrize("size", [(42, 64), (84, 128), (21, 32), (14, 21), (28, 42), (340, 512)])
def test_a_point_map_of_any_size_with_the_photos_aspect_is_taken(folder, size):
  path = folder / "points.npy"
  np.save(path, plane(*size))
  photo = read(folder).with_pointmap(path)
  assert photo.pointmap_HW3.shape == (*size, 3)
  assert photo.camera_source == "of the point map"
  assert photo.camera[4:] == (SIZE[1], SIZE[0])
  np.testing.assert_allclose(photo.camera[:4], CAMERA, rtol=1e-3)


@pytest.mark.parametrize("size", [(42, 42), (64, 42), (42, 60), (400, 512)])
def test_a_point_map_of_another_aspect_is_refused_with_both_sizes(folder, size):
  np.save(folder / "points.npy", plane(*size))
  message = f"points.npy is {size[1]} x {size[0]}, .*image.png 64 x 42: they differ in aspect"
  with pytest.raises(InputError, match=message):
    read(folder).with_pointmap(folder / "points.npy")


def test_every_reader_of_photos_has_the_same_aspect_rule(folder):
  """5 % off: the rule allows 2 %."""
  pointmap = folder / "pointmap.npy"
  np.save(pointmap, plane(400, 640))
  message = "pointmap.npy is 640 x 400, .*image.png 64 x 42: they differ in aspect"

  # launch.sample
  masks = (folder / "mask.png",)
  job = jobs.Job("photo", folder / "image.png", folder, masks, pointmap=pointmap)
  with pytest.raises(InputError, match=message):
    jobs.read(job)

  # annotations
  stated = {
    "format": 1,
    "image": "image.png",
    "mask": "mask.png",
    "pointmap": "pointmap.npy",
    "candidates": {"a": {"generator": "g", "latents": "image.png"}},
  }
  (folder / "annotation.json").write_text(json.dumps(stated))
  item = annotation_layout.read(folder / "annotation.json")
  with pytest.raises(Refused, match=message):
    items.photo_fields(item, items.Recipe("name", "mitl_3do"))

  # photos to paste into
  files = scenes.find_files(folder, "image.png")
  reports = []
  config = scenes.PhotoConfig(str(folder))
  entry = sources.Input("image.png", "0")
  scene = scenes.read(config, entry, files, lambda *report: reports.append(report))
  assert scene.pointmap_HW3 is None
  assert reports[0][1] == "bad_pointmap"
  assert "they differ in aspect" in reports[0][2]

  # evaluation sets
  chosen = PhotoFolder.__new__(PhotoFolder)
  chosen.names = ["cup"]
  chosen._files = {
    "cup": {"image": folder / "image.png", "pointmap": folder / "pointmap.npy"},
  }
  with pytest.raises(InputError, match=message):
    chosen[0]


def test_the_photos_camera_is_scaled_to_a_smaller_depth_map(folder):
  depth = np.full((21, 32), 2000, np.uint16)
  Image.fromarray(depth).save(folder / "depth.png")
  with_camera = read(folder).with_camera(CAMERA)
  photo = with_camera.with_pointmap(folder / "depth.png")
  np.testing.assert_allclose(photo.pointmap_HW3, plane(21, 32), rtol=1e-6)
  assert photo.camera[:4] == CAMERA
  assert photo.camera_source == "given"


def test_intrinsics_are_in_pixels_of_the_map_and_make_the_photos_camera(folder):
  depth = np.full((21, 32), 2000, np.uint16)
  Image.fromarray(depth).save(folder / "depth.png")
  half = tuple(value / 2 for value in CAMERA)
  photo = read(folder).with_pointmap(folder / "depth.png", intrinsics=half)
  np.testing.assert_allclose(photo.camera[:4], CAMERA)
  assert photo.camera_source == "given"


def test_an_object_without_a_known_point_is_named(folder):
  points = plane(*SIZE)
  points[5:35, 15:45] = np.nan
  np.save(folder / "points.npy", points)
  with_mask = read(folder).with_masks([folder / "mask.png"])
  photo = with_mask.with_pointmap(folder / "points.npy")
  with pytest.raises(InputError, match="no known point under the mask of mask"):
    photos.check_cover(photo, folder / "points.npy")
