"""Shape metrics of a predicted against a true surface: F1, voxel IoU, Chamfer and EMD.

As published: each surface is normalised to [-1, 1], the prediction is aligned to the truth by ICP,
and 1 M points are sampled on each. The choices the publication leaves open, and ours:

- Normalising: the axis-aligned box is centred and its longest side scaled to [-1, 1]. A box depends
  on orientation, so the prediction is normalised in the truth's axes: after its rotation has been
  found it is normalised again and aligned once more. Its own orientation is always tried too
  (normalise, then ICP from the identity) and kept unless the search is clearly better.
- ICP is rigid: scale is fixed by the normalisation. Protocol in `align`.
- F1@0.01: harmonic mean of precision (predicted points within 0.01 of a true point) and recall, in
  normalised units.
- Voxel IoU: of the voxels, 64 along [-1, 1], that hold at least one point. Where the grid lies is
  left open, and it matters for a face on a border of voxels: noise decides on which side its points
  fall, so that a box on the lines of one grid scores 0.2 against itself. `viou` is the mean over 8
  positions of the grid, each an eighth of a voxel on along every axis and none with a border at a
  multiple of an eighth: what is moved by a part of a voxel loses that part, wherever it lies.
  `viou_fixed` is the published text to the letter: one grid, from -1 to 1, points outside in the
  nearest border voxel. Over shapes that lie anywhere the two have the same mean.
- Chamfer: mean distance to the nearest point, not squared, averaged over both directions (their sum
  divided by 2).
- EMD: earth mover's distance, the mean distance under the optimal one-to-one matching of 2 048
  points a side, an exact assignment over an even subset of the samples. The subset makes it an
  estimate, biased upwards by the spacing of the points; exact copies still score 0.

A side without surface (missing, unreadable, empty, zero area) scores WORST: no overlap, and the
distance from the centre of the normalised cube to its faces.
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from sam3d_jax.evaluation import align, surface
from sam3d_jax.evaluation.neighbours import nearest_distances, spatial_order, strides
from sam3d_jax.render.mesh import Mesh

# of the entropic potentials that lead to the exact matching, over the mean distance
SOFTNESS = (0.05, 0.015, 0.004)
SOFT_ITERATIONS = 40  # at each
RELAXATION = 1.8  # exponent of their updates; 1 is plain Sinkhorn, 2 does not converge
# along which axis the grid's positions come in which order: odd, so that each comes once
POSITION_STRIDES = np.array([1, 3, 5])
WORST = {"f1": 0.0, "viou": 0.0, "viou_fixed": 0.0, "chamfer": 1.0, "emd": 1.0}


@dataclasses.dataclass(frozen=True)
class ShapeProtocol:
  points: int = 1_000_000
  threshold: float = 0.01
  grid: int = 64
  grid_positions: int = 8  # that viou is the mean over, a power of two
  emd_points: int = 2048
  align_points: int = 20_000
  seed: int = 0
  icp: align.IcpProtocol = align.IcpProtocol()


def chamfer(a_to_b: np.ndarray, b_to_a: np.ndarray) -> float:
  """Mean of the two directed mean distances (not squared)."""
  # Both directions count alike, however many points each has.
  total = a_to_b.mean() + b_to_a.mean()
  return float(total) / 2


def f1(pred_to_truth: np.ndarray, truth_to_pred: np.ndarray, threshold: float) -> float:
  """Harmonic mean of precision and recall at a distance; 0 if both are."""
  is_right = pred_to_truth < threshold
  is_found = truth_to_pred < threshold
  precision = is_right.mean()
  recall = is_found.mean()
  # The floor makes 0 / 0 a score of 0.
  both = max(precision + recall, 1e-12)
  harmonic = 2 * precision * recall / both
  return float(harmonic)


def cells_of(points_P3: np.ndarray, count: int) -> np.ndarray:
  """(P, 3) int32: which of `count` cells along [-1, 1] each coordinate lies in.

  What is outside counts for the cell nearest to it.
  """
  # From [-1, 1] to [0, count].
  place = (points_P3 + 1) * (count / 2)
  cell = np.floor(place)
  cell = np.clip(cell, 0, count - 1)
  return cell.astype(np.int32)


def occupied_voxels(cells_P3: np.ndarray, size: int) -> np.ndarray:
  """(size, size, size) bool: which voxels are among the cells."""
  occupied = np.zeros((size,) * 3, bool)
  x, y, z = cells_P3.T
  occupied[x, y, z] = True
  return occupied


def cell_iou(a_P3: np.ndarray, b_P3: np.ndarray, size: int) -> float:
  """IoU of the voxels among two sets of cells."""
  a = occupied_voxels(a_P3, size)
  b = occupied_voxels(b_P3, size)
  shared = (a & b).sum()
  union = (a | b).sum()
  return float(shared / max(union, 1))


def fixed_voxel_iou(a_P3: np.ndarray, b_P3: np.ndarray, grid: int) -> float:
  """IoU of the voxels that hold a point, of the one grid of `grid` voxels along [-1, 1]."""
  a_cells = cells_of(a_P3, grid)
  b_cells = cells_of(b_P3, grid)
  return cell_iou(a_cells, b_cells, grid)


def mean_voxel_iou(a_P3: np.ndarray, b_P3: np.ndarray, grid: int, positions: int) -> float:
  """IoU of the voxels that hold a point, mean over `positions` (a power of two) of the grid.

  The grid begins 1, 3, 5, ... steps before -1, of 2 `positions` steps a voxel, along each axis in
  another order. One voxel more than `grid` along an axis holds what [-1, 1] then reaches into.
  """
  # Cells of one step, which every position puts together to voxels.
  steps = 2 * positions
  cells = grid * steps
  a_steps = cells_of(a_P3, cells)
  b_steps = cells_of(b_P3, cells)

  scores = []
  for position in range(positions):
    # Odd offsets: no border of a voxel lies at a multiple of 1 / positions.
    order_3 = position * POSITION_STRIDES % positions
    offset_3 = 2 * order_3 + 1
    offset_3 = offset_3.astype(np.int32)
    a = (a_steps + offset_3) // steps
    b = (b_steps + offset_3) // steps
    scores.append(cell_iou(a, b, grid + 1))
  return float(np.mean(scores))


def emd(a_P3: np.ndarray, b_P3: np.ndarray, points: int) -> float:
  """Mean distance of the optimal matching of `points` points a side, exact for them.

  Fewer if a cloud has fewer. They are chosen at equal strides, which is evenly over the surfaces if
  the clouds are in spatial order.
  """
  # An even subset of each, of one size.
  count = min(points, len(a_P3), len(b_P3))
  of_a = strides(len(a_P3), count)
  of_b = strides(len(b_P3), count)
  a_chosen = a_P3[of_a]
  b_chosen = b_P3[of_b]
  distance = cdist(a_chosen, b_chosen)

  # The solver is quick where the costs are nearly reduced.
  row, column = potentials(distance)
  reduced = distance - (row + column)
  matched = linear_sum_assignment(reduced)
  # The matching is optimal for the distances too; those are what counts.
  matched_distance = distance[matched]
  return float(matched_distance.mean())


def potentials(cost_AB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Row and column terms (A, 1), (1, B) near the dual solution of a matching problem.

  By annealed, over-relaxed Sinkhorn iterations (Thibault et al. 2021, "Overrelaxed Sinkhorn-Knopp
  algorithm").

  Subtracting them from the costs changes no matching's rank, whatever their error (the kernel is in
  float32), and saves the exact solver most of its path search.
  """
  rows, columns = cost_AB.shape
  row = np.zeros(rows)
  column = np.zeros(columns)
  for softness in SOFTNESS:
    # The kernel of what the potentials so far leave of the costs.
    scale = softness * cost_AB.mean() + 1e-12
    reduced = row[:, None] + column - cost_AB
    exponent = np.minimum(reduced / scale, 50.0)
    exponent = exponent.astype(np.float32)
    kernel = np.exp(exponent) + np.float32(1e-30)

    # Sinkhorn's scalings r and c; the first steps are long ones, and not over-relaxed.
    r = np.ones(rows, np.float32)
    c = 1 / (r @ kernel)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
      for i in range(SOFT_ITERATIONS):
        w = RELAXATION if i > 1 else 1.0
        r = r ** (1 - w) * (kernel @ c) ** -w
        c = c ** (1 - w) * (r @ kernel) ** -w

    # Scalings that overflowed are left out: what there is so far serves, only time is lost.
    row_step = scale * np.log(r, dtype=np.float64)
    column_step = scale * np.log(c, dtype=np.float64)
    steps = np.concatenate([row_step, column_step])
    is_sound = np.isfinite(steps).all()
    if not is_sound:
      break

    # The next, harder round starts from here.
    row = row + row_step
    column = column + column_step
  return row[:, None], column[None]


def align_prediction(pred: Mesh, truth: Mesh, protocol: ShapeProtocol) -> Mesh:
  """The prediction aligned to the truth, both normalised.

  An exact copy is left where it is: ICP would move it by its noise.
  """
  if pred.vertices.shape == truth.vertices.shape:
    is_copy = np.allclose(
      pred.vertices,
      truth.vertices,
      rtol=0,
      atol=1e-9,
    )
    if is_copy:
      return pred

  # Independent samples of both: equal ones would prefer a symmetry to no motion.
  count = protocol.align_points
  fixed_points, fixed_normals = surface.sample_surface(truth, count, protocol.seed)
  points, normals = surface.sample_surface(pred, count, protocol.seed + 1)
  fixed = align.make_cloud(fixed_points, fixed_normals)
  moving = align.make_cloud(points, normals)

  # The rotation, between clouds of one size.
  found = align.search(
    align.centred(moving),
    align.centred(fixed),
    protocol.icp,
  )

  # Both orientations, the prediction's own and the found one, normalised and refined.
  poses = []
  moved = []
  for rotation in (np.eye(3), found.rotation):
    vertices = pred.vertices @ rotation.T
    turned, centre, half = surface.normalise(vertices)
    rotated = points @ rotation.T
    turned_points = (rotated - centre) / half
    turned_normals = None if normals is None else normals @ rotation.T
    cloud = align.make_cloud(turned_points, turned_normals)
    pose = align.refine(
      cloud,
      fixed,
      align.IDENTITY,
      protocol.icp,
    )

    # The whole turn's angle decides between equal costs.
    whole_turn = pose.rotation @ rotation
    poses.append(align.Rigid(whole_turn, pose.translation, pose.cost))
    moved.append(Mesh(pose(turned), pred.faces))
  best = align.prefer(poses, protocol.icp.tie)
  own = best is poses[0]
  return moved[0] if own else moved[1]


def shape_metrics(
  pred: Mesh | None,
  truth: Mesh | None,
  protocol: ShapeProtocol = ShapeProtocol(),
) -> dict[str, float]:
  """f1, viou, viou_fixed (higher is better), chamfer and emd (lower), as the module defines them.

  Surfaces are in any frame and unit. None stands for a side without surface and scores WORST.
  """
  if pred is None or truth is None:
    return dict(WORST)
  # In the truth's normalised frame.
  truth = surface.normalised(truth)
  pred = surface.normalised(pred)
  pred = align_prediction(pred, truth, protocol)

  # One seed for both, so that an exact copy is at distance 0.
  pred_P3, _ = surface.sample_surface(pred, protocol.points, protocol.seed)
  truth_P3, _ = surface.sample_surface(truth, protocol.points, protocol.seed)
  return point_metrics(pred_P3, truth_P3, protocol)


def point_metrics(
  pred_P3: np.ndarray, truth_P3: np.ndarray, protocol: ShapeProtocol
) -> dict[str, float]:
  """The metrics between two aligned point clouds, in the truth's normalised frame."""
  # Nearest neighbours and the subset of EMD both want spatial order.
  pred_order = spatial_order(pred_P3)
  truth_order = spatial_order(truth_P3)
  pred_P3 = pred_P3.take(pred_order, 0)
  truth_P3 = truth_P3.take(truth_order, 0)

  # Both directions, once for all metrics that need them.
  pred_to_truth = nearest_distances(pred_P3, truth_P3)
  truth_to_pred = nearest_distances(truth_P3, pred_P3)
  return {
    "f1": f1(pred_to_truth, truth_to_pred, protocol.threshold),
    "viou": mean_voxel_iou(pred_P3, truth_P3, protocol.grid, protocol.grid_positions),
    "viou_fixed": fixed_voxel_iou(pred_P3, truth_P3, protocol.grid),
    "chamfer": chamfer(pred_to_truth, truth_to_pred),
    "emd": emd(pred_P3, truth_P3, protocol.emd_points),
  }
