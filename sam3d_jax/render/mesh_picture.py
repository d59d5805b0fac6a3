"""Pictures of triangle meshes on a device: mask, depth, normals and colours, differentiable.

    settings = Settings(width=512, height=512)
    picture = jax.jit(functools.partial(render, settings=settings))(shape, camera, pose)

The nearest triangle of every pixel is chosen without a derivative (raster.py); what is seen of it
is computed anew from its corners, so that depth, normals and colours have the slopes of the surface
at the pixel's centre. Silhouettes are smoothed with a slope in the edges (silhouettes.py). Shapes
are static: faces of -1 are padding. A derivative adds up the slopes of pixels by vertex, the one
scatter here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.geometry import cameras, pose, rotations
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import raster, silhouettes
from sam3d_jax.render.raster import Corners
from sam3d_jax.render.tiles import Grid

SLOTS_PER_FACE = 4  # room for pairs where nothing is said
FEWEST_SLOTS = 1 << 12


class Shape(NamedTuple):
  """A mesh on a device, in a frame of its own (render/mesh.py has the frames)."""

  vertices_V3: jax.Array  # float32
  faces_F3: jax.Array  # int32; rows of -1 are padding
  colours_V3: jax.Array  # float32, any values, carried to the picture as they are


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is static in a picture. Only size and near change it; the rest is speed."""

  width: int  # pixels
  height: int
  near: float = 1e-3  # camera z; triangles that reach before it are left out
  slots: int | None = None  # room for (tile, triangle) pairs; None: SLOTS_PER_FACE each
  tile: int = 16  # pixels along a tile's side
  block: int = 32  # triangles that a tile takes at once
  lanes: int = 16  # tiles at once

  @property
  def grid(self) -> Grid:
    return Grid(self.width, self.height, self.tile)

  def room(self, count: int) -> int:
    """Slots for so many triangles."""
    slots = self.slots
    if slots is None:
      slots = max(FEWEST_SLOTS, SLOTS_PER_FACE * count)
    # More than every triangle in every tile are never used.
    most = max(1, count) * self.grid.tiles
    return min(slots, most)


class Picture(NamedTuple):
  """What a camera sees of a mesh."""

  # share of the pixel, with a slope in the silhouette
  mask_HW: jax.Array
  colour_HW3: jax.Array  # smoothed, over the background
  # smoothed, camera frame (x left, y up, z forward), of length 1 inside, 0 where nothing is
  normal_HW3: jax.Array
  depth_HW: jax.Array  # camera z at the pixel's centre, NaN where nothing is; not smoothed
  face_HW: jax.Array  # int32, -1 where nothing is
  needed: jax.Array  # uint32: (tile, triangle) pairs
  lost: jax.Array  # uint32: of these, pairs without room; the farthest triangles
  left_out: jax.Array  # int32: triangles that reach behind `near`, or that hold NaN


def render(
  shape: Shape,
  camera: Camera,
  where: Pose,
  *,
  settings: Settings,
  background_3=(0.0, 0.0, 0.0),
  partner_F3: jax.Array | None = None,
) -> Picture:
  """One picture, differentiable in vertices, colours, camera, pose and background.

  Args:
    shape: the mesh; both sides of its triangles are seen.
    camera: its fx, fy, cx and cy may be traced; width and height are those of `settings`.
    where: from the mesh's frame to the camera's.
    settings: static.
    background_3: colour where nothing is.
    partner_F3: `silhouettes.partners` of the faces, where they stay the same over many pictures.

  Raises:
    ValueError: more triangles and tiles than 32 bits can name; the remedy is named.
  """
  camera = camera._replace(width=settings.width, height=settings.height)
  where = Pose(*(jnp.asarray(field, jnp.float32) for field in where))
  faces = jnp.asarray(shape.faces_F3, jnp.int32)
  if partner_F3 is None:
    partner_F3 = silhouettes.partners(faces)

  # Vertices in the picture; those behind the camera are not divided by.
  points = pose.transform_points(jnp.asarray(shape.vertices_V3, jnp.float32), where)
  in_front = points[:, 2] > settings.near
  safe = jnp.where(in_front[:, None], points, 1.0)
  pixels, depth = cameras.project(safe, camera)
  corners = Corners(
    u_V=pixels[:, 0],
    v_V=pixels[:, 1],
    z_V=jnp.where(in_front, depth, points[:, 2]),
  )

  # What is seen, and where on it.
  hits = raster.nearest(
    corners,
    faces,
    settings.grid,
    near=settings.near,
    slots=settings.room(faces.shape[0]),
    block=settings.block,
    lanes_at_once=settings.lanes,
  )
  is_seen = hits.face_HW >= 0
  vertices = jnp.maximum(faces[jnp.maximum(hits.face_HW, 0)], 0)
  weights, depth = _on_surface(corners, vertices, is_seen)

  # Its colour and normal there.
  colours = jnp.asarray(shape.colours_V3, jnp.float32)[vertices]
  colour = (weights[..., None] * colours).sum(-2)
  normal = _normals(points[vertices], is_seen)
  background = jnp.asarray(background_3, jnp.float32)
  colour = jnp.where(is_seen[..., None], colour, background)
  mask = is_seen.astype(jnp.float32)[..., None]

  # Smoothed together.
  values = jnp.concatenate([mask, colour, normal], axis=-1)
  seen = silhouettes.Seen(
    face_HW=hits.face_HW,
    depth_HW=jax.lax.stop_gradient(jnp.where(is_seen, depth, jnp.inf)),
    u_V=corners.u_V,
    v_V=corners.v_V,
    faces_F3=faces,
    is_drawn_F=hits.is_drawn_F,
    partner_F3=partner_F3,
  )
  smooth = silhouettes.antialiased(values, seen)
  return Picture(
    mask_HW=smooth[..., 0],
    colour_HW3=smooth[..., 1:4],
    normal_HW3=smooth[..., 4:7],
    depth_HW=jnp.where(is_seen, depth, jnp.nan),
    face_HW=hits.face_HW,
    needed=hits.needed,
    lost=hits.lost,
    left_out=hits.left_out,
  )


def _on_surface(corners: Corners, vertices_HW3, is_seen_HW) -> tuple[jax.Array, jax.Array]:
  """Weights (H, W, 3) of the corners at the pixel's centre on the surface, and its z."""
  # The corners from the pixel's centre.
  height, width = is_seen_HW.shape
  column = jnp.arange(width, dtype=jnp.float32)
  row = jnp.arange(height, dtype=jnp.float32)
  centre_u = column[None, :, None] + 0.5
  centre_v = row[:, None, None] + 0.5
  right = corners.u_V[vertices_HW3] - centre_u
  below = corners.v_V[vertices_HW3] - centre_v
  z_HW3 = corners.z_V[vertices_HW3]
  z_HW3 = jnp.where(is_seen_HW[..., None], z_HW3, 1.0)
  x = [right[..., i] for i in range(3)]
  y = [below[..., i] for i in range(3)]

  # Areas that the centre makes with the edges, each over the z of the corner across.
  shares = []
  whole = 0.0
  for i in range(3):
    j = (i + 1) % 3
    k = (i + 2) % 3
    area = x[j] * y[k] - x[k] * y[j]
    shares.append(area / z_HW3[..., i])
    whole = whole + area

  # Shares of 1 / z, which runs straight across the picture.
  total = shares[0] + shares[1] + shares[2]
  total = jnp.where(is_seen_HW, total, 1.0)
  weights = jnp.stack(shares, axis=-1) / total[..., None]
  return weights, whole / total


def _normals(points_HW33, is_seen_HW) -> jax.Array:
  """Unit normals of the triangles, towards the camera; 0 where nothing is seen."""
  a, b, c = (points_HW33[:, :, i] for i in range(3))
  across = jnp.cross(b - a, c - a)
  normal = rotations.normalise(across)
  # The camera is at the origin: what looks away from it is turned round.
  away = (normal * a).sum(-1, keepdims=True)
  turned = jnp.where(away > 0, -normal, normal)
  return jnp.where(is_seen_HW[..., None], turned, 0.0)
