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
PROJECTED = ("camera", "voxels", "rotation", "translation", "scale", "mask")
SURFACE_SHARE = 0.8  # of the points under the mask that must lie on a voxel or next to one
VOXEL_PIXELS = 2.0  # silhouettes are compared at a size at which a voxel is this large
MAX_ENLARGED = 4.0  # times the image's size at most, for objects of few pixels


class Finding(NamedTuple):
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
  if findings or not all(schema.is_present(example, field) for field in PROJECTED):
    return Report(findings, np.nan)
  iou, finding = check_projection(example)
  if finding is not None:
    findings.append(finding)
  return Report(findings + _run(check_surface, example), iou)


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
  size = _decode(example, "image", "RGB").shape[:2]
  camera = example["camera"]
  if schema.is_present(example, "camera") and (camera["height"], camera["width"]) != size:
    fail(
      "camera_size",
      f"camera is of {camera['width']} x {camera['height']} pixels, image {size[1]} x {size[0]}",
    )
  if (
    schema.is_present(example, "image_delit")
    and _decode(example, "image_delit", "RGB").shape[:2] != size
  ):
    fail("delit_size", "image_delit has another size than image")
  masks = {}
  for field in ("mask", "mask_full"):
    if schema.is_present(example, field):
      masks[field] = _decode(example, field, "L") > 0
      if masks[field].shape != size:
        fail(
          "mask_size",
          f"{field} is {masks[field].shape[1]} x {masks[field].shape[0]}, image {size[1]} x "
          f"{size[0]}",
        )
      if not masks[field].any():
        fail("empty_mask", f"{field} has no pixel set")
  if len(masks) == 2 and (masks["mask"] & ~masks["mask_full"]).any():
    outside = int((masks["mask"] & ~masks["mask_full"]).sum())
    fail("mask_outside_full", f"{outside} pixels of the visible mask are not in the full mask")


def check_voxels(example: schema.Example) -> None:
  """Indices are in the grid, in lexicographic order, none twice."""
  if not schema.is_present(example, "voxels"):
    return
  voxels = example["voxels"].astype(np.int64)
  if voxels.max() >= schema.VOXEL_RESOLUTION:
    fail("voxel_range", f"index {voxels.max()} in a grid of {schema.VOXEL_RESOLUTION}")
  if (
    np.diff(voxels @ np.array([schema.VOXEL_RESOLUTION**2, schema.VOXEL_RESOLUTION, 1])) <= 0
  ).any():
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
  if schema.is_present(example, "slat") and len(example["slat"]) != len(example["voxels"]):
    fail(
      "slat_length",
      f"{len(example['slat'])} structured latents for {len(example['voxels'])} voxels",
    )


def check_pose(example: Mapping) -> None:
  """The rotation is proper and orthonormal, the scale positive, the object before the camera; a
  pose is whole or absent.
  """
  fields = ("rotation", "translation", "scale")
  for field in fields:
    if np.isnan(example[field]).any() and not np.isnan(example[field]).all():
      fail("pose_partly_nan", f"{field} is {np.array2string(example[field])}")
  if schema.is_present(example, "rotation"):
    rotation = example["rotation"].astype(np.float64)
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > ORTHONORMAL_TOLERANCE or np.linalg.det(rotation) < 0:
      fail(
        "rotation",
        f"not a rotation: |R R^T - 1| = {error:.2g}, determinant {np.linalg.det(rotation):.3f}",
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
  fx, fy, cx, cy = (factor * getattr(camera, n) for n in ("fx", "fy", "cx", "cy"))
  return cameras.Camera(fx, fy, cx, cy, round(camera.width * factor), round(camera.height * factor))


def voxel_points(example: Mapping) -> np.ndarray:
  """Voxel centres (N, 3) in the camera frame."""
  centres = (example["voxels"].astype(np.float32) + 0.5) / schema.VOXEL_RESOLUTION - 0.5
  return pose.transform_points(centres, schema.example_pose(example))


def _resized(mask_HW: np.ndarray, height: int, width: int) -> np.ndarray:
  """The mask at another size, nearest."""
  rows = np.arange(height) * mask_HW.shape[0] // height
  columns = np.arange(width) * mask_HW.shape[1] // width
  return mask_HW[rows[:, None], columns]


def _hit(points_P3: np.ndarray, camera: cameras.Camera) -> tuple[np.ndarray, np.ndarray]:
  """(rows, columns) of the pixels that the points in view hit."""
  pixels, depth = cameras.project(points_P3, camera)
  column, row = np.floor(pixels).astype(np.int64).T
  seen = (depth > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
  return row[seen], column[seen]


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
  voxel = camera.fx * float(example["scale"].max()) / schema.VOXEL_RESOLUTION / distance
  enlarged = camera.width * min(MAX_ENLARGED, VOXEL_PIXELS / voxel)
  camera = camera_of(example, max(16, round(enlarged)))

  # the voxels, with a border that closing may grow into
  drawn = np.zeros((camera.height + 2, camera.width + 2), bool)
  rows, columns = _hit(voxel_points(example), camera)
  drawn[rows + 1, columns + 1] = True
  drawn = ~_grow(~_grow(drawn))[1:-1, 1:-1]
  whole = "mask_full" if schema.is_present(example, "mask_full") else "mask"
  mask = _decode(example, whole, "L") > 0
  return drawn, _resized(mask, camera.height, camera.width), camera


def _grow(mask_HW: np.ndarray) -> np.ndarray:
  """The mask and its 8-neighbours."""
  padded = np.pad(mask_HW, 1)
  height, width = mask_HW.shape
  return np.any([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


def check_projection(example: schema.Example) -> tuple[float, Finding | None]:
  """(silhouette IoU, finding): voxels projected with the pose lie on the object and cover it."""
  drawn, mask, camera = silhouette(example)
  rows, columns = _hit(voxel_points(example), camera)
  if not len(rows):
    return 0.0, Finding("out_of_view", "no voxel projects into the image")

  # the mask and what touches it, by a pixel of the image at least
  around = mask
  for _ in range(max(2, math.ceil(camera.width / example["camera"]["width"]))):
    around = _grow(around)
  inside = around[rows, columns].mean()
  iou = float((drawn & mask).sum() / max((drawn | mask).sum(), 1))

  # an occluded object is larger than what is seen of it
  if not schema.is_present(example, "mask_full"):
    covered = (_grow(drawn) & mask).sum() / max(mask.sum(), 1)
    if covered < INSIDE_SHARE:
      return np.nan, Finding("silhouette", f"the voxels cover {covered:.2f} of the visible mask")
    return np.nan, None
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
  points = example["pointmap"].astype(np.float32)
  known = np.isfinite(points).all(-1)
  if not known.any():
    fail("pointmap_empty", "no point is known")
  behind = int((points[known][:, 2] <= 0).sum())
  if behind:
    fail("pointmap_behind_camera", f"{behind} points lie behind the camera")
  if not schema.is_present(example, "camera"):
    return
  height, width = points.shape[:2]
  camera = camera_of(example)
  if not photos.same_aspect((height, width), (camera.height, camera.width)):
    fail(
      "pointmap_aspect",
      f"point map is {width} x {height}, the photo {camera.width} x {camera.height}",
    )
  camera = cameras.resized(camera, width, height)
  pixels, _ = cameras.project(points[known], camera)
  rows, columns = np.nonzero(known)
  distance = np.percentile(np.abs(pixels - np.stack([columns + 0.5, rows + 0.5], -1)).max(-1), 95)
  if distance > POINTMAP_PIXELS:
    fail(
      "pointmap_camera",
      f"points project {distance:.1f} pixels from their own, at most {POINTMAP_PIXELS} is allowed",
    )


def check_surface(example: schema.Example) -> None:
  """Points of the point map under the mask lie on the posed voxels."""
  if not schema.is_present(example, "pointmap"):
    return
  points = example["pointmap"].astype(np.float32)
  mask = _resized(_decode(example, "mask", "L") > 0, *points.shape[:2])
  points = points[mask & np.isfinite(points).all(-1)]
  if not len(points):
    fail("pointmap_misses_object", "no point is known under the mask")

  # voxels that the surface passes through, and their neighbours, in a grid with a border
  local = pose.untransform_points(points, schema.example_pose(example))
  index = np.floor((local + 0.5) * schema.VOXEL_RESOLUTION).astype(np.int64) + 1
  grid = np.zeros((schema.VOXEL_RESOLUTION + 2,) * 3, bool)
  around = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
  near = (example["voxels"][:, None].astype(np.int64) + around).reshape(-1, 3)
  grid[tuple(near.T)] = True
  inside = ((index >= 0) & (index < grid.shape[0])).all(-1)
  share = grid[tuple(index[inside].T)].sum() / len(points)
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
  named = [("winner", example)]
  named += [(f"loser {i}", loser) for i, loser in enumerate(example["losers"])]
  for name, candidate in named:
    if not candidate["generator"]:
      fail("no_generator", f"{name} does not say which model made it")
    if not (
      schema.is_present(candidate, "voxels") or schema.is_present(candidate, "structure_latent")
    ):
      fail("no_shape", f"{name} has neither voxels nor a structure latent")
    for check in (check_latents, check_pose):
      for finding in _run(check, candidate):
        fail(finding.reason, f"{name}: {finding.detail}")
