"""Whether a set's poses mean what we take them to mean: the truth, placed by its pose and
projected, must lie on its mask.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from data_pipelines.eval_sets.item import Item
from sam3d_jax.evaluation import layout, surface
from sam3d_jax.geometry import cameras

POINTS = 20_000
# pixels, at most, that samples and mask may lie apart, of a photo of 640 pixels; larger photos in
# proportion
REACH = 3
GOOD = 0.9  # covered share of a mask above which the pose fits


@dataclasses.dataclass(frozen=True)
class Fit:
  covered: float  # share of the mask's pixels that lie near a projected point of the truth
  # median over the mask of measured depth minus the nearest projected depth, over the object's
  # diameter
  depth: float | None


def fit(item: Item) -> Fit | None:
  """How well the posed truth lies on its mask and on the point map; None without pose or camera."""
  if item.pose is None or item.camera is None:
    return None
  placed = layout.place(item.truth, item.pose)
  pixels, depth = cameras.project(surface.sample_surface(placed, POINTS, 0)[0], item.camera)
  height, width = item.mask_HW.shape
  column, row = np.floor(pixels).T
  inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
  nearest = np.full((height, width), np.inf)
  np.minimum.at(nearest, (row[inside].astype(int), column[inside].astype(int)), depth[inside])
  reach = max(1, round(REACH * max(height, width) / 640))
  near = item.mask_HW & ndimage.maximum_filter(np.isfinite(nearest), 2 * reach + 1)
  measured = None
  if item.pointmap_HW3 is not None and item.pointmap_HW3.shape[:2] == item.mask_HW.shape:
    gap = (item.pointmap_HW3[..., 2] - nearest)[item.mask_HW]
    gap = gap[np.isfinite(gap)]
    measured = float(np.median(gap) / surface.diameter(placed.vertices)) if len(gap) else None
  return Fit(float(near.sum() / item.mask_HW.sum()), measured)
