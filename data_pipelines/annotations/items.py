"""From an annotated item to the fields of a record: photo, masks, point map, camera; a candidate's
shape and pose.
"""

import contextlib
import dataclasses
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.annotations.layout import Candidate, FilePose, Item
from data_pipelines.format import schema
from data_pipelines.synth import assets, render, voxelize
from sam3d_jax.errors import ConfigError, InputError, Refused
from sam3d_jax.files import photos
from sam3d_jax.geometry import cameras

# how far the columns of a pose matrix may be from orthogonal, relative to their lengths
UNIFORM = 1e-3
HALF_MAX = float(np.finfo(np.float16).max)  # point maps are stored in half precision


class SetAside(Refused):
  """An item that is in order, but not what the recipe asks for."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What annotated items are turned into.

  name: of the dataset.  builder: mitl_3do, art_3do or preferences.  synthetic: whether the items
  are made up. min_rating: r from which the best candidate is accepted (alpha); 0 accepts unrated
  items too. families: of generators whose candidates become preference pairs; empty: all. pairs:
  "best": the best candidate against all that lost; "all": also pairs among candidates that did not
  win the whole chain. max_losers: kept of each winner, those that lost last (the hardest) first; 0
  keeps all. max_side: longer side of the photo, pixels; larger ones are reduced, 0 keeps them.
  image_format: jpeg or png, of photos that are encoded anew.  license: of items that state none.
  max_coordinate: as in assets.load.
  """

  name: str
  builder: str
  synthetic: bool = False
  min_rating: float = 0.0
  families: tuple[str, ...] = ()
  pairs: str = "best"
  max_losers: int = 0
  max_side: int = 0
  image_format: str = "jpeg"
  license: str = "unknown"
  max_coordinate: float = 1e6

  def __post_init__(self):
    if self.pairs not in ("best", "all"):
      raise ConfigError(f"pairs = {self.pairs!r}: it must be best or all")
    for key in ("max_losers", "max_side"):
      if getattr(self, key) < 0:
        raise ConfigError(f"{key} = {getattr(self, key)}: it must be 0 (no limit) or more")


def photo_fields(item: Item, recipe: Recipe) -> dict[str, Any]:
  """image, mask, mask_full, pointmap and camera of a record.

  Raises Refused with reason bad_image, bad_mask or bad_pointmap.
  """
  with refusing("bad_image"):
    photo = photos.read_photo(item.image)
  with refusing("bad_mask"):
    masks = {"mask": photo.read_mask(item.mask)}
    if item.mask_full is not None:
      masks["mask_full"] = masks["mask"] | photo.read_mask(item.mask_full, "full mask")
  if item.camera is not None:
    photo = photo.with_camera(item.camera)
  if item.pointmap is not None:
    with refusing("bad_pointmap"):
      photo = photo.with_pointmap(item.pointmap, frame=item.frame)

  # pictures at the size in which records have them; the point map keeps its own
  shown = _reduced_size(photo.size, recipe.max_side)
  fields: dict[str, Any] = {"image": _encoded_photo(item.image, photo.image_HW3, shown, recipe)}
  for name, mask in masks.items():
    if shown != photo.size:
      mask = _resized(mask, shown, Image.Resampling.NEAREST)
    fields[name] = render.encode(mask)
  if photo.pointmap_HW3 is not None:
    points = photo.pointmap_HW3
    points[(np.abs(points) > HALF_MAX).any(-1)] = np.nan
    fields["pointmap"] = points.astype(np.float16)
  if photo.camera is not None:
    fields["camera"] = _camera_field(photo.camera, shown)
  return fields


def _camera_field(camera: cameras.Camera, shown: tuple[int, int]) -> dict[str, Any]:
  """A record's camera, of a photo that is stored at the size `shown` (H, W)."""
  height, width = shown
  by = width / camera.width
  lengths = {name: np.float32(by * getattr(camera, name)) for name in ("fx", "fy", "cx", "cy")}
  return lengths | {"width": np.int32(width), "height": np.int32(height)}


@contextlib.contextmanager
def refusing(reason: str):
  """Files that cannot be used become a Refused with this reason."""
  try:
    yield
  except InputError as error:
    raise Refused(reason, str(error)) from error


def _reduced_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
  if not max_side or max(size) <= max_side:
    return size
  return tuple(max(1, round(n * max_side / max(size))) for n in size)


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
  return np.asarray(Image.fromarray(array).resize(size[::-1], how))


def _encoded_photo(
  path: pathlib.Path, image: np.ndarray, shown: tuple[int, int], recipe: Recipe
) -> bytes:
  """The file's own bytes where a decoder sees in them what `image` is; else encoded anew."""
  if image.shape[:2] == shown:
    with Image.open(path) as stored:
      # the EXIF orientation, which a reader of records does not apply
      upright = stored.getexif().get(0x0112, 1) == 1
      if upright and stored.format in ("JPEG", "PNG") and stored.mode == "RGB":
        return path.read_bytes()
    return render.encode(image, recipe.image_format)
  return render.encode(_resized(image, shown, Image.Resampling.BILINEAR), recipe.image_format)


def shape_fields(candidate: Candidate, recipe: Recipe) -> tuple[dict[str, Any], str]:
  """(voxels, latents and pose of a record or loser, content key of the shape). Raises Refused.

  Reasons: those of assets.load for a mesh, bad_latents for a .npz, bad_pose for a matrix that is no
  pose.
  """
  if candidate.latents is not None:
    fields = _latent_fields(candidate.latents)
    parts = [fields[name] for name in ("voxels", "structure_latent", "slat") if name in fields]
    return fields | _pose_fields(candidate.pose), schema.example_key("latents", *parts)
  asset = assets.load(candidate.mesh, max_coordinate=recipe.max_coordinate)
  return {"voxels": voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)} | _pose_fields(
    mesh_pose(candidate, asset)
  ), asset.key


def mesh_pose(candidate: Candidate, asset: assets.Asset) -> FilePose | None:
  """Rotation, translation and scale of a candidate's mesh from the unit cube to the camera. Raises
  Refused (bad_pose).
  """
  pose = candidate.pose
  return (
    _from_matrix(pose.matrix_44, asset, candidate.mesh)
    if pose is not None and pose.matrix_44 is not None
    else pose
  )


def _pose_fields(pose: FilePose | None) -> dict[str, np.ndarray]:
  if pose is None:
    return {}
  return {
    "rotation": pose.rotation_33.astype(np.float32),
    "translation": pose.translation_3.astype(np.float32),
    "scale": pose.scale_3.astype(np.float32),
  }


def _from_matrix(matrix_44: np.ndarray, asset: assets.Asset, path: pathlib.Path) -> FilePose:
  """The pose of the unit cube from that of the file's coordinates: p = A q + b, q = turn (extent x
  + centre).
  """
  turn = assets.Y_UP_TO_Z_UP.T if asset.up == "y" else np.eye(3)
  linear = matrix_44[:3, :3] @ turn
  scale = np.linalg.norm(linear, axis=0)
  if (
    (scale <= 0).any()
    or np.abs((linear / scale).T @ (linear / scale) - np.eye(3)).max() > UNIFORM
    or np.linalg.det(linear) < 0
  ):
    raise Refused(
      "bad_pose",
      f"{path}: pose.matrix is no rotation times a scale along the object's axes; remove shear and "
      "mirroring",
    )
  return FilePose(linear / scale, linear @ asset.centre_3 + matrix_44[:3, 3], scale * asset.extent)


def _latent_fields(path: pathlib.Path) -> dict[str, Any]:
  try:
    with np.load(path, allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
  except (OSError, ValueError, EOFError) as error:
    raise Refused("bad_latents", f"{path}: not a .npz file ({error})") from error
  known = ("voxels", "structure_latent", "structure_latent_autoencoder", "slat", "slat_autoencoder")
  wrong = [name for name in arrays if name not in known]
  if wrong or not {"voxels", "structure_latent"} & set(arrays):
    raise Refused(
      "bad_latents",
      f"{path} holds {', '.join(arrays) or 'nothing'}; it needs voxels or structure_latent, and "
      "may hold only "
      f"{', '.join(known)}",
    )
  fields: dict[str, Any] = {}
  if "voxels" in arrays:
    voxels = arrays["voxels"]
    if (
      voxels.ndim != 2
      or voxels.shape[1:] != (3,)
      or not len(voxels)
      or not 0 <= voxels.min() <= voxels.max() < schema.VOXEL_RESOLUTION
    ):
      raise Refused(
        "bad_latents",
        f"{path}: voxels of shape {voxels.shape} must be N x 3 integers in "
        f"0..{schema.VOXEL_RESOLUTION - 1}",
      )
    # Records want lexicographic order without repeats; rows of `slat` follow their voxels.
    unique, index = np.unique(voxels.astype(np.uint8), axis=0, return_index=True)
    fields["voxels"] = unique
  if "slat" in arrays:
    if "voxels" not in fields or arrays["slat"].shape != (
      len(arrays["voxels"]),
      schema.SLAT_CHANNELS,
    ):
      raise Refused(
        "bad_latents",
        f"{path}: slat of shape {arrays['slat'].shape} must have one row of {schema.SLAT_CHANNELS} "
        "a voxel",
      )
    fields["slat"] = arrays["slat"][index].astype(np.float16)
  if "structure_latent" in arrays:
    if arrays["structure_latent"].ndim != 4:
      raise Refused(
        "bad_latents",
        f"{path}: structure_latent of shape {arrays['structure_latent'].shape} must be x, y, z, "
        "channels",
      )
    fields["structure_latent"] = arrays["structure_latent"].astype(np.float32)
  for name in ("structure_latent", "slat"):
    if name in fields:
      if f"{name}_autoencoder" not in arrays:
        raise Refused(
          "bad_latents",
          f"{path}: {name} without {name}_autoencoder; add the digest of the autoencoder that made "
          "it",
        )
      if not np.isfinite(fields[name]).all():
        raise Refused("bad_latents", f"{path}: {name} holds NaN or infinity")
      fields[f"{name}_autoencoder"] = str(arrays[f"{name}_autoencoder"])
  return fields
