"""Taking a photographed object out of its photo and point map.

Colours are inpainted by OpenCV, depth is filled harmonically.
"""

import cv2
import numpy as np
from scipy import sparse

RADIUS = 3.0  # pixels that the inpainting looks at around each one it fills


def remove(image_HW3: np.ndarray, region_HW: np.ndarray) -> np.ndarray:
  """The photo (uint8) with `region_HW` filled from around it (Telea's fast marching)."""
  image = np.ascontiguousarray(image_HW3)
  region = region_HW.astype(np.uint8)
  return cv2.inpaint(image, region, RADIUS, cv2.INPAINT_TELEA)


def enlarged(mask_HW: np.ndarray, margin: float) -> np.ndarray:
  """The mask grown by `margin` of the image's longer side.

  Masks that are cut out exactly leave a rim of the object behind.
  """
  longer = max(mask_HW.shape)
  reach = max(1, round(margin * longer))
  width = 2 * reach + 1
  # A disk grows alike in all directions.
  disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
  mask = mask_HW.astype(np.uint8)
  grown = cv2.dilate(mask, disk)
  return grown.astype(bool)


def fill_depth(depth_HW: np.ndarray, region_HW: np.ndarray) -> np.ndarray:
  """Depth (float32) with `region_HW` filled: an estimate of what lies behind a removed object.

  Disparity is continued into the region as the harmonic function of the known values at its rim. A
  plane's disparity is linear in the pixel, hence harmonic: a floor or a wall behind the object is
  recovered exactly. What was unknown outside the region stays unknown; a connected part of the
  region without any known rim becomes unknown.
  """
  known = np.isfinite(depth_HW) & ~region_HW
  filled = np.where(known, depth_HW, np.nan)
  filled = filled.astype(np.float32)

  # The unknowns are numbered; each is the mean of its neighbours, which are unknowns or the rim.
  count = int(region_HW.sum())
  running = np.cumsum(region_HW.ravel())
  running = running.reshape(region_HW.shape)
  number = np.where(region_HW, running - 1, -1)
  degree = np.zeros(count)
  total = np.zeros(count)
  rows = []
  columns = []
  for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
    # Neighbours that are unknowns too are linked.
    here, there = _neighbours(number, axis, step)
    is_unknown = here >= 0
    inner = is_unknown & (there >= 0)
    rows.append(here[inner])
    columns.append(there[inner])
    np.add.at(degree, here[inner], 1)

    # Neighbours on the rim give their disparity.
    _, known_there = _neighbours(known, axis, step)
    _, depth_there = _neighbours(depth_HW, axis, step)
    rim = is_unknown & known_there
    rim_depth = depth_there[rim].astype(np.float64)
    disparity_there = 1 / rim_depth
    np.add.at(degree, here[rim], 1)
    np.add.at(total, here[rim], disparity_there)

  # The discrete Laplace equation: degree x - sum of linked x = sum of the rim's disparities.
  row = np.concatenate(rows)
  column = np.concatenate(columns)
  ones = np.ones(len(row))
  linked = sparse.coo_matrix((ones, (row, column)), shape=(count, count))
  links = linked.tocsr()

  # Solved for the connected parts that touch something known.
  _, part = sparse.csgraph.connected_components(links, directed=False)
  rim_of_part = np.bincount(part, total)
  solvable = rim_of_part > 0
  chosen = np.flatnonzero(solvable[part])
  if len(chosen):
    laplacian = (sparse.diags(degree) - links).tocsc()
    system = laplacian[chosen][:, chosen]
    disparity = np.full(count, np.nan)
    disparity[chosen] = sparse.linalg.spsolve(system, total[chosen])
    filled[region_HW] = 1 / disparity
  return filled


def _neighbours(array: np.ndarray, axis: int, step: int) -> tuple[np.ndarray, np.ndarray]:
  """(the array, its neighbours a `step` along `axis`), both cut to where these lie inside."""
  along = np.moveaxis(array, axis, 0)
  if step > 0:
    here = along[:-1]
    there = along[1:]
  else:
    here = along[1:]
    there = along[:-1]
  return np.moveaxis(here, 0, axis), np.moveaxis(there, 0, axis)
