"""Checksums: of the bits, whatever the sharding, on devices and host alike."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from sam3d_jax.training import checksums


def on_host(x) -> str:
  return checksums.on_host(np.asarray(x))


@pytest.fixture(params=["read in place", "compiled"])
def way(request, monkeypatch):
  """Both ways to the checksum of a device's array."""
  if request.param == "compiled":
    monkeypatch.setattr(checksums, "in_host_memory", lambda x: False)


def test_host_and_device_agree_on_checksums(way):
  rng = np.random.default_rng(0)
  arrays = {
    "f32": rng.standard_normal((3, 5, 7), np.float32),
    "bf16": jnp.asarray(rng.standard_normal(33), jnp.bfloat16),
    "bool": rng.random(9) < 0.5,
    "i32": np.int32(-5),
    "u8": rng.integers(0, 256, (4, 4), np.uint8),
    "empty": np.zeros((0, 3), np.float32),
  }
  on_device = checksums.on_device(jax.tree.map(jnp.asarray, arrays))
  assert on_device == jax.tree.map(on_host, arrays)
  assert len(set(on_device.values())) == len(arrays)


def test_arrays_that_hold_a_nan_or_an_infinity_are_named(way):
  arrays = {
    "nan": jnp.asarray([0, np.nan]),
    "inf": jnp.asarray([np.inf], jnp.bfloat16),
    "good": jnp.arange(3),
    "also good": jnp.ones(2),
  }
  _, bad = checksums.inspect(arrays)
  assert bad == ["nan", "inf"]


def test_a_host_checksum_does_not_depend_on_the_chunks(monkeypatch):
  x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
  whole = checksums.on_host(x)
  monkeypatch.setattr(checksums, "CHUNK", 7)
  assert checksums.on_host(x) == whole


def on_device(x) -> str:
  return checksums.on_device({"x": x})["x"]


@pytest.mark.multidevice
def test_the_checksum_does_not_depend_on_the_layout():
  x = jax.random.normal(jax.random.key(0), (8, 16))
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  sharded = jax.device_put(x, NamedSharding(mesh, P("x", "y")))
  assert on_device(sharded) == on_device(x)


@pytest.mark.parametrize("bit", [0, 13, 31])
@pytest.mark.parametrize("position", [(0, 0), (7, 15), (3, 8)])
def test_the_checksum_sees_every_bit(position, bit):
  x = np.random.default_rng(0).standard_normal((8, 16), np.float32)
  flipped = x.copy()
  flipped.view(np.uint32)[position] ^= np.uint32(1 << bit)
  assert on_device(jnp.asarray(flipped)) != on_device(jnp.asarray(x))


def test_the_checksum_sees_the_order():
  x = jnp.arange(128.0).reshape(8, 16)
  assert on_device(x[::-1]) != on_device(x)
