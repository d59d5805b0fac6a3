"""Attention within packed objects: each query sees the keys of its own segment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam3d_jax.geometry.packing import WindowOrder
from sam3d_jax.models.attention import attend_xla
from sam3d_jax.models.sparse import gather


class Segments(NamedTuple):
  """Whose each position of a row is; numbers do not decrease along the row."""

  id_RL: jax.Array
  valid_RL: jax.Array


def attend_packed(
  q_RLHK, k_RMHK, v_RMHK, queries: Segments, keys: Segments, *, backend: str = "auto"
):
  """Attention of each query to the valid keys of its own segment: (R, L, H, K)."""
  del backend  # the dense form runs anywhere
  same_RLM = queries.id_RL[:, :, None] == keys.id_RL[:, None]
  mask_RLM = same_RLM & keys.valid_RL[:, None]
  return attend_xla(q_RLHK, k_RMHK, v_RMHK, mask=mask_RLM[:, None])


def attend_packed_cross(q_RLHK, k_ROSHK, v_ROSHK, queries: Segments, *, backend: str = "auto"):
  """Attention of each query to all S tokens of its own object, one of the O of its row."""
  rows, objects, tokens = k_ROSHK.shape[:3]
  number_M = jnp.repeat(jnp.arange(objects), tokens)
  id_RM = jnp.broadcast_to(number_M, (rows, objects * tokens))
  keys = Segments(id_RM, jnp.ones_like(id_RM, bool))
  flat = (rows, objects * tokens, *k_ROSHK.shape[3:])
  return attend_packed(
    q_RLHK,
    k_ROSHK.reshape(flat),
    v_ROSHK.reshape(flat),
    queries,
    keys,
    backend=backend,
  )


def attend_packed_windows(q_RVHK, k_RVHK, v_RVHK, order: WindowOrder, *, backend: str = "auto"):
  """Attention of each voxel to those of its window: (R, V, H, K)."""
  own = Segments(order.window_RV, order.valid_RV)
  out = attend_packed(
    gather(q_RVHK, order.order_RV),
    gather(k_RVHK, order.order_RV),
    gather(v_RVHK, order.order_RV),
    own,
    own,
    backend=backend,
  )
  return gather(out, order.inverse_RV)
