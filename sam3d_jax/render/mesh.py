"""From an occupancy grid to a mesh that any viewer opens.

Grids are z up over the unit cube [-0.5, 0.5]^3, voxel i of R centred at (i + 0.5) / R - 0.5. glTF
is y up: `write_glb` turns (x, y, z) into (x, z, -y).
"""

import dataclasses
import pathlib

import numpy as np
from scipy import ndimage, sparse

from sam3d_jax.files import atomic
from sam3d_jax.geometry.cameras import GLTF_FROM_OBJECT


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Triangles, counter-clockwise seen from outside; `colour` is one RGB in 0..255 for all vertices
  or one each.
  """

  vertices: np.ndarray  # (P, 3) float64
  faces: np.ndarray  # (F, 3) int64
  colour: np.ndarray  # (3,) or (P, 3) uint8


GREY = np.array([176, 178, 184], np.uint8)
PADDING = 3  # voxels around a grid, beyond the reach of the blur


# How full voxels count before the field is blurred (by BLUR voxels): see `surface_field`.
SHELL, THIN, THIN_FLOOR, BLUR = 0.5, 0.65, 0.52, 0.7


def from_occupancy(
  occupancy_XYZ: np.ndarray, *, colour: np.ndarray = GREY, smoothing: int = 4
) -> Mesh | None:
  """The closed surface of a grid of surface voxels, in the object frame; None if the grid is empty.

  The true surface passes through the voxels, so the mesh goes through their centres, not around
  them: `surface_field`, marching cubes at one half, and a little smoothing without shrinking
  (Taubin, SIGGRAPH 1995).
  """
  from skimage import measure  # slow to import, and needed here only

  if not np.any(occupancy_XYZ):
    return None
  vertices, faces, _, _ = measure.marching_cubes(
    surface_field(np.pad(np.asarray(occupancy_XYZ, bool), PADDING)), 0.5
  )
  vertices = smooth(vertices.astype(np.float64), faces, smoothing)
  size = np.array(np.shape(occupancy_XYZ))
  vertices = (vertices - PADDING + 0.5) / size - 0.5  # padding taken off, index to centre
  corners = vertices[faces]
  # six times the enclosed volume
  if np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) < 0:
    faces = faces[:, ::-1]
  return Mesh(vertices, np.ascontiguousarray(faces, np.int64), np.asarray(colour, np.uint8))


def surface_field(shell_XYZ: np.ndarray) -> np.ndarray:
  """How full each voxel is, 0 to 1, given the voxels that the surface touches; the surface is where
  it is one half.

  Cavities without a way out are filled: inside is 1, the shell around it SHELL, so that the blurred
  field crosses one half in the middle of the shell, whichever way it is tilted. Parts too thin for
  an inside (legs, sheets) would blur away: they count THIN and are kept at THIN_FLOOR at least,
  which leaves them thinner than a voxel, as most of them are.
  """
  around = np.ones((3, 3, 3), bool)
  inside = ndimage.binary_fill_holes(shell_XYZ) & ~shell_XYZ
  full = np.where(inside, 1.0, np.where(shell_XYZ, SHELL, 0.0)).astype(np.float32)
  kept = ndimage.gaussian_filter(full, BLUR, mode="constant") >= 0.5
  lost = shell_XYZ & ~ndimage.binary_dilation(kept, around)
  # and the voxel that joins it to the rest
  thin = ndimage.binary_dilation(lost, around) & shell_XYZ & ~kept
  field = ndimage.gaussian_filter(np.where(thin, np.float32(THIN), full), BLUR, mode="constant")
  return np.where(thin, np.maximum(field, np.float32(THIN_FLOOR)), field)


def smooth(
  vertices_P3: np.ndarray,
  faces_F3: np.ndarray,
  iterations: int,
  *,
  shrink: float = 0.5,
  grow: float = -0.53,
) -> np.ndarray:
  """Taubin smoothing: alternating steps towards and away from the mean of each vertex's neighbours."""
  ends = np.concatenate([faces_F3[:, [0, 1]], faces_F3[:, [1, 2]], faces_F3[:, [2, 0]]])
  ends = np.concatenate([ends, ends[:, ::-1]])
  count = len(vertices_P3)
  linked = sparse.csr_matrix((np.ones(len(ends)), ends.T), shape=(count, count))
  linked.data[:] = 1.0  # an edge of two faces counts once
  mean = sparse.diags(1.0 / np.maximum(linked.sum(1).A1, 1)) @ linked
  for _ in range(iterations):
    for step in (shrink, grow):
      vertices_P3 = vertices_P3 + step * (mean @ vertices_P3 - vertices_P3)
  return vertices_P3


def write_glb(
  path: str | pathlib.Path, parts: dict[str, Mesh], placed: dict[str, np.ndarray] | None = None
) -> None:
  """Writes named meshes in the object frame as one binary glTF with vertex colours, turned from z
  up to glTF's y up.

  placed: name -> 4 x 4 of the node that holds the mesh, acting on columns of the y-up vertices;
  identity where there is none.
  """
  import trimesh

  scene = trimesh.Scene()
  for name, part in parts.items():
    colours = np.broadcast_to(part.colour, (len(part.vertices), 3))
    rgba = np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], -1)
    mesh = trimesh.Trimesh(
      part.vertices @ GLTF_FROM_OBJECT, part.faces, vertex_colors=rgba, process=False
    )
    scene.add_geometry(mesh, node_name=name, geom_name=name, transform=(placed or {}).get(name))
  # else viewers shade every face flat
  atomic.write_bytes(path, scene.export(file_type="glb", include_normals=True))


def write_points(path: str | pathlib.Path, points_P3: np.ndarray, colours_P3: np.ndarray) -> None:
  """Writes coloured points as a binary .ply."""
  import trimesh

  atomic.write_bytes(path, trimesh.PointCloud(points_P3, colors=colours_P3).export(file_type="ply"))
