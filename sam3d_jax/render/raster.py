"""Which triangle a picture shows at every pixel's centre: tiles, blocks of triangles, nearest wins.

Nothing here has a derivative: it chooses, and `mesh_picture` computes with what was chosen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.render import lanes, tiles
from sam3d_jax.render.tiles import Grid, Pairs

ON_EDGE = 1e-6  # of the products that an edge function is the difference of: rounding, no gaps
SMALLEST_AREA = 1e-12  # px^2, twice the area of a triangle that is seen


class Corners(NamedTuple):
  """V vertices as a camera sees them."""

  u_V: jax.Array  # pixels, the centre of the top left pixel is (0.5, 0.5)
  v_V: jax.Array
  z_V: jax.Array  # camera z


class Hits(NamedTuple):
  """What lies nearest at every pixel's centre."""

  face_HW: jax.Array  # int32, -1 where nothing is
  is_drawn_F: jax.Array  # bool: triangles that lie before the camera as a whole
  needed: jax.Array  # uint32: (tile, triangle) pairs
  lost: jax.Array  # uint32: of these, pairs without room; the farthest triangles
  left_out: jax.Array  # int32: triangles that reach behind `near`, or with a vertex that is NaN


def nearest(
  corners: Corners,
  faces_F3: jax.Array,
  grid: Grid,
  *,
  near: float,
  slots: int,
  block: int,
  lanes_at_once: int,
) -> Hits:
  """The nearest triangle at every pixel's centre, both sides of it.

  Args:
    corners: of the vertices.
    faces_F3: of vertices; rows that hold -1 are padding.
    grid: the picture.
    near: camera z; triangles that reach before it are left out.
    slots: room for (tile, triangle) pairs.
    block: triangles that a tile takes at once.
    lanes_at_once: tiles at once.

  Raises ValueError as tiles.check does.
  """
  corners = jax.lax.stop_gradient(corners)
  is_face = (faces_F3 >= 0).all(-1)
  chosen = jnp.maximum(faces_F3, 0)
  u_F3 = corners.u_V[chosen]
  v_F3 = corners.v_V[chosen]
  z_F3 = corners.z_V[chosen]

  # Only whole triangles before the camera.
  finite = jnp.isfinite(u_F3 + v_F3 + z_F3).all(-1)
  in_front = (z_F3 > near).all(-1)
  visible = is_face & finite & in_front
  left_out = (is_face & ~visible).sum()

  # From near to far by the nearest corner.
  closest = jnp.where(visible, z_F3.min(-1), jnp.inf)
  order = jnp.argsort(closest).astype(jnp.int32)
  safe_z = jnp.where(visible[:, None], z_F3, 1.0)
  parts = [u_F3, v_F3, 1.0 / safe_z]
  rows = jnp.concatenate(parts, axis=1)[order]

  # The boxes of the triangles.
  touched = tiles.boxes(
    grid,
    u_F3.min(-1),
    u_F3.max(-1),
    v_F3.min(-1),
    v_F3.max(-1),
  )
  right = jnp.where(visible, touched.right_N, touched.left_N)
  touched = touched._replace(right_N=right)
  ordered = tiles.Boxes(*(field[order] for field in touched))
  pairs = tiles.pair(grid, ordered, slots)

  found = _walk(rows, pairs, grid, slots, block, min(lanes_at_once, grid.tiles))
  place = grid.picture(found[:, None, :])[..., 0]
  face = jnp.where(place >= 0, order[jnp.maximum(place, 0)], -1)
  return Hits(
    face_HW=face,
    is_drawn_F=visible,
    needed=pairs.needed,
    lost=pairs.lost,
    left_out=left_out,
  )


def _walk(rows_FK, pairs: Pairs, grid: Grid, slots: int, block: int, count: int) -> jax.Array:
  """(T, P) int32 places of the nearest triangles among the rows, -1 where nothing is."""
  order, filled = lanes.queue(pairs.count_T)
  # One tile more, for lanes without work.
  kept = jnp.full((grid.tiles + 1, grid.pixels), -1, jnp.int32)
  start_T = jnp.append(pairs.start_T, 0)
  count_T = jnp.append(pairs.count_T, 0)
  places = jnp.arange(block, dtype=jnp.int32)

  # Lanes that have seen nothing yet.
  nothing = jnp.full((count, grid.pixels), -1, jnp.int32)
  nowhere = jnp.zeros((count, grid.pixels), jnp.float32)
  state = (lanes.begin(order, filled, count), nowhere, nothing, kept)

  def is_working(state):
    return lanes.is_working(state[0], grid.tiles)

  def step(state):
    where, closeness_WP, place_WP, kept_TP = state
    # The next triangles of every lane's tile.
    start = start_T[where.tile_W]
    many = count_T[where.tile_W]
    first = where.step_W * block
    within = first[:, None] + places
    slot = jnp.minimum(start[:, None] + within, slots - 1)
    place = pairs.thing_P[slot]
    rows = rows_FK[place]
    inside = (within < many[:, None])[..., None]

    # The nearest of them, if it is nearer than what there was.
    closeness = _closeness(rows, where.tile_W, grid)
    closeness = jnp.where(inside, closeness, 0.0)
    best = closeness.argmax(1)
    best_closeness = closeness.max(1)
    best_place = jnp.take_along_axis(place, best, axis=1)
    is_nearer = best_closeness > closeness_WP
    closeness_WP = jnp.where(is_nearer, best_closeness, closeness_WP)
    place_WP = jnp.where(is_nearer, best_place, place_WP)

    # A tile is done with its last triangle, or when all that follow lie behind every pixel.
    is_last = first + block >= many
    nearest_to_come = rows[:, -1, 6:9].max(-1)
    is_covered = closeness_WP.min(-1) >= nearest_to_come
    finished = is_last | is_covered
    target = jnp.where(finished, where.tile_W, grid.tiles + 1)
    kept_TP = kept_TP.at[target].set(place_WP, mode="drop")
    restart = finished[:, None]
    closeness_WP = jnp.where(restart, 0.0, closeness_WP)
    place_WP = jnp.where(restart, -1, place_WP)
    where = lanes.advance(where, finished, order, filled)
    return where, closeness_WP, place_WP, kept_TP

  _, _, _, kept = jax.lax.while_loop(is_working, step, state)
  return kept[: grid.tiles]


def _closeness(rows_WBK, tile_W, grid: Grid) -> jax.Array:
  """(W, B, P): 1 / z of triangles at the pixels of a tile, 0 beside them."""
  # Corners from the pixels' centres.
  pixel_u, pixel_v = grid.centres(tile_W)
  columns = [rows_WBK[..., number, None] for number in range(9)]
  u, v, closeness = columns[:3], columns[3:6], columns[6:]
  x = [corner - pixel_u[:, None] for corner in u]
  y = [corner - pixel_v[:, None] for corner in v]

  # Twice the areas that the pixel makes with the edges, and how far rounding takes them off.
  areas = []
  slack = []
  for i in range(3):
    j = (i + 1) % 3
    k = (i + 2) % 3
    one = x[j] * y[k]
    other = x[k] * y[j]
    areas.append(one - other)
    size = jnp.abs(one) + jnp.abs(other)
    slack.append(ON_EDGE * size)
  whole = areas[0] + areas[1] + areas[2]

  # Inside of it all three have the sign of the whole: of one winding or the other.
  sign = jnp.sign(whole)
  is_inside = jnp.abs(whole) > SMALLEST_AREA
  for area, allowed in zip(areas, slack, strict=True):
    is_inside = is_inside & (sign * area >= -allowed)

  # 1 / z runs straight across the picture.
  weighted = 0.0
  for area, corner in zip(areas, closeness, strict=True):
    weighted = weighted + area * corner
  safe = jnp.where(is_inside, whole, 1.0)
  return jnp.where(is_inside, weighted / safe, 0.0)
