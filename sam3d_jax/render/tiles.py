"""Which boxes touch which tiles of a picture: one global sort, then a range of it for every tile.

Shapes are static. A picture is cut into T square tiles; N things (splats, triangles) come with the
boxes that they can touch, in the order in which a tile is to see them. Every (tile, thing) pair has
a slot, of which there are a fixed number: what does not fit is counted, not hidden. Things that
come first get their slots first, so of what is sorted by depth the farthest is lost.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

KEY_BITS = 32
NONE = 0xFFFFFFFF  # the key of a slot that is not used: behind all others


@dataclasses.dataclass(frozen=True)
class Grid:
  """A picture cut into square tiles, row by row; the last ones may reach beyond it."""

  width: int  # pixels
  height: int
  side: int  # of a tile, pixels

  @property
  def columns(self) -> int:
    return -(-self.width // self.side)

  @property
  def rows(self) -> int:
    return -(-self.height // self.side)

  @property
  def tiles(self) -> int:
    return self.columns * self.rows

  @property
  def pixels(self) -> int:
    """Of one tile."""
    return self.side * self.side

  def offsets(self) -> tuple[jax.Array, jax.Array]:
    """Pixel centres of a tile from its upper left corner, (P,) each: to the right and down."""
    pixel = jnp.arange(self.pixels, dtype=jnp.int32)
    column = pixel % self.side
    row = pixel // self.side
    right = column.astype(jnp.float32) + 0.5
    down = row.astype(jnp.float32) + 0.5
    return right, down

  def corners(self, tile_W: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Upper left corners of tiles in pixels, (W,) each."""
    column = tile_W % self.columns
    row = tile_W // self.columns
    left = (column * self.side).astype(jnp.float32)
    top = (row * self.side).astype(jnp.float32)
    return left, top

  def centres(self, tile_W: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pixel centres of tiles, (W, P) each."""
    left, top = self.corners(tile_W)
    right, down = self.offsets()
    u = left[:, None] + right
    v = top[:, None] + down
    return u, v

  def picture(self, tiles_TCP: jax.Array) -> jax.Array:
    """(T, C, pixels of a tile) as a picture (H, W, C)."""
    channels = tiles_TCP.shape[1]
    apart = tiles_TCP.reshape(
      self.rows,
      self.columns,
      channels,
      self.side,
      self.side,
    )
    ordered = apart.transpose(0, 3, 1, 4, 2)
    high = self.rows * self.side
    wide = self.columns * self.side
    whole = ordered.reshape(high, wide, channels)
    return whole[: self.height, : self.width]

  def cut(self, picture_HWC: jax.Array) -> jax.Array:
    """The inverse of `picture`; pixels beyond it are 0."""
    channels = picture_HWC.shape[-1]
    below = self.rows * self.side - self.height
    right = self.columns * self.side - self.width
    beyond = ((0, below), (0, right), (0, 0))
    whole = jnp.pad(picture_HWC, beyond)
    apart = whole.reshape(
      self.rows,
      self.side,
      self.columns,
      self.side,
      channels,
    )
    ordered = apart.transpose(0, 2, 4, 1, 3)
    return ordered.reshape(self.tiles, channels, self.pixels)


class Boxes(NamedTuple):
  """Half-open ranges of tiles that N things touch; an empty range is a thing that is not seen."""

  left_N: jax.Array  # int32
  right_N: jax.Array
  top_N: jax.Array
  bottom_N: jax.Array


class Pairs(NamedTuple):
  """(tile, thing) pairs in P slots, sorted by tile and within a tile in the order of the things."""

  thing_P: jax.Array  # int32, anything behind the last pair
  place_P: jax.Array  # int32: its slot among the pairs sorted by thing, P behind the last pair
  start_T: jax.Array  # int32: the range of every tile
  count_T: jax.Array  # int32
  # the pairs sorted by thing: the range of every thing
  first_N: jax.Array  # int32
  many_N: jax.Array  # int32
  needed: jax.Array  # uint32: slots that all pairs need
  lost: jax.Array  # uint32: pairs without a slot


def fits(things: int, grid: Grid) -> bool:
  """Whether 32 bits say which of so many things and which tile."""
  return grid.tiles << bits_of(things) <= 1 << KEY_BITS


def bits_of(things: int) -> int:
  """Bits of a key that number the things."""
  return max(1, (things - 1).bit_length())


def check(things: int, grid: Grid) -> None:
  """Raises ValueError if there is nothing, or if keys do not fit 32 bits."""
  if things < 1:
    raise ValueError("no splats or triangles: give at least one, of opacity 0 or of -1 if need be")
  if not fits(things, grid):
    raise ValueError(
      f"{things} splats or triangles in {grid.tiles} tiles of {grid.side} pixels: tile and number "
      f"need more than {KEY_BITS} bits; take larger tiles (tile={2 * grid.side}) or fewer of them"
    )


def boxes(
  grid: Grid, low_u_N: jax.Array, high_u_N: jax.Array, low_v_N: jax.Array, high_v_N: jax.Array
) -> Boxes:
  """The tiles whose pixel centres lie between bounds in pixels."""
  left, right = _tiles_between(low_u_N, high_u_N, grid.width, grid.side)
  top, bottom = _tiles_between(low_v_N, high_v_N, grid.height, grid.side)
  return Boxes(left, right, top, bottom)


def _tiles_between(low_N, high_N, size: int, side: int) -> tuple[jax.Array, jax.Array]:
  """Half-open range of tiles along one axis."""
  # Centres lie at halves; within the picture first, as floats may be beyond what integers hold.
  first = jnp.ceil(low_N - 0.5)
  last = jnp.floor(high_N - 0.5)
  first = jnp.clip(first, 0, size)
  last = jnp.clip(last, -1, size - 1)
  first = first.astype(jnp.int32)
  last = last.astype(jnp.int32)
  begin = first // side
  end = last // side + 1
  # Bounds that cross hold no centre.
  return begin, jnp.where(last >= first, end, begin)


def pair(grid: Grid, touched: Boxes, slots: int) -> Pairs:
  """All pairs of things and the tiles they touch. Raises ValueError as `check` does."""
  things = touched.left_N.shape[0]
  check(things, grid)
  bits = bits_of(things)

  # Slots of the things, one behind the other.
  across = touched.right_N - touched.left_N
  down = touched.bottom_N - touched.top_N
  many = across * down
  many = many.astype(jnp.uint32)
  end = jnp.cumsum(many, dtype=jnp.uint32)
  needed = end[-1]
  first = end - many
  there = jnp.minimum(needed, slots)

  # Whose slot is it.
  slot = jnp.arange(slots, dtype=jnp.uint32)
  thing = owners(end, slots)

  # The tile, row by row in the thing's box.
  within = (slot - first[thing]).astype(jnp.int32)
  wide = jnp.maximum(across[thing], 1)
  row = touched.top_N[thing] + within // wide
  column = touched.left_N[thing] + within % wide
  tile = row * grid.columns + column

  # One number says both, so that one sort of numbers does it.
  high_bits = tile.astype(jnp.uint32) << bits
  key = high_bits | thing.astype(jnp.uint32)
  is_used = slot < there
  key = jnp.where(is_used, key, jnp.uint32(NONE))
  key = jax.lax.sort(key, is_stable=False)

  # The range of every tile.
  tiles = jnp.arange(grid.tiles, dtype=jnp.uint32)
  behind_all = there.astype(jnp.int32)
  start = jnp.searchsorted(key, tiles << bits)
  start = jnp.minimum(start.astype(jnp.int32), behind_all)
  stop = jnp.append(start[1:], behind_all)

  # Back from the sorted pair to its slot.
  low_bits = jnp.uint32((1 << bits) - 1)
  thing = jnp.minimum(key & low_bits, things - 1)
  thing = thing.astype(jnp.int32)
  tile = (key >> bits).astype(jnp.int32)
  row = tile // grid.columns - touched.top_N[thing]
  column = tile % grid.columns - touched.left_N[thing]
  within = row * across[thing] + column
  place = first[thing].astype(jnp.int32) + within
  place = jnp.where(is_used, place, slot.astype(jnp.int32))

  # How many slots each thing really got.
  begins = jnp.minimum(first, there)
  kept = jnp.clip(there - begins, 0, many)
  return Pairs(
    thing_P=thing,
    place_P=place,
    start_T=start,
    count_T=stop - start,
    first_N=jnp.minimum(first, slots).astype(jnp.int32),
    many_N=kept.astype(jnp.int32),
    needed=needed,
    lost=needed - there,
  )


def owners(end_N: jax.Array, slots: int) -> jax.Array:
  """(slots,) int32: whose range holds each slot, of N ranges one behind the other that end there.

  It is the number of ranges that end before it; slots behind all of them go to the last.
  """
  ended = jnp.zeros(slots, jnp.int32)
  ended = ended.at[end_N].add(1, mode="drop", indices_are_sorted=True)
  before = jnp.cumsum(ended)
  return jnp.minimum(before, end_N.shape[0] - 1)


def inverse(permutation_P: jax.Array) -> jax.Array:
  """The permutation that undoes one."""
  # TPUs sort quickly and scatter slowly, all others the other way round.
  return jax.lax.platform_dependent(
    permutation_P,
    tpu=inverse_by_sort,
    default=inverse_by_scatter,
  )


def inverse_by_sort(permutation_P: jax.Array) -> jax.Array:
  """`inverse`."""
  numbers = jnp.arange(permutation_P.shape[0], dtype=jnp.int32)
  both = (permutation_P, numbers)
  _, inverted = jax.lax.sort(both, num_keys=1, is_stable=False)
  return inverted


def inverse_by_scatter(permutation_P: jax.Array) -> jax.Array:
  """`inverse`."""
  numbers = jnp.arange(permutation_P.shape[0], dtype=jnp.int32)
  return jnp.zeros_like(numbers).at[permutation_P].set(numbers, unique_indices=True)


def sums_by_thing(values_KP: jax.Array, pairs: Pairs, most: int) -> jax.Array:
  """Sums (K, N) over every thing's pairs, of values that are in the order sorted by thing.

  most: pairs that one thing can have.
  """
  # CPUs add one after another, in order; where many add at once, adding in one place is slow.
  return jax.lax.platform_dependent(
    values_KP,
    pairs,
    cpu=functools.partial(sums_by_scatter, most=most),
    default=functools.partial(sums_by_doubling, most=most),
  )


def sums_by_scatter(values_KP: jax.Array, pairs: Pairs, most: int) -> jax.Array:
  """`sums_by_thing`, one value after another."""
  del most
  thing, left = _things_of_slots(pairs, values_KP.shape[1])
  values = jnp.where(left > 0, values_KP, 0.0)
  things = pairs.first_N.shape[0]
  sums = jax.ops.segment_sum(values.T, thing, things, indices_are_sorted=True)
  return sums.T


def sums_by_doubling(values_KP: jax.Array, pairs: Pairs, most: int) -> jax.Array:
  """`sums_by_thing` as trees: nothing is scattered, and little is rounded.

  After round k a slot holds the sum of the next 2^k slots of its thing.
  """
  # As many rounds as the largest thing asks for.
  slots = values_KP.shape[1]
  _, left = _things_of_slots(pairs, slots)
  rounds = max(1, (most - 1).bit_length())
  longest = pairs.many_N.max()
  padding = 1 << (rounds - 1)

  def is_needed(state):
    step, _ = state
    return (step < longest) & (step <= padding)

  def double(state):
    step, sums = state
    padded = jnp.pad(sums, ((0, 0), (0, padding)))
    following = jax.lax.dynamic_slice_in_dim(padded, step, slots, axis=1)
    own = jnp.where(left > step, following, 0.0)
    return 2 * step, sums + own

  start = (jnp.int32(1), jnp.asarray(values_KP))
  _, sums = jax.lax.while_loop(is_needed, double, start)
  first = jnp.minimum(pairs.first_N, slots - 1)
  return jnp.where(pairs.many_N > 0, sums[:, first], 0.0)


def _things_of_slots(pairs: Pairs, slots: int) -> tuple[jax.Array, jax.Array]:
  """The thing of every slot sorted by thing, and how many slots of it are left from there on.

  Slots behind the last pair go to the last thing, and nothing is left of it.
  """
  end = pairs.first_N + pairs.many_N
  thing = owners(end, slots)
  slot = jnp.arange(slots, dtype=jnp.int32)
  left = end[thing] - slot
  return thing, left
