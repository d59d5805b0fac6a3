"""Layers shared by every model: parameters in fp32, matrix products in a compute dtype, the numerically delicate rest in fp32."""

from collections.abc import Callable, Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp

REMAT_POLICIES = ("none", "full", "dots", "attention")


def xavier_uniform(key, shape_in, shape_out):
  """Xavier-uniform kernel of shape (*shape_in, *shape_out), fans counted over the flattened sides."""
  bound = math.sqrt(6.0 / (math.prod(shape_in) + math.prod(shape_out)))
  return jax.random.uniform(key, (*shape_in, *shape_out), jnp.float32, -bound, bound)


class Dense(nnx.Module):
  """Affine map over the trailing dimensions: (..., *d_in) -> (..., *d_out).

  `kernel` is (*d_in, *d_out) and `bias` (*d_out,), both fp32; the product runs in `dtype` with fp32 accumulation.
  """

  def __init__(self, d_in: int | Sequence[int], d_out: int | Sequence[int], *, rngs: nnx.Rngs, dtype=jnp.float32,
               bias: bool = True, zero: bool = False):
    d_in = (d_in,) if isinstance(d_in, int) else tuple(d_in)
    d_out = (d_out,) if isinstance(d_out, int) else tuple(d_out)
    kernel = jnp.zeros((*d_in, *d_out), jnp.float32) if zero else xavier_uniform(rngs.params(), d_in, d_out)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(jnp.zeros(d_out, jnp.float32)) if bias else None
    self.dims_in, self.dtype = len(d_in), dtype

  def __call__(self, x):
    n = self.dims_in
    contract = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    y = jax.lax.dot_general(x.astype(self.dtype), self.kernel[...].astype(self.dtype), (contract, ((), ())))
    return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
  """Layer norm over the last axis, computed in fp32 and returned in the input's dtype. Without `affine` it has no parameters."""

  def __init__(self, dim: int, *, eps: float, affine: bool = True):
    self.eps = eps
    self.scale = nnx.Param(jnp.ones(dim, jnp.float32)) if affine else None
    self.bias = nnx.Param(jnp.zeros(dim, jnp.float32)) if affine else None

  def __call__(self, x):
    y = layer_norm(x, self.eps)
    if self.scale is not None:
      y = y * self.scale[...] + self.bias[...]
    return y.astype(x.dtype)


def layer_norm(x, eps: float):
  """Parameter-free layer norm over the last axis; always returns fp32."""
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  var = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(var + eps)


class Stack(nnx.Module):
  """`depth` equal layers with stacked parameters, applied with one scan: compile time and HLO size do not grow with depth.

  `make(rngs)` builds one layer; parameters live under `layer/` with a leading axis of size `depth`. The layer is called as
  `layer(carry, *shared)` and returns the next carry.
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs, remat: str = "none"):
    self.depth, self.remat = depth, remat
    keys = jax.random.split(rngs.params(), depth)
    self.layer = nnx.vmap(lambda key: make(nnx.Rngs(key)), in_axes=0, out_axes=0)(keys)

  def __call__(self, carry, *shared):
    graph, params = nnx.split(self.layer)

    def body(carry, layer_params):
      return nnx.merge(graph, layer_params)(carry, *shared), None

    return jax.lax.scan(rematerialise(body, self.remat), carry, params)[0]


def rematerialise(fn, policy: str):
  """Wraps `fn` in a named rematerialisation policy.

  none: keep every intermediate. full: keep only the inputs. dots: keep matrix products without batch dimensions.
  attention: keep only what is tagged "attention_out", so that the most expensive product is not recomputed.
  """
  if policy == "none":
    return fn
  if policy == "full":
    return jax.checkpoint(fn, prevent_cse=False)
  if policy == "dots":
    return jax.checkpoint(fn, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
  if policy == "attention":
    return jax.checkpoint(fn, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names("attention_out"))
  raise ValueError(f"remat policy {policy!r} is not one of {REMAT_POLICIES}")
