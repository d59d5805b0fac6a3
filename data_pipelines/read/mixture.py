"""Which record stands at which position: a pure function of (seed, position), in constant memory,
for any number of hosts.

Position p counts all samples of the run: row r of global batch s is p = s * batch_size + r.
Positions come in cycles of at most a thousand; in each cycle every source holds a fixed number of
places, as its weight says, in an order drawn anew. Within a source the n-th sample is record
perm_e(n mod N) of epoch e = n div N, with a permutation drawn for every epoch: each record comes
exactly once an epoch, whatever the weights.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import math

CYCLE = 1_000  # weights are rounded to this many parts
ROUNDS = 8  # Feistel rounds; domains are small, so more than the usual four
_WORD = 2**64 - 1


def _hash(x: int) -> int:
  """Mixes a 64-bit word (splitmix64's finaliser)."""
  x ^= x >> 30
  x = x * 0xBF58476D1CE4E5B9 & _WORD
  x ^= x >> 27
  x = x * 0x94D049BB133111EB & _WORD
  return x ^ (x >> 31)


@functools.lru_cache(maxsize=4096)
def _round_keys(*seed: int | str) -> tuple[int, ...]:
  """A 64-bit word for every round."""
  # SHA-512 has 64 bytes: a word of eight for each of eight rounds.
  text = "/".join(map(str, seed))
  digest = hashlib.sha512(text.encode()).digest()
  keys = []
  for start in range(0, 8 * ROUNDS, 8):
    word = digest[start : start + 8]
    keys.append(int.from_bytes(word, "little"))
  return tuple(keys)


def permute(index: int, size: int, *seed: int | str) -> int:
  """Image of `index` under the permutation of range(size) that `seed` names.

  A Feistel network on the smallest power of two that holds `size`; a value that leaves the range
  walks on until it is back in it (under two steps on average), which keeps it a bijection.
  """
  if not 0 <= index < size:
    raise ValueError(f"index {index} is outside range({size})")
  # Two bits at least, so that both halves have one.
  bits = max(2, (size - 1).bit_length())
  keys = _round_keys(*seed)
  image = _feistel(index, bits, keys)
  while image >= size:
    image = _feistel(image, bits, keys)
  return image


def _feistel(x: int, bits: int, keys: tuple[int, ...]) -> int:
  """A bijection of range(2**bits). The halves swap places each round, so they may differ in width
  (the rounds are even).
  """
  # L, R -> R, L xor F(R): whatever F is, the round can be undone
  width_left = bits // 2
  width_right = bits - width_left
  left = x >> width_right
  right = x & _ones(width_right)
  for key in keys:
    mixed = _hash(right ^ key) & _ones(width_left)
    left, right = right, left ^ mixed
    width_left, width_right = width_right, width_left
  return left << width_right | right


def _ones(bits: int) -> int:
  """A word whose lowest `bits` are set."""
  return (1 << bits) - 1


@dataclasses.dataclass(frozen=True)
class Draw:
  """What stands at one position."""

  source: str
  record: int  # index within the source
  epoch: int  # of the source
  place: int  # of the record in the epoch's order


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Named sources with their sizes and weights, and the seed of every order.

  names: in the order that the places of a cycle are dealt.  sizes: records of each.  places: of
  each, in a cycle.
  """

  names: tuple[str, ...]
  sizes: tuple[int, ...]
  places: tuple[int, ...]
  seed: int

  @property
  def cycle(self) -> int:
    return sum(self.places)

  def draw(self, position: int) -> Draw:
    """The record at `position` >= 0."""
    # which place of the cycle stands at this slot of it
    cycle, slot = divmod(position, self.cycle)
    place = permute(
      slot,
      self.cycle,
      self.seed,
      "cycle",
      cycle,
    )
    # places are dealt to the sources in a row: whose it is, and its how-manieth
    for source, width in enumerate(self.places):
      if place < width:
        count = cycle * width + place
        return self._record(source, count)
      place -= width
    raise AssertionError("a permutation leaves its range")

  def _record(self, source: int, count: int) -> Draw:
    epoch, place = divmod(count, self.sizes[source])
    return self._at(source, epoch, place)

  def _at(self, source: int, epoch: int, place: int) -> Draw:
    # Each epoch of each source has a permutation of its own.
    record = permute(
      place,
      self.sizes[source],
      self.seed,
      "source",
      self.names[source],
      epoch,
    )
    return Draw(self.names[source], record, epoch, place)

  def after(self, draw: Draw) -> Draw:
    """The record that stands in for an unreadable one: the next in the same source and epoch,
    cyclically.
    """
    source = self.names.index(draw.source)
    size = self.sizes[source]
    following = (draw.place + 1) % size
    return self._at(source, draw.epoch, following)

  def counts(self, position: int) -> dict[str, int]:
    """How many samples of each source stand before `position`."""
    # whole cycles
    # A whole cycle holds the places of each source, in whatever order.
    cycles, rest = divmod(position, self.cycle)
    counts = {}
    for name, places in zip(self.names, self.places, strict=True):
      counts[name] = cycles * places

    # the one that has begun
    for drawn in range(position - rest, position):
      counts[self.draw(drawn).source] += 1
    return counts

  def epochs(self, position: int) -> dict[str, float]:
    """Epochs of each source that have passed before `position`."""
    counts = self.counts(position)
    passed = {}
    for name, size in zip(self.names, self.sizes, strict=True):
      passed[name] = counts[name] / size
    return passed


def make_mixture(sizes: Mapping[str, int], weights: Mapping[str, float], seed: int) -> Mixture:
  """The mixture of sources of `sizes` records drawn in proportion to `weights` (any positive
  numbers).

  Sources are taken in name order, so that the order in which a config lists them does not matter.
  Raises ValueError for an empty source, or a weight that is not positive or under 1 / 1 000 of the
  total.
  """
  # what cannot be drawn from
  names = tuple(sorted(sizes))
  if not names:
    raise ValueError("a mixture needs at least one source")
  for name in names:
    weight = weights[name]
    if sizes[name] < 1:
      raise ValueError(f"source {name!r} is empty")
    if not weight > 0 or not math.isfinite(weight):
      raise ValueError(f"source {name!r} has weight {weight!r}; a weight is a positive number")

  # weights in parts of a cycle: rounded down, what is left goes to the largest remainders
  total = sum(weights[name] for name in names)
  exact = [weights[name] / total * CYCLE for name in names]
  places = [int(share) for share in exact]
  left = CYCLE - sum(places)
  sources = range(len(names))
  by_remainder = sorted(sources, key=lambda source: (places[source] - exact[source], names[source]))
  for source in by_remainder[:left]:
    places[source] += 1
  if 0 in places:
    name = names[places.index(0)]
    raise ValueError(
      f"source {name!r} has weight {weights[name]!r}, less than 1/{CYCLE} of the total: leave it "
      "out or raise it"
    )

  # the shortest cycle with these shares
  divisor = math.gcd(*places)
  return Mixture(
    names=names,
    sizes=tuple(sizes[name] for name in names),
    places=tuple(places_of // divisor for places_of in places),
    seed=seed,
  )
