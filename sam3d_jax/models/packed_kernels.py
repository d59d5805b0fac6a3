"""Fused kernels for attention of packed objects: TPU splash attention and cuDNN.

Rows are whole blocks, and `Segments` says whose each token is (`packed_attention`, which calls
this). A query that is padding, or without a key, gets what nobody may read: the caller clears it.

Splash: the stock kernel takes segment ids as a mask only and would work on all pairs of blocks. The
tables of blocks that its grid follows may be arrays of the program, though, so they are made from
the ids, and blocks without a common object are passed over.

cuDNN: its packed layout takes where each object begins and how long it is. It needs a GPU of the
Hopper generation or later. Windows are too many for it, and take a mask over nearby keys instead.
"""

import jax

# JAX has no public name for the packed layout.
from jax._src.cudnn import fused_attention_stablehlo as cudnn_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask_info as splash_mask_info,
)
import jax.numpy as jnp

from sam3d_jax.models.attention import SAVED_NAME
from sam3d_jax.models.block_attention import NO_KEY, NO_QUERY, Segments, block_ranges

INTERPRET = False  # Pallas' interpreter, which runs the kernels anywhere: for tests
MASKED = -1e30


# --------------------------------------------------------------------------------------------------
# TPU
# --------------------------------------------------------------------------------------------------


def splash_packed(
  q_RLHK,
  k_RMHK,
  v_RMHK,
  queries: Segments,
  keys: Segments,
  *,
  q_block: int,
  k_block: int,
  reach: int | None = None,
):
  """Splash attention whose grid visits only pairs of blocks with a common object.

  Lengths are multiples of the blocks, or shorter than one and multiples of 128. reach: most blocks
  of keys that a block of queries, and of queries that a block of keys, may need; None: all of a
  row. Steps of the grid beyond what is needed cost their overhead, so a known bound is worth
  stating; the caller sees to it that it holds.
  """
  rows, length, heads, head_dim = q_RLHK.shape
  keys_of_row = k_RMHK.shape[1]
  # a short row is one block
  q_block = min(q_block, length)
  k_block = min(k_block, keys_of_row)
  q_blocks = length // q_block
  k_blocks = keys_of_row // k_block

  # which blocks each block visits, either way
  first_RQ, end_RQ = block_ranges(queries, keys, q_block, k_block)
  first_RM, end_RM = block_ranges(keys, queries, k_block, q_block)
  # A block of queries that visits none would divide by zero.
  end_RQ = jnp.maximum(end_RQ, first_RQ + 1)
  of_queries = _visits(first_RQ, end_RQ, k_blocks, reach)
  of_keys = _visits(first_RM, end_RM, q_blocks, reach)
  of_keys = of_keys._replace(
    data_next=of_keys.data_next.swapaxes(1, 2),
    block_mask=of_keys.block_mask.swapaxes(1, 2),
  )

  # the rows end to end, heads first; the kernel does not scale the logits
  def end_to_end(x_RLHK):
    return x_RLHK.reshape(-1, heads, head_dim).swapaxes(0, 1)

  ids = splash.SegmentIds(
    q=jnp.where(queries.valid_RL, queries.id_RL, NO_QUERY).reshape(-1),
    kv=jnp.where(keys.valid_RL, keys.id_RL, NO_KEY).reshape(-1),
  )
  blocks = splash.BlockSizes(
    block_q=q_block,
    block_kv=k_block,
    block_q_dkv=q_block,
    block_kv_dkv=k_block,
    block_q_dq=q_block,
    block_kv_dq=k_block,
  )
  kernel = splash.SplashAttentionKernel(
    of_queries,
    of_queries,
    of_keys,
    block_sizes=blocks,
    is_mqa=False,
    save_residuals=False,
    mask_value=splash.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=SAVED_NAME,
    mask_function=None,
    interpret=INTERPRET,
  )
  scaled_RLHK = q_RLHK * head_dim**-0.5
  out_HNK = kernel(
    end_to_end(scaled_RLHK),
    end_to_end(k_RMHK),
    end_to_end(v_RMHK),
    segment_ids=ids,
  )
  out_RLHK = out_HNK.swapaxes(0, 1).reshape(rows, length, heads, head_dim)
  return out_RLHK.astype(q_RLHK.dtype)


def _visits(first_RQ, end_RQ, others: int, reach: int | None) -> splash_mask_info.MaskInfo:
  """The kernel's tables for blocks that visit first..end of the `others` of their row.

  Both are (1, blocks of all rows, steps): which block to fetch at a step, and whether to use it.
  """
  rows, blocks = first_RQ.shape
  steps = others
  if reach is not None:
    steps = min(reach, others)
  step_S = jnp.arange(steps, dtype=jnp.int32)
  wanted_RQS = first_RQ[..., None] + step_S
  is_needed_RQS = wanted_RQS < end_RQ[..., None]
  # At the steps after the last, the last one stays where it is.
  last_RQ1 = jnp.maximum(end_RQ - 1, first_RQ)[..., None]
  row_R11 = jnp.arange(rows, dtype=jnp.int32)[:, None, None]
  fetched_RQS = jnp.minimum(wanted_RQS, last_RQ1) + row_R11 * others
  shape = (1, rows * blocks, steps)
  return splash_mask_info.MaskInfo(
    data_next=fetched_RQS.reshape(shape),
    mask_next=None,
    block_mask=is_needed_RQS.astype(jnp.int32).reshape(shape),
    partial_mask_blocks=None,
    q_sequence=None,
  )


# --------------------------------------------------------------------------------------------------
# NVIDIA
# --------------------------------------------------------------------------------------------------


def cudnn_packed(q_RLHK, k_RMHK, v_RMHK, queries: Segments, keys: Segments, *, objects: int):
  """cuDNN's fused attention in its packed layout, objects numbered below `objects` in each row.

  Its statistics take (objects, H, L) fp32 a row. NaN everywhere if there are more objects, rather
  than that one is lost.
  """
  # the layout is for several segments; one more is empty
  segments = max(objects, 2)
  of_query_ROL = _members(queries, segments)
  of_key_ROM = _members(keys, segments)
  # an object without queries or without keys is none
  exists_RO = of_query_ROL.any(2) & of_key_ROM.any(2)
  q_start, q_count = _runs(of_query_ROL, exists_RO)
  k_start, k_count = _runs(of_key_ROM, exists_RO)

  def closed(start_RO):
    # one column more than objects, as the layout wants it
    return jnp.pad(start_RO, ((0, 0), (0, 1)), constant_values=-1)

  # What the kernel leaves alone outside the objects pushes no gradient.
  out_RLHK = cudnn_attention.dot_product_attention(
    _of_objects(q_RLHK, of_query_ROL, exists_RO),
    _of_objects(k_RMHK, of_key_ROM, exists_RO),
    _of_objects(v_RMHK, of_key_ROM, exists_RO),
    q_seqlen=q_count,
    kv_seqlen=k_count,
    q_offsets=closed(q_start),
    kv_offsets=closed(k_start),
    scale=q_RLHK.shape[-1] ** -0.5,
  )
  highest = jnp.where(queries.valid_RL, queries.id_RL, 0).max()
  return jnp.where(highest < objects, out_RLHK, jnp.nan)


def _members(segments: Segments, objects: int):
  """(R, objects, L), whether a token is a valid one of an object."""
  number_O1 = jnp.arange(objects)[:, None]
  return (segments.id_RL[:, None] == number_O1) & segments.valid_RL[:, None]


def _runs(of_token_ROL, exists_RO):
  """Where each object begins and how many tokens it has, (R, objects) int32; -1 for none."""
  start_RO = jnp.argmax(of_token_ROL, axis=2)
  count_RO = of_token_ROL.sum(2)
  start_RO = jnp.where(exists_RO, start_RO, -1)
  count_RO = jnp.where(exists_RO, count_RO, -1)
  return start_RO.astype(jnp.int32), count_RO.astype(jnp.int32)


def _of_objects(x_RLHK, of_token_ROL, exists_RO):
  """Zero outside the objects that exist."""
  within_RL = (of_token_ROL & exists_RO[..., None]).any(1)
  return jnp.where(within_RL[:, :, None, None], x_RLHK, 0)


def cudnn_nearby(
  q_RVHK,
  k_RVHK,
  v_RVHK,
  queries: Segments,
  keys: Segments,
  *,
  block: int,
  reach: int,
):
  """cuDNN's fused attention of blocks of queries to the `reach` blocks of keys around them.

  reach: odd; the caller sees to it that no window lies further. Keys of other windows are masked.
  """
  rows, slots, heads, head_dim = q_RVHK.shape
  block = min(block, slots)
  blocks = slots // block
  sides = reach // 2

  def nearby(x_RV):
    """(R * blocks, reach * block, ...): each block with those on either side of it, zero beyond."""
    others = x_RV.shape[2:]
    blocked = x_RV.reshape(rows, blocks, block, *others)
    margin = ((0, 0), (sides, sides)) + ((0, 0),) * (1 + len(others))
    padded = jnp.pad(blocked, margin)
    shifted = []
    for shift in range(reach):
      shifted.append(padded[:, shift : shift + blocks])
    around = jnp.stack(shifted, axis=2)
    return around.reshape(rows * blocks, reach * block, *others)

  # whose they are
  of_query = jnp.where(queries.valid_RL, queries.id_RL, NO_QUERY).reshape(-1, block)
  of_key = nearby(keys.id_RL)
  is_key = nearby(keys.valid_RL)
  same = (of_query[:, :, None] == of_key[:, None]) & is_key[:, None]
  # finite, so that a query without keys has a softmax
  bias = jnp.where(same, 0, MASKED).astype(q_RVHK.dtype)
  out = jax.nn.dot_product_attention(
    q_RVHK.reshape(rows * blocks, block, heads, head_dim),
    nearby(k_RVHK),
    nearby(v_RVHK),
    bias=bias[:, None],
    implementation="cudnn",
  )
  return out.reshape(rows, slots, heads, head_dim)
