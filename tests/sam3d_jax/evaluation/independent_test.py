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
from tests.support.solids import FAST, wedge


@pytest.fixture(scope="module", params=range(3))
def pair(request, shared_dir):
  """Two different meshes of the shared folder, by number so that any folder of meshes will do; as
  we score them and as trimesh holds them.
  """
  files = [
    p
    for p in sorted((shared_dir / "data" / "meshes").iterdir())
    if p.suffix.lower() in meshes.SUFFIXES
  ]
  if len(files) < 2:
    pytest.skip("needs two meshes")
  chosen = [files[(request.param * 7 + i * 3) % len(files)] for i in range(2)]
  ours = [surface.load_surface(file).mesh for file in chosen]
  # of the same faces: trimesh's own reader cuts concave polygons differently
  theirs = [trimesh.Trimesh(mesh.vertices, mesh.faces) for mesh in ours]
  return ours, theirs


def test_area_and_box_are_those_of_trimesh(pair):
  for ours, theirs in zip(*pair, strict=True):
    assert surface.triangle_areas(ours.vertices[ours.faces]).sum() == pytest.approx(
      theirs.area, rel=1e-4
    )
    points, _, half = surface.normalise(ours.vertices)
    assert half == pytest.approx(theirs.extents.max() / 2, rel=1e-6)
    np.testing.assert_allclose(np.ptp(points, axis=0), theirs.extents / half, atol=1e-5)
    points, _ = surface.sample_surface(ours, 20_000, 0)
    # trimesh weighs by area, too
    np.testing.assert_allclose(points.mean(0), theirs.centroid, atol=0.02 * half)


def test_point_metrics_are_those_of_scipy(pair):
  a, b = (surface.sample_surface(surface.normalised(s), 6000, i)[0] for i, s in enumerate(pair[0]))
  b = a * 0.97 + 0.01 if np.ptp(b) == 0 else b
  found = shape.point_metrics(a, b, FAST)
  there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
  assert found["chamfer"] == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-9)
  precision, recall = (there < 0.01).mean(), (back < 0.01).mean()
  assert found["f1"] == pytest.approx(
    2 * precision * recall / (precision + recall) if precision + recall else 0, abs=1e-12
  )
  cells = [np.histogramdd(np.clip(x, -1, 1), bins=64, range=[(-1, 1)] * 3)[0] > 0 for x in (a, b)]
  # edges of cells
  assert found["viou_fixed"] == pytest.approx(
    (cells[0] & cells[1]).sum() / (cells[0] | cells[1]).sum(), abs=1e-3
  )
  chosen = [
    x[neighbours.spatial_order(x)][neighbours.strides(len(x), FAST.emd_points)] for x in (a, b)
  ]
  cost = cdist(*chosen)
  assert found["emd"] == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-9)


def test_probed_distances_of_large_clouds_keep_the_mean(pair, monkeypatch):
  a, b = (
    surface.sample_surface(surface.normalised(s), 40_000, i)[0] for i, s in enumerate(pair[0])
  )
  a, b = (points[neighbours.spatial_order(points)] for points in (a, b))
  exact = cKDTree(b).query(a)[0]
  monkeypatch.setattr(neighbours, "PROBE_ABOVE", 1000)
  probed = neighbours.nearest_distances(a, b)
  assert probed.mean() == pytest.approx(exact.mean(), rel=0.02)
  np.testing.assert_allclose(
    np.sort(probed[probed < neighbours.FAR]), np.sort(exact[exact < neighbours.FAR]), atol=1e-12
  )


def test_alignment_is_as_near_as_trimeshs_icp_from_the_true_start(pair):
  truth = pair[0][0]
  truth = surface.normalised(truth)
  turned = truth.transformed(
    rotation=Rotation.from_rotvec([0.1, -0.15, 0.05]).as_matrix(), translation=[0.02, 0.01, -0.03]
  )
  ours = shape.align_prediction(
    Mesh(surface.normalise(turned.vertices)[0], truth.faces), truth, FAST
  )
  points = surface.sample_surface(turned, 1500, 1)[0]
  _, moved, _ = trimesh.registration.icp(
    points, surface.sample_surface(truth, 6000, 0)[0], scale=False, threshold=1e-9
  )
  target = cKDTree(surface.sample_surface(truth, 60_000, 2)[0])
  assert (
    target.query(surface.sample_surface(ours, 1500, 1)[0])[0].mean()
    < target.query(moved)[0].mean() + 2e-3
  )


def test_layout_metrics_follow_their_definitions(pair):
  truth = pair[0][0]
  size = np.ptp(truth.vertices, axis=0).max()
  here, there = pose((10, 20, 30), scale=2 / size), pose((10, 20, 30), (0.3, -0.1, 0.2), 2.2 / size)
  a, b = (
    trimesh.Trimesh(layout.place(truth, p).vertices, truth.faces, process=False)
    for p in (there, here)
  )
  shared = np.prod(
    np.clip(np.minimum(a.bounds[1], b.bounds[1]) - np.maximum(a.bounds[0], b.bounds[0]), 0, None)
  )
  iou = shared / (np.prod(a.extents) + np.prod(b.extents) - shared)
  assert layout.box_iou(a.vertices, b.vertices) == pytest.approx(iou, abs=1e-9)
  x, y = (
    surface.sample_surface(Mesh(m.vertices, truth.faces), 700 + 100 * i, i)[0]
    for i, m in enumerate((a, b))
  )
  assert surface.diameter(y) == pytest.approx(pdist(y).max(), rel=1e-9)
  distance = cdist(x, y)
  assert layout.add_s(x, y, 3.0) == pytest.approx(
    (distance.min(0).mean() + distance.min(1).mean()) / 2 / 3.0, rel=1e-9
  )


def solid(kind: str) -> Mesh:
  made = {
    "ball": lambda: trimesh.creation.icosphere(subdivisions=3),
    "rod": lambda: trimesh.creation.cylinder(0.3, 2.0, sections=64),
    "slab": lambda: trimesh.creation.box((2.0, 1.2, 0.6)),
    "post": lambda: trimesh.creation.box((1.0, 1.0, 2.5)),
    "cone": lambda: trimesh.creation.cone(0.7, 1.6, sections=64),
  }[kind]()
  return surface.make_surface(made.vertices, made.faces)


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
  found = layout.icp_rotation_deg(
    layout.place(solid(kind), pose(turn)), solid(kind), FAST_ICP, points=6000
  )
  assert found == pytest.approx(left, abs=2.0)


@pytest.mark.parametrize("kind", ["ball", "rod", "slab", "cone"])
def test_any_pose_and_size_of_a_solid_scores_as_the_solid(kind):
  truth = solid(kind)
  pred = truth.transformed(
    scale=0.37,
    rotation=Rotation.from_rotvec([0.7, -0.4, 1.1]).as_matrix(),
    translation=[1.0, 2.0, 3.0],
  )
  # dense enough for 0.01
  found = shape.shape_metrics(pred, truth, dataclasses.replace(FAST, points=300_000))
  # the spacing of 256 matched points
  assert found["f1"] > 0.98 and found["chamfer"] < 0.01 and found["emd"] < 0.15


def test_a_sphere_in_a_cube_has_the_chamfer_distance_of_its_integral():
  """From the unit sphere to the cube [-1, 1]^3 it is 1 - max|x_i| averaged over the sphere, back it
  is |x| - 1 over the cube.
  """
  cube = trimesh.creation.box((2, 2, 2))
  found = shape.shape_metrics(solid("ball"), surface.make_surface(cube.vertices, cube.faces), FAST)
  rng = np.random.default_rng(0)
  sphere = rng.standard_normal((200_000, 3))
  sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
  face = np.concatenate([rng.uniform(-1, 1, (200_000, 2)), np.ones((200_000, 1))], 1)
  expected = ((1 - np.abs(sphere).max(1)).mean() + (np.linalg.norm(face, axis=1) - 1).mean()) / 2
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
  scores = shape.shape_metrics(pred, truth, FAST) | layout.layout_metrics(
    pred, pose((0, 0, 40)), truth, pose(), FAST_ICP, points=2000
  )
  assert np.isfinite(list(scores.values())).all()
  assert (
    0 <= scores["f1"] <= 1
    and 0 <= scores["iou_3d"] <= 1
    and 0 <= scores["icp_rot_deg"] <= 180
    and scores["chamfer"] >= 0
  )
