"""Every metric computed a second time from its definition with other libraries (SciPy, trimesh,
NumPy), on real meshes and on the pair of two different ones; and alignment of symmetric and
degenerate shapes, whose answers are known.
"""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist
from scipy.spatial.transform import Rotation
import trimesh

from sam3d_jax.evaluation import layout, neighbours, shape, surface
from sam3d_jax.files import meshes
from sam3d_jax.render.mesh import Mesh
from tests.support.layouts import FAST as FAST_ICP
from tests.support.layouts import pose
from tests.support.solids import FAST, box, wedge


@pytest.fixture(scope="module", params=range(3))
def pair(request, shared_dir):
  """Two different meshes of the shared folder, by number so that any folder of meshes will do; as
  we score them and as trimesh holds them.
  """
  folder = shared_dir / "data" / "meshes"
  files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in meshes.SUFFIXES]
  if len(files) < 2:
    pytest.skip("needs two meshes")
  first = request.param * 7
  chosen = [files[i % len(files)] for i in (first, first + 3)]
  ours = [surface.load_surface(file).mesh for file in chosen]
  # of the same faces: trimesh's own reader cuts concave polygons differently
  theirs = [trimesh.Trimesh(mesh.vertices, mesh.faces) for mesh in ours]
  return ours, theirs


def normalised_points(mesh: Mesh, count: int, seed: int) -> np.ndarray:
  points, _ = surface.sample_surface(surface.normalised(mesh), count, seed)
  return points


def nearest(a_P3: np.ndarray, b_P3: np.ndarray) -> np.ndarray:
  """Distance from each point of a to the nearest of b, by SciPy."""
  distance, _ = cKDTree(b_P3).query(a_P3)
  return distance


def test_area_and_box_are_those_of_trimesh(pair):
  for ours, theirs in zip(*pair, strict=True):
    areas = surface.triangle_areas(ours.vertices[ours.faces])
    assert areas.sum() == pytest.approx(theirs.area, rel=1e-4)

    points, _, half = surface.normalise(ours.vertices)
    assert half == pytest.approx(theirs.extents.max() / 2, rel=1e-6)
    np.testing.assert_allclose(np.ptp(points, axis=0), theirs.extents / half, atol=1e-5)

    # trimesh weighs by area, too
    points, _ = surface.sample_surface(ours, 20_000, 0)
    np.testing.assert_allclose(points.mean(0), theirs.centroid, atol=0.02 * half)


def test_point_metrics_are_those_of_scipy(pair):
  (first, second), _ = pair
  a = normalised_points(first, 6000, 0)
  b = normalised_points(second, 6000, 1)
  found = shape.point_metrics(a, b, FAST)

  # Chamfer and F1
  there = nearest(a, b)
  back = nearest(b, a)
  chamfer = (there.mean() + back.mean()) / 2
  assert found["chamfer"] == pytest.approx(chamfer, rel=1e-9)
  precision = (there < 0.01).mean()
  recall = (back < 0.01).mean()
  f1 = 0.0
  if precision + recall:
    f1 = 2 * precision * recall / (precision + recall)
  assert found["f1"] == pytest.approx(f1, abs=1e-12)

  # voxel IoU; histograms treat the edges of cells otherwise
  held = []
  for points in (a, b):
    inside = np.clip(points, -1, 1)
    counts, _ = np.histogramdd(inside, bins=64, range=[(-1, 1)] * 3)
    held.append(counts > 0)
  shared = np.logical_and(*held).sum()
  union = np.logical_or(*held).sum()
  assert found["viou_fixed"] == pytest.approx(shared / union, abs=1e-3)

  # EMD of the same subsets
  chosen = []
  for points in (a, b):
    ordered = points[neighbours.spatial_order(points)]
    chosen.append(ordered[neighbours.strides(len(points), FAST.emd_points)])
  cost = cdist(*chosen)
  matched = linear_sum_assignment(cost)
  assert found["emd"] == pytest.approx(cost[matched].mean(), rel=1e-9)


def test_probed_distances_of_large_clouds_keep_the_mean(pair, monkeypatch):
  clouds = []
  for seed, mesh in enumerate(pair[0]):
    points = normalised_points(mesh, 40_000, seed)
    clouds.append(points[neighbours.spatial_order(points)])
  a, b = clouds
  exact = nearest(a, b)
  monkeypatch.setattr(neighbours, "PROBE_ABOVE", 1000)
  probed = neighbours.nearest_distances(a, b)
  assert probed.mean() == pytest.approx(exact.mean(), rel=0.02)

  near_probed = probed[probed < neighbours.FAR]
  near_exact = exact[exact < neighbours.FAR]
  np.testing.assert_allclose(np.sort(near_probed), np.sort(near_exact), atol=1e-12)


def test_alignment_is_as_near_as_trimeshs_icp_from_the_true_start(pair):
  (first, _), _ = pair
  truth = surface.normalised(first)
  turned = truth.transformed(
    rotation=Rotation.from_rotvec([0.1, -0.15, 0.05]).as_matrix(),
    translation=[0.02, 0.01, -0.03],
  )

  def points_of(mesh: Mesh, count: int, seed: int) -> np.ndarray:
    points, _ = surface.sample_surface(mesh, count, seed)
    return points

  ours = shape.align_prediction(surface.normalised(turned), truth, FAST)
  _, theirs, _ = trimesh.registration.icp(
    points_of(turned, 1500, 1),
    points_of(truth, 6000, 0),
    scale=False,
    threshold=1e-9,
  )
  target = points_of(truth, 60_000, 2)
  our_distance = nearest(points_of(ours, 1500, 1), target)
  their_distance = nearest(theirs, target)
  assert our_distance.mean() < their_distance.mean() + 2e-3


def test_layout_metrics_follow_their_definitions(pair):
  (truth, _), _ = pair
  size = np.ptp(truth.vertices, axis=0).max()
  pred_pose = pose((10, 20, 30), (0.3, -0.1, 0.2), 2.2 / size)
  truth_pose = pose((10, 20, 30), scale=2 / size)
  pred = layout.place(truth, pred_pose)
  placed = layout.place(truth, truth_pose)

  # the boxes, as trimesh has them
  a = trimesh.Trimesh(pred.vertices, truth.faces, process=False)
  b = trimesh.Trimesh(placed.vertices, truth.faces, process=False)
  low = np.maximum(a.bounds[0], b.bounds[0])
  high = np.minimum(a.bounds[1], b.bounds[1])
  shared = np.prod(np.clip(high - low, 0, None))
  iou = shared / (np.prod(a.extents) + np.prod(b.extents) - shared)
  assert layout.box_iou(pred.vertices, placed.vertices) == pytest.approx(iou, abs=1e-9)

  # all pairs of points
  x, _ = surface.sample_surface(pred, 700, 0)
  y, _ = surface.sample_surface(placed, 800, 1)
  assert surface.diameter(y) == pytest.approx(pdist(y).max(), rel=1e-9)
  distance = cdist(x, y)
  back = distance.min(0).mean()
  there = distance.min(1).mean()
  expected = (there + back) / 2 / 3.0
  assert layout.add_s(x, y, 3.0) == pytest.approx(expected, rel=1e-9)


def solid(kind: str) -> Mesh:
  creation = trimesh.creation
  made = {
    "ball": lambda: creation.icosphere(subdivisions=3),
    "rod": lambda: creation.cylinder(0.3, 2.0, sections=64),
    "slab": lambda: creation.box((2.0, 1.2, 0.6)),
    "post": lambda: creation.box((1.0, 1.0, 2.5)),
    "cone": lambda: creation.cone(0.7, 1.6, sections=64),
  }
  mesh = made[kind]()
  return surface.make_surface(mesh.vertices, mesh.faces)


@pytest.mark.parametrize(
  "kind, turn, left",
  [
    ("ball", (50, 20, 70), 0),
    ("rod", (0, 0, 77), 0),
    ("rod", (0, 180, 0), 0),
    ("rod", (30, 0, 0), 30),
    ("rod", (100, 0, 0), 80),
    ("slab", (0, 0, 120), 60),
    ("slab", (180, 0, 0), 0),
    ("post", (0, 0, 90), 0),
    ("post", (0, 0, 70), 20),
    ("cone", (180, 0, 0), 180),
    ("cone", (0, 0, 33), 0),
  ],
)
def test_icp_rot_of_a_symmetric_solid_is_the_least_turn_that_restores_it(kind, turn, left):
  truth = solid(kind)
  turned = layout.place(truth, pose(turn))
  found = layout.icp_rotation_deg(turned, truth, FAST_ICP, points=6000)
  assert found == pytest.approx(left, abs=2.0)


@pytest.mark.parametrize("kind", ["ball", "rod", "slab", "cone"])
def test_any_pose_and_size_of_a_solid_scores_as_the_solid(kind):
  truth = solid(kind)
  pred = truth.transformed(
    scale=0.37,
    rotation=Rotation.from_rotvec([0.7, -0.4, 1.1]).as_matrix(),
    translation=[1.0, 2.0, 3.0],
  )
  dense = dataclasses.replace(FAST, points=300_000)  # enough for 0.01
  found = shape.shape_metrics(pred, truth, dense)
  assert found["f1"] > 0.98
  assert found["chamfer"] < 0.01
  assert found["emd"] < 0.15  # the spacing of 256 matched points


def test_a_sphere_in_a_cube_has_the_chamfer_distance_of_its_integral():
  """From the unit sphere to the cube [-1, 1]^3 it is 1 - max|x_i| averaged over the sphere, back it
  is |x| - 1 over the cube.
  """
  found = shape.shape_metrics(solid("ball"), box((2, 2, 2)), FAST)

  # both means, of many points
  rng = np.random.default_rng(0)
  sphere = rng.standard_normal((200_000, 3))
  sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
  there = 1 - np.abs(sphere).max(1)
  across = rng.uniform(-1, 1, (200_000, 2))
  face = np.concatenate([across, np.ones((200_000, 1))], 1)
  back = np.linalg.norm(face, axis=1) - 1
  expected = (there.mean() + back.mean()) / 2
  assert found["chamfer"] == pytest.approx(expected, abs=0.01)


FLAT = surface.make_surface([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
NEEDLE = surface.make_surface([[0, 0, 0], [1, 0, 0], [1, 1e-7, 0]], [[0, 1, 2]])
TWO = surface.make_surface([[0, 0, 0], [1, 0, 0.0]])
FAR_AWAY = surface.make_surface(
  np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) + 1e9, [[0, 1, 2], [0, 1, 3]]
)


@pytest.mark.parametrize(
  "odd", [FLAT, NEEDLE, TWO, FAR_AWAY], ids=["flat", "needle", "two points", "far away"]
)
@pytest.mark.parametrize("as_truth", [False, True])
def test_degenerate_shapes_have_finite_scores_on_either_side(odd, as_truth):
  pred, truth = (wedge(), odd) if as_truth else (odd, wedge())
  of_shape = shape.shape_metrics(pred, truth, FAST)
  of_layout = layout.layout_metrics(
    pred,
    pose((0, 0, 40)),
    truth,
    pose(),
    FAST_ICP,
    points=2000,
  )
  scores = of_shape | of_layout
  assert np.isfinite(list(scores.values())).all()
  assert 0 <= scores["f1"] <= 1
  assert 0 <= scores["iou_3d"] <= 1
  assert 0 <= scores["icp_rot_deg"] <= 180
  assert scores["chamfer"] >= 0
