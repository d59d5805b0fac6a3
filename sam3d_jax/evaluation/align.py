"""Rigid alignment of two surfaces by ICP with a fixed protocol: two users get the same score.

The published evaluation says "aligned by ICP" and nothing more. Ours, from coarse to fine:

1. Both clouds are centred at their centroid and scaled to unit RMS radius (both independent of
   orientation).
2. 525 rotations (the 24 of the cube, identity first, and a super-Fibonacci spiral of 501: Alexa,
   CVPR 2022) are scored by the symmetric mean nearest-neighbour distance of 256 points; the best
   ones at least 20 degrees apart, and the identity, go on.
3. Each is refined by 25 iterations of symmetric, trimmed point-to-plane ICP on 1 000 points.
4. The winner is the lowest untrimmed symmetric distance; among those within `tie` of it the
   smallest rotation wins, so that a symmetric object is not turned for nothing.
5. The winner is refined by at most 40 iterations on 2 500 points, until an update is below 5e-3
   (few points drift along the motions that a round object leaves free), then by at most 10 on
   10 000, until one is below 1e-5. Far from its points a search tree is slow, so that most of the
   way is gone with few of them.

The two clouds are sampled independently: were they equal up to a symmetry, that symmetry would look
better than no motion.
"""

import dataclasses
import functools

import numpy as np
from scipy.spatial.transform import Rotation

from sam3d_jax.evaluation import neighbours
from sam3d_jax.evaluation.neighbours import Tree


@dataclasses.dataclass(frozen=True)
class IcpProtocol:
  """Numbers of the protocol in the module's docstring. Changing one changes the scores."""

  spiral: int = 501
  scan_points: int = 256
  keep: int = 10
  apart_deg: float = 20.0
  coarse_points: int = 1000
  coarse_iterations: int = 25
  medium_points: int = 2500
  medium_iterations: int = 40
  medium_until: float = 5e-3  # the largest number (radians, units) of its last update
  fine_points: int = 10_000
  fine_iterations: int = 10
  trim: float = 0.9  # share of correspondences, nearest first, that an update uses
  tie: float = 0.05  # relative difference of cost that counts as none


@dataclasses.dataclass(frozen=True)
class Cloud:
  """Points in spatial order, with normals and their search tree."""

  points: np.ndarray  # (P, 3)
  normals: np.ndarray  # (P, 3) unit, of either sign
  tree: Tree

  def subset(self, count: int) -> "Cloud":
    # Every n-th point of the spatial order is an even subset.
    index = neighbours.strides(len(self.points), count)
    points = self.points[index]
    normals = self.normals[index]
    return Cloud(points, normals, Tree(points))


@dataclasses.dataclass(frozen=True)
class Rigid:
  """x -> rotation x + translation, and the symmetric mean distance it leaves."""

  rotation: np.ndarray  # (3, 3)
  translation: np.ndarray  # (3,)
  cost: float = np.inf

  def __call__(self, points_P3: np.ndarray) -> np.ndarray:
    turned = points_P3 @ self.rotation.T
    return turned + self.translation

  def inverse(self, points_P3: np.ndarray) -> np.ndarray:
    centred = points_P3 - self.translation
    return centred @ self.rotation

  @property
  def angle_deg(self) -> float:
    return rotation_angle_deg(self.rotation)


IDENTITY = Rigid(np.eye(3), np.zeros(3))


def rotation_angle_deg(rotation_33: np.ndarray) -> float:
  """Angle of a rotation in degrees, in [0, 180]."""
  rotation = Rotation.from_matrix(rotation_33)
  radians = rotation.magnitude()
  return float(np.degrees(radians))


def make_cloud(points_P3: np.ndarray, normals_P3: np.ndarray | None = None) -> Cloud:
  """The cloud of points in any order; without normals, they are fitted to the nearest points."""
  # In spatial order, subsets are even and queries hit the cache.
  order = neighbours.spatial_order(points_P3)
  points = points_P3[order]
  tree = Tree(points)
  if normals_P3 is None:
    normals = fit_normals(points, tree)
  else:
    normals = normals_P3[order]
  return Cloud(points, normals, tree)


def fit_normals(points_P3: np.ndarray, tree: Tree, count: int = 12) -> np.ndarray:
  """Unit normals: the direction of least variance of each point's `count` nearest neighbours."""
  # The neighbourhood of each point, about its centre.
  total = len(points_P3)
  most = min(count, total)
  _, index = tree.query(points_P3, k=most)
  neighbourhoods = index.reshape(total, -1)
  local = points_P3[neighbourhoods]
  local = local - local.mean(1, keepdims=True)

  # The axes come in order of variance, the least first.
  scatter = np.einsum("pki,pkj->pij", local, local)
  _, axes = np.linalg.eigh(scatter)
  return axes[..., 0]


@functools.cache
def start_rotations(spiral: int) -> np.ndarray:
  """(24 + spiral, 3, 3): the rotations of the cube, identity first, then a spiral over SO(3)."""
  # The cube's rotations, the smallest first: that is the identity.
  cube = Rotation.create_group("O").as_matrix()
  angles = [rotation_angle_deg(rotation) for rotation in cube]
  by_angle = np.argsort(angles, kind="stable")
  cube = cube[by_angle]

  # The super-Fibonacci spiral (Alexa, CVPR 2022), in its publication's letters.
  s = np.arange(spiral) + 0.5
  t = s / spiral
  r = np.sqrt(t)
  big_r = np.sqrt(1 - t)
  alpha = 2 * np.pi * s / np.sqrt(2.0)
  beta = 2 * np.pi * s / 1.533751168755204288118041
  x = r * np.sin(alpha)
  y = r * np.cos(alpha)
  z = big_r * np.sin(beta)
  w = big_r * np.cos(beta)
  quaternions = np.stack([x, y, z, w], -1)
  turns = Rotation.from_quat(quaternions).as_matrix()
  return np.concatenate([cube, turns])


def symmetric_cost(moving: Cloud, fixed: Cloud, pose: Rigid) -> float:
  """Mean nearest-neighbour distance, both directions, halved."""
  # Moving the fixed cloud back costs no second search tree of the moved one.
  moved = pose(moving.points)
  returned = pose.inverse(fixed.points)
  there, _ = fixed.tree.query(moved)
  back, _ = moving.tree.query(returned)
  both = there.mean() + back.mean()
  return float(both) / 2


def icp(
  moving: Cloud, fixed: Cloud, start: Rigid, *, iterations: int, trim: float, until: float = 1e-5
) -> Rigid:
  """Symmetric point-to-plane ICP from `start`.

  Every update uses the nearest `trim` of the pairs of both directions; one whose numbers (radians,
  units) are all below `until` is the last. The planes are those of the fixed cloud. The update is
  damped, so that the motions a sphere or a plane leaves free stay put.
  """
  pose = start
  for _ in range(iterations):
    # Pairs from each point to the nearest of the other cloud, both ways.
    moved = pose(moving.points)
    returned = pose.inverse(fixed.points)
    there, at = fixed.tree.query(moved)
    back, of = moving.tree.query(returned)
    source = np.concatenate([moved, moved[of]])
    nearest = fixed.points[at]
    target = np.concatenate([nearest, fixed.points])
    normal_there = fixed.normals[at]
    normal = np.concatenate([normal_there, fixed.normals])

    # Far pairs may have no partner at all: they have no say.
    distance = np.concatenate([there, back])
    limit = np.quantile(distance, trim)
    near = distance <= limit
    source = source[near]
    target = target[near]
    normal = normal[near]

    # One damped Gauss-Newton step on the distances along the normals.
    apart = target - source
    residual = (apart * normal).sum(-1)
    lever = np.cross(source, normal)
    jacobian = np.concatenate([lever, normal], -1)
    hessian = jacobian.T @ jacobian
    # A share of the mean curvature (Levenberg).
    damping = 1e-4 * np.trace(hessian) / 6
    damped = hessian + damping * np.eye(6)
    gradient = jacobian.T @ residual
    update = np.linalg.solve(damped, gradient)

    # The first three numbers turn about the origin, the others move.
    turn = Rotation.from_rotvec(update[:3]).as_matrix()
    rotation = turn @ pose.rotation
    turned = turn @ pose.translation
    translation = turned + update[3:]
    pose = Rigid(rotation, translation)
    largest = np.abs(update).max()
    if largest < until:
      break
  cost = symmetric_cost(moving, fixed, pose)
  return dataclasses.replace(pose, cost=cost)


def refine(moving: Cloud, fixed: Cloud, start: Rigid, protocol: IcpProtocol) -> Rigid:
  """Step 5; returns the start itself where ICP ends farther away than it began."""
  # Most of the way with few points.
  few = protocol.medium_points
  medium = icp(
    moving.subset(few),
    fixed.subset(few),
    start,
    iterations=protocol.medium_iterations,
    trim=protocol.trim,
    until=protocol.medium_until,
  )

  # The rest with many, on which start and end are compared too.
  moving = moving.subset(protocol.fine_points)
  fixed = fixed.subset(protocol.fine_points)
  cost = symmetric_cost(moving, fixed, start)
  start = dataclasses.replace(start, cost=cost)
  end = icp(
    moving,
    fixed,
    medium,
    iterations=protocol.fine_iterations,
    trim=protocol.trim,
  )
  return end if end.cost < start.cost else start


def prefer(candidates: list[Rigid], tie: float) -> Rigid:
  """The smallest rotation among those whose cost is within `tie` (relative) of the lowest."""
  # The last term is for costs of zero, which have no relative difference.
  costs = [pose.cost for pose in candidates]
  lowest = min(costs)
  limit = lowest * (1 + tie) + 1e-9
  good = []
  for pose in candidates:
    if pose.cost <= limit:
      good.append(pose)
  return min(good, key=lambda pose: pose.angle_deg)


def scan(moving: Cloud, fixed: Cloud, protocol: IcpProtocol) -> list[Rigid]:
  """Step 2: the starts worth refining, the identity among them."""
  rotations = start_rotations(protocol.spiral)
  a = moving.subset(protocol.scan_points)
  b = fixed.subset(protocol.scan_points)

  # The symmetric cost of every rotation, one query a direction.
  moved = np.einsum("nij,pj->npi", rotations, a.points)
  returned = np.einsum("nji,pj->npi", rotations, b.points)
  there, _ = b.tree.query(moved)
  back, _ = a.tree.query(returned)
  cost = there.mean(-1) + back.mean(-1)

  # The best that are apart: tr(A^T B) = 1 + 2 cos(angle between A and B).
  least_angle = np.radians(protocol.apart_deg)
  too_near = 1 + 2 * np.cos(least_angle)
  kept = [rotations[0]]
  for index in np.argsort(cost, kind="stable"):
    rotation = rotations[index]
    traces = [(rotation * other).sum() for other in kept]
    if max(traces) < too_near:
      kept.append(rotation)
    if len(kept) == protocol.keep:
      break
  return [Rigid(rotation, np.zeros(3)) for rotation in kept]


def search(moving: Cloud, fixed: Cloud, protocol: IcpProtocol = IcpProtocol()) -> Rigid:
  """The whole protocol between two clouds that are centred and of one size (steps 2 to 5)."""
  # Every start is refined with few points.
  a = moving.subset(protocol.coarse_points)
  b = fixed.subset(protocol.coarse_points)
  candidates = []
  for start in scan(moving, fixed, protocol):
    candidate = icp(
      a,
      b,
      start,
      iterations=protocol.coarse_iterations,
      trim=protocol.trim,
    )
    candidates.append(candidate)

  # The winner is refined with all of them.
  winner = prefer(candidates, protocol.tie)
  return refine(moving, fixed, winner, protocol)


def centred(cloud: Cloud) -> Cloud:
  """Step 1: centroid at the origin, unit RMS radius. Normals keep their direction."""
  centroid = cloud.points.mean(0)
  points = cloud.points - centroid
  squared = np.square(points).sum(-1)
  radius = np.sqrt(squared.mean())
  # A cloud of one place has no size, and stays there.
  points = points / (radius or 1.0)
  return Cloud(points, cloud.normals, Tree(points))
