"""Memory of a training step without compiling it: the state as it is sharded, exactly, and an
estimate of all else.

Gradients and copies of parameters are counted by the byte: gradients and the copies that products
read in 2 bytes each, on TPUs sums of gradients in 4 bytes as well. Activations are
those of models/memory.py. docs/planning.md holds the sums against compiled and measured steps.
"""

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

# What the last axis of an array is filled up to.
LANES = {"gpu": 1, "tpu": 128}
# Bytes a parameter: of the copy that products read and of its gradient as it leaves them; of the
# sum of gradients over chips that hold it whole.
COPY_BYTES = 2
SUM_BYTES = {"gpu": 0, "tpu": 4}
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
  """What a configuration needs a chip, whatever the number of chips.

  remat: its rematerialisation policy, '' for a model without. flops: of a sample. samples: of the
  whole run. passes: how often the objective runs the model on a sample with a gradient, twice for a
  pair. shared: chips that share a sample (mesh.tensor, mesh.context).
  """

  def __init__(self, name: str, config: ConfigDict):
    """Raises ConfigError for a configuration that cannot be trained, or not be estimated."""
    # What it is made of.
    kind = registry.lookup(config.model.name)
    if kind.activations is None:
      raise ConfigError(
        f"model.name = {config.model.name!r}: the memory of this kind is not estimated; compile it "
        "with launch.aot"
      )
    self.name = name
    self.config = config
    self.remat_key = kind.remat
    self.remat = registry.remat_policy(config.model)
    self.shared = config.mesh.tensor * config.mesh.context
    self.samples = config.steps * config.batch_size

    # What of it is trained, and how often.
    setup = self.setup(1)
    typed = setup.model_config
    cost = kind.cost(typed, plain=True)
    trained = cost.trained(setup.abstract_state.params)
    objective = config.objective.to_dict()
    run_by = objectives.lookup(objective["name"])
    passes = run_by.passes(objective, cost, trained, True)
    self.passes = max(passes.trained.values(), default=1)
    self.flops = plan.model_flops(setup)

    # What a sample keeps, on chips that fill up the last axis and on those that do not.
    self.activations: dict[str, Activations] = {}
    for platform, lanes in LANES.items():
      self.activations[platform] = kind.activations(typed, trained=trained, lanes=lanes)

  @functools.cache  # noqa: B019 - one object a recipe, for the length of the command
  def setup(self, fsdp: int) -> Setup:
    """The run on just enough described chips to split its parameters `fsdp` ways."""
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
    chips = Machine("", fsdp * self.shared)
    return prepare(alone, devices=chips.devices())

  def policies(self) -> tuple[str, ...]:
    """Rematerialisation policies from least memory to most; '' alone for a model without."""
    activations = self.activations["gpu"]
    return tuple(sorted(activations.kept, key=activations.of))

  def sample(self, policy: str, platform: str) -> float:
    """Bytes that one sample takes on a chip that it lies on. platform: gpu or tpu."""
    once = self.activations[platform].of(policy)
    return once * self.passes / self.shared

  def memory(
    self, platform: str, *, fsdp: int, policy: str, at_once: float, accumulate: int = 1
  ) -> Memory:
    """Bytes a chip. at_once: samples on a chip in one part of the batch."""
    # What stays from step to step.
    abstract = self.setup(fsdp).abstract_state
    state = sum(plan.bytes_per_device(abstract).values())

    # Gradients, and the copies that products read, of this chip's part; bytes of each: see above.
    split = fsdp * self.config.mesh.tensor
    trained = values(abstract.params)
    frozen = values(abstract.frozen)
    work = COPY_BYTES * trained / split
    if split == 1:
      # gradients that all chips sum have a place of their own
      work += SUM_BYTES[platform] * trained
    work += COPY_BYTES * (trained + frozen) / split
    if accumulate > 1:
      # the sum over parts
      work += 4 * trained / split
    if split > 1:
      work += self.gathered(platform, trained, frozen)

    activations = at_once * self.sample(policy, platform)
    return Memory(state, work, activations)

  def gathered(self, platform: str, trained: int, frozen: int) -> float:
    """Bytes that split parameters take where they are used: a layer and the next one of what is
    trained, and encoders that are frozen, at once.
    """
    layers = max(1, self.activations[platform].layers)
    return 2 * COPY_BYTES * trained / layers + COPY_BYTES * frozen

  def largest(
    self, platform: str, capacity: float, *, fsdp: int, policy: str, accumulate: int = 1
  ) -> int:
    """The most samples at once on a chip of `capacity` usable bytes, with the margin; 0 if not even
    one fits.
    """
    without_samples = self.memory(
      platform,
      fsdp=fsdp,
      policy=policy,
      at_once=0,
      accumulate=accumulate,
    )
    free = capacity / MARGIN - without_samples.total
    fitting = math.floor(free / self.sample(policy, platform))
    return max(0, fitting)


def values(tree) -> int:
  """How many numbers the leaves of a flat mapping hold."""
  return sum(math.prod(leaf.shape) for leaf in tree.values())
