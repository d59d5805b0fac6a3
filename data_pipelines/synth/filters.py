"""Geometry filters: which meshes are worth training on.

Every rejection has a reason; thresholds are configuration.
"""

import dataclasses

import numpy as np
from scipy import spatial

from data_pipelines.synth.assets import Asset
from data_pipelines.synth.normals import face_areas_normals
from sam3d_jax import sections
from sam3d_jax.errors import Refused

FLAT = 1e-9  # extent below which points lie in a plane


@dataclasses.dataclass(frozen=True)
class FilterConfig:
  """Thresholds on a mesh normalised to the unit cube."""

  # of the convex hull: open and self-intersecting meshes have one too
  min_hull_volume: float = 1e-4
  # largest eigenvalue of the area-weighted mean of n n^T; 1 for a flat sheet, 1/3 for a sphere
  max_normal_share: float = 0.985
  min_core_extent: float = 0.35  # extent of the central 99 % of the surface over the whole extent

  def __post_init__(self):
    sections.check_not_negative(self, "min_hull_volume")
    sections.check_share(self, "max_normal_share", "min_core_extent")


def hull_volume(vertices_V3: np.ndarray) -> float:
  """Volume of the convex hull; 0 where the points lie in a plane."""
  # Along their principal axes flat points have no extent; Qhull is kept away from them.
  centred = vertices_V3 - vertices_V3.mean(0)
  _, _, axes = np.linalg.svd(centred, full_matrices=False)
  along_axes = centred @ axes.T
  extent = np.ptp(along_axes, axis=0)
  if extent.min() < FLAT:
    return 0.0
  hull = spatial.ConvexHull(vertices_V3)
  return float(hull.volume)


def normal_share(vertices_V3: np.ndarray, faces_F3: np.ndarray) -> float:
  """How far one direction dominates the face normals: 1/3 (isotropic) to 1 (one plane).

  Either side of a face counts alike.
  """
  area, normal = face_areas_normals(vertices_V3, faces_F3)
  weight = area / area.sum()
  # The largest eigenvalue of the second moment; n and -n count alike.
  moment = np.einsum("f,fi,fj->ij", weight, normal, normal)
  eigenvalues = np.linalg.eigvalsh(moment)
  return float(eigenvalues[-1])


def core_extent(vertices_V3: np.ndarray, faces_F3: np.ndarray, share: float = 0.99) -> float:
  """Longest side of the box of the surface's central `share`, over that of the whole box.

  The share is taken along each axis by itself.
  """
  # A third of each face's area lies at each of its corners.
  area, _ = face_areas_normals(vertices_V3, faces_F3)
  points = vertices_V3[faces_F3].reshape(-1, 3)
  weight = np.repeat(area / 3, 3)
  total = weight.sum()

  # Along each axis, between the points where that much of the area lies below.
  cut = [(1 - share) / 2, (1 + share) / 2]
  sides = []
  for axis in range(3):
    coordinate = points[:, axis]
    order = np.argsort(coordinate, kind="stable")
    running = np.cumsum(weight[order])
    level = running / total
    low, high = np.searchsorted(level, cut)
    high = min(high, len(order) - 1)
    lowest = coordinate[order[low]]
    highest = coordinate[order[high]]
    sides.append(highest - lowest)
  whole = np.ptp(points, axis=0).max()
  return float(max(sides) / whole)


def check(asset: Asset, config: FilterConfig) -> None:
  """Raises Refused with reason near_zero_volume, flat_normals or spatial_outliers."""
  vertices = asset.mesh.vertices
  faces = asset.mesh.faces

  # Cheapest first; a mesh is counted under the first reason that it meets.
  volume = hull_volume(vertices)
  if volume < config.min_hull_volume:
    raise Refused(
      "near_zero_volume",
      f"{asset.source}: hull volume {volume:.2g} < {config.min_hull_volume:g} of the unit cube",
    )

  share = normal_share(vertices, faces)
  if share > config.max_normal_share:
    raise Refused(
      "flat_normals",
      f"{asset.source}: {share:.4f} of the surface faces one axis, above "
      f"{config.max_normal_share:g}",
    )

  core = core_extent(vertices, faces)
  if core < config.min_core_extent:
    raise Refused(
      "spatial_outliers",
      f"{asset.source}: 99 % of the surface spans {core:.3f} of the extent, below "
      f"{config.min_core_extent:g}",
    )
