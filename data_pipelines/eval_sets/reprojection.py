"""Whether a set's poses mean what we take them to mean.

The truth, placed by its pose and projected, must lie on its mask.
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
  mask = item.mask_HW
  height, width = mask.shape

  # Samples of the posed truth, projected.
  placed = layout.place(item.truth, item.pose)
  samples, _ = surface.sample_surface(placed, POINTS, 0)
  pixels, depth = cameras.project(samples, item.camera)
  # The pixel that each sample falls into.
  column, row = np.floor(pixels).T
  in_columns = (column >= 0) & (column < width)
  in_rows = (row >= 0) & (row < height)
  in_front = depth > 0
  inside = in_front & in_columns & in_rows
  row = row[inside]
  column = column[inside]
  row = row.astype(int)
  column = column.astype(int)

  # The nearest sample of each pixel.
  nearest = np.full((height, width), np.inf)
  np.minimum.at(nearest, (row, column), depth[inside])

  # The part of the mask that has a sample within reach.
  longer = max(height, width)
  reach = max(1, round(REACH * longer / 640))
  has_sample = np.isfinite(nearest)
  has_near = ndimage.maximum_filter(has_sample, 2 * reach + 1)
  near = mask & has_near
  covered = float(near.sum() / mask.sum())

  # Measured depth against that of the samples.
  points = item.pointmap_HW3
  if points is None or points.shape[:2] != mask.shape:
    return Fit(covered, None)
  measured = points[..., 2]
  gap = (measured - nearest)[mask]
  gap = gap[np.isfinite(gap)]
  if not len(gap):
    return Fit(covered, None)
  diameter = surface.diameter(placed.vertices)
  share = np.median(gap) / diameter
  return Fit(covered, float(share))
