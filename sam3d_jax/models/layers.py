"""Layers shared by every model.

Parameters are fp32, matrix products run in a compute dtype, the numerically delicate rest in fp32.
"""

from collections.abc import Callable, Sequence
import contextlib
import contextvars
import functools
import math

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.attention import keep_attention

REMAT_POLICIES = ("none", "operands", "dots", "attention", "full")
OPERAND = "operand"  # tags what the policy "operands" keeps


def xavier_uniform(key, shape_in, shape_out):
  """Xavier-uniform kernel (*shape_in, *shape_out), fans counted over the flattened sides."""
  bound = math.sqrt(6.0 / (math.prod(shape_in) + math.prod(shape_out)))
  return jax.random.uniform(key, (*shape_in, *shape_out), jnp.float32, -bound, bound)


class Dense(nnx.Module):
  """Affine map over the trailing dimensions: (..., *d_in) -> (..., *d_out).

  `kernel` is (*d_in, *d_out) and `bias` (*d_out,), both fp32; the product runs in `dtype` with fp32
  accumulation.
  """

  def __init__(
    self,
    d_in: int | Sequence[int],
    d_out: int | Sequence[int],
    *,
    rngs: nnx.Rngs,
    dtype=jnp.float32,
    bias: bool = True,
    zero: bool = False,
  ):
    d_in = (d_in,) if isinstance(d_in, int) else tuple(d_in)
    d_out = (d_out,) if isinstance(d_out, int) else tuple(d_out)
    if zero:
      kernel = jnp.zeros((*d_in, *d_out), jnp.float32)
    else:
      kernel = xavier_uniform(rngs.params(), d_in, d_out)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(jnp.zeros(d_out, jnp.float32)) if bias else None
    self.dims_in = len(d_in)
    self.dtype = dtype

  def __call__(self, x):
    bias = None if self.bias is None else self.bias[...]
    return self._affine(x, self.kernel[...], bias)

  def parts(self, x, biased: Sequence[bool] | None = None):
    """Its result cut along the first output dimension, each part a product of its own.

    d_out[0] arrays (..., *d_out[1:]), for queries, keys and values: cutting one product's result
    would copy every part, and joining their gradients once more. `biased` says which parts get
    their bias, by default all: adding one is a pass over the part.
    """
    kernels = jnp.unstack(self.kernel[...], axis=self.dims_in)
    count = len(kernels)
    biases = [None] * count if self.bias is None else jnp.unstack(self.bias[...])
    biased = [True] * count if biased is None else biased
    results = []
    for kernel, bias, wanted in zip(kernels, biases, biased, strict=True):
      results.append(self._affine(x, kernel, bias if wanted else None))
    return tuple(results)

  def of_sum(self, x, offset):
    """Its result for x + offset, `offset` (*d_in,) joined to the bias instead of added to x."""
    along = tuple(range(self.dims_in))
    own_bias = 0.0 if self.bias is None else self.bias[...]
    bias = jnp.tensordot(offset, self.kernel[...], (along, along)) + own_bias
    return self._affine(x, self.kernel[...], bias)

  def _affine(self, x, kernel, bias):
    n = self.dims_in
    contract = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (contract, ((), ())))
    return y if bias is None else y + bias.astype(self.dtype)


class LayerNorm(nnx.Module):
  """Layer norm over the last axis, computed in fp32 and returned in the input's dtype.

  Without `affine` it has no parameters.
  """

  def __init__(self, dim: int, *, eps: float, affine: bool = True):
    self.eps = eps
    self.scale = nnx.Param(jnp.ones(dim, jnp.float32)) if affine else None
    self.bias = nnx.Param(jnp.zeros(dim, jnp.float32)) if affine else None

  def __call__(self, x):
    y = layer_norm(x, self.eps)
    if self.scale is not None:
      y = y * self.scale[...] + self.bias[...]
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def layer_norm(x, eps: float):
  """Parameter-free layer norm over the last axis; always returns fp32."""
  return _layer_norm_forward(x, eps)[0]


def _layer_norm_forward(x, eps):
  wide = x.astype(jnp.float32)
  mean = wide.mean(-1, keepdims=True)
  inverse_std = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + eps)
  return (wide - mean) * inverse_std, (x, mean, inverse_std)


def _layer_norm_backward(eps, saved, gradient):
  """d x = (g - mean(g) - y mean(g y)) / std.

  Two reductions a row, where derivatives taken step by step need four.
  """
  del eps
  x, mean, inverse_std = saved
  y = (x.astype(jnp.float32) - mean) * inverse_std
  mean_gradient = gradient.mean(-1, keepdims=True)
  mean_product = (gradient * y).mean(-1, keepdims=True)
  centred = gradient - mean_gradient - y * mean_product
  return ((centred * inverse_std).astype(x.dtype),)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class HeadRMSNorm(nnx.Module):
  """RMS norm over the head dimension with a gain per head, in fp32, returned in the input's dtype.

  y = x / max(|x|, 1e-12) * sqrt(K) * scale, the floor written on the squared norm so that the
  gradient at x = 0 is finite.
  """

  def __init__(self, heads: int, head_dim: int):
    self.scale = nnx.Param(jnp.ones((heads, head_dim), jnp.float32))

  def __call__(self, x_BLHK):
    x = x_BLHK.astype(jnp.float32)
    squared_norm = jnp.square(x).sum(-1, keepdims=True)
    unit = x * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-24))
    return (unit * self.scale[...] * math.sqrt(x.shape[-1])).astype(x_BLHK.dtype)


class MLP(nnx.Module):
  """Linear, GELU, linear. `exact_gelu` chooses erf over the tanh approximation."""

  def __init__(
    self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype=jnp.float32, exact_gelu: bool = False
  ):
    self.up = Dense(width, hidden, rngs=rngs, dtype=dtype)
    self.down = Dense(hidden, width, rngs=rngs, dtype=dtype)
    self.exact_gelu = exact_gelu

  def __call__(self, x_BLD):
    return self.down(operand(gelu(self.up(x_BLD), exact=self.exact_gelu)))


def gelu(x, *, exact: bool):
  """x Phi(x) (Hendrycks and Gimpel 2016), with Phi by erf or by the tanh approximation.

  Computed in fp32, returned in the dtype of x.
  """
  return _gelu(x, exact)


SQRT_HALF = math.sqrt(0.5)
TANH_SLOPE = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x, exact):
  wide = x.astype(jnp.float32)
  if exact:
    odd = jax.lax.erf(wide * SQRT_HALF)
  else:
    odd = jnp.tanh(TANH_SLOPE * (wide + TANH_CUBIC * wide * wide * wide))
  return (0.5 * wide * (1 + odd)).astype(x.dtype)


def _gelu_backward(exact, x, gradient):
  """One pass over x and the gradient, in fp32.

  Derivatives taken step by step would be rounded to the dtype of x at each. 0.5 (1 + tanh u) is
  written as sigmoid(2 u): were it the forward pass's expression, compilers would keep its fp32
  value for this.
  """
  wide = x.astype(jnp.float32)
  if exact:
    cdf = 0.5 * jax.lax.erfc(-wide * SQRT_HALF)
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
  else:
    cdf = jax.nn.sigmoid(2 * TANH_SLOPE * (wide + TANH_CUBIC * wide * wide * wide))
    density = 2 * cdf * (1 - cdf) * TANH_SLOPE * (1 + 3 * TANH_CUBIC * wide * wide)
  return ((gradient.astype(jnp.float32) * (cdf + wide * density)).astype(x.dtype),)


_gelu.defvjp(lambda x, exact: (_gelu(x, exact), x), _gelu_backward)


class TimestepEmbedder(nnx.Module):
  """Scalars (N,), in the sinusoid's own units (here time * 1000), to embeddings (N, width) fp32.

  `zero` starts the last layer at zero, so that an embedder added to a trained model changes nothing
  at first.
  """

  def __init__(self, width: int, *, rngs: nnx.Rngs, frequencies: int = 256, zero: bool = False):
    self.frequencies = frequencies
    self.hidden = Dense(frequencies, width, rngs=rngs)
    self.out = Dense(width, width, rngs=rngs, zero=zero)

  def __call__(self, t_N):
    return self.out(jax.nn.silu(self.hidden(sinusoid(t_N, self.frequencies))))


def sinusoid(t_N, dim: int, max_period: float = 10_000.0):
  """Sinusoidal embedding (N,) -> (N, dim) (Vaswani et al. 2017, 3.5).

  Cosines first, then sines; an odd `dim` ends in a zero.
  """
  half = dim // 2
  frequencies = np.exp(-math.log(max_period) * np.arange(half) / half).astype(np.float32)
  angles = t_N.astype(jnp.float32)[:, None] * frequencies
  waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  return jnp.pad(waves, ((0, 0), (0, dim % 2)))


def position_sincos(coords_LA, dim: int):
  """Absolute position embedding of coordinates (L, axes) -> (L, dim) fp32.

  Each axis in turn contributes [sin(x f), cos(x f)] with f = 10000^(-i / n), n = dim // axes // 2;
  the rest is zero.
  """
  axes = coords_LA.shape[-1]
  n = dim // axes // 2
  frequencies = (10_000.0 ** (-np.arange(n) / n)).astype(np.float32)
  angles = coords_LA.astype(jnp.float32)[..., None] * frequencies
  waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  used = axes * 2 * n
  table = waves.reshape(len(coords_LA), used)
  return jnp.pad(table, ((0, 0), (0, dim - used)))


def grid_positions(resolution: int):
  """Integer coordinates (resolution^3, 3) of a cubic grid in token order: x slowest, z fastest."""
  axis = np.arange(resolution, dtype=np.int32)
  xyz = np.meshgrid(axis, axis, axis, indexing="ij")
  return np.stack(xyz, axis=-1).reshape(-1, 3)


class Stack(nnx.Module):
  """`depth` equal layers with stacked parameters, applied with one scan.

  Compile time and HLO size do not grow with depth. With `unroll` they do; in return what the
  backward pass needs is not copied into and out of stacks.

  `make(rngs)` builds one layer; parameters live under `layer/` with a leading axis of size `depth`.
  The layer is called as `layer(carry, *shared)` and returns the next carry.
  """

  def __init__(
    self,
    make: Callable[[nnx.Rngs], nnx.Module],
    depth: int,
    *,
    rngs: nnx.Rngs,
    remat: str = "none",
    unroll: bool = False,
  ):
    self.depth = depth
    self.remat = remat
    self.unroll = unroll
    keys = jax.random.split(rngs.params(), depth)
    self.layer = nnx.vmap(lambda key: make(nnx.Rngs(key)), in_axes=0, out_axes=0)(keys)

  def __call__(self, carry, *shared):
    graph, params = nnx.split(self.layer)
    if self.unroll:
      params = jax.tree.map(stacked_gradient, params)

    def body(carry, layer_params):
      return nnx.merge(graph, layer_params)(carry, *shared), None

    body = rematerialise(body, self.remat, looped=not self.unroll)
    layers_a_turn = self.depth if self.unroll or _unroll.get() else 1
    carry, _ = jax.lax.scan(body, carry, params, unroll=layers_a_turn)
    return carry


@jax.custom_vjp
def stacked_gradient(x):
  """x, whose gradient is written out as one array.

  Gathering it from its layers element by element, wherever it is used, is slow.
  """
  return x


stacked_gradient.defvjp(
  lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),)
)


_unroll = contextvars.ContextVar("unroll", default=False)


@contextlib.contextmanager
def unrolled():
  """Within it stacks are traced layer by layer.

  XLA's cost analysis counts the body of a loop once, however often it runs.
  """
  token = _unroll.set(True)
  try:
    yield
  finally:
    _unroll.reset(token)


def operand(x, dtype=None):
  """x, in `dtype` if one is given, tagged as something that the backward pass reads.

  The policy "operands" keeps it.
  """
  read = x if dtype is None else x.astype(dtype)
  return checkpoint_name(read, OPERAND)


def rematerialise(fn, policy: str, *, looped: bool = True):
  """Wraps `fn` in a named rematerialisation policy: what is kept for the backward pass.

  From most memory to least:

  none: every intermediate.
  operands: attention, matrix products, and what is tagged as their operand, so that nothing but
    single fused passes is computed again.
  dots: attention, and matrix products without batch dimensions.
  attention: attention alone, the most expensive product.
  full: only the inputs.

  `looped`: `fn` is the body of a loop, where the compiler cannot find out that it computes
  something again, and undo it.
  """
  if policy not in REMAT_POLICIES:
    raise ValueError(f"remat policy {policy!r} is not one of {REMAT_POLICIES}")
  if policy == "none":
    return fn
  policies = jax.checkpoint_policies
  dots = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, keep_attention)
  kept = {
    "operands": policies.save_from_both_policies(dots, policies.save_only_these_names(OPERAND)),
    "dots": dots,
    "attention": keep_attention,
    "full": policies.nothing_saveable,
  }[policy]
  return jax.checkpoint(fn, prevent_cse=not looped, policy=kept)
