"""Checksums of arrays: of their bits, whatever their sharding, on devices and host alike.

A checksum is two position-weighted sums of the bits modulo 2**32, as 16 hexadecimal digits.
Addition commutes, so the result does not depend on how an array is split; the weights make it
depend on where every bit stands.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.errors import JobFailed

# odd constants: the golden ratio, and the finaliser of MurmurHash3
SPREAD, MIX = 0x9E3779B9, 0x85EBCA6B
CHUNK = 1 << 22  # words that the host handles at a time
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # by bytes of an element


class CorruptCheckpoint(JobFailed):
  """A checkpoint that was written whole no longer reads back as it was written.

  evidence: what was found in its place, beyond the message; two reads that agree found the same.
  """

  evidence = ""


def _words(x) -> jax.Array:
  """The array's bits as uint32 words (smaller types widened, one word each)."""
  # Booleans and keys are taken as the integers that they are stored as.
  if jnp.issubdtype(x.dtype, jnp.bool_):
    x = x.astype(jnp.uint8)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  size = x.dtype.itemsize
  words = jax.lax.bitcast_convert_type(x, UNSIGNED[size])
  return words.astype(jnp.uint32)


# one small program per shape, shared by all arrays of that shape: a program over all arrays takes
# long to compile
@jax.jit
def _inspect(x) -> jax.Array:
  """(3,) uint32: the two sums, and whether every value is finite."""
  words = _words(x)

  # The place of every word in the whole array, from its place along each axis: no reshape, which
  # would gather a sharded array.
  index = jnp.zeros(words.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    index += along * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]

  # Odd weights, so that no bit is lost modulo 2**32; the second sum mixes word and place, so that
  # changes which cancel in the first do not in both.
  weight = 2 * index + 1
  spread = index * jnp.uint32(SPREAD)
  mixed = (words ^ spread) * jnp.uint32(MIX)
  shifted = mixed >> 15
  mixed = (mixed ^ shifted) * weight

  # Integers are always finite.
  finite = True
  if jnp.issubdtype(x.dtype, jnp.inexact):
    finite = jnp.isfinite(x).all()

  plain_sum = jnp.sum(words * weight, dtype=jnp.uint32)
  mixed_sum = jnp.sum(mixed, dtype=jnp.uint32)
  return jnp.stack([plain_sum, mixed_sum, jnp.uint32(finite)])


def inspect(flat: Mapping[str, jax.Array]) -> tuple[dict[str, str], list[str]]:
  """(path -> checksum of every array, paths of those that hold a NaN or an infinity)."""
  sums, bad = {}, []
  # One at a time: hundreds of collectives in flight can deadlock.
  for path, x in flat.items():
    if in_host_memory(x):
      array = np.asarray(x)
      sums[path] = on_host(array)
      has_finite = jnp.issubdtype(x.dtype, jnp.inexact)
      finite = not has_finite or np.isfinite(array).all()
    else:
      plain_sum, mixed_sum, finite = np.asarray(_inspect(x))
      sums[path] = _text(plain_sum, mixed_sum)
    if not finite:
      bad.append(path)
  return sums, bad


def in_host_memory(x) -> bool:
  """Whether NumPy can read the array where it lies.

  Then nothing needs to be compiled, which takes a fifth of a second a shape.
  """
  if not isinstance(x, jax.Array):
    return False
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return False
  device, *others = x.sharding.device_set
  return not others and device.platform == "cpu"


def on_device(flat: Mapping[str, jax.Array]) -> dict[str, str]:
  """path -> checksum of every array."""
  sums, _ = inspect(flat)
  return sums


def on_host(array: np.ndarray) -> str:
  """The checksum of an array in host memory."""
  flat = np.ascontiguousarray(array).reshape(-1)
  size = flat.dtype.itemsize
  flat = flat.view(UNSIGNED[size])
  spread = np.uint32(SPREAD)
  mix = np.uint32(MIX)
  plain_sum = 0
  mixed_sum = 0
  # In pieces, since what is computed takes several times the memory of the words.
  for start in range(0, flat.size, CHUNK):
    chunk = flat[start : start + CHUNK]
    words = chunk.astype(np.uint32)

    # Places in the whole array, modulo 2**32 as on the devices.
    end = start + words.size
    index = np.arange(start, end, dtype=np.uint64)
    index = index.astype(np.uint32)
    weight = 2 * index + 1

    # The same two sums as `_inspect`.
    mixed = (words ^ (index * spread)) * mix
    mixed = (mixed ^ (mixed >> np.uint32(15))) * weight
    plain = words * weight
    plain_part = plain.sum(dtype=np.uint32)
    mixed_part = mixed.sum(dtype=np.uint32)
    plain_sum += int(plain_part)
    mixed_sum += int(mixed_part)
  return _text(plain_sum % 2**32, mixed_sum % 2**32)


def _text(plain_sum, mixed_sum) -> str:
  # Eight hexadecimal digits each.
  return f"{int(plain_sum):08x}{int(mixed_sum):08x}"
