"""Compositing of sorted splats from front to back, with a derivative by hand.

Of a pixel, with splats in the order of depth (3-D Gaussian splatting, Kerbl et al. 2023):

    alpha_j = min(0.99, opacity_j exp(-d^T Sigma_j^-1 d / 2))      left out below 1 / 255
    T_j     = (1 - alpha_1) ... (1 - alpha_j-1)
    picture = sum_j T_j alpha_j feature_j        up to the first j for which T_j+1 < 1e-4

Blocks of B splats are taken by W tiles at once. Within a block the products are sums of logarithms,
which are products with a triangular matrix; a tile ends when no pixel of it lets light through. The
derivative walks the same blocks from the last to the first: going back, the light that reaches a
splat and the picture behind it are found without subtracting large numbers. It leaves one row for
every (tile, splat) pair, and rows are gathered by splat, so nothing is scattered.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.render import lanes, tiles
from sam3d_jax.render.lanes import Lanes
from sam3d_jax.render.splats_projection import ALPHA_MAX, ALPHA_MIN
from sam3d_jax.render.tiles import Grid, Pairs

SHAPE = 6  # columns of a table before the features: u, v, xx, xy, yy, opacity
LOG_STOP = -9.210340371976182  # log 1e-4
OUTSIDE = -100.0  # log transmittance of pixels beyond the picture: they are done from the start
# Products are exact in float32 on every device, also where that takes several passes.
EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Walk:
  """How the pairs are walked; speed only, but for `slots`."""

  slots: int  # (tile, splat) pairs that there is room for
  block: int  # splats at once
  lanes: int  # tiles at once


class Block(NamedTuple):
  """The next B splats of W tiles."""

  rows_WBK: jax.Array  # of the table
  is_inside_WB: jax.Array  # bool: of the tile's own range
  is_last_W: jax.Array  # bool: no more follow


class Light(NamedTuple):
  """What a block does to the pixels of W tiles; B splats, P pixels."""

  alpha_WBP: jax.Array
  log_WBP: jax.Array  # log(1 - alpha)
  is_capped_WBP: jax.Array  # bool: alpha is ALPHA_MAX, whatever the splat


class Kept(NamedTuple):
  """What the forward pass leaves for the derivative; tile T stands for none."""

  table_NK: jax.Array
  pairs: Pairs
  log_TP: jax.Array  # log transmittance behind the last block that was walked
  blocks_T: jax.Array  # int32: blocks that were walked


class ForwardState(NamedTuple):
  """Lanes on their way from front to back, and the tiles that are done."""

  where: Lanes
  log_WP: jax.Array  # log transmittance before the next block
  gathered_WCP: jax.Array  # features so far
  picture_TCP: jax.Array
  log_TP: jax.Array
  blocks_T: jax.Array


class BackwardState(NamedTuple):
  """Lanes on their way from back to front, and the slopes of all pairs."""

  where: Lanes
  log_WP: jax.Array  # log transmittance behind the next block
  behind_WP: jax.Array  # what the pixel's slope makes of all that lies behind it
  slopes: jax.Array  # (blocks, K B): in one row, as TPUs pad the last axis to 128


# --- The function and its derivative --------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def composite(table_NK: jax.Array, pairs: Pairs, grid: Grid, walk: Walk) -> jax.Array:
  """The features of a picture and its alpha, (H, W, K - SHAPE + 1) float32.

  Args:
    table_NK: rows u, v, xx, xy, yy, opacity (as Ellipses), then features, in the order of depth.
    pairs: of its rows and the tiles, made for `walk.slots`.
    grid: the picture.
    walk: how it is done.

  Differentiable in `table_NK`. The alpha is 1 - transmittance, over which a background shows.
  """
  picture, _ = _forward(table_NK, pairs, grid, walk)
  return picture


def _forward(table_NK, pairs: Pairs, grid: Grid, walk: Walk) -> tuple[jax.Array, Kept]:
  """The picture, and what the derivative needs."""
  order, filled = lanes.queue(pairs.count_T)
  at_start = _log_at_start(grid)
  everything_before = _upto(walk.block)

  # Every lane with its first tile; one tile more, for lanes without work.
  channels = table_NK.shape[1] - SHAPE + 1
  tile_count = grid.tiles + 1
  first = lanes.begin(order, filled, walk.lanes)
  state = ForwardState(
    where=first,
    log_WP=at_start[first.tile_W],
    gathered_WCP=jnp.zeros((walk.lanes, channels, grid.pixels), jnp.float32),
    picture_TCP=jnp.zeros((tile_count, channels, grid.pixels), jnp.float32),
    log_TP=at_start,
    blocks_T=jnp.zeros(tile_count, jnp.int32),
  )

  def is_working(state: ForwardState) -> jax.Array:
    return lanes.is_working(state.where, grid.tiles)

  def step(state: ForwardState) -> ForwardState:
    # What the next splats of every lane's tile cover, and the light behind each.
    where = state.where
    block = _block(table_NK, pairs, where, walk)
    light = _light(block, where.tile_W, grid)
    within = _summed(light.log_WBP, everything_before)
    behind = state.log_WP[:, None] + within

    # A pixel ends before the splat that would make it dark.
    reaching = jnp.exp(behind - light.log_WBP)
    is_kept = behind >= LOG_STOP
    weight = jnp.where(is_kept, light.alpha_WBP * reaching, 0.0)
    features = _with_one(block.rows_WBK)
    added = jnp.einsum("wbp,wbc->wcp", weight, features, precision=EXACT)
    gathered = state.gathered_WCP + added

    # A tile is done when it is dark, or has no more splats; others write nowhere.
    log = behind[:, -1]
    is_dark = (log < LOG_STOP).all(-1)
    is_done = block.is_last_W | is_dark
    target = jnp.where(is_done, where.tile_W, tile_count)
    picture = state.picture_TCP.at[target].set(gathered, mode="drop")
    log_TP = state.log_TP.at[target].set(log, mode="drop")
    blocks_T = state.blocks_T.at[target].set(where.step_W + 1, mode="drop")

    # Its lane takes the next one and begins anew.
    following = lanes.advance(where, is_done, order, filled)
    begins = is_done[:, None]
    fresh = at_start[following.tile_W]
    return ForwardState(
      where=following,
      log_WP=jnp.where(begins, fresh, log),
      gathered_WCP=jnp.where(begins[..., None], 0.0, gathered),
      picture_TCP=picture,
      log_TP=log_TP,
      blocks_T=blocks_T,
    )

  state = jax.lax.while_loop(is_working, step, state)
  picture = grid.picture(state.picture_TCP[: grid.tiles])
  kept = Kept(
    table_NK=table_NK,
    pairs=pairs,
    log_TP=state.log_TP,
    blocks_T=state.blocks_T,
  )
  return picture, kept


def _backward(grid: Grid, walk: Walk, kept: Kept, slope_HWC) -> tuple[jax.Array, None]:
  """The derivative in the table; pairs are fixed."""
  pairs = kept.pairs
  order, filled = lanes.queue(kept.blocks_T[: grid.tiles])
  basis = _basis(grid)
  all_behind = _beyond(walk.block)

  # Slopes of the picture by tile; one tile more, for lanes without work.
  by_tile = grid.cut(slope_HWC)
  by_tile = jnp.pad(by_tile, ((0, 1), (0, 0), (0, 0)))

  # A place for the slopes of every block: the blocks of a tile follow each other.
  columns = kept.table_NK.shape[1]
  first_block_T = _first_blocks(pairs, walk)
  blocks = walk.slots // walk.block + grid.tiles

  # Every lane with its first tile, behind the last splat that was walked.
  first = lanes.begin(order, filled, walk.lanes)
  state = BackwardState(
    where=first,
    log_WP=kept.log_TP[first.tile_W],
    behind_WP=jnp.zeros((walk.lanes, grid.pixels), jnp.float32),
    slopes=jnp.zeros((blocks, columns * walk.block), jnp.float32),
  )

  def is_working(state: BackwardState) -> jax.Array:
    return lanes.is_working(state.where, grid.tiles)

  def step(state: BackwardState) -> BackwardState:
    # The blocks of a tile from its last to its first.
    where = state.where
    walked = kept.blocks_T[where.tile_W]
    number = walked - 1 - where.step_W
    at = where._replace(step_W=jnp.maximum(number, 0))
    block = _block(kept.table_NK, pairs, at, walk)
    light = _light(block, where.tile_W, grid)

    # The light that reaches each splat, from what is left behind the block.
    beyond = _summed(light.log_WBP, all_behind)
    behind = state.log_WP[:, None] - beyond
    is_kept = behind >= LOG_STOP
    reaching = jnp.exp(behind - light.log_WBP)
    reaching = jnp.where(is_kept, reaching, 0.0)
    weight = light.alpha_WBP * reaching

    # What a little more of a splat adds to the scalar, and what it hides of it.
    wanted = by_tile[where.tile_W]
    features = _with_one(block.rows_WBK)
    value = jnp.einsum("wcp,wbc->wbp", wanted, features, precision=EXACT)
    shown = weight * value
    hidden = state.behind_WP[:, None] + _summed(shown, all_behind)
    lost = hidden / (1.0 - light.alpha_WBP)
    of_alpha = reaching * value - jnp.where(is_kept, lost, 0.0)

    # Of the exponent, where alpha follows it.
    is_free = (light.alpha_WBP > 0) & ~light.is_capped_WBP
    of_power = jnp.where(is_free, of_alpha * light.alpha_WBP, 0.0)

    # Sums over the pixels of a tile; the last feature is the constant of alpha.
    of_features = jnp.einsum("wbp,wcp->wcb", weight, wanted, precision=EXACT)
    moments = jnp.einsum("wbp,mp->wmb", of_power, basis, precision=EXACT)
    of_shape = _shape_slopes(moments, block.rows_WBK, where.tile_W, grid)
    found = jnp.concatenate([of_shape, of_features[:, :-1]], axis=1)
    found = found.reshape(walk.lanes, -1)

    # To the block's own place; lanes without work write nowhere.
    has_work = where.tile_W < grid.tiles
    place = first_block_T[where.tile_W] + number
    target = jnp.where(has_work, place, blocks)
    slopes = state.slopes.at[target].set(found, mode="drop")

    # On to the block before it, or to the next tile.
    is_done = number <= 0
    following = lanes.advance(where, is_done, order, filled)
    begins = is_done[:, None]
    log = state.log_WP - light.log_WBP.sum(1)
    behind = state.behind_WP + shown.sum(1)
    fresh = kept.log_TP[following.tile_W]
    return BackwardState(
      where=following,
      log_WP=jnp.where(begins, fresh, log),
      behind_WP=jnp.where(begins, 0.0, behind),
      slopes=slopes,
    )

  state = jax.lax.while_loop(is_working, step, state)
  by_splat = _by_splat(state.slopes, first_block_T, pairs, walk)
  of_table = tiles.sums_by_thing(by_splat, pairs, most=grid.tiles)
  return of_table.T, None


composite.defvjp(_forward, _backward)


# --- Blocks ---------------------------------------------------------------------------------------


def _block(table_NK, pairs: Pairs, where: Lanes, walk: Walk) -> Block:
  """The splats that come next in every lane's tile."""
  # The tile T, of lanes without work, has none.
  start_T = jnp.append(pairs.start_T, 0)
  count_T = jnp.append(pairs.count_T, 0)
  start = start_T[where.tile_W]
  count = count_T[where.tile_W]

  # Their slots in the tile's range.
  first = where.step_W * walk.block
  places = jnp.arange(walk.block, dtype=jnp.int32)
  within = first[:, None] + places
  slot = start[:, None] + within
  slot = jnp.minimum(slot, walk.slots - 1)
  thing = pairs.thing_P[slot]
  return Block(
    rows_WBK=table_NK[thing],
    is_inside_WB=within < count[:, None],
    is_last_W=first + walk.block >= count,
  )


def _light(block: Block, tile_W, grid: Grid) -> Light:
  """What the splats of a block cover of every pixel."""
  u, v, xx, xy, yy, opacity = _columns(block.rows_WBK[..., None])
  # Pixels from the splats' centres, and how much of each is covered there.
  pixel_u, pixel_v = grid.centres(tile_W)
  x = pixel_u[:, None] - u
  y = pixel_v[:, None] - v
  squares = xx * x * x + yy * y * y
  power = -0.5 * squares - xy * x * y
  full = opacity * jnp.exp(jnp.minimum(power, 0.0))

  # Capped, and left out where it is next to nothing.
  alpha = jnp.minimum(full, ALPHA_MAX)
  counts = (alpha >= ALPHA_MIN) & block.is_inside_WB[..., None]
  alpha = jnp.where(counts, alpha, 0.0)
  return Light(
    alpha_WBP=alpha,
    log_WBP=jnp.log1p(-alpha),
    is_capped_WBP=full >= ALPHA_MAX,
  )


def _columns(rows) -> list[jax.Array]:
  """The shape of splats, number by number, of rows (W, B, K, ...)."""
  return [rows[:, :, column] for column in range(SHAPE)]


def _with_one(rows_WBK) -> jax.Array:
  """Features, and the constant of which alpha is the composite."""
  features = rows_WBK[..., SHAPE:]
  one = jnp.ones_like(features[..., :1])
  both = [features, one]
  return jnp.concatenate(both, axis=-1)


def _summed(values_WBP, which_BB) -> jax.Array:
  """Sums over those splats of a block that a triangle of ones names."""
  return jnp.einsum("ab,wbp->wap", which_BB, values_WBP, precision=EXACT)


def _upto(block: int) -> jax.Array:
  """Splats up to and with each."""
  ones = jnp.ones((block, block), jnp.float32)
  return jnp.tril(ones)


def _beyond(block: int) -> jax.Array:
  """Splats behind each."""
  ones = jnp.ones((block, block), jnp.float32)
  return jnp.triu(ones, 1)


# --- Pixels ---------------------------------------------------------------------------------------


def _log_at_start(grid: Grid) -> jax.Array:
  """(T + 1, P) log transmittance before the first splat."""
  tile = jnp.arange(grid.tiles + 1, dtype=jnp.int32)
  u, v = grid.centres(tile)
  is_inside = (u < grid.width) & (v < grid.height)
  return jnp.where(is_inside, 0.0, OUTSIDE)


def _basis(grid: Grid) -> jax.Array:
  """(6, P): 1, x, y, xx, xy, yy of pixel centres from the middle of their tile."""
  right, down = grid.offsets()
  middle = grid.side / 2
  x = right - middle
  y = down - middle
  one = jnp.ones_like(x)
  return jnp.stack([one, x, y, x * x, x * y, y * y])


def _shape_slopes(moments_WMB, rows_WBK, tile_W, grid: Grid) -> jax.Array:
  """Slopes (W, SHAPE, B) in u, v, xx, xy, yy and opacity, from moments of the slope in the power.

  Moments are about the middle of a tile; here they are moved to the splat's centre.
  """
  m, mx, my, mxx, mxy, myy = (moments_WMB[:, i] for i in range(6))
  u, v, xx, xy, yy, opacity = _columns(rows_WBK)
  left, top = grid.corners(tile_W)
  middle = grid.side / 2
  x = u - left[:, None] - middle
  y = v - top[:, None] - middle

  # Sums of slope times offset, and times products of offsets.
  by_x = mx - x * m
  by_y = my - y * m
  by_xx = mxx - 2 * x * mx + x * x * m
  by_xy = mxy - x * my - y * mx + x * y * m
  by_yy = myy - 2 * y * my + y * y * m

  # The exponent is -(xx x^2 + 2 xy x y + yy y^2) / 2 of offsets from the centre.
  slopes = [
    xx * by_x + xy * by_y,
    xy * by_x + yy * by_y,
    -0.5 * by_xx,
    -by_xy,
    -0.5 * by_yy,
    m / jnp.maximum(opacity, ALPHA_MIN),
  ]
  return jnp.stack(slopes, axis=1)


# --- Slopes of pairs ------------------------------------------------------------------------------


def _first_blocks(pairs: Pairs, walk: Walk) -> jax.Array:
  """(T + 1,) int32: where the blocks of each tile begin among those of all tiles."""
  blocks_T = -(-pairs.count_T // walk.block)
  end_T = jnp.cumsum(blocks_T)
  return jnp.append(end_T - blocks_T, 0)


def _by_splat(slopes, first_block_T, pairs: Pairs, walk: Walk) -> jax.Array:
  """(K, slots): the slopes of blocks (blocks, K B) in the order of the pairs sorted by splat."""
  # Every sorted pair's place in its tile's blocks: as far from the first as in the tile's range.
  tile = tiles.owners(pairs.start_T + pairs.count_T, walk.slots)
  begin_T = first_block_T[:-1] * walk.block
  shift_T = begin_T - pairs.start_T
  slot = jnp.arange(walk.slots, dtype=jnp.int32)
  place = slot + shift_T[tile]

  # From the order by tile to that by splat, column by column.
  back = tiles.inverse(pairs.place_P)
  index = place[back]
  found = []
  for first in range(0, slopes.shape[1], walk.block):
    column = slopes[:, first : first + walk.block].reshape(-1)
    found.append(column[index])
  return jnp.stack(found)
