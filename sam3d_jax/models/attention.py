"""The one attention entry point of all models."""

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

BACKENDS = ("auto", "xla", "cudnn", "splash")


def attend(q_BLHK, k_BMHK, v_BMHK, *, backend: str = "auto"):
  """Full (non-causal) scaled dot-product attention with scale 1/sqrt(K) and an fp32 softmax.

  q_BLHK, k_BMHK, v_BMHK: queries, keys and values; returns (B, L, H, K) in the queries' dtype.
  """
  if backend not in BACKENDS:
    raise ValueError(f"attention backend {backend!r} is not one of {BACKENDS}")
  scale = q_BLHK.shape[-1] ** -0.5
  logits_BHLM = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BMHK, preferred_element_type=jnp.float32) * scale
  weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1).astype(v_BMHK.dtype)
  out = jnp.einsum("bhlm,bmhk->blhk", weights_BHLM, v_BMHK)
  return checkpoint_name(out, "attention_out")
