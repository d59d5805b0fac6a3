"""Self- and cross-attention of the flow models, with their projections."""

from flax import nnx
import jax.numpy as jnp

from sam3d_jax.models.attention import attend, attend_rows
from sam3d_jax.models.layers import Dense, HeadRMSNorm
from sam3d_jax.models.stack import operand


class SelfAttention(nnx.Module):
  """Projections of a self-attention.

  `qkv/kernel` is (D, 3, H, K) and `out/kernel` (H, K, D), so that heads can be sharded.
  """

  def __init__(self, width: int, heads: int, *, qk_rms_norm: bool, dtype, rngs: nnx.Rngs):
    # Heads as dimensions of their own, so that a mesh can split them.
    head_dim = width // heads
    self.qkv = Dense(
      width,
      (3, heads, head_dim),
      dtype=dtype,
      rngs=rngs,
    )
    self.out = Dense(
      (heads, head_dim),
      width,
      dtype=dtype,
      rngs=rngs,
    )
    if qk_rms_norm:
      self.q_norm = HeadRMSNorm(heads, head_dim)
      self.k_norm = HeadRMSNorm(heads, head_dim)
    else:
      self.q_norm = None
      self.k_norm = None

  def project(self, x_BLD):
    """Queries, keys and values, each (B, L, H, K)."""
    q, k, v = self.qkv.parts(x_BLD)
    # Norms over the head dimension keep the logits bounded (SD3, arXiv 2403.03206).
    if self.q_norm is not None:
      q = self.q_norm(q)
      k = self.k_norm(k)
    return operand(q), operand(k), operand(v)


class CrossAttention(nnx.Module):
  """Attention of x (B, L, D) to condition tokens (B, S, D).

  `absorb_kv` chooses between two forms of the same function. With weights w = softmax_S(q . k),
  k = W_k c + b_k and v = W_v c + b_v, the absorbed form uses q . k = (W_k^T q) . c + q . b_k, whose
  last term is the same for all tokens and drops out of the softmax, and
  sum_S w v = W_v (sum_S w c) + b_v. It never projects the tokens: cheaper while there are fewer
  queries than D / H.
  """

  def __init__(
    self,
    width: int,
    cond_width: int,
    heads: int,
    *,
    absorb_kv: bool,
    dtype,
    attention: str,
    rngs: nnx.Rngs,
    qk_rms_norm: bool = False,
  ):
    if absorb_kv and qk_rms_norm:
      raise ValueError(
        "absorb_kv needs keys that are linear in the tokens: qk_rms_norm rules it out"
      )
    head_dim = width // heads
    # Queries from the model, keys and values from the condition.
    self.q = Dense(
      width,
      (heads, head_dim),
      dtype=dtype,
      rngs=rngs,
    )
    self.kv = Dense(
      cond_width,
      (2, heads, head_dim),
      dtype=dtype,
      rngs=rngs,
    )
    self.out = Dense(
      (heads, head_dim),
      width,
      dtype=dtype,
      rngs=rngs,
    )
    if qk_rms_norm:
      self.q_norm = HeadRMSNorm(heads, head_dim)
      self.k_norm = HeadRMSNorm(heads, head_dim)
    else:
      self.q_norm = None
      self.k_norm = None
    self.absorb_kv = absorb_kv
    self.dtype = dtype
    self.attention = attention

  def __call__(self, x_BLD, tokens_BSD):
    q_BLHK = operand(self.q(x_BLD))
    v_bias_HK = self.kv.bias[...][1]
    if self.absorb_kv:
      tokens_BSD = tokens_BSD.astype(self.dtype)
      attended_BLHK = self._attend_absorbed(q_BLHK, tokens_BSD)
      return self.out.of_sum(attended_BLHK, v_bias_HK)

    # without a norm the keys' bias cancels in the softmax
    normed = self.q_norm is not None
    k, v = self.kv.parts(tokens_BSD, biased=(normed, False))
    if normed:
      q_BLHK = self.q_norm(q_BLHK)
      k = self.k_norm(k)
    attended_BLHK = attend(
      q_BLHK,
      k,
      v,
      backend=self.attention,
    )
    return self.out.of_sum(attended_BLHK, v_bias_HK)

  def _attend_absorbed(self, q_BLHK, tokens_BSD):
    # (D, 2, H, K): keys, then values.
    kernel = self.kv.kernel[...].astype(self.dtype)
    k_kernel_DHK, v_kernel_DHK = jnp.unstack(kernel, axis=1)
    # the key projection goes to the queries, one row a query and head
    queries_BLHD = jnp.einsum("blhk,dhk->blhd", q_BLHK, k_kernel_DHK)
    batch, length, heads, width = queries_BLHD.shape
    rows_BRD = queries_BLHD.reshape(batch, length * heads, width)
    # Tokens are keys and values as they are, shared by all heads.
    mixed_BRD = attend_rows(
      rows_BRD,
      (tokens_BSD,),
      (tokens_BSD,),
      scale=q_BLHK.shape[-1] ** -0.5,
    )
    # the value projection goes to the mixtures
    mixed_BLHD = mixed_BRD.reshape(queries_BLHD.shape)
    return jnp.einsum("blhd,dhk->blhk", mixed_BLHD, v_kernel_DHK)
