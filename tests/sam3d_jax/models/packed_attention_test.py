"""Attention of packed objects equals attention of each by itself."""

import functools
import importlib.util
from typing import NamedTuple

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.models import packed_attention, packed_kernels
from sam3d_jax.models.block_attention import Segments, block_ranges
from sam3d_jax.models.packed_attention import (
  ALIGN,
  attend_packed,
  attend_packed_cross,
  attend_packed_windows,
)
from sam3d_jax.sharding.mesh import MeshConfig, make_mesh

HEADS, HEAD_DIM = 2, 8
BACKENDS = ("xla", "splash", "cudnn")


@pytest.fixture
def kernels_on_cpu(monkeypatch):
  """TPU kernels in Pallas' interpreter, on small blocks; in cuDNN's place what it documents."""
  monkeypatch.setattr(packed_kernels, "INTERPRET", True)
  monkeypatch.setattr(packed_attention, "SPLASH_BLOCK", 256)
  monkeypatch.setattr(packed_attention, "check_cudnn", lambda q_RLHK: None)
  fused = packed_kernels.cudnn_attention
  monkeypatch.setattr(fused, "dot_product_attention", _as_cudnn_documents)
  stock = jax.nn.dot_product_attention

  def in_xla(*arrays, implementation, **options):
    return stock(*arrays, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)
  yield
  jax.clear_caches()


def _as_cudnn_documents(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale):
  """Packed segments by offsets and lengths, -1 for none; outside of them is what happens to be."""

  def segment(offsets, seqlen, length):
    begin = offsets[:, : seqlen.shape[1], None]
    position = np.arange(length)
    return (position >= begin) & (position < begin + seqlen[..., None]) & (seqlen[..., None] > 0)

  of_query = segment(q_offsets, q_seqlen, q.shape[1])
  of_key = segment(kv_offsets, kv_seqlen, k.shape[1])
  seen = jnp.einsum("rol,rom->rlm", of_query.astype(int), of_key.astype(int)) > 0
  logits = jnp.einsum("rlhk,rmhk->rhlm", q, k) * scale
  weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -1e30), axis=-1)
  out = jnp.einsum("rhlm,rmhk->rlhk", weights, v)
  return jnp.where(of_query.any(1)[..., None, None], out, jnp.nan)


class Order(NamedTuple):
  """Fields of a `WindowOrder`."""

  order_RV: np.ndarray
  inverse_RV: np.ndarray
  window_RV: np.ndarray
  valid_RV: np.ndarray


def _segments(rows: list[list[int]], length: int, align: int = ALIGN) -> Segments:
  """Objects of the given sizes, each beginning at a multiple of `align`; padding after each."""
  id_RL = np.zeros((len(rows), length), np.int32)
  valid_RL = np.zeros((len(rows), length), bool)
  for row, sizes in enumerate(rows):
    start = 0
    for number, size in enumerate(sizes):
      # the tail of the row belongs to the last object
      id_RL[row, start:] = number
      valid_RL[row, start : start + size] = True
      start += -(-size // align) * align
  return Segments(id_RL, valid_RL)


def _draw(seed: int, *shape: int):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _qkvw(queries: Segments, keys: Segments):
  """Queries, keys, values, and weights of what comes out, padding's too."""
  rows, length = queries.id_RL.shape
  key_length = keys.id_RL.shape[1]
  lengths = (length, key_length, key_length, length)
  return [_draw(i, rows, n, HEADS, HEAD_DIM) for i, n in enumerate(lengths)]


def _dense(q, k, v, queries: Segments, keys: Segments):
  """All pairs, masked; zeros where nothing may be seen."""
  same = queries.id_RL[:, :, None] == keys.id_RL[:, None]
  seen = same & queries.valid_RL[:, :, None] & keys.valid_RL[:, None]
  logits = jnp.einsum("rlhk,rmhk->rhlm", q, k) / np.sqrt(q.shape[-1])
  logits = jnp.where(seen[:, None], logits, -1e30)
  weights = jax.nn.softmax(logits, axis=-1) * seen[:, None]
  return jnp.einsum("rhlm,rmhk->rlhk", weights, v)


def _value_and_grads(function, q, k, v, weight):
  """What comes out, and the gradients of its sum under `weight`."""

  def loss(q, k, v):
    out = function(q, k, v)
    return (out * weight).sum(), out

  grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
  return out, *grads


@functools.partial(jax.jit, static_argnames="backend")
def _packed(q, k, v, weight, queries, keys, backend="xla"):
  function = functools.partial(
    attend_packed,
    queries=queries,
    keys=keys,
    backend=backend,
    objects=3,
  )
  return _value_and_grads(function, q, k, v, weight)


@jax.jit
def _reference(q, k, v, weight, queries, keys):
  function = functools.partial(_dense, queries=queries, keys=keys)
  return _value_and_grads(function, q, k, v, weight)


def _assert_close(found, expected, tol=2e-5):
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, atol=tol, rtol=tol)


# a long object that takes wide steps, one voxel, a tail of padding; a row without objects
ROWS = [[700, 1, 200], []]
LENGTH = 1280


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_attention_is_that_of_each_object_forward_and_backward(kernels_on_cpu, backend):
  segments = _segments(ROWS, LENGTH)
  arrays = _qkvw(segments, segments)
  found = _packed(*arrays, segments, segments, backend)
  _assert_close(found, _reference(*arrays, segments, segments))
  # padding gives nothing, and takes nothing
  for array in found:
    assert (np.asarray(array)[~segments.valid_RL] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_objects_need_not_be_aligned_nor_rows_whole_blocks_nor_queries_as_many_as_keys(
  kernels_on_cpu, backend
):
  queries = _segments([[5, 170, 30]], 210, align=1)
  keys = _segments([[200, 0, 3]], 333, align=1)
  # object 1 has no key
  arrays = _qkvw(queries, keys)
  found = _packed(*arrays, queries, keys, backend)
  _assert_close(found, _reference(*arrays, queries, keys))
  assert (np.asarray(found[0])[0, 5:175] == 0).all()


@pytest.mark.parametrize("size", [1, 127, 650])
def test_an_object_has_the_same_bits_wherever_it_lies_and_whatever_lies_beside_it(size):
  start = 2 * ALIGN
  among = _segments([[130, size, 100], [300, 1, 5]], LENGTH)
  alone = _segments([[size], []], LENGTH)
  here = slice(start, start + size)

  # neighbours that would be seen if they were read
  arrays = _qkvw(among, among)
  neighbour_RL = (among.id_RL != 1) | (np.arange(2)[:, None] > 0)
  wild = [jnp.where(neighbour_RL[..., None, None], jnp.nan, x) for x in arrays[:3]]
  found = _packed(*wild, arrays[3], among, among)

  # by itself at the beginning, with other padding
  other = _draw(9, *arrays[0].shape)
  own_1L = (np.arange(LENGTH) < size)[None, :, None, None]
  moved = [jnp.where(own_1L, jnp.roll(x, -start, axis=1), other) for x in arrays]
  expected = _packed(*moved, alone, alone)

  for x, y in zip(found, expected, strict=True):
    np.testing.assert_array_equal(np.asarray(x)[0, here], np.asarray(y)[0, :size])
    assert np.isfinite(np.asarray(x)[0, here]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_attention_shows_each_object_all_tokens_of_its_own_condition(kernels_on_cpu, backend):
  queries = _segments([[300, 20], [1]], 512)
  q, _, _, weight = _qkvw(queries, queries)
  k = _draw(5, 2, 3, 137, HEADS, HEAD_DIM)
  v = _draw(6, 2, 3, 137, HEADS, HEAD_DIM)
  keys = _segments([[137] * 3] * 2, 3 * 137, align=1)

  def flat(x):
    return x.reshape(2, 3 * 137, HEADS, HEAD_DIM)

  @jax.jit
  def both(q, k, v, weight):
    cross = functools.partial(attend_packed_cross, queries=queries, backend=backend)

    def dense(q, k, v):
      return _dense(q, flat(k), flat(v), queries, keys)

    found = _value_and_grads(cross, q, k, v, weight)
    return found, _value_and_grads(dense, q, k, v, weight)

  _assert_close(*both(q, k, v, weight))


def _window_order(cells_RV, valid_RV) -> Order:
  """Slots sorted by cell, padding after its object."""
  order = np.argsort(cells_RV, axis=1, kind="stable").astype(np.int32)
  inverse = np.argsort(order, axis=1).astype(np.int32)

  def by_window(x):
    return np.take_along_axis(x, order, axis=1)

  return Order(order, inverse, by_window(cells_RV), by_window(valid_RV))


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_of_any_size_are_exact_in_the_order_of_the_slots(kernels_on_cpu, backend):
  rng = np.random.default_rng(3)
  # one window of 300 voxels, many small ones, padding with a window of its own
  cells = np.concatenate([np.full(300, 4), rng.integers(0, 40, 190), np.full(22, 41)])
  cells = rng.permutation(cells)[None].astype(np.int32)
  valid = cells < 41
  order = _window_order(cells, valid)
  slots = Segments(cells, valid)
  arrays = _qkvw(slots, slots)

  @jax.jit
  def both(q, k, v, weight):
    windowed = functools.partial(attend_packed_windows, order=order, backend=backend)
    dense = functools.partial(_dense, queries=slots, keys=slots)
    found = _value_and_grads(windowed, q, k, v, weight)
    return found, _value_and_grads(dense, q, k, v, weight)

  _assert_close(*both(*arrays))


def _lognormal_rows(budget: int, rows: int, rng) -> list[list[int]]:
  """Objects of a busy data set, first come first packed: median 4500 tokens, 600 to 10240."""
  packed = [[]]
  used = 0
  while True:
    size = int(np.clip(rng.lognormal(np.log(4500), 0.6), 600, 10_240))
    taken = -(-size // ALIGN) * ALIGN
    if used + taken > budget:
      packed.append([])
      used = 0
    if len(packed) > rows:
      return packed[:rows]
    packed[-1].append(size)
    used += taken


@pytest.mark.parametrize("block", [ALIGN, 512])
def test_blocks_that_are_visited_are_at_most_half_as_many_again_as_pairs_need(block):
  rows = _lognormal_rows(32_768, 16, np.random.default_rng(0))
  segments = _segments(rows, 32_768)
  first, end = block_ranges(segments, segments, block, block)
  visited = int((end - first).sum()) * block**2
  needed = sum(size**2 for sizes in rows for size in sizes)
  assert needed <= visited < 1.5 * needed


def test_every_pair_of_an_object_lies_in_a_block_that_is_visited():
  segments = _segments([[700, 1, 200, 31], [1, 1]], LENGTH, align=32)
  first, end = np.asarray(block_ranges(segments, segments, 64, 64))
  same = segments.id_RL[:, :, None] == segments.id_RL[:, None]
  seen = same & segments.valid_RL[:, :, None] & segments.valid_RL[:, None]
  row, query, key = np.nonzero(seen)
  assert (key // 64 >= first[row, query // 64]).all()
  assert (key // 64 < end[row, query // 64]).all()


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_a_window_beyond_what_kernels_look_at_is_loud_and_none_to_plain_xla(
  kernels_on_cpu, backend
):
  cells = np.repeat([[0, 1]], [600, 40], axis=1).astype(np.int32)
  order = _window_order(cells, np.ones_like(cells, bool))
  q, k, v, _ = _qkvw(Segments(cells, cells == cells), Segments(cells, cells == cells))
  found = attend_packed_windows(q, k, v, order, backend=backend)
  assert np.isnan(found).all() == (backend == "splash")
  assert np.isfinite(found).all() == (backend == "xla")


def _half(*shape: int):
  return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def _described(rows: int, length: int) -> Segments:
  return Segments(
    jax.ShapeDtypeStruct((rows, length), jnp.int32),
    jax.ShapeDtypeStruct((rows, length), bool),
  )


def _forms(backend: str):
  """Each form of attention with arguments of two rows of 1024 slots."""

  def of_itself(q, k, v, segments):
    return attend_packed(q, k, v, segments, segments, backend=backend)

  def cross(q, k, v, segments):
    return attend_packed_cross(q, k, v, segments, backend=backend)

  def windows(q, k, v, segments):
    order = Order(segments.id_RL, segments.id_RL, *segments)
    return attend_packed_windows(q, k, v, order, backend=backend)

  row = _half(2, 1024, 2, 64)
  condition = _half(2, 3, 137, 2, 64)
  segments = _described(2, 1024)
  yield "self", of_itself, (row, row, row, segments)
  yield "cross", cross, (row, condition, condition, segments)
  yield "windows", windows, (row, row, row, segments)


def _gradients(function):
  """Of all that comes out, by queries, keys and values."""

  def loss(q, k, v, segments):
    return function(q, k, v, segments).astype(jnp.float32).sum()

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def test_cudnn_lowers_for_a_gpu_without_one(monkeypatch):
  """cuDNN's own checks of shapes and types pass; both passes become its fused kernels."""
  fused = packed_kernels.cudnn_attention
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
  for form, function, arguments in _forms("cudnn"):
    lowered = _gradients(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    kind = "ScaleBiasSoftmax" if form == "windows" else "Softmax"
    assert text.count(f"@__cudnn$fmha{kind}(") == 1, form
    assert text.count(f"@__cudnn$fmha{kind}Backward(") == 1, form
    assert "dot_general" not in text, form


def test_cudnn_equals_xla_forward_and_backward():
  if jax.default_backend() != "gpu":
    pytest.skip("the cudnn backend needs an NVIDIA GPU")
  segments = _segments(ROWS, LENGTH)
  arrays = [x.astype(jnp.bfloat16) for x in _qkvw(segments, segments)]
  found = _packed(*arrays, segments, segments, "cudnn")
  expected = _packed(*arrays, segments, segments, "xla")
  _assert_close([x.astype(jnp.float32) for x in found], expected, 2e-2)


def test_splash_compiles_for_a_tpu_without_one(monkeypatch):
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip(
      "libtpu is not installed: `pip install -r requirements-tpu.txt` lets this test compile for a "
      "TPU"
    )
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }.items():
    monkeypatch.setenv(name, value)
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices[:1]
  mesh = make_mesh(MeshConfig(), devices)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  # the TPU compiler refuses fp32 products of bf16
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    for form, function, arguments in _forms("splash"):
      placed = jax.tree.map(lambda x: x.update(sharding=whole), arguments)
      compiled = _gradients(function).lower(*placed).compile()
      # forward, dq, dk and dv
      assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3, form


@pytest.mark.multidevice
@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_packed_attention_cut_over_a_mesh_computes_the_same(kernels_on_cpu, backend):
  segments = _segments([[700, 1, 200], [128, 5]], LENGTH)
  arrays = _qkvw(segments, segments)
  whole = _packed(*arrays, segments, segments)
  with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2, context=2), jax.devices()[:8])):
    cut = _packed(*arrays, segments, segments, backend)
  _assert_close(cut, whole)


def test_an_unknown_backend_is_refused():
  segments = _segments([[1]], 1)
  q, k, v, _ = _qkvw(segments, segments)
  with pytest.raises(ValueError, match="'flash' is not one of"):
    attend_packed(q, k, v, segments, segments, backend="flash")
