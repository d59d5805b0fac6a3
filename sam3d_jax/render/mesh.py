"""The project's one triangle mesh, how it comes from an occupancy grid, and how it is written.

Builders, annotations, renderers, evaluation and export share `Mesh`. Its frame is its holder's: the
object frame (z up, the unit cube [-0.5, 0.5]^3) where nothing else is said, a file's own frame
where it was just read. Grids are in the object frame, voxel i of R centred at (i + 0.5) / R - 0.5.
glTF is y up: `write_glb` turns (x, y, z) into (x, z, -y).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

import numpy as np
from scipy import ndimage, sparse

from sam3d_jax.files import atomic
from sam3d_jax.geometry.cameras import GLTF_FROM_OBJECT

GREY = np.array([176, 178, 184], np.uint8)  # of shapes that nobody coloured
PADDING = 3  # voxels around a grid, beyond the reach of the blur
# How full voxels count before the field is blurred (by BLUR voxels): see `surface_field`.
SHELL, THIN, THIN_FLOOR, BLUR = 0.5, 0.65, 0.52, 0.7


@dataclasses.dataclass(frozen=True)
class Material:
  """What a surface is made of: a linear base colour times a texture, where there is one."""

  colour: tuple[float, float, float]
  texture: np.ndarray | None = None  # (H, W, 3) uint8 sRGB, row 0 on top
  # (H, W) bool, where the texture has no surface (leaves, lattices); None: nowhere
  cutout: np.ndarray | None = None


WHITE = Material((1.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Triangles, counter-clockwise seen from outside. Without faces: a point cloud.

  A surface's base colour is its material times its vertex colours; what is None is white.
  """

  vertices: np.ndarray  # (V, 3) float64
  faces: np.ndarray  # (F, 3) int32 or int64
  colours: np.ndarray | None = None  # (V, 3) float32 linear, 0..1
  uv: np.ndarray | None = None  # (V, 2) float32, origin at the texture's lower left
  material: np.ndarray | None = None  # (F,) int32 into `materials`
  materials: tuple[Material, ...] = ()

  def painted(self, colour_3: np.ndarray) -> "Mesh":
    """The shape in one colour, 0..255 as vertex colours of a GLB store it."""
    colour = np.asarray(colour_3, np.float32)
    # In float32, the dtype of vertex colours.
    colour = colour / np.float32(255)
    count = len(self.vertices)
    colours = np.broadcast_to(colour, (count, 3))
    return dataclasses.replace(self, colours=colours)

  def transformed(self, *, scale=1.0, rotation=None, translation=0.0) -> "Mesh":
    """x -> rotation (scale * x) + translation; `scale` is a number or one per axis."""
    vertices = self.vertices * scale
    if rotation is not None:
      # Rows of points turn by the transpose.
      rotation = np.asarray(rotation)
      vertices = vertices @ rotation.T
    return dataclasses.replace(self, vertices=vertices + translation)

  def with_appearance(self) -> "Mesh":
    """The same with every optional field filled in: white where nothing was stated."""
    # White, any place of no texture, the first material.
    count = len(self.vertices)
    colours = self.colours
    if colours is None:
      colours = np.ones((count, 3), np.float32)
    uv = self.uv
    if uv is None:
      uv = np.zeros((count, 2), np.float32)
    material = self.material
    if material is None:
      material = np.zeros(len(self.faces), np.int32)
    return Mesh(
      vertices=self.vertices,
      faces=self.faces,
      colours=colours,
      uv=uv,
      material=material,
      materials=self.materials or (WHITE,),
    )


def join(meshes: Sequence[Mesh]) -> Mesh:
  """Several meshes of one frame as one, in their order; appearance only if one of them has any."""
  # Each mesh's faces refer to its own vertices, which begin further on.
  faces = []
  first = 0
  for one in meshes:
    faces.append(one.faces + first)
    first += len(one.vertices)
  joined_vertices = np.concatenate([one.vertices for one in meshes])
  dtype = meshes[0].faces.dtype
  joined_faces = np.concatenate(faces).astype(dtype)
  if not any(has_appearance(one) for one in meshes):
    return Mesh(joined_vertices, joined_faces)

  # So do their materials.
  whole = [one.with_appearance() for one in meshes]
  material = []
  materials: list[Material] = []
  for one in whole:
    material.append(one.material + len(materials))
    materials.extend(one.materials)
  return Mesh(
    joined_vertices,
    joined_faces,
    colours=np.concatenate([one.colours for one in whole]),
    uv=np.concatenate([one.uv for one in whole]),
    material=np.concatenate(material).astype(np.int32),
    materials=tuple(materials),
  )


def has_appearance(mesh: Mesh) -> bool:
  """Whether a mesh states more than its shape."""
  if mesh.colours is not None or mesh.uv is not None:
    return True
  return bool(mesh.materials)


# --- From an occupancy grid -----------------------------------------------------------------------


def from_occupancy(
  occupancy_XYZ: np.ndarray, *, colour: np.ndarray = GREY, smoothing: int = 4
) -> Mesh | None:
  """The closed surface of a grid of surface voxels, in the object frame; None if it is empty.

  The true surface passes through the voxels, so the mesh goes through their centres, not around
  them: `surface_field`, marching cubes at one half, and a little smoothing without shrinking
  (Taubin, SIGGRAPH 1995). `colour` is one RGB in 0..255 for all vertices.
  """
  # Slow to import, and needed here only.
  from skimage import measure

  # Marching cubes fails on a field without a surface.
  if not np.any(occupancy_XYZ):
    return None
  occupied = np.asarray(occupancy_XYZ, bool)
  # The margin closes shapes that touch the grid's border.
  field = surface_field(np.pad(occupied, PADDING))
  vertices, faces, _, _ = measure.marching_cubes(field, 0.5)
  vertices = vertices.astype(np.float64)
  vertices = smooth(vertices, faces, smoothing)

  # From indices of the padded grid to centres of voxels in the unit cube.
  size = np.array(occupied.shape)
  vertices = (vertices - PADDING + 0.5) / size - 0.5

  # Faces run counter-clockwise from outside if they enclose a positive volume (here six times it).
  a, b, c = vertices[faces].swapaxes(0, 1)
  volume = np.einsum("fi,fi->", a, np.cross(b, c))
  if volume < 0:
    faces = faces[:, ::-1]
  faces = np.ascontiguousarray(faces, np.int64)
  return Mesh(vertices, faces).painted(colour)


def surface_field(shell_XYZ: np.ndarray) -> np.ndarray:
  """How full each voxel is, 0 to 1, given the voxels that the surface touches.

  The surface is where the field is one half. Cavities without a way out are filled: inside is 1,
  the shell around it SHELL, so that the blurred field crosses one half in the middle of the shell,
  whichever way it is tilted. Parts too thin for an inside (legs, sheets) would blur away: they
  count THIN and are kept at THIN_FLOOR at least, which leaves them thinner than a voxel, as most of
  them are.
  """
  # Full voxels: the inside wholly, the shell by half.
  around = np.ones((3, 3, 3), bool)
  filled = ndimage.binary_fill_holes(shell_XYZ)
  inside = filled & ~shell_XYZ
  outer = np.where(shell_XYZ, SHELL, 0.0)
  full = np.where(inside, 1.0, outer).astype(np.float32)

  # What the blur would lose, and the voxel that joins it to the rest.
  blurred = ndimage.gaussian_filter(full, BLUR, mode="constant")
  kept = blurred >= 0.5
  near_kept = ndimage.binary_dilation(kept, around)
  lost = shell_XYZ & ~near_kept
  near_lost = ndimage.binary_dilation(lost, around)
  thin = near_lost & shell_XYZ & ~kept

  # Thin parts count more before the blur and are held up after it.
  thickened = np.where(thin, np.float32(THIN), full)
  field = ndimage.gaussian_filter(thickened, BLUR, mode="constant")
  held_up = np.maximum(field, np.float32(THIN_FLOOR))
  return np.where(thin, held_up, field)


def smooth(
  vertices_V3: np.ndarray,
  faces_F3: np.ndarray,
  iterations: int,
  *,
  shrink: float = 0.5,
  grow: float = -0.53,
) -> np.ndarray:
  """Taubin smoothing: steps towards and away from the mean of each vertex's neighbours in turn."""
  # Every edge of every face, in both directions.
  first = faces_F3[:, [0, 1]]
  second = faces_F3[:, [1, 2]]
  third = faces_F3[:, [2, 0]]
  edges = np.concatenate([first, second, third])
  backwards = edges[:, ::-1]
  ends = np.concatenate([edges, backwards])

  # The matrix that takes the mean over a vertex's neighbours; an edge of two faces counts once.
  count = len(vertices_V3)
  ones = np.ones(len(ends))
  linked = sparse.csr_matrix((ones, ends.T), shape=(count, count))
  linked.data[:] = 1.0
  neighbours = np.maximum(linked.sum(1).A1, 1)
  weights = sparse.diags(1.0 / neighbours)
  mean = weights @ linked

  # Shrink, then grow a little more: what is wider than a wrinkle keeps its size.
  for _ in range(iterations):
    for step in (shrink, grow):
      towards_mean = mean @ vertices_V3 - vertices_V3
      vertices_V3 = vertices_V3 + step * towards_mean
  return vertices_V3


# --- To files -------------------------------------------------------------------------------------


def stored_colours(mesh: Mesh) -> np.ndarray:
  """(V, 3) vertex colours in 0..255 as a GLB stores them (linear), GREY where there are none."""
  if mesh.colours is None:
    count = len(mesh.vertices)
    return np.broadcast_to(GREY, (count, 3))
  # Stored without gamma, as glTF defines COLOR_0.
  scaled = mesh.colours * np.float32(255)
  return np.rint(scaled).astype(np.uint8)


def write_glb(
  path: str | pathlib.Path,
  parts: Mapping[str, Mesh],
  placed: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Writes named meshes in the object frame as one binary glTF (y up) with vertex colours.

  placed: name -> 4 x 4 of the node that holds the mesh, acting on columns of the y-up vertices;
  identity where there is none.
  """
  # Slow to import, and needed for files only.
  import trimesh

  placed = placed or {}
  scene = trimesh.Scene()
  for name, part in parts.items():
    rgb = stored_colours(part)
    # Viewers expect RGBA.
    opaque = np.full((len(rgb), 1), 255, np.uint8)
    geometry = trimesh.Trimesh(
      part.vertices @ GLTF_FROM_OBJECT,
      part.faces,
      vertex_colors=np.concatenate([rgb, opaque], -1),
      process=False,
    )
    scene.add_geometry(
      geometry,
      node_name=name,
      geom_name=name,
      transform=placed.get(name),
    )
  # With normals: else viewers shade every face flat.
  data = scene.export(file_type="glb", include_normals=True)
  atomic.write_bytes(path, data)


def write_ply(path: str | pathlib.Path, mesh: Mesh) -> None:
  """Writes a shape (triangles, or points where it has no faces) as binary PLY in its own frame."""
  # Slow to import, and needed for files only.
  import trimesh

  if len(mesh.faces):
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
  else:
    shape = trimesh.PointCloud(mesh.vertices)
  atomic.write_bytes(path, shape.export(file_type="ply"))


def write_points(path: str | pathlib.Path, points_P3: np.ndarray, colours_P3: np.ndarray) -> None:
  """Writes coloured points as a binary .ply."""
  # Slow to import, and needed for files only.
  import trimesh

  cloud = trimesh.PointCloud(points_P3, colors=colours_P3)
  atomic.write_bytes(path, cloud.export(file_type="ply"))
