"""The reader of a photo with what belongs to it: masks of its objects, a point map, a camera.

Whoever takes photos in, takes them here: `launch.sample`, the builders that paste into photos or
read annotations, the evaluation sets. So files that fit together for one fit together for all:

- masks and label maps have the photo's size exactly, upright or as its pixels lie in the file;
- a point map has any size with the photo's aspect (`check_aspect`);
- a photo's camera is in pixels of the photo, a depth map's intrinsics are in pixels of that map.

The forms of the files: images.py for photos, mask_files.py for masks and label maps, pointmaps.py
for point maps and depth, camera_files.py for intrinsics. Every refusal is an InputError that names
the file and the fix.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib

import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import camera_files, images, mask_files, pointmaps
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.normalisers import masked_points

# How far a point map's height may be from what its width and the photo's aspect ask for: a share
# of it, because estimators round sizes to multiples of their patches, and a pixel at least.
ASPECT_TOLERANCE = 0.02
ASPECT_PIXELS = 1.0


@dataclasses.dataclass(frozen=True)
class Photo:
  """A photo and what has been read for it.

  image_HW3: uint8, upright.  masks: object -> (H, W) bool.  pointmap_HW3: float32, any size with
  the photo's aspect, camera frame, NaN unknown; None without one.  camera: of the photo; None if
  nothing tells it.  camera_source: "given", "of the point map" (in its file, or fitted to its
  points), "assumed", or "unknown".  pointmap_camera: of the point map's pixels.  alpha_HW: uint8,
  of a photo that is not opaque everywhere.  path: for messages.  orientation: EXIF's, of the pixels
  in the file.  mask_orientation: "upright" or "stored" (as the pixels in the file) if it was said
  how masks lie.
  """

  image_HW3: np.ndarray
  masks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  pointmap_HW3: np.ndarray | None = None
  camera: cameras.Camera | None = None
  camera_source: str = "unknown"
  pointmap_camera: cameras.Camera | None = None
  alpha_HW: np.ndarray | None = None
  path: str | pathlib.Path = ""
  orientation: int = 1
  mask_orientation: str | None = None

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in pixels."""
    return self.image_HW3.shape[:2]

  @property
  def frame(self) -> mask_files.Frame:
    """What masks and label maps have to fit."""
    return mask_files.Frame(self.size, self.orientation, self.mask_orientation)

  def read_mask(self, path: str | pathlib.Path, what: str = "mask") -> np.ndarray:
    """(H, W) bool mask of one object. Raises InputError."""
    return mask_files.read_mask(path, self.frame, what)

  def with_masks(self, paths: Sequence[str | pathlib.Path]) -> "Photo":
    """With a mask of each file, named after it; without files, the alpha channel's."""
    masks = mask_files.read_masks(paths, self.alpha_HW, self.frame, str(self.path))
    return dataclasses.replace(self, masks=masks)

  def with_labels(self, path: str | pathlib.Path, ids: Iterable[int] | None = None) -> "Photo":
    """With a mask of every object of a label map, or of those in `ids`."""
    chosen = None if ids is None else list(ids)
    masks = mask_files.read_labels(path, self.frame, chosen)
    return dataclasses.replace(self, masks=masks)

  def with_camera(self, camera: Sequence[float]) -> "Photo":
    """With a camera that is given as fx, fy, cx, cy in pixels of the photo."""
    height, width = self.size
    fx, fy, cx, cy = camera[:4]
    given = cameras.Camera(fx, fy, cx, cy, width, height)
    return dataclasses.replace(self, camera=given, camera_source="given")

  def with_some_camera(self) -> "Photo":
    """The photo itself, or with an assumed camera if nothing has told its own."""
    if self.camera is not None:
      return self
    height, width = self.size
    assumed = cameras.assumed_camera(width, height)
    return dataclasses.replace(self, camera=assumed, camera_source="assumed")

  def with_pointmap(
    self,
    path: str | pathlib.Path | np.ndarray,
    *,
    intrinsics: camera_files.Stated | None = None,
    intrinsics_name: str = "",
    frame: str = "pytorch3d",
    depth_unit: float = pointmaps.DEPTH_UNIT,
    channels: Sequence[str] = (),
  ) -> "Photo":
    """With the point map of a file or array, and its camera where the photo has none yet.

    Args:
      path: points or depth, see pointmaps.py; or an array of them.
      intrinsics: in pixels of the map, or a camera with the size of its picture. Without them those
        of the photo's camera are taken, scaled to the map, then those in the file, then those that
        fit the points.
      intrinsics_name, frame, depth_unit, channels: as pointmaps.read_pointmap takes them.

    Raises:
      InputError: the file is no point map, or not one of this photo.
    """
    settings = {
      "intrinsics": intrinsics,
      "intrinsics_name": intrinsics_name,
      "photo_camera": self.camera,
      "frame": frame,
      "depth_unit": depth_unit,
    }
    if isinstance(path, np.ndarray):
      points, found = pointmaps.from_array(path, **settings)
      path = "(an array)"
    else:
      points, found = pointmaps.read_pointmap(path, channels=channels, **settings)

    # It must be of this photo; its camera is the photo's, where that has none.
    check_aspect(points.shape[:2], self.size, path, self.path, self.orientation)
    read = dataclasses.replace(self, pointmap_HW3=points, pointmap_camera=found)
    if self.camera is not None or found is None:
      return read
    height, width = self.size
    camera = cameras.resized(found, width, height)
    source = "of the point map" if intrinsics is None else "given"
    return dataclasses.replace(read, camera=camera, camera_source=source)


def read_photo(path: str | pathlib.Path, *, mask_orientation: str | None = None) -> Photo:
  """The photo alone; its methods read the rest. Raises InputError; OSError of the disk.

  mask_orientation: how masks of a photo lie that EXIF turns: "upright", "stored" (as the pixels in
  the file), None: as their sizes tell.
  """
  if mask_orientation not in (None, *mask_files.MASK_ORIENTATIONS):
    known = ", ".join(mask_files.MASK_ORIENTATIONS)
    raise InputError(f"photo {path}: mask_orientation {mask_orientation!r} is not one of {known}")
  picture = images.read_picture(path)
  return Photo(
    picture.image_HW3,
    alpha_HW=picture.alpha_HW,
    path=path,
    orientation=picture.orientation,
    mask_orientation=mask_orientation,
  )


def same_aspect(map_size: tuple[int, int], photo_size: tuple[int, int]) -> bool:
  """Whether a point map's aspect is the photo's, by the rule above; sizes are (height, width)."""
  height, width = map_size
  photo_height, photo_width = photo_size
  wanted = width * photo_height / photo_width
  allowed = max(ASPECT_PIXELS, ASPECT_TOLERANCE * wanted)
  return abs(height - wanted) <= allowed


def check_aspect(
  map_size: tuple[int, int],
  photo_size: tuple[int, int],
  pointmap: str | pathlib.Path,
  photo: str | pathlib.Path,
  orientation: int = 1,
) -> None:
  """Raises InputError if a point map's aspect is not the photo's; sizes are (height, width), the
  photo's after its EXIF orientation.
  """
  if same_aspect(map_size, photo_size):
    return
  turned = ""
  if orientation in mask_files.SIDEWAYS and same_aspect(map_size[::-1], photo_size):
    turned = (
      f", upright, as its EXIF orientation {orientation} turns it: the point map and its "
      "intrinsics must be upright too"
    )
  raise InputError(
    f"point map {pointmap} is {map_size[1]} x {map_size[0]}, the photo {photo} {photo_size[1]} x "
    f"{photo_size[0]}: they differ in aspect; give the point map of the whole photo{turned}"
  )


def check_cover(photo: Photo, pointmap: str | pathlib.Path) -> None:
  """Raises InputError if the photo's point map, that of a file, knows nothing of an object."""
  for name, mask in photo.masks.items():
    points = masked_points(photo.pointmap_HW3, mask)
    if not np.isfinite(points).any():
      raise InputError(
        f"point map {pointmap} has no known point under the mask of {name}: "
        "leave that object out, or give a point map that knows it"
      )
