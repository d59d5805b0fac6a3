"""Layers shared by every model.

Parameters are fp32, matrix products run in a compute dtype, the numerically delicate rest in fp32.
"""

from collections.abc import Sequence
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.models.stack import operand


def xavier_uniform(key, shape_in, shape_out):
  """Xavier-uniform kernel (*shape_in, *shape_out), fans counted over the flattened sides."""
  # Glorot & Bengio 2010, eq. 16.
  fan_in = math.prod(shape_in)
  fan_out = math.prod(shape_out)
  bound = math.sqrt(6.0 / (fan_in + fan_out))
  return jax.random.uniform(
    key,
    (*shape_in, *shape_out),
    jnp.float32,
    minval=-bound,
    maxval=bound,
  )


def as_dims(size: int | Sequence[int]) -> tuple[int, ...]:
  """One dimension or several, as a tuple."""
  if isinstance(size, int):
    return (size,)
  return tuple(size)


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
    # Several dimensions a side, so that heads need no reshape.
    d_in = as_dims(d_in)
    d_out = as_dims(d_out)
    if zero:
      kernel = jnp.zeros((*d_in, *d_out), jnp.float32)
    else:
      kernel = xavier_uniform(rngs.params(), d_in, d_out)
    self.kernel = nnx.Param(kernel)
    if bias:
      self.bias = nnx.Param(jnp.zeros(d_out, jnp.float32))
    else:
      self.bias = None
    self.dims_in = len(d_in)
    self.dtype = dtype

  def __call__(self, x):
    if self.bias is None:
      bias = None
    else:
      bias = self.bias[...]
    return self._affine(x, self.kernel[...], bias)

  def parts(self, x, biased: Sequence[bool] | None = None):
    """Its result cut along the first output dimension, each part a product of its own.

    d_out[0] arrays (..., *d_out[1:]), for queries, keys and values: cutting one product's result
    would copy every part, and joining their gradients once more. `biased` says which parts get
    their bias, by default all: adding one is a pass over the part.
    """
    # one kernel and one bias a part
    kernels = jnp.unstack(self.kernel[...], axis=self.dims_in)
    count = len(kernels)
    if self.bias is None:
      biases = [None] * count
    else:
      biases = jnp.unstack(self.bias[...])
    if biased is None:
      biased = [True] * count

    # one product a part
    results = []
    for kernel, bias, wanted in zip(kernels, biases, biased, strict=True):
      if not wanted:
        bias = None
      part = self._affine(x, kernel, bias)
      results.append(part)
    return tuple(results)

  def of_sum(self, x, offset):
    """Its result for x + offset, `offset` (*d_in,) joined to the bias instead of added to x."""
    if self.bias is None:
      own_bias = 0.0
    else:
      own_bias = self.bias[...]
    # W (x + o) + b = W x + (W o + b)
    along = tuple(range(self.dims_in))
    moved = jnp.tensordot(
      offset,
      self.kernel[...],
      (along, along),
    )
    bias = moved + own_bias
    return self._affine(x, self.kernel[...], bias)

  def _affine(self, x, kernel, bias):
    # contract the trailing dimensions of x with the leading ones of the kernel
    leading = x.ndim - self.dims_in
    of_x = tuple(range(leading, x.ndim))
    of_kernel = tuple(range(self.dims_in))
    contract = (of_x, of_kernel)
    no_batch = ((), ())
    y = jax.lax.dot_general(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (contract, no_batch),
    )
    if bias is None:
      return y
    return y + bias.astype(self.dtype)


class LayerNorm(nnx.Module):
  """Layer norm over the last axis, computed in fp32 and returned in the input's dtype.

  Without `affine` it has no parameters.
  """

  def __init__(self, dim: int, *, eps: float, affine: bool = True):
    self.eps = eps
    if affine:
      self.scale = nnx.Param(jnp.ones(dim, jnp.float32))
      self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))
    else:
      self.scale = None
      self.bias = None

  def __call__(self, x):
    # Gain and shift are applied in fp32, before the cast back.
    y = layer_norm(x, self.eps)
    if self.scale is not None:
      y = y * self.scale[...] + self.bias[...]
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def layer_norm(x, eps: float):
  """Parameter-free layer norm over the last axis; always returns fp32."""
  y, _ = _layer_norm_forward(x, eps)
  return y


def _layer_norm_forward(x, eps):
  # Statistics in fp32: half precision would lose the variance of large activations.
  wide = x.astype(jnp.float32)
  mean = wide.mean(-1, keepdims=True)
  squares = jnp.square(wide - mean)
  variance = squares.mean(-1, keepdims=True)
  inverse_std = jax.lax.rsqrt(variance + eps)
  y = (wide - mean) * inverse_std
  # x rather than y is kept: it is in the dtype of the model, and often kept anyway
  saved = (x, mean, inverse_std)
  return y, saved


def _layer_norm_backward(eps, saved, gradient):
  """d x = (g - mean(g) - y mean(g y)) / std.

  Two reductions a row, where derivatives taken step by step need four.
  """
  del eps
  # the forward pass's result again
  x, mean, inverse_std = saved
  y = (x.astype(jnp.float32) - mean) * inverse_std
  # what moves the mean or the variance of a row has no effect
  mean_gradient = gradient.mean(-1, keepdims=True)
  product = gradient * y
  mean_product = product.mean(-1, keepdims=True)
  centred = gradient - mean_gradient - y * mean_product
  gradient_x = centred * inverse_std
  return (gradient_x.astype(x.dtype),)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class HeadRMSNorm(nnx.Module):
  """RMS norm over the head dimension with a gain per head, in fp32, returned in the input's dtype.

  y = x / max(|x|, 1e-12) * sqrt(K) * scale, the floor written on the squared norm so that the
  gradient at x = 0 is finite.
  """

  def __init__(self, heads: int, head_dim: int):
    self.scale = nnx.Param(jnp.ones((heads, head_dim), jnp.float32))

  def __call__(self, x_BLHK):
    # Over the head dimension, each head by itself.
    x = x_BLHK.astype(jnp.float32)
    # to unit length
    squares = jnp.square(x)
    squared_norm = squares.sum(-1, keepdims=True)
    floored = jnp.maximum(squared_norm, 1e-24)
    unit = x * jax.lax.rsqrt(floored)
    # a unit vector has RMS 1 / sqrt(K)
    root = math.sqrt(x.shape[-1])
    y = unit * self.scale[...] * root
    return y.astype(x_BLHK.dtype)


class MLP(nnx.Module):
  """Linear, GELU, linear. `exact_gelu` chooses erf over the tanh approximation."""

  def __init__(
    self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype=jnp.float32, exact_gelu: bool = False
  ):
    self.up = Dense(
      width,
      hidden,
      rngs=rngs,
      dtype=dtype,
    )
    self.down = Dense(
      hidden,
      width,
      rngs=rngs,
      dtype=dtype,
    )
    self.exact_gelu = exact_gelu

  def __call__(self, x_BLD):
    hidden = self.up(x_BLD)
    # The operand of the second product is what rematerialisation keeps.
    active = gelu(hidden, exact=self.exact_gelu)
    return self.down(operand(active))


def gelu(x, *, exact: bool):
  """x Phi(x) (Hendrycks and Gimpel 2016), with Phi by erf or by the tanh approximation.

  Computed in fp32, returned in the dtype of x.
  """
  return _gelu(x, exact)


SQRT_HALF = math.sqrt(0.5)
SQRT_INVERSE_TAU = 1 / math.sqrt(2 * math.pi)
TANH_SLOPE = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x, exact):
  # In fp32, whatever the model computes in.
  wide = x.astype(jnp.float32)
  if exact:
    odd = jax.lax.erf(wide * SQRT_HALF)
  else:
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    cubic = TANH_CUBIC * wide * wide * wide
    odd = jnp.tanh(TANH_SLOPE * (wide + cubic))
  y = 0.5 * wide * (1 + odd)
  return y.astype(x.dtype)


def _gelu_backward(exact, x, gradient):
  """One pass over x and the gradient, in fp32.

  Derivatives taken step by step would be rounded to the dtype of x at each. 0.5 (1 + tanh u) is
  written as sigmoid(2 u): were it the forward pass's expression, compilers would keep its fp32
  value for this.
  """
  wide = x.astype(jnp.float32)
  # Phi(x) and its derivative, the density of a normal distribution
  if exact:
    tail = -wide * SQRT_HALF
    cdf = 0.5 * jax.lax.erfc(tail)
    bell = jnp.exp(-0.5 * wide * wide)
    density = bell * SQRT_INVERSE_TAU
  else:
    # of the tanh approximation: slope of the sigmoid times that of its argument
    cubic = TANH_CUBIC * wide * wide * wide
    cdf = jax.nn.sigmoid(2 * TANH_SLOPE * (wide + cubic))
    outer = 2 * cdf * (1 - cdf) * TANH_SLOPE
    inner = 1 + 3 * TANH_CUBIC * wide * wide
    density = outer * inner
  # d (x Phi) = Phi + x phi
  gradient = gradient.astype(jnp.float32)
  gradient_x = gradient * (cdf + wide * density)
  return (gradient_x.astype(x.dtype),)


def _gelu_forward(x, exact):
  return _gelu(x, exact), x


_gelu.defvjp(_gelu_forward, _gelu_backward)


class TimestepEmbedder(nnx.Module):
  """Scalars (N,), in the sinusoid's own units (here time * 1000), to embeddings (N, width) fp32.

  `zero` starts the last layer at zero, so that an embedder added to a trained model changes nothing
  at first.
  """

  def __init__(self, width: int, *, rngs: nnx.Rngs, frequencies: int = 256, zero: bool = False):
    self.frequencies = frequencies
    self.hidden = Dense(
      frequencies,
      width,
      rngs=rngs,
    )
    self.out = Dense(
      width,
      width,
      rngs=rngs,
      zero=zero,
    )

  def __call__(self, t_N):
    # As in DiT (Peebles & Xie 2023): sinusoid, linear, SiLU, linear.
    waves = sinusoid(t_N, self.frequencies)
    hidden = self.hidden(waves)
    active = jax.nn.silu(hidden)
    return self.out(active)


def sinusoid(t_N, dim: int, max_period: float = 10_000.0):
  """Sinusoidal embedding (N,) -> (N, dim) (Vaswani et al. 2017, 3.5).

  Cosines first, then sines; an odd `dim` ends in a zero.
  """
  # on the host: a table of `half` frequencies, from 1 down to 1 / max_period
  half = dim // 2
  exponents = -math.log(max_period) * np.arange(half) / half
  frequencies = np.exp(exponents).astype(np.float32)
  # one angle a frequency
  t_N1 = t_N.astype(jnp.float32)[:, None]
  angles = t_N1 * frequencies
  waves = jnp.concatenate(
    [jnp.cos(angles), jnp.sin(angles)],
    axis=-1,
  )
  return jnp.pad(waves, ((0, 0), (0, dim % 2)))


def position_sincos(coords_LA, dim: int):
  """Absolute position embedding of coordinates (L, axes) -> (L, dim) fp32.

  Each axis in turn contributes [sin(x f), cos(x f)] with f = 10000^(-i / n), n = dim // axes // 2;
  the rest is zero.
  """
  # the same frequencies for every axis
  length, axes = coords_LA.shape
  n = dim // axes // 2
  exponents = -np.arange(n) / n
  frequencies = (10_000.0**exponents).astype(np.float32)
  # sines and cosines, axis by axis
  coords_LA1 = coords_LA.astype(jnp.float32)[..., None]
  angles = coords_LA1 * frequencies
  waves = jnp.concatenate(
    [jnp.sin(angles), jnp.cos(angles)],
    axis=-1,
  )
  # What the axes leave of the width stays zero.
  used = axes * 2 * n
  table = waves.reshape(length, used)
  return jnp.pad(table, ((0, 0), (0, dim - used)))


def grid_positions(resolution: int):
  """Integer coordinates (resolution^3, 3) of a cubic grid in token order: x slowest, z fastest."""
  # On the host: the table is a constant of the program.
  axis = np.arange(resolution, dtype=np.int32)
  xyz = np.meshgrid(axis, axis, axis, indexing="ij")
  grid = np.stack(xyz, axis=-1)
  return grid.reshape(-1, 3)
