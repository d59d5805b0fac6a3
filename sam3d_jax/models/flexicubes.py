"""FlexiCubes (arXiv 2308.05371) on sparse bricks: features of fine cubes to a triangle mesh.

The mesh decoder predicts 101 numbers for each cube of a 256^3 grid near the surface: signed
distance (negative inside), a shift and colours at its eight corners, and weights with which the
surface's vertices are placed in it. Cubes come as bricks (geometry/bricks.py), so nothing here is
as large as the whole grid, and all shapes are static:

1. `corner_fields`: what cubes predict for a corner that they share is averaged, by adding arrays
   that are shifted by one cell; only what leaves a brick is gathered.
2. `find`: which cubes the surface passes, their corners, and the quads between them. It needs
   signs alone and has no gradients: the same code runs on the host (NumPy, sizes as they are) or
   in a compiled step (JAX, sizes given).
3. `place`: vertices, from gathered corners. In training every gather knows its inverse, so that
   gradients are gathers, too.

Where no cube predicts anything the field is outside (+1). A cube without prediction that shares an
inside corner with one that has some is therefore part of the surface: the ring of bricks holds it.
Surfaces that leave the grid stay open there.

Axes: x y z of a cell within its brick, K bricks, V bricks of the caller, A = 64 K cells, Q cubes
and P corners at the surface, U vertices, E quads. Bricks and lists are the last axis: TPUs pad
narrow last axes to 128. A cell's place among the A is cell * K + brick.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry.bricks import CELLS, SIDE, Bricks
from sam3d_jax.models import flexicubes_tables
from sam3d_jax.models.flexicubes_tables import CORNERS, EDGES, SLOTS

# channels of a cube, in this order: (name, shape); all but the weights at each of its corners
LAYOUT = (("sdf", (8, 1)), ("deform", (8, 3)), ("weights", (21,)), ("colour", (8, 6)))
CHANNELS = 101
SHIFT_START, WEIGHTS_START, COLOUR_START = 8, 32, 53
CORNER_CHANNELS = 10  # signed distance, shift, colour logits (rgb and normal)
WEIGHTS = 21  # beta of edges 12, alpha of corners 8, gamma
COLOURS = 6
WEIGHT_SCALE = 0.99
TINY = 1e-30  # below it a difference of signed distances is no number to divide by
NOT_FINITE = (
  "the mesh decoder's features are not finite: decode in float32 or bfloat16, and check that the "
  "latents are finite and normalised with the statistics of their flow model"
)

# Corner at which an edge begins, the axis it runs along, and the two axes across it.
EDGE_LOW = EDGES.min(axis=1)
EDGE_AXIS = np.abs(CORNERS[EDGES[:, 1]] - CORNERS[EDGES[:, 0]]).argmax(axis=1)
ACROSS = ((1, 2), (0, 2), (0, 1))
# The four cubes around an edge, in the order of their coordinates, in turn: where the edge's first
# corner is outside and where it is inside.
OUTSIDE_FIRST = (0, 1, 3, 2)
INSIDE_FIRST = (2, 3, 1, 0)


def _quad_member(low: int, axis: int) -> int:
  """Which of the four cubes around it a cube is, for its own edge that begins at corner `low`."""
  first, second = ACROSS[axis]
  offset = CORNERS[low]
  return 3 - 2 * int(offset[first]) - int(offset[second])


def _edge_of_quad() -> np.ndarray:
  """(3, 4) the number that an edge along an axis has in each of the four cubes around it."""
  table = np.zeros((3, 4), np.int32)
  for edge, (low, axis) in enumerate(zip(EDGE_LOW, EDGE_AXIS, strict=True)):
    table[axis, _quad_member(low, axis)] = edge
  return table


EDGE_OF_QUAD = _edge_of_quad()
# the four cubes by the corner at which the edge begins in them
AROUND_EDGE = EDGE_LOW[EDGE_OF_QUAD]


class Surface(NamedTuple):
  """What the signs decide: cubes at the surface, vertices, quads. Integers, no gradients.

  Lists are padded; indices in padding have the length of what they point into.
  """

  index_Q: Any  # place of each cube among the A cells
  row_Q: Any  # row of the tables: the case, 255 - case where two problem cases meet; 0 in padding
  index_P: Any  # place of each corner among the A cells
  corners_8Q: Any  # corners of a cube, in P
  cube_U: Any  # cube of each vertex, in Q
  member_12U: Any  # bool, edges of that cube whose crossings make the vertex
  vertex_4E: Any  # vertices of each quad, in U, counter-clockwise seen from outside
  cube_E: Any  # cube that owns the quad, in Q
  counts: Any  # (4,) how many cubes, corners, vertices and quads there are; more may not fit
  inverse: "Inverse | None"


class Inverse(NamedTuple):
  """Where the entries of a list went to: what gathers of gradients need."""

  cube_A: Any  # cells, in Q
  corner_A: Any  # cells, in P
  cubes_8P: Any  # corners, i * Q + cube where a corner is the cube's corner i
  vertices_4Q: Any  # cubes, in U
  quads_12U: Any  # vertices, turn * E + quad where a vertex is the quad's corner `turn`


class Field(NamedTuple):
  """Means of predictions at all corners of the bricks."""

  means_xyzCK: jax.Array  # fp32, zero where nothing is predicted
  count_xyzK: jax.Array  # cubes that predict a corner


class TrainingMesh(NamedTuple):
  """Triangles with gradients, padded; and what the losses of the mesh decoder need.

  vertices_M3: object frame, units of the unit cube; M = U + E, vertices and the quads' centres.
  attributes_M6: colour and normal map, 0..1.
  faces_F3, valid_F, object_F: F = 4 E triangles, (0, 0, 0) in padding; the object of each.
  deviation, consistency, weight, reg_loss: (objects,) mean L_dev; mean square of what cubes
    predict for a corner less its mean; mean of the absolute weights of edges and corners; their
    weighted sum.
  corners_A3, sdf_A, predicted_A: shifted corners, their signed distance, whether there is one.
  overflow: bool, there is more surface than room, and the mesh lacks a part.
  """

  vertices_M3: jax.Array
  attributes_M6: jax.Array
  faces_F3: jax.Array
  valid_F: jax.Array
  object_F: jax.Array
  deviation: jax.Array
  consistency: jax.Array
  weight: jax.Array
  reg_loss: jax.Array
  corners_A3: jax.Array
  sdf_A: jax.Array
  predicted_A: jax.Array
  overflow: jax.Array


class Mesh(NamedTuple):
  """A mesh on the host: object frame, counter-clockwise seen from outside."""

  vertices_M3: np.ndarray  # float32
  faces_F3: np.ndarray  # int32
  attributes_M6: np.ndarray  # float32, 0..1: colour and normal map
  object_F: np.ndarray  # int32, the object that a face belongs to


class Sizes(NamedTuple):
  """Room for the surface: cubes, corners, vertices, quads."""

  cubes: int
  corners: int
  vertices: int
  quads: int


# ---- gathers that know their inverse


@jax.custom_vjp
def pick(x, index_M, reverse_JN):
  """x (..., N) at `index` (M,) along the last axis, zero where the index is N or more.

  reverse_JN: all places in the result that an entry of x went to, M where there is none. Its
  gradient is the sum of what is found there: a gather, where autodiff would scatter.
  """
  del reverse_JN
  return jnp.take(
    x,
    index_M,
    axis=-1,
    mode="fill",
    fill_value=0,
  )


def _pick_forward(x, index_M, reverse_JN):
  return pick(x, index_M, reverse_JN), (index_M, reverse_JN)


def _pick_backward(saved, gradient):
  index_M, reverse_JN = saved
  total = 0.0
  for reverse_N in reverse_JN:
    total = total + jnp.take(
      gradient,
      reverse_N,
      axis=-1,
      mode="fill",
      fill_value=0,
    )
  return total, _no_gradient(index_M), _no_gradient(reverse_JN)


def _no_gradient(index):
  return np.zeros(np.shape(index), jax.dtypes.float0)


pick.defvjp(_pick_forward, _pick_backward)


# ---- steps between cells


def _at(x, axis: int, where):
  """x cut along one axis."""
  cut = [slice(None)] * x.ndim
  cut[axis] = where
  return x[tuple(cut)]


def _padded(x, bricks: int):
  """x (..., V) with zeros up to (..., bricks)."""
  missing = bricks - x.shape[-1]
  margins = [(0, 0)] * (x.ndim - 1) + [(0, missing)]
  return jnp.pad(x, margins)


def from_below(x, axis: int, low_K, high_V):
  """What the cell one lower along an axis holds: (..., V) bricks to (..., K), zero beyond them."""
  entering = pick(_at(x, axis, slice(3, None)), low_K, high_V[None])
  inner = _padded(_at(x, axis, slice(0, 3)), len(low_K))
  return jnp.concatenate([entering, inner], axis)


def from_above(x, axis: int, high_V, low_K):
  """What the cell one higher along an axis holds: (..., K) bricks to (..., V)."""
  entering = pick(_at(x, axis, slice(0, 1)), high_V, low_K[None])
  inner = _at(x, axis, slice(1, None))[..., : len(high_V)]
  return jnp.concatenate([inner, entering], axis)


# ---- 1. fields at corners


def parts(feats_VxyzC) -> dict[str, jax.Array]:
  """The channels of cubes by name, (V, 4, 4, 4, *shape) fp32."""
  feats = feats_VxyzC.astype(jnp.float32)
  found = {}
  start = 0
  for name, shape in LAYOUT:
    size = math.prod(shape)
    part = feats[..., start : start + size]
    found[name] = part.reshape(*part.shape[:-1], *shape)
    start += size
  return found


def by_corner(values_Vxyz8C):
  """Values at cubes' corners, bricks last: (2, 2, 2, 4, 4, 4, C, V), the corner's z first."""
  values = values_Vxyz8C.transpose(4, 1, 2, 3, 5, 0)
  return values.reshape(2, 2, 2, *values.shape[1:])


def corner_fields(values_zyxCV, bricks: Bricks) -> Field:
  """Means over the cubes that share a corner. values_zyxCV: as from `by_corner`."""
  channels, own = values_zyxCV.shape[-2:]
  active = bricks.active_xyzV[..., None, :]
  ones = jnp.broadcast_to(active, values_zyxCV.shape[:6] + (1, own))
  sums = jnp.concatenate([values_zyxCV, ones.astype(jnp.float32)], axis=-2)
  sums = jnp.where(active, sums, 0)
  # Along each axis, x first: what cubes say of their low corners, and those below of their high.
  for axis in range(3):
    before = (slice(None),) * (2 - axis)
    below = from_below(
      sums[(*before, 1)],
      axis - 5,
      bricks.low_3K[axis],
      bricks.high_3K[axis, : sums.shape[-1]],
    )
    here = _padded(sums[(*before, 0)], below.shape[-1])
    sums = here + below
  count = sums[..., channels, :]
  means = sums[..., :channels, :] / jnp.maximum(count, 1)[..., None, :]
  return Field(means, count)


def signed_distance(mean_xyzK, count_xyzK, resolution: int):
  """The signed distance from its mean: the published bias, and outside where nobody predicts."""
  return jnp.where(count_xyzK > 0, mean_xyzK - 1 / resolution, 1.0)


def at_cubes(values_xyzCK, bricks: Bricks):
  """Corner values (4, 4, 4, C, K) at each of the caller's cubes: (2, 2, 2, 4, 4, 4, C, V)."""
  own = bricks.active_xyzV.shape[-1]
  x = values_xyzCK
  for axis in (2, 1, 0):
    # the last step needs only the caller's bricks
    wanted = own if axis == 0 else x.shape[-1]
    above = from_above(
      x,
      axis - 5,
      bricks.high_3K[axis, :wanted],
      bricks.low_3K[axis],
    )
    x = jnp.stack([x[..., :wanted], above], axis=2 - axis)
  return x


# ---- 2. what signs decide


def find(
  xp,
  inside_xyzK,
  bricks: Bricks,
  resolution: int,
  sizes: Sizes | None,
  *,
  inverse: bool,
) -> Surface:
  """The surface between inside and outside, (4, 4, 4, K) bool.

  xp: numpy or jax.numpy. sizes: room for what is found; None (NumPy only): for what there is.
  inverse: make the tables that gradients need.
  """
  tables = flexicubes_tables.make()
  room = sizes or Sizes(None, None, None, None)
  K = inside_xyzK.shape[-1]
  low = _extended(xp, bricks.low_3K)
  high = _extended(xp, bricks.high_3K)

  # the case of each cube, its corners' bits joined along one axis after the other
  case = inside_xyzK.astype(xp.uint8)
  for axis in range(3):
    above = _shift(xp, case, axis, high[axis], up=True)
    case = case | (above << (1 << axis)).astype(xp.uint8)
  in_grid_K = bricks.valid_K & (bricks.coords_3K < resolution // SIDE).all(axis=0)
  at_surface = (case != 0) & (case != 255) & in_grid_K

  # cubes at the surface
  index_Q, cube_A, cubes = _compact(xp, at_surface.reshape(-1), room.cubes)
  Q = len(index_Q)
  cell_Q, brick_Q = _cell(xp, index_Q, K)
  case_Q = xp.where(brick_Q < K, _take(case.reshape(-1), index_Q), 0).astype(xp.int32)
  row_Q = _rows(xp, tables, case_Q, (cell_Q, brick_Q), cube_A, low, high)
  slot_12Q = xp.asarray(tables.slot.T)[:, row_Q]

  # their corners: a cell is a corner of the cubes at it and below it
  at_corner = at_surface
  for axis in range(3):
    at_corner = at_corner | _shift(xp, at_corner, axis, low[axis], up=False)
  index_P, corner_A, corners = _compact(xp, at_corner.reshape(-1), room.corners)
  above_8Q = _cells_around(xp, cell_Q, brick_Q, high, up=True)
  corners_8Q = corner_A[above_8Q]

  # their vertices, up to four a cube
  exists_4Q = np.arange(SLOTS)[:, None] < xp.asarray(tables.count)[row_Q]
  index_U, vertex_N, vertices = _compact(xp, exists_4Q.reshape(-1), room.vertices)
  U = len(index_U)
  exists_U = index_U < SLOTS * Q
  cube_U = xp.where(exists_U, index_U % Q, Q)
  slots_of_12U = _take(slot_12Q, cube_U)
  member_12U = exists_U & (slots_of_12U == index_U // Q)

  # Quads: a cube owns the three edges that begin at its low corner.
  below_8Q = cube_A[_cells_around(xp, cell_Q, brick_Q, low, up=False)]
  crossed = []
  corners_of_quads = []
  for axis in range(3):
    edge_inside = (case_Q & 1) > 0, (case_Q >> (1 << axis) & 1) > 0
    around_4Q = below_8Q[np.array(AROUND_EDGE[axis])]
    changes_Q = edge_inside[0] != edge_inside[1]
    crossed.append(changes_Q & (around_4Q < Q).all(axis=0))
    # the vertex that each of the four cubes has for this edge
    vertex_4Q = []
    for turn, edge in enumerate(EDGE_OF_QUAD[axis]):
      slot_Q = _take(slot_12Q[edge], around_4Q[turn]).astype(xp.int32)
      place_Q = xp.where(around_4Q[turn] < Q, slot_Q * Q + around_4Q[turn], SLOTS * Q)
      vertex_4Q.append(vertex_N[xp.minimum(place_Q, SLOTS * Q)])
    # counter-clockwise: edges along y see their cubes in the other sense
    begins_inside_Q = edge_inside[0] != (axis == 1)
    corners_of_quads.append(_in_turn(xp, xp.stack(vertex_4Q), begins_inside_Q))
  index_E, quad_N, quads = _compact(xp, xp.concatenate(crossed), room.quads)
  exists_E = index_E < 3 * Q
  vertex_4E = xp.where(exists_E, _take(xp.concatenate(corners_of_quads, axis=1), index_E), U)
  cube_E = xp.where(exists_E, index_E % Q, Q)
  surface = Surface(
    index_Q=index_Q,
    row_Q=row_Q,
    index_P=index_P,
    corners_8Q=corners_8Q,
    cube_U=cube_U,
    member_12U=member_12U,
    vertex_4E=vertex_4E,
    cube_E=cube_E,
    counts=xp.stack([cubes, corners, vertices, quads]),
    inverse=None,
  )
  if not inverse:
    return surface

  # corners: cubes that they are a corner of
  cell_P, brick_P = _cell(xp, index_P, K)
  cubes_8P = cube_A[_cells_around(xp, cell_P, brick_P, low, up=False)]
  starts_81 = np.arange(8, dtype=np.int32)[:, None] * Q
  cubes_8P = xp.where(cubes_8P < Q, starts_81 + cubes_8P, 8 * Q)

  # vertices: quads across each of their edges, owned by the cube that begins where the edge does
  E = len(index_E)
  quads_12U = []
  for edge, (corner, axis) in enumerate(zip(EDGE_LOW, EDGE_AXIS, strict=True)):
    owner_Q = cube_A[above_8Q[corner]]
    place_Q = xp.where(owner_Q < Q, axis * Q + owner_Q, 3 * Q)
    quad_Q = quad_N[place_Q]
    begins_inside_Q = (case_Q >> int(corner) & 1 > 0) != (axis == 1)
    member = _quad_member(corner, axis)
    turn_Q = xp.where(begins_inside_Q, INSIDE_FIRST.index(member), OUTSIDE_FIRST.index(member))
    went_Q = xp.where(quad_Q < E, turn_Q * E + quad_Q, 4 * E)
    quads_12U.append(xp.where(member_12U[edge], _take(went_Q, cube_U), 4 * E))
  return surface._replace(
    inverse=Inverse(
      cube_A=cube_A[:-1],
      corner_A=corner_A[:-1],
      cubes_8P=cubes_8P,
      vertices_4Q=vertex_N[:-1].reshape(SLOTS, Q),
      quads_12U=xp.stack(quads_12U),
    )
  )


def _in_turn(xp, x_4N, begins_inside_N):
  """The cubes around an edge in turn, counter-clockwise seen from outside."""
  outside_first = x_4N[np.array(OUTSIDE_FIRST)]
  inside_first = x_4N[np.array(INSIDE_FIRST)]
  return xp.where(begins_inside_N, inside_first, outside_first)


def _rows(xp, tables, case_Q, cell_and_brick, cube_A, low, high):
  """Rows of the tables: two problem cases that share their ambiguous face are both inverted."""
  problem_Q = xp.asarray(tables.problem)[case_Q]
  direction_3Q = xp.asarray(tables.direction.T)[:, case_Q]
  # the cube across the ambiguous face
  cell, brick = cell_and_brick
  for axis in range(3):
    for table, up, sign in ((high, True, 1), (low, False, -1)):
      moves_Q = direction_3Q[axis] == sign
      next_cell, next_brick = _step(xp, cell, brick, axis, table[axis], up=up)
      cell = xp.where(moves_Q, next_cell, cell)
      brick = xp.where(moves_Q, next_brick, brick)
  other_Q = cube_A[_place(xp, cell, brick, low.shape[1] - 1)]
  is_problem_Q = _take(problem_Q, other_Q) & (other_Q < len(problem_Q))
  return xp.where(problem_Q & is_problem_Q, 255 - case_Q, case_Q)


def _extended(xp, table_3K):
  """Neighbours of bricks, and of the brick K that does not exist: there it stays."""
  K = table_3K.shape[1]
  missing = xp.full((3, 1), K, xp.int32)
  return xp.concatenate([xp.asarray(table_3K), missing], axis=1)


def _shift(xp, x_xyzK, axis: int, table, *, up: bool):
  """What the neighbouring cell along an axis holds; zero beyond the bricks."""
  leaving = slice(0, 1) if up else slice(3, None)
  entering = _at(x_xyzK, axis - 4, leaving)
  nothing = xp.zeros_like(entering[..., :1])
  entering = xp.concatenate([entering, nothing], axis=-1)[..., table[:-1]]
  if up:
    return xp.concatenate([_at(x_xyzK, axis - 4, slice(1, None)), entering], axis=axis)
  return xp.concatenate([entering, _at(x_xyzK, axis - 4, slice(0, 3))], axis=axis)


def _step(xp, cell, brick, axis: int, table, *, up: bool):
  """The neighbouring cell along an axis, as (cell, brick); brick K where there is none."""
  stride = SIDE ** (2 - axis)
  along = cell // stride % SIDE
  sign = 1 if up else -1
  last = SIDE - 1 if up else 0
  leaves = along == last
  # to the other end of the next brick
  across = cell - sign * (SIDE - 1) * stride
  moved = xp.where(leaves, across, cell + sign * stride)
  return moved, xp.where(leaves, table[brick], brick)


def _cell(xp, index, K: int):
  """Places among the A cells as (cell, brick); those beyond have the brick K."""
  exists = index < CELLS * K
  return xp.where(exists, index // K, 0), xp.where(exists, index % K, K)


def _place(xp, cell, brick, K: int):
  """Place among the A cells; A where the brick does not exist."""
  return xp.where(brick < K, cell * K + brick, CELLS * K)


def _cells_around(xp, cell, brick, tables, *, up: bool):
  """(8, N) places of the cells at the eight corners of cubes (up), or of the cubes around corners,
  in the order of the corner that they share.
  """
  K = tables.shape[1] - 1
  cells = [(cell, brick)]
  for i in range(1, 8):
    # one step from where the corner without its highest bit is
    axis = i.bit_length() - 1
    before = cells[i - (1 << axis)]
    after = _step(xp, *before, axis, tables[axis], up=up)
    cells.append(after)
  return xp.stack([_place(xp, *pair, K) for pair in cells])


def _take(x, index):
  """x (..., N) at `index`, which may point beyond it: the last entry then."""
  last = x.shape[-1] - 1
  return x[..., index.clip(0, last)]


def _compact(xp, flags_N, size: int | None):
  """Where flags are set: indices (size,), N in padding; the inverse (N + 1,), `size` where there is
  none; how many there are.
  """
  N = len(flags_N)
  number_N = xp.cumsum(flags_N, dtype=xp.int32) - 1
  count = number_N[-1] + 1
  if xp is np:
    found = np.flatnonzero(flags_N).astype(np.int32)
    size = rounded(len(found)) if size is None else size
    index = np.full(size, N, np.int32)
    index[: len(found)] = found[:size]
  else:
    target_N = xp.where(flags_N, number_N, size)
    source_N = xp.arange(N, dtype=xp.int32)
    index = xp.full(size, N, xp.int32).at[target_N].set(source_N, mode="drop")
  inverse_N = xp.where(flags_N & (number_N < size), number_N, size).astype(xp.int32)
  return index, xp.append(inverse_N, xp.int32(size)), count


def rounded(count: int) -> int:
  """The next of eight sizes an octave, at least 256: a few programs serve all meshes."""
  if count <= 256:
    return 256
  unit = 1 << (count.bit_length() - 4)
  return -(-count // unit) * unit


# ---- 3. vertices


class Placed(NamedTuple):
  """Vertices of the surface."""

  vertices_CU: jax.Array  # position in the object frame, then colours 0..1
  gamma_U: jax.Array  # by which a quad's diagonal is chosen
  deviation_12U: jax.Array | None  # L_dev of the crossing of each edge, zero where there is none


def corner_positions(shift_3P, place_P, bricks: Bricks, resolution: int):
  """Corners (3, P) in the object frame, moved by at most half a cube."""
  K = bricks.coords_3K.shape[1]
  cell_P = place_P // K
  along = [cell_P // SIDE**2, cell_P // SIDE % SIDE, cell_P % SIDE]
  brick_3P = jnp.asarray(bricks.coords_3K)[:, place_P % K]
  grid_3P = brick_3P * SIDE + jnp.stack(along)
  reach = (1 - 1e-8) / (2 * resolution)
  return grid_3P / resolution - 0.5 + reach * jnp.tanh(shift_3P)


def place(corner_C8U, weights_CU, member_12U, *, deviation: bool) -> Placed:
  """Vertices from their cubes' corners and weights.

  corner_C8U: signed distance, position, colours. weights_CU: (21, U).
  """
  beta_12U = WEIGHT_SCALE * jnp.tanh(weights_CU[:12]) + 1
  alpha_8U = WEIGHT_SCALE * jnp.tanh(weights_CU[12:20]) + 1
  gamma_U = WEIGHT_SCALE * jax.nn.sigmoid(weights_CU[20]) + (1 - WEIGHT_SCALE) / 2

  # A vertex is the mean of its edges' crossings, weighted by beta; edge by edge, to stack nothing.
  total_U = 0.0
  sum_CU = 0.0
  plain = []
  for edge, (a, b) in enumerate(EDGES):
    begin_CU, end_CU = corner_C8U[:, a], corner_C8U[:, b]
    weighted_U = _share(begin_CU[0] * alpha_8U[a], end_CU[0] * alpha_8U[b])
    crossing_CU = end_CU[1:] + weighted_U * (begin_CU[1:] - end_CU[1:])
    share_U = jnp.where(member_12U[edge], beta_12U[edge], 0)
    total_U = total_U + share_U
    sum_CU = sum_CU + share_U * crossing_CU
    if deviation:
      plain_U = _share(begin_CU[0], end_CU[0])
      plain.append(end_CU[1:4] + plain_U * (begin_CU[1:4] - end_CU[1:4]))
  vertices_CU = sum_CU / jnp.where(total_U > 0, total_U, 1)
  deviation_12U = None
  if deviation:
    deviation_12U = _deviation(jnp.stack(plain, axis=1), vertices_CU[:3], member_12U)
  return Placed(
    vertices_CU=vertices_CU,
    gamma_U=gamma_U,
    deviation_12U=deviation_12U,
  )


def _share(sdf_begin, sdf_end):
  """Weight of an edge's first corner where the field is zero; half where the field is flat."""
  difference = sdf_end - sdf_begin
  steep = (sdf_begin < 0) != (sdf_end < 0)
  steep = steep & (jnp.abs(difference) > TINY)
  return jnp.where(steep, sdf_end / jnp.where(steep, difference, 1), 0.5)


def _deviation(crossing_312U, vertices_3U, member_12U):
  """(12, U): how far the distance from vertex to crossing is from the mean of its vertex."""
  square_12U = jnp.square(crossing_312U - vertices_3U[:, None]).sum(0)
  # a distance of zero has the gradient zero
  apart = member_12U & (square_12U > 0)
  distance_12U = jnp.where(apart, jnp.sqrt(jnp.where(apart, square_12U, 1)), 0)
  edges_U = jnp.maximum(member_12U.sum(0), 1)
  mean_U = distance_12U.sum(0) / edges_U
  return jnp.where(member_12U, jnp.abs(distance_12U - mean_U), 0)


def _flat_cells(x_xyzCK):
  """(4, 4, 4, C, K) as (C, 64 K)."""
  channels, bricks = x_xyzCK.shape[3:]
  cells = x_xyzCK.reshape(CELLS, channels, bricks)
  return cells.swapaxes(0, 1).reshape(channels, CELLS * bricks)


# ---- whole: on the host, and for training


def extract(feats_VxyzC, bricks: Bricks, resolution: int) -> Mesh:
  """The mesh of decoded cubes; quads are cut along the diagonal that their weights prefer.

  feats_VxyzC: (V, 4, 4, 4, 101), cubes of the first V bricks; what inactive ones hold does not
  matter. resolution: cubes along the whole grid. Without a change of sign the mesh is empty.

  Raises ValueError for another number of channels or features that are not finite.
  """
  check_features(feats_VxyzC, bricks)
  sdf_A, inside_A, finite = _distances(feats_VxyzC, bricks, resolution)
  if not finite:
    raise ValueError(NOT_FINITE)

  # where the surface is, and which features it needs
  inside_xyzK = np.asarray(inside_A).reshape(SIDE, SIDE, SIDE, -1)
  surface = find(np, inside_xyzK, bricks, resolution, None, inverse=False)
  needed = _needed(surface, bricks)
  placed = _placed(feats_VxyzC, sdf_A, bricks, surface, needed, resolution)
  _, _, vertices, quads = surface.counts.tolist()
  vertices_CU = np.asarray(placed.vertices_CU)[:, :vertices]
  if not np.isfinite(vertices_CU).all():
    raise ValueError(NOT_FINITE)

  # two triangles a quad
  vertex_4E = surface.vertex_4E[:, :quads]
  gamma_4E = np.asarray(placed.gamma_U)[vertex_4E]
  first = gamma_4E[0] * gamma_4E[2] > gamma_4E[1] * gamma_4E[3]
  one = vertex_4E[[0, 1, 2, 0, 2, 3]]
  other = vertex_4E[[0, 1, 3, 3, 1, 2]]
  faces_6E = np.where(first, one, other)
  _, brick_E = _cell(np, surface.index_Q[surface.cube_E[:quads]], len(bricks.object_K))
  return Mesh(
    vertices_M3=np.ascontiguousarray(vertices_CU[:3].T),
    faces_F3=np.ascontiguousarray(faces_6E.T).reshape(-1, 3),
    attributes_M6=np.ascontiguousarray(vertices_CU[3:].T),
    object_F=np.repeat(bricks.object_K[brick_E], 2),
  )


def check_features(feats_VxyzC, bricks: Bricks) -> None:
  """Raises ValueError unless there are 101 channels for every cube of the bricks."""
  own = bricks.active_xyzV.shape[-1]
  expected = (own, SIDE, SIDE, SIDE, CHANNELS)
  if feats_VxyzC.shape != expected:
    raise ValueError(f"features have shape {feats_VxyzC.shape}, the bricks need {expected}")


@functools.partial(jax.jit, static_argnums=2)
def _distances(feats_VxyzC, bricks: Bricks, resolution: int):
  """Signed distances at all corners (A,), where they are negative, whether all are finite."""
  sdf = feats_VxyzC[..., :8, None].astype(jnp.float32)
  field = corner_fields(by_corner(sdf), bricks)
  sdf_xyzK = signed_distance(field.means_xyzCK[..., 0, :], field.count_xyzK, resolution)
  sdf_A = sdf_xyzK.reshape(-1)
  return sdf_A, sdf_A < 0, jnp.isfinite(sdf_A).all()


class Needed(NamedTuple):
  """Rows of the features (64 V, 101) that the surface needs; 64 V where there is none."""

  corner_8P: np.ndarray  # cubes of which a corner is corner i
  cube_Q: np.ndarray


def _needed(surface: Surface, bricks: Bricks) -> Needed:
  K = len(bricks.object_K)
  own = bricks.active_xyzV.shape[-1]
  active_A = np.zeros((CELLS, K + 1), bool)
  active_A[:, :own] = bricks.active_xyzV.reshape(CELLS, own)

  def row(cell, brick):
    return np.where(active_A[cell, brick], brick * CELLS + cell, CELLS * own)

  cell_P, brick_P = _cell(np, surface.index_P, K)
  low = _extended(np, bricks.low_3K)
  around_8P = _cells_around(np, cell_P, brick_P, low, up=False)
  return Needed(
    corner_8P=row(*_cell(np, around_8P, K)),
    cube_Q=row(*_cell(np, surface.index_Q, K)),
  )


@functools.partial(jax.jit, static_argnums=5)
def _placed(feats_VxyzC, sdf_A, bricks, surface: Surface, needed: Needed, resolution: int):
  rows = feats_VxyzC.reshape(-1, CHANNELS)

  def features(row_N, first: int, count: int):
    channel_C1 = np.arange(first, first + count)[:, None]
    return rows.at[row_N[None], channel_C1].get(mode="fill", fill_value=0).astype(jnp.float32)

  # means over the cubes that predict a corner
  sums_CP = 0.0
  for i, row_P in enumerate(needed.corner_8P):
    shift_3P = features(row_P, SHIFT_START + 3 * i, 3)
    colour_CP = features(row_P, COLOUR_START + COLOURS * i, COLOURS)
    sums_CP = sums_CP + jnp.concatenate([shift_3P, colour_CP])
  predicted_8P = needed.corner_8P < len(rows)
  means_CP = sums_CP / jnp.maximum(predicted_8P.sum(0), 1)
  sdf_1P = _take(sdf_A, surface.index_P)[None]
  corner_CP = _corner_values(sdf_1P, means_CP, surface.index_P, bricks, resolution)

  # of each vertex, its cube's corners and weights
  corner_8U = _take(surface.corners_8Q, surface.cube_U)
  corner_C8U = _take(corner_CP, corner_8U)
  row_U = _take(needed.cube_Q, surface.cube_U)
  weights_CU = features(row_U, WEIGHTS_START, WEIGHTS)
  return place(corner_C8U, weights_CU, surface.member_12U, deviation=False)


def _corner_values(sdf_1P, means_CP, index_P, bricks: Bricks, resolution: int):
  """Signed distance, position and colours of corners, from the means of shifts and colours."""
  position_3P = corner_positions(means_CP[:3], index_P, bricks, resolution)
  colour_CP = jax.nn.sigmoid(means_CP[3:])
  return jnp.concatenate([sdf_1P, position_3P, colour_CP])


def training_mesh(
  feats_VxyzC,
  bricks: Bricks,
  resolution: int,
  sizes: Sizes,
  *,
  objects: int = 1,
) -> TrainingMesh:
  """The mesh of decoded cubes with gradients, and its regulariser, for a compiled step.

  Quads are cut into four triangles around a centre. sizes: room for what is found. objects: how
  many objects the bricks belong to; the regulariser is a mean over each.

  Published weights of the regulariser: 1 for the consistency, 0.5 for L_dev, 0.2 for the weights.
  Raises ValueError for another number of channels.
  """
  check_features(feats_VxyzC, bricks)
  bricks = jax.tree.map(jnp.asarray, bricks)
  K = len(bricks.object_K)
  active = bricks.active_xyzV
  own = active.shape[-1]

  # means at corners: signed distance, shift, colours
  channels = parts(feats_VxyzC)
  corners = [channels["sdf"], channels["deform"], channels["colour"]]
  values_zyxCV = by_corner(jnp.concatenate(corners, axis=-1))
  weights_xyzCV = channels["weights"].transpose(1, 2, 3, 4, 0)
  field = corner_fields(values_zyxCV, bricks)
  means_xyzCK = field.means_xyzCK
  sdf_xyzK = signed_distance(means_xyzCK[..., 0, :], field.count_xyzK, resolution)

  # the surface, and what its cubes say
  surface = find(jnp, sdf_xyzK < 0, bricks, resolution, sizes, inverse=True)
  inverse = surface.inverse
  Q, U, E = len(surface.row_Q), len(surface.cube_U), len(surface.cube_E)
  sdf_A = sdf_xyzK.reshape(-1)
  means_CA = _flat_cells(means_xyzCK)
  values_CA = jnp.concatenate([sdf_A[None], means_CA[1:]])
  values_CP = pick(values_CA, surface.index_P, inverse.corner_A[None])
  corner_CP = _corner_values(values_CP[:1], values_CP[1:], surface.index_P, bricks, resolution)
  corner_CN = pick(corner_CP, surface.corners_8Q.reshape(-1), inverse.cubes_8P)
  weights_CA = _flat_cells(_padded(jnp.where(active[..., None, :], weights_xyzCV, 0), K))
  weights_CQ = pick(weights_CA, surface.index_Q, inverse.cube_A[None])
  cube_CQ = jnp.concatenate([corner_CN.reshape(-1, Q), weights_CQ])
  vertex_CU = pick(cube_CQ, surface.cube_U, inverse.vertices_4Q)
  corner_C8U = vertex_CU[: 8 * CORNER_CHANNELS].reshape(-1, 8, U)
  placed = place(
    corner_C8U,
    vertex_CU[8 * CORNER_CHANNELS :],
    surface.member_12U,
    deviation=True,
  )

  # centres of quads: their diagonals' midpoints, weighted
  all_CU = jnp.concatenate([placed.vertices_CU, placed.gamma_U[None]])
  quad_CN = pick(all_CU, surface.vertex_4E.reshape(-1), inverse.quads_12U)
  quad_C4E = quad_CN.reshape(-1, 4, E)
  gamma_4E = quad_C4E[-1]
  gamma_02 = gamma_4E[0] * gamma_4E[2]
  gamma_13 = gamma_4E[1] * gamma_4E[3]
  middle_02 = (quad_C4E[:-1, 0] + quad_C4E[:-1, 2]) / 2
  middle_13 = (quad_C4E[:-1, 1] + quad_C4E[:-1, 3]) / 2
  total_E = gamma_02 + gamma_13 + 1e-8
  centre_CE = (middle_02 * gamma_02 + middle_13 * gamma_13) / total_E
  vertices_CM = jnp.concatenate([placed.vertices_CU, centre_CE], axis=1)

  # a fan of four triangles
  exists_E = surface.cube_E < Q
  vertex_4E = jnp.where(exists_E, surface.vertex_4E, 0)
  centre_E = jnp.where(exists_E, U + jnp.arange(E), 0)
  fan = []
  for turn in range(4):
    following = (turn + 1) % 4
    fan.append(jnp.stack([vertex_4E[turn], vertex_4E[following], centre_E]))
  faces_F3 = jnp.stack(fan).transpose(2, 0, 1).reshape(-1, 3)
  _, brick_Q = _cell(jnp, surface.index_Q, K)
  object_Q = _take(bricks.object_K, brick_Q)
  object_E = _take(object_Q, surface.cube_E)

  # the regulariser's parts, means over each object
  mean_zyxCV = at_cubes(means_xyzCK, bricks)
  apart_xyzV = jnp.square(values_zyxCV - mean_zyxCV).mean((0, 1, 2, 6))
  weight_xyzV = jnp.abs(weights_xyzCV[..., :20, :]).mean(-2)
  object_xyzV = jnp.broadcast_to(bricks.object_K[:own], active.shape)
  object_12U = jnp.broadcast_to(_take(object_Q, surface.cube_U), surface.member_12U.shape)
  consistency = _means(apart_xyzV, object_xyzV, active, objects)
  weight = _means(weight_xyzV, object_xyzV, active, objects)
  deviation = _means(placed.deviation_12U, object_12U, surface.member_12U, objects)
  every_A = jnp.arange(CELLS * K)
  return TrainingMesh(
    vertices_M3=vertices_CM[:3].T,
    attributes_M6=vertices_CM[3:].T,
    faces_F3=faces_F3,
    valid_F=jnp.repeat(exists_E, 4),
    object_F=jnp.repeat(object_E, 4),
    deviation=deviation,
    consistency=consistency,
    weight=weight,
    reg_loss=consistency + 0.5 * deviation + 0.2 * weight,
    corners_A3=corner_positions(means_CA[1:4], every_A, bricks, resolution).T,
    sdf_A=sdf_A,
    predicted_A=field.count_xyzK.reshape(-1) > 0,
    overflow=(surface.counts > jnp.asarray(sizes)).any(),
  )


def _means(values, object_of, counted, objects: int):
  """(objects,) means of the values of each object that are counted; zero where it has none."""
  means = []
  for number in range(objects):
    own = counted & (object_of == number)
    total = jnp.where(own, values, 0).sum()
    means.append(total / jnp.maximum(own.sum(), 1))
  return jnp.stack(means)
