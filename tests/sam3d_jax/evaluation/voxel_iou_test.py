"""Voxel IoU of shapes whose faces lie on borders of voxels, and beside them."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import trimesh

from sam3d_jax.evaluation import shape, surface
from sam3d_jax.render.mesh import Mesh
from tests.support.solids import FAST, box

GRID = 64
POSITIONS = 8
VOXEL = 2 / GRID
NOISE = 1e-4  # what alignment leaves
POINTS = 200_000

# The longest side becomes 64 voxels; the faces of the others lie
BOXES = {
  "on borders": (2.0, 1.0, 0.5),
  "on borders, thin": (2.0, 1.5, 2 * VOXEL),
  "a cube": (1.0, 1.0, 1.0),
  "at other places": (2.0, 1.2, 0.6),
  "on middles of voxels": (2.0, 33 * VOXEL, 17 * VOXEL),
}
# on borders of one of the positions each: the worst that there is
WORST_BOX = (2.0, (62 + 2 / 16) * VOXEL, (30 + 6 / 16) * VOXEL)


def sphere() -> Mesh:
  mesh = trimesh.creation.icosphere(subdivisions=4)
  return surface.make_surface(mesh.vertices, mesh.faces)


def samples(mesh: Mesh, seed: int) -> np.ndarray:
  points, _ = surface.sample_surface(surface.normalised(mesh), POINTS, seed)
  return points


def mean_iou(a: np.ndarray, b: np.ndarray) -> float:
  return shape.mean_voxel_iou(a, b, GRID, POSITIONS)


def fixed_iou(a: np.ndarray, b: np.ndarray) -> float:
  return shape.fixed_voxel_iou(a, b, GRID)


every_shape = pytest.mark.parametrize(
  "mesh",
  [*map(box, BOXES.values()), sphere()],
  ids=[*BOXES, "a sphere"],
)


def noisy_iou(mesh: Mesh) -> float:
  """Of two independent samples of one shape, one of them with noise."""
  truth = samples(mesh, 0)
  again = samples(mesh, 1)
  noise = np.random.default_rng(0).normal(0, NOISE, again.shape)
  return mean_iou(again + noise, truth)


@every_shape
def test_two_noisy_samples_of_one_shape_score_near_one(mesh):
  # voxels that a surface only grazes hold a point of one sample and none of the other
  assert noisy_iou(mesh) > 0.92


def test_faces_on_borders_of_two_positions_cost_less_than_a_tenth():
  assert noisy_iou(box(WORST_BOX)) > 0.9


def test_a_box_on_the_lines_of_the_published_grid_does_not_match_itself_there():
  truth = samples(box(BOXES["on borders"]), 0)
  grown = truth * (1 + NOISE)
  assert fixed_iou(grown, truth) < 0.5
  assert mean_iou(grown, truth) > 0.99


@pytest.mark.parametrize("kind", ["on borders", "at other places"])
def test_a_box_that_is_turned_and_found_again_scores_near_one(kind):
  truth = box(BOXES[kind])
  turn = Rotation.from_euler("z", 20, degrees=True)
  protocol = dataclasses.replace(FAST, points=POINTS)
  scores = shape.shape_metrics(truth.transformed(rotation=turn.as_matrix()), truth, protocol)
  assert scores["f1"] == pytest.approx(1)
  assert scores["viou"] > 0.9


@every_shape
@pytest.mark.parametrize("change", ["shifted", "shrunk"])
def test_the_score_falls_with_every_sixth_of_a_voxel(mesh, change):
  truth = samples(mesh, 0)
  scores = []
  for parts in range(6):
    step = parts * VOXEL / 6
    pred = truth + step if change == "shifted" else truth * (1 - step)
    scores.append(mean_iou(pred, truth))
  assert scores[0] == 1
  assert (np.diff(scores) < -0.01).all(), scores


def test_the_loss_of_a_shift_does_not_depend_on_where_the_shape_lies():
  """On one grid a quarter of a voxel costs nothing or everything; in the mean a quarter."""
  sheet = np.random.default_rng(0).uniform(-0.9, 0.9, (POINTS, 3))
  losses = []
  for height in np.arange(16) / 16 * VOXEL + 1e-5:
    sheet[:, 2] = height
    moved = sheet + [0, 0, VOXEL / 4]
    assert fixed_iou(moved, sheet) in (0, 1)
    losses.append(1 - mean_iou(moved, sheet))
  np.testing.assert_allclose(losses, 0.25, atol=1e-9)


def test_the_mean_is_that_over_eight_shifted_grids():
  rng = np.random.default_rng(0)
  a = rng.uniform(-1, 1, (3000, 3))
  b = np.where(rng.random((3000, 1)) < 0.5, a, rng.uniform(-1, 1, (3000, 3)))
  scores = []
  for position in range(POSITIONS):
    order = np.array([position, 3 * position, 5 * position]) % POSITIONS
    begin = -1 - (2 * order + 1) / 16 * VOXEL
    ranges = [(low, low + 65 * VOXEL) for low in begin]
    held = [np.histogramdd(points, bins=65, range=ranges)[0] > 0 for points in (a, b)]
    shared = np.logical_and(*held).sum()
    union = np.logical_or(*held).sum()
    scores.append(shared / union)
  assert mean_iou(a, b) == pytest.approx(np.mean(scores), abs=1e-12)
  assert np.ptp(scores) > 0


def test_points_outside_count_for_the_border_on_every_grid():
  corners = np.array([[-1.0, -1, -1], [1, 1, 1]])
  assert fixed_iou(corners * 1.01, corners) == 1
  assert mean_iou(corners * 1.01, corners) == 1


def test_half_a_slab_is_one_half():
  x = (np.arange(GRID) + 0.5) * VOXEL - 1
  slab = np.stack(np.meshgrid(x, x, [0.01], indexing="ij"), -1).reshape(-1, 3)
  half = slab[slab[:, 0] > 0]
  assert fixed_iou(slab, half) == 0.5
  # the half, and the voxel that a shifted grid has more
  assert mean_iou(slab, half) == pytest.approx(0.5, abs=0.01)


def test_nothing_in_common_is_zero():
  low = np.full((1, 3), -0.5)
  assert mean_iou(low, -low) == 0
  assert fixed_iou(low, -low) == 0
