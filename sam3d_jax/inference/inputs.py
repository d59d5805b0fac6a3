"""Photos, masks and point maps as users of the Python API hand them over: arrays or files."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import camera_files, mask_files, photos
from sam3d_jax.files.photos import Photo

File = str | os.PathLike
Image = np.ndarray | File
Mask = np.ndarray | File
Masks = Mask | Sequence[Mask] | Mapping[str, Mask] | None


def photo_of(
  image: Image,
  masks: Masks = None,
  pointmap: np.ndarray | File | None = None,
  *,
  intrinsics: Sequence[float] | None = None,
  pointmap_frame: str = "pytorch3d",
  mask_orientation: str | None = None,
  pointmap_channels: Sequence[str] = (),
) -> Photo:
  """A photo with what belongs to it, read and checked; arguments as Reconstructor takes them.

  Raises InputError naming the file or argument at fault, and the remedy.
  """
  photo = photo_from(image, mask_orientation)
  photo = dataclasses.replace(photo, masks=masks_of(photo, masks))

  # A camera that is given comes before the point map's; without both one is assumed.
  if intrinsics is not None:
    given = camera_files.to_intrinsics(np.array(intrinsics), "intrinsics")
    camera = camera_files.of_picture(given, photo.size, "intrinsics")
    photo = photo.with_camera(camera)
  if pointmap is not None:
    photo = photo.with_pointmap(pointmap, frame=pointmap_frame, channels=pointmap_channels)
    shown = "(an array)" if isinstance(pointmap, np.ndarray) else pointmap
    photos.check_cover(photo, shown)
  return photo.with_some_camera()


def photo_from(image: Image, mask_orientation: str | None = None) -> Photo:
  """The photo alone. Raises InputError for an array that is no uint8 RGB or RGBA picture."""
  if not isinstance(image, np.ndarray):
    return photos.read_photo(image, mask_orientation=mask_orientation)

  # An array must be as it comes out of a file.
  shown = f"image has shape {image.shape} and type {image.dtype}"
  channels = image.shape[-1] if image.ndim == 3 else 0
  if channels not in (3, 4):
    raise InputError(f"{shown}: give H x W x 3 (RGB) or H x W x 4 (RGBA, whose alpha is the mask)")
  if image.dtype != np.uint8:
    raise InputError(f"{shown}: give uint8 in 0..255 (of floats in 0..1, (255 * x).round())")

  alpha = image[..., 3] if channels == 4 else None
  colours = np.ascontiguousarray(image[..., :3])
  return Photo(colours, alpha_HW=alpha)


def masks_of(photo: Photo, masks: Masks) -> dict[str, np.ndarray]:
  """Object name -> (H, W) bool mask. Raises InputError for what is no mask of the photo.

  Names are the mapping's, those of the files, or object_1, object_2, ...; the alpha channel's is
  object.
  """
  if masks is None:
    from_alpha = photo.with_masks(())
    return dict(from_alpha.masks)

  # Names are given, or follow from numbers and files.
  found: dict[str, np.ndarray] = {}
  if isinstance(masks, Mapping):
    for name, mask in masks.items():
      found[name] = mask_of(photo, mask, f"mask {name!r}")
    return found

  several: list[Any] = list(masks) if is_sequence(masks) else [masks]
  if not several:
    raise InputError("masks is empty: give one mask for each object")
  for number, mask in enumerate(several, 1):
    if isinstance(mask, np.ndarray):
      wanted = f"object_{number}"
      read = mask_of(photo, mask, f"mask {number}")
    else:
      # a file gives its own name
      with_mask = photo.with_masks([mask])
      ((wanted, read),) = with_mask.masks.items()
    name = mask_files.free_name(wanted, found)
    found[name] = read
  return found


def mask_of(photo: Photo, mask: Mask, name: str) -> np.ndarray:
  """One mask, checked."""
  if not isinstance(mask, np.ndarray):
    return photo.read_mask(mask)
  is_number = mask.dtype.kind in "buif"
  if not is_number or mask.ndim != 2:
    raise InputError(
      f"{name} has shape {mask.shape} and type {mask.dtype}: give one H x W array of booleans or "
      "numbers"
    )
  # Upright, of the photo's size, neither empty nor full.
  mask = mask_files.turn_upright(mask, photo.frame, name)
  mask_files.check_size(mask, photo.size, name)
  binary = mask_files.binarise(mask, name)
  return mask_files.check_mask(binary, name)


def is_sequence(value: Any) -> bool:
  """Whether an argument is several things rather than one array or file."""
  return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
