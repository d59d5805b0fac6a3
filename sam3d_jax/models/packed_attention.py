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
from sam3d_jax.models import packed_kernels
from sam3d_jax.models.attention import (
  BACKENDS,
  BATCH_AXES,
  HEAD_AXES,
  QUERY_AXES,
  attend_xla,
  check_cudnn,
  choose_backend,
  dividing_axes,
)
from sam3d_jax.models.block_attention import WHOLE, WINDOWS, Segments, attend_blocks
from sam3d_jax.models.platform import target_platform
from sam3d_jax.models.stack import unrolling

SPLASH_BLOCK = 512
SPLASH_CROSS_BLOCK = 256  # of queries
SPLASH_TOKENS = 1408  # of an object's condition in one block at most
WINDOW_BLOCK = 256  # of the kernels
COUNTED_WINDOW = 121  # voxels that a voxel of a surface meets, where work is counted


def attend_packed(
  q_RLHK,
  k_RMHK,
  v_RMHK,
  queries: Segments,
  keys: Segments,
  *,
  backend: str = "auto",
  objects: int | None = None,
):
  """Softmax attention with scale 1/sqrt(K) of queries to the valid keys of their own id.

  q_RLHK, k_RMHK, v_RMHK: packed rows of queries, keys and values; returns (R, L, H, K) in the
  queries' dtype. Zeros come out where a query is padding, or where its id has no valid key; pass
  the same `Segments` twice for self-attention. backend: as in `attention.attend`; "cudnn" needs a
  GPU of the Hopper generation or later. objects: ids are below it, which spares cuDNN memory; None:
  as many objects as can begin at multiples of ALIGN. Under a mesh, rows are cut over `data` and
  `fsdp`, heads over `tensor`, queries over `context`.

  Raises ValueError for an unknown backend and for queries that cuDNN has no kernel for.
  """
  backend = _chosen(backend, q_RLHK, k_RMHK)
  if objects is None:
    longest = max(q_RLHK.shape[1], k_RMHK.shape[1])
    objects = -(-longest // ALIGN)

  if unrolling():
    return _counted(q_RLHK, k_RMHK, v_RMHK, objects)

  kernels = {
    "xla": functools.partial(attend_blocks, form=WHOLE),
    "cudnn": functools.partial(packed_kernels.cudnn_packed, objects=objects),
    "splash": functools.partial(
      packed_kernels.splash_packed,
      q_block=SPLASH_BLOCK,
      k_block=SPLASH_BLOCK,
    ),
  }
  unit = ALIGN
  if backend == "splash":
    unit = SPLASH_BLOCK
  run = _on_whole_blocks(kernels[backend], q_RLHK, unit, unit)
  out_RLHK = run(q_RLHK, k_RMHK, v_RMHK, queries, keys)
  if backend == "xla":
    return out_RLHK
  seen_RL = queries.valid_RL
  if queries is not keys:
    seen_RL = seen_RL & _has_key(queries, keys)
  return _cleared(out_RLHK, seen_RL)


def attend_packed_cross(q_RLHK, k_RKSHK, v_RKSHK, queries: Segments, *, backend: str = "auto"):
  """Attention of the tokens of each object to all S condition tokens of that object.

  q_RLHK: packed rows; k_RKSHK, v_RKSHK: (R, objects, S, H, K), object by object. Returns
  (R, L, H, K), zeros where a query is padding. `backend` and ValueError: as `attend_packed`.
  """
  rows, objects, tokens, heads, head_dim = k_RKSHK.shape
  keys_RM = jax.ShapeDtypeStruct((rows, objects * tokens, heads, head_dim), k_RKSHK.dtype)
  backend = _chosen(backend, q_RLHK, keys_RM)

  if unrolling():
    k_RMHK, v_RMHK = (x.reshape(keys_RM.shape) for x in (k_RKSHK, v_RKSHK))
    return _counted(q_RLHK, k_RMHK, v_RMHK, objects)

  # whole blocks of tokens an object, so that no block holds two
  q_unit = k_unit = ALIGN
  if backend == "splash":
    q_unit = SPLASH_CROSS_BLOCK
    parts = -(-tokens // SPLASH_TOKENS)
    k_unit = _round_up(-(-tokens // parts), ALIGN)
  padded = _round_up(tokens, k_unit)
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

  kernels = {
    "xla": functools.partial(attend_blocks, form=WHOLE),
    "cudnn": functools.partial(packed_kernels.cudnn_packed, objects=objects),
    "splash": functools.partial(
      packed_kernels.splash_packed,
      q_block=q_unit,
      k_block=k_unit,
    ),
  }
  run = _on_whole_blocks(kernels[backend], q_RLHK, q_unit, k_unit)
  out_RLHK = run(q_RLHK, k_RMHK, v_RMHK, queries, keys)
  return _cleared(out_RLHK, queries.valid_RL)


def by_window(x_RV, order: WindowOrder):
  """Rows (R, V, ...) from the order of the slots to that of the windows."""
  return permute(x_RV, order.order_RV, order.inverse_RV)


def by_slot(x_RV, order: WindowOrder):
  """The way back."""
  return permute(x_RV, order.inverse_RV, order.order_RV)


def attend_packed_windows(
  q_RVHK,
  k_RVHK,
  v_RVHK,
  order: WindowOrder,
  *,
  backend: str = "auto",
  largest: int = 512,
):
  """Attention of each voxel to the voxels of its window.

  q_RVHK, k_RVHK, v_RVHK: (R, V, H, K) in the order of the slots. order: sorts them by object and
  window. Returns (R, V, H, K), zeros in padding. `backend`, `largest` and ValueError: as
  `attend_sorted_windows`.
  """
  sorted_RVHK = attend_sorted_windows(
    by_window(q_RVHK, order),
    by_window(k_RVHK, order),
    by_window(v_RVHK, order),
    order,
    backend=backend,
    largest=largest,
  )
  return by_slot(sorted_RVHK, order)


def attend_sorted_windows(
  q_RVHK,
  k_RVHK,
  v_RVHK,
  order: WindowOrder,
  *,
  backend: str = "auto",
  largest: int = 512,
):
  """Attention of each voxel to the voxels of its window, all in the order of the windows.

  Returns (R, V, H, K), zeros in padding. largest: most voxels that a window can have, 512
  of 8^3; the kernels look no further, and give NaN everywhere rather than lose a voxel of a larger
  one. `backend` and ValueError: as `attend_packed`.
  """
  backend = _chosen(backend, q_RVHK, k_RVHK)
  windows = Segments(order.window_RV, order.valid_RV)
  if unrolling():
    return _counted(q_RVHK, k_RVHK, v_RVHK, -(-q_RVHK.shape[1] // COUNTED_WINDOW))

  # A window that begins in a block of queries, or ends in one, reaches that many blocks beyond it.
  reach = 1 + 2 * -(-(largest - 1) // WINDOW_BLOCK)

  kernels = {
    "xla": functools.partial(attend_blocks, form=WINDOWS),
    "cudnn": functools.partial(
      packed_kernels.cudnn_nearby,
      block=WINDOW_BLOCK,
      reach=reach,
    ),
    "splash": functools.partial(
      packed_kernels.splash_packed,
      q_block=WINDOW_BLOCK,
      k_block=WINDOW_BLOCK,
      reach=reach,
    ),
  }
  unit = ALIGN
  if backend != "xla":
    unit = WINDOW_BLOCK
  # cuDNN's blocks of queries and of keys lie side by side, and stay so
  cut_queries = backend != "cudnn"
  run = _on_whole_blocks(kernels[backend], q_RVHK, unit, unit, cut_queries)

  sorted_RVHK = run(q_RVHK, k_RVHK, v_RVHK, windows, windows)
  if backend != "xla":
    sorted_RVHK = _cleared(sorted_RVHK, windows.valid_RL)
    fits = _largest_run(windows) <= largest
    sorted_RVHK = jnp.where(fits, sorted_RVHK, jnp.nan)
  return sorted_RVHK


def _largest_run(windows: Segments):
  """Valid tokens of the id that has most of them."""
  # A run longer than n has the same id n tokens apart; counted by where each token's run began.
  id_RL, valid_RL = windows
  position_L = jnp.arange(id_RL.shape[1])
  changes_RL = jnp.diff(id_RL, axis=1, prepend=-1) != 0
  began_RL = jax.lax.cummax(jnp.where(changes_RL, position_L, 0), axis=1)
  so_far_RL = position_L - began_RL + 1
  return jnp.where(valid_RL, so_far_RL, 0).max()


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


def _counted(q_RLHK, k_RMHK, v_RMHK, parts: int):
  """The work of `parts` equal objects that fill a row: for programs that are only counted.

  XLA's analysis sees no loop whose length depends on data, and would count all pairs of a row.
  """
  rows, length = q_RLHK.shape[:2]

  def cut(x_RLHK):
    missing = -x_RLHK.shape[1] % parts
    padded = jnp.pad(x_RLHK, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return padded.reshape(rows * parts, -1, *x_RLHK.shape[2:])

  out = attend_xla(cut(q_RLHK), cut(k_RMHK), cut(v_RMHK))
  return out.reshape(rows, -1, *q_RLHK.shape[2:])[:, :length]


def _chosen(backend: str, q_RLHK, k_RMHK) -> str:
  """The backend by its name. Raises ValueError for one that is not, or has no kernel for this."""
  if backend not in BACKENDS:
    raise ValueError(f"attention backend {backend!r} is not one of {BACKENDS}")
  if backend == "auto":
    return choose_backend(target_platform(), q_RLHK, k_RMHK)
  if backend == "cudnn":
    check_cudnn(q_RLHK)
  return backend


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _has_key(queries: Segments, keys: Segments):
  """(R, L), whether a query's id has a valid key. Compares all pairs, and keeps none."""
  same_RLM = queries.id_RL[:, :, None] == keys.id_RL[:, None]
  return (same_RLM & keys.valid_RL[:, None]).any(2)


def _cleared(x_RLHK, seen_RL):
  """Zero where nothing was to be seen; nothing flows back from there either."""
  return jnp.where(seen_RL[:, :, None, None], x_RLHK, 0)


def _on_whole_blocks(kernel, q_RLHK, q_unit: int, k_unit: int, cut_queries: bool = True):
  """`kernel` on each shard of the ambient mesh, on rows padded to whole blocks of the units."""

  def padded(q_RLHK, k_RMHK, v_RMHK, queries, keys):
    length = q_RLHK.shape[1]
    out_RLHK = kernel(
      _whole_blocks(q_RLHK, q_unit),
      _whole_blocks(k_RMHK, k_unit),
      _whole_blocks(v_RMHK, k_unit),
      Segments(*(_whole_blocks(x, q_unit) for x in queries)),
      Segments(*(_whole_blocks(x, k_unit) for x in keys)),
    )
    return out_RLHK[:, :length]

  return _mapped(padded, q_RLHK, cut_queries)


def _whole_blocks(x_RL, unit: int):
  """Rows (R, L, ...) continued with zeros, padding by their mask, to whole blocks.

  Of ALIGN where a row is shorter than `unit`.
  """
  length = x_RL.shape[1]
  whole = min(unit, _round_up(length, ALIGN))
  missing = -length % whole
  if missing == 0:
    return x_RL
  others = ((0, 0),) * (x_RL.ndim - 2)
  return jnp.pad(x_RL, ((0, 0), (0, missing), *others))


def _mapped(kernel, q_RLHK, cut_queries: bool):
  """`kernel` mapped over the shards of the ambient mesh; unchanged without a mesh.

  The compiler cannot cut a loop over blocks by itself. Every shard holds the keys of its rows and
  heads whole. An axis that does not divide its dimension is left out, and the queries stay whole
  unless `cut_queries`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel
  rows, length, head_count = q_RLHK.shape[:3]
  batch = dividing_axes(mesh, BATCH_AXES, rows)
  heads = dividing_axes(mesh, HEAD_AXES, head_count)
  context = ()
  if cut_queries:
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
