"""Random draws that depend on (seed, step, example key, name of the draw) and on nothing else.

An example gets the same noise wherever it stands in the batch, on whatever device or host, and
whatever else is drawn: each draw has a name that enters its key, so adding a latent or an option
leaves every other draw as it was, and no order of drawing exists.
"""

from collections.abc import Mapping
import zlib

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, content_B2: jax.Array) -> jax.Array:
  """One typed key an example, (B,).

  Args:
    key: a key that already depends on the seed and the step (`jax.random.fold_in(seed_key, step)`).
    content_B2: (B, 2) uint32 content keys of the examples.
  """

  def key_of(content_2):
    # 64 bits of content in two halves: fold_in takes 32.
    first = content_2[0]
    half_way = jax.random.fold_in(key, first)
    second = content_2[1]
    return jax.random.fold_in(half_way, second)

  # Each by itself: what one draws does not depend on the batch around it.
  content_B2 = jnp.asarray(content_B2, jnp.uint32)
  return jax.vmap(key_of)(content_B2)


def raw_keys(keys_B: jax.Array) -> jax.Array:
  """The (B, 2) uint32 form of typed keys, as samplers take them:
  `raw_keys(example_keys(jax.random.key(seed), batch.key))`.
  """
  return jax.random.key_data(keys_B)


def wrap_keys(key_B2: jax.Array) -> jax.Array:
  """Typed keys (B,) from their (B, 2) uint32 form."""
  # The implementation is named, so that a global default cannot change a draw.
  key_B2 = jnp.asarray(key_B2, jnp.uint32)
  return jax.random.wrap_key_data(key_B2, impl="threefry2x32")


def named(keys_B: jax.Array, name: str) -> jax.Array:
  """The keys of one named draw."""
  # Python's own hash of a string differs between processes.
  number = zlib.crc32(name.encode())

  def of_draw(key):
    return jax.random.fold_in(key, number)

  return jax.vmap(of_draw)(keys_B)


def normal(keys_B: jax.Array, name: str, shape: tuple[int, ...] = ()) -> jax.Array:
  """Standard normals (B, *shape), fp32."""

  def sample(key):
    return jax.random.normal(key, shape, jnp.float32)

  keys_B = named(keys_B, name)
  return jax.vmap(sample)(keys_B)


def uniform(keys_B: jax.Array, name: str) -> jax.Array:
  """Uniforms in [0, 1), (B,), fp32."""

  def sample(key):
    return jax.random.uniform(key, (), jnp.float32)

  keys_B = named(keys_B, name)
  return jax.vmap(sample)(keys_B)


def choice(keys_B: jax.Array, name: str, count: int) -> jax.Array:
  """Indices in [0, count), (B,) int32, all equally likely."""

  def sample(key):
    return jax.random.randint(key, (), 0, count)

  keys_B = named(keys_B, name)
  return jax.vmap(sample)(keys_B)


def noise(keys_B: jax.Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
  """Standard normal latents: name -> (B, *shape)."""
  latents = {}
  for name, shape in shapes.items():
    # Each latent's name enters its key, so a further latent leaves the others as they were.
    latents[name] = normal(keys_B, f"noise/{name}", tuple(shape))
  return latents


VOXEL_BASE = 1024  # coordinates are digits of a voxel's number to this base: 3 digits fit 32 bits


def voxel_normal(
  keys_RK: jax.Array, name: str, coords_RV3: jax.Array, object_RV: jax.Array, channels: int
) -> jax.Array:
  """Standard normals (R, V, channels) for the voxels of packed objects, fp32.

  A number depends on its object's key and the voxel's coordinates: not on the row, the slot or the
  order of the voxels, nor on which other voxels the object has.

  Args:
    keys_RK: one typed key an object.
    coords_RV3, object_RV: coordinates of each slot, and the number of its object in the row.
  """
  rows, objects = keys_RK.shape
  keys_N = named(keys_RK.reshape(-1), name)
  words_RK2 = jax.random.key_data(keys_N).reshape(rows, objects, -1)

  # the key of its object at each slot
  index_RV1 = object_RV[..., None]
  words_RV2 = jnp.take_along_axis(words_RK2, index_RV1, axis=1)
  slots = words_RV2.shape[1]
  keys_W = wrap_keys(words_RV2.reshape(rows * slots, -1))

  # and a number of its own within the object
  strides = jnp.array([VOXEL_BASE**2, VOXEL_BASE, 1], jnp.int32)
  number_RV = (coords_RV3 * strides).sum(-1)
  number_W = number_RV.reshape(-1).astype(jnp.uint32)

  def sample(key, number):
    own = jax.random.fold_in(key, number)
    return jax.random.normal(own, (channels,), jnp.float32)

  normals_WC = jax.vmap(sample)(keys_W, number_W)
  return normals_WC.reshape(rows, slots, channels)
