"""Attention of objects that are packed into rows: each token sees the tokens of its own object.

Three forms of it: full attention within an object, cross-attention of an object to its condition,
and attention within the windows of an object. Each runs on the backends of `attention`: blocks in
plain XLA that skip what is not theirs (`block_attention`), cuDNN's packed layout, and TPU splash
attention with a grid that skips (`packed_kernels`).

Segments are runs: ids do not decrease along a row. Objects begin at multiples of ALIGN slots, so
that on "xla" an object's result does not depend, to the bit, on its place, its neighbours or the
padding.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from sam3d_jax.geometry.packing import BLOCK as ALIGN
from sam3d_jax.geometry.packing import WindowOrder
from sam3d_jax.models.attention import (
  BACKENDS,
  BATCH_AXES,
  HEAD_AXES,
  QUERY_AXES,
  choose_backend,
  dividing_axes,
)
from sam3d_jax.models.block_attention import Segments, attend_blocks
from sam3d_jax.models.platform import target_platform

WINDOW_BLOCK = 64  # of plain XLA: windows hold some eighty voxels
LARGEST_WINDOW = 512  # voxels of a full window of 8^3


def attend_packed(
  q_RLHK,
  k_RMHK,
  v_RMHK,
  queries: Segments,
  keys: Segments,
  *,
  backend: str = "auto",
):
  """Softmax attention with scale 1/sqrt(K) of queries to the valid keys of their own id.

  q_RLHK, k_RMHK, v_RMHK: packed rows of queries, keys and values; returns (R, L, H, K) in the
  queries' dtype. Zeros come out where a query is padding, or where its id has no valid key; pass
  the same `Segments` twice for self-attention. backend: as in `attention.attend`. Under a mesh,
  rows are cut over `data` and `fsdp`, heads over `tensor`, queries over `context`.

  Raises ValueError for an unknown backend.
  """
  return _attend(q_RLHK, k_RMHK, v_RMHK, queries, keys, backend=backend, block=ALIGN)


def attend_packed_cross(q_RLHK, k_RKSHK, v_RKSHK, queries: Segments, *, backend: str = "auto"):
  """Attention of the tokens of each object to all S condition tokens of that object.

  q_RLHK: packed rows; k_RKSHK, v_RKSHK: (R, objects, S, H, K), object by object. Returns
  (R, L, H, K), zeros where a query is padding. `backend` and ValueError: as `attend_packed`.
  """
  rows, objects, tokens, heads, head_dim = k_RKSHK.shape
  # whole blocks of tokens an object, so that no block holds two
  padded = -(-tokens // ALIGN) * ALIGN
  margin = ((0, 0), (0, 0), (0, padded - tokens), (0, 0), (0, 0))
  whole = (rows, objects * padded, heads, head_dim)
  k_RMHK = jnp.pad(k_RKSHK, margin).reshape(whole)
  v_RMHK = jnp.pad(v_RKSHK, margin).reshape(whole)
  # whose they are: constants
  of_object_M = np.repeat(np.arange(objects, dtype=np.int32), padded)
  is_token_M = np.tile(np.arange(padded) < tokens, objects)
  keys = Segments(
    jnp.broadcast_to(of_object_M, (rows, objects * padded)),
    jnp.broadcast_to(is_token_M, (rows, objects * padded)),
  )
  return _attend(q_RLHK, k_RMHK, v_RMHK, queries, keys, backend=backend, block=ALIGN)


def attend_packed_windows(q_RVHK, k_RVHK, v_RVHK, order: WindowOrder, *, backend: str = "auto"):
  """Attention of each voxel to the voxels of its window, exact for any occupancy.

  q_RVHK, k_RVHK, v_RVHK: (R, V, H, K) in the order of the slots. order: a `packing.WindowOrder`,
  which sorts them by object and window. Returns (R, V, H, K), zeros in padding. `backend` and
  ValueError: as `attend_packed`.
  """
  windows = Segments(order.window_RV, order.valid_RV)

  def by_window(x_RVHK):
    return permute(x_RVHK, order.order_RV, order.inverse_RV)

  sorted_RVHK = _attend(
    by_window(q_RVHK),
    by_window(k_RVHK),
    by_window(v_RVHK),
    windows,
    windows,
    backend=backend,
    block=WINDOW_BLOCK,
  )
  return permute(sorted_RVHK, order.inverse_RV, order.order_RV)


@jax.custom_vjp
def permute(x_RV, order_RV, inverse_RV):
  """x_RV[r, order_RV[r, v]] for rows (R, V, ...); its gradient gathers by the inverse."""
  return _take(x_RV, order_RV)


def _take(x_RV, order_RV):
  def row(x_V, order_V):
    return x_V.at[order_V].get(mode="promise_in_bounds", unique_indices=True)

  return jax.vmap(row)(x_RV, order_RV)


def _permute_forward(x_RV, order_RV, inverse_RV):
  return _take(x_RV, order_RV), (order_RV, inverse_RV)


def _permute_backward(orders, bar_RV):
  order_RV, inverse_RV = orders
  no_gradient = np.zeros(order_RV.shape, jax.dtypes.float0)
  return _take(bar_RV, inverse_RV), no_gradient, no_gradient


permute.defvjp(_permute_forward, _permute_backward)


def _attend(q_RLHK, k_RMHK, v_RMHK, queries: Segments, keys: Segments, *, backend: str, block: int):
  if backend not in BACKENDS:
    raise ValueError(f"attention backend {backend!r} is not one of {BACKENDS}")
  if backend == "auto":
    backend = choose_backend(target_platform(), q_RLHK, k_RMHK)
  # until its kernels have segments
  backend = "xla"
  kernel = functools.partial(_xla, block=block)
  return _mapped(kernel, q_RLHK)(q_RLHK, k_RMHK, v_RMHK, queries, keys)


def _xla(q_RLHK, k_RMHK, v_RMHK, queries: Segments, keys: Segments, *, block: int):
  """`attend_blocks` on rows padded to whole blocks of ALIGN."""
  length = q_RLHK.shape[1]
  out_RLHK = attend_blocks(
    _whole_blocks(q_RLHK),
    _whole_blocks(k_RMHK),
    _whole_blocks(v_RMHK),
    Segments(*map(_whole_blocks, queries)),
    Segments(*map(_whole_blocks, keys)),
    block=block,
  )
  return out_RLHK[:, :length]


def _whole_blocks(x_RL):
  """Rows (R, L, ...) continued to a multiple of ALIGN with zeros, which are padding as ids go."""
  missing = -x_RL.shape[1] % ALIGN
  if missing == 0:
    return x_RL
  others = ((0, 0),) * (x_RL.ndim - 2)
  return jnp.pad(x_RL, ((0, 0), (0, missing), *others))


def _mapped(kernel, q_RLHK):
  """`kernel` mapped over the shards of the ambient mesh; unchanged without a mesh.

  The compiler cannot cut a loop over blocks by itself. Every shard holds the keys of its rows and
  heads whole. An axis that does not divide its dimension is left out.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel
  rows, length, head_count = q_RLHK.shape[:3]
  batch = dividing_axes(mesh, BATCH_AXES, rows)
  heads = dividing_axes(mesh, HEAD_AXES, head_count)
  context = dividing_axes(mesh, QUERY_AXES, length)
  queries = P(batch, context, heads)
  keys = P(batch, None, heads)
  of_queries = Segments(P(batch, context), P(batch, context))
  of_keys = Segments(P(batch), P(batch))
  return jax.shard_map(
    kernel,
    in_specs=(queries, keys, keys, of_queries, of_keys),
    out_specs=queries,
    check_vma=False,
  )
