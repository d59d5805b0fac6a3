"""Many tiles at once: lanes that each walk the blocks of one tile and then take the next one.

Tiles hold very different numbers of pairs. W lanes work side by side; as soon as the tile of a lane
is done, the lane takes the next one from a queue, the longest first, so that no lane waits for
another but at the very end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Lanes(NamedTuple):
  """Where W lanes are. The tile T stands for none: a lane without work."""

  tile_W: jax.Array  # int32
  step_W: jax.Array  # int32: blocks of it that are done
  taken: jax.Array  # int32: tiles taken from the queue so far


def queue(length_T: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Tiles with work, the longest first, and how many they are."""
  order = jnp.argsort(-length_T)
  filled = (length_T > 0).sum()
  return order.astype(jnp.int32), filled.astype(jnp.int32)


def begin(order_T: jax.Array, filled: jax.Array, lanes: int) -> Lanes:
  """Every lane with a tile of its own, as far as there are any."""
  nothing = Lanes(
    tile_W=jnp.zeros(lanes, jnp.int32),
    step_W=jnp.zeros(lanes, jnp.int32),
    taken=jnp.int32(0),
  )
  everyone = jnp.ones(lanes, bool)
  return advance(nothing, everyone, order_T, filled)


def advance(lanes: Lanes, is_done_W: jax.Array, order_T: jax.Array, filled: jax.Array) -> Lanes:
  """One block further; lanes whose tile is done take the next tiles of the queue."""
  # Of the lanes that are done the first takes the next tile, the second the one behind it.
  done = is_done_W.astype(jnp.int32)
  place = lanes.taken + jnp.cumsum(done) - 1
  tiles = order_T.shape[0]
  in_queue = jnp.minimum(place, tiles - 1)
  following = jnp.where(place < filled, order_T[in_queue], tiles)

  # The others go on where they are.
  taken = lanes.taken + done.sum()
  return Lanes(
    tile_W=jnp.where(is_done_W, following, lanes.tile_W),
    step_W=jnp.where(is_done_W, 0, lanes.step_W + 1),
    taken=jnp.minimum(taken, filled),
  )


def is_working(lanes: Lanes, tiles: int) -> jax.Array:
  """Whether any lane has a tile, a boolean scalar."""
  has_tile = lanes.tile_W < tiles
  return has_tile.any()
