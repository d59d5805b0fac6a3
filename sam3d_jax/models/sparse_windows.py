"""Attention among the voxels of a window, exact and with static shapes.

A window is a cube of a voxel grid; `sparse.group_by` sorts the voxels of each sample by it.
"""

import jax
import jax.numpy as jnp

from sam3d_jax.models.attention import SAVED_NAME, attend_xla
from sam3d_jax.models.sparse import Groups, SparseTensor, gather, group_by


def windows(x: SparseTensor, window: int, shift: int = 0) -> Groups:
  """Which voxels attend to each other: those of one cell (coordinate + shift) // window.

  Made once for all blocks of one shift.
  """
  cells_BV3 = (x.coords_BV3 + shift) // window
  return group_by(cells_BV3, x.valid_BV)


def attend_in_windows(q_BVHK, k_BVHK, v_BVHK, groups: Groups, window: int):
  """Attention of each voxel to the voxels of its window, (B, V, H, K); exact, with static shapes.

  Sorted by window, a voxel's partners lie fewer than window^3 positions away. So a block of that
  many queries needs the keys of its own block and of the two beside it, masked to equal windows: 3
  V window^3 products instead of V^2, block after block.
  """
  voxels = q_BVHK.shape[1]
  reach = window**3
  q = gather(q_BVHK, groups.order_BV)
  k = gather(k_BVHK, groups.order_BV)
  v = gather(v_BVHK, groups.order_BV)
  if voxels <= 3 * reach:
    # all pairs cost no more than blocks would
    of_query = groups.rank_BV[:, :, None]
    of_key = groups.rank_BV[:, None]
    same = (of_query == of_key)[:, None]
    out = attend_xla(q, k, v, mask=same)
  else:
    out = _attend_nearby(
      q,
      k,
      v,
      groups.rank_BV,
      reach,
    )
  return gather(out, groups.inverse_BV)


def _attend_nearby(q_BVHK, k_BVHK, v_BVHK, rank_BV, block: int):
  """Attention to equal ranks, which lie in the query's own block or in one beside it."""
  voxels = q_BVHK.shape[1]
  blocks = -(-voxels // block)
  tail = blocks * block - voxels

  def pad(x, before, after, value=0):
    no_margin = (0, 0)
    others = (no_margin,) * (x.ndim - 2)
    margins = (no_margin, (before, after), *others)
    return jnp.pad(x, margins, constant_values=value)

  # whole blocks of queries; a block of keys more on either side. Ranks of padding meet none.
  q = pad(q_BVHK, 0, tail)
  query_rank = pad(rank_BV, 0, tail, voxels)
  k = pad(k_BVHK, block, block + tail)
  v = pad(v_BVHK, block, block + tail)
  key_rank = pad(rank_BV, block, block + tail, -1)

  # a block of queries and the three blocks of keys around it; its logits are not kept
  @jax.checkpoint
  def one(start):
    def near(x, length):
      return jax.lax.dynamic_slice_in_dim(
        x,
        start,
        length,
        axis=1,
      )

    of_query = near(query_rank, block)[:, :, None]
    of_key = near(key_rank, 3 * block)[:, None]
    same = (of_query == of_key)[:, None]
    return attend_xla(
      near(q, block),
      near(k, 3 * block),
      near(v, 3 * block),
      mask=same,
    )

  starts = jnp.arange(blocks) * block
  out = jax.lax.map(one, starts)  # (blocks, B, block, H, K)

  # the blocks end to end, without the tail
  batch, _, *head = q.shape
  blocks_second = jnp.moveaxis(out, 0, 1)
  padded = blocks_second.reshape(batch, blocks * block, *head)
  out_BVHK = padded[:, :voxels]
  return jax.ad_checkpoint.checkpoint_name(out_BVHK, SAVED_NAME)
