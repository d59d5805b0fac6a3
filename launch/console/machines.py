"""Hardware by the names that people give it, without any of it, and without JAX.

    8                8 devices of no particular kind
    8xH200           8 GPUs; h200:8 is the same
    v5p-64           a slice by its name at Google Cloud: 32 chips
    v5p:4x4x2        a slice by its topology: 32 chips
    2xv6e:16x16      two slices, joined by the data-centre network

A name with a dash counts what Google Cloud counts. For v4 and v5p that is TensorCores, of which a
chip has two: v5p-64 is 32 chips, and 32 devices to JAX. For v5e and v6e it is chips: v6e-64 is 64.
A topology always counts chips.
"""

import dataclasses
import math
import re

from sam3d_jax.errors import ConfigError

EXAMPLES = "8xH100, v5p-64 (32 chips), v5p:4x4x4 or 2xv6e:16x16"
STAND_IN = "cpu"  # kind of devices of which only the number is said


@dataclasses.dataclass(frozen=True)
class Family:
  """One kind of accelerator.

  kind: as JAX calls the device. platform: gpu or tpu. counted: what a name with a dash counts for
  every chip.
  """

  kind: str
  platform: str
  counted: int = 1


FAMILIES = {
  "a100": Family("NVIDIA A100-SXM4-80GB", "gpu"),
  "h100": Family("NVIDIA H100 80GB HBM3", "gpu"),
  "h200": Family("NVIDIA H200", "gpu"),
  "v4": Family("TPU v4", "tpu", counted=2),
  "v5e": Family("TPU v5 lite", "tpu"),
  "v5p": Family("TPU v5", "tpu", counted=2),
  "v6e": Family("TPU v6 lite", "tpu"),
}
ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True)
class Device:
  """What of a device a mesh and a plan have to know; nothing can be run on it.

  platform: of a device without a place in a network, so that a mesh takes them in their order.
  """

  id: int
  device_kind: str
  platform: str = "cpu"
  slice_index: int = 0
  process_index: int = 0
  client: None = None


@dataclasses.dataclass(frozen=True)
class Machine:
  """So many chips of a family; family "" for devices of no particular kind."""

  family: str
  chips: int
  slices: int = 1

  @property
  def kind(self) -> str:
    """As JAX calls the device."""
    if not self.family:
      return STAND_IN
    return FAMILIES[self.family].kind

  @property
  def platform(self) -> str:
    """gpu, tpu or cpu."""
    if not self.family:
      return STAND_IN
    return FAMILIES[self.family].platform

  @property
  def name(self) -> str:
    """For people; a slice of v4 or v5p by both counts."""
    if not self.family:
      return f"{self.chips} devices"
    counted = FAMILIES[self.family].counted
    if counted == 1:
      return f"{self.chips} x {self.family}"
    each = self.chips // self.slices
    slices = f"{self.slices} x " if self.slices > 1 else ""
    return f"{self.chips} x {self.family} ({slices}{self.family}-{counted * each})"

  def devices(self) -> list[Device]:
    """The devices, slice after slice."""
    each = self.chips // self.slices
    found = []
    for number in range(self.chips):
      device = Device(
        id=number,
        device_kind=self.kind,
        slice_index=number // each,
      )
      found.append(device)
    return found


def parse(text: str, flag: str) -> Machine:
  """The machine of a name.

  flag: under which it was given, for the error. Raises ConfigError with examples.
  """
  said = text.lower().replace(" ", "")
  if re.fullmatch(r"[1-9]\d*", said):
    return Machine("", int(said))

  # how many of them, in front
  found = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w*?)(?:([-:])([1-9]\d*(?:x[1-9]\d*)*))?", said)
  if found is None:
    raise ConfigError(f"{flag} {text}: this names no hardware; write {EXAMPLES}")
  times, name, mark, size = found.groups()
  name = ALIASES.get(name, name)
  if name not in FAMILIES:
    known = ", ".join(FAMILIES)
    raise ConfigError(f"{flag} {text}: {name!r} is not one of {known}; write {EXAMPLES}")
  count = int(times or 1)

  # chips of a GPU are counted; slices of TPUs are, each of so many chips
  family = FAMILIES[name]
  if size is None:
    return Machine(name, count)
  chips = math.prod(int(side) for side in size.split("x"))
  if family.platform == "gpu":
    return Machine(name, count * chips)
  if mark == "-":
    if "x" in size or chips % family.counted:
      raise ConfigError(
        f"{flag} {text}: the number behind {name}- counts {family.counted} a chip: give a multiple "
        f"of it, or the topology, as {name}:4x4x4"
      )
    chips //= family.counted
  return Machine(name, count * chips, slices=count)
