"""The largest batch a chip that fits, for each rematerialisation policy."""

from collections.abc import Callable, Sequence
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from launch.performance.compiled import measure, without_data
from launch.trainer import plan
from sam3d_jax import sections
from sam3d_jax.errors import ConfigError
from sam3d_jax.models import registry
from sam3d_jax.models.stack import REMAT_POLICIES
from sam3d_jax.sharding.mesh import BATCH_AXES, MeshConfig, axis_sizes
from sam3d_jax.training import hardware

SEARCHED_UP_TO = 64  # samples a chip
FIRST_GUESS = 4


def searched(names: str, config: ConfigDict) -> tuple[str, ...]:
  """The policies that --search names, all if it names none; one without a name if the model has
  none. Raises ConfigError.
  """
  if not registry.lookup(config.model.name).remat:
    if names:
      raise ConfigError(
        f"--search {names}: this model has no rematerialisation policies; --search alone finds its "
        "largest batch"
      )
    return ("",)
  policies = tuple(names.split(",")) if names else REMAT_POLICIES
  for policy in policies:
    if policy not in REMAT_POLICIES:
      known = ", ".join(REMAT_POLICIES)
      raise ConfigError(f"--search {names}: {policy!r} is not one of {known}")
  return policies


def search(
  config: ConfigDict, devices: Sequence[jax.Device], policies: tuple[str, ...]
) -> list[dict[str, Any]]:
  """The largest batch a chip that fits, for each rematerialisation policy; it and the next larger
  one were both compiled. Raises ConfigError where the memory of a chip is not known.
  """
  # Batches grow by a sample on every shard, so that none is ever uneven.
  sizes = axis_sizes(sections.typed(MeshConfig, config.mesh, "mesh"), len(devices))
  shards = sizes[BATCH_AXES[0]] * sizes[BATCH_AXES[1]]
  capacity = capacity_of(devices)
  rows = []
  for policy in policies:
    trials = Trials(config, devices, policy, shards, capacity)
    best = largest(trials.bytes_needed, capacity)
    row = {
      "remat": policy,
      "batch_per_shard": best,
      "batch_per_chip": best * shards / len(devices),
      "hbm_bytes": trials.report(best)["hbm_bytes"] if best else None,
    }
    rows.append(row)
    print(f"remat {policy or '-'}: {row['batch_per_chip']:g} samples a chip", flush=True)
  return rows


class Trials:
  """What was compiled with one policy, every size of batch once."""

  def __init__(
    self,
    config: ConfigDict,
    devices: Sequence[jax.Device],
    policy: str,
    shards: int,
    capacity: float,
  ):
    """policy: '' for a model without. shards: of the batch. capacity: of a chip, bytes."""
    self.config = config
    self.devices = devices
    self.policy = policy
    self.shards = shards
    self.capacity = capacity
    self.reports: dict[int, dict[str, Any]] = {}

  def report(self, samples: int) -> dict[str, Any]:
    """The report of a step with so many samples on every shard of the batch."""
    # a compilation takes minutes
    if samples in self.reports:
      return self.reports[samples]
    changes = {"batch_size": samples * self.shards, "accumulate": 1}
    if self.policy:
      key = registry.lookup(self.config.model.name).remat
      changes[f"model.{key}"] = self.policy
    report = measure(without_data(self.config, **changes), self.devices)
    self.reports[samples] = report
    verdict = "fits" if report["fits"] else "does not fit"
    print(
      f"  remat {self.policy or '-'}, {samples} samples on each of {self.shards} shards: "
      f"{plan.size(report['hbm_bytes'])}, {verdict}; compiled in "
      f"{report['compile_seconds']:.0f} s",
      file=sys.stderr,
      flush=True,
    )
    return report

  def bytes_needed(self, samples: int) -> float:
    """Memory of a chip, above the capacity wherever the step does not fit."""
    report = self.report(samples)
    if report["fits"]:
      return report["hbm_bytes"]
    # The compiler may refuse a program without saying how much it lacks.
    return max(report["hbm_bytes"], self.capacity + 1)


def capacity_of(devices: Sequence[jax.Device]) -> float:
  """Memory of a described chip. Raises ConfigError where it is not known."""
  kind = devices[0].device_kind
  chip = hardware.chip(kind)
  if chip is None:
    raise ConfigError(f"--search: the memory of a {kind} is not known")
  return chip.memory


def largest(bytes_at: Callable[[int], float], capacity: float) -> int:
  """The largest n up to SEARCHED_UP_TO with bytes_at(n) <= capacity, 0 if not even one has.

  Every call is a compilation of minutes. bytes_at grows about evenly, so the next n to try is where
  a line meets the capacity: that through the largest n known to fit and the least known not to, as
  long as there is none of these through the two largest that fit.
  """
  # Two ends: a size that fits, and one that does not or is not asked for.
  used = {1: bytes_at(1)}
  if used[1] > capacity:
    return 0
  fits = 1
  too_many = SEARCHED_UP_TO + 1
  n = FIRST_GUESS
  while True:
    # move the end that this size belongs to
    used[n] = bytes_at(n)
    if used[n] <= capacity:
      fits = n
    else:
      too_many = n
    if too_many - fits == 1:
      return fits
    # the line through two sizes that are known
    if too_many in used:
      low, high = fits, too_many
    else:
      known = sorted(m for m in used if m <= fits)
      low, high = known[-2:]
    slope = max(1.0, (used[high] - used[low]) / (high - low))
    # where it meets the capacity, and never outside what is still open
    guess = fits + int((capacity - used[fits]) / slope)
    n = min(max(guess, fits + 1), too_many - 1)
