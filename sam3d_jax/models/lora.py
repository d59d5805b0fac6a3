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
    if self.targets and (self.rank < 1 or not self.alpha > 0):
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
  return LoraConfig(**dict(config["lora"])).scale


def factor_shapes(model: nnx.Module, cfg: LoraConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """path -> shape of all factors that `cfg` adds to a model (abstract or not).

  Raises ConfigError if `targets` hits no projection.
  """
  if not cfg.targets:
    return {}

  # Projections, and the stacks whose layers carry a leading axis.
  projections: dict[str, Dense] = {}
  stacks: list[str] = []
  for keys, module in nnx.iter_graph(model):
    path = "/".join(map(str, keys))
    if isinstance(module, Stack):
      stacks.append(f"{path}/layer/")
    if isinstance(module, Dense):
      projections[path] = module

  shapes = {}
  for path, module in projections.items():
    if not re.fullmatch(cfg.targets, path):
      continue
    shape = module.kernel.shape
    first = 1 if f"{path}/".startswith(tuple(stacks)) else 0
    layers, inputs, outputs = (
      shape[:first],
      shape[first : first + module.dims_in],
      shape[first + module.dims_in :],
    )
    a, b = (*layers, *inputs, cfg.rank), (*layers, cfg.rank, *outputs)
    shapes[f"{path}/lora_a"] = jax.ShapeDtypeStruct(a, jnp.float32)
    shapes[f"{path}/lora_b"] = jax.ShapeDtypeStruct(b, jnp.float32)
  if not shapes:
    raise ConfigError(
      f"lora.targets = {cfg.targets!r} matches no projection; there are "
      f"{', '.join(sorted(projections)[:12])}, ..."
    )
  return shapes


def random_factors(shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> dict[str, jax.Array]:
  """lora_a normal with variance 1 / fan-in, lora_b zero.

  So the adapted model starts as the model it adapts, bit for bit.
  """

  def one(path: str, shape: tuple[int, ...]):
    if path.endswith("lora_b"):
      return jnp.zeros(shape, jnp.float32)
    stacked = tuple(shapes[f"{path[:-1]}b"].shape)[:2] == (shape[0], shape[-1])
    fan_in = math.prod(shape[1:-1] if stacked else shape[:-1])
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(fan_in)

  return {path: one(path, tuple(x.shape)) for path, x in shapes.items()}


def factor_paths(paths: Iterable[str]) -> list[str]:
  """Those of the paths that are low-rank factors."""
  return [p for p in paths if p.rpartition("/")[2] in FACTORS]


def adapted_kernels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, str]]:
  """Kernel path -> paths of its two factors.

  Raises InputError for a factor without partner or kernel, or that does not fit.
  """
  adapted = {}
  for path in factor_paths(shapes):
    module = path.rpartition("/")[0]
    needed = [f"{module}/{name}" for name in ("kernel", *FACTORS)]
    missing = [p for p in needed if p not in shapes]
    if missing:
      raise InputError(f"{path} cannot be merged: the checkpoint has no {', '.join(missing)}")
    layer_count(module, *(tuple(shapes[p]) for p in needed))
    adapted[needed[0]] = (needed[1], needed[2])
  return adapted


def adapted(kernel, a, b, scale: float):
  """kernel + scale * a @ b, for NumPy and JAX arrays alike."""
  layers = layer_count("kernel", kernel.shape, a.shape, b.shape)
  rank = a.shape[-1]
  delta = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
  return kernel + kernel.dtype.type(scale) * delta.reshape(kernel.shape)


def folded(params: Mapping, scale: float) -> dict:
  """The parameters with every adapted kernel in place of the kernel and its factors."""
  kernels = adapted_kernels({path: x.shape for path, x in params.items()})
  factors = {factor for pair in kernels.values() for factor in pair}
  out = {}
  for path, x in params.items():
    if path in kernels:
      a, b = kernels[path]
      out[path] = adapted(x, params[a], params[b], scale)
    elif path not in factors:
      out[path] = x
  return out


def layer_count(name: str, kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> int:
  """Layers of a stack, 1 if there is no layer axis. Raises InputError unless the shapes fit."""
  rank, kernel = a[-1], tuple(kernel)
  if b[0] == rank and (*a[:-1], *b[1:]) == kernel:
    return 1
  # A stack: all three have its layers in front.
  stacked = len(b) > 1 and a[0] == b[0] == kernel[0] and b[1] == rank
  if stacked and (*a[:-1], *b[2:]) == kernel:
    return kernel[0]
  raise InputError(
    f"{name}: factors {tuple(a)} and {tuple(b)} do not fit the kernel {tuple(kernel)}"
  )
