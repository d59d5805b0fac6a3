"""Cameras, frames, point remaps, pixel grids."""

import itertools

import numpy as np
import pytest

from sam3d_jax.geometry import cameras, grids, remap

RNG = np.random.default_rng(3)
CAMERA = cameras.Camera(50.0, 60.0, 20.5, 14.0, 40, 30)


def test_projection_and_unprojection_are_inverse():
  across = RNG.uniform(-1, 1, (20, 2))
  forward = RNG.uniform(0.5, 3, (20, 1))
  points = np.concatenate([across, forward], -1)
  pixels, depth = cameras.project(points, CAMERA)
  back = cameras.unproject(pixels, depth, CAMERA)
  np.testing.assert_allclose(back, points, atol=1e-12)


def test_a_point_map_projects_back_onto_its_own_pixels():
  depth = RNG.uniform(1, 5, (30, 40))
  depth[3, 4] = np.inf
  depth[5, 6] = -1.0
  points = cameras.pointmap_from_depth(depth, CAMERA)
  known = np.isfinite(points).all(-1)
  assert not known[3, 4]
  assert not known[5, 6]
  assert known.sum() == 30 * 40 - 2

  pixels, _ = cameras.project(points[known], CAMERA)
  expected = cameras.pixel_centres(CAMERA)[known]
  np.testing.assert_allclose(pixels, expected, atol=1e-4)
  with pytest.raises(ValueError, match="30 high, 40 wide"):
    cameras.pointmap_from_depth(depth.T, CAMERA)


def test_left_of_the_image_is_positive_x_and_its_top_positive_y():
  points = cameras.pointmap_from_depth(np.ones((30, 40)), CAMERA)
  top_left = points[0, 0]
  bottom_right = points[-1, -1]
  assert top_left[0] > 0 > bottom_right[0]
  assert top_left[1] > 0 > bottom_right[1]


@pytest.mark.parametrize(
  "frame, right, up, forward",
  [
    ("pytorch3d", [-1, 0, 0], [0, 1, 0], [0, 0, 1]),
    ("opencv", [1, 0, 0], [0, -1, 0], [0, 0, 1]),
    ("gltf", [1, 0, 0], [0, 1, 0], [0, 0, -1]),
  ],
)
def test_frames_have_their_documented_axes(frame, right, up, forward):
  axes = {
    "right": ([-1.0, 0, 0], right),
    "up": ([0, 1.0, 0], up),
    "forward": ([0, 0, 1.0], forward),
  }
  for name, (ours, theirs) in axes.items():
    ours = np.array(ours)
    theirs = np.array(theirs, float)
    there = cameras.convert_frame(ours, "pytorch3d", frame)
    back = cameras.convert_frame(theirs, frame, "pytorch3d")
    np.testing.assert_array_equal(there, theirs, err_msg=name)
    np.testing.assert_array_equal(back, ours, err_msg=name)


def test_unknown_frames_are_refused():
  with pytest.raises(ValueError, match="'blender'"):
    cameras.convert_frame(np.zeros(3), "blender", "opencv")


def test_y_up_meshes_become_z_up_objects():
  up = np.array([[0, 1.0, 0]])
  there = cameras.OBJECT_FROM_GLTF
  back = cameras.GLTF_FROM_OBJECT
  np.testing.assert_array_equal(up @ there, [[0, 0, 1]])
  np.testing.assert_array_equal(there @ back, np.eye(3))
  assert np.linalg.det(there) == 1


def test_field_of_view_spans_the_image():
  camera = cameras.camera_from_fov(64, 48, np.pi / 2)
  edges = np.array([[0, 24], [64, 24]])
  points = cameras.unproject(edges, np.ones(2), camera)
  np.testing.assert_allclose(points[:, 0], [1, -1])


@pytest.mark.parametrize("kind", remap.REMAPS)
def test_remaps_invert(kind):
  across = RNG.standard_normal((20, 2))
  forward = RNG.uniform(0.1, 5, (20, 1))
  points = np.concatenate([across, forward], -1)
  mapped = remap.remap(points, kind)
  np.testing.assert_allclose(remap.unmap(mapped, kind), points, atol=1e-9)
  with pytest.raises(ValueError, match="'log'"):
    remap.remap(points, "log")


def test_nearest_index_rounds_the_ratio_to_fp32():
  assert grids.nearest_index(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  assert grids.nearest_index(7, 3).tolist() == [0, 2, 4]
  for size_in, size_out in itertools.product(range(1, 40), repeat=2):
    assert grids.nearest_index(size_in, size_out).max() < size_in
