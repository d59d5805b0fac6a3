"""The one attention entry point of all models.

Full (non-causal) attention through XLA, cuDNN or TPU splash attention.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sam3d_jax import sections
from sam3d_jax.models.platform import target_platform
from sam3d_jax.sections import FieldError

BACKENDS = ("auto", "xla", "cudnn", "splash")
NEEDED_PLATFORM = {"cudnn": "gpu", "splash": "tpu"}  # of the backends that run on one only
SAVED_NAME = "attention_out"  # tags what `keep_attention` keeps
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"  # primitive of cuDNN's forward kernel
KERNEL_MIN_LENGTH = 128  # below it a tiled kernel works on padding
SPLASH_BLOCK = 512
SPLASH_LANES = 128
CUDNN_MAX_HEAD_DIM = 128  # of its fused kernels before the Hopper generation

BATCH_AXES = ("data", "fsdp")
HEAD_AXES = ("tensor",)
QUERY_AXES = ("context",)


def attend(q_BLHK, k_BMHK, v_BMHK, *, backend: str = "auto", key_count_B=None):
  """Full scaled dot-product attention with scale 1/sqrt(K) and an fp32 softmax.

  q_BLHK, k_BMHK, v_BMHK: queries, keys and values; returns (B, L, H, K) in the queries' dtype.
  key_count_B: (B,) int32, how many keys of each sample there are; the others are padding that
  nothing attends to. None: all. backend: "xla" runs anywhere, "cudnn" on NVIDIA GPUs in half
  precision, "splash" on TPUs; "auto" is `choose_backend`'s choice.

  Under a mesh (`jax.set_mesh`) "auto" chooses for its devices, which may be described rather than
  present, and the kernels run shard by shard: batch over `data` and `fsdp`, heads over `tensor`,
  queries over `context`. Raises ValueError for an unknown backend and for queries that cuDNN has no
  kernel for.
  """
  if backend not in BACKENDS:
    raise ValueError(f"attention backend {backend!r} is not one of {BACKENDS}")
  if backend == "auto":
    backend = choose_backend(target_platform(), q_BLHK, k_BMHK)

  # plain XLA, which the compiler partitions by itself
  if backend == "xla":
    mask = None
    if key_count_B is not None:
      # A count is a mask over keys, the same for all heads and queries.
      position_M = jnp.arange(k_BMHK.shape[1])
      exists_BM = position_M < key_count_B[:, None]
      mask = exists_BM[:, None, None]
    return attend_xla(q_BLHK, k_BMHK, v_BMHK, mask=mask)

  # a fused kernel, shard by shard
  if backend == "cudnn":
    check_cudnn(q_BLHK)
    kernel = _cudnn
  else:
    kernel = _splash
  counts = ()
  if key_count_B is not None:
    counts = (key_count_B.astype(jnp.int32),)
  mapped = _per_shard(kernel, q_BLHK, counted=bool(counts))
  return mapped(q_BLHK, k_BMHK, v_BMHK, *counts)


def check_backend(cfg) -> None:
  """Raises FieldError if the fields attention, heads, width and dtype of a configuration name no
  backend, or one that has no kernel for them.
  """
  sections.check_choice(cfg, "attention", BACKENDS)
  head_dim = cfg.width // cfg.heads
  if cfg.attention == "cudnn" and not _has_cudnn_kernel(head_dim, cfg.dtype):
    raise FieldError(
      f"attention = 'cudnn' needs dtype = bfloat16 or float16 and a head dimension (width / heads) "
      f"that is a multiple of 8 up to {CUDNN_MAX_HEAD_DIM}, not {cfg.dtype} and {head_dim}: choose "
      "dtype = bfloat16, or attention = xla"
    )


def choose_backend(platform: str, q_BLHK, k_BMHK) -> str:
  """The fastest backend for a platform ("cpu", "gpu", "tpu").

  Its kernel where lengths and dtype suit it, else "xla".
  """
  # Kernels work on tiles: short sequences would be mostly padding.
  shortest = min(q_BLHK.shape[1], k_BMHK.shape[1])
  if shortest < KERNEL_MIN_LENGTH:
    return "xla"
  if platform == "tpu":
    return "splash"
  if platform == "gpu" and _suits_cudnn(q_BLHK):
    return "cudnn"
  return "xla"


def check_cudnn(q_BLHK) -> None:
  """Raises ValueError for queries that cuDNN has no kernel for."""
  if not _suits_cudnn(q_BLHK):
    raise ValueError(
      "attention backend 'cudnn' needs bfloat16 or float16 and a head dimension that is a "
      "multiple of 8 up to "
      f"{CUDNN_MAX_HEAD_DIM}, not {q_BLHK.dtype} and {q_BLHK.shape[-1]}: choose dtype=bfloat16, or "
      "attention=xla"
    )


def _suits_cudnn(q_BLHK) -> bool:
  """Whether cuDNN's fused attention covers the dtype and the head dimension.

  `_cudnn` makes any length fit.
  """
  return _has_cudnn_kernel(q_BLHK.shape[-1], q_BLHK.dtype)


def _has_cudnn_kernel(head_dim: int, dtype) -> bool:
  """Whether there is a kernel for heads of this dimension and type."""
  half_precision = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  fits = head_dim % 8 == 0 and head_dim <= CUDNN_MAX_HEAD_DIM
  return half_precision and fits


def attend_xla(q_BLHK, k_BMHK, v_BMHK, *, mask=None):
  """Attention in plain XLA, with the logits of all pairs in memory.

  `mask`, broadcastable to (B, H, L, M), is true where a query may look; a query that may look
  nowhere gets the mean of all values, not NaN.
  """
  # softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017, eq. 1), heads as a batch dimension.
  scale = q_BLHK.shape[-1] ** -0.5
  logits_BHLM = product("blhk,bmhk->bhlm", q_BLHK, k_BMHK) * scale
  if mask is not None:
    # finite, so that a row without any key has a softmax
    lowest = jnp.finfo(jnp.float32).min
    logits_BHLM = jnp.where(mask, logits_BHLM, lowest)
  # softmax in fp32, the weights in the dtype of what they weigh
  weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1)
  weights_BHLM = weights_BHLM.astype(v_BMHK.dtype)
  out_BLHK = product("bhlm,bmhk->blhk", weights_BHLM, v_BMHK)
  out_BLHK = out_BLHK.astype(q_BLHK.dtype)
  return checkpoint_name(out_BLHK, SAVED_NAME)


def attend_few(q_BLHK, ks, vs):
  """Attention of a few queries to many keys and values.

  Both are tuples of (B, M, H, K) that count as if they were concatenated.

  All heads go through one product with the keys as they lie in memory: a query's row for head h is
  zero in the columns of the other heads. That is H times the arithmetic, all of it little, and
  spares what a batch of products head by head costs, a transposed copy of the keys and one of the
  values. A shard of the heads (`tensor`) makes its own product: one over all would sum logits
  between shards.
  """
  count = len(ks)

  # a mapped function takes arrays only, so keys and values come in one row
  def few(q_BLHK, *keys_then_values):
    keys = keys_then_values[:count]
    values = keys_then_values[count:]
    return _attend_few(q_BLHK, keys, values)

  mapped = _per_shard(
    few,
    q_BLHK,
    keys=count + len(vs),
    only=HEAD_AXES,
  )
  return mapped(q_BLHK, *ks, *vs)


def _attend_few(q_BLHK, ks, vs):
  B, L, H, K = q_BLHK.shape
  width = H * K
  # One-hot rows that name each head.
  identity_HH = jnp.eye(H, dtype=q_BLHK.dtype)
  own_HH1 = identity_HH[:, :, None]
  # a row for each query and head, zero in the columns of the other heads
  spread_BLHHK = q_BLHK[:, :, :, None] * own_HH1
  rows_BRD = spread_BLHHK.reshape(B, L * H, width)
  # keys and values with their heads side by side, as they lie in memory
  keys = tuple(k.reshape(B, -1, width) for k in ks)
  values = tuple(v.reshape(B, -1, width) for v in vs)
  out_BRD = attend_rows(
    rows_BRD,
    keys,
    values,
    scale=K**-0.5,
  )
  # of each row the columns of its own head
  out_BLHHK = out_BRD.reshape(B, L, H, H, K)
  own_BLHHK = out_BLHHK * own_HH1
  return own_BLHHK.sum(3)


def attend_rows(q_BRD, ks, vs, *, scale: float):
  """Attention of rows (B, R, D) to keys and values that all rows share.

  Both are tuples of (B, M, D) that count as if they were concatenated. Only the logits are joined:
  long keys are neither copied nor stored twice.
  """
  # one softmax over all keys
  logits = [product("brd,bmd->brm", q_BRD, k_BMD) for k_BMD in ks]
  logits_BRM = jnp.concatenate(logits, axis=-1) * scale
  weights_BRM = jax.nn.softmax(logits_BRM, axis=-1)
  # the values, part by part: each has its own run of the weights
  out_BRD = 0.0
  start = 0
  for v_BMD in vs:
    end = start + v_BMD.shape[1]
    part_BRM = jax.lax.slice_in_dim(
      weights_BRM,
      start,
      end,
      axis=-1,
    )
    part_BRM = part_BRM.astype(v_BMD.dtype)
    out_BRD = out_BRD + product("brm,bmd->brd", part_BRM, v_BMD)
    start = end
  out_BRD = out_BRD.astype(q_BRD.dtype)
  return checkpoint_name(out_BRD, SAVED_NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, a, b):
  """einsum with an fp32 result, and a gradient that is rounded to the operands' dtype.

  It is rounded before it is multiplied, as fused kernels do it. Otherwise half-precision operands
  would be widened, and copied, for products of two precisions in the backward pass.
  """
  return jnp.einsum(
    spec,
    a,
    b,
    preferred_element_type=jnp.float32,
  )


def _product_forward(spec, a, b):
  return product(spec, a, b), (a, b)


def _product_backward(spec, operands, gradient):
  dtype = jnp.result_type(*operands)
  # The cotangent comes in fp32; operands are what the products run on.
  rounded = gradient.astype(dtype)
  plain = functools.partial(jnp.einsum, spec)
  _, backward = jax.vjp(plain, *operands)
  return backward(rounded)


product.defvjp(_product_forward, _product_backward)


def keep_attention(primitive, *unused, **params) -> bool:
  """Rematerialisation policy that keeps what a backward pass needs of `attend`.

  For jax.checkpoint, whichever backend it took. cuDNN's backward kernel reads the statistics of its
  softmax as well as its output. They cannot be tagged from outside, and without them the forward
  kernel would run again, so that primitive's results are kept by its name.
  """
  # The output of every backend but cuDNN's carries the tag.
  is_tag = primitive.name == "name"
  if is_tag and params["name"] == SAVED_NAME:
    return True
  return primitive.name == CUDNN_FORWARD


def _cudnn(q_BLHK, k_BMHK, v_BMHK, key_count_B=None):
  """cuDNN's fused attention.

  Its derivative refuses odd lengths, so those get a padded key (left out by count) or query
  (dropped).
  """
  batch, length = q_BLHK.shape[:2]
  keys = k_BMHK.shape[1]
  # the key that pads an odd length is left out by count
  if keys % 2 and key_count_B is None:
    key_count_B = jnp.full(batch, keys, jnp.int32)
  out_BLHK = jax.nn.dot_product_attention(
    _even_length(q_BLHK),
    _even_length(k_BMHK),
    _even_length(v_BMHK),
    key_value_seq_lengths=key_count_B,
    implementation="cudnn",
  )
  return out_BLHK[:, :length]


def _even_length(x_BLHK):
  if x_BLHK.shape[1] % 2 == 0:
    return x_BLHK
  # A row of zeros at the end, which the caller leaves out again.
  one_more = (0, 1)
  return jnp.pad(x_BLHK, ((0, 0), one_more, (0, 0), (0, 0)))


def _splash(q_BLHK, k_BMHK, v_BMHK, key_count_B=None):
  """Splash attention, on lengths padded to whole blocks.

  Padded keys are kept out by segment ids, padded queries dropped.
  """
  length, heads, head_dim = q_BLHK.shape[1:]
  keys = k_BMHK.shape[1]
  # Queries and keys are tiled, and padded, each by themselves.
  q_block, padded_length = _splash_block(length)
  k_block, padded_keys = _splash_block(keys)
  kernel = _splash_kernel(
    heads,
    padded_length,
    padded_keys,
    q_block,
    k_block,
  )

  # (B, H, padded, K); the kernel does not scale the logits
  scaled_BLHK = q_BLHK * head_dim**-0.5
  q = _pad_length(scaled_BLHK.swapaxes(1, 2), padded_length)
  k = _pad_length(k_BMHK.swapaxes(1, 2), padded_keys)
  v = _pad_length(v_BMHK.swapaxes(1, 2), padded_keys)

  if padded_keys == keys and key_count_B is None:
    # every key exists
    out = jax.vmap(kernel)(q, k, v)
  else:
    # queries see keys of their own segment: 0 for those that exist, 1 for padding
    counts_B = key_count_B
    if counts_B is None:
      counts_B = jnp.full(len(q), keys, jnp.int32)
    position_M = jnp.arange(padded_keys)
    # Keys beyond a sample's count are padding, too.
    is_padding_BM = position_M >= counts_B[:, None]
    of_key_BM = is_padding_BM.astype(jnp.int32)
    of_query = jnp.zeros(padded_length, jnp.int32)

    def masked(q, k, v, of_key):
      segments = splash.SegmentIds(q=of_query, kv=of_key)
      return kernel(q, k, v, segment_ids=segments)

    out = jax.vmap(masked)(q, k, v, of_key_BM)

  # back to (B, L, H, K), without the padded queries
  out_BLHK = out[:, :, :length].swapaxes(1, 2)
  return out_BLHK.astype(q_BLHK.dtype)


def _splash_block(length: int) -> tuple[int, int]:
  """Block size and padded length.

  Whole blocks of SPLASH_BLOCK, or one block of whole lanes for a short sequence.
  """
  whole_lanes = _round_up(length, SPLASH_LANES)
  block = min(SPLASH_BLOCK, whole_lanes)
  return block, _round_up(length, block)


def _round_up(n: int, multiple: int) -> int:
  # Ceiling division, in integers.
  return -(-n // multiple) * multiple


def _pad_length(x_BHLK, length: int):
  padding = length - x_BHLK.shape[2]
  none = (0, 0)
  at_end = (0, padding)
  return jnp.pad(x_BHLK, (none, none, at_end, none))


def _splash_kernel(heads: int, length: int, keys: int, q_block: int, k_block: int):
  # forward, and the two passes backward
  blocks = splash.BlockSizes(
    block_q=q_block,
    block_kv=k_block,
    block_q_dkv=q_block,
    block_kv_dkv=k_block,
    block_q_dq=q_block,
    block_kv_dq=k_block,
  )
  # Every query sees every key: what may not be seen is in the segments.
  full = splash_mask.FullMask((length, keys))
  mask = splash_mask.MultiHeadMask([full] * heads)
  # The name sits inside the kernel's own derivative rule: a tag on the output alone would not spare
  # it a second forward pass.
  return splash.make_splash_mha(
    mask,
    block_sizes=blocks,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=SAVED_NAME,
  )


def _per_shard(kernel, q_BLHK, *, keys: int = 2, counted: bool = False, only: tuple[str, ...] = ()):
  """`kernel` mapped over the shards of the ambient mesh; unchanged without a mesh.

  The compiler cannot cut it by itself. Its arguments are the queries, `keys` arrays (B, M, H, K) of
  keys and values and, if `counted`, a number (B,) of each sample. Every shard holds the keys and
  values of its batch rows and heads whole. An axis that does not divide its dimension is left out.
  `only`: unchanged too where the mesh has one shard along all of these axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel
  if only and all(mesh.shape.get(axis, 1) == 1 for axis in only):
    return kernel

  # which mesh axes split which dimension
  batch_size, length, head_count = q_BLHK.shape[:3]
  batch = dividing_axes(mesh, BATCH_AXES, batch_size)
  heads = dividing_axes(mesh, HEAD_AXES, head_count)
  context = dividing_axes(mesh, QUERY_AXES, length)
  queries = P(batch, context, heads)
  keys_and_values = [P(batch, None, heads)] * keys
  counts = ()
  if counted:
    counts = (P(batch),)
  # Shards do not talk: each has the keys that its queries need.
  return jax.shard_map(
    kernel,
    in_specs=(queries, *keys_and_values, *counts),
    out_specs=queries,
    check_vma=False,
  )


def dividing_axes(mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
  """The leading ones of `axes` that the mesh has and whose product divides `size`."""
  chosen = []
  ways = 1
  for axis in axes:
    if axis not in mesh.shape:
      continue
    # An axis counts only on top of those before it.
    more_ways = ways * mesh.shape[axis]
    if size % more_ways == 0:
      chosen.append(axis)
      ways = more_ways
  return tuple(chosen)
