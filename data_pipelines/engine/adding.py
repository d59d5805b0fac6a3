"""Taking photos with their objects into a project."""

import io
import pathlib

import numpy as np
from PIL import Image
import sqlalchemy
from sqlalchemy import orm

from data_pipelines.engine import stages
from data_pipelines.engine.project import Project
from data_pipelines.engine.tables import Photo
from sam3d_jax.errors import InputError
from sam3d_jax.files import photos

JPEG_START = b"\xff\xd8"


def add_photo(project: Project, name: str, photo: photos.Photo, license: str = "") -> bool:
  """Adds a photo; with masks its objects wait for candidates, without it waits for masks.

  Returns whether it is new. The same photo again changes nothing; another one under its name is an
  InputError.
  """
  blobs = project.blobs
  image = blobs.add(_photo_bytes(photo))
  pointmap = None
  if photo.pointmap_HW3 is not None:
    pointmap = blobs.add(_npz_bytes(photo.pointmap_HW3))
  masks = [blobs.add(png_bytes(mask_HW)) for mask_HW in photo.masks.values()]

  with project.database.transaction() as session:
    found = session.scalar(sqlalchemy.select(Photo).where(Photo.name == name))
    if found is not None:
      if found.image != image:
        raise InputError(f"photo {name!r} is another one than before: give it another name")
      return False
    height, width = photo.size
    row = Photo(
      name=name,
      image=image,
      pointmap=pointmap,
      width=width,
      height=height,
      camera=_camera(photo),
      license=license,
    )
    session.add(row)
    session.flush()
    _add_objects(session, project, row, masks)
  return True


def _add_objects(session: orm.Session, project: Project, photo: Photo, masks: list[str]) -> None:
  """An object a mask; a task of finding masks where there is none."""
  settings = project.settings
  for number, digest in enumerate(masks):
    stages.add_object(session, settings, photo.id, number, digest)
  if not masks:
    stages.new_task(session, "mask", photo.id, None, settings.seed)


def _photo_bytes(photo: photos.Photo) -> bytes:
  """The file as it is where every browser shows it upright, else its pixels as PNG."""
  content = pathlib.Path(photo.path).read_bytes()
  if content.startswith(JPEG_START) and photo.orientation == 1:
    return content
  return png_bytes(photo.image_HW3)


def png_bytes(values: np.ndarray) -> bytes:
  """An image, or a mask as white on black, as PNG."""
  if values.dtype == bool:
    values = values.astype(np.uint8) * 255
  buffer = io.BytesIO()
  Image.fromarray(values).save(buffer, "PNG")
  return buffer.getvalue()


def as_png(content: bytes) -> bytes:
  """A kept photo as PNG."""
  image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
  return png_bytes(np.asarray(image.convert("RGB")))


def _npz_bytes(points_HW3: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, pointmap=points_HW3.astype(np.float32))
  return buffer.getvalue()


def _camera(photo: photos.Photo) -> dict[str, float] | None:
  """fx, fy, cx, cy in pixels of the photo; None where nothing tells them."""
  camera = photo.camera
  if camera is None:
    return None
  return {key: float(getattr(camera, key)) for key in ("fx", "fy", "cx", "cy")}
