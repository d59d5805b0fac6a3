"""Memory of a training step without compiling it: the state as it is sharded, exactly, and an
estimate of all else.

Gradients and copies of parameters are counted by the byte, by platform: on GPUs gradients and the
copies that products read, in 2 bytes each; on TPUs gradients in 4 bytes as well. Activations are
those of models/memory.py. docs/planning.md holds the sums against compiled and measured steps.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math

from ml_collections import ConfigDict

from launch.console.machines import Machine
from launch.performance.compiled import without_data
from launch.trainer import plan
from launch.trainer.setup import Setup, prepare
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry
from sam3d_jax.models.memory import Activations
from sam3d_jax.objectives import registry as objectives

TPU_LANES = 128
# Share of a device's memory that XLA is given (launch/cluster/flags.py sets it for GPUs).
USABLE = {"gpu": 0.92, "tpu": 1.0}
# An estimate counts as fitting only with this to spare: twice its typical error.
MARGIN = 1.1


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes a chip needs.

  state: parameters, averages, moments, reference. work: gradients and copies of parameters.
  activations: of the samples that are taken at once.
  """

  state: float
  work: float
  activations: float

  @property
  def total(self) -> float:
    return self.state + self.work + self.activations


class Recipe:
  """What a configuration needs a chip, whatever the number of chips."""

  def __init__(self, name: str, config: ConfigDict):
    """Raises ConfigError for a configuration that cannot be trained."""
    self.name = name
    self.config = config
    kind = registry.lookup(config.model.name)
    if kind.activations is None:
      raise ConfigError(
        f"model.name = {config.model.name!r}: the memory of this kind is not estimated; compile it "
        "with launch.aot"
      )
    self.remat_key = kind.remat
    self.remat = registry.remat_policy(config.model)

    self.shared = config.mesh.tensor * config.mesh.context  # chips that share a sample

    # FLOPs and samples of the whole run
    self.flops = plan.model_flops(self.setup(1))
    self.samples = config.steps * config.batch_size

  @functools.cache  # noqa: B019 - one object a recipe, for the length of the command
  def setup(self, fsdp: int) -> Setup:
    """The run on just enough described chips to split its parameters `fsdp` ways."""
    chips = fsdp * self.shared
    # of a size that these chips divide; the state does not depend on it
    batch = fsdp * math.ceil(self.config.batch_size / fsdp)
    alone = without_data(
      self.config,
      batch_size=batch,
      accumulate=1,
      mesh__data=1,
      mesh__fsdp=fsdp,
      mesh__dcn_data=1,
    )
    return prepare(alone, devices=Machine("", chips).devices())

  def policies(self) -> tuple[str, ...]:
    """Rematerialisation policies; '' alone for a model without."""
    kept = self.activations("gpu").kept
    return tuple(sorted(kept, key=lambda policy: self.sample(policy, "gpu")))

  def activations(self, platform: str) -> Activations:
    """Of one forward and backward pass over one sample. platform: gpu or tpu."""
    kind = registry.lookup(self.config.model.name)
    typed = registry.typed_config(self.config.model)
    cost = kind.cost(typed, plain=True)
    trained = cost.trained(self.setup(1).abstract_state.params)
    lanes = TPU_LANES if platform == "tpu" else 1
    return kind.activations(typed, trained=trained, lanes=lanes)

  def sample(self, policy: str, platform: str) -> float:
    """Bytes that one sample takes on the chip that it lies on."""
    once = self.activations(platform).of(policy)
    return once * self.passes() / self.shared

  def passes(self) -> int:
    """How often an objective runs the model on a sample with a gradient: twice for a pair."""
    kind = registry.lookup(self.config.model.name)
    typed = registry.typed_config(self.config.model)
    cost = kind.cost(typed, plain=True)
    trained = cost.trained(self.setup(1).abstract_state.params)
    objective = self.config.objective.to_dict()
    found = objectives.lookup(objective["name"]).passes(objective, cost, trained, True)
    return max(found.trained.values(), default=1)

  def memory(
    self, platform: str, *, fsdp: int, policy: str, at_once: float, accumulate: int = 1
  ) -> Memory:
    """Bytes a chip. at_once: samples on a chip in one part of the batch."""
    setup = self.setup(fsdp)
    state: Mapping[str, int] = plan.bytes_per_device(setup.abstract_state)
    split = fsdp * self.config.mesh.tensor
    trained = values(setup.abstract_state.params) / split
    whole = trained + values(setup.abstract_state.frozen) / split

    # Gradients, and the copies that products read; how many bytes of each, see above.
    of_gradients = 6 if platform == "tpu" else 2
    work = of_gradients * trained + 2 * whole
    if accumulate > 1:
      work += 4 * trained  # the sum over parts
    if split > 1:
      # gathered: a layer and the next one; encoders that are frozen at once
      layers = max(1, self.activations(platform).layers)
      work += 4 * trained * split / layers
      work += 2 * (whole - trained) * split
    activations = at_once * self.sample(policy, platform)
    return Memory(sum(state.values()), work, activations)

  def largest(
    self, platform: str, capacity: float, *, fsdp: int, policy: str, accumulate: int = 1
  ) -> int:
    """The most samples at once on a chip of `capacity` usable bytes, with the margin; 0 if not even
    one fits.
    """
    empty = self.memory(platform, fsdp=fsdp, policy=policy, at_once=0, accumulate=accumulate)
    free = capacity / MARGIN - empty.total
    return max(0, math.floor(free / self.sample(policy, platform)))


def values(tree) -> int:
  """How many numbers the leaves of a flat mapping hold."""
  return sum(math.prod(leaf.shape) for leaf in tree.values())
