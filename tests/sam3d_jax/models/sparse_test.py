"""Laws of operations over packed voxels."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.geometry import packing
from sam3d_jax.geometry.packing import BLOCK, RowShape
from sam3d_jax.models import parameters, sparse
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import (
  SparseGroupNorm,
  SparseResBlock,
  SubmanifoldConv,
  WindowBlock,
)
from sam3d_jax.torch_bridge import keys, names_sparse
from tests.support.random_module import random_module
from tests.support.sparse_tensors import (
  ALL_TABLES,
  SIDE,
  dense_grids,
  grid_index,
  jit,
  packed,
  tensor,
  voxels,
)

RNG = np.random.default_rng(0)


def both(f, *args):
  """Value and gradients of f with respect to all of its arguments, as a list."""
  numbers = tuple(range(len(args)))
  return jax.tree.leaves(jit(jax.value_and_grad(f, argnums=numbers))(*args))


def test_convolution_and_its_gradients_equal_those_of_the_dense_one_at_the_voxels():
  x = tensor(RNG, packed(RNG, (150, 7, 90), shape=RowShape(3 * BLOCK, 2 * BLOCK, 3)))
  kernel = jnp.asarray(RNG.standard_normal((27, 2, 3)), jnp.float32)
  weight_RVO = jnp.asarray(RNG.standard_normal((*x.feats_RVC.shape[:2], 3)), jnp.float32)

  def ours(feats, kernel):
    y = sparse.submanifold_conv(feats, kernel, x.level.neighbours_R27V)
    return (x.of(y).feats_RVC * weight_RVO).sum()

  def dense(feats, kernel):
    grids = dense_grids(x.of(feats))
    y = jax.lax.conv_general_dilated(
      grids.reshape(-1, *grids.shape[2:]),
      kernel.reshape(3, 3, 3, 2, 3),
      (1, 1, 1),
      "SAME",
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    slots = y.reshape(*grids.shape[:-1], 3)[grid_index(x)]
    return (x.of(slots).feats_RVC * weight_RVO).sum()

  for a, b in zip(both(ours, x.feats_RVC, kernel), both(dense, x.feats_RVC, kernel), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_nothing_scatters_in_either_direction():
  """A scatter of voxel rows, which accelerators serialise, appears in no pass."""
  found = packed(RNG)
  x, pooling = tensor(RNG, found), found.voxels.pooling

  def total(feats, kernel, mod):
    y = sparse.submanifold_conv(feats, kernel, x.level.neighbours_R27V)
    y = sparse.spread(sparse.pooled(y, pooling), pooling)
    y = sparse.per_slot(mod, x.level) * y
    return sparse.group_norm(x.of(y), 1, 1e-5).sum()

  grad = jax.grad(total, argnums=(0, 1, 2))
  mod_RKC = jnp.ones((*x.level.count_RK.shape, 2))
  text = jax.jit(grad).lower(x.feats_RVC, jnp.ones((27, 2, 2)), mod_RKC).as_text()
  assert "stablehlo.gather" in text
  # sums over the blocks of an object, a hundredth of the slots, may
  slots = x.feats_RVC.shape[1]
  for line in text.splitlines():
    if "stablehlo.scatter" in line:
      assert f"x{slots}x" not in line, line


def test_pooling_adds_children_and_one_member_more_with_gradients():
  """sum(pooled(x) * r): each voxel's gradient is r of its parent over (children + 1)."""
  found = packed(RNG, (150, 31), shape=RowShape(2 * BLOCK, BLOCK, 1))
  x, pooling = tensor(RNG, found), found.voxels.pooling
  coarse = sparse.pooled(x.feats_RVC, pooling)
  r = jnp.asarray(RNG.standard_normal(coarse.shape), jnp.float32)
  parents = np.asarray(pooling.parent_RV)
  value, gradient = both(lambda feats: (sparse.pooled(feats, pooling) * r).sum(), x.feats_RVC)
  _, spread_gradient = both(
    lambda feats: (sparse.spread(feats, pooling) * x.feats_RVC).sum(), coarse
  )
  assert np.isfinite(value)

  for row in range(len(parents)):
    for t in range(coarse.shape[1]):
      children = np.flatnonzero(parents[row] == t)
      mine = np.asarray(x.feats_RVC)[row, children]
      np.testing.assert_allclose(coarse[row, t], mine.sum(0) / (len(mine) + 1), atol=1e-6)
      share = r[row, t] / (len(mine) + 1)
      np.testing.assert_allclose(gradient[row, children], share + 0 * mine, atol=1e-6)
      # and of spreading it is the sum over the children
      np.testing.assert_allclose(spread_gradient[row, t], mine.sum(0), atol=1e-6)


def test_values_and_means_belong_to_their_object():
  found = packed(RNG, (130, 5, 60), shape=RowShape(3 * BLOCK, 2 * BLOCK, 4))
  x = tensor(RNG, found)
  rows, objects = x.level.count_RK.shape

  # rubbish in the padding counts for nothing
  is_voxel = x.level.valid_RV[..., None]
  rubbish = jnp.where(is_voxel, x.feats_RVC, 1e6)
  means = sparse.object_means(rubbish, x.level)
  for place, feats in zip(found.places, found.split(x.feats_RVC), strict=True):
    own = means[place.row, place.number]
    np.testing.assert_allclose(own, feats.mean(0), atol=1e-6)
  # a place without an object has a finite one
  assert np.isfinite(means).all()

  # each slot gets the number of its object
  numbers = np.arange(rows * objects, dtype=np.float32).reshape(rows, objects, 1)
  slots = sparse.per_slot(jnp.asarray(numbers), x.level)
  for place, own in zip(found.places, found.split(slots), strict=True):
    assert (own == numbers[place.row, place.number]).all()


@pytest.mark.parametrize(
  "make, extra",
  [
    (
      lambda rngs: SparseResBlock(4, 6, 3, rngs=rngs),
      lambda x: (x.level.count_RK[..., None] * 0.01 + jnp.ones(3),),
    ),
    (lambda rngs: WindowBlock(4, 2, rngs=rngs), lambda x: (x.level.windows[1],)),
    (lambda rngs: SparseGroupNorm(2, 4), lambda x: ()),
  ],
  ids=["residual", "window", "group norm"],
)
def test_padding_neighbours_and_the_place_in_the_row_change_no_bit(make, extra):
  """The same object alone, behind another one and in a row of its own beside an empty row."""
  module = random_module(make)
  shape = RowShape(5 * BLOCK, 4 * BLOCK, 3)
  rng = np.random.default_rng(1)
  objects = [packing.object_tables(voxels(rng, count), ALL_TABLES) for count in (200, 40, 140)]
  feats = [rng.standard_normal((len(one.coords_V3), 4)).astype(np.float32) for one in objects]

  @nnx.jit
  def call(module, x):
    y = module(x, *extra(x))
    return y.feats_RVC if isinstance(y, SparseTensor) else y

  def of_first(members, rows):
    found = packing.pack([objects[n] for n in members], shape, rows)
    filled = found.fill([feats[n] for n in members])
    y = call(module, SparseTensor(filled, found.voxels.fine))
    assert np.isfinite(y).all()
    return found.split(y)[0]

  alone = of_first([0], [[0], []])
  behind = of_first([0, 1, 2], [[], [1, 2, 0]])
  before = of_first([0, 2], [[0, 1], []])
  np.testing.assert_array_equal(behind, alone)
  np.testing.assert_array_equal(before, alone)


def test_a_convolution_without_neighbours_says_so():
  bare = packing.Tables(resolution=SIDE)
  x = tensor(RNG, packed(RNG, (3,), tables=bare))
  conv = SubmanifoldConv(2, 2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="neighbours=True"):
    conv(x)


def test_bf16_convolution_accumulates_in_fp32_and_stays_within_two_percent():
  x = tensor(RNG, packed(RNG, (60,)), channels=8)

  @nnx.jit
  def call(conv, x):
    return conv(x).feats_RVC

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
    (names_sparse.window_block_rules(4), lambda: WindowBlock(4, 2, rngs=nnx.Rngs(0))),
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
