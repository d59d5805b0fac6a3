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
    index = neighbours.strides(len(self.points), count)
    return Cloud(self.points[index], self.normals[index], Tree(self.points[index]))


@dataclasses.dataclass(frozen=True)
class Rigid:
  """x -> rotation x + translation, and the symmetric mean distance it leaves."""

  rotation: np.ndarray  # (3, 3)
  translation: np.ndarray  # (3,)
  cost: float = np.inf

  def __call__(self, points_P3: np.ndarray) -> np.ndarray:
    return points_P3 @ self.rotation.T + self.translation

  def inverse(self, points_P3: np.ndarray) -> np.ndarray:
    return (points_P3 - self.translation) @ self.rotation

  @property
  def angle_deg(self) -> float:
    return rotation_angle_deg(self.rotation)


IDENTITY = Rigid(np.eye(3), np.zeros(3))


def rotation_angle_deg(rotation_33: np.ndarray) -> float:
  """Angle of a rotation in degrees, in [0, 180]."""
  return float(np.degrees(Rotation.from_matrix(rotation_33).magnitude()))


def make_cloud(points_P3: np.ndarray, normals_P3: np.ndarray | None = None) -> Cloud:
  """The cloud of points in any order; without normals, they are fitted to the nearest points."""
  order = neighbours.spatial_order(points_P3)
  points = points_P3[order]
  tree = Tree(points)
  normals = fit_normals(points, tree) if normals_P3 is None else normals_P3[order]
  return Cloud(points, normals, tree)


def fit_normals(points_P3: np.ndarray, tree: Tree, count: int = 12) -> np.ndarray:
  """Unit normals: the direction of least variance of each point's `count` nearest neighbours."""
  _, index = tree.query(points_P3, k=min(count, len(points_P3)))
  local = points_P3[index.reshape(len(points_P3), -1)]
  local = local - local.mean(1, keepdims=True)
  scatter = np.einsum("pki,pkj->pij", local, local)
  _, axes = np.linalg.eigh(scatter)  # in order of variance
  return axes[..., 0]


@functools.cache
def start_rotations(spiral: int) -> np.ndarray:
  """(24 + spiral, 3, 3): the rotations of the cube, identity first, then a spiral over SO(3)."""
  cube = Rotation.create_group("O").as_matrix()
  angles = [rotation_angle_deg(rotation) for rotation in cube]
  cube = cube[np.argsort(angles, kind="stable")]
  # The super-Fibonacci spiral, in its publication's letters.
  s = np.arange(spiral) + 0.5
  r, big_r = np.sqrt(s / spiral), np.sqrt(1 - s / spiral)
  alpha = 2 * np.pi * s / np.sqrt(2.0)
  beta = 2 * np.pi * s / 1.533751168755204288118041
  quaternions = np.stack(
    [r * np.sin(alpha), r * np.cos(alpha), big_r * np.sin(beta), big_r * np.cos(beta)], -1
  )
  return np.concatenate([cube, Rotation.from_quat(quaternions).as_matrix()])


def symmetric_cost(moving: Cloud, fixed: Cloud, pose: Rigid) -> float:
  """Mean nearest-neighbour distance, both directions, halved."""
  there = fixed.tree.query(pose(moving.points))[0]
  back = moving.tree.query(pose.inverse(fixed.points))[0]
  return float(there.mean() + back.mean()) / 2


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
    there, at = fixed.tree.query(moved)
    back, of = moving.tree.query(pose.inverse(fixed.points))
    source = np.concatenate([moved, moved[of]])
    target = np.concatenate([fixed.points[at], fixed.points])
    normal = np.concatenate([fixed.normals[at], fixed.normals])
    distance = np.concatenate([there, back])
    near = distance <= np.quantile(distance, trim)
    source, target, normal = source[near], target[near], normal[near]

    # One damped Gauss-Newton step on the distances along the normals.
    residual = ((target - source) * normal).sum(-1)
    jacobian = np.concatenate([np.cross(source, normal), normal], -1)
    hessian = jacobian.T @ jacobian
    damped = hessian + 1e-4 * np.trace(hessian) / 6 * np.eye(6)
    update = np.linalg.solve(damped, jacobian.T @ residual)
    turn = Rotation.from_rotvec(update[:3]).as_matrix()
    pose = Rigid(turn @ pose.rotation, turn @ pose.translation + update[3:])
    if np.abs(update).max() < until:
      break
  return dataclasses.replace(pose, cost=symmetric_cost(moving, fixed, pose))


def refine(moving: Cloud, fixed: Cloud, start: Rigid, protocol: IcpProtocol) -> Rigid:
  """Step 5; returns the start itself where ICP ends farther away than it began."""
  medium = icp(
    moving.subset(protocol.medium_points),
    fixed.subset(protocol.medium_points),
    start,
    iterations=protocol.medium_iterations,
    trim=protocol.trim,
    until=protocol.medium_until,
  )
  moving, fixed = moving.subset(protocol.fine_points), fixed.subset(protocol.fine_points)
  start = dataclasses.replace(start, cost=symmetric_cost(moving, fixed, start))
  end = icp(moving, fixed, medium, iterations=protocol.fine_iterations, trim=protocol.trim)
  return end if end.cost < start.cost else start


def prefer(candidates: list[Rigid], tie: float) -> Rigid:
  """The smallest rotation among those whose cost is within `tie` (relative) of the lowest."""
  limit = min(c.cost for c in candidates) * (1 + tie) + 1e-9
  good = [c for c in candidates if c.cost <= limit]
  return min(good, key=lambda c: c.angle_deg)


def scan(moving: Cloud, fixed: Cloud, protocol: IcpProtocol) -> list[Rigid]:
  """Step 2: the starts worth refining, the identity among them."""
  rotations = start_rotations(protocol.spiral)
  a, b = moving.subset(protocol.scan_points), fixed.subset(protocol.scan_points)
  moved = np.einsum("nij,pj->npi", rotations, a.points)
  returned = np.einsum("nji,pj->npi", rotations, b.points)
  there, _ = b.tree.query(moved)
  back, _ = a.tree.query(returned)
  cost = there.mean(-1) + back.mean(-1)
  # tr(A^T B) = 1 + 2 cos(angle between A and B)
  too_near = 1 + 2 * np.cos(np.radians(protocol.apart_deg))
  kept = [rotations[0]]
  for index in np.argsort(cost, kind="stable"):
    rotation = rotations[index]
    if all((rotation * other).sum() < too_near for other in kept):
      kept.append(rotation)
    if len(kept) == protocol.keep:
      break
  return [Rigid(rotation, np.zeros(3)) for rotation in kept]


def search(moving: Cloud, fixed: Cloud, protocol: IcpProtocol = IcpProtocol()) -> Rigid:
  """The whole protocol between two clouds that are centred and of one size (steps 2 to 5)."""
  a, b = moving.subset(protocol.coarse_points), fixed.subset(protocol.coarse_points)
  candidates = []
  for start in scan(moving, fixed, protocol):
    candidates.append(icp(a, b, start, iterations=protocol.coarse_iterations, trim=protocol.trim))
  return refine(moving, fixed, prefer(candidates, protocol.tie), protocol)


def centred(cloud: Cloud) -> Cloud:
  """Step 1: centroid at the origin, unit RMS radius. Normals keep their direction."""
  points = cloud.points - cloud.points.mean(0)
  radius = np.sqrt(np.square(points).sum(-1).mean())
  points = points / (radius or 1.0)  # a cloud of one place stays there
  return Cloud(points, cloud.normals, Tree(points))
