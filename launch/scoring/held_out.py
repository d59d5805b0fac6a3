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
    source = records.open_split(folder, split)
    share = count * (number + 1) // len(folders) - count * number // len(folders)
    for i in sorted({i * len(source) // share for i in range(share)}):
      try:
        found.append(object_of(source[i], form, resolution))
      except records.CorruptRecord as error:
        raise InputError(
          f"{folder} split {split} example {i} cannot be used for evaluation: {error}"
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

  def has(*fields: str) -> bool:
    return all(schema.is_present(example, f) for f in fields)

  known = (
    schema.example_pose(example)
    if scale is not None and has("rotation", "translation", "scale")
    else None
  )
  return Object(
    key=example["key"],
    streams=streams,
    photo=rows.decode_image(example["image"], "image", mode="RGB"),
    mask=rows.decode_image(example["mask"], "mask", mode="L"),
    occupancy=rows.occupancy(example["voxels"], resolution).astype(bool),
    pose=known,
    scene_scale=scale if known is not None else None,
    scene_shift=shift if known is not None else None,
    rotation=example["rotation"] if has("rotation") else None,
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
  row["viou"] = float(occupancy.voxel_iou(occupancy_XYZ[None], found.occupancy[None])[0])
  row |= _surface_scores(occupancy_XYZ, found.occupancy, f1_threshold) | part_scores(
    occupancy_XYZ, found.occupancy
  )
  if found.rotation is not None and "rotation" in learned:
    turned = pose.decode_rotation(latents["rotation"][0])
    cosine = (np.trace(turned.T @ found.rotation) - 1) / 2
    row["rotation_deg"] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
  if found.pose is not None and {"rotation", "translation", "scale"} <= set(learned):
    placed = pose.decode_latents(
      {k: latents[k] for k in ("rotation", "translation", "scale", "translation_scale")}
      | (
        {}
        if "translation_scale" in learned
        else {"translation_scale": np.zeros((1, 1), np.float32)}
      ),
      found.scene_scale,
      found.scene_shift,
    )
    points = [voxel_centres(grid) for grid in (occupancy_XYZ, found.occupancy)]
    row["iou_3d"] = (
      layout.box_iou(
        pose.transform_points(points[0], placed), pose.transform_points(points[1], found.pose)
      )
      if len(points[0])
      else 0.0
    )
  return row


def voxel_centres(grid_XYZ: np.ndarray) -> np.ndarray:
  """(N, 3) in the object frame."""
  return (np.argwhere(grid_XYZ) + 0.5) / np.array(grid_XYZ.shape) - 0.5


def _surface_scores(
  pred_XYZ: np.ndarray, truth_XYZ: np.ndarray, threshold: float
) -> dict[str, float]:
  meshes = [mesh.from_occupancy(grid) for grid in (pred_XYZ, truth_XYZ)]
  if meshes[0] is None or meshes[1] is None:
    return {"f1": 0.0, "chamfer": shape.WORST["chamfer"]}
  pred, truth = (surface.sample_surface(m.transformed(scale=2), POINTS, 0)[0] for m in meshes)
  there, back = shape.nearest_distances(pred, truth), shape.nearest_distances(truth, pred)
  return {"f1": shape.f1(there, back, threshold), "chamfer": shape.chamfer(there, back)}


def part_scores(pred_XYZ: np.ndarray, truth_XYZ: np.ndarray) -> dict[str, float]:
  """`floaters` and `missing` of a sample, see `score`."""
  if not pred_XYZ.any() or not truth_XYZ.any():
    return {"floaters": 0.0, "missing": float(truth_XYZ.any())}
  far = lambda grid: ndimage.distance_transform_edt(~grid) > NEAR
  return {
    "floaters": float(far(truth_XYZ)[pred_XYZ].mean()),
    "missing": float(far(pred_XYZ)[truth_XYZ].mean()),
  }


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Mean of every score over the objects that have it; scores that none has are left out."""
  columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
  return {
    name: float(np.nanmean(values)) for name, values in columns.items() if np.isfinite(values).any()
  }
