"""Shape metrics against closed forms: spheres, boxes, known rotations and shifts."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from sam3d_jax.evaluation import align, neighbours, shape, surface
from tests.support.solids import FAST, box, wedge


def sphere(radius: float) -> np.ndarray:
  """An even cloud on a sphere (Fibonacci spiral)."""
  count = 4000
  number = np.arange(count)
  z = 1 - 2 * (number + 0.5) / count
  angle = np.pi * (1 + 5**0.5) * number
  ring = np.sqrt(1 - z**2)
  x = ring * np.cos(angle)
  y = ring * np.sin(angle)
  return radius * np.stack([x, y, z], -1)


def test_chamfer_of_concentric_spheres_is_the_difference_of_their_radii():
  outer = sphere(1.0)
  inner = sphere(0.8)
  there = neighbours.nearest_distances(outer, inner)
  back = neighbours.nearest_distances(inner, outer)
  assert shape.chamfer(there, back) == pytest.approx(0.2, abs=2e-3)


def test_emd_of_concentric_spheres_is_the_difference_of_their_radii():
  found = shape.emd(sphere(1.0), sphere(0.7), 512)
  assert found == pytest.approx(0.3, abs=2e-3)


def test_emd_of_a_small_shift_is_its_length():
  points = sphere(1.0)
  shifted = points + [0.01, 0.02, 0.02]
  assert shape.emd(points, shifted, 512) == pytest.approx(0.03, abs=1e-3)


def test_emd_equals_the_plain_assignment(monkeypatch):
  rng = np.random.default_rng(0)
  a = rng.standard_normal((200, 3))
  b = rng.standard_normal((200, 3)) + 1
  distance = cdist(a, b)
  matched = linear_sum_assignment(distance)
  plain = pytest.approx(distance[matched].mean(), rel=1e-12)
  assert shape.emd(a, b, 200) == plain
  # potentials that diverge cost time, never exactness
  monkeypatch.setattr(shape, "RELAXATION", 4.0)
  assert shape.emd(a, b, 200) == plain


def test_spatial_order_is_that_of_interleaved_coordinates():
  points = np.random.default_rng(0).random((3000, 3)) * [1, 0.5, 0.2] - 3
  low = points.min(0)
  side = np.ptp(points, axis=0).max()
  cells = np.minimum((points - low) * (128 / side), 127).astype(int)

  # as text: the bits of z, y and x in turn, the highest first
  codes = []
  for x, y, z in cells:
    bits = ""
    for i in reversed(range(7)):
      bits += f"{z >> i & 1}{y >> i & 1}{x >> i & 1}"
    codes.append(int(bits, 2))
  expected = np.argsort(codes, kind="stable")
  np.testing.assert_array_equal(neighbours.spatial_order(points), expected)


def test_strides_take_points_equally_far_apart_and_all_if_there_are_few():
  np.testing.assert_array_equal(neighbours.strides(10, 4), [0, 2, 5, 7])
  np.testing.assert_array_equal(neighbours.strides(3, 4), [0, 1, 2])


def test_metrics_take_even_subsets_whatever_the_order_of_the_points():
  rng = np.random.default_rng(0)
  points = rng.random((4096, 3))
  # every 16th point is one of the leftmost
  by_x = points[np.argsort(points[:, 0])]
  lopsided = by_x.reshape(16, 256, 3).swapaxes(0, 1).reshape(-1, 3)
  for pred in (lopsided, points):
    found = shape.point_metrics(pred, rng.permutation(points), FAST)
    assert found["emd"] < 0.12
    assert found["f1"] == found["viou"] == found["viou_fixed"] == 1
    assert found["chamfer"] == 0


def test_thinning_of_far_points_hardly_changes_a_distance(monkeypatch):
  rng = np.random.default_rng(0)
  sheet = rng.random((30_000, 3)) * [1, 1, 0]
  other = rng.random((30_000, 3)) * [1, 1, 0] + [0.3, 0, 0.05]
  a = sheet[neighbours.spatial_order(sheet)]
  b = other[neighbours.spatial_order(other)]
  exact = neighbours.nearest_distances(a, b)
  monkeypatch.setattr(neighbours, "PROBE_ABOVE", 1000)
  thinned = neighbours.nearest_distances(a, b)
  assert thinned.shape == exact.shape
  assert not np.array_equal(thinned, exact)
  assert thinned.mean() == pytest.approx(exact.mean(), rel=0.02)

  near_thinned = thinned[thinned < neighbours.FAR]
  near_exact = exact[exact < neighbours.FAR]
  np.testing.assert_array_equal(np.sort(near_thinned), np.sort(near_exact))


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
  pred_to_truth = np.array([0.0, 0.0, 1.0, 1.0])
  truth_to_pred = np.array([0.0, 0.0, 0.0, 1.0])
  precision, recall = 0.5, 0.75
  expected = 2 * precision * recall / (precision + recall)
  assert shape.f1(pred_to_truth, truth_to_pred, 0.01) == pytest.approx(expected)


def test_an_exact_copy_scores_perfectly():
  scores = shape.shape_metrics(wedge(), wedge(), FAST)
  assert scores == {
    "f1": 1.0,
    "viou": 1.0,
    "viou_fixed": 1.0,
    "chamfer": pytest.approx(0, abs=1e-9),
    "emd": pytest.approx(0, abs=1e-9),
  }


@pytest.mark.parametrize("seed", range(3))
def test_rotation_shift_and_size_do_not_change_the_score(seed):
  truth = wedge()
  pred = truth.transformed(
    scale=7.0,
    rotation=Rotation.random(random_state=seed).as_matrix(),
    translation=[3.0, -1.0, 2.0],
  )
  scores = shape.shape_metrics(pred, truth, FAST)
  assert scores["f1"] > 0.999
  assert scores["chamfer"] < 3e-3


def test_a_box_of_another_shape_scores_less_than_perfect_and_more_than_nothing():
  scores = shape.shape_metrics(box((2.0, 1.2, 0.9)), box(), FAST)
  assert 0 < scores["f1"] < 0.95
  assert 0.02 < scores["chamfer"] < 0.2


def test_chamfer_of_boxes_grows_with_their_difference():
  near = shape.shape_metrics(box((2.0, 1.2, 0.7)), box(), FAST)
  far = shape.shape_metrics(box((2.0, 1.2, 1.1)), box(), FAST)
  assert near["chamfer"] < far["chamfer"]


def test_a_missing_surface_scores_worst():
  assert shape.shape_metrics(None, box(), FAST) == shape.WORST
  assert shape.shape_metrics(box(), None, FAST) == shape.WORST


@pytest.mark.parametrize(
  "vertices, faces",
  [
    ([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]),
    ([[np.nan] * 3, [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]),
    ([[1e300, 0, 0], [1e300, 0, 0], [1e300, 0, 0]], [[0, 1, 2]]),
    ([], None),
    ([[1.0, 2.0, 3.0]], None),
  ],
  ids=["line", "nan", "point", "empty", "single point"],
)
def test_what_has_no_surface_is_refused_with_a_reason(vertices, faces):
  points = np.array(vertices, float).reshape(-1, 3)
  with pytest.raises(surface.SurfaceError, match="part"):
    surface.make_surface(points, faces, name="part")


def test_a_single_triangle_and_a_point_cloud_have_scores():
  triangle = surface.make_surface([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
  points = np.random.default_rng(0).random((500, 3))
  cloud = surface.make_surface(points)
  for pred in (triangle, cloud):
    scores = shape.shape_metrics(pred, box(), FAST)
    assert np.isfinite(list(scores.values())).all()


def test_samples_are_uniform_by_area_and_seeded():
  # two rectangles: 3 x 1 on the left, 1 x 1 on the right
  left = [[0, 0, 0], [3, 0, 0], [0, 1, 0], [3, 1, 0]]
  right = [[10, 0, 0], [11, 0, 0], [10, 1, 0], [11, 1, 0]]
  faces = [[0, 1, 2], [1, 3, 2], [4, 5, 6], [5, 7, 6]]
  shuffled = np.random.default_rng(0).permutation(faces)
  part = surface.make_surface(np.array(left + right, float), shuffled)

  points, normals = surface.sample_surface(part, 20_000, 1)
  is_left = points[:, 0] < 5
  assert is_left.mean() == pytest.approx(0.75, abs=0.01)
  assert points[is_left].mean(0) == pytest.approx([1.5, 0.5, 0.0], abs=0.03)
  assert np.abs(normals[:, 2]) == pytest.approx(1)
  again, _ = surface.sample_surface(part, 20_000, 1)
  np.testing.assert_array_equal(points, again)


def test_normalising_centres_the_box_and_keeps_proportions():
  corners = np.array([[1.0, 1.0, 1.0], [5.0, 3.0, 2.0]])
  points, centre, half = surface.normalise(corners)
  np.testing.assert_allclose(points, [[-1, -0.5, -0.25], [1, 0.5, 0.25]])
  np.testing.assert_allclose(centre, [3, 2, 1.5])
  assert half == 2


def test_icp_recovers_a_small_known_motion_exactly():
  points, normals = surface.sample_surface(wedge(), 2000, 0)
  cloud = align.make_cloud(points, normals)
  rotation = Rotation.from_rotvec([0.1, -0.2, 0.15]).as_matrix()
  shift = np.array([0.05, -0.02, 0.03])
  moved = align.make_cloud(
    cloud.points @ rotation.T + shift,
    cloud.normals @ rotation.T,
  )
  found = align.icp(cloud, moved, align.IDENTITY, iterations=40, trim=0.9)
  np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)
  np.testing.assert_allclose(found.translation, shift, atol=1e-5)


def test_equal_costs_go_to_the_smallest_rotation():
  quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
  turned = align.Rigid(quarter, np.zeros(3), cost=1.0)
  near = align.Rigid(np.eye(3), np.zeros(3), cost=1.02)
  far = align.Rigid(np.eye(3), np.zeros(3), cost=1.2)
  assert align.prefer([turned, near], tie=0.05) is near
  assert align.prefer([turned, far], tie=0.05) is turned


def test_start_rotations_begin_with_the_identity_and_leave_no_gap_beyond_30_degrees():
  starts = align.start_rotations(501)
  np.testing.assert_allclose(starts[0], np.eye(3), atol=1e-12)
  # tr(A^T B) = 1 + 2 cos(angle between A and B)
  probes = Rotation.random(200, random_state=0).as_matrix()
  trace = np.einsum("aij,bij->ab", probes, starts).max(1)
  angle = np.arccos((trace - 1) / 2)
  assert np.degrees(angle).max() < 30


def test_diameter_of_a_box_is_its_diagonal():
  corners = box((3.0, 4.0, 12.0)).vertices
  assert surface.diameter(corners) == pytest.approx(13.0)
  flat = np.array([[0.0, 0, 0], [3, 4, 0], [1, 1, 0]])
  assert surface.diameter(flat) == pytest.approx(5.0)


@pytest.mark.parametrize("name", ["truncated.glb", "empty.obj", "zero_area_faces.obj"])
def test_broken_mesh_files_are_refused_by_name(shared_dir, name):
  with pytest.raises(surface.SurfaceError, match=name):
    surface.load_surface(shared_dir / "data" / "bad" / name)
