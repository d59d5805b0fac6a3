"""Point-map normalisation: what makes a point map independent of the scene's unit of length.

A normaliser computes a scale and a shift (3,) from a point map (H, W, 3; NaN unknown) and the
object's mask, and applies them. The layout latents are relative to the same scale and shift
(sam3d_jax/geometry/pose.py). `ObjectCentric` is the published one, the others are its published
alternatives. Medians are lower medians: of an even count the smaller middle value, never an
average.
"""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from sam3d_jax.geometry import remap
from sam3d_jax.geometry.grids import nearest_index


class NoValidPoints(ValueError):
  """The mask covers no known point."""


class ScaleShift(NamedTuple):
  scale: np.ndarray  # (3,) float32
  shift: np.ndarray  # (3,) float32


class Normaliser(Protocol):
  """The interface. `apply` may turn far points into NaN; `invert` undoes the rest."""

  def scale_shift(self, pointmap_HW3, mask_HW) -> ScaleShift: ...

  def apply(self, points, moments: ScaleShift): ...

  def invert(self, points, moments: ScaleShift): ...


@dataclasses.dataclass(frozen=True)
class ObjectCentric:
  """Shift: median of the object's points. Scale: median over the scene of max(|x|, |y|, |z|) after
  the shift.

  use_scene_scale: True, as above; False, twice the spread between the quantiles `quantile_drop` and
  1 - `quantile_drop` of the distances of the object's points from the shift; "object_norm_median",
  the median of those distances.
  clip_beyond: normalised points farther than this from the origin become unknown. fallback: scale
  factor and zero shift where the mask covers no known point; False raises NoValidPoints instead.
  """

  use_scene_scale: bool | str = True
  quantile_drop: float = 0.1
  clip_beyond: float | None = None
  scale_factor: float = 1.0
  fallback: bool = True

  def scale_shift(self, pointmap_HW3, mask_HW) -> ScaleShift:
    # Nothing known of the object: the mask is no guide.
    points = masked_points(pointmap_HW3, mask_HW)
    if not np.isfinite(points).any():
      if not self.fallback:
        raise NoValidPoints("the mask covers no known point of the point map")
      return same_everywhere(self.scale_factor, np.zeros(3, np.float32))
    # Else its centre, and the size of the scene or of itself.
    shift = medians(points)
    size = self._scale(pointmap_HW3, points, shift)
    return same_everywhere(size * self.scale_factor, shift)

  def _scale(self, pointmap_HW3, points, shift):
    # Of the scene: axis by axis, which needs no copy of the point map.
    if self.use_scene_scale is True:
      across = pointmap_HW3[..., 0] - shift[0]
      size = np.abs(across)
      for i in (1, 2):
        across = pointmap_HW3[..., i] - shift[i]
        np.maximum(size, np.abs(across), out=size)
      return lower_median(size.ravel())

    # Of the object.
    distance = np.linalg.norm(points - shift, axis=-1)
    if self.use_scene_scale is False:
      quantiles = [self.quantile_drop, 1 - self.quantile_drop]
      low, high = np.nanquantile(distance, quantiles)
      return 2 * (high - low)
    if self.use_scene_scale == "object_norm_median":
      return lower_median(distance)
    raise ValueError(
      f"ObjectCentric.use_scene_scale={self.use_scene_scale!r} is not True, False or "
      "'object_norm_median'"
    )

  def apply(self, points, moments: ScaleShift):
    points = affine(points, moments)
    if not self.clip_beyond:
      return points
    # The distance from the object's centre, in units of the scene.
    distance = np.linalg.norm(
      points,
      axis=-1,
      keepdims=True,
    )
    return without(points, distance > self.clip_beyond)

  def invert(self, points, moments: ScaleShift):
    return inverse_affine(points, moments)


@dataclasses.dataclass(frozen=True)
class ScaleShiftInvariant:
  """Whole scene, no mask: shift by the median depth along z, scale by the mean absolute coordinate
  after it.
  """

  def scale_shift(self, pointmap_HW3, mask_HW) -> ScaleShift:
    # Only the depth has a middle: x and y are about the camera's axis.
    depth = pointmap_HW3[..., 2]
    middle = lower_median(depth.ravel())
    shift = np.array([0, 0, middle], np.float32)

    # The mean over points and axes alike, unknown points left out.
    size = np.abs(pointmap_HW3 - shift)
    scale = np.nanmean(size)
    return same_everywhere(scale, shift)

  def apply(self, points, moments: ScaleShift):
    return affine(points, moments)

  def invert(self, points, moments: ScaleShift):
    return inverse_affine(points, moments)


@dataclasses.dataclass(frozen=True)
class ApparentSize:
  """No shift; scale by the median depth, of the scene or of the object. Points deeper than
  `clip_beyond` become unknown.
  """

  clip_beyond: float | None = None
  use_scene_scale: bool = True
  scale_factor: float = 1.0

  def scale_shift(self, pointmap_HW3, mask_HW) -> ScaleShift:
    if self.use_scene_scale:
      points = pointmap_HW3.reshape(-1, 3)
    else:
      points = masked_points(pointmap_HW3, mask_HW)
    scale = lower_median(points[:, 2]) * self.scale_factor
    return same_everywhere(scale, np.zeros(3, np.float32))

  def apply(self, points, moments: ScaleShift):
    points = affine(points, moments)
    if not self.clip_beyond:
      return points
    # In units of the median depth.
    depth = points[..., 2:]
    return without(points, depth > self.clip_beyond)

  def invert(self, points, moments: ScaleShift):
    return inverse_affine(points, moments)


@dataclasses.dataclass(frozen=True)
class Disparity:
  """Points become (x/z, y/z, log z), shifted by the scene's median log z (or by the object's three
  medians).
  """

  clip_beyond: float | None = None
  use_scene_scale: bool = True
  log_disparity_shift: float = 0.0

  def scale_shift(self, pointmap_HW3, mask_HW) -> ScaleShift:
    # The scene moves along the depth alone, the object along all axes.
    points = remap.remap(pointmap_HW3, "exp_disparity")
    if self.use_scene_scale:
      log_depth = points[..., 2].ravel()
      along = lower_median(log_depth) + self.log_disparity_shift
      shift = np.array([0, 0, along], np.float32)
    else:
      shift = medians(masked_points(points, mask_HW))
    return same_everywhere(1, shift)

  def apply(self, points, moments: ScaleShift):
    disparity = remap.remap(points, "exp_disparity")
    points = affine(disparity, moments)
    if not self.clip_beyond:
      return points
    # Clipped on both sides: in front of the scene and far behind it.
    log_depth = np.abs(points[..., 2:])
    return without(points, log_depth > self.clip_beyond)

  def invert(self, points, moments: ScaleShift):
    disparity = inverse_affine(points, moments)
    return remap.unmap(disparity, "exp_disparity")


def clip_far(pointmap_HW3, mask_HW, factor: float):
  """Points whose depth exceeds `factor` times the object's median depth become unknown (before any
  normalisation).
  """
  # Both depths are in the point map's own unit.
  points = masked_points(pointmap_HW3, mask_HW)
  object_depth = lower_median(points[:, 2])
  limit = factor * object_depth
  depth = np.abs(pointmap_HW3[..., 2:])
  return without(pointmap_HW3, depth > limit)


def without(points, is_far):
  """The points, unknown where they are far; `is_far` is (..., 1)."""
  unknown = np.float32(np.nan)
  return np.where(is_far, unknown, points)


def same_everywhere(scale, shift) -> ScaleShift:
  """One scale for all three axes."""
  scales = np.full(3, scale, np.float32)
  return ScaleShift(scales, shift)


def medians(points):
  """(3,) float32 lower median of each coordinate of (P, 3) points."""
  columns = points.T
  found = [lower_median(column) for column in columns]
  return np.array(found, np.float32)


def affine(points, moments: ScaleShift):
  """(points - shift) / scale in fp32."""
  return (points - moments.shift) / moments.scale


def inverse_affine(points, moments: ScaleShift):
  """points * scale + shift."""
  return points * moments.scale + moments.shift


def masked_points(pointmap_HW3, mask_HW):
  """(P, 3) points under the mask, which is resized (nearest) to the point map's size."""
  # The mask at the point map's size; nearest, so that a pixel of it is never half an object.
  height, width = mask_HW.shape
  shape = pointmap_HW3.shape[:2]
  if mask_HW.shape != shape:
    rows = nearest_index(height, shape[0])
    columns = nearest_index(width, shape[1])
    mask_HW = mask_HW[rows[:, None], columns]

  # A mask of numbers says how much of a pixel is object.
  is_object = mask_HW > 0.5
  inside = np.flatnonzero(is_object)
  flat = pointmap_HW3.reshape(-1, 3)
  return np.take(flat, inside, axis=0)


def lower_median(values):
  """Median of a vector without its NaNs; of an even count the lower middle value, as
  torch.nanmedian. NaN if nothing is left.
  """
  # Unknown points are NaN in all coordinates.
  values = values[~np.isnan(values)]
  if not len(values):
    return np.float32(np.nan)
  middle = (len(values) - 1) // 2
  # a partial sort puts the middle value in its place
  partly_sorted = np.partition(values, middle)
  return partly_sorted[middle]
