"""Which objects lie in which row of which batch: a pure function of (seed, step) and of the sizes
of the objects, the same on every host.

Records come in the order of the mixture, as many a step as its rows hold on average. Those of
`window` steps together are dealt to the rows of these steps. So the step remains the only cursor,
and whoever knows the sizes (format/voxel_counts.py) knows the rows of any step.

All rows have the same number of slots, so that layers cost the same in each; attention costs what
an object's size squared does. Rows are filled to equal work: the largest object first, each into
the row with the least work that has room. What finds none has a second chance in the next window,
behind the objects of that window. (Filling the fullest row first wins room that is not needed below
nine tenths, and leaves other rows empty.)
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
import dataclasses
import threading
from typing import NamedTuple

import numpy as np

from sam3d_jax import sections
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import packing
from sam3d_jax.geometry.packing import RowShape

# Voxels at which an object's self-attention costs as much as everything else of it: at 32 768 they
# are 8.7 and 16.2 TFLOP of a forward pass.
EQUAL_COST = 61_000
KEPT = 4  # windows that a process holds
LOOKED_AT = 4  # windows that are dealt before a run starts
MOST_LEFT_OUT = 0.01  # share of their objects


@dataclasses.dataclass(frozen=True)
class PackingConfig:
  """How records fill rows.

  per_row: records of a row on average; 0: one record a row, whatever its size. window: steps whose
  records are dealt together; a longer one fills rows more evenly.
  """

  per_row: float = 0.0
  window: int = 16

  def __post_init__(self):
    sections.check_not_negative(self, "per_row")
    sections.check_positive(self, "window")

  def objects(self, rows: int) -> int:
    """Records of a step of so many rows."""
    return round(self.per_row * rows)


class Dealt(NamedTuple):
  """Objects in rows: numbers of those of each row, and of those that found no room."""

  rows: list[list[int]]
  left_out: list[int]


def work(count: np.ndarray | int) -> np.ndarray | float:
  """What an object of so many voxels costs, in voxels of a small object."""
  return count * (1 + count / EQUAL_COST)


def deal(counts_N2: np.ndarray, shape: RowShape, rows: int, late_N2: np.ndarray = ()) -> Dealt:
  """Objects to `rows` rows of equal work.

  counts_N2: (voxels, voxels at half the resolution) of each object, none larger than a row.
  late_N2: of objects that take what room is left; they are numbered after the others.
  """
  # what each row still takes, and the work that it has
  late_N2 = np.reshape(late_N2, (-1, 2)).astype(np.int64)
  counts_N2 = np.reshape(counts_N2, (-1, 2)).astype(np.int64)
  every_N2 = np.concatenate([counts_N2, late_N2])
  need_N2 = -(-every_N2 // packing.BLOCK) * packing.BLOCK
  work_N = work(every_N2[:, 0])
  free_R = np.full(rows, shape.voxels)
  coarse_R = np.full(rows, shape.coarse)
  places_R = np.full(rows, shape.objects)
  work_R = np.zeros(rows)

  # the largest first, of equal ones the first; late ones last
  is_late_N = np.arange(len(every_N2)) >= len(counts_N2)
  order = np.lexsort((-every_N2[:, 0], is_late_N))
  members: list[list[int]] = [[] for _ in range(rows)]
  left_out = []
  for n in order.tolist():
    need, coarse = need_N2[n]
    has_room_R = (free_R >= need) & (coarse_R >= coarse) & (places_R > 0)
    row = int(np.argmin(np.where(has_room_R, work_R, np.inf)))
    if not has_room_R[row]:
      left_out.append(n)
      continue
    members[row].append(n)
    free_R[row] -= need
    coarse_R[row] -= coarse
    places_R[row] -= 1
    work_R[row] += work_N[n]
  return Dealt(members, left_out)


def imbalance(members: Sequence[Sequence[int]], counts_N: np.ndarray, devices: int) -> float:
  """Work of the device with most of it over the mean, minus 1; rows lie on devices in order."""
  work_R = np.array([sum(work(int(counts_N[n])) for n in row) for row in members])
  by_device = work_R.reshape(devices, -1).sum(1)
  return float(by_device.max() / by_device.mean() - 1)


class Window(NamedTuple):
  """The rows of consecutive steps: positions of the records of each, and of those left out."""

  rows: list[list[int]]  # of all steps, one step after another
  left_out: list[int]  # for good


class PackedOrder:
  """Positions of the records in every row of a run; safe to share between threads and to pickle.

  counts: (position) -> (voxels, voxels at half the resolution) of the record that stands there.
  rows: of a step, of all hosts together. objects: records of a step. Raises ConfigError for none.
  """

  def __init__(
    self,
    settings: PackingConfig,
    shape: RowShape,
    rows: int,
    counts: Callable[[int], Sequence[int]],
  ):
    self.settings = settings
    self.shape = shape
    self.rows = rows
    self.objects = settings.objects(rows)
    if not self.objects:
      raise ConfigError(
        f"data.packing.per_row = {settings.per_row:g} of batch_size = {rows} rows is no record: "
        "give more of either"
      )
    self._counts = counts
    self._own: OrderedDict[int, tuple[np.ndarray, Dealt]] = OrderedDict()
    self._windows: OrderedDict[int, Window] = OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self):
    # Another process deals its windows itself.
    state = dict(self.__dict__)
    del state["_lock"]
    return state | {"_own": OrderedDict(), "_windows": OrderedDict()}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._lock = threading.Lock()

  def row(self, step: int, row: int) -> list[int]:
    """Positions of the records in a row of a step, in the order in which they lie there."""
    number, place = divmod(step, self.settings.window)
    return self.window(number).rows[place * self.rows + row]

  def left_out(self, step: int) -> list[int]:
    """Positions of records that no batch has, told with the first step of the next window."""
    number, place = divmod(step, self.settings.window)
    if place:
      return []
    return self.window(number).left_out

  def window(self, number: int) -> Window:
    """The rows of window `number`."""
    with self._lock:
      if number not in self._windows:
        self._windows[number] = self._dealt(number)
        while len(self._windows) > KEPT:
          self._windows.popitem(last=False)
      return self._windows[number]

  def _dealt(self, number: int) -> Window:
    """Objects of a window, and those that the one before had no room for."""
    own_N2, own = self._alone(number)
    per_window = self.objects * self.settings.window
    first = number * per_window
    if number == 0:
      return Window(_shifted(own.rows, first), [])

    # a second chance behind the others: no other window than the one before has a say
    _, before = self._alone(number - 1)
    waiting = [first - per_window + n for n in before.left_out]
    if not waiting:
      return Window(_shifted(own.rows, first), [])
    late_N2 = np.array([self._counts(position) for position in waiting])
    both = deal(own_N2, self.shape, len(own.rows), late_N2)
    positions = [*range(first, first + per_window), *waiting]
    rows = [[positions[n] for n in row] for row in both.rows]
    again = [positions[n] for n in both.left_out if n >= per_window]
    return Window(rows, again)

  def _alone(self, number: int) -> tuple[np.ndarray, Dealt]:
    """Sizes of the objects of a window, and these objects in its rows."""
    if number not in self._own:
      per_window = self.objects * self.settings.window
      first = number * per_window
      sizes = [self._counts(position) for position in range(first, first + per_window)]
      own_N2 = np.array(sizes)
      dealt = deal(own_N2, self.shape, self.rows * self.settings.window)
      self._own[number] = own_N2, dealt
      while len(self._own) > KEPT:
        self._own.popitem(last=False)
    return self._own[number]

  def check(self) -> None:
    """Raises ConfigError if the rows of the first steps have no room for the objects of a step."""
    lost = 0
    for number in range(LOOKED_AT):
      own_N2, own = self._alone(number)
      lost += len(own.left_out)
    drawn = LOOKED_AT * len(own_N2)
    if lost <= MOST_LEFT_OUT * drawn:
      return
    fitting = 0.98 * (drawn - lost) / drawn * self.settings.per_row
    raise ConfigError(
      f"data.packing.per_row = {self.settings.per_row:g}: {lost} of the first {drawn} objects find "
      f"no room in {self.rows} rows of model.row.voxels = {self.shape.voxels} slots and "
      f"model.row.objects = {self.shape.objects} places: give about {fitting:.3g}"
    )


def _shifted(rows: Sequence[Sequence[int]], first: int) -> list[list[int]]:
  """Numbers within a window as positions of the run."""
  return [[first + n for n in row] for row in rows]
