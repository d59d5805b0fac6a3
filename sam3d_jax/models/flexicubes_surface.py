"""Where the surface of FlexiCubes is: cubes that it passes, their vertices, quads between them.

All of it follows from which corners are inside, and has no gradients. The same code runs on the
host (NumPy, lists as long as what is found) or in a compiled step (JAX, lists of given lengths).

Dimension letters: x y z a cell within its brick, K bricks, A = 64 K cells, Q cubes at the surface,
P their corners, U vertices, E quads. A cell is named by its place among the A, cell * K + brick,
and so is the cube that begins there, and the corner at which that cube begins. What does not exist
has the length of the list as its index.
"""

from typing import Any, NamedTuple

import numpy as np

from sam3d_jax.geometry.bricks import CELLS, SIDE, Bricks, rounded
from sam3d_jax.models import flexicubes_tables
from sam3d_jax.models.flexicubes_tables import CORNERS, EDGES, SLOTS

# Corner at which an edge begins, the axis it runs along, and the two axes across it.
EDGE_LOW = EDGES.min(axis=1)
EDGE_AXIS = np.abs(CORNERS[EDGES[:, 1]] - CORNERS[EDGES[:, 0]]).argmax(axis=1)
ACROSS = ((1, 2), (0, 2), (0, 1))
# Four cubes lie around an edge. Here they are in turn, by their number in the order of coordinates:
# where the edge's first corner is outside, and where it is inside.
OUTSIDE_FIRST = (0, 1, 3, 2)
INSIDE_FIRST = (2, 3, 1, 0)


def number_around(low: int, axis: int) -> int:
  """Which of the four cubes around an edge along `axis` has it beginning at its corner `low`."""
  first, second = ACROSS[axis]
  offset = CORNERS[low]
  from_end = 2 * offset[first] + offset[second]
  return 3 - int(from_end)


def _edges_around() -> np.ndarray:
  """(3, 4) which edge of each of the four cubes an edge along an axis is."""
  table = np.zeros((3, 4), np.int32)
  for edge, axis in enumerate(EDGE_AXIS):
    number = number_around(EDGE_LOW[edge], axis)
    table[axis, number] = edge
  return table


EDGES_AROUND = _edges_around()


class Sizes(NamedTuple):
  """Room for the surface: cubes, corners, vertices, quads."""

  cubes: int
  corners: int
  vertices: int
  quads: int

  @classmethod
  def for_voxels(cls, voxels: int) -> "Sizes":
    """Room for decoded surfaces, which pass 14 of the 64 cubes of a voxel, with a margin of 1.7."""
    cubes = 24 * voxels
    return cls(
      cubes=cubes,
      corners=2 * cubes,
      vertices=cubes,
      quads=cubes,
    )


class Inverse(NamedTuple):
  """Where the entries of a list went to: what gathers of gradients need."""

  cube_A: Any  # cells, in Q
  corner_A: Any  # cells, in P
  cubes_8P: Any  # corners, i * Q + cube where a corner is the cube's corner i
  vertices_4Q: Any  # cubes, in U
  quads_12U: Any  # vertices, turn * E + quad where a vertex is the quad's corner `turn`


class Surface(NamedTuple):
  """What the signs decide: cubes at the surface, vertices, quads. Integers.

  Lists are padded; padding has indices of what does not exist.
  """

  index_Q: Any  # place of each cube among the A cells
  index_P: Any  # place of each corner
  corners_8Q: Any  # corners of a cube, in P
  cube_U: Any  # cube of each vertex, in Q
  member_12U: Any  # bool, edges of that cube whose crossings make the vertex
  vertex_4E: Any  # vertices of each quad, in U, counter-clockwise seen from outside
  cube_E: Any  # cube that owns the quad, in Q
  counts: Any  # (4,) how many cubes, corners, vertices and quads there are; more may not fit
  inverse: Inverse | None


class Listed(NamedTuple):
  """Entries that were picked out of N."""

  index: Any  # (size,) which they are, N in padding
  number: Any  # (N + 1,) place of each entry in the list, `size` where it has none
  count: Any  # how many there are, also those beyond `size`

  @property
  def size(self) -> int:
    return self.index.shape[0]


class Cells:
  """The cells of bricks and the steps between them, for NumPy or JAX."""

  def __init__(self, xp, bricks: Bricks):
    self.xp = xp
    self.bricks = bricks.object_K.shape[0]
    self.count = CELLS * self.bricks
    # the brick that does not exist has no neighbours either
    missing = xp.full((3, 1), self.bricks, xp.int32)
    self.low = xp.concatenate([xp.asarray(bricks.low_3K), missing], axis=1)
    self.high = xp.concatenate([xp.asarray(bricks.high_3K), missing], axis=1)

  def split(self, place):
    """Places as (cell, brick); what does not exist has the brick K."""
    exists = place < self.count
    cell = place // self.bricks
    brick = place % self.bricks
    return self.xp.where(exists, cell, 0), self.xp.where(exists, brick, self.bricks)

  def place(self, cell, brick):
    """The inverse of `split`."""
    exists = brick < self.bricks
    return self.xp.where(exists, cell * self.bricks + brick, self.count)

  def step(self, cell, brick, axis: int, *, up: bool):
    """The next cell along an axis, upwards or downwards."""
    stride = SIDE ** (2 - axis)
    along = cell // stride % SIDE
    if up:
      table, sign, last = self.high[axis], 1, SIDE - 1
    else:
      table, sign, last = self.low[axis], -1, 0
    # one on within the brick, or to the other end of the next brick
    leaves = along == last
    within = cell + sign * stride
    across = cell - sign * (SIDE - 1) * stride
    next_cell = self.xp.where(leaves, across, within)
    next_brick = self.xp.where(leaves, table[brick], brick)
    return next_cell, next_brick

  def around(self, place, *, up: bool):
    """(8, N): the cells at the corners of cubes (up), or the cubes around corners, in the order of
    the corner that they share.
    """
    found = [self.split(place)]
    for corner in range(1, 8):
      # one step from where the corner without its highest bit is
      axis = corner.bit_length() - 1
      before = found[corner - (1 << axis)]
      found.append(self.step(*before, axis, up=up))
    places = [self.place(cell, brick) for cell, brick in found]
    return self.xp.stack(places)

  def next_values(self, x_xyzK, axis: int, *, up: bool):
    """What the next cell along an axis holds; zero where there is none."""
    inner = [slice(None)] * 4
    outer = [slice(None)] * 4
    if up:
      table, inner[axis], outer[axis] = self.high[axis], slice(1, None), slice(0, 1)
    else:
      table, inner[axis], outer[axis] = self.low[axis], slice(0, 3), slice(3, None)
    # a layer of the next brick, the rest of the own one
    layer = x_xyzK[tuple(outer)]
    nothing = self.xp.zeros_like(layer[..., :1])
    padded = self.xp.concatenate([layer, nothing], axis=-1)
    entering = padded[..., table[:-1]]
    rest = x_xyzK[tuple(inner)]
    order = [rest, entering] if up else [entering, rest]
    return self.xp.concatenate(order, axis=axis)


def take(x, index):
  """x (..., N) at `index`; the last entry where it points beyond."""
  last = x.shape[-1] - 1
  return x[..., index.clip(0, last)]


def listed(xp, flags_N, size: int | None) -> Listed:
  """Entries whose flag is set; size: length of the list, None (NumPy): as `rounded` says."""
  N = flags_N.shape[0]
  number_N = xp.cumsum(flags_N, dtype=xp.int32) - 1
  count = number_N[-1] + 1
  if xp is np:
    found = np.flatnonzero(flags_N)
    if size is None:
      size = rounded(len(found))
    index = np.full(size, N, np.int32)
    index[: len(found)] = found[:size]
  else:
    # Targets beyond the list are dropped. All differ, which spares a TPU sorting them.
    source_N = xp.arange(N, dtype=xp.int32)
    target_N = xp.where(flags_N, number_N, size + source_N)
    index = xp.full(size, N, xp.int32)
    index = index.at[target_N].set(source_N, mode="drop", unique_indices=True)

  # the way back
  fits_N = flags_N & (number_N < size)
  inverse_N = xp.where(fits_N, number_N, size)
  nothing = xp.full(1, size, xp.int32)
  number = xp.concatenate([inverse_N.astype(xp.int32), nothing])
  return Listed(index, number, count)


# --------------------------------------------------------------------------------------------------
# The surface
# --------------------------------------------------------------------------------------------------


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

  xp: numpy or jax.numpy. sizes: lengths of the lists; None (NumPy only): as what is found needs.
  inverse: make the tables that gradients need.
  """
  room = sizes or Sizes(None, None, None, None)
  cells = Cells(xp, bricks)
  tables = flexicubes_tables.make()

  # cubes at the surface, and how their edges are grouped
  case_xyzK = cases(cells, inside_xyzK)
  passed_xyzK = (case_xyzK != 0) & (case_xyzK != 255) & in_grid(bricks, resolution)
  cubes = listed(xp, passed_xyzK.reshape(-1), room.cubes)
  case_Q = take(case_xyzK.reshape(-1), cubes.index).astype(xp.int32)
  case_Q = xp.where(cubes.index < cells.count, case_Q, 0)
  row_Q = table_rows(cells, case_Q, cubes)
  slot_12Q = xp.asarray(tables.slot.T)[:, row_Q]

  # their corners: a cell is a corner of the cubes at it and below it
  touched_xyzK = passed_xyzK
  for axis in range(3):
    below_xyzK = cells.next_values(touched_xyzK, axis, up=False)
    touched_xyzK = touched_xyzK | below_xyzK
  corners = listed(xp, touched_xyzK.reshape(-1), room.corners)
  above_8Q = cells.around(cubes.index, up=True)

  # their vertices, up to four a cube
  Q = cubes.size
  count_Q = xp.asarray(tables.count)[row_Q]
  exists_4Q = np.arange(SLOTS)[:, None] < count_Q
  vertices = listed(xp, exists_4Q.reshape(-1), room.vertices)
  exists_U = vertices.index < SLOTS * Q
  cube_U = xp.where(exists_U, vertices.index % Q, Q)
  own_slot_U = vertices.index // Q
  member_12U = exists_U & (take(slot_12Q, cube_U) == own_slot_U)

  # quads, each owned by the cube that begins where its edge does
  crossed_3Q, vertex_43Q = quads_of_cubes(cells, case_Q, slot_12Q, cubes, vertices)
  quads = listed(xp, crossed_3Q.reshape(-1), room.quads)
  exists_E = quads.index < 3 * Q
  vertex_4E = take(vertex_43Q.reshape(4, -1), quads.index)
  surface = Surface(
    index_Q=cubes.index,
    index_P=corners.index,
    corners_8Q=corners.number[above_8Q],
    cube_U=cube_U,
    member_12U=member_12U,
    vertex_4E=xp.where(exists_E, vertex_4E, vertices.size),
    cube_E=xp.where(exists_E, quads.index % Q, Q),
    counts=xp.stack([cubes.count, corners.count, vertices.count, quads.count]),
    inverse=None,
  )
  if not inverse:
    return surface
  return surface._replace(
    inverse=Inverse(
      cube_A=cubes.number[:-1],
      corner_A=corners.number[:-1],
      cubes_8P=cubes_of_corners(cells, cubes, corners),
      vertices_4Q=vertices.number[:-1].reshape(SLOTS, Q),
      quads_12U=quads_of_vertices(xp, surface, case_Q, cubes.number[above_8Q], quads),
    )
  )


def cases(cells: Cells, inside_xyzK):
  """Case of the cube that begins at each cell: bit i says whether its corner i is inside."""
  case_xyzK = inside_xyzK.astype(cells.xp.uint8)
  # the bits of both ends joined along one axis after the other
  for axis in range(3):
    above_xyzK = cells.next_values(case_xyzK, axis, up=True)
    shifted_xyzK = above_xyzK << (1 << axis)
    case_xyzK = case_xyzK | shifted_xyzK.astype(cells.xp.uint8)
  return case_xyzK


def in_grid(bricks: Bricks, resolution: int):
  """(K,) whether a brick holds cubes; some hold only the last corners of the grid."""
  within_3K = bricks.coords_3K < resolution // SIDE
  return bricks.valid_K & within_3K.all(axis=0)


def table_rows(cells: Cells, case_Q, cubes: Listed):
  """Row of the tables for each cube: two problem cases that share a face are both inverted."""
  xp = cells.xp
  tables = flexicubes_tables.make()
  problem_Q = xp.asarray(tables.problem)[case_Q]
  direction_3Q = xp.asarray(tables.direction.T)[:, case_Q]

  # the cube across the ambiguous face
  cell_Q, brick_Q = cells.split(cubes.index)
  for axis in range(3):
    for up, sign in ((True, 1), (False, -1)):
      moves_Q = direction_3Q[axis] == sign
      next_cell_Q, next_brick_Q = cells.step(cell_Q, brick_Q, axis, up=up)
      cell_Q = xp.where(moves_Q, next_cell_Q, cell_Q)
      brick_Q = xp.where(moves_Q, next_brick_Q, brick_Q)
  across_Q = cubes.number[cells.place(cell_Q, brick_Q)]

  # it sees the same face, so if it is a problem case, that face is its problem
  exists_Q = across_Q < cubes.size
  shared_Q = problem_Q & exists_Q & take(problem_Q, across_Q)
  return xp.where(shared_Q, 255 - case_Q, case_Q)


def quads_of_cubes(cells: Cells, case_Q, slot_12Q, cubes: Listed, vertices: Listed):
  """Of the edges that begin at cubes, along x, y, z: whether there is a quad across them (3, Q),
  and its vertices in turn (4, 3, Q).
  """
  xp = cells.xp
  Q = cubes.size
  below_8Q = cubes.number[cells.around(cubes.index, up=False)]
  crossed_3Q = []
  vertex_34Q = []
  for axis in range(3):
    # the four cubes around the edge, all in the grid
    edges_4 = EDGES_AROUND[axis]
    around_4Q = below_8Q[EDGE_LOW[edges_4]]
    changes_Q = _inside(case_Q, 0) != _inside(case_Q, 1 << axis)
    crossed_3Q.append(changes_Q & (around_4Q < Q).all(axis=0))

    # the vertex that each of them has for it
    vertex_4Q = []
    for edge, cube_Q in zip(edges_4, around_4Q, strict=True):
      slot_Q = take(slot_12Q[edge], cube_Q).astype(xp.int32)
      place_Q = xp.minimum(slot_Q * Q + cube_Q, SLOTS * Q)
      vertex_4Q.append(vertices.number[place_Q])
    vertex_4Q = xp.stack(vertex_4Q)

    # counter-clockwise seen from outside
    outside_first = vertex_4Q[np.array(OUTSIDE_FIRST)]
    inside_first = vertex_4Q[np.array(INSIDE_FIRST)]
    vertex_34Q.append(xp.where(_first_inside(case_Q, 0, axis), inside_first, outside_first))
  return xp.stack(crossed_3Q), xp.stack(vertex_34Q, axis=1)


def _inside(case_Q, corner: int):
  """Whether a corner of a cube is inside."""
  return (case_Q >> int(corner) & 1) > 0


def _first_inside(case_Q, low: int, axis: int):
  """Whether the first corner is inside of a crossed edge that begins at corner `low`.

  In EDGES, edges along y run downwards. So do the cubes around an edge along y turn the other way.
  """
  begins_inside_Q = _inside(case_Q, low)
  if axis == 1:
    return ~begins_inside_Q
  return begins_inside_Q


def cubes_of_corners(cells: Cells, cubes: Listed, corners: Listed):
  """(8, P) cubes of which a corner is corner i, as i * Q + cube; 8 Q where there is none."""
  Q = cubes.size
  cube_8P = cubes.number[cells.around(corners.index, up=False)]
  start_81 = np.arange(8, dtype=np.int32)[:, None] * Q
  return cells.xp.where(cube_8P < Q, start_81 + cube_8P, 8 * Q)


def quads_of_vertices(xp, surface: Surface, case_Q, owner_8Q, quads: Listed):
  """(12, U) quads across the edges of a vertex, as turn * E + quad; 4 E where there is none.

  owner_8Q: the cube at each corner of a cube, which owns the edges that begin there.
  """
  Q = len(case_Q)
  E = quads.size
  found_12U = []
  for edge, axis in enumerate(EDGE_AXIS):
    low = EDGE_LOW[edge]
    owner_Q = owner_8Q[low]
    place_Q = xp.where(owner_Q < Q, axis * Q + owner_Q, 3 * Q)
    quad_Q = quads.number[place_Q]
    # its turn among the quad's corners
    number = number_around(low, axis)
    turn_Q = xp.where(
      _first_inside(case_Q, low, axis),
      INSIDE_FIRST.index(number),
      OUTSIDE_FIRST.index(number),
    )
    went_Q = xp.where(quad_Q < E, turn_Q * E + quad_Q, 4 * E)
    found_U = take(went_Q, surface.cube_U)
    found_12U.append(xp.where(surface.member_12U[edge], found_U, 4 * E))
  return xp.stack(found_12U)
