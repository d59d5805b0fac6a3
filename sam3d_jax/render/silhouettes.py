"""Silhouettes with a derivative: pixels beside an edge are mixed by how far the edge has come.

The idea is that of analytic antialiasing after rasterising (Laine et al. 2020). Where two
neighbouring pixels show different triangles, the surface of the nearer one is followed towards the
other's centre, from triangle to triangle, until it ends. If it ends beyond the middle, the farther
pixel takes on some of the nearer one's value, else the nearer one some of the farther one's: values
are continuous in the place of the edge, and so have a slope in its two vertices. A surface that
does not end mixes nothing. Following it is what makes triangles smaller than a pixel count.

A slanting edge crosses ways to the side and ways down. Each counts by the square of the edge's
normal in its direction, which add up to one: so the slope of the sum of a mask is that of its area.
The normal is that of the line through both crossings, and takes no part in the derivative.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SMALL = 1e-6  # px^2
# Padding of the pairs of neighbours of each row, to one for each pixel.
AT_END = ((0, 0), (0, 1))
AT_START = ((0, 0), (1, 0))
MOST_STEPS = 16  # triangles on the way from one pixel's centre to the next


class Seen(NamedTuple):
  """What silhouettes need of a picture; V vertices, F faces."""

  face_HW: jax.Array  # int32, -1 where nothing is
  depth_HW: jax.Array  # camera z, infinite where nothing is
  u_V: jax.Array  # pixels
  v_V: jax.Array
  faces_F3: jax.Array  # int32, of vertices; rows of -1 are padding
  is_drawn_F: jax.Array  # bool
  partner_F3: jax.Array  # as `partners` finds them


class _Line(NamedTuple):
  """A picture of which each row is looked at from left to right."""

  face_HW: jax.Array
  depth_HW: jax.Array
  along_V: jax.Array  # pixels in the direction of the rows, of every vertex
  beside_V: jax.Array  # pixels across


class _Crossings(NamedTuple):
  """Where surfaces end between the H x (W - 1) pairs of neighbours of a row."""

  reach: jax.Array  # from the nearer pixel's centre to the farther's, 0 to 1
  is_there: jax.Array  # bool: a surface ends between them
  left_is_nearer: jax.Array  # bool


class _Walk(NamedTuple):
  """Surfaces that are followed, one for each pair of neighbours."""

  face: jax.Array  # where it is
  entry: jax.Array  # corner opposite to the edge by which it came in, -1 in the first triangle
  is_open: jax.Array  # bool: still to be followed
  is_found: jax.Array  # bool: it ended before the other pixel's centre
  half: jax.Array  # the half edge at which it ended
  steps: jax.Array


def partners(faces_F3: jax.Array) -> jax.Array:
  """(F, 3) int32: the half edge on the other side of every half edge, -1 where the surface ends.

  Half edge 3 f + k of face f is the edge that faces its corner k. Rows of -1 are padding. Of more
  than two triangles at an edge two are taken for neighbours.
  """
  # Every edge, by its ends.
  count = 3 * faces_F3.shape[0]
  start = _following(faces_F3, 1)
  end = _following(faces_F3, 2)
  low = jnp.minimum(start, end).reshape(-1)
  high = jnp.maximum(start, end).reshape(-1)
  number = jnp.arange(count, dtype=jnp.int32)
  edges = (low, high, number)
  low, high, number = jax.lax.sort(edges, num_keys=2)

  # Equal ones lie beside each other.
  low_is_same = low[1:] == low[:-1]
  high_is_same = high[1:] == high[:-1]
  is_edge = low[1:] >= 0
  is_same = low_is_same & high_is_same & is_edge
  same_as_next = jnp.append(is_same, False)
  same_as_last = jnp.append(jnp.zeros(1, bool), is_same)

  # The partner is the one behind, else the one before.
  before = jnp.roll(number, 1)
  behind = jnp.roll(number, -1)
  found = jnp.where(same_as_last, before, -1)
  found = jnp.where(same_as_next, behind, found)

  # Back to the order of the faces.
  flat = jnp.zeros(count, jnp.int32)
  flat = flat.at[number].set(found, unique_indices=True)
  return flat.reshape(faces_F3.shape)


def antialiased(values_HWC: jax.Array, seen: Seen) -> jax.Array:
  """Values with their silhouettes smoothed, differentiable in values, u and v.

  values_HWC: any channels; what is behind everything is a value too.
  """
  # Where surfaces end between pixels beside each other, and above each other: the picture laid on
  # its side.
  rows = _Line(seen.face_HW, seen.depth_HW, seen.u_V, seen.v_V)
  columns = _Line(seen.face_HW.T, seen.depth_HW.T, seen.v_V, seen.u_V)
  across = _crossings(rows, seen)
  down = _crossings(columns, seen)

  # How much each counts.
  to_side = _nearest(across)
  up_or_down = _nearest(down).T
  share_across = _share(across, up_or_down)
  share_down = _share(down, to_side.T)

  # What pixels take on from their neighbours.
  change_across, part_across = _taken(values_HWC, across, share_across)
  on_side = values_HWC.swapaxes(0, 1)
  change_down, part_down = _taken(on_side, down, share_down)
  change = change_across + change_down.swapaxes(0, 1)

  # All of itself is the most that a pixel gives up: things thinner than it end on all sides.
  part = jax.lax.stop_gradient(part_across + part_down.T)
  held = change / jnp.maximum(part, 1.0)[..., None]
  return values_HWC + held


def _distances(crossings: _Crossings) -> tuple[jax.Array, jax.Array]:
  """From the left and from the right centre of every pair to the edge, infinite without one."""
  reach = jax.lax.stop_gradient(crossings.reach)
  rest = 1.0 - reach
  from_left = jnp.where(crossings.left_is_nearer, reach, rest)
  from_right = jnp.where(crossings.left_is_nearer, rest, reach)
  left = jnp.where(crossings.is_there, from_left, jnp.inf)
  right = jnp.where(crossings.is_there, from_right, jnp.inf)
  return left, right


def _nearest(crossings: _Crossings) -> jax.Array:
  """(H, W): from every pixel's centre along its row to the nearest edge, infinite without one."""
  left, right = _distances(crossings)
  # A pixel is the left one of the pair behind it, and the right one of the pair before it.
  behind = jnp.pad(left, AT_END, constant_values=jnp.inf)
  before = jnp.pad(right, AT_START, constant_values=jnp.inf)
  return jnp.minimum(behind, before)


def _share(crossings: _Crossings, other_HW) -> jax.Array:
  """The square of the edge's normal along the rows, of every pair.

  other_HW: distances from centres to edges across the rows. A line that cuts off a and b from the
  axes has its normal along (1 / a, 1 / b).
  """
  left, right = _distances(crossings)
  of_left = _part(left, other_HW[:, :-1])
  of_right = _part(right, other_HW[:, 1:])
  # Both centres have a say.
  return 0.5 * (of_left + of_right)


def _part(own, other) -> jax.Array:
  """The square of the normal along the first axis of a line that cuts these off from both."""
  is_there = jnp.isfinite(own)
  is_slanting = jnp.isfinite(other)
  own = jnp.where(is_there, own, 0.0)
  other = jnp.where(is_slanting, other, 0.0)
  # Through the centre itself both are 0: half of each.
  along = jnp.square(other) + SMALL
  across = jnp.square(own) + SMALL
  part = along / (along + across)
  return jnp.where(is_slanting, part, 1.0)


def _taken(values_HWC, crossings: _Crossings, share) -> tuple[jax.Array, jax.Array]:
  """What pixels take on from their neighbours in their row: the change (H, W, C), and how much of
  themselves they give up for it (H, W).
  """
  # Beyond the middle the nearer covers some of the farther pixel, else it lacks some of its own.
  past_middle = crossings.reach - 0.5
  beyond = jnp.where(crossings.is_there, share * past_middle, 0.0)
  of_farther = jnp.maximum(beyond, 0.0)
  of_nearer = jnp.maximum(-beyond, 0.0)
  of_left = jnp.where(crossings.left_is_nearer, of_nearer, of_farther)
  of_right = jnp.where(crossings.left_is_nearer, of_farther, of_nearer)

  # Both change towards the other.
  step = values_HWC[:, 1:] - values_HWC[:, :-1]
  to_left = of_left[..., None] * step
  to_right = of_right[..., None] * -step

  # The last pixel of a row is no left one, the first no right one.
  all_channels = (0, 0)
  from_behind = jnp.pad(to_left, (*AT_END, all_channels))
  from_before = jnp.pad(to_right, (*AT_START, all_channels))
  part = jnp.pad(of_left, AT_END) + jnp.pad(of_right, AT_START)
  return from_behind + from_before, part


def _crossings(line: _Line, seen: Seen) -> _Crossings:
  """Where the nearer surface of each pair ends, differentiable in the vertices' places."""
  left_is_nearer = line.depth_HW[:, :-1] <= line.depth_HW[:, 1:]
  # The nearer pixel's centre, and the way to the other's.
  height, width = line.face_HW.shape
  column = jnp.arange(width - 1, dtype=jnp.float32) + 0.5
  centre_along = jnp.where(left_is_nearer, column, column + 1.0)
  centre_beside = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
  sign = jnp.where(left_is_nearer, 1.0, -1.0)

  # The edge at which the surface ends, chosen without a derivative.
  left = line.face_HW[:, :-1]
  right = line.face_HW[:, 1:]
  face = jnp.where(left_is_nearer, left, right)
  is_open = (left != right) & (face >= 0)
  fixed = jax.lax.stop_gradient((line.along_V, line.beside_V))
  walk = _followed(face, is_open, (centre_along, centre_beside, sign), fixed, seen)

  # Where it crosses the way, with one.
  ending = seen.faces_F3[walk.half // 3]
  corner = walk.half % 3
  start = _corner(ending, _after(corner, 1))
  end = _corner(ending, _after(corner, 2))
  start_along = sign * (line.along_V[start] - centre_along)
  end_along = sign * (line.along_V[end] - centre_along)
  start_beside = line.beside_V[start] - centre_beside
  end_beside = line.beside_V[end] - centre_beside
  run = end_along - start_along
  rise = jnp.where(walk.is_found, end_beside - start_beside, 1.0)
  reach = start_along - start_beside * run / rise
  return _Crossings(
    reach=jnp.clip(reach, 0.0, 1.0),
    is_there=walk.is_found,
    left_is_nearer=left_is_nearer,
  )


def _followed(face, is_open, way, place_V, seen: Seen) -> _Walk:
  """Surfaces followed from a pixel's centre on, to where they end or pass the next centre."""
  centre_along, centre_beside, sign = way
  along_V, beside_V = place_V
  # A row for every face, so that a step gathers once; padding is never stepped on.
  vertices = jnp.maximum(seen.faces_F3, 0)
  along_F3 = along_V[vertices]
  beside_F3 = beside_V[vertices]

  def is_going(walk):
    return walk.is_open.any() & (walk.steps < MOST_STEPS)

  def step(walk):
    # The triangle from the way's beginning.
    here = jnp.maximum(walk.face, 0)
    along = sign[..., None] * (along_F3[here] - centre_along[..., None])
    beside = beside_F3[here] - centre_beside[..., None]

    # Where the way crosses its edges; it leaves by the farther one, or not as it came.
    start_along, start_beside = _following(along, 1), _following(beside, 1)
    end_along, end_beside = _following(along, 2), _following(beside, 2)
    crosses = (start_beside > 0) != (end_beside > 0)
    crosses = crosses & (jnp.arange(3) != walk.entry[..., None])
    run = end_along - start_along
    rise = jnp.where(crosses, end_beside - start_beside, 1.0)
    place = start_along - start_beside * run / rise
    place = jnp.where(crosses, place, -jnp.inf)
    exit = place.argmax(-1).astype(jnp.int32)
    leaves_at = place.max(-1)

    # What lies behind that edge.
    half = 3 * here + exit
    partner = seen.partner_F3.reshape(-1)[half]
    beyond = jnp.maximum(partner, 0)
    next_face = beyond // 3
    next_corner = beyond % 3
    other_along = _corner(along_F3[next_face], next_corner)
    other_beside = _corner(beside_F3[next_face], next_corner)
    other_along = sign * (other_along - centre_along)
    other_beside = other_beside - centre_beside

    # The surface ends at a border, at what is not drawn, and where it is folded back.
    own_along = _corner(along, exit)
    own_beside = _corner(beside, exit)
    own_side = _side(along, beside, exit, own_along, own_beside)
    other_side = _side(along, beside, exit, other_along, other_beside)
    is_folded = own_side * other_side > 0
    is_border = partner < 0
    is_drawn = seen.is_drawn_F[next_face]
    ends = is_border | ~is_drawn | is_folded

    # The way ends here, leads on, or passes the other pixel's centre.
    leaves = leaves_at > -jnp.inf
    is_before = leaves & (leaves_at <= 1)
    is_found = walk.is_open & is_before & (leaves_at >= 0) & ends
    goes_on = walk.is_open & is_before & ~ends
    return _Walk(
      face=jnp.where(goes_on, next_face, walk.face),
      entry=jnp.where(goes_on, next_corner, walk.entry),
      is_open=goes_on,
      is_found=walk.is_found | is_found,
      half=jnp.where(is_found, half, walk.half),
      steps=walk.steps + 1,
    )

  nothing = jnp.zeros_like(face)
  walk = _Walk(
    face=face,
    entry=nothing - 1,
    is_open=is_open,
    is_found=jnp.zeros_like(is_open),
    half=nothing,
    steps=jnp.int32(0),
  )
  return jax.lax.while_loop(is_going, step, walk)


def _side(along_N3, beside_N3, corner_N, point_along, point_beside) -> jax.Array:
  """On which side of the edge that faces a corner a point lies: by the sign."""
  start = _after(corner_N, 1)
  end = _after(corner_N, 2)
  start_along = _corner(along_N3, start)
  start_beside = _corner(beside_N3, start)
  edge_along = _corner(along_N3, end) - start_along
  edge_beside = _corner(beside_N3, end) - start_beside
  from_along = point_along - start_along
  from_beside = point_beside - start_beside
  return edge_along * from_beside - edge_beside * from_along


def _after(corner_N, steps: int) -> jax.Array:
  """The number of the corner so many steps on."""
  return (corner_N + steps) % 3


def _corner(corners_N3, number_N) -> jax.Array:
  """One of the three of each."""
  chosen = jnp.take_along_axis(corners_N3, number_N[..., None], axis=-1)
  return chosen[..., 0]


def _following(corners_N3, steps: int) -> jax.Array:
  """In the place of each corner the one so many steps on."""
  return jnp.roll(corners_N3, -steps, axis=-1)
