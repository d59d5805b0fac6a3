"""Low-rank adapters beside any projection: kernel + (alpha / rank) * lora_a @ lora_b.

Hu et al. 2021, arXiv 2106.09685, eq. 3. Beside a kernel (*d_in, *d_out) lie lora_a (*d_in, r) and
lora_b (r, *d_out), all three with a leading layer axis in a scanned stack. The factors are
parameters like any other; the sum is formed where parameters meet the module
(`training.state.ModelGraph.merge`), so no layer knows of adapters and a projection that is used in
another form (the absorbed keys and values of the layout stream) is adapted too. What training saves
is optimiser state, averages and, for alignment, the reference; the arithmetic of a step stays that
of full fine-tuning, plus one small product a kernel.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import re
import zlib

from flax import nnx
import jax
import jax.numpy as jnp

from sam3d_jax import sections
from sam3d_jax.errors import ConfigError, InputError
from sam3d_jax.models.layers import Dense
from sam3d_jax.models.stack import Stack

FACTORS = ("lora_a", "lora_b")
PATTERN = r".*/lora_[ab]"  # paths of factors, and of nothing else


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which projections are adapted, and how.

  targets: regular expression over the paths of modules with a kernel (full match); empty: no
  adapters. The product of the factors counts alpha / rank.
  """

  targets: str = ""
  rank: int = 16
  alpha: float = 16.0

  def __post_init__(self):
    # Without targets, rank and alpha mean nothing.
    positive = self.rank >= 1 and self.alpha > 0
    if self.targets and not positive:
      raise ConfigError(
        f"lora.rank = {self.rank}, lora.alpha = {self.alpha}: both must be positive"
      )
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ConfigError(
        f"lora.targets = {self.targets!r} is not a regular expression: {error}"
      ) from error

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def scale_of(config: Mapping) -> float:
  """Factor of the adapters' product in a run's configuration (as stored with its checkpoints)."""
  section = dict(config["lora"])
  return sections.typed(LoraConfig, section, "lora").scale


def factor_shapes(model: nnx.Module, cfg: LoraConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape of all factors that `cfg` adds to a model (abstract or not).

  Raises ConfigError if `targets` hits no projection.
  """
  if not cfg.targets:
    return {}

  # projections, and the stacks whose layers carry a leading axis
  projections: dict[str, Dense] = {}
  stacks: list[str] = []
  for keys, module in nnx.iter_graph(model):
    path = "/".join(map(str, keys))
    if isinstance(module, Stack):
      stacks.append(f"{path}/layer/")
    if isinstance(module, Dense):
      projections[path] = module

  # the two factors of every projection that is meant
  shapes = {}
  for path, module in projections.items():
    if not re.fullmatch(cfg.targets, path):
      continue
    # its kernel is (layers, inputs, outputs)
    shape = module.kernel.shape
    in_stack = f"{path}/".startswith(tuple(stacks))
    first_input = 1 if in_stack else 0
    first_output = first_input + module.dims_in
    layers = shape[:first_input]
    inputs = shape[first_input:first_output]
    outputs = shape[first_output:]
    a = (*layers, *inputs, cfg.rank)
    b = (*layers, cfg.rank, *outputs)
    # fp32, as every parameter is.
    shapes[f"{path}/lora_a"] = jax.ShapeDtypeStruct(a, jnp.float32)
    shapes[f"{path}/lora_b"] = jax.ShapeDtypeStruct(b, jnp.float32)

  if not shapes:
    some = ", ".join(sorted(projections)[:12])
    raise ConfigError(
      f"lora.targets = {cfg.targets!r} matches no projection; there are {some}, ..."
    )
  return shapes


def random_factors(shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> dict[str, jax.Array]:
  """lora_a normal with variance 1 / fan-in, lora_b zero.

  So the adapted model starts as the model it adapts, bit for bit.
  """

  def one(path: str, shape: tuple[int, ...]):
    if path.endswith("lora_b"):
      return jnp.zeros(shape, jnp.float32)
    # lora_a, and lora_b of the same kernel, share their layers in a stack
    partner_path = f"{path[:-1]}b"
    partner = tuple(shapes[partner_path].shape)
    layers_and_rank = (shape[0], shape[-1])
    stacked = partner[:2] == layers_and_rank
    inputs = shape[1:-1] if stacked else shape[:-1]
    fan_in = math.prod(inputs)
    # a draw depends on seed and path alone
    number = zlib.crc32(path.encode())
    seeded = jax.random.key(seed)
    key = jax.random.fold_in(seeded, number)
    normal = jax.random.normal(key, shape, jnp.float32)
    return normal / math.sqrt(fan_in)

  factors = {}
  for path, x in shapes.items():
    factors[path] = one(path, tuple(x.shape))
  return factors


def factor_paths(paths: Iterable[str]) -> list[str]:
  """Those of the paths that are low-rank factors."""
  found = []
  for path in paths:
    _, _, name = path.rpartition("/")
    if name in FACTORS:
      found.append(path)
  return found


def adapted_kernels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, str]]:
  """Kernel path -> paths of its two factors.

  Raises InputError for a factor without partner or kernel, or that does not fit.
  """
  adapted = {}
  for path in factor_paths(shapes):
    module, _, _ = path.rpartition("/")
    # All three lie side by side in the module.
    needed = [f"{module}/{name}" for name in ("kernel", *FACTORS)]
    missing = [p for p in needed if p not in shapes]
    if missing:
      raise InputError(f"{path} cannot be merged: the checkpoint has no {', '.join(missing)}")
    # raises if they do not fit
    three = [tuple(shapes[p]) for p in needed]
    layer_count(module, *three)
    kernel, a, b = needed
    adapted[kernel] = (a, b)
  return adapted


def adapted(kernel, a, b, scale: float):
  """kernel + scale * a @ b, for NumPy and JAX arrays alike."""
  layers = layer_count(
    "kernel",
    kernel.shape,
    a.shape,
    b.shape,
  )
  # one product a layer
  rank = a.shape[-1]
  a_LIR = a.reshape(layers, -1, rank)
  b_LRO = b.reshape(layers, rank, -1)
  delta_LIO = a_LIR @ b_LRO
  # of the kernel's own dtype, which the result keeps
  factor = kernel.dtype.type(scale)
  return kernel + factor * delta_LIO.reshape(kernel.shape)


def folded(params: Mapping, scale: float) -> dict:
  """The parameters with every adapted kernel in place of the kernel and its factors."""
  # Everything is checked before anything is computed.
  shapes = {path: x.shape for path, x in params.items()}
  kernels = adapted_kernels(shapes)
  factors = set()
  for pair in kernels.values():
    factors.update(pair)

  out = {}
  for path, x in params.items():
    if path in kernels:
      a, b = kernels[path]
      out[path] = adapted(
        x,
        params[a],
        params[b],
        scale,
      )
    elif path not in factors:
      out[path] = x
  return out


def layer_count(name: str, kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> int:
  """Layers of a stack, 1 if there is no layer axis. Raises InputError unless the shapes fit."""

  kernel = tuple(kernel)
  rank = a[-1]
  # one layer: (inputs, r) and (r, outputs)
  single = (*a[:-1], *b[1:])
  if b[0] == rank and single == kernel:
    return 1
  # a stack: all three have its layers in front
  same_layers = len(b) > 1 and a[0] == b[0] == kernel[0]
  if same_layers and b[1] == rank:
    several = (*a[:-1], *b[2:])
    if several == kernel:
      return kernel[0]
  raise InputError(
    f"{name}: factors {tuple(a)} and {tuple(b)} do not fit the kernel {tuple(kernel)}"
  )
