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


class Light(NamedTuple):
  """What a block does to the pixels of W tiles; B splats, P pixels."""

  alpha_WBP: jax.Array
  log_WBP: jax.Array  # log(1 - alpha)
  is_capped_WBP: jax.Array  # bool: alpha is ALPHA_MAX, whatever the splat


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


def _forward(table_NK, pairs: Pairs, grid: Grid, walk: Walk):
  """The picture, and what the derivative needs."""
  order, filled = lanes.queue(pairs.count_T)
  channels = table_NK.shape[1] - SHAPE + 1
  at_start = _log_at_start(grid)

  # One tile more, for lanes without work.
  light = jnp.zeros((grid.tiles + 1, channels, grid.pixels), jnp.float32)
  first = lanes.begin(order, filled, walk.lanes)
  state = (
    first,
    at_start[first.tile_W],
    jnp.zeros((walk.lanes, channels, grid.pixels), jnp.float32),
    light,
    at_start,
    jnp.zeros(grid.tiles + 1, jnp.int32),
  )

  def is_working(state):
    return lanes.is_working(state[0], grid.tiles)

  def step(state):
    where, log_WP, gathered_WCP, light_TCP, log_TP, steps_T = state
    # What the next splats of every lane's tile do.
    rows, inside, is_last = _block(table_NK, pairs, where, walk)
    seen = _light(rows, inside, where.tile_W, grid)
    behind = log_WP[:, None] + _summed(seen.log_WBP, _upto(walk.block))
    weight = _weights(seen, behind)
    features = _with_one(rows)
    gathered = gathered_WCP + jnp.einsum("wbp,wbc->wcp", weight, features, precision=EXACT)

    # A tile is done when it is dark, or has no more splats: its lane takes the next one.
    log = behind[:, -1]
    is_dark = (log < LOG_STOP).all(-1)
    finished = is_last | is_dark
    target = jnp.where(finished, where.tile_W, grid.tiles + 1)
    light_TCP = light_TCP.at[target].set(gathered, mode="drop")
    log_TP = log_TP.at[target].set(log, mode="drop")
    steps_T = steps_T.at[target].set(where.step_W + 1, mode="drop")

    following = lanes.advance(where, finished, order, filled)
    restart = finished[:, None]
    log = jnp.where(restart, at_start[following.tile_W], log)
    gathered = jnp.where(restart[..., None], 0.0, gathered)
    return following, log, gathered, light_TCP, log_TP, steps_T

  state = jax.lax.while_loop(is_working, step, state)
  _, _, _, light, log, steps = state
  picture = grid.picture(light[: grid.tiles])
  return picture, (table_NK, pairs, log, steps)


def _backward(grid: Grid, walk: Walk, kept, slope_HWC):
  """The derivative in the table; pairs are fixed."""
  table_NK, pairs, log_TP, steps_T = kept
  slope = grid.cut(slope_HWC)
  # One tile more, for lanes without work.
  slope = jnp.pad(slope, ((0, 1), (0, 0), (0, 0)))
  order, filled = lanes.queue(steps_T[: grid.tiles])
  basis = _basis(grid)

  # A row of slopes for every place in every block: blocks of a tile follow each other.
  columns = table_NK.shape[1]
  blocks_T = -(-pairs.count_T // walk.block)
  last_T = jnp.cumsum(blocks_T)
  block_T = jnp.append(last_T - blocks_T, 0)
  blocks = walk.slots // walk.block + grid.tiles
  slopes = jnp.zeros((blocks, columns, walk.block), jnp.float32)

  first = lanes.begin(order, filled, walk.lanes)
  behind = jnp.zeros((walk.lanes, grid.pixels), jnp.float32)
  state = (first, log_TP[first.tile_W], behind, slopes)

  def is_working(state):
    return lanes.is_working(state[0], grid.tiles)

  def step(state):
    where, log_WP, behind_WP, slopes = state
    # The blocks of a tile from its last to its first.
    number = steps_T[where.tile_W] - 1 - where.step_W
    at = where._replace(step_W=jnp.maximum(number, 0))
    rows, inside, _ = _block(table_NK, pairs, at, walk)
    seen = _light(rows, inside, where.tile_W, grid)
    after = log_WP[:, None] - _summed(seen.log_WBP, _beyond(walk.block))
    is_kept = after >= LOG_STOP
    reaching = jnp.where(is_kept, jnp.exp(after - seen.log_WBP), 0.0)
    weight = seen.alpha_WBP * reaching

    # What a little more of a splat adds, and what it hides.
    wanted = slope[where.tile_W]
    features = _with_one(rows)
    value = jnp.einsum("wcp,wbc->wbp", wanted, features, precision=EXACT)
    shown = weight * value
    hidden = behind_WP[:, None] + _summed(shown, _beyond(walk.block))
    of_alpha = reaching * value - jnp.where(is_kept, hidden / (1.0 - seen.alpha_WBP), 0.0)
    is_free = (seen.alpha_WBP > 0) & ~seen.is_capped_WBP
    of_power = jnp.where(is_free, of_alpha * seen.alpha_WBP, 0.0)

    # Sums over the pixels of a tile.
    of_features = jnp.einsum("wbp,wcp->wcb", weight, wanted, precision=EXACT)
    moments = jnp.einsum("wbp,mp->wmb", of_power, basis, precision=EXACT)
    of_shape = _shape_slopes(moments, rows, where.tile_W, grid)
    # The last feature is the constant of alpha.
    found = jnp.concatenate([of_shape, of_features[:, :-1]], axis=1)

    # To the block's own place; lanes without work write nowhere.
    has_work = where.tile_W < grid.tiles
    target = jnp.where(has_work, block_T[where.tile_W] + number, blocks)
    slopes = slopes.at[target].set(found, mode="drop", unique_indices=False)

    # On to the block before it, or to the next tile.
    log = log_WP - seen.log_WBP.sum(1)
    behind = behind_WP + shown.sum(1)
    finished = number <= 0
    following = lanes.advance(where, finished, order, filled)
    restart = finished[:, None]
    log = jnp.where(restart, log_TP[following.tile_W], log)
    behind = jnp.where(restart, 0.0, behind)
    return following, log, behind, slopes

  _, _, _, slopes = jax.lax.while_loop(is_working, step, state)

  # From the order by tile to the order by splat, and summed.
  flat = slopes.transpose(1, 0, 2).reshape(columns, -1)
  by_splat = tiles.inverse(pairs.place_P)
  shift = block_T[: grid.tiles] * walk.block - pairs.start_T
  tile = _tile_of_slots(pairs, walk.slots)
  place = jnp.arange(walk.slots, dtype=jnp.int32) + shift[tile]
  ordered = flat[:, place[by_splat]]
  of_table = tiles.sums_by_thing(ordered, pairs, most=grid.tiles)
  return of_table.T, None


composite.defvjp(_forward, _backward)


# --- A block --------------------------------------------------------------------------------------


def _block(table_NK, pairs: Pairs, where: lanes.Lanes, walk: Walk):
  """Rows (W, B, K) of the next splats, which are of the tile (W, B), and whether no more follow."""
  # The tile T, of lanes without work, has none.
  start = jnp.append(pairs.start_T, 0)[where.tile_W]
  count = jnp.append(pairs.count_T, 0)[where.tile_W]
  first = where.step_W * walk.block
  within = first[:, None] + jnp.arange(walk.block, dtype=jnp.int32)
  inside = within < count[:, None]
  slot = jnp.minimum(start[:, None] + within, walk.slots - 1)
  rows = table_NK[pairs.thing_P[slot]]
  return rows, inside, first + walk.block >= count


def _light(rows_WBK, inside_WB, tile_W, grid: Grid) -> Light:
  """What the splats of a block cover of every pixel."""
  u, v, xx, xy, yy, opacity = (rows_WBK[..., i, None] for i in range(SHAPE))
  pixel_u, pixel_v = grid.centres(tile_W)
  across = pixel_u[:, None] - u
  down = pixel_v[:, None] - v
  power = -0.5 * (xx * across * across + yy * down * down) - xy * across * down
  full = opacity * jnp.exp(jnp.minimum(power, 0.0))
  alpha = jnp.minimum(full, ALPHA_MAX)
  counts = (alpha >= ALPHA_MIN) & inside_WB[..., None]
  alpha = jnp.where(counts, alpha, 0.0)
  return Light(
    alpha_WBP=alpha,
    log_WBP=jnp.log1p(-alpha),
    is_capped_WBP=full >= ALPHA_MAX,
  )


def _weights(seen: Light, behind_WBP) -> jax.Array:
  """alpha T of the splats up to the one that would end the pixel."""
  reaching = jnp.exp(behind_WBP - seen.log_WBP)
  return jnp.where(behind_WBP >= LOG_STOP, seen.alpha_WBP * reaching, 0.0)


def _with_one(rows_WBK) -> jax.Array:
  """Features, and the constant of which alpha is the composite."""
  features = rows_WBK[..., SHAPE:]
  one = jnp.ones_like(features[..., :1])
  return jnp.concatenate([features, one], axis=-1)


def _summed(values_WBP, which_BB) -> jax.Array:
  """Sums over those splats of a block that a triangle of ones names."""
  return jnp.einsum("ab,wbp->wap", which_BB, values_WBP, precision=EXACT)


def _upto(block: int) -> jax.Array:
  """Splats up to and with each."""
  return jnp.tril(jnp.ones((block, block), jnp.float32))


def _beyond(block: int) -> jax.Array:
  """Splats behind each."""
  return jnp.triu(jnp.ones((block, block), jnp.float32), 1)


# --- Pixels ---------------------------------------------------------------------------------------


def _log_at_start(grid: Grid) -> jax.Array:
  """(T + 1, P) log transmittance before the first splat."""
  tile = jnp.arange(grid.tiles + 1, dtype=jnp.int32)
  u, v = grid.centres(tile)
  inside = (u < grid.width) & (v < grid.height)
  return jnp.where(inside, 0.0, OUTSIDE)


def _basis(grid: Grid) -> jax.Array:
  """(6, P): 1, x, y, xx, xy, yy of pixel centres from the middle of their tile."""
  across, down = grid.offsets()
  x = across - grid.side / 2
  y = down - grid.side / 2
  return jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y])


def _shape_slopes(moments_WMB, rows_WBK, tile_W, grid: Grid) -> jax.Array:
  """Slopes (W, SHAPE, B) in u, v, xx, xy, yy and opacity, from moments of the slope in the power.

  Moments are about the middle of a tile; here they are moved to the splat's centre.
  """
  m, mx, my, mxx, mxy, myy = (moments_WMB[:, i] for i in range(6))
  u, v, xx, xy, yy, opacity = (rows_WBK[..., i] for i in range(SHAPE))
  left, top = grid.corners(tile_W)
  x = u - left[:, None] - grid.side / 2
  y = v - top[:, None] - grid.side / 2

  # Sums of slope times offset, and times products of offsets.
  by_x = mx - x * m
  by_y = my - y * m
  by_xx = mxx - 2 * x * mx + x * x * m
  by_xy = mxy - x * my - y * mx + x * y * m
  by_yy = myy - 2 * y * my + y * y * m

  slopes = [
    xx * by_x + xy * by_y,
    xy * by_x + yy * by_y,
    -0.5 * by_xx,
    -by_xy,
    -0.5 * by_yy,
    m / jnp.maximum(opacity, ALPHA_MIN),
  ]
  return jnp.stack(slopes, axis=1)


def _tile_of_slots(pairs: Pairs, slots: int) -> jax.Array:
  """The tile whose range holds each slot; the last one behind all ranges."""
  end = pairs.start_T + pairs.count_T
  ended = jnp.zeros(slots, jnp.int32).at[end].add(1, mode="drop", indices_are_sorted=True)
  return jnp.minimum(jnp.cumsum(ended), pairs.start_T.shape[0] - 1)
