"""Held-out objects, kept in memory, and the scores of shapes and poses sampled for them.

Scores are taken in the object's own frame, without alignment (a shape that is right but turned is
wrong), on the decoder's grid: made for comparing checkpoints of one run and stages of one ladder.
The published protocol is launch.evaluate's.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np
from scipy import ndimage

from data_pipelines.format import records, schema
from data_pipelines.read import rows
from sam3d_jax.batch import Conditioning
from sam3d_jax.content_keys import key_words
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import layout, occupancy, shape, surface
from sam3d_jax.geometry import pose
from sam3d_jax.geometry.conditions import InputConfig
from sam3d_jax.inference.predictor import Request
from sam3d_jax.render import mesh

POINTS = 8192  # on each surface
NEAR = 2.0  # voxels between what is predicted and what is true that still count as the same part
LAYOUT = ("rotation", "translation", "scale", "translation_scale")  # latents
HIGHER_IS_BETTER = {
  "viou": True,
  "f1": True,
  "iou_3d": True,
  "chamfer": False,
  "rotation_deg": False,
  "floaters": False,
  "missing": False,
}


@dataclasses.dataclass(frozen=True)
class Object:
  """One held-out object as the model sees it, and the truth about it."""

  key: str
  streams: Conditioning  # without batch axis
  photo: np.ndarray  # (H, W, 3) uint8
  mask: np.ndarray  # (H, W) uint8
  occupancy: np.ndarray  # (X, Y, Z) bool
  pose: pose.Pose | None  # None where the example has no complete pose or no point map
  scene_scale: np.ndarray | None  # of the point map's normalisation
  scene_shift: np.ndarray | None
  rotation: np.ndarray | None  # (3, 3) as in Pose


def read(
  folders: Sequence[str], split: str, form: InputConfig, resolution: int, count: int
) -> list[Object]:
  """`count` objects spread evenly over the split of each dataset, the same ones every time; fewer
  if there are fewer.

  Raises InputError if an example lacks its photo, mask or voxels.
  """
  found: list[Object] = []
  for number, folder in enumerate(folders):
    # Datasets share the count evenly, and each gives evenly spaced examples.
    source = records.open_split(folder, split)
    before = count * number // len(folders)
    after = count * (number + 1) // len(folders)
    share = after - before
    positions = {i * len(source) // share for i in range(share)}
    for position in sorted(positions):
      try:
        example = source[position]
        found.append(object_of(example, form, resolution))
      except records.CorruptRecord as error:
        raise InputError(
          f"{folder} split {split} example {position} cannot be used for evaluation: {error}"
        ) from error
  if not found:
    raise InputError(f"no held-out object in split {split!r} of {', '.join(folders)}")
  return found


def object_of(example: schema.Example, form: InputConfig, resolution: int) -> Object:
  """An example in the form that the model reads, with its truth.

  Raises CorruptRecord if it lacks its photo, mask or voxels.
  """
  rows.require(example, "image", "mask", "voxels")
  streams, scale, shift = rows.condition(example, form, None)

  # Layout latents are relative to the point map: without one the pose cannot be compared.
  has_rotation = schema.is_present(example, "rotation")
  has_translation = schema.is_present(example, "translation")
  has_scale = schema.is_present(example, "scale")
  known = None
  if scale is not None and has_rotation and has_translation and has_scale:
    known = schema.example_pose(example)

  voxels = rows.occupancy(example["voxels"], resolution)
  return Object(
    key=example["key"],
    streams=streams,
    photo=rows.decode_image(example["image"], "image", mode="RGB"),
    mask=rows.decode_image(example["mask"], "mask", mode="L"),
    occupancy=voxels.astype(bool),
    pose=known,
    scene_scale=None if known is None else scale,
    scene_shift=None if known is None else shift,
    rotation=example["rotation"] if has_rotation else None,
  )


def requests(objects: Sequence[Object]) -> list[Request]:
  """One sample to draw for each object."""
  return [Request(o.streams, key_words(o.key)) for o in objects]


def score(
  found: Object,
  occupancy_XYZ: np.ndarray,
  latents: Mapping[str, np.ndarray],
  learned: Sequence[str],
  *,
  f1_threshold: float,
) -> dict[str, float]:
  """Scores of one sample; what cannot be scored is NaN.

  viou of the voxel grids; f1 and chamfer of surface points in units of half the object cube;
  floaters, the share of predicted voxels farther than NEAR voxels from any true one; missing, the
  share of true voxels farther than that from any predicted one; rotation_deg, the angle to the true
  rotation; iou_3d of the axis-aligned boxes in the scene. latents: name -> (tokens, channels).
  learned: latents that the model was trained on.
  """
  row = dict.fromkeys(HIGHER_IS_BETTER, np.nan)

  # The shape.
  iou_1 = occupancy.voxel_iou(occupancy_XYZ[None], found.occupancy[None])
  row["viou"] = float(iou_1[0])
  row |= _surface_scores(occupancy_XYZ, found.occupancy, f1_threshold)
  row |= part_scores(occupancy_XYZ, found.occupancy)

  # The rotation: tr(A^T B) = 1 + 2 cos(angle between A and B).
  if found.rotation is not None and "rotation" in learned:
    turned = pose.decode_rotation(latents["rotation"][0])
    cosine = (np.trace(turned.T @ found.rotation) - 1) / 2
    radians = np.arccos(np.clip(cosine, -1, 1))
    row["rotation_deg"] = float(np.degrees(radians))

  # The place: boxes of both grids, each where its pose puts it.
  knows_place = {"rotation", "translation", "scale"} <= set(learned)
  if found.pose is not None and knows_place:
    layout_latents = {name: latents[name] for name in LAYOUT}
    if "translation_scale" not in learned:
      layout_latents["translation_scale"] = np.zeros((1, 1), np.float32)
    placed = pose.decode_latents(layout_latents, found.scene_scale, found.scene_shift)

    pred_P3 = voxel_centres(occupancy_XYZ)
    truth_P3 = voxel_centres(found.occupancy)
    row["iou_3d"] = 0.0
    if len(pred_P3):
      pred_P3 = pose.transform_points(pred_P3, placed)
      truth_P3 = pose.transform_points(truth_P3, found.pose)
      row["iou_3d"] = layout.box_iou(pred_P3, truth_P3)
  return row


def voxel_centres(grid_XYZ: np.ndarray) -> np.ndarray:
  """(N, 3) in the object frame."""
  index = np.argwhere(grid_XYZ)
  size = np.array(grid_XYZ.shape)
  return (index + 0.5) / size - 0.5


def _surface_scores(
  pred_XYZ: np.ndarray, truth_XYZ: np.ndarray, threshold: float
) -> dict[str, float]:
  pred_mesh = mesh.from_occupancy(pred_XYZ)
  truth_mesh = mesh.from_occupancy(truth_XYZ)
  if pred_mesh is None or truth_mesh is None:
    return {"f1": 0.0, "chamfer": shape.WORST["chamfer"]}

  # Half the object cube becomes the unit.
  pred, _ = surface.sample_surface(pred_mesh.transformed(scale=2), POINTS, 0)
  truth, _ = surface.sample_surface(truth_mesh.transformed(scale=2), POINTS, 0)
  there = shape.nearest_distances(pred, truth)
  back = shape.nearest_distances(truth, pred)
  return {
    "f1": shape.f1(there, back, threshold),
    "chamfer": shape.chamfer(there, back),
  }


def part_scores(pred_XYZ: np.ndarray, truth_XYZ: np.ndarray) -> dict[str, float]:
  """`floaters` and `missing` of a sample, see `score`."""
  if not pred_XYZ.any() or not truth_XYZ.any():
    return {"floaters": 0.0, "missing": float(truth_XYZ.any())}

  # Distance of every voxel from the nearest that is occupied.
  from_truth = ndimage.distance_transform_edt(~truth_XYZ)
  from_pred = ndimage.distance_transform_edt(~pred_XYZ)
  floats = from_truth[pred_XYZ] > NEAR
  misses = from_pred[truth_XYZ] > NEAR
  return {
    "floaters": float(floats.mean()),
    "missing": float(misses.mean()),
  }


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Mean of every score over the objects that have it; scores that none has are left out."""
  means = {}
  for name in rows[0]:
    values = np.array([row[name] for row in rows], float)
    if np.isfinite(values).any():
      means[name] = float(np.nanmean(values))
  return means
