"""Attention among the tokens of packed objects, in plain XLA: exact, with memory linear in tokens.

Rows of tokens are cut into blocks, and a block of queries walks over those blocks of keys that hold
its own objects: the cost is the sum of the squares of the objects' lengths, rounded up to blocks,
however many objects share a row. The softmax is taken online (Milakov and Gimelshein 2018), as in
FlashAttention (Dao et al. 2022), of which the backward pass is too.

An object that begins at a multiple of the block gets the same bits wherever it lies and whatever
lies beside it: its blocks hold nothing else, they are walked in the same order, and no sum crosses
into another block.
"""

import functools
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.attention import SAVED_NAME

# Ids of padding, chosen so that no query meets a key by them.
NO_QUERY = -1
NO_KEY = -2
LOWEST = -1e30  # the maximum of no logits; finite, so that differences of it are
WIDE = 4  # blocks of keys that a step takes while there are so many


class Segments(NamedTuple):
  """To which object of its row each token belongs.

  id_RL: (R, L) int32, nondecreasing along a row; padding carries the number of an object beside it.
  valid_RL: (R, L) bool, False in padding.
  """

  id_RL: jax.Array
  valid_RL: jax.Array


def block_ranges(queries: Segments, keys: Segments, q_block: int, k_block: int):
  """Which blocks of keys each block of queries needs: first and end, both (R, blocks) int32.

  Lengths are multiples of the blocks. All keys that a query of the block may see lie within first
  and end; blocks that are padding altogether are needed by none, and need none (end = first = 0).
  """
  lowest_q, highest_q = _extremes(queries, q_block)
  lowest_k, highest_k = _extremes(keys, k_block)
  # whether two blocks may hold the same object
  begins_before = lowest_k[:, None] <= highest_q[:, :, None]
  ends_after = highest_k[:, None] >= lowest_q[:, :, None]
  meet_RQM = begins_before & ends_after
  # the first and the last of them
  blocks = meet_RQM.shape[2]
  first_RQ = jnp.argmax(meet_RQM, axis=2)
  last_RQ = blocks - 1 - jnp.argmax(meet_RQM[:, :, ::-1], axis=2)
  end_RQ = jnp.where(meet_RQM.any(2), last_RQ + 1, 0)
  return first_RQ.astype(jnp.int32), end_RQ.astype(jnp.int32)


def _extremes(segments: Segments, block: int):
  """Lowest and highest id among the tokens of each block; nothing lies between in padding."""
  rows, length = segments.id_RL.shape
  cut = (rows, length // block, block)
  ids = segments.id_RL.reshape(cut)
  valid = segments.valid_RL.reshape(cut)
  above_all = np.iinfo(np.int32).max
  lowest = jnp.where(valid, ids, above_all).min(2)
  highest = jnp.where(valid, ids, -1).max(2)
  return lowest, highest


def attend_blocks(q_RLHK, k_RMHK, v_RMHK, queries: Segments, keys: Segments, *, block: int):
  """Attention of queries to the valid keys of their own id, (R, L, H, K) in the queries' dtype.

  Zero where a query is padding or its id has no key. Lengths are multiples of `block`. Products run
  in the operands' dtype with fp32 sums, the softmax in fp32.
  """
  rows, length, heads, head_dim = q_RLHK.shape
  key_blocks = k_RMHK.shape[1] // block

  # all rows end to end: a row's blocks of keys are counted from the first row's
  first_RQ, end_RQ = block_ranges(queries, keys, block, block)
  offset_R1 = jnp.arange(rows, dtype=jnp.int32)[:, None] * key_blocks
  first_Q = (first_RQ + offset_R1).reshape(-1)
  end_Q = jnp.where(end_RQ > 0, end_RQ + offset_R1, first_RQ + offset_R1).reshape(-1)
  of_query = jnp.where(queries.valid_RL, queries.id_RL, NO_QUERY)
  of_key = jnp.where(keys.valid_RL, keys.id_RL, NO_KEY)

  # blocks of queries by themselves, keys and values as one long row a head
  q_QHBK = _to_blocks(q_RLHK, block)
  k_HMK = k_RMHK.reshape(-1, heads, head_dim).swapaxes(0, 1)
  v_HMK = v_RMHK.reshape(-1, heads, head_dim).swapaxes(0, 1)
  plan = _Plan(
    first_Q,
    end_Q,
    of_query.reshape(-1, block),
    of_key.reshape(-1),
  )
  out_QHBK = _attend(q_QHBK, k_HMK, v_HMK, plan)
  out_RLHK = out_QHBK.swapaxes(1, 2).reshape(rows, length, heads, head_dim)
  return out_RLHK


def _to_blocks(x_RLHK, block: int):
  """(blocks of all rows, H, block, K)."""
  heads, head_dim = x_RLHK.shape[2:]
  blocks = x_RLHK.reshape(-1, block, heads, head_dim)
  return blocks.swapaxes(1, 2)


class _Plan(NamedTuple):
  """What a block of queries walks over."""

  first_Q: jax.Array  # its first block of keys
  end_Q: jax.Array  # the block after its last
  of_query_QB: jax.Array  # object of each query
  of_key_M: jax.Array  # object of each key


@jax.custom_vjp
def _attend(q_QHBK, k_HMK, v_HMK, plan: _Plan):
  out_QHBK, _ = _forward(q_QHBK, k_HMK, v_HMK, plan)
  return out_QHBK


def _forward(q_QHBK, k_HMK, v_HMK, plan: _Plan):
  """What comes out, and the logarithm of each query's sum of powers, (Q, H, B)."""
  heads, block, head_dim = q_QHBK.shape[1:]
  keys = k_HMK.shape[1]
  scale = head_dim**-0.5

  def one(operands):
    q_HBK, first, end, of_query_B = operands

    def absorb(state, at, size):
      # logits of the next keys, lowest of all where a key is of another object
      top_HB, sum_HB, out_HBK = state
      k_HSK, v_HSK, of_key_S = _keys_at(k_HMK, v_HMK, plan.of_key_M, at, size)
      logits_HBS = _dot("hbk,hsk->hbs", q_HBK, k_HSK) * scale
      same_BS = of_query_B[:, None] == of_key_S
      logits_HBS = jnp.where(same_BS, logits_HBS, -jnp.inf)
      # the sums so far, relative to the new maximum
      new_top_HB = jnp.maximum(top_HB, logits_HBS.max(2))
      powers_HBS = jnp.exp(logits_HBS - new_top_HB[..., None])
      fade_HB = jnp.exp(top_HB - new_top_HB)
      sum_HB = sum_HB * fade_HB + powers_HBS.sum(2)
      weighed_HBK = _dot("hbs,hsk->hbk", powers_HBS.astype(v_HSK.dtype), v_HSK)
      out_HBK = out_HBK * fade_HB[..., None] + weighed_HBK
      return new_top_HB, sum_HB, out_HBK

    nothing = (
      jnp.full((heads, block), LOWEST, jnp.float32),
      jnp.zeros((heads, block), jnp.float32),
      jnp.zeros((heads, block, head_dim), jnp.float32),
    )
    top_HB, sum_HB, out_HBK = _walk(absorb, nothing, first, end, block, keys)
    # a query without keys gets zeros
    found_HB = sum_HB > 0
    divisor_HB = jnp.where(found_HB, sum_HB, 1)
    out_HBK = out_HBK / divisor_HB[..., None]
    logsum_HB = jnp.where(found_HB, top_HB + jnp.log(divisor_HB), 0)
    return out_HBK.astype(q_HBK.dtype), logsum_HB

  blocks = (q_QHBK, plan.first_Q, plan.end_Q, plan.of_query_QB)
  return jax.lax.map(one, blocks)


def _forward_rule(q_QHBK, k_HMK, v_HMK, plan):
  out_QHBK, logsum_QHB = _forward(q_QHBK, k_HMK, v_HMK, plan)
  # Tagged within the rule: a policy that keeps them spares a second forward pass.
  out_QHBK = checkpoint_name(out_QHBK, SAVED_NAME)
  logsum_QHB = checkpoint_name(logsum_QHB, SAVED_NAME)
  residuals = (q_QHBK, k_HMK, v_HMK, plan, out_QHBK, logsum_QHB)
  return out_QHBK, residuals


def _backward_rule(residuals, bar_QHBK):
  q_QHBK, k_HMK, v_HMK, plan, out_QHBK, logsum_QHB = residuals
  block, head_dim = q_QHBK.shape[2:]
  keys = k_HMK.shape[1]
  scale = head_dim**-0.5
  # of each query, how its gradient and its result agree
  agree_QHB = jnp.einsum("qhbk,qhbk->qhb", bar_QHBK.astype(jnp.float32), out_QHBK)

  # block after block of queries; sums of keys and values are added up in place
  def one(sums, operands):
    q_HBK, bar_HBK, logsum_HB, agree_HB, first, end, of_query_B = operands

    def absorb(state, at, size):
      q_bar_HBK, k_bar_HMK, v_bar_HMK = state
      k_HSK, v_HSK, of_key_S = _keys_at(k_HMK, v_HMK, plan.of_key_M, at, size)
      # the weights of the softmax again
      logits_HBS = _dot("hbk,hsk->hbs", q_HBK, k_HSK) * scale
      same_BS = of_query_B[:, None] == of_key_S
      logits_HBS = jnp.where(same_BS, logits_HBS, -jnp.inf)
      weights_HBS = jnp.exp(logits_HBS - logsum_HB[..., None])
      # through the product with the values, and through the softmax
      weights_bar_HBS = _dot("hbk,hsk->hbs", bar_HBK, v_HSK)
      logits_bar_HBS = weights_HBS * (weights_bar_HBS - agree_HB[..., None]) * scale
      logits_bar_HBS = logits_bar_HBS.astype(q_HBK.dtype)
      weights_HBS = weights_HBS.astype(q_HBK.dtype)
      q_bar_HBK = q_bar_HBK + _dot("hbs,hsk->hbk", logits_bar_HBS, k_HSK)
      k_bar_HMK = _add_at(k_bar_HMK, _dot("hbs,hbk->hsk", logits_bar_HBS, q_HBK), at)
      v_bar_HMK = _add_at(v_bar_HMK, _dot("hbs,hbk->hsk", weights_HBS, bar_HBK), at)
      return q_bar_HBK, k_bar_HMK, v_bar_HMK

    zero_HBK = jnp.zeros(q_HBK.shape, jnp.float32)
    q_bar_HBK, *sums = _walk(absorb, (zero_HBK, *sums), first, end, block, keys)
    return tuple(sums), q_bar_HBK.astype(q_HBK.dtype)

  zeros = (jnp.zeros(k_HMK.shape, jnp.float32), jnp.zeros(v_HMK.shape, jnp.float32))
  blocks = (
    q_QHBK,
    bar_QHBK.astype(q_QHBK.dtype),
    logsum_QHB,
    agree_QHB,
    plan.first_Q,
    plan.end_Q,
    plan.of_query_QB,
  )
  (k_bar_HMK, v_bar_HMK), q_bar_QHBK = jax.lax.scan(one, zeros, blocks)
  return (
    q_bar_QHBK,
    k_bar_HMK.astype(k_HMK.dtype),
    v_bar_HMK.astype(v_HMK.dtype),
    _no_gradient(plan),
  )


_attend.defvjp(_forward_rule, _backward_rule)


def _walk(absorb, state, first, end, block: int, keys: int):
  """`absorb` over the keys of blocks first..end, WIDE blocks at a time and then one by one.

  The steps depend on the number of blocks alone, and read no key beyond them. keys: how many there
  are of all objects.
  """
  next_block = first
  wide_block = WIDE * block
  if keys >= wide_block:
    steps = (end - first) // WIDE
    begin = first * block

    def wide(step, state):
      return absorb(state, begin + step * wide_block, wide_block)

    state = jax.lax.fori_loop(0, steps, wide, state)
    next_block = first + steps * WIDE

  def narrow(at_block, state):
    return absorb(state, at_block * block, block)

  return jax.lax.fori_loop(next_block, end, narrow, state)


def _keys_at(k_HMK, v_HMK, of_key_M, at, size: int):
  """Keys, values and objects of `size` keys from the slot `at`."""
  k_HSK = jax.lax.dynamic_slice_in_dim(k_HMK, at, size, axis=1)
  v_HSK = jax.lax.dynamic_slice_in_dim(v_HMK, at, size, axis=1)
  of_key_S = jax.lax.dynamic_slice_in_dim(of_key_M, at, size)
  return k_HSK, v_HSK, of_key_S


def _add_at(sum_HMK, term_HSK, at):
  size = term_HSK.shape[1]
  before_HSK = jax.lax.dynamic_slice_in_dim(sum_HMK, at, size, axis=1)
  return jax.lax.dynamic_update_slice_in_dim(sum_HMK, before_HSK + term_HSK, at, axis=1)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _no_gradient(integers):
  def of_one(x):
    return np.zeros(x.shape, jax.dtypes.float0)

  return jax.tree.map(of_one, integers)
