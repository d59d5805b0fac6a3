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

camera.json holds fx, fy, cx, cy in pixels of the photo, or another form that
sam3d_jax/files/camera_files.py lists; without it the camera is fitted to the
point map, if there is one.
"""

from collections.abc import Mapping
import pathlib

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.eval_sets.item import Item
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import surface
from sam3d_jax.files import blame, camera_files, meshes, photos, texts
from sam3d_jax.geometry.pose import Pose

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# taken where there is none of the others
RARE_SUFFIXES = (".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")
RARE_KINDS = ("image", "mask")
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
    """Lists the objects of a folder; `name` is that of the flag, for messages."""
    self.root = pathlib.Path(root)
    if not self.root.is_dir():
      raise InputError(f"--{name} {root} is not a folder")
    # Both layouts are tried; folders of kinds go first.
    self._files = by_kind(self.root) or by_object(self.root)
    if not self._files:
      raise InputError(
        f"--{name} {root} holds neither folders images, masks and meshes nor one folder an object "
        "with image.*, mask.png and mesh.*"
      )
    # Pose, point map and camera may be missing, the rest may not.
    for key, files in self._files.items():
      lacking = [kind for kind in NEEDED if kind not in files]
      if lacking:
        listed = " and no ".join(lacking)
        raise InputError(f"--{name} {root}: object {key} has no {listed}")
    self.names = list(self._files)
    self.identity = {
      "set": f"{name} {self.root.name}",
      "objects": len(self.names),
    }

  def __getitem__(self, index: int) -> Item:
    files = self._files[self.names[index]]

    # The photo with what is known of its camera and depth.
    photo = photos.read_photo(files["image"])
    if "camera" in files:
      photo = photo.with_camera(read_camera(files["camera"], photo.size))
    if "pointmap" in files:
      photo = photo.with_pointmap(files["pointmap"])

    # The truth and, if known, its pose.
    try:
      found = surface.load_surface(files["mesh"])
    except surface.SurfaceError as error:
      raise InputError(str(error)) from error
    pose = None
    if "pose" in files:
      pose = read_pose(files["pose"])
    return Item(
      name=self.names[index],
      image_HW3=photo.image_HW3,
      mask_HW=photo.read_mask(files["mask"]),
      truth=found.mesh,
      pose=pose,
      pointmap_HW3=photo.pointmap_HW3,
      camera=photo.camera,
    )


def by_object(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
  """Files of one folder an object: object -> kind -> file. Folders without any of the kinds are
  passed over.
  """
  names = {kind: stems(kind) for kind in KINDS}
  found = {}
  for folder in sorted(root.iterdir()):
    if not folder.is_dir():
      continue
    # All kinds lie in the object's own folder.
    same_folder = dict.fromkeys(KINDS, folder)
    files = files_of(same_folder, names)
    if files:
      found[folder.name] = files
  return found


def by_kind(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
  """Files of one folder a kind; empty if there is no folder of images. An object is an image."""
  # The first folder that is there under a name of its kind.
  folders = {}
  for kind in KINDS:
    for name in stems(kind):
      folder = root / name
      if folder.is_dir():
        folders[kind] = folder
        break
  if "image" not in folders or "mask" not in folders:
    return {}

  # An object's files have the name of its image.
  found = {}
  for image in sorted(folders["image"].iterdir()):
    if image.suffix.lower() in IMAGE_SUFFIXES + RARE_SUFFIXES:
      names = dict.fromkeys(folders, (image.stem,))
      found[image.stem] = files_of(folders, names)
  return found


def files_of(
  folders: Mapping[str, pathlib.Path], names: Mapping[str, tuple[str, ...]]
) -> dict[str, pathlib.Path]:
  """kind -> file of one object, from the folders and with the names of each kind; kinds that it
  lacks are left out.
  """
  files = {}
  for kind, folder in folders.items():
    # What may be missing is judged by the caller.
    path = one(folder, names[kind], KINDS[kind])
    if path is None and kind in RARE_KINDS:
      path = one(folder, names[kind], RARE_SUFFIXES)
    if path is not None:
      files[kind] = path
  return files


def stems(kind: str) -> tuple[str, ...]:
  """The names, without suffix, that a file or folder of a kind may have."""
  return (kind, *OTHER_NAMES[kind])


def one(
  folder: pathlib.Path, names: tuple[str, ...], suffixes: tuple[str, ...]
) -> pathlib.Path | None:
  """The one file of these names and suffixes, None if there is none. Raises InputError if there are
  several.
  """
  # Two that fit would leave open which is meant.
  found = []
  for path in sorted(folder.iterdir()):
    has_suffix = path.suffix.lower() in suffixes
    is_named = path.stem in names and has_suffix
    if is_named and path.is_file():
      found.append(path)
  if len(found) > 1:
    listed = ", ".join(path.name for path in found)
    raise InputError(f"{folder}: several files where one is meant: {listed}; leave one")
  return found[0] if found else None


def read_pose(path: pathlib.Path) -> Pose:
  """A pose file as described above. Raises InputError."""
  try:
    data = texts.read_json(path)
    rotation = np.asarray(data["rotation"], np.float64)
    translation = np.asarray(data["translation"], np.float64)
    scale = np.asarray(data["scale"], np.float64)
    translation = translation.reshape(-1)
    scale = scale.reshape(-1)
  except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
    if not blame.is_of_the_file(error):
      raise
    raise InputError(
      f"{path}: a pose has rotation, translation and scale ({type(error).__name__}: {error})"
    ) from error
  form = data.get("form", "columns")

  # Everything has the right size, and values that a pose can have.
  rotation_fits = rotation.size in (4, 9)
  scale_fits = scale.size in (1, 3)
  sizes_fit = rotation_fits and translation.size == 3 and scale_fits
  if not sizes_fit or form not in ("columns", "rows"):
    raise InputError(
      f"{path}: rotation has 4 or 9 numbers, translation 3, scale 1 or 3, and form is columns or "
      "rows"
    )
  numbers = (rotation, translation, scale)
  all_finite = all(np.isfinite(values).all() for values in numbers)
  has_no_size = (scale <= 0).any()
  if not all_finite or has_no_size or not rotation.any():
    raise InputError(
      f"{path}: all numbers must be finite, the scale positive, the rotation not zero"
    )

  # A pose for rows holds the transposed rotation.
  if rotation.size == 4:
    turn = Rotation.from_quat(rotation.reshape(4), scalar_first=True)
  else:
    turn = proper(rotation.reshape(3, 3), path)
  if form == "rows":
    turn = turn.inv()
  return Pose(
    rotation=turn.as_matrix(),
    translation=translation,
    scale=np.broadcast_to(scale, 3).copy(),
  )


def proper(matrix_33: np.ndarray, path: pathlib.Path) -> Rotation:
  """The rotation of a matrix. Raises InputError for a matrix that is none (mirrored, scaled)."""
  # R R^T = 1 up to the digits of a text file.
  squared = matrix_33 @ matrix_33.T
  off = squared - np.eye(3)
  error = np.abs(off).max()
  is_mirrored = np.linalg.det(matrix_33) < 0
  if error > 1e-3 or is_mirrored:
    raise InputError(f"{path}: rotation is not a rotation matrix (orthonormal, determinant +1)")
  return Rotation.from_matrix(matrix_33)


def read_camera(path: pathlib.Path, size: tuple[int, int]) -> camera_files.Intrinsics:
  """fx, fy, cx, cy in pixels of a photo of a size (H, W), of any form of JSON that camera_files.py
  lists. Raises InputError.
  """
  stated = camera_files.parse_intrinsics(str(path), "camera")
  return camera_files.of_picture(stated, size, f"camera {path}")
