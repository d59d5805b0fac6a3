"""Voxel metrics of occupancy grids and the baselines a sample has to beat; numpy or JAX arrays."""

import numpy as np


def voxel_iou(pred_BXYZ, truth_BXYZ):
  """Intersection over union of boolean grids, one an example: (B,). Two empty ones score 1."""
  axes = tuple(range(1, pred_BXYZ.ndim))
  pred = pred_BXYZ.astype(bool)
  truth = truth_BXYZ.astype(bool)
  shared = (pred & truth).sum(axes)
  union = (pred | truth).sum(axes)
  empty = union == 0  # 0 / 0 becomes 1 / 1
  return (shared + empty) / (union + empty)


def best_constant(mean_XYZ: np.ndarray, truth_BXYZ: np.ndarray) -> tuple[float, float]:
  """The strongest prediction that ignores the image: the mean shape, cut at its best threshold.

  `mean_XYZ` is the share of training objects that occupy each voxel. Every threshold that gives a
  different grid is tried, and the one with the highest mean IoU on the very objects it is scored on
  is taken, so the baseline is as strong as it can be. Returns (mean IoU, threshold): the grid is
  mean >= threshold.
  """
  # Voxels in the order in which a falling threshold takes them in.
  mean = mean_XYZ.reshape(-1)
  order = np.argsort(-mean, kind="stable")
  level = mean[order]
  # Voxels of one level enter together: a grid ends where the level changes.
  changes = level[1:] != level[:-1]
  is_end = np.append(changes, True)
  ends = np.flatnonzero(is_end)
  sizes = ends + 1

  # One object at a time: B x 64^3 counts would not fit.
  count = len(truth_BXYZ)
  truths = truth_BXYZ.reshape(count, -1).astype(bool)
  total = np.zeros(len(ends))
  for truth in truths:
    # The grid of each threshold shares as many voxels as the truth has among the first.
    hits = np.cumsum(truth[order])
    shared = hits[ends]
    union = sizes + truth.sum() - shared
    total += shared / union

  best = int(total.argmax())
  threshold = level[ends[best]]
  mean_iou = total[best] / count
  return float(mean_iou), float(threshold)


def shuffled_iou(pred_BXYZ: np.ndarray, truth_BXYZ: np.ndarray) -> float:
  """Mean IoU of samples with the truth of other objects: the score of an image that says nothing.

  The mean over all B (B - 1) mismatched pairs, which is the expectation over all shuffles without a
  fixed point. Needs B >= 2.
  """
  count = len(truth_BXYZ)
  if count < 2:
    raise ValueError(f"shuffling {count} object(s) is not possible: give at least 2")
  pred = pred_BXYZ.reshape(count, -1).astype(np.float32)
  truth = truth_BXYZ.reshape(count, -1).astype(np.float32)

  # IoU of every sample with every truth; counts below 2^24 are exact in float32.
  shared = pred @ truth.T
  pred_sizes = pred.sum(1)
  truth_sizes = truth.sum(1)
  sizes = pred_sizes[:, None] + truth_sizes[None]
  union = sizes - shared
  # Two empty grids agree.
  share = shared / np.maximum(union, 1)
  iou = np.where(union > 0, share, 1.0)

  # The diagonal holds the matched pairs.
  mismatched = iou.sum() - np.trace(iou)
  pairs = count * (count - 1)
  return float(mismatched / pairs)


def rotation_error_deg(pred_B4: np.ndarray, truth_B4: np.ndarray) -> np.ndarray:
  """Angle in degrees between unit quaternions (either component order, the same for both): (B,) in
  [0, 180].
  """
  product = pred_B4 * truth_B4
  dot = product.sum(-1)
  cosine = np.abs(dot)  # q and -q are one rotation
  cosine = cosine.clip(0, 1)
  half_angle = np.arccos(cosine)
  return np.degrees(2 * half_angle)
