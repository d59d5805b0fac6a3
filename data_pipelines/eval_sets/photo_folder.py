"""Photos with masks, meshes and poses in a folder: SA-3DAO and your own.

Either one folder an object, or one folder a kind; files of an object share its name:

    ROOT/<object>/image.* mask.png mesh.* [pose.json] [pointmap.*] [camera.json]
    ROOT/images/<object>.*  masks/<object>.png  meshes/<object>.*
         [poses/<object>.json]  [pointmaps/<object>.*]  [cameras/<object>.json]

(kinds in singular or plural; `truth` and `gt` are taken for `mesh`). The SA-3DAO download was not
at hand when this was written: that it holds an image, a mask, a mesh and a pose for each of its 100
public objects is published, its file names are not, so put them, or links to them, under these
names. Assumed of its poses, and checked by `launch.evaluate --dry_run` where a point map or a
camera tells (projected truth must cover its mask):

- pose.json holds `rotation`, `translation` and `scale` of mesh -> camera in the frame x left, y up,
  z forward, in the unit of the point map; lists of one element around them are taken off.
- rotation is a quaternion w, x, y, z or a 3 x 3 matrix that acts on columns, R (scale x) + t. The
  published inference code writes poses for rows (x scale) R + t: such a file says "form": "rows".
- mesh coordinates are those of the file; a GLB is y up.

camera.json holds fx, fy, cx, cy in pixels of the photo; without it the camera is fitted to the
point map, if there is one.
"""

import json
import pathlib

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.eval_sets.item import Item
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import surface
from sam3d_jax.files import meshes, photos
from sam3d_jax.geometry.pose import Pose

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
KINDS = {
  "image": IMAGE_SUFFIXES,
  "mask": (*IMAGE_SUFFIXES, ".npy"),
  "mesh": meshes.SUFFIXES,
  "pose": (".json",),
  "pointmap": (".npz", ".npy", ".exr", ".png", ".tiff", ".tif"),
  "camera": (".json",),
}
OTHER_NAMES = {
  "mesh": ("truth", "gt", "meshes"),
  "image": ("images", "rgb"),
  "mask": ("masks",),
  "pose": ("poses",),
  "pointmap": ("pointmaps", "depth"),
  "camera": ("cameras",),
}
NEEDED = ("image", "mask", "mesh")


class PhotoFolder:
  """An evaluation set of files. Raises InputError if an object lacks its image, mask or mesh."""

  def __init__(self, root: str | pathlib.Path, name: str):
    self.root = pathlib.Path(root)
    if not self.root.is_dir():
      raise InputError(f"--{name} {root} is not a folder")
    self._files = by_kind(self.root) or by_object(self.root)
    if not self._files:
      raise InputError(
        f"--{name} {root} holds neither folders images, masks and meshes nor one folder an object "
        "with image.*, "
        "mask.png and mesh.*"
      )
    for key, files in self._files.items():
      lacking = [kind for kind in NEEDED if kind not in files]
      if lacking:
        raise InputError(f"--{name} {root}: object {key} has no {' and no '.join(lacking)}")
    self.names = list(self._files)
    self.identity = {"set": f"{name} {self.root.name}", "objects": len(self.names)}

  def __getitem__(self, index: int) -> Item:
    files = self._files[self.names[index]]
    photo = photos.read_photo(files["image"])
    if "camera" in files:
      photo = photo.with_camera(read_camera(files["camera"]))
    if "pointmap" in files:
      photo = photo.with_pointmap(files["pointmap"])
    try:
      truth = surface.load_surface(files["mesh"]).mesh
    except surface.SurfaceError as error:
      raise InputError(str(error)) from error
    return Item(
      name=self.names[index],
      image_HW3=photo.image_HW3,
      mask_HW=photo.read_mask(files["mask"]),
      truth=truth,
      pose=read_pose(files["pose"]) if "pose" in files else None,
      pointmap_HW3=photo.pointmap_HW3,
      camera=photo.camera,
    )


def by_object(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
  """Files of one folder an object: object -> kind -> file. Folders without any of the kinds are
  passed over.
  """
  found = {}
  for folder in sorted(p for p in root.iterdir() if p.is_dir()):
    files = {kind: one(folder, stems(kind), KINDS[kind]) for kind in KINDS}
    files = {kind: path for kind, path in files.items() if path is not None}
    if files:
      found[folder.name] = files
  return found


def by_kind(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
  """Files of one folder a kind; empty if there is no folder of images. An object is an image."""
  folders = {
    kind: next((root / n for n in stems(kind) if (root / n).is_dir()), None) for kind in KINDS
  }
  if folders["image"] is None or folders["mask"] is None:
    return {}
  found = {}
  for image in sorted(p for p in folders["image"].iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
    files = {
      kind: one(folder, (image.stem,), KINDS[kind])
      for kind, folder in folders.items()
      if folder is not None
    }
    found[image.stem] = {kind: path for kind, path in files.items() if path is not None}
  return found


def stems(kind: str) -> tuple[str, ...]:
  return (kind, *OTHER_NAMES[kind])


def one(
  folder: pathlib.Path, names: tuple[str, ...], suffixes: tuple[str, ...]
) -> pathlib.Path | None:
  """The one file of these names and suffixes, None if there is none. Raises InputError if there are
  several.
  """
  found = [
    p
    for p in sorted(folder.iterdir())
    if p.is_file() and p.stem in names and p.suffix.lower() in suffixes
  ]
  if len(found) > 1:
    raise InputError(
      f"{folder}: several files where one is meant: {', '.join(p.name for p in found)}; leave one"
    )
  return found[0] if found else None


def read_pose(path: pathlib.Path) -> Pose:
  """A pose file as described above. Raises InputError."""
  try:
    data = json.loads(path.read_text())
    values = {
      name: np.asarray(data[name], np.float64) for name in ("rotation", "translation", "scale")
    }
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(
      f"{path}: a pose has rotation, translation and scale ({type(error).__name__}: {error})"
    ) from error
  form = data.get("form", "columns")
  rotation, translation, scale = (
    values["rotation"],
    values["translation"].reshape(-1),
    values["scale"].reshape(-1),
  )
  if (
    rotation.size not in (4, 9)
    or translation.size != 3
    or scale.size not in (1, 3)
    or form not in ("columns", "rows")
  ):
    raise InputError(
      f"{path}: rotation has 4 or 9 numbers, translation 3, scale 1 or 3, and form is columns or "
      "rows"
    )
  if (
    not all(np.isfinite(x).all() for x in values.values())
    or (scale <= 0).any()
    or not rotation.any()
  ):
    raise InputError(
      f"{path}: all numbers must be finite, the scale positive, the rotation not zero"
    )
  turn = (
    Rotation.from_quat(rotation.reshape(4), scalar_first=True)
    if rotation.size == 4
    else proper(rotation.reshape(3, 3), path)
  )
  turn = turn.inv() if form == "rows" else turn
  return Pose(turn.as_matrix(), translation, np.broadcast_to(scale, 3).copy())


def proper(matrix_33: np.ndarray, path: pathlib.Path) -> Rotation:
  """The rotation of a matrix. Raises InputError for a matrix that is none (mirrored, scaled)."""
  if np.abs(matrix_33 @ matrix_33.T - np.eye(3)).max() > 1e-3 or np.linalg.det(matrix_33) < 0:
    raise InputError(f"{path}: rotation is not a rotation matrix (orthonormal, determinant +1)")
  return Rotation.from_matrix(matrix_33)


def read_camera(path: pathlib.Path) -> tuple[float, ...]:
  """fx, fy, cx, cy in pixels of the photo. Raises InputError."""
  try:
    data = json.loads(path.read_text())
    return tuple(float(data[name]) for name in ("fx", "fy", "cx", "cy"))
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(
      f"{path}: a camera has fx, fy, cx and cy ({type(error).__name__}: {error})"
    ) from error
