"""The one reader of mesh files: GLB, glTF, OBJ, PLY, STL and OFF, whole or refused.

Builders, annotations, evaluation, converters and the viewer read through `read`. Every format is
parsed here (`mesh_formats`) as its specification says, so that a mesh either arrives as its file
describes it or is refused with a reason. What is left out on purpose is in `MeshFile.dropped`.

Axes stay as the file has them. glTF is y up by its specification; the other formats state no axis:
y up is assumed for OBJ, PLY and OFF and z up for STL, and whoever knows better says so.
"""

from collections.abc import Callable
import dataclasses
import pathlib

import numpy as np

from sam3d_jax.errors import Refused
from sam3d_jax.files import blame, folders
from sam3d_jax.files.mesh_formats import beside, gltf, obj, off, ply, stl
from sam3d_jax.files.mesh_formats.surfaces import Surfaces
from sam3d_jax.render.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Format:
  """What a file format means where its files do not say, and who reads it."""

  up: str  # the axis that points up: "y" or "z"
  reader: Callable[..., Surfaces]


FORMATS = {
  ".glb": Format("y", gltf.read),
  ".gltf": Format("y", gltf.read),
  ".obj": Format("y", obj.read),
  ".ply": Format("y", ply.read),
  ".stl": Format("z", stl.read),
  ".off": Format("y", off.read),
}
SUFFIXES = tuple(FORMATS)


@dataclasses.dataclass(frozen=True)
class MeshFile:
  """What a file holds: every drawn triangle mesh as one, in the file's own frame and unit.

  `mesh` has no faces, and no appearance but colours, if the file holds points alone.
  """

  mesh: Mesh
  up: str  # the axis that points up, as far as the format says: "y" or "z"
  dropped: tuple[str, ...] = ()  # what the file holds beside the mesh, in words


def read(
  path: str | pathlib.Path, *, appearance: bool = True, root: str | pathlib.Path | None = None
) -> MeshFile:
  """Reads a mesh file of `SUFFIXES`.

  Vertices come as they are stored, NaN and infinity included. Surface that alpha makes invisible is
  left out.

  Args:
    path: the file; what it refers to lies beside it.
    root: the folder in which all files lie that it refers to, links followed; those right beside it
      may. None: the one above its own.
    appearance: False reads the shape alone: textures are neither needed nor decoded, but for those
      whose alpha cuts surface away.

  Raises:
    Refused: unreadable (missing, unknown format, not parseable, cut short, faces of vertices that
      do not exist, a texture that cannot be decoded), missing_texture (a named file that is not
      there) or unsupported (it needs what this reader does not know, or a decoder that is not
      installed).
    OSError: the disk failed, or there is no right to read; the file is not to blame.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in FORMATS:
    known = ", ".join(SUFFIXES)
    raise _refused(path, "unreadable", f"unknown mesh format, expected one of {known}")
  rules = FORMATS[suffix]
  try:
    if not path.is_file():
      raise Refused("unreadable", "no such file")
    data = path.read_bytes()
    # NaN and infinity are let through: whoever uses the mesh says what they mean
    widest = path.absolute().parent.parent if root is None else pathlib.Path(root)
    allowed = beside.within(widest, path.parent, path.resolve().parent)
    with np.errstate(invalid="ignore", over="ignore"), allowed:
      found = rules.reader(path, data, appearance=appearance)
  except Refused as error:
    raise _refused(path, error.reason, error.detail) from error
  # whatever a broken byte leads a reader to means the same here
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    detail = f"{type(error).__name__}: {error}"
    raise _refused(path, "unreadable", detail) from error
  return MeshFile(found.mesh, rules.up, found.dropped)


def _refused(path: pathlib.Path, reason: str, detail: str) -> Refused:
  """A refusal that names the file, as a text that can be written anywhere."""
  name = folders.shown(path.name)
  detail = detail.replace(path.name, name)
  if name not in detail:
    detail = f"{name}: {detail}"
  return Refused(reason, detail)
