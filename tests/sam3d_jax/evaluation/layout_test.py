"""Layout metrics against closed forms."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sam3d_jax.evaluation import layout
from sam3d_jax.geometry.pose import Pose, is_placed, rotation_only
from sam3d_jax.render.mesh import Mesh
from tests.support.layouts import FAST, pose
from tests.support.solids import box, wedge


def score(pred_pose, truth_pose=pose(), shape=None):
  shape = shape or wedge()
  return layout.layout_metrics(shape, pred_pose, shape, truth_pose, FAST, points=4000)


def test_the_true_pose_scores_perfectly():
  there = pose((10, 20, 30), (1, 2, 3), 0.5)
  assert score(there, there) == {
    "iou_3d": 1.0,
    "icp_rot_deg": pytest.approx(0, abs=0.3),
    "add_s": pytest.approx(0, abs=1e-9),
    "add_s_01": 1.0,
  }


def test_box_iou_of_a_half_shifted_box_is_one_third():
  corners = np.array([[0.0, 0, 0], [2, 1, 1]])
  assert layout.box_iou(corners, corners + [1, 0, 0]) == pytest.approx(1 / 3)
  assert layout.box_iou(corners, corners + [5, 0, 0]) == 0
  assert layout.box_iou(corners, corners * 2) == pytest.approx(1 / 8)


def test_boxes_without_volume_have_a_defined_iou():
  flat = np.array([[0.0, 0, 0], [1, 1, 0]])
  assert layout.box_iou(flat, flat) == 1
  assert layout.box_iou(flat, flat + 1) == 0


def test_scale_is_applied_per_object_axis_before_rotation():
  quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
  doubled_x = Pose(quarter, np.zeros(3), np.array([2.0, 1.0, 1.0]))
  point = Mesh(np.array([[1.0, 0, 0]]), np.zeros((0, 3), int))
  placed = layout.place(point, doubled_x)
  np.testing.assert_allclose(placed.vertices, [[0, 2, 0]], atol=1e-12)


@pytest.mark.parametrize("angle", [10.0, 45.0, 120.0])
def test_icp_rot_is_the_known_angle(angle):
  scores = score(pose((0, angle, 0)))
  assert scores["icp_rot_deg"] == pytest.approx(angle, abs=1.0)


def test_icp_rot_ignores_shift_and_size():
  scores = score(pose((0, 0, 0), (0.4, 0.1, 0), 1.5))
  assert scores["icp_rot_deg"] == pytest.approx(0, abs=0.3)


def test_a_quarter_turn_of_a_cube_is_no_error_of_rotation():
  scores = score(pose((0, 0, 90)), shape=box((1, 1, 1)))
  assert scores["icp_rot_deg"] < 1
  assert scores["iou_3d"] == pytest.approx(1)
  assert scores["add_s"] < 0.02


def test_add_s_of_parallel_sheets_is_their_distance_over_the_diameter():
  side = np.linspace(0, 1, 60)
  x, y = np.meshgrid(side, side)
  sheet = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)
  diagonal = np.sqrt(2)
  distance = layout.add_s(sheet + [0, 0, 0.1], sheet, diagonal)
  assert distance == pytest.approx(0.1 / diagonal)


def test_add_s_is_the_mean_of_both_directions():
  few = np.zeros((1, 3))
  many = np.array([[0.0, 0, 0], [1, 0, 0]])
  assert layout.add_s(few, many, 1.0) == pytest.approx(0.25)
  assert layout.add_s(many, few, 1.0) == layout.add_s(few, many, 1.0)


def test_add_s_01_is_a_threshold_at_a_tenth_of_the_diameter():
  assert score(pose(translation=(0.02, 0, 0)))["add_s_01"] == 1
  assert score(pose(translation=(3.0, 0, 0)))["add_s_01"] == 0


def test_a_prediction_without_pose_or_surface_scores_worst():
  assert layout.layout_metrics(None, pose(), wedge(), pose()) == layout.WORST
  assert layout.layout_metrics(wedge(), None, wedge(), pose()) == layout.WORST


def test_pose_files_round_trip_and_quaternions_are_normalised(tmp_path):
  path = tmp_path / "pose.json"
  stated = {"rotation": [2, 0, 0, 0], "translation": [1, 2, 3], "scale": 2}
  path.write_text(json.dumps(stated))
  read = layout.load_pose(path)
  np.testing.assert_array_equal(read.rotation, np.eye(3))
  np.testing.assert_array_equal(read.scale, [2, 2, 2])

  layout.write_pose(path, read)
  again = layout.load_pose(path)
  for found, value in zip(again, read, strict=True):
    np.testing.assert_array_equal(found, value)


def test_a_pose_of_which_only_the_rotation_is_known_stays_one_in_its_file(tmp_path):
  path = tmp_path / "pose.json"
  known = rotation_only(pose((10, 20, 30)).rotation)
  layout.write_pose(path, known)
  stated = json.loads(path.read_text())
  assert stated["translation"] is None
  assert stated["scale"] is None

  read = layout.load_pose(path)
  assert not is_placed(read)
  np.testing.assert_allclose(read.rotation, known.rotation, atol=1e-12)
  scores = score(read, pose((10, 20, 30), (1, 2, 3), 0.5))
  assert scores["icp_rot_deg"] == pytest.approx(0, abs=0.3)
  for name in ("iou_3d", "add_s", "add_s_01"):
    assert scores[name] is None, name


@pytest.mark.parametrize(
  "change, message",
  [
    ({"rotation": [0, 0, 0, 0]}, "norm 0"),
    ({"rotation": [1, 0, 0]}, "4 finite"),
    ({"scale": -1}, "positive"),
    ({"translation": ["a", 0, 0]}, "translation"),
    ({"scale": float("nan")}, "finite"),
  ],
)
def test_bad_pose_files_are_refused_by_key(tmp_path, change, message):
  good = {"rotation": [1, 0, 0, 0], "translation": [0, 0, 0], "scale": 1}
  path = tmp_path / "pose.json"
  path.write_text(json.dumps(good | change))
  with pytest.raises(layout.PoseError, match=message):
    layout.load_pose(path)
