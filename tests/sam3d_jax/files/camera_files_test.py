"""Intrinsics in the forms in which people have them; of another picture or lens: refused."""

import json
import warnings

import numpy as np
import pytest

from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.files import camera_files, pointmaps
from sam3d_jax.geometry import cameras

INTRINSICS = camera_files.Intrinsics(50.0, 52.0, 21.0, 14.0)
CAMERA = cameras.Camera(*INTRINSICS, 40, 30)
MATRIX = [[50.0, 0, 21], [0, 52, 14], [0, 0, 1]]
FLAT = [50.0, 0, 21, 0, 52, 14, 0, 0, 1]
BY_COLUMNS = [50.0, 0, 0, 0, 52, 0, 21, 14, 1]
NAMED = INTRINSICS._asdict()
SIZE = {"width": 40, "height": 30}
FORMS = {
  "names": NAMED,
  "nerfstudio": {"fl_x": 50, "fl_y": 52, "cx": 21, "cy": 14, "k1": 0, "frames": []},
  "realsense": {"fx": 50, "fy": 52, "ppx": 21, "ppy": 14, "coeffs": [0, 0, 0, 0, 0]},
  "a lens that does nothing": NAMED
  | {"distortion": {"model": "none", "k": [0.0]}, "D": None, "distance": 2.0},
  "list": list(INTRINSICS),
  "matrix": MATRIX,
  "flat": FLAT,
  "columns": BY_COLUMNS,
  "intrinsics": {"intrinsics": MATRIX},
  "K": {"K": FLAT},
  "names within": {"intrinsics": NAMED},
  "open3d": {"intrinsic_matrix": BY_COLUMNS},
  "opencv": {
    "camera_matrix": {"rows": 3, "cols": 3, "data": FLAT},
    "distortion_coefficients": {"data": [0, 0, 0, 0, 0]},
  },
  "scannet": np.block([[np.array(MATRIX), np.zeros((3, 1))], [np.zeros((1, 3)), 1]]).tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_gives_the_same_intrinsics(tmp_path, form):
  (tmp_path / "k.json").write_text(json.dumps(FORMS[form]))
  assert camera_files.parse_intrinsics(str(tmp_path / "k.json")) == INTRINSICS


@pytest.mark.parametrize("keys", camera_files.SIZE_NAMES)
@pytest.mark.parametrize("form", ["names", "nerfstudio", "K", "names within", "opencv", "open3d"])
def test_a_stated_size_scales_the_intrinsics_to_the_map(tmp_path, form, keys):
  size = dict(zip(keys, (40, 30), strict=True))
  (tmp_path / "k.json").write_text(json.dumps(FORMS[form] | size))
  stated = camera_files.parse_intrinsics(str(tmp_path / "k.json"))
  assert stated == CAMERA

  depth = np.full((15, 20), 2.0, np.float32)
  found = pointmaps.from_array(depth, intrinsics=stated)
  expected = pointmaps.from_array(depth, intrinsics=camera_files.Intrinsics(25, 26, 10.5, 7))
  np.testing.assert_array_equal(found.points_HW3, expected.points_HW3)
  assert found.camera == expected.camera


@pytest.mark.parametrize("key", camera_files.SIZE_LIST_NAMES)
@pytest.mark.parametrize("size", [[40, 30], [30, 40]])
def test_a_size_in_a_list_is_taken_in_the_order_that_fits(tmp_path, key, size):
  (tmp_path / "k.json").write_text(json.dumps({"K": FLAT, key: size}))
  assert camera_files.parse_intrinsics(str(tmp_path / "k.json")) == CAMERA


def test_npz_files_state_size_and_lens_too(tmp_path):
  depth = np.full((15, 20), 2.0, np.float32)
  np.savez(tmp_path / "d.npz", depth=depth, K=MATRIX, width=40, height=30)
  found = pointmaps.read_pointmap(tmp_path / "d.npz")
  np.testing.assert_allclose(found.camera, (25, 26, 10.5, 7, 20, 15))
  np.savez(tmp_path / "lens.npz", depth=depth, K=MATRIX, dist=[[-0.2, 0.1, 0, 0, 0]])
  with pytest.raises(InputError, match="lens.npz: dist = -0.2, 0.1"):
    pointmaps.read_pointmap(tmp_path / "lens.npz")
  np.savez(tmp_path / "k.npz", mtx=MATRIX, dist=np.zeros(5))
  assert camera_files.parse_intrinsics(str(tmp_path / "k.npz")) == INTRINSICS


@pytest.mark.parametrize(
  "stated, size, message",
  [
    (INTRINSICS, (15, 20), "cx, cy = 21, 14 lies outside the picture of 20 x 15"),
    (INTRINSICS._replace(cy=-3.0), (30, 40), "outside"),
    (camera_files.Intrinsics(0.9, 1.2, 0.5, 0.5), (30, 40), "shares of the picture's sides"),
    (CAMERA, (30, 30), "of a picture of 40 x 30, it is used for one of 30 x 30"),
    (CAMERA, (40, 30), "another aspect"),
    (CAMERA._replace(cx=50.0), (30, 40), "outside"),
  ],
)
def test_intrinsics_of_another_picture_are_refused(stated, size, message):
  with pytest.raises(InputError, match=message):
    camera_files.of_picture(stated, size, "k.json")


def test_a_principal_point_far_from_the_centre_is_noted():
  with pytest.warns(InputNote, match=r"k.json: .*cx, cy = 21, 14 lies far from the centre"):
    assert camera_files.of_picture(INTRINSICS, (60, 80), "k.json") == INTRINSICS
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    camera_files.of_picture(INTRINSICS, (30, 40), "k.json")


@pytest.mark.parametrize(
  "content, message",
  [
    (NAMED | {"k1": -0.1}, "k1 = -0.1 is lens distortion"),
    (NAMED | {"p2": 1e-3}, "p2 = 0.001"),
    (NAMED | {"distortion": [0.1, 0, 0]}, "distortion = 0.1, 0, 0"),
    (NAMED | {"distCoeffs": [[0.1]]}, "distCoeffs = 0.1"),
    (NAMED | {"radial_distortion": [0, 0.1]}, "radial_distortion = 0, 0.1"),
    (NAMED | {"image_size": [40]}, "image_size = "),
    ({"K": MATRIX, "D": [0.2, 0, 0, 0, 0]}, "D = 0.2"),
    ({"K": {"data": FLAT}, "distortion_coefficients": {"data": [0.3]}}, "distortion_coefficients"),
    (NAMED | {"distortion": {"radial": [0.1], "tangential": [0, 0]}}, "distortion = 0.1, 0, 0"),
    ({"intrinsics": NAMED | {"k3": 2}}, "intrinsics: k3 = 2"),
    (NAMED | {"camera_model": "OPENCV_FISHEYE"}, "camera_model = OPENCV_FISHEYE"),
    (NAMED | {"is_fisheye": True}, "is_fisheye"),
    (NAMED | {"w": 40}, "w = 40, h = None"),
    (NAMED | {"width": 0, "height": 30}, "width = 0"),
    ({"camera_angle_x": 0.7}, "has no fx, fy, cx, cy, it has camera_angle_x"),
    ({"K": [[50, 3, 21], [0, 52, 14], [0, 0, 1]]}, "not a pinhole matrix"),
    ({"K": [1, 2, 3]}, "3 numbers"),
    ({"K": "wide"}, "give fx,fy,cx,cy"),
    (None, "give fx,fy,cx,cy|not numbers|1 numbers"),
    ([], "0 numbers"),
  ],
)
def test_what_is_no_pinhole_camera_is_refused_by_file_and_key(tmp_path, content, message):
  (tmp_path / "k.json").write_text(json.dumps(content))
  with pytest.raises(InputError, match=f"k.json.*({message})"):
    camera_files.parse_intrinsics(str(tmp_path / "k.json"))


COLMAP_HEADER = (
  "# Camera list with one line of data per camera:\n#   CAMERA_ID, MODEL, WIDTH, ...\n"
)


@pytest.mark.parametrize(
  "line",
  [
    "1 PINHOLE 40 30 50 52 21 14",
    "3 OPENCV 40 30 50 52 21 14 0 0 0 0",
  ],
)
def test_a_camera_of_colmap_is_read_with_its_size(tmp_path, line):
  file = tmp_path / "cameras.txt"
  file.write_text(f"{COLMAP_HEADER}{line}\n")
  assert camera_files.parse_intrinsics(str(file)) == CAMERA


def test_one_focal_length_of_colmap_stands_for_both(tmp_path):
  file = tmp_path / "intrinsics.txt"
  file.write_text("1 SIMPLE_PINHOLE 40 30 50 21 14\n")
  found = camera_files.parse_intrinsics(str(file))
  assert (found.fx, found.fy, found.cx, found.cy) == (50, 50, 21, 14)


@pytest.mark.parametrize(
  "lines, words",
  [
    (["1 PINHOLE 40 30 50 52 21 14"] * 2, "with 2 cameras: keep the line of this photo's"),
    (["1 SIMPLE_RADIAL 40 30 50 21 14 0.1"], "has lens distortion that is not 0: undistort"),
    (["1 OPENCV_FISHEYE 40 30 50 52 21 14 0 0 0 0"], "OPENCV_FISHEYE is no pinhole camera"),
    (["1 PINHOLE 40 30 50 21 14"], "PINHOLE has 4 numbers, here are 3"),
  ],
)
def test_cameras_of_colmap_that_are_no_pinhole_of_one_photo_are_refused(tmp_path, lines, words):
  file = tmp_path / "cameras.txt"
  file.write_text(COLMAP_HEADER + "\n".join(lines))
  with pytest.raises(InputError, match=f"{file}.*{words}"):
    camera_files.parse_intrinsics(str(file))
