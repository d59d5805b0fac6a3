"""FlexiCubes (arXiv 2308.05371) on sparse bricks: features of fine cubes to a triangle mesh.

The mesh decoder predicts 101 numbers for each cube of a 256^3 grid near the surface: signed
distance (negative inside), a shift and colours at its eight corners, and weights with which the
surface's vertices are placed in it. Cubes come as bricks (geometry/bricks.py), so nothing here is
as large as the whole grid, and all shapes are static:

1. `corner_means`: what cubes predict for a corner that they share is averaged, by adding arrays
   that are shifted by one cell; only what leaves a brick is gathered.
2. `flexicubes_surface.find`: which cubes the surface passes, from signs alone.
3. `place`: vertices, from gathered corners. In training every gather knows its inverse, so that
   gradients are gathers, too.

Where no cube predicts anything the field is outside (+1). A cube without prediction that shares an
inside corner with one that has some is therefore part of the surface: the ring of bricks holds it.
Surfaces that leave the grid stay open there.

Dimension letters as in flexicubes_surface, and V bricks of the caller (of K), C channels. Bricks
and lists are the last axis: TPUs pad narrow last axes to 128.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.geometry.bricks import CELLS, SIDE, Bricks, rounded, with_room
from sam3d_jax.models.flexicubes_surface import Cells, Sizes, Surface, find, take
from sam3d_jax.models.flexicubes_tables import EDGES

# channels of a cube, in this order: (name, shape); all but the weights at each of its corners
LAYOUT = (("sdf", (8, 1)), ("deform", (8, 3)), ("weights", (21,)), ("colour", (8, 6)))
CHANNELS = 101
SHIFT_START, WEIGHTS_START, COLOUR_START = 8, 32, 53
CORNER_CHANNELS = 10  # signed distance, shift, colour logits (rgb and normal)
WEIGHTS = 21  # beta of edges 12, alpha of corners 8, gamma
COLOURS = 6
WEIGHT_SCALE = 0.99
REACH = 1 - 1e-8  # of a shift, in half cubes
TINY = 1e-30  # below it a difference of signed distances is no number to divide by
NOT_FINITE = (
  "the mesh decoder's features are not finite: decode in float32 or bfloat16, and check that the "
  "latents are finite and normalised with the statistics of their flow model"
)


class CornerMeans(NamedTuple):
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


# --------------------------------------------------------------------------------------------------
# Gathers that know their inverse
# --------------------------------------------------------------------------------------------------


@jax.custom_vjp
def pick(x, index_M, reverse_JN):
  """x (..., N) at `index` (M,) along the last axis, zero where the index is N or more.

  reverse_JN: all places in the result that an entry of x went to, M where there is none. The
  gradient is the sum of what is found there: a gather, where autodiff would scatter.
  """
  del reverse_JN
  return _filled(x, index_M)


def _filled(x, index):
  return x.at[..., index].get(mode="fill", fill_value=0)


def _pick_forward(x, index_M, reverse_JN):
  return pick(x, index_M, reverse_JN), (index_M, reverse_JN)


def _pick_backward(saved, gradient):
  index_M, reverse_JN = saved
  total = 0.0
  for reverse_N in reverse_JN:
    total = total + _filled(gradient, reverse_N)
  return total, _no_gradient(index_M), _no_gradient(reverse_JN)


def _no_gradient(index):
  return np.zeros(index.shape, jax.dtypes.float0)


pick.defvjp(_pick_forward, _pick_backward)


# --------------------------------------------------------------------------------------------------
# Means at corners
# --------------------------------------------------------------------------------------------------


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


def corner_means(values_zyxCV, bricks: Bricks) -> CornerMeans:
  """Means over the cubes that share a corner. values_zyxCV: as from `by_corner`."""
  # a further channel counts cubes
  channels, own = values_zyxCV.shape[-2:]
  active = bricks.active_xyzV[..., None, :]
  one_shape = (*values_zyxCV.shape[:6], 1, own)
  ones = jnp.broadcast_to(active, one_shape).astype(jnp.float32)
  sums = jnp.concatenate([values_zyxCV, ones], axis=-2)
  sums = jnp.where(active, sums, 0)

  # Along each axis, x first: what cubes say of their low corners, and those below of their high.
  for axis in range(3):
    here, above = _halves(sums, 2 - axis)
    low_K = bricks.low_3K[axis]
    high_V = bricks.high_3K[axis, : sums.shape[-1]]
    from_below = _from_below(above, axis - 5, low_K, high_V)
    sums = _with_room(here, len(low_K)) + from_below
  count = sums[..., channels, :]
  members = jnp.maximum(count, 1)[..., None, :]
  return CornerMeans(sums[..., :channels, :] / members, count)


def _halves(x, axis: int):
  """Both entries along an axis of two."""
  return jax.lax.index_in_dim(x, 0, axis, False), jax.lax.index_in_dim(x, 1, axis, False)


def _cells(x, axis: int, begin: int, end: int):
  """Cells of bricks along one of the grid's axes, counted from the last."""
  return jax.lax.slice_in_dim(x, begin, end, axis=axis % x.ndim)


def _with_room(x, bricks: int):
  """x (..., V) with zeros up to (..., bricks)."""
  missing = bricks - x.shape[-1]
  margins = [(0, 0)] * x.ndim
  margins[-1] = (0, missing)
  return jnp.pad(x, margins)


def _from_below(x, axis: int, low_K, high_V):
  """What the cell one lower along an axis holds: (..., V) bricks to (..., K), zero beyond them."""
  last = _cells(x, axis, 3, 4)
  entering = pick(last, low_K, high_V[None])
  rest = _cells(x, axis, 0, 3)
  return jnp.concatenate([entering, _with_room(rest, len(low_K))], axis)


def _from_above(x, axis: int, high_V, low_K):
  """What the cell one higher along an axis holds: (..., K) bricks to (..., V)."""
  first = _cells(x, axis, 0, 1)
  entering = pick(first, high_V, low_K[None])
  rest = _cells(x, axis, 1, 4)
  return jnp.concatenate([rest[..., : len(high_V)], entering], axis)


def at_cubes(values_xyzCK, bricks: Bricks):
  """Corner values (4, 4, 4, C, K) at each of the caller's cubes: (2, 2, 2, 4, 4, 4, C, V)."""
  x = values_xyzCK
  for axis in (2, 1, 0):
    # the last step needs only the caller's bricks
    wanted = x.shape[-1]
    if axis == 0:
      wanted = bricks.active_xyzV.shape[-1]
    high_V = bricks.high_3K[axis, :wanted]
    above = _from_above(x, axis - 5, high_V, bricks.low_3K[axis])
    x = jnp.stack([x[..., :wanted], above], axis=2 - axis)
  return x


def signed_distance(mean_xyzK, count_xyzK, resolution: int):
  """The signed distance from its mean: the published bias, and outside where nobody predicts."""
  biased = mean_xyzK - 1 / resolution
  return jnp.where(count_xyzK > 0, biased, 1.0)


def corner_values(sdf_1P, means_CP, index_P, bricks: Bricks, resolution: int):
  """Signed distance, position and colours of corners, from the means of shifts and colours."""
  position_3P = corner_positions(means_CP[:3], index_P, bricks, resolution)
  colour_CP = jax.nn.sigmoid(means_CP[3:])
  return jnp.concatenate([sdf_1P, position_3P, colour_CP])


def corner_positions(shift_3P, index_P, bricks: Bricks, resolution: int):
  """Corners (3, P) in the object frame, moved by at most half a cube."""
  # where a corner is in its brick, where that is in the grid
  bricks_in_all = bricks.coords_3K.shape[1]
  cell_P = index_P // bricks_in_all
  brick_3P = jnp.asarray(bricks.coords_3K)[:, index_P % bricks_in_all]
  x_P, y_P, z_P = cell_P // SIDE**2, cell_P // SIDE % SIDE, cell_P % SIDE
  grid_3P = brick_3P * SIDE + jnp.stack([x_P, y_P, z_P])
  # in the unit cube around the origin
  moved_3P = REACH / (2 * resolution) * jnp.tanh(shift_3P)
  return grid_3P / resolution - 0.5 + moved_3P


# --------------------------------------------------------------------------------------------------
# Vertices
# --------------------------------------------------------------------------------------------------


class Placed(NamedTuple):
  """Vertices of the surface."""

  vertices_CU: jax.Array  # position in the object frame, then colours 0..1
  gamma_U: jax.Array  # by which a quad's diagonal is chosen
  deviation_12U: jax.Array | None  # L_dev of the crossing of each edge, zero where there is none


def place(corner_C8U, weights_CU, member_12U, *, deviation: bool) -> Placed:
  """Vertices from their cubes' corners and weights.

  corner_C8U: as from `corner_values`. weights_CU: (21, U). member_12U: of the surface.
  """
  beta_12U = WEIGHT_SCALE * jnp.tanh(weights_CU[:12]) + 1
  alpha_8U = WEIGHT_SCALE * jnp.tanh(weights_CU[12:20]) + 1
  gamma_U = WEIGHT_SCALE * jax.nn.sigmoid(weights_CU[20]) + (1 - WEIGHT_SCALE) / 2

  # A vertex is the mean of its edges' crossings, weighted by beta; edge by edge, to stack nothing.
  total_U = 0.0
  sum_CU = 0.0
  plain = []
  for edge, (a, b) in enumerate(EDGES):
    begin_CU = corner_C8U[:, a]
    end_CU = corner_C8U[:, b]
    # where the distance, weighted by alpha, is zero
    weight_U = zero_crossing(begin_CU[0] * alpha_8U[a], end_CU[0] * alpha_8U[b])
    crossing_CU = end_CU[1:] + weight_U * (begin_CU[1:] - end_CU[1:])
    share_U = jnp.where(member_12U[edge], beta_12U[edge], 0)
    total_U = total_U + share_U
    sum_CU = sum_CU + share_U * crossing_CU
    if deviation:
      plain_U = zero_crossing(begin_CU[0], end_CU[0])
      plain.append(end_CU[1:4] + plain_U * (begin_CU[1:4] - end_CU[1:4]))
  vertices_CU = sum_CU / jnp.where(total_U > 0, total_U, 1)
  deviation_12U = None
  if deviation:
    plain_312U = jnp.stack(plain, axis=1)
    deviation_12U = deviations(plain_312U, vertices_CU[:3], member_12U)
  return Placed(vertices_CU, gamma_U, deviation_12U)


def zero_crossing(sdf_begin, sdf_end):
  """Weight of an edge's first corner where the field is zero; half where the field is flat."""
  difference = sdf_end - sdf_begin
  changes = (sdf_begin < 0) != (sdf_end < 0)
  steep = changes & (jnp.abs(difference) > TINY)
  divisor = jnp.where(steep, difference, 1)
  return jnp.where(steep, sdf_end / divisor, 0.5)


def deviations(crossing_312U, vertices_3U, member_12U):
  """(12, U): how far the distance from vertex to crossing is from the mean of its vertex."""
  apart_312U = crossing_312U - vertices_3U[:, None]
  square_12U = jnp.square(apart_312U).sum(0)
  # a distance of zero has the gradient zero
  positive = member_12U & (square_12U > 0)
  root_12U = jnp.sqrt(jnp.where(positive, square_12U, 1))
  distance_12U = jnp.where(positive, root_12U, 0)
  edges_U = jnp.maximum(member_12U.sum(0), 1)
  mean_U = distance_12U.sum(0) / edges_U
  return jnp.where(member_12U, jnp.abs(distance_12U - mean_U), 0)


# --------------------------------------------------------------------------------------------------
# On the host
# --------------------------------------------------------------------------------------------------


class Needed(NamedTuple):
  """Rows of the features (64 V, 101) that the surface needs; 64 V where there is none."""

  corner_8P: np.ndarray  # cubes of which a corner is corner i
  cube_Q: np.ndarray


def extract(feats_VxyzC, bricks: Bricks, resolution: int) -> Mesh:
  """The mesh of decoded cubes; quads are cut along the diagonal that their weights prefer.

  feats_VxyzC: (V, 4, 4, 4, 101), cubes of the first V bricks; what inactive ones hold does not
  matter. resolution: cubes along the whole grid. Without a change of sign the mesh is empty.

  Raises ValueError for another number of channels or features that are not finite.
  """
  check_features(feats_VxyzC, bricks)
  # lengths that meshes of about this size share, and with them programs
  bricks = with_room(bricks, rounded(len(bricks.object_K)))
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
  along_02 = vertex_4E[[0, 1, 2, 0, 2, 3]]
  along_13 = vertex_4E[[0, 1, 3, 3, 1, 2]]
  faces_6E = np.where(first, along_02, along_13)
  place_E = surface.index_Q[surface.cube_E[:quads]]
  brick_E = place_E % len(bricks.object_K)
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
  corners = corner_means(by_corner(sdf), bricks)
  sdf_xyzK = signed_distance(corners.means_xyzCK[..., 0, :], corners.count_xyzK, resolution)
  sdf_A = sdf_xyzK.reshape(-1)
  return sdf_A, sdf_A < 0, jnp.isfinite(sdf_A).all()


def _needed(surface: Surface, bricks: Bricks) -> Needed:
  cells = Cells(np, bricks)
  own = bricks.active_xyzV.shape[-1]
  active = np.zeros((CELLS, cells.bricks + 1), bool)
  active[:, :own] = bricks.active_xyzV.reshape(CELLS, own)

  def row(place):
    cell, brick = cells.split(place)
    return np.where(active[cell, brick], brick * CELLS + cell, CELLS * own)

  around_8P = cells.around(surface.index_P, up=False)
  return Needed(row(around_8P), row(surface.index_Q))


@functools.partial(jax.jit, static_argnums=5)
def _placed(feats_VxyzC, sdf_A, bricks, surface: Surface, needed: Needed, resolution: int):
  rows = feats_VxyzC.reshape(-1, CHANNELS)

  def features(row_N, first: int, count: int):
    """Channels of cubes, (count, N)."""
    channel_C1 = np.arange(first, first + count)[:, None]
    # clipped and cleared: half the time of a gather that fills, on a CPU
    found_CN = rows.at[row_N[None], channel_C1].get(mode="clip")
    cleared_CN = jnp.where(row_N < len(rows), found_CN, 0)
    return cleared_CN.astype(jnp.float32)

  # means over the cubes that predict a corner
  sums_CP = 0.0
  for i, row_P in enumerate(needed.corner_8P):
    shift_3P = features(row_P, SHIFT_START + 3 * i, 3)
    colour_CP = features(row_P, COLOUR_START + COLOURS * i, COLOURS)
    sums_CP = sums_CP + jnp.concatenate([shift_3P, colour_CP])
  predicts_8P = needed.corner_8P < len(rows)
  means_CP = sums_CP / jnp.maximum(predicts_8P.sum(0), 1)
  sdf_1P = take(sdf_A, surface.index_P)[None]
  corner_CP = corner_values(sdf_1P, means_CP, surface.index_P, bricks, resolution)
  # not fused into the gather, which would compute each corner once for every cube that has it
  corner_CP = jax.lax.optimization_barrier(corner_CP)

  # of each vertex, its cube's corners and weights
  corner_8U = take(surface.corners_8Q, surface.cube_U)
  corner_C8U = take(corner_CP, corner_8U)
  row_U = take(needed.cube_Q, surface.cube_U)
  weights_CU = features(row_U, WEIGHTS_START, WEIGHTS)
  return place(corner_C8U, weights_CU, surface.member_12U, deviation=False)


# --------------------------------------------------------------------------------------------------
# For training
# --------------------------------------------------------------------------------------------------


def training_mesh(
  feats_VxyzC,
  bricks: Bricks,
  resolution: int,
  sizes: Sizes,
  *,
  objects: int = 1,
) -> TrainingMesh:
  """The mesh of decoded cubes with gradients, and its regulariser, for a compiled step.

  Quads are cut into four triangles around a centre. sizes: room for what is found, such as
  `Sizes.for_voxels(V)`. objects: how many objects the bricks belong to; the regulariser is a mean
  over each.

  Published weights of the regulariser: 1 for the consistency, 0.5 for L_dev, 0.2 for the weights.
  Raises ValueError for another number of channels.
  """
  check_features(feats_VxyzC, bricks)
  bricks = jax.tree.map(jnp.asarray, bricks)
  active = bricks.active_xyzV

  # means at corners: signed distance, shift, colours
  channels = parts(feats_VxyzC)
  joined = jnp.concatenate([channels["sdf"], channels["deform"], channels["colour"]], axis=-1)
  values_zyxCV = by_corner(joined)
  weights_xyzCV = channels["weights"].transpose(1, 2, 3, 4, 0)
  weights_xyzCV = jnp.where(active[..., None, :], weights_xyzCV, 0)
  corners = corner_means(values_zyxCV, bricks)
  means_CA = _flat_cells(corners.means_xyzCK)
  sdf_xyzK = signed_distance(corners.means_xyzCK[..., 0, :], corners.count_xyzK, resolution)
  sdf_A = sdf_xyzK.reshape(-1)

  # the surface, its vertices, and a centre for each quad
  surface = find(jnp, sdf_xyzK < 0, bricks, resolution, sizes, inverse=True)
  values_CA = jnp.concatenate([sdf_A[None], means_CA[1:]])
  placed = _placed_with_gradients(values_CA, weights_xyzCV, bricks, surface, resolution)
  centre_CE = _centres(placed, surface)
  vertices_CM = jnp.concatenate([placed.vertices_CU, centre_CE], axis=1)
  faces_F3, exists_E = _fans(surface, sizes)

  # whose everything is
  place_Q = surface.index_Q % len(bricks.object_K)
  object_Q = take(bricks.object_K, place_Q)
  object_E = take(object_Q, surface.cube_E)
  object_U = take(object_Q, surface.cube_U)
  object_12U = jnp.broadcast_to(object_U, surface.member_12U.shape)
  object_xyzV = jnp.broadcast_to(bricks.object_K[: active.shape[-1]], active.shape)

  # the regulariser's parts, means over each object
  apart = values_zyxCV - at_cubes(corners.means_xyzCK, bricks)
  square_xyzV = jnp.square(apart).mean((0, 1, 2, 6))
  size_xyzV = jnp.abs(weights_xyzCV[..., :20, :]).mean(-2)
  consistency = _means(square_xyzV, object_xyzV, active, objects)
  weight = _means(size_xyzV, object_xyzV, active, objects)
  deviation = _means(placed.deviation_12U, object_12U, surface.member_12U, objects)
  every_A = jnp.arange(len(sdf_A))
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
    predicted_A=corners.count_xyzK.reshape(-1) > 0,
    overflow=(surface.counts > jnp.asarray(sizes)).any(),
  )


def _flat_cells(x_xyzCK):
  """(4, 4, 4, C, K) as (C, 64 K)."""
  channels, bricks = x_xyzCK.shape[3:]
  cells = x_xyzCK.reshape(CELLS, channels, bricks)
  return cells.swapaxes(0, 1).reshape(channels, CELLS * bricks)


def _placed_with_gradients(values_CA, weights_xyzCV, bricks, surface: Surface, resolution: int):
  """Vertices, all that they need gathered with inverses."""
  inverse = surface.inverse
  Q = surface.index_Q.shape[0]
  # corners, and what cubes see of them
  values_CP = pick(values_CA, surface.index_P, inverse.corner_A[None])
  corner_CP = corner_values(values_CP[:1], values_CP[1:], surface.index_P, bricks, resolution)
  seen_CN = pick(corner_CP, surface.corners_8Q.reshape(-1), inverse.cubes_8P)
  seen_CQ = seen_CN.reshape(-1, Q)
  # weights of cubes, zero where a cube has none
  everywhere = _with_room(weights_xyzCV, bricks.coords_3K.shape[1])
  weights_CQ = pick(_flat_cells(everywhere), surface.index_Q, inverse.cube_A[None])

  # from cubes to their vertices
  cube_CQ = jnp.concatenate([seen_CQ, weights_CQ])
  vertex_CU = pick(cube_CQ, surface.cube_U, inverse.vertices_4Q)
  seen_CU, weights_CU = vertex_CU[:-WEIGHTS], vertex_CU[-WEIGHTS:]
  corner_C8U = seen_CU.reshape(CORNER_CHANNELS, 8, -1)
  return place(corner_C8U, weights_CU, surface.member_12U, deviation=True)


def _centres(placed: Placed, surface: Surface):
  """Centres of quads (C, E): the midpoints of both diagonals, weighted by gamma."""
  # what the quads' corners are
  all_CU = jnp.concatenate([placed.vertices_CU, placed.gamma_U[None]])
  corner_CN = pick(all_CU, surface.vertex_4E.reshape(-1), surface.inverse.quads_12U)
  corner_C4E = corner_CN.reshape(-1, *surface.vertex_4E.shape)
  gamma_4E = corner_C4E[-1]
  values_C4E = corner_C4E[:-1]

  # between the diagonals
  gamma_02 = gamma_4E[0] * gamma_4E[2]
  gamma_13 = gamma_4E[1] * gamma_4E[3]
  middle_02 = (values_C4E[:, 0] + values_C4E[:, 2]) / 2
  middle_13 = (values_C4E[:, 1] + values_C4E[:, 3]) / 2
  total_E = gamma_02 + gamma_13 + 1e-8
  return (middle_02 * gamma_02 + middle_13 * gamma_13) / total_E


def _fans(surface: Surface, sizes: Sizes):
  """Four triangles a quad around its centre (4 E, 3), and which quads exist (E,)."""
  exists_E = surface.cube_E < sizes.cubes
  centre_E = sizes.vertices + jnp.arange(sizes.quads)
  fan = []
  for turn in range(4):
    one_E = surface.vertex_4E[turn]
    next_E = surface.vertex_4E[(turn + 1) % 4]
    triangle_3E = jnp.stack([one_E, next_E, centre_E])
    fan.append(jnp.where(exists_E, triangle_3E, 0))
  faces_43E = jnp.stack(fan)
  return faces_43E.transpose(2, 0, 1).reshape(-1, 3), exists_E


def _means(values, object_of, counted, objects: int):
  """(objects,) means of the values of each object that are counted; zero where it has none."""
  means = []
  for number in range(objects):
    own = counted & (object_of == number)
    total = jnp.where(own, values, 0).sum()
    means.append(total / jnp.maximum(own.sum(), 1))
  return jnp.stack(means)
