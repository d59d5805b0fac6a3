"""The step up computes at half the resolution what a block on spread features computes."""

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models import sparse
from sam3d_jax.models.sparse import SparseTensor
from sam3d_jax.models.sparse_layers import SparseResBlock
from sam3d_jax.models.sparse_up import UpResBlock, spread_conv
from tests.support.random_module import random_module
from tests.support.sparse_tensors import jit, packed

RNG = np.random.default_rng(0)
FOUND = packed(RNG, counts=(60, 25, 7))
VOXELS = jax.tree.map(jnp.asarray, FOUND.voxels)
RANDOM = SparseTensor(
  jnp.asarray(RNG.standard_normal((*VOXELS.coarse.valid_RV.shape, 6)), jnp.float32),
  VOXELS.coarse,
)
COARSE = RANDOM.of(RANDOM.feats_RVC)  # zero in the padding


def test_convolution_and_gradients_equal_those_of_spread_features():
  kernel_TIO = jnp.asarray(RNG.standard_normal((27, 6, 4)), jnp.float32)
  weight_RVO = jnp.asarray(RNG.standard_normal((*VOXELS.fine.valid_RV.shape, 4)), jnp.float32)
  near = VOXELS.fine.neighbours_R27V
  valid_RV1 = VOXELS.fine.valid_RV[..., None]

  def at_half(x_RTI, kernel_TIO):
    y_RVO = spread_conv(x_RTI, kernel_TIO, near, VOXELS.pooling)
    return (jnp.where(valid_RV1, y_RVO, 0) * weight_RVO).sum(), y_RVO

  def at_full(x_RTI, kernel_TIO):
    x_RVI = sparse.spread(x_RTI, VOXELS.pooling)
    y_RVO = sparse.submanifold_conv(x_RVI, kernel_TIO, near)
    return (jnp.where(valid_RV1, y_RVO, 0) * weight_RVO).sum(), y_RVO

  def both(f):
    return jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(COARSE.feats_RVC, kernel_TIO)

  for one, other in zip(*map(jax.tree.leaves, (both(at_half), both(at_full))), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_block_up_is_the_block_on_spread_features():
  up = random_module(lambda rngs: UpResBlock(6, 4, 5, rngs=rngs))
  plain = random_module(lambda rngs: SparseResBlock(6, 4, 5, rngs=rngs))
  mod_RKD = jnp.asarray(RNG.standard_normal((*VOXELS.fine.count_RK.shape, 5)), jnp.float32)
  spread = SparseTensor(sparse.spread(COARSE.feats_RVC, VOXELS.pooling), VOXELS.fine)
  found = jit(lambda x: up(x, VOXELS, mod_RKD))(COARSE)
  expected = jit(lambda x: plain(x, mod_RKD))(spread)
  np.testing.assert_allclose(found.feats_RVC, expected.feats_RVC, atol=1e-4)
  assert np.abs(expected.feats_RVC).max() > 0.1
