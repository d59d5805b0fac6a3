"""The one reader of mesh files: GLB, glTF, OBJ, PLY, STL and OFF, whole or refused.

Builders, annotations, evaluation, converters and the viewer read through `read`. Parsers are quiet
about much that is wrong: files cut short, textures that are not there or cannot be decoded. What
they do not say is checked here (`mesh_completeness`), so that a mesh either arrives as its file
describes it or is refused with a reason. What is left out on purpose is in `MeshFile.dropped`.

Axes stay as the file has them. glTF is y up by its specification; the other formats state no axis:
y up is assumed for OBJ, PLY and OFF and z up for STL, and whoever knows better says so.
"""

from collections.abc import Iterator
import dataclasses
import pathlib

import numpy as np
import trimesh

from sam3d_jax.errors import Refused
from sam3d_jax.files import mesh_completeness, mesh_materials
from sam3d_jax.render.mesh import Mesh, join


@dataclasses.dataclass(frozen=True)
class Format:
  """What a file format means where its files do not say."""

  up: str  # the axis that points up: "y" or "z"
  linear_colours: bool = False  # vertex colours are linear; else sRGB


FORMATS = {
  ".glb": Format("y", linear_colours=True),
  ".gltf": Format("y", linear_colours=True),
  ".obj": Format("y"),
  ".ply": Format("y"),
  ".stl": Format("z"),
  ".off": Format("y"),
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


def read(path: str | pathlib.Path, *, appearance: bool = True) -> MeshFile:
  """Reads a mesh file of `SUFFIXES`.

  Vertices come as they are stored: NaN, infinity and what no face uses included.

  Args:
    path: the file; what it refers to lies beside it.
    appearance: False reads the shape alone: textures are neither needed nor decoded.

  Raises:
    Refused: unreadable (missing, unknown format, not parseable, cut short, faces of vertices that
      do not exist, a texture that cannot be decoded) or missing_texture (a named file that is not
      there).
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in FORMATS:
    known = ", ".join(SUFFIXES)
    raise Refused("unreadable", f"{path.name}: unknown mesh format, expected one of {known}")
  if not path.is_file():
    raise Refused("unreadable", f"{path.name}: no such file")
  mesh_completeness.check_length(path)
  if appearance:
    mesh_completeness.check_textures_exist(path)
  scene = _parse(path)
  if appearance:
    mesh_completeness.check_textures_loaded(path, scene)
  rules = FORMATS[suffix]
  mesh, dropped = flatten(scene, linear_colours=rules.linear_colours, appearance=appearance)
  return MeshFile(mesh, rules.up, dropped)


def _parse(path: pathlib.Path) -> trimesh.Scene:
  try:
    # process=False keeps NaN vertices and their faces, which processing would silently drop.
    return trimesh.load_scene(path, process=False, resolver=mesh_completeness.Resolver(path))
  except MemoryError:
    raise
  # parsers raise whatever a broken byte leads them to; all of it means the same here
  except Exception as error:
    raise Refused("unreadable", f"{path.name}: {type(error).__name__}: {error}") from error


def flatten(
  scene: trimesh.Scene, *, linear_colours: bool = True, appearance: bool = True
) -> tuple[Mesh, tuple[str, ...]]:
  """A scene (nodes, transforms, geometries, materials) as one mesh, and what is not in it.

  Points make the mesh only where there is no triangle. Raises Refused (unreadable).
  """
  materials = mesh_materials.Materials(linear_colours)
  triangles, clouds, others = [], [], 0
  for name, geometry, transform in _drawn(scene):
    if isinstance(geometry, trimesh.Trimesh) and len(geometry.faces):
      shape = _placed_triangles(name, geometry, transform)
      triangles.append(materials.dress(shape, geometry) if appearance else shape)
    elif isinstance(geometry, trimesh.Trimesh | trimesh.PointCloud):
      cloud = Mesh(_placed(geometry.vertices, transform), np.zeros((0, 3), np.int64))
      clouds.append(materials.tint(cloud, geometry) if appearance else cloud)
    else:
      others += 1
  dropped = [f"{others} drawings that are neither triangles nor points"] if others else []
  if triangles and clouds:
    dropped.append(f"{sum(len(c.vertices) for c in clouds)} points beside triangles")
  parts = triangles or clouds or [Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))]
  return materials.shared(join(parts)), tuple(dropped)


def _drawn(scene: trimesh.Scene) -> Iterator[tuple[str, trimesh.parent.Geometry, np.ndarray]]:
  """Every drawing of a geometry: its name, itself and the 4 x 4 that places it."""
  for node in scene.graph.nodes_geometry:
    transform, name = scene.graph[node]
    yield name, scene.geometry[name], transform


def _placed_triangles(name: str, geometry: trimesh.Trimesh, transform_44: np.ndarray) -> Mesh:
  """Vertices where the node puts them, faces the right way out."""
  vertices = _placed(geometry.vertices, transform_44)
  faces = np.asarray(geometry.faces, np.int64)
  if faces.min() < 0 or faces.max() >= len(vertices):
    detail = f"geometry {name!r}: a face names vertex {faces.max()} of {len(vertices)}"
    raise Refused("unreadable", detail)
  if np.linalg.det(transform_44[:3, :3]) < 0:  # a mirrored node turns its faces inside out
    faces = faces[:, ::-1]
  return Mesh(vertices, faces)


def _placed(vertices_V3: np.ndarray, transform_44: np.ndarray) -> np.ndarray:
  # NaN and infinity are let through: whoever uses the mesh says what they mean
  with np.errstate(invalid="ignore", over="ignore"):
    turned = np.asarray(vertices_V3, np.float64) @ transform_44[:3, :3].T
    return turned + transform_44[:3, 3]
