"""What the hosts tell each other at every step: whether one was asked to stop, how long each has
worked on its own, and what it has met while reading.

The numbers travel in one tiny collective, dispatched behind the step and read one step later, when
it is long done: every host learns the same thing at the same step, and none waits for it.
"""

import functools

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np


class Pulse:
  """Exchanges one row of numbers between all hosts, a step late."""

  def __init__(self, mesh: Mesh):
    self.hosts = jax.process_count()
    self._pending: jax.Array | None = None

    # Each device carries the row of its host; of each host one is read.
    devices = mesh.devices.flat
    owners = [device.process_index for device in devices]
    self._devices = len(owners)
    self._first = []
    for host in range(self.hosts):
      first = owners.index(host)
      self._first.append(first)

    # From one row a device to all rows on every device: the compiler makes it an all-gather.
    split = P(mesh.axis_names)
    self._split = NamedSharding(mesh, split)
    replicated = NamedSharding(mesh, P())
    self._gather = jax.jit(lambda x: x, out_shardings=replicated)

  def exchange(self, row: tuple[float, ...]) -> np.ndarray:
    """(hosts, numbers): every host's row of the call before; of this call at the first. Every host
    must call it at every step.
    """
    mine = np.array([row], np.float32)
    if self.hosts == 1:
      return mine

    # Every process makes its own devices' rows of one global array.
    shape = (self._devices, len(row))
    of_device = functools.partial(_of_each_device, mine)
    spread = jax.make_array_from_callback(shape, self._split, of_device)
    answer = self._gather(spread)

    # The answer to the call before has arrived long ago; only the first call waits for its own.
    late, self._pending = self._pending, answer
    if late is None:
      late = answer
    return np.asarray(late)[self._first]


def _of_each_device(row: np.ndarray, index) -> np.ndarray:
  """The part of a device, whichever it is, of the array that all hosts make together."""
  del index
  return row


class SlowestHost:
  """Mean seconds per step that each host worked on its own (read, placed and dispatched), and which
  host stands out.
  """

  def __init__(self):
    self.rows: list[np.ndarray] = []

  def add(self, seconds_by_host: np.ndarray) -> None:
    self.rows.append(seconds_by_host)

  def read(self) -> dict[str, float]:
    """Scalars for the log; empty for a single host. Starts over."""
    rows, self.rows = self.rows, []
    # A single host has nobody to be slower than.
    if not rows or len(rows[0]) == 1:
      return {}
    # Of the steps since the last time, by host.
    mean = np.mean(rows, axis=0)
    return {
      "hosts/slowest": mean.argmax(),
      "hosts/slowest_seconds": mean.max(),
      "hosts/median_seconds": np.median(mean),
    }
