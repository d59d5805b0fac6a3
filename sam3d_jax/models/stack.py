"""Equal layers applied with one scan, and what of a layer is kept for its backward pass."""

from collections.abc import Callable
import contextlib
import contextvars

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name

from sam3d_jax.models.attention import keep_attention

REMAT_POLICIES = ("none", "operands", "dots", "attention", "full")
OPERAND = "operand"  # tags what the policy "operands" keeps


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

    # every layer from a key of its own; their parameters are stacked
    def one(key):
      return make(nnx.Rngs(key))

    keys = jax.random.split(rngs.params(), depth)
    stacked = nnx.vmap(one, in_axes=0, out_axes=0)
    self.layer = stacked(keys)

  def __call__(self, carry, *shared):
    # The structure is the same for every layer; only parameters differ.
    graph, params = nnx.split(self.layer)
    if self.unroll:
      params = jax.tree.map(stacked_gradient, params)

    # one layer as the body of the scan: its parameters are what is scanned over
    def body(carry, layer_params):
      layer = nnx.merge(graph, layer_params)
      return layer(carry, *shared), None

    body = rematerialise(
      body,
      self.remat,
      looped=not self.unroll,
    )

    layers_a_turn = 1
    if self.unroll or _unroll.get():
      layers_a_turn = self.depth
    carry, _ = jax.lax.scan(
      body,
      carry,
      params,
      unroll=layers_a_turn,
    )
    return carry


@jax.custom_vjp
def stacked_gradient(x):
  """x, whose gradient is written out as one array.

  Gathering it from its layers element by element, wherever it is used, is slow.
  """
  return x


def _stacked_gradient_forward(x):
  # The gradient does not depend on the values.
  return x, None


def _stacked_gradient_backward(_, gradient):
  # past the barrier the gradient is one array, not a fusion into its users
  return (jax.lax.optimization_barrier(gradient),)


stacked_gradient.defvjp(_stacked_gradient_forward, _stacked_gradient_backward)


_unroll = contextvars.ContextVar("unroll", default=False)


@contextlib.contextmanager
def unrolled():
  """Within it stacks are traced layer by layer.

  XLA's cost analysis counts the body of a loop once, however often it runs.
  """
  # A context variable, so that threads do not see each other's.
  token = _unroll.set(True)
  try:
    yield
  finally:
    _unroll.reset(token)


def unrolling() -> bool:
  """Whether this is traced within `unrolled`: loops of known length should then be written out."""
  return _unroll.get()


def operand(x, dtype=None):
  """x, in `dtype` if one is given, tagged as something that the backward pass reads.

  The policy "operands" keeps it.
  """
  if dtype is not None:
    x = x.astype(dtype)
  return checkpoint_name(x, OPERAND)


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

  # each policy keeps what the one after it keeps, and something more
  policies = jax.checkpoint_policies
  both = policies.save_from_both_policies
  dots = both(
    policies.dots_with_no_batch_dims_saveable,
    keep_attention,
  )
  operands = both(
    dots,
    policies.save_only_these_names(OPERAND),
  )
  kept = {
    "operands": operands,
    "dots": dots,
    "attention": keep_attention,
    "full": policies.nothing_saveable,
  }
  return jax.checkpoint(
    fn,
    prevent_cse=not looped,
    policy=kept[policy],
  )
