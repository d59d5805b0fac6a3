"""The files of a scene: meshes, layout.json, scene.glb, points.ply, preview.png.

layout.json is written last: a folder that has it is complete.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic, names, texts
from sam3d_jax.files.photos import Photo
from sam3d_jax.geometry import cameras, resizing, rotations, windows
from sam3d_jax.geometry.grids import nearest_index
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference import placement
from sam3d_jax.inference.objects import Phases, SceneObject
from sam3d_jax.render import mesh, preview

LAYOUT = "layout.json"
FORMAT = 1  # of layout.json
# what layout.json has at least, and of what kind
KEYS = {"files": list, "objects": dict, "settings": dict, "camera": dict, "scene": dict}
OWN_FILES = ("points.ply", "preview.png")  # beside the meshes
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


def read_layout(folder: pathlib.Path) -> dict | None:
  """layout.json of a folder of results, None if there is none, or one of another format or program.

  It may have been changed, or come from others: what it says of files is in `files_of`.
  """
  path = folder / LAYOUT
  if not path.is_file():
    return None
  try:
    layout = texts.read_json(path)
  except texts.TextError:
    return None
  if not isinstance(layout, dict) or layout.get("format") != FORMAT:
    return None
  well_formed = all(isinstance(layout.get(key), kind) for key, kind in KEYS.items())
  return layout if well_formed else None


def files_of(layout: Mapping[str, Any]) -> list[str]:
  """Names of the files that a layout.json lists, those of the kinds that `write` makes.

  A name is a file right beside it: what leads elsewhere is no file of a scene.
  """
  found = []
  for name in layout["files"]:
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      continue
    if name in OWN_FILES or name.endswith(".glb"):
      found.append(name)
  return found


def check_own(folder: pathlib.Path) -> None:
  """Raises InputError if a folder holds a layout.json that is not of a scene: it stays as it is."""
  path = folder / LAYOUT
  is_there = path.exists() or path.is_symlink()
  # What a crash has left without a byte of content is nobody's.
  if path.is_file() and not path.is_symlink() and texts.is_blank(path):
    return
  if is_there and (path.is_symlink() or read_layout(folder) is None):
    raise InputError(
      f"{path} was not made by this program, or by another version of it, and is not touched: give "
      "another folder, or move it away"
    )


def write(
  out: pathlib.Path,
  photo: Photo,
  objects: Sequence[SceneObject],
  frame: str,
  settings: Mapping[str, Any],
  phases: Phases,
) -> None:
  """Writes the files of a scene into a folder; see Scene for the arguments."""
  # Nothing of an earlier result may stay beside the new one.
  out.mkdir(parents=True, exist_ok=True)
  discard(out)
  with phases("write"):
    files = write_meshes(out, objects)
    if photo.pointmap_HW3 is not None:
      points_P3, colours_P3 = coloured_points(photo)
      mesh.write_points(out / "points.ply", points_P3, colours_P3)
      files.append("points.ply")
  with phases("preview"):
    draw(out / "preview.png", photo, objects)
  files.append("preview.png")

  # Last, because it says that all the others are there.
  contents = layout(photo, objects, frame, settings, files)
  atomic.write_json(out / LAYOUT, contents)


def discard(folder: pathlib.Path) -> None:
  """Removes the files of an earlier result, which may have had other objects, and no others.

  Raises InputError for a layout.json that is not of a scene.
  """
  check_own(folder)
  earlier = read_layout(folder)
  if earlier is None:
    return
  # First what says that the folder is complete.
  (folder / LAYOUT).unlink()
  for name in files_of(earlier):
    path = folder / name
    if path.is_file() and not path.is_symlink():
      path.unlink()


def write_meshes(out: pathlib.Path, objects: Sequence[SceneObject]) -> list[str]:
  """<object>.glb of every object that has a mesh, and scene.glb with all of them in place.

  Returns the names of the files.
  """
  shapes = {}
  places = {}
  for found in objects:
    if found.mesh is not None:
      shapes[found.name] = found.mesh
      places[found.name] = scene_matrix(found.placement)
  if not shapes:
    return []

  # Each alone, in the unit cube, then all in place.
  files = []
  for name, shape in shapes.items():
    file = mesh_name(name)
    mesh.write_glb(out / file, {name: shape})
    files.append(file)
  mesh.write_glb(out / "scene.glb", shapes, places)
  files.append("scene.glb")
  return files


def mesh_name(name: str) -> str:
  """The name of an object's file: whatever the object is called, it lies in the scene's folder."""
  return f"{names.file_name(name)}.glb"


def scene_matrix(where: Pose) -> np.ndarray:
  """4 x 4, acting on columns, from the vertices of an object's GLB to scene.glb."""
  # From the GLB's y up to the object frame, to the camera, to glTF's camera.
  signs = cameras.convert_frame(np.ones(3), "pytorch3d", "gltf")
  to_gltf = np.diag(signs)
  sized = np.diag(where.scale)
  linear = to_gltf @ where.rotation @ sized @ cameras.OBJECT_FROM_GLTF.T

  out = np.eye(4)
  out[:3, :3] = linear
  out[:3, 3] = to_gltf @ where.translation
  return out


def coloured_points(photo: Photo) -> tuple[np.ndarray, np.ndarray]:
  """(points in scene.glb's frame, RGB) of the known part of the point map, evenly thinned."""
  # The photo's colours at the size of the point map.
  points_HW3 = photo.pointmap_HW3
  height, width = photo.size
  rows = nearest_index(height, points_HW3.shape[0])
  columns = nearest_index(width, points_HW3.shape[1])
  colours_P3 = photo.image_HW3[rows[:, None], columns].reshape(-1, 3)

  # Every n-th known point, so that at most MAX_POINTS are left.
  known = np.flatnonzero(np.isfinite(points_HW3[..., 2]))
  stride = max(1, math.ceil(len(known) / MAX_POINTS))
  chosen = known[::stride]
  points_P3 = points_HW3.reshape(-1, 3)[chosen]
  converted = cameras.convert_frame(points_P3, "pytorch3d", "gltf")
  return converted, colours_P3[chosen]


def layout(
  photo: Photo,
  objects: Sequence[SceneObject],
  frame: str,
  settings: Mapping[str, Any],
  files: list[str],
) -> dict:
  """Contents of layout.json."""
  height, width = photo.size
  camera = {
    "fx": float(photo.camera.fx),
    "fy": float(photo.camera.fy),
    "cx": float(photo.camera.cx),
    "cy": float(photo.camera.cy),
    "source": photo.camera_source,
  }
  if photo.camera_source == "assumed":
    camera["fov_deg"] = cameras.ASSUMED_FOV_DEG

  # What the objects' places in the scene mean.
  in_unit = photo.pointmap_HW3 is not None
  if frame == "camera":
    note = "objects stand as `placement` says, which is their pose"
  elif in_unit:
    note = "objects are fitted to their masks at the point map's depth"
  else:
    note = (
      f"objects are fitted to their masks at distance {placement.ASSUMED_DEPTH:g} of an arbitrary "
      "unit"
    )
  scene = {
    "units": "of the point map" if in_unit else None,
    "note": note,
  }

  # The keys are a contract with who reads the file: docs/inference.md.
  return {
    "format": FORMAT,
    "frame": frame,
    "units": "of the point map" if frame == "camera" else None,
    "note": NOTES[frame],
    "frames": FRAMES,
    "image": str(photo.path) or None,
    "width": width,
    "height": height,
    "camera": camera,
    "scene": scene,
    "seed": settings["seed"],
    "steps": settings["sampler"]["steps"],
    "weights": settings["weights"],
    "settings": settings,
    "files": files,
    "objects": {found.name: entry(found, frame) for found in objects},
  }


def entry(found: SceneObject, frame: str) -> dict:
  """One object of layout.json."""
  # Two poses: what the model says, and where the object stands in the scene.
  placed = None
  if found.placement is not None:
    placed = pose_fields(found.placement, True)
    placed["source"] = found.source

  where = found.pose
  out = {
    "file": None if found.mesh is None else mesh_name(found.name),
    **pose_fields(where, frame != "rotation only"),
    "matrix": where.rotation.tolist(),
    "placement": placed,
    "mask_iou": found.mask_iou,
  }

  # What was asked for beyond one sample as it is.
  if found.scores is not None:
    out["sample"] = found.candidate.index
    out["rewards"] = list(found.scores)
  if found.refined is not None:
    out["refined"] = {
      "accepted": found.refined.accepted,
      "mask_iou_before": found.refined.iou_before,
      "mask_iou_after": found.refined.iou_after,
    }
  return out


def pose_fields(where: Pose, known: bool) -> dict:
  """A pose as layout.json writes it; translation and scale are null where they are not known."""
  from_glb = where.rotation @ cameras.OBJECT_FROM_GLTF.T
  return {
    "rotation": quaternion(where.rotation),
    "rotation_glb": quaternion(from_glb),
    "translation": where.translation.tolist() if known else None,
    "scale": where.scale.tolist() if known else None,
  }


def quaternion(matrix_33: np.ndarray) -> list[float]:
  """(w, x, y, z) of a rotation that acts on column vectors."""
  matrix_33 = np.asarray(matrix_33, np.float64)
  return rotations.matrix_to_quaternion(matrix_33).tolist()


def draw(path: pathlib.Path, photo: Photo, objects: Sequence[SceneObject]) -> None:
  """preview.png: the photo with its masks and the objects over it, then one row an object.

  A row shows the object's crop, the object in place, and its mesh from two sides.
  """
  # Everything is drawn over a small copy of the photo.
  height, width = photo.size
  factor = min(1.0, PREVIEW_SIDE / max(height, width))
  small_height = max(1, round(height * factor))
  small_width = max(1, round(width * factor))
  resized = resizing.resize_float(photo.image_HW3, (small_height, small_width))
  image = resized.round().clip(0, 255).astype(np.uint8)
  camera = cameras.resized(photo.camera, small_width, small_height)

  # Each object has a mask of that size, and a colour.
  rows = nearest_index(height, small_height)
  columns = nearest_index(width, small_width)
  masks = {}
  marks = {}
  for number, found in enumerate(objects):
    masks[found.name] = photo.masks[found.name][rows[:, None], columns]
    marks[found.name] = preview.mark(number)

  def over(chosen: Sequence[SceneObject]) -> np.ndarray:
    """The photo with some objects over it, and the outlines of their masks."""
    # An empty sample has nothing to draw, but a mask.
    placed = []
    for found in chosen:
      if found.candidate.caster:
        placed.append((found.candidate.caster, found.placement, marks[found.name]))
    covered = preview.overlay(image, camera, placed)
    return preview.outline(
      covered,
      [masks[found.name] for found in chosen],
      [marks[found.name] for found in chosen],
      width=1,
    )

  # All of it.
  marked = preview.outline(image, list(masks.values()), list(marks.values()))
  whole = preview.beside(
    [marked, over(objects)],
    ("photo and masks", f"objects in place, camera {photo.camera_source}"),
  )

  # One row an object; an empty sample shows how it would have been turned.
  pictures = []
  captions = []
  for found in objects[:PREVIEW_ROWS]:
    window = windows.crop_window(photo.masks[found.name])
    crop = resizing.resize_nearest(photo.image_HW3, window, min(window.side, 192))
    in_place = crop_of(over([found]), window, factor)
    shape = found.mesh and found.mesh.painted(marks[found.name])
    where = found.placement or found.candidate.pose
    front = preview.render(shape, where.rotation)
    turned = preview.render(shape, preview.turned(where.rotation, 120.0))
    pictures.append([crop, in_place, front, turned])
    captions.append(caption(found))
  left_out = ""
  if len(pictures) < len(objects):
    left_out = f"the first {len(pictures)} of {len(objects)} objects"
  table = preview.grid(
    pictures,
    ("object", "in place", "sample, photo's view", "sample, turned 120°"),
    captions,
    title=left_out,
  )

  sheet = preview.stack([whole, table])
  with atomic.write(path) as temporary:
    sheet.save(temporary)


def crop_of(picture: np.ndarray, window: windows.Window, factor: float) -> np.ndarray:
  """The part of a picture, which is the photo times `factor`, that a window of the photo shows."""
  # The window in the picture's pixels, all of it counted as box.
  x = round(window.x * factor)
  y = round(window.y * factor)
  side = max(1, round(window.side * factor))
  scaled = windows.Window(
    box=(x, y, x + side, y + side),
    x=x,
    y=y,
    side=side,
  )
  return resizing.cut(picture, scaled)


def caption(found: SceneObject) -> str:
  """What preview.png says about an object."""
  if found.mesh is None:
    return f"{found.name}: empty sample"
  text = f"{found.name}: {found.source}, mask IoU {found.mask_iou:.2f}"
  if found.refined is None:
    return text

  # What refinement was worth, taken or not.
  verdict = "taken" if found.refined.accepted else "not taken"
  change = f"{found.refined.iou_before:.2f} -> {found.refined.iou_after:.2f}"
  return f"{text} (refinement {verdict}: {change})"
