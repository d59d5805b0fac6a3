"""From an annotated item to the fields of a record.

They are those of the photo (image, masks, point map, camera) and of a candidate (shape, pose).
"""

import contextlib
import dataclasses
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.annotations.layout import Candidate, Item
from data_pipelines.format import schema
from data_pipelines.synth import assets, render, voxelize
from sam3d_jax.errors import ConfigError, InputError, Refused
from sam3d_jax.files import arrays as array_files
from sam3d_jax.files import images, photos
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.pose import Pose

# how far the columns of a pose matrix may be from orthogonal, relative to their lengths
UNIFORM = 1e-3
EXIF_ORIENTATION = 0x0112  # tag
UPRIGHT = 1  # its value where there is nothing to turn
# what a .npz of latents may hold
LATENT_NAMES = (
  "voxels",
  "structure_latent",
  "structure_latent_autoencoder",
  "slat",
  "slat_autoencoder",
)


class SetAside(Refused):
  """An item that is in order, but not what the recipe asks for."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What annotated items are turned into.

  pairs: "best": the best candidate against all that lost; "all": also pairs among candidates that
  did not win the whole chain.
  """

  name: str  # of the dataset
  builder: str  # mitl_3do, art_3do or preferences
  synthetic: bool = False  # whether the items are made up
  min_rating: float = 0.0  # r from which the best candidate is accepted; 0: unrated ones too
  families: tuple[str, ...] = ()  # of generators that preference pairs are made of; empty: all
  pairs: str = "best"
  max_losers: int = 0  # of each winner, those that lost last (the hardest) first; 0: all
  max_side: int = 0  # pixels of the photo's longer side, larger ones are reduced; 0: kept
  image_format: str = "jpeg"  # or png, of photos that are encoded anew
  license: str = "unknown"  # of items that state none
  max_coordinate: float = 1e6  # as in assets.load

  def __post_init__(self):
    if self.pairs not in ("best", "all"):
      raise ConfigError(f"pairs = {self.pairs!r}: it must be best or all")
    for family in self.families:
      if not isinstance(family, str):
        raise ConfigError(
          f"families = {self.families}: {family!r} is no text; write it in quotes: ('a',)"
        )
    for key in ("max_losers", "max_side"):
      value = getattr(self, key)
      if value < 0:
        raise ConfigError(f"{key} = {value}: it must be 0 (no limit) or more")


def photo_fields(item: Item, recipe: Recipe) -> dict[str, Any]:
  """image, mask, mask_full, pointmap and camera of a record.

  Raises Refused with reason bad_image, bad_mask or bad_pointmap.
  """
  # the files
  with refusing("bad_image"):
    photo = photos.read_photo(item.image)
  with refusing("bad_mask"):
    masks = {"mask": photo.read_mask(item.mask)}
    if item.mask_full is not None:
      whole = photo.read_mask(item.mask_full, "full mask")
      masks["mask_full"] = masks["mask"] | whole
  if item.camera is not None:
    photo = photo.with_camera(item.camera)
  if item.pointmap is not None:
    with refusing("bad_pointmap"):
      photo = photo.with_pointmap(item.pointmap, frame=item.frame)

  # pictures, at the size in which records have them
  shown = _reduced_size(photo.size, recipe.max_side)
  fields: dict[str, Any] = {"image": _encoded_photo(item.image, photo.image_HW3, shown, recipe)}
  for name, mask in masks.items():
    if shown != photo.size:
      mask = _resized(mask, shown, Image.Resampling.NEAREST)
    fields[name] = render.encode(mask)

  # the point map keeps its own size; the camera is that of the pictures
  if photo.pointmap_HW3 is not None:
    points = photo.pointmap_HW3
    too_far = (np.abs(points) > schema.POINTMAP_MAX).any(-1)
    points[too_far] = np.nan
    fields["pointmap"] = points.astype(np.float16)
    if fields["pointmap"].nbytes > schema.MAX_FIELD:
      detail = f"{item.pointmap} has {points.shape[1]} x {points.shape[0]} points; reduce it"
      raise Refused("bad_pointmap", detail)
  if photo.camera is not None:
    camera = _stored_camera(photo.camera, shown)
    fields["camera"] = schema.camera_field(camera)
  return fields


def _stored_camera(camera: cameras.Camera, shown: tuple[int, int]) -> cameras.Camera:
  """The photo's camera for a record that stores the photo at the size `shown` (H, W)."""
  height, width = shown
  by = width / camera.width  # both sides are reduced alike
  return cameras.Camera(
    fx=by * camera.fx,
    fy=by * camera.fy,
    cx=by * camera.cx,
    cy=by * camera.cy,
    width=width,
    height=height,
  )


@contextlib.contextmanager
def refusing(reason: str):
  """Files that cannot be used become a Refused with this reason."""
  try:
    yield
  except InputError as error:
    raise Refused(reason, str(error)) from error


def _reduced_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
  """(H, W) with a longer side of at most `max_side`; 0: as it is."""
  longest = max(size)
  if not max_side or longest <= max_side:
    return size
  height, width = (round(side * max_side / longest) for side in size)
  return max(1, height), max(1, width)


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
  height, width = size
  picture = Image.fromarray(array)
  return np.asarray(picture.resize((width, height), how))


def _encoded_photo(
  path: pathlib.Path, image: np.ndarray, shown: tuple[int, int], recipe: Recipe
) -> bytes:
  """The file's own bytes where a decoder sees in them what `image` is; else encoded anew."""
  if image.shape[:2] != shown:
    smaller = _resized(image, shown, Image.Resampling.BILINEAR)
    return render.encode(smaller, recipe.image_format)
  if _reads_as_is(path):
    return path.read_bytes()
  return render.encode(image, recipe.image_format)


def _reads_as_is(path: pathlib.Path) -> bool:
  """Whether a plain decoder sees in the file what we do: it applies no EXIF orientation."""
  with Image.open(path, formats=images.formats()) as stored:
    orientation = stored.getexif().get(EXIF_ORIENTATION, UPRIGHT)
    known_format = stored.format in ("JPEG", "PNG")
    return orientation == UPRIGHT and known_format and stored.mode == "RGB"


def shape_fields(
  candidate: Candidate, recipe: Recipe
) -> tuple[dict[str, Any], str, dict[str, Any]]:
  """(voxels, latents and pose of a record or loser, content key of the shape, its lineage).

  Raises Refused with the reasons of assets.load for a mesh, bad_latents for a .npz, bad_pose for a
  matrix that is no pose.
  """
  if candidate.latents is not None:
    fields = _latent_fields(candidate.latents)
    parts = [fields[name] for name in ("voxels", "structure_latent", "slat") if name in fields]
    key = schema.example_key("latents", *parts)
    pose = candidate.pose
    lineage = {}
  else:
    asset = assets.load(candidate.mesh, max_coordinate=recipe.max_coordinate)
    fields = {"voxels": voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)}
    key = asset.key
    pose = mesh_pose(candidate, asset)
    lineage = assets.lineage(asset)
  if pose is not None:
    fields |= schema.pose_fields(pose)
  return fields, key, lineage


def mesh_pose(candidate: Candidate, asset: assets.Asset) -> Pose | None:
  """The pose of a candidate's mesh, unit cube to camera. Raises Refused (bad_pose)."""
  if candidate.file_matrix_44 is None:
    return candidate.pose
  return _from_matrix(candidate.file_matrix_44, asset, candidate.mesh)


def _from_matrix(matrix_44: np.ndarray, asset: assets.Asset, path: pathlib.Path) -> Pose:
  """The pose of the unit cube from a matrix of the file's coordinates.

  A point of the file is q = turn (extent x + centre), in the camera it is A q + b.
  """
  # A turned to our axes is a rotation times a scale
  turn = assets.Y_UP_TO_Z_UP.T if asset.up == "y" else np.eye(3)
  linear = matrix_44[:3, :3] @ turn
  scale = np.linalg.norm(linear, axis=0)
  vanishes = (scale <= 0).any()
  mirrors = np.linalg.det(linear) < 0
  if vanishes or mirrors or not _orthonormal(linear / scale):
    raise Refused(
      "bad_pose",
      f"{path}: pose.matrix is no rotation times a scale along the object's axes; remove shear and "
      "mirroring",
    )
  return Pose(
    rotation=linear / scale,
    translation=linear @ asset.centre_3 + matrix_44[:3, 3],
    scale=scale * asset.extent,
  )


def _orthonormal(matrix_33: np.ndarray) -> bool:
  error = np.abs(matrix_33.T @ matrix_33 - np.eye(3))
  return bool(error.max() <= UNIFORM)


def _latent_fields(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a .npz of latents. Raises Refused (bad_latents)."""

  def refuse(why: str) -> None:
    raise Refused("bad_latents", f"{path}{why}")

  # what the file holds
  with refusing("bad_latents"):
    arrays = array_files.read_arrays(path, str(path))
  if not isinstance(arrays, dict):
    refuse(": not a .npz file, but a single array")
  unknown = set(arrays) - set(LATENT_NAMES)
  has_shape = "voxels" in arrays or "structure_latent" in arrays
  if unknown or not has_shape:
    found = ", ".join(arrays) or "nothing"
    refuse(
      f" holds {found}; it needs voxels or structure_latent, and may hold only "
      f"{', '.join(LATENT_NAMES)}"
    )

  # voxels
  fields: dict[str, Any] = {}
  if "voxels" in arrays:
    voxels = arrays["voxels"]
    top = schema.VOXEL_RESOLUTION - 1
    listed = voxels.ndim == 2 and voxels.shape[1:] == (3,) and len(voxels) > 0
    if not listed or not 0 <= voxels.min() <= voxels.max() <= top:
      refuse(f": voxels of shape {voxels.shape} must be N x 3 integers in 0..{top}")
    # Records want lexicographic order without repeats; rows of `slat` follow their voxels.
    unique, index = np.unique(voxels.astype(np.uint8), axis=0, return_index=True)
    fields["voxels"] = unique

  # latents
  if "slat" in arrays:
    slat = arrays["slat"]
    if "voxels" not in fields or slat.shape != (len(voxels), schema.SLAT_CHANNELS):
      refuse(f": slat of shape {slat.shape} must have one row of {schema.SLAT_CHANNELS} a voxel")
    fields["slat"] = slat[index].astype(np.float16)
  if "structure_latent" in arrays:
    latent = arrays["structure_latent"]
    if latent.ndim != 4:
      refuse(f": structure_latent of shape {latent.shape} must be x, y, z, channels")
    fields["structure_latent"] = latent.astype(np.float32)

  # who made the latents
  for name in ("structure_latent", "slat"):
    maker = f"{name}_autoencoder"
    if name not in fields:
      continue
    if maker not in arrays:
      refuse(f": {name} without {maker}; add the digest of the autoencoder that made it")
    if not np.isfinite(fields[name]).all():
      refuse(f": {name} holds NaN or infinity")
    fields[maker] = str(arrays[maker])
  return fields
