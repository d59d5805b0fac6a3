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

from sam3d_jax.geometry.packing import BLOCK
from sam3d_jax.models.attention import SAVED_NAME

# Ids of padding, chosen so that no query meets a key by them.
NO_QUERY = -1
NO_KEY = -2
LOWEST = -1e30  # the maximum of no logits; finite, so that differences of it are


class Segments(NamedTuple):
  """To which object of its row each token belongs.

  id_RL: (R, L) int32, nondecreasing along a row; padding carries the number of an object beside it.
  valid_RL: (R, L) bool, False in padding.
  """

  id_RL: jax.Array
  valid_RL: jax.Array


class Form(NamedTuple):
  """How blocks are walked over.

  block: tokens of a block. wide: blocks of keys that a step takes while there are so many.
  heads_first: keys are laid out anew, head by head, which pays where a block of keys is read by
  many; else they stay as they lie.
  """

  block: int
  wide: int
  heads_first: bool

  @property
  def query(self) -> str:
    """Axes of a block of queries: block, heads, head dimension."""
    return "hbk" if self.heads_first else "bhk"

  @property
  def key(self) -> str:
    """Axes of some keys or values: some, heads, head dimension."""
    return "hsk" if self.heads_first else "shk"


WHOLE = Form(block=BLOCK, wide=4, heads_first=True)  # all of an object, or its condition
WINDOWS = Form(block=BLOCK // 4, wide=2, heads_first=False)  # some eighty voxels a window


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


def attend_blocks(q_RLHK, k_RMHK, v_RMHK, queries: Segments, keys: Segments, *, form: Form):
  """Attention of queries to the valid keys of their own id, (R, L, H, K) in the queries' dtype.

  Zero where a query is padding or its id has no key. Lengths are multiples of the form's block.
  Products run in the operands' dtype with fp32 sums, the softmax in fp32.
  """
  rows, length, heads, head_dim = q_RLHK.shape
  block = form.block
  key_blocks = k_RMHK.shape[1] // block

  # all rows end to end: a row's blocks of keys are counted from the first row's
  first_RQ, end_RQ = block_ranges(queries, keys, block, block)
  offset_R1 = jnp.arange(rows, dtype=jnp.int32)[:, None] * key_blocks
  first_Q = (first_RQ + offset_R1).reshape(-1)
  end_Q = jnp.where(end_RQ > 0, end_RQ + offset_R1, first_RQ + offset_R1).reshape(-1)
  of_query = jnp.where(queries.valid_RL, queries.id_RL, NO_QUERY)
  of_key = jnp.where(keys.valid_RL, keys.id_RL, NO_KEY)
  plan = _Plan(
    first_Q,
    end_Q,
    of_query.reshape(-1, block),
    of_key.reshape(-1),
  )

  # blocks of queries by themselves, keys and values as one long row
  q = q_RLHK.reshape(-1, block, heads, head_dim)
  k = k_RMHK.reshape(-1, heads, head_dim)
  v = v_RMHK.reshape(-1, heads, head_dim)
  if form.heads_first:
    q, k, v = q.swapaxes(1, 2), k.swapaxes(0, 1), v.swapaxes(0, 1)
  out = _attend(form, q, k, v, plan)
  if form.heads_first:
    out = out.swapaxes(1, 2)
  return out.reshape(rows, length, heads, head_dim)


class _Plan(NamedTuple):
  """What a block of queries walks over."""

  first_Q: jax.Array  # its first block of keys
  end_Q: jax.Array  # the block after its last
  of_query_QB: jax.Array  # object of each query
  of_key_M: jax.Array  # object of each key


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: Form, q, k, v, plan: _Plan):
  """q: blocks of queries; k, v: all keys and values; axes within as `form` has them."""
  out, _ = _forward(form, q, k, v, plan)
  return out


def _forward(form: Form, q, k, v, plan: _Plan):
  """What comes out, axes as the queries', and the logarithm of each one's sum of powers, (Q, H, B).

  fp32 between the products; what is summed up over keys has heads first.
  """
  head_dim = q.shape[-1]
  heads = q.shape[1 + form.query.index("h")]
  scale = head_dim**-0.5

  def one(operands):
    q_block, first, end, of_query_B = operands

    def absorb(state, at, size):
      # logits of the next keys, lowest of all where a key is of another object
      top_HB, sum_HB, out_HBK = state
      k_some, v_some, of_key_S = _keys_at(form, k, v, plan, at, size)
      logits_HBS = _dot(f"{form.query},{form.key}->hbs", q_block, k_some) * scale
      same_BS = of_query_B[:, None] == of_key_S
      logits_HBS = jnp.where(same_BS, logits_HBS, -jnp.inf)
      # the sums so far, relative to the new maximum
      new_top_HB = jnp.maximum(top_HB, logits_HBS.max(2))
      powers_HBS = jnp.exp(logits_HBS - new_top_HB[..., None])
      fade_HB = jnp.exp(top_HB - new_top_HB)
      sum_HB = sum_HB * fade_HB + powers_HBS.sum(2)
      weighed_HBK = _dot(f"hbs,{form.key}->hbk", powers_HBS.astype(v.dtype), v_some)
      out_HBK = out_HBK * fade_HB[..., None] + weighed_HBK
      return new_top_HB, sum_HB, out_HBK

    nothing = (
      jnp.full((heads, form.block), LOWEST, jnp.float32),
      jnp.zeros((heads, form.block), jnp.float32),
      jnp.zeros((heads, form.block, head_dim), jnp.float32),
    )
    top_HB, sum_HB, out_HBK = _walk(form, absorb, nothing, first, end, plan)
    # a query without keys gets zeros
    found_HB = sum_HB > 0
    divisor_HB = jnp.where(found_HB, sum_HB, 1)
    out_HBK = out_HBK / divisor_HB[..., None]
    logsum_HB = jnp.where(found_HB, top_HB + jnp.log(divisor_HB), 0)
    out_block = jnp.einsum(f"hbk->{form.query}", out_HBK)
    return out_block.astype(q.dtype), logsum_HB

  blocks = (q, plan.first_Q, plan.end_Q, plan.of_query_QB)
  return jax.lax.map(one, blocks)


def _forward_rule(form: Form, q, k, v, plan):
  out, logsum_QHB = _forward(form, q, k, v, plan)
  # Tagged within the rule: a policy that keeps them spares a second forward pass.
  out = checkpoint_name(out, SAVED_NAME)
  logsum_QHB = checkpoint_name(logsum_QHB, SAVED_NAME)
  return out, (q, k, v, plan, out, logsum_QHB)


def _backward_rule(form: Form, residuals, bar):
  q, k, v, plan, out, logsum_QHB = residuals
  scale = q.shape[-1] ** -0.5
  # of each query, how its gradient and its result agree
  axes = f"q{form.query}"
  agree_QHB = jnp.einsum(f"{axes},{axes}->qhb", bar.astype(jnp.float32), out)

  # block after block of queries; sums of keys and values are added up in place
  def one(sums, operands):
    q_block, bar_block, logsum_HB, agree_HB, first, end, of_query_B = operands

    def absorb(state, at, size):
      q_bar, k_bar, v_bar = state
      k_some, v_some, of_key_S = _keys_at(form, k, v, plan, at, size)
      # the weights of the softmax again
      logits_HBS = _dot(f"{form.query},{form.key}->hbs", q_block, k_some) * scale
      same_BS = of_query_B[:, None] == of_key_S
      logits_HBS = jnp.where(same_BS, logits_HBS, -jnp.inf)
      weights_HBS = jnp.exp(logits_HBS - logsum_HB[..., None])
      # through the product with the values, and through the softmax
      weights_bar_HBS = _dot(f"{form.query},{form.key}->hbs", bar_block, v_some)
      logits_bar_HBS = weights_HBS * (weights_bar_HBS - agree_HB[..., None]) * scale
      logits_bar_HBS = logits_bar_HBS.astype(q.dtype)
      weights_HBS = weights_HBS.astype(q.dtype)
      # into what they were made of
      to_keys = f"hbs,{form.query}->{form.key}"
      q_bar = q_bar + _dot(f"hbs,{form.key}->{form.query}", logits_bar_HBS, k_some)
      k_bar = _add_at(form, k_bar, _dot(to_keys, logits_bar_HBS, q_block), at)
      v_bar = _add_at(form, v_bar, _dot(to_keys, weights_HBS, bar_block), at)
      return q_bar, k_bar, v_bar

    zero = jnp.zeros(q_block.shape, jnp.float32)
    q_bar, *sums = _walk(form, absorb, (zero, *sums), first, end, plan)
    return tuple(sums), q_bar.astype(q.dtype)

  zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
  blocks = (
    q,
    bar.astype(q.dtype),
    logsum_QHB,
    agree_QHB,
    plan.first_Q,
    plan.end_Q,
    plan.of_query_QB,
  )
  (k_bar, v_bar), q_bar = jax.lax.scan(one, zeros, blocks)
  return (
    q_bar,
    k_bar.astype(k.dtype),
    v_bar.astype(v.dtype),
    _no_gradient(plan),
  )


_attend.defvjp(_forward_rule, _backward_rule)


def _walk(form: Form, absorb, state, first, end, plan: _Plan):
  """`absorb` over the keys of blocks first..end, some blocks at a time and then one by one.

  The steps depend on the number of blocks alone, and read no key beyond them.
  """
  block = form.block
  wide_block = form.wide * block
  next_block = first
  keys = len(plan.of_key_M)
  if form.wide > 1 and keys >= wide_block:
    steps = (end - first) // form.wide
    begin = first * block

    def wide(step, state):
      return absorb(state, begin + step * wide_block, wide_block)

    state = jax.lax.fori_loop(0, steps, wide, state)
    next_block = first + steps * form.wide

  def narrow(at_block, state):
    return absorb(state, at_block * block, block)

  return jax.lax.fori_loop(next_block, end, narrow, state)


def _keys_at(form: Form, k, v, plan: _Plan, at, size: int):
  """Keys, values and objects of `size` keys from the slot `at`."""
  axis = form.key.index("s")
  k_some = jax.lax.dynamic_slice_in_dim(k, at, size, axis)
  v_some = jax.lax.dynamic_slice_in_dim(v, at, size, axis)
  of_key_S = jax.lax.dynamic_slice_in_dim(plan.of_key_M, at, size)
  return k_some, v_some, of_key_S


def _add_at(form: Form, total, term, at):
  """`total` over all keys, with `term` added from the slot `at`."""
  axis = form.key.index("s")
  before = jax.lax.dynamic_slice_in_dim(total, at, term.shape[axis], axis)
  return jax.lax.dynamic_update_slice_in_dim(total, before + term, at, axis)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _no_gradient(integers):
  def of_one(x):
    return np.zeros(x.shape, jax.dtypes.float0)

  return jax.tree.map(of_one, integers)
