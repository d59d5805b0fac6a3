"""Objects from all sides: where the cameras are, and what the records say of what they see."""

import io

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from data_pipelines.build import checks
from data_pipelines.format import records, schema
from data_pipelines.synth import views
from launch import build_data
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import cameras, pose

SIZE = 48


def build(out, *overrides):
  settings = {
    "procedural.count": 1,
    "procedural.families": "('mug',)",
    "views": 5,
    "image_size": SIZE,
    "samples": 1,
    "test_fraction": 0.0,
    "workers": 1,
    "out": out,
  }
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  return build_data.main(["--config", "configs/data/views.py:tiny", *flags, *overrides])


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
  out = tmp_path_factory.mktemp("views") / "d"
  assert build(out) == 0
  split = records.open_split(out)
  return [split[index] for index in range(len(split))]


def picture(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


def test_cameras_lie_evenly_on_the_sphere():
  places_N2 = views.sphere(150, np.array([0.3, 0.8]))
  azimuth, elevation = places_N2.T
  flat = np.cos(elevation)
  eyes_N3 = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], 1)
  assert np.abs(eyes_N3.mean(0)).max() < 0.02
  # the nearest neighbours of 150 points are some 0.2 apart
  distance_NN = np.linalg.norm(eyes_N3[:, None] - eyes_N3, axis=-1) + 9 * np.eye(150)
  assert distance_NN.min() > 0.03 and distance_NN.min(1).max() < 0.35


def test_all_views_are_there_and_the_first_has_the_voxels(examples):
  assert [int(example["view"]) for example in examples] == [0, 1, 2, 3, 4]
  assert len({example["mesh_key"] for example in examples}) == 1
  assert [len(example["voxels"]) > 0 for example in examples] == [True] + 4 * [False]
  for example in examples:
    assert checks.check_example(example).findings == []


def test_depth_is_that_of_the_voxels_that_are_seen(examples):
  centres_V3 = (examples[0]["voxels"].astype(np.float32) + 0.5) / 64 - 0.5
  for example in examples:
    camera = cameras.Camera(*(example["camera"][name] for name in cameras.Camera._fields))
    points_V3 = pose.transform_points(centres_V3, schema.example_pose(example))
    pixels_V2, depth_V = cameras.project(points_V3, camera)
    column, row = np.floor(pixels_V2).astype(int).T
    inside = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
    # a voxel is as large as a pixel: the nearest surface of the pixel and its neighbours
    depth_HW = example["depth"].astype(np.float32)
    filled_HW = np.where(np.isfinite(depth_HW), depth_HW, np.inf)
    near_HW = ndimage.minimum_filter(filled_HW, size=3)
    seen_V = near_HW[row[inside], column[inside]]
    known = np.isfinite(seen_V)
    assert known.mean() > 0.95
    # voxels lie on the surface or behind it, but for their own size
    behind_V = depth_V[inside][known] - seen_V[known]
    assert np.quantile(behind_V, 0.002) > -0.02
    assert (np.abs(behind_V) < 0.03).mean() > 0.05


def test_pictures_are_over_black_and_alpha_is_where_depth_is(examples):
  for example in examples:
    alpha = picture(example["alpha"])
    image = picture(example["image"])
    assert not image[alpha == 0].any() and image[alpha == 255].any()
    # one ray a pixel: coverage is that of the pixel's centre
    np.testing.assert_array_equal(alpha > 0, np.isfinite(example["depth"]))


def test_light_is_on_request(tmp_path, examples):
  assert build(tmp_path / "d", "--config.lit=True", "--config.views=1") == 0
  example = records.open_split(tmp_path / "d")[0]
  lit, delit = picture(example["image"]), picture(example["image_delit"])
  assert (lit != delit).any() and not schema.is_present(examples[0], "image_delit")


def test_cameras_inside_the_object_are_refused():
  with pytest.raises(ConfigError, match=r"sphere\.radius = 0\.5 is within the unit cube"):
    views.SphereConfig(radius=0.5)
