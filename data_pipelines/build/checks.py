"""Checks of one example against the schema and against physics.

Each finding is a short reason (counted) and a detail (shown).
"""

from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import numpy as np

from data_pipelines.format import schema
from data_pipelines.format.records import CorruptRecord
from data_pipelines.read import rows
from sam3d_jax.files import photos
from sam3d_jax.geometry import cameras, pose

ORTHONORMAL_TOLERANCE = 1e-4  # of R R^T - 1
INSIDE_SHARE = 0.95  # of the voxel centres in view that must project onto the object
# of projected voxels with the mask, below which the pose must be wrong; good data have 0.9 on
# average
SILHOUETTE_IOU = 0.5
# how far a point may project from its own pixel (95th percentile, pixels of the point map)
POINTMAP_PIXELS = 2.0
# fields that a projection of the voxels needs
PROJECTED = ("camera", "voxels", *schema.POSE_FIELDS, "mask")
SURFACE_SHARE = 0.8  # of the points under the mask that must lie on a voxel or next to one
VOXEL_PIXELS = 2.0  # silhouettes are compared at a size at which a voxel is this large
MAX_ENLARGED = 4.0  # times the image's size at most, for objects of few pixels


class Finding(NamedTuple):
  """What is wrong with an example."""

  reason: str
  detail: str


class Report(NamedTuple):
  """Findings of one example and what was measured on the way."""

  findings: list[Finding]
  silhouette_iou: float  # NaN if not measurable


class Failed(Exception):
  """A check failed; carries its finding."""


def fail(reason: str, detail: str) -> None:
  raise Failed(Finding(reason, detail))


def check_example(example: schema.Example, kind: str = "example") -> Report:
  """Runs every check that the example has the fields for."""
  try:
    schema.check_example(example, kind)
  except schema.SchemaError as error:
    return Report([Finding("schema", str(error))], np.nan)

  # every check by itself
  findings = []
  for check in (
    check_identity,
    check_images,
    check_voxels,
    check_latents,
    check_pose,
    check_pointmap,
    check_losers,
  ):
    findings += _run(check, example)

  # what only a sound example can be asked: whether its parts fit each other
  complete = all(schema.is_present(example, field) for field in PROJECTED)
  if findings or not complete:
    return Report(findings, np.nan)
  iou, finding = check_projection(example)
  if finding is not None:
    findings.append(finding)
  findings += _run(check_surface, example)
  return Report(findings, iou)


def _run(check: Callable[[schema.Example], None], example: schema.Example) -> list[Finding]:
  try:
    check(example)
  except Failed as failure:
    return [failure.args[0]]
  return []


def check_identity(example: schema.Example) -> None:
  """Fields without which a record cannot be traced."""
  for field in ("key", "source", "license", "lineage"):
    if not schema.is_present(example, field):
      fail(f"no_{field}", f"field {field!r} is empty")


def _decode(example: schema.Example, field: str, mode: str) -> np.ndarray:
  try:
    return rows.decode_image(example[field], field, mode=mode)
  except CorruptRecord as error:
    fail(f"bad_{field}", str(error))


def check_images(example: schema.Example) -> None:
  """Image, masks and camera agree in size; the mask is not empty and lies inside the full mask."""
  if not schema.is_present(example, "image"):
    return
  height, width = _decode(example, "image", "RGB").shape[:2]

  # pictures and camera of another size
  camera = example["camera"]
  camera_fits = (camera["height"], camera["width"]) == (height, width)
  if schema.is_present(example, "camera") and not camera_fits:
    fail(
      "camera_size",
      f"camera is of {camera['width']} x {camera['height']} pixels, image {width} x {height}",
    )
  if schema.is_present(example, "image_delit"):
    delit = _decode(example, "image_delit", "RGB")
    if delit.shape[:2] != (height, width):
      fail("delit_size", "image_delit has another size than image")
  if schema.is_present(example, "alpha"):
    alpha = _decode(example, "alpha", "L")
    if alpha.shape != (height, width):
      fail("alpha_size", "alpha has another size than image")
  if schema.is_present(example, "depth"):
    depth = example["depth"]
    if depth.shape != (height, width):
      fail("depth_size", "depth has another size than image")
    if (depth[np.isfinite(depth)] <= 0).any():
      fail("depth_behind", "depth is not positive everywhere that it is known")

  # masks
  masks = {}
  for field in ("mask", "mask_full"):
    if not schema.is_present(example, field):
      continue
    mask = _decode(example, field, "L") > 0
    if mask.shape != (height, width):
      fail(
        "mask_size",
        f"{field} is {mask.shape[1]} x {mask.shape[0]}, image {width} x {height}",
      )
    if not mask.any():
      fail("empty_mask", f"{field} has no pixel set")
    masks[field] = mask
  if len(masks) == 2:
    outside = int((masks["mask"] & ~masks["mask_full"]).sum())
    if outside:
      fail("mask_outside_full", f"{outside} pixels of the visible mask are not in the full mask")


def check_voxels(example: schema.Example) -> None:
  """Indices are in the grid, in lexicographic order, none twice."""
  if not schema.is_present(example, "voxels"):
    return
  voxels = example["voxels"].astype(np.int64)
  size = schema.VOXEL_RESOLUTION
  if voxels.max() >= size:
    fail("voxel_range", f"index {voxels.max()} in a grid of {size}")
  place_in_grid = voxels @ np.array([size**2, size, 1])
  if (np.diff(place_in_grid) <= 0).any():
    fail("voxel_order", "voxels are not in strictly ascending lexicographic order")


def check_latents(example: Mapping) -> None:
  """Latents are finite, name their autoencoder, and there is one structured latent a voxel."""
  for field in ("structure_latent", "slat"):
    if not schema.is_present(example, field):
      continue
    if not np.isfinite(example[field]).all():
      fail("latent_not_finite", f"{field} holds NaN or infinity")
    if not example[f"{field}_autoencoder"]:
      fail("latent_without_autoencoder", f"{field} does not name the autoencoder that made it")
  if schema.is_present(example, "slat"):
    latents, voxels = len(example["slat"]), len(example["voxels"])
    if latents != voxels:
      fail("slat_length", f"{latents} structured latents for {voxels} voxels")


def check_pose(example: Mapping) -> None:
  """The rotation is proper and orthonormal, the scale positive, the object before the camera; a
  pose is whole or absent.
  """
  # whole or absent
  for field in schema.POSE_FIELDS:
    unknown = np.isnan(example[field])
    if unknown.any() and not unknown.all():
      fail("pose_partly_nan", f"{field} is {np.array2string(example[field])}")

  # possible
  if schema.is_present(example, "rotation"):
    rotation = example["rotation"].astype(np.float64)
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    determinant = np.linalg.det(rotation)
    if error > ORTHONORMAL_TOLERANCE or determinant < 0:
      fail(
        "rotation",
        f"not a rotation: |R R^T - 1| = {error:.2g}, determinant {determinant:.3f}",
      )
  if schema.is_present(example, "scale") and (example["scale"] <= 0).any():
    fail("scale", f"scale {example['scale']} is not positive")
  if schema.is_present(example, "translation") and example["translation"][2] <= 0:
    fail(
      "behind_camera",
      f"translation {example['translation']}: the object's origin is behind the camera",
    )


def camera_of(example: schema.Example, width: int | None = None) -> cameras.Camera:
  """The example's camera, rescaled to an image of `width` pixels if given."""
  camera = cameras.Camera(**{name: float(value) for name, value in example["camera"].items()})
  factor = 1.0 if width is None else width / camera.width
  return cameras.Camera(
    fx=factor * camera.fx,
    fy=factor * camera.fy,
    cx=factor * camera.cx,
    cy=factor * camera.cy,
    width=round(camera.width * factor),
    height=round(camera.height * factor),
  )


def voxel_points(example: Mapping) -> np.ndarray:
  """Voxel centres (N, 3) in the camera frame."""
  centres = (example["voxels"].astype(np.float32) + 0.5) / schema.VOXEL_RESOLUTION - 0.5
  return pose.transform_points(centres, schema.example_pose(example))


def _resized(mask_HW: np.ndarray, height: int, width: int) -> np.ndarray:
  """The mask at another size, nearest."""
  own_height, own_width = mask_HW.shape
  rows = np.arange(height) * own_height // height
  columns = np.arange(width) * own_width // width
  return mask_HW[rows[:, None], columns]


def _hit(points_P3: np.ndarray, camera: cameras.Camera) -> tuple[np.ndarray, np.ndarray]:
  """(rows, columns) of the pixels that the points in view hit."""
  pixels, depth = cameras.project(points_P3, camera)
  columns, rows = np.floor(pixels).astype(np.int64).T
  in_front = depth > 0
  in_width = (columns >= 0) & (columns < camera.width)
  in_height = (rows >= 0) & (rows < camera.height)
  seen = in_front & in_width & in_height
  return rows[seen], columns[seen]


def silhouette(example: schema.Example) -> tuple[np.ndarray, np.ndarray, cameras.Camera]:
  """(projected voxels, mask of the whole object, camera of both pictures).

  Their size is one at which voxels are one or two pixels apart, larger than the image for objects
  of few pixels, whose outline their pixels would blur. The centres are drawn and gaps of one pixel
  closed. Whole cubes would overlap the outline by half a voxel and more: every voxel that the
  surface touches is set.
  """
  # the size, from that of a voxel in the image
  camera = camera_of(example)
  distance = max(float(example["translation"][2]), 1e-6)
  object_pixels = camera.fx * float(example["scale"].max())
  voxel_pixels = object_pixels / schema.VOXEL_RESOLUTION / distance
  factor = min(MAX_ENLARGED, VOXEL_PIXELS / voxel_pixels)
  width = round(camera.width * factor)
  camera = camera_of(example, max(16, width))

  # the voxels, with a border that closing may grow into
  drawn = np.zeros((camera.height + 2, camera.width + 2), bool)
  rows, columns = _hit(voxel_points(example), camera)
  drawn[rows + 1, columns + 1] = True
  grown = _grow(drawn)
  closed = ~_grow(~grown)
  drawn = closed[1:-1, 1:-1]

  # the mask at that size
  whole = "mask_full" if schema.is_present(example, "mask_full") else "mask"
  mask = _decode(example, whole, "L") > 0
  return drawn, _resized(mask, camera.height, camera.width), camera


def _grow(mask_HW: np.ndarray) -> np.ndarray:
  """The mask and its 8-neighbours."""
  height, width = mask_HW.shape
  padded = np.pad(mask_HW, 1)
  shifted = []
  for down in range(3):
    for right in range(3):
      shifted.append(padded[down : down + height, right : right + width])
  return np.any(shifted, axis=0)


def check_projection(example: schema.Example) -> tuple[float, Finding | None]:
  """(silhouette IoU, finding): voxels projected with the pose lie on the object and cover it."""
  drawn, mask, camera = silhouette(example)
  rows, columns = _hit(voxel_points(example), camera)
  if not len(rows):
    return 0.0, Finding("out_of_view", "no voxel projects into the image")

  # the mask and what touches it, by a pixel of the image at least
  around = mask
  image_pixel = math.ceil(camera.width / example["camera"]["width"])
  for _ in range(max(2, image_pixel)):
    around = _grow(around)
  inside = around[rows, columns].mean()
  joint, either = (drawn & mask).sum(), (drawn | mask).sum()
  iou = float(joint / max(either, 1))

  # an occluded object is larger than what is seen of it
  if not schema.is_present(example, "mask_full"):
    covered_pixels = (_grow(drawn) & mask).sum()
    covered = covered_pixels / max(mask.sum(), 1)
    if covered < INSIDE_SHARE:
      return np.nan, Finding("silhouette", f"the voxels cover {covered:.2f} of the visible mask")
    return np.nan, None

  # the whole of it
  if inside < INSIDE_SHARE:
    return iou, Finding(
      "voxels_outside_mask",
      f"{inside:.3f} of the voxels in view project onto the mask, not {INSIDE_SHARE}",
    )
  if iou < SILHOUETTE_IOU:
    return iou, Finding(
      "silhouette",
      f"projected voxels and mask have IoU {iou:.2f}, at least {SILHOUETTE_IOU} is needed",
    )
  return iou, None


def check_pointmap(example: schema.Example) -> None:
  """The point map has the image's aspect, its points lie before the camera, on their own pixels."""
  if not schema.is_present(example, "pointmap"):
    return
  # before the camera
  points = example["pointmap"].astype(np.float32)
  known = np.isfinite(points).all(-1)
  if not known.any():
    fail("pointmap_empty", "no point is known")
  behind = int((points[known][:, 2] <= 0).sum())
  if behind:
    fail("pointmap_behind_camera", f"{behind} points lie behind the camera")
  if not schema.is_present(example, "camera"):
    return

  # of the photo's aspect
  height, width = points.shape[:2]
  camera = camera_of(example)
  if not photos.same_aspect((height, width), (camera.height, camera.width)):
    fail(
      "pointmap_aspect",
      f"point map is {width} x {height}, the photo {camera.width} x {camera.height}",
    )

  # on their own pixels
  camera = cameras.resized(camera, width, height)
  pixels, _ = cameras.project(points[known], camera)
  rows, columns = np.nonzero(known)
  centres = np.stack([columns + 0.5, rows + 0.5], -1)
  off = np.abs(pixels - centres).max(-1)
  distance = np.percentile(off, 95)
  if distance > POINTMAP_PIXELS:
    fail(
      "pointmap_camera",
      f"points project {distance:.1f} pixels from their own, at most {POINTMAP_PIXELS} is allowed",
    )


def check_surface(example: schema.Example) -> None:
  """Points of the point map under the mask lie on the posed voxels."""
  if not schema.is_present(example, "pointmap"):
    return
  # the points of the object
  points = example["pointmap"].astype(np.float32)
  height, width = points.shape[:2]
  mask = _decode(example, "mask", "L") > 0
  mask = _resized(mask, height, width)
  known = np.isfinite(points).all(-1)
  points = points[mask & known]
  if not len(points):
    fail("pointmap_misses_object", "no point is known under the mask")

  # voxels that the surface passes through, and their neighbours, in a grid with a border
  size = schema.VOXEL_RESOLUTION
  grid = np.zeros((size + 2,) * 3, bool)
  around = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
  near = example["voxels"][:, None].astype(np.int64) + around
  grid[tuple(near.reshape(-1, 3).T)] = True

  # the share of the points that lie there
  local = pose.untransform_points(points, schema.example_pose(example))
  index = np.floor((local + 0.5) * size).astype(np.int64) + 1
  in_grid = ((index >= 0) & (index < size + 2)).all(-1)
  on_object = grid[tuple(index[in_grid].T)]
  share = on_object.sum() / len(points)
  if share < SURFACE_SHARE:
    fail(
      "pointmap_off_surface",
      f"{share:.2f} of the points under the mask lie on the object's voxels, not {SURFACE_SHARE}",
    )


def check_losers(example: schema.Example) -> None:
  """A preference example has losers with a shape, and winner and losers name their generators."""
  if "losers" not in example:
    return
  if not example["losers"]:
    fail("no_losers", "the preference example has no loser")
  # the winner is judged like those that lost to it
  named = {"winner": example}
  for number, loser in enumerate(example["losers"]):
    named[f"loser {number}"] = loser
  for name, candidate in named.items():
    if not candidate["generator"]:
      fail("no_generator", f"{name} does not say which model made it")
    has_voxels = schema.is_present(candidate, "voxels")
    has_latent = schema.is_present(candidate, "structure_latent")
    if not has_voxels and not has_latent:
      fail("no_shape", f"{name} has neither voxels nor a structure latent")
    for check in (check_latents, check_pose):
      for finding in _run(check, candidate):
        fail(finding.reason, f"{name}: {finding.detail}")
