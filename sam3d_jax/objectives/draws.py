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
