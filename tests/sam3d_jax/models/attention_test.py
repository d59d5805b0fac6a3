"""All attention backends compute the same function."""

import functools
import importlib.util

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from launch.performance import hlo
from sam3d_jax.models import attention, stack
from sam3d_jax.models.attention import attend, attend_few, attend_rows
from sam3d_jax.sharding.mesh import MeshConfig, make_mesh
from tests.support.programs import equations


def _qkv(lengths=(5, 7), batch=2, heads=2, head_dim=8, dtype=jnp.float32):
  rng = np.random.default_rng(0)

  def draw(length: int):
    normal = rng.normal(size=(batch, length, heads, head_dim))
    return jnp.asarray(normal, dtype)

  queries, keys = lengths
  return draw(queries), draw(keys), draw(keys)


@functools.partial(jax.jit, static_argnames="backend")
def _value_and_grads(q, k, v, backend):
  # Weighted, so that every element has a gradient of its own.
  numbers = jnp.arange(q.size, dtype=jnp.float32)
  weight = jnp.cos(numbers).reshape(q.shape)

  def loss(q, k, v):
    return (attend(q, k, v, backend=backend) * weight).sum()

  gradients = jax.grad(loss, argnums=(0, 1, 2))
  return attend(q, k, v, backend=backend), gradients(q, k, v)


def _assert_close(a, b, tol):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  for x, y in pairs:
    found = np.asarray(x, np.float32)
    expected = np.asarray(y, np.float32)
    np.testing.assert_allclose(found, expected, atol=tol, rtol=tol)


@pytest.fixture
def splash_on_cpu(monkeypatch):
  """Runs the TPU kernels in Pallas' interpreter."""
  make = attention.splash.make_splash_mha
  monkeypatch.setattr(attention.splash, "make_splash_mha", functools.partial(make, interpret=True))
  yield
  _value_and_grads.clear_cache()


def test_attention_is_the_softmax_of_scaled_products():
  q, k, v = _qkv()
  logits = np.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(8)
  powers = np.exp(logits)
  weights = powers / powers.sum(-1, keepdims=True)
  expected = np.einsum("bhlm,bmhk->blhk", weights, v)
  _assert_close(jax.jit(attend)(q, k, v), expected, 1e-5)


def _few(q, k, v):
  """Attention of few queries, keys and values in two parts."""
  keys = (k[:, :4], k[:, 4:])
  values = (v[:, :4], v[:, 4:])
  return attend_few(q, keys, values)


def _sine_gradients(attention, q, k, v):
  """Of a sum that is not linear in what comes out."""

  def loss(q, k, v):
    return jnp.sin(attention(q, k, v)).sum()

  return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)


def test_few_queries_see_keys_in_parts_as_if_they_were_one_piece():
  q, k, v = _qkv((3, 9))
  _assert_close(jax.jit(_few)(q, k, v), jax.jit(attend)(q, k, v), 1e-6)

  gradients = jax.jit(_sine_gradients, static_argnums=0)
  _assert_close(gradients(_few, q, k, v), gradients(attend, q, k, v), 1e-5)


def test_rows_share_their_keys_as_heads_with_equal_keys_do():
  q, k, v = _qkv((3, 9))

  @jax.jit
  def as_rows(q, k, v):
    rows = q.reshape(2, 6, 8)
    out = attend_rows(rows, (k[:, :, 0],), (v[:, :, 0],), scale=8**-0.5)
    return out.reshape(q.shape)

  def repeat(x):
    return jnp.repeat(x[:, :, :1], 2, axis=2)

  expected = jax.jit(attend)(q, repeat(k), repeat(v))
  _assert_close(as_rows(q, k, v), expected, 1e-6)


@pytest.mark.parametrize(
  "attention",
  [lambda q, k, v: attend(q, k, v, backend="xla"), lambda q, k, v: attend_few(q, (k,), (v,))],
)
def test_half_precision_products_are_not_widened_by_their_gradients(attention):
  """fp32 comes out of bf16 products, bf16 goes back in: no product has an fp32 operand."""
  q, k, v = _qkv((3, 9), dtype=jnp.bfloat16)

  def loss(q, k, v):
    return attention(q, k, v).astype(jnp.float32).sum()

  gradients = jax.grad(loss, argnums=(0, 1, 2))
  program = jax.make_jaxpr(gradients)(q, k, v)
  products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
  assert len(products) >= 6
  for product in products:
    for operand in product.invars:
      assert operand.aval.dtype == jnp.bfloat16


def test_softmax_of_half_precision_queries_is_taken_in_fp32():
  """Summing 4096 equal weights in bf16 stops at 256 of them."""
  q, k, v = (jnp.ones((1, n, 1, 8), jnp.bfloat16) for n in (2, 4096, 4096))
  np.testing.assert_array_equal(np.asarray(jax.jit(attend)(q, k, v), np.float32), 1.0)


def test_splash_equals_xla_forward_and_backward_at_lengths_that_need_padding(splash_on_cpu):
  q, k, v = _qkv((130, 600), head_dim=64)
  _assert_close(_value_and_grads(q, k, v, "splash"), _value_and_grads(q, k, v, "xla"), 2e-5)


@pytest.mark.multidevice
def test_kernels_cut_over_a_mesh_compute_the_same(splash_on_cpu):
  q, k, v = _qkv((256, 128), head_dim=64)
  whole = _value_and_grads(q, k, v, "xla")
  with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2, context=2), jax.devices()[:8])):
    cut = _value_and_grads(q, k, v, "splash")
    counted = jax.jit(lambda *a: attend(*a[:3], backend="splash", key_count_B=a[3]))(
      q, k, v, jnp.asarray([128, 9])
    )
    lowered = jax.jit(lambda *qkv: attend(*qkv, backend="splash")).lower(q, k, v).as_text()
  _assert_close(cut, whole, 2e-5)
  _assert_close(counted[1:], attend(q[1:], k[1:, :9], v[1:, :9], backend="xla"), 2e-5)
  assert "tensor<1x128x1x64xf32>" in lowered  # a shard: 1 sample, 128 queries, 1 head


@pytest.mark.multidevice
def test_few_queries_move_nothing_between_shards_of_the_heads():
  q, k, v = _qkv((4, 16), heads=4)

  def both(q, k, v):
    return _few(q, k, v), _sine_gradients(_few, q, k, v)

  whole = jax.jit(both)(q, k, v)
  mesh = make_mesh(MeshConfig(data=2, tensor=4), jax.devices()[:8])
  with jax.set_mesh(mesh):
    by_head = jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
    cut = jax.jit(both, in_shardings=by_head, out_shardings=by_head)
    compiled = cut.lower(q, k, v).compile()
    placed = jax.device_put((q, k, v), by_head)
    _assert_close(compiled(*placed), whole, 1e-5)
  assert not hlo.collectives(compiled.as_text())


@pytest.mark.multidevice
def test_mesh_axes_that_do_not_divide_a_dimension_are_left_out(splash_on_cpu):
  q, k, v = _qkv((129, 130), batch=1, heads=3, head_dim=64)
  whole = _value_and_grads(q, k, v, "xla")
  with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2, context=2), jax.devices()[:8])):
    _assert_close(_value_and_grads(q, k, v, "splash"), whole, 2e-5)


@pytest.mark.parametrize("tensor", [1, 2])
def test_splash_compiles_for_a_tpu_without_one(monkeypatch, tensor):
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
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices[:tensor]
  mesh = make_mesh(MeshConfig(tensor=tensor), devices)
  heads = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "tensor"))
  # the TPU compiler refuses fp32 products of bf16
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    shape = lambda n: jax.ShapeDtypeStruct((1, n, 2, 64), jnp.bfloat16, sharding=heads)
    loss = lambda q, k, v: attend(q, k, v, backend="splash").astype(jnp.float32).sum()
    compiled = (
      jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape(512), shape(600), shape(600)).compile()
    )
  # forward, dq, dk and dv
  assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_keys_beyond_the_count_are_as_good_as_absent(splash_on_cpu, backend):
  q, k, v = _qkv((3, 140), head_dim=64)
  counts = [5, 130]

  @jax.jit
  def counted(q, k, v, count_B):
    return attend(q, k, v, backend=backend, key_count_B=count_B)

  found = counted(q, k, v, jnp.asarray(counts))
  for b, n in enumerate(counts):
    # the sample by itself, with the keys that it has
    one = slice(b, b + 1)
    expected = attend(q[one], k[one, :n], v[one, :n], backend="xla")
    _assert_close(found[one], expected, 2e-5)


def test_a_sample_without_keys_gives_finite_numbers():
  q, k, v = _qkv((3, 4))
  none = jnp.zeros(2, jnp.int32)

  @jax.jit
  def counted(q, k, v):
    return attend(q, k, v, key_count_B=none)

  assert np.isfinite(counted(q, k, v)).all()


@pytest.mark.parametrize(
  "lengths, counted",
  [((4096, 7528), False), ((1370, 1370), False), ((1025, 1025), False), ((130, 129), True)],
)
def test_cudnn_lowers_for_a_gpu_without_one(monkeypatch, lengths, counted):
  """Every length of the models passes cuDNN's own checks of shapes and types; forward and backward
  become its fused kernels.
  """
  fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)  # asks the installed library

  def described(length: int):
    return jax.ShapeDtypeStruct((2, length, 16, 64), jnp.bfloat16)

  def loss(q, k, v, key_count_B=None):
    out = attend(q, k, v, backend="cudnn", key_count_B=key_count_B)
    return out.astype(jnp.float32).sum()

  queries, keys = lengths
  arguments = [described(queries), described(keys), described(keys)]
  if counted:
    arguments.append(jax.ShapeDtypeStruct((2,), jnp.int32))
  both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  lowered = both.trace(*arguments).lower(lowering_platforms=("cuda",))

  text = lowered.as_text()
  assert text.count("@__cudnn$fmhaSoftmax(") == 1
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
  assert "dot_general" not in text


@pytest.mark.parametrize(
  "policy, forward_kernels", [("none", 1), ("dots", 1), ("attention", 1), ("full", 2)]
)
def test_cudnn_runs_its_forward_kernel_again_only_where_everything_is_recomputed(
  monkeypatch, policy, forward_kernels
):
  fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)

  def layer(x_BLD, kernel_D3HK):
    q, k, v = (jnp.einsum("bld,dhk->blhk", x_BLD, kernel_D3HK[:, i]) for i in range(3))
    out = attend(q, k, v, backend="cudnn")
    return x_BLD + out.reshape(x_BLD.shape), None

  def loss(x, kernels):
    body = stack.rematerialise(layer, policy)
    x, _ = jax.lax.scan(body, x, kernels)
    return x.astype(jnp.float32).sum()

  # three layers, two heads
  x = jax.ShapeDtypeStruct((2, 256, 128), jnp.bfloat16)
  kernels = jax.ShapeDtypeStruct((3, 128, 3, 2, 64), jnp.bfloat16)
  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
  lowered = gradients.trace(x, kernels).lower(lowering_platforms=("cuda",))

  text = lowered.as_text()
  assert text.count("@__cudnn$fmhaSoftmax(") == forward_kernels
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1


@pytest.mark.parametrize(
  "dtype, head_dim", [(jnp.float32, 64), (jnp.bfloat16, 12), (jnp.bfloat16, 256)]
)
def test_cudnn_is_refused_with_the_fix_where_it_has_no_kernel(dtype, head_dim):
  queries = jax.ShapeDtypeStruct((1, 512, 2, head_dim), dtype)
  assert attention.choose_backend("gpu", queries, queries) == "xla"

  q, k, v = _qkv((4, 4), head_dim=head_dim, dtype=dtype)
  with pytest.raises(ValueError, match="choose dtype=bfloat16, or attention=xla"):
    attend(q, k, v, backend="cudnn")


def test_cudnn_equals_xla_forward_and_backward():
  if jax.default_backend() != "gpu":
    pytest.skip("the cudnn backend needs an NVIDIA GPU")
  q, k, v = _qkv((257, 301), head_dim=64, dtype=jnp.bfloat16)
  _assert_close(_value_and_grads(q, k, v, "cudnn"), _value_and_grads(q, k, v, "xla"), 2e-2)


@pytest.mark.parametrize(
  "platform, dtype, lengths, expected",
  [
    ("tpu", jnp.bfloat16, (4096, 7528), "splash"),
    ("tpu", jnp.bfloat16, (4, 7528), "xla"),
    ("gpu", jnp.bfloat16, (4096, 7528), "cudnn"),
    ("gpu", jnp.float32, (4096, 7528), "xla"),
    ("cpu", jnp.bfloat16, (4096, 7528), "xla"),
  ],
)
def test_backend_is_chosen_by_platform_dtype_and_length(platform, dtype, lengths, expected):
  q, k = (jax.ShapeDtypeStruct((1, n, 16, 64), dtype) for n in lengths)
  assert attention.choose_backend(platform, q, k) == expected


def test_unknown_backend_is_refused():
  with pytest.raises(ValueError, match="'flash' is not one of"):
    attend(*_qkv(), backend="flash")
