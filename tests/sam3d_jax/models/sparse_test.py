"""Laws of the sparse voxel tensors."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.models import parameters, sparse, sparse_windows
from sam3d_jax.models.attention import attend_xla
from sam3d_jax.models.sparse_layers import (
  SparseGroupNorm,
  SparseResBlock,
  SparseSelfAttention,
  SubmanifoldConv,
  WindowBlock,
)
from sam3d_jax.torch_bridge import keys, names_sparse
from tests.support.random_module import random_module
from tests.support.sparse_tensors import _jit, dense_grid, downsample, tensor

RNG = np.random.default_rng(0)


def test_packing_and_unpacking_keep_order_and_values():
  x = tensor(RNG, counts=(5, 0, 3))
  feats, coords = sparse.unpack(x)
  again = sparse.pack(feats, coords, 3, 8)
  for a, b in zip(x, again, strict=True):
    np.testing.assert_array_equal(a, b)
  # the counts, and zeros in the padding
  valid = np.asarray(x.valid_BV)
  padding = np.asarray(x.feats_BVC)[~valid]
  assert valid.sum(1).tolist() == [5, 0, 3]
  assert not padding.any()


@pytest.mark.parametrize(
  "coords, size, words",
  [
    ([[0, 0, 0, 1022]], 1, "not within 0..1021"),
    ([[0, 0, 0, -1]], 1, "not within"),
    ([[0, 0, 0, 0], [0, 0, 0, 1]], 1, "do not fit"),
    ([[1, 0, 0, 0]], 1, "do not fit"),
  ],
)
def test_voxels_that_do_not_fit_are_refused(coords, size, words):
  with pytest.raises(ValueError, match=words):
    sparse.pack(np.ones((len(coords), 1)), np.asarray(coords), 1, size)


def test_convolution_and_its_gradients_equal_those_of_the_dense_one_at_the_voxels():
  x, side = tensor(RNG, counts=(25, 7, 0), side=4), 4
  kernel = jnp.asarray(RNG.standard_normal((27, 2, 3)), jnp.float32)
  weight_BVO = jnp.asarray(RNG.standard_normal((*x.feats_BVC.shape[:2], 3)), jnp.float32)

  def ours(feats, kernel):
    y = sparse.submanifold_conv(feats, kernel, sparse.neighbours(x))
    return (x.of(y).feats_BVC * weight_BVO).sum()

  def dense(feats, kernel):
    y = jax.lax.conv_general_dilated(
      dense_grid(x.of(feats), side),
      kernel.reshape(3, 3, 3, 2, 3),
      (1, 1, 1),
      "SAME",
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    rows = y[jnp.arange(3)[:, None], *jnp.moveaxis(x.coords_BV3, -1, 0)]
    return (x.of(rows).feats_BVC * weight_BVO).sum()

  def leaves(f):
    both = _jit(jax.value_and_grad(f, argnums=(0, 1)))
    return jax.tree.leaves(both(x.feats_BVC, kernel))

  for a, b in zip(leaves(ours), leaves(dense), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_convolution_gathers_in_both_directions():
  """A scatter of voxel rows, which accelerators serialise, appears in neither pass."""
  x = tensor(RNG)
  near = sparse.neighbours(x)

  def total(feats, kernel):
    return sparse.submanifold_conv(feats, kernel, near).sum()

  grad = jax.grad(total, argnums=(0, 1))
  kernel = jnp.ones((27, 2, 3))
  text = jax.jit(grad).lower(x.feats_BVC, kernel).as_text()
  assert "stablehlo.gather" in text
  assert "stablehlo.scatter" not in text


def test_neighbours_are_found_at_the_far_corner_and_never_across_a_face():
  top = sparse.MAX_COORDINATE
  coords = np.asarray(
    [
      [0, top, top, top],
      [0, top, top, top - 1],
      [0, 0, 0, 0],
      [0, top, 0, 0],
    ]
  )
  x = sparse.pack(np.ones((4, 1)), coords, 1, 4)
  near_TV = np.asarray(sparse.neighbours(x))[:, 0]

  # (voxel, offset) -> the neighbour there
  found = {}
  for t, v in np.argwhere(near_TV < 4):
    offset = tuple(sparse.TAPS[t])
    found[int(v), offset] = int(near_TV[t, v])

  # each voxel itself, and the one pair that lies side by side
  expected = {(v, (0, 0, 0)): v for v in range(4)}
  expected[0, (0, 0, -1)] = 1
  expected[1, (0, 0, 1)] = 0
  assert found == expected


def test_downsampling_into_too_few_rows_is_nan_rather_than_a_loss():
  x = tensor(RNG, counts=(20, 1), side=8)
  roomy, _ = downsample(x)
  tight, _ = downsample(x, size=int(roomy.count_B[1]))
  assert np.isnan(tight.feats_BVC[0]).all()
  assert np.isfinite(tight.feats_BVC[1]).all()

  # as many rows as are needed
  size = int(roomy.count_B.max())
  exact, parent = downsample(x, size=size)
  assert np.isfinite(exact.feats_BVC).all()
  # padding has no parent
  assert int(parent.max()) == size


def test_gradients_of_pooling_are_its_transpose():
  """sum(down(x) * r) is linear in x: its gradient is r of the parent over (count + 1)."""
  x = tensor(RNG, counts=(20, 6), side=4)
  coarse, parent = downsample(x)
  r = jnp.asarray(RNG.standard_normal(coarse.feats_BVC.shape), jnp.float32)

  def weighted(feats):
    pooled, _ = sparse.downsample(x._replace(feats_BVC=feats))
    return (pooled.feats_BVC * r).sum()

  got = _jit(jax.grad(weighted))(x.feats_BVC)
  ones = jnp.ones_like(x.feats_BVC)
  share = downsample(x.of(ones))[0].feats_BVC  # count / (count + 1)
  np.testing.assert_allclose(got, sparse.gather(r * (1 - share), parent), atol=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
def test_attention_in_windows_equals_masked_full_attention_with_gradients(shift):
  """With window 2 and this many voxels the block-by-block form runs; the mask is made from the
  coordinates directly.
  """
  x, window = tensor(RNG, counts=(50, 31), side=4), 2
  assert x.feats_BVC.shape[1] > 3 * window**3
  q, k, v, r = (
    jnp.asarray(RNG.standard_normal((*x.feats_BVC.shape[:2], 2, 4)), jnp.float32) for _ in range(4)
  )
  valid = x.valid_BV[..., None, None]
  cells = (x.coords_BV3 + shift) // window
  same = (cells[:, :, None] == cells[:, None]).all(-1) & x.valid_BV[:, None]
  windows = sparse_windows.windows(x, window, shift)

  def ours(q, k, v):
    return sparse_windows.attend_in_windows(q, k, v, windows, window)

  def plain(q, k, v):
    return attend_xla(q, k, v, mask=same[:, None])

  def leaves(attention):
    # what comes out in the padding is nobody's
    def weighted(q, k, v):
      seen = jnp.where(valid, attention(q, k, v), 0)
      return (seen * r).sum()

    both = _jit(jax.value_and_grad(weighted, argnums=(0, 1, 2)))
    return jax.tree.leaves(both(q, k, v))

  for a, b in zip(leaves(ours), leaves(plain), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
  "make, extra",
  [
    (
      lambda rngs: SparseResBlock(4, 6, 3, rngs=rngs),
      lambda x: (sparse.neighbours(x), jnp.ones((len(x.count_B), 3))),
    ),
    (lambda rngs: WindowBlock(4, 2, 2, rngs=rngs), lambda x: (sparse_windows.windows(x, 2, 1),)),
    (lambda rngs: SparseSelfAttention(4, 2, rngs=rngs), lambda x: ()),
    (lambda rngs: SparseGroupNorm(2, 4), lambda x: ()),
  ],
  ids=["residual", "window", "attention", "group norm"],
)
def test_padding_and_the_other_samples_change_nothing(make, extra):
  """A sample alone, without padding, in another row: the same numbers, and finite ones for an empty
  sample.
  """
  module = random_module(make)

  @nnx.jit
  def call(module, x):
    y = module(x, *extra(x))
    return y.feats_BVC if isinstance(y, sparse.SparseTensor) else y

  x = tensor(np.random.default_rng(1), counts=(0, 6, 11), side=3, channels=4)
  together = np.asarray(call(module, x))
  n = int(x.count_B[1])
  alone = sparse.SparseTensor(
    feats_BVC=x.feats_BVC[1:2, :n],
    coords_BV3=x.coords_BV3[1:2, :n],
    count_B=x.count_B[1:2],
  )
  by_itself = call(module, alone)
  np.testing.assert_allclose(together[1, :n], by_itself[0], atol=1e-5)
  assert np.isfinite(together).all()


def test_bf16_convolution_accumulates_in_fp32_and_stays_within_two_percent():
  x = tensor(RNG, counts=(60,), side=4, channels=8)

  @nnx.jit
  def call(conv, x):
    return conv(x, sparse.neighbours(x)).feats_BVC

  def make(rngs, dtype):
    return SubmanifoldConv(8, 8, rngs=rngs, dtype=dtype)

  outs = []
  for dtype in (jnp.float32, jnp.bfloat16):
    conv = random_module(functools.partial(make, dtype=dtype))
    outs.append(np.asarray(call(conv, x)))
  exact, rounded = outs
  error = np.linalg.norm(rounded - exact)
  assert rounded.dtype == np.float32
  assert 0 < error < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize(
  "rules, make",
  [
    (names_sparse.res_block_rules(4, 6), lambda: SparseResBlock(4, 6, 3, rngs=nnx.Rngs(0))),
    (names_sparse.window_block_rules(4), lambda: WindowBlock(4, 2, 2, rngs=nnx.Rngs(0))),
  ],
)
def test_every_parameter_has_one_published_name_there_and_back(rules, make):
  shapes = parameters.flat_shapes(nnx.eval_shape(make))
  params = {}
  for path, shape in shapes.items():
    params[path] = RNG.standard_normal(shape).astype(np.float32)

  published = keys.to_torch(rules, params)
  back = keys.to_ours(rules, published, shapes)
  assert set(back) == set(params)
  for path, x in params.items():
    np.testing.assert_array_equal(back[path], x, err_msg=path)
