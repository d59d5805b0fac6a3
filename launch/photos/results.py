"""From the samples of a photo's objects to its files: choice, refinement, meshes, layout.json,
scene.glb, points.ply, preview.png.

layout.json is written last: a folder that has it is complete.
"""

import dataclasses
import json
import pathlib

import numpy as np

from launch.photos.jobs import Job
from sam3d_jax.files import atomic
from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import cameras, preprocessing, rotations
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference import placement
from sam3d_jax.inference.candidates import Candidate
from sam3d_jax.inference.rewards import Reward
from sam3d_jax.render import mesh, preview, raycast

FORMAT = 1  # of layout.json
FRAMES = {
  "camera": "x left, y up, z forward",
  "object": "unit cube [-0.5, 0.5]^3, z up; `rotation` (w, x, y, z) and `matrix` take it to the "
  "camera: "
  "matrix @ (scale * x) + translation",
  "glb": "the object's GLB is y up, as glTF prescribes: (x, y, z) -> (x, z, -y); `rotation_glb` "
  "takes it to the camera",
  "scene": "scene.glb and points.ply are in glTF's camera frame, x right, y up, z backward: (x, y, "
  "z) of the camera -> (-x, y, -z)",
  "pixels": "u = cx - fx x / z, v = cy - fy y / z; the centre of the top left pixel is (0.5, 0.5)",
}
NOTES = {
  "camera": "translation and scale are in the point map's unit",
  "normalised": "no point map was given: translation and scale are relative to the unknown centre "
  "and scale of each object's point map",
  "rotation only": "the model has learned shape and rotation; translation and scale are unknown",
}
MAX_POINTS = 100_000  # of points.ply
PREVIEW_SIDE = 720  # pixels of each of the two large pictures, longer side
PREVIEW_ROWS = 24  # objects that get a row of their own


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One object's chosen sample and its place."""

  candidate: Candidate
  scores: list[float] | None  # of all samples, None if there was no choice
  placement: Pose | None
  source: str  # of the placement: model, fitted to the mask, refined
  refined: placement.Refined | None

  @property
  def mask_iou(self) -> float:
    if self.candidate.caster is None:
      return 0.0
    return raycast.mask_iou(
      self.candidate.caster, self.placement, self.candidate.mask_HW, self.candidate.photo.camera
    )


def is_done(job: Job, settings: dict, inputs: str) -> bool:
  """Whether the job's folder holds the complete results of these settings and inputs."""
  layout = read_layout(job.out)
  if layout is None or layout["settings"] != settings | {"inputs": inputs}:
    return False
  return all((job.out / name).exists() for name in layout["files"])


def read_layout(folder: pathlib.Path) -> dict | None:
  """layout.json of a folder of this format, None if there is none."""
  path = folder / "layout.json"
  if not path.exists():
    return None
  layout = json.loads(path.read_text())
  return layout if layout.get("format") == FORMAT else None


def write(
  job: Job, drawn: list[Candidate], reward: Reward | None, settings: dict, *, refine: bool, phases
) -> None:
  """Chooses among the samples of each object and writes the photo's files."""
  job.out.mkdir(parents=True, exist_ok=True)
  discard(job.out)
  by_name: dict[str, list[Candidate]] = {}
  for candidate in drawn:
    by_name.setdefault(candidate.name, []).append(candidate)
  outcomes = {name: resolve(found, reward, refine, phases) for name, found in by_name.items()}
  photo = drawn[0].photo
  with phases("write"):
    files = write_meshes(job.out, outcomes)
    if photo.pointmap_HW3 is not None:
      mesh.write_points(job.out / "points.ply", *coloured_points(photo))
      files.append("points.ply")
  with phases("preview"):
    draw(job.out / "preview.png", photo, outcomes)
  files.append("preview.png")
  atomic.write_json(job.out / "layout.json", layout(job, photo, outcomes, settings, files))


def discard(folder: pathlib.Path) -> None:
  """Removes the files of an earlier result, which may have had other objects."""
  earlier = read_layout(folder)
  if earlier is not None:
    (folder / "layout.json").unlink()
    for name in earlier["files"]:
      (folder / name).unlink(missing_ok=True)


def resolve(found: list[Candidate], reward: Reward | None, refine: bool, phases) -> Outcome:
  """Chooses the sample with the highest reward (the first if there is none) and finds its place."""
  scores = None
  with phases("mesh"):
    for candidate in found if reward is None else ():
      _ = candidate.shape
  if reward is not None:
    with phases("reward"):
      scores = reward(found)
  chosen = found[int(np.argmax(scores))] if scores else found[0]
  with phases("placement"):
    where, source, refined = (
      chosen.placement,
      "model" if chosen.metric else "fitted to the mask",
      None,
    )
  if refine and chosen.caster is not None:
    with phases("refine"):
      refined = placement.refine(
        chosen.caster, where, chosen.mask_HW, chosen.photo.camera, chosen.photo.pointmap_HW3
      )
    if refined.accepted:
      where, source = refined.pose, "refined"
  return Outcome(chosen, scores, where, source, refined)


def write_meshes(out: pathlib.Path, outcomes: dict[str, Outcome]) -> list[str]:
  """<object>.glb of every object that has a mesh, and scene.glb with all of them in place; the
  names of the files.
  """
  shapes = {
    name: o.candidate.shape for name, o in outcomes.items() if o.candidate.shape is not None
  }
  for name, shape in shapes.items():
    mesh.write_glb(out / f"{name}.glb", {name: shape})
  files = [f"{name}.glb" for name in shapes]
  if shapes:
    mesh.write_glb(
      out / "scene.glb", shapes, {name: scene_matrix(outcomes[name].placement) for name in shapes}
    )
    files.append("scene.glb")
  return files


def scene_matrix(where: Pose) -> np.ndarray:
  """4 x 4, acting on columns, from the vertices of an object's GLB to scene.glb."""
  to_gltf = np.diag(cameras.convert_frame(np.ones(3), "pytorch3d", "gltf"))
  out = np.eye(4)
  out[:3, :3] = to_gltf @ where.rotation @ np.diag(where.scale) @ cameras.OBJECT_FROM_GLTF.T
  out[:3, 3] = to_gltf @ where.translation
  return out


def coloured_points(photo: Photo) -> tuple[np.ndarray, np.ndarray]:
  """(points in scene.glb's frame, RGB) of the known part of the point map, evenly thinned."""
  points = photo.pointmap_HW3
  rows, columns = (
    nearest_index(n, m) for n, m in zip(photo.image_HW3.shape[:2], points.shape[:2], strict=True)
  )
  colours = photo.image_HW3[rows[:, None], columns]
  known = np.flatnonzero(np.isfinite(points[..., 2]))
  known = known[:: max(1, -(-len(known) // MAX_POINTS))]
  return cameras.convert_frame(points.reshape(-1, 3)[known], "pytorch3d", "gltf"), colours.reshape(
    -1, 3
  )[known]


def layout(
  job: Job, photo: Photo, outcomes: dict[str, Outcome], settings: dict, files: list[str]
) -> dict:
  """Contents of layout.json."""
  first = next(iter(outcomes.values())).candidate
  frame = "camera" if first.metric else "normalised" if first.predictor.placed else "rotation only"
  height, width = photo.image_HW3.shape[:2]
  in_unit = photo.pointmap_HW3 is not None
  assumed = (
    f"objects are fitted to their masks at distance {placement.ASSUMED_DEPTH:g} of an arbitrary "
    "unit"
    if not in_unit
    else "objects are fitted to their masks at the point map's depth"
  )
  return {
    "format": FORMAT,
    "frame": frame,
    "units": "of the point map" if frame == "camera" else None,
    "note": NOTES[frame],
    "frames": FRAMES,
    "image": str(job.image),
    "width": width,
    "height": height,
    "camera": dict(zip(("fx", "fy", "cx", "cy"), map(float, photo.camera[:4]), strict=True))
    | {"source": photo.camera_source}
    | ({"fov_deg": placement.ASSUMED_FOV_DEG} if photo.camera_source == "assumed" else {}),
    "scene": {
      "units": "of the point map" if in_unit else None,
      "note": "objects stand as `placement` says, which is their pose"
      if frame == "camera"
      else assumed,
    },
    "seed": settings["seed"],
    "steps": settings["sampler"]["steps"],
    "weights": settings["weights"],
    "settings": settings,
    "files": files,
    "objects": {name: entry(name, o, frame) for name, o in outcomes.items()},
  }


def entry(name: str, outcome: Outcome, frame: str) -> dict:
  """One object of layout.json."""
  found = outcome.candidate
  where = outcome.placement if frame == "camera" else found.pose
  known = frame != "rotation only"
  out = (
    {"file": f"{name}.glb" if found.shape is not None else None}
    | pose_fields(where, known)
    | {
      "matrix": where.rotation.tolist(),
      "placement": None
      if outcome.placement is None
      else pose_fields(outcome.placement, True) | {"source": outcome.source},
      "mask_iou": outcome.mask_iou,
    }
  )
  if outcome.scores is not None:
    out |= {"sample": found.index, "rewards": outcome.scores}
  if outcome.refined is not None:
    out["refined"] = {
      "accepted": outcome.refined.accepted,
      "mask_iou_before": outcome.refined.iou_before,
      "mask_iou_after": outcome.refined.iou_after,
    }
  return out


def pose_fields(where: Pose, known: bool) -> dict:
  """A pose as layout.json writes it; translation and scale are null where they are not known."""
  return {
    "rotation": quaternion(where.rotation),
    "rotation_glb": quaternion(where.rotation @ cameras.OBJECT_FROM_GLTF.T),
    "translation": where.translation.tolist() if known else None,
    "scale": where.scale.tolist() if known else None,
  }


def quaternion(matrix_33: np.ndarray) -> list[float]:
  """(w, x, y, z) of a rotation that acts on column vectors."""
  return [float(v) for v in rotations.matrix_to_quaternion(np.asarray(matrix_33, np.float64))]


def draw(path: pathlib.Path, photo: Photo, outcomes: dict[str, Outcome]) -> None:
  """preview.png: the photo with its masks, the objects over it, then one row an object, in place
  and turned.
  """
  height, width = photo.image_HW3.shape[:2]
  factor = min(1.0, PREVIEW_SIDE / max(height, width))
  small = (max(1, round(height * factor)), max(1, round(width * factor)))
  image = preprocessing.resize_float(photo.image_HW3, small).round().clip(0, 255).astype(np.uint8)
  camera = cameras.resized(photo.camera, small[1], small[0])
  marks = {name: preview.mark(i) for i, name in enumerate(outcomes)}
  masks = {
    name: photo.masks[name][
      nearest_index(height, small[0])[:, None], nearest_index(width, small[1])
    ]
    for name in outcomes
  }

  def over(names, *, width: int) -> np.ndarray:
    placed = [
      (outcomes[n].candidate.caster, outcomes[n].placement, marks[n])
      for n in names
      if outcomes[n].candidate.caster
    ]
    return preview.outline(
      preview.overlay(image, camera, placed),
      [masks[n] for n in names],
      [marks[n] for n in names],
      width=width,
    )

  marked = preview.outline(image, list(masks.values()), list(marks.values()))
  sheets = [
    preview.beside(
      [marked, over(outcomes, width=1)],
      ("photo and masks", f"objects in place, camera {photo.camera_source}"),
    )
  ]
  rows, captions = [], []
  for name, o in list(outcomes.items())[:PREVIEW_ROWS]:
    window = preprocessing.crop_window(photo.masks[name])
    view = (o.placement or o.candidate.pose).rotation
    crops = [
      preprocessing.resize_nearest(photo.image_HW3, window, min(window.side, 192)),
      crop_of(over([name], width=1), window, factor),
    ]
    shape = o.candidate.shape and o.candidate.shape.painted(marks[name])
    rows.append(crops + [preview.render(shape, v) for v in (view, preview.turned(view, 120.0))])
    captions.append(caption(name, o))
  left_out = (
    "" if len(rows) == len(outcomes) else f"the first {len(rows)} of {len(outcomes)} objects"
  )
  sheets.append(
    preview.grid(
      rows,
      ("object", "in place", "sample, photo's view", "sample, turned 120°"),
      captions,
      title=left_out,
    )
  )
  with atomic.write(path) as temporary:
    preview.stack(sheets).save(temporary)


def crop_of(picture: np.ndarray, window: preprocessing.Window, factor: float) -> np.ndarray:
  """The part of a picture, which is the photo times `factor`, that a window of the photo shows."""
  scaled = lambda v: int(round(v * factor))
  side = max(1, scaled(window.side))
  x, y = scaled(window.x), scaled(window.y)
  return preprocessing.cut(picture, preprocessing.Window((x, y, x + side, y + side), x, y, side))


def caption(name: str, outcome: Outcome) -> str:
  if outcome.candidate.shape is None:
    return f"{name}: empty sample"
  text = f"{name}: {outcome.source}, mask IoU {outcome.mask_iou:.2f}"
  if outcome.refined is not None:
    verdict = "taken" if outcome.refined.accepted else "not taken"
    text += f" (refinement {verdict}: {outcome.refined.iou_before:.2f} -> {outcome.refined.iou_after:.2f})"
  return text
