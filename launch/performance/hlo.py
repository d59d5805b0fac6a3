"""Reads an optimised HLO program: which collectives it runs, how often, over how many bytes, and
which of them leave a slice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import math
import re

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(r" = (.*?) (" + "|".join(KINDS) + r")(-start)?\(")
# of an element
BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "f32": 4,
  "s32": 4,
  "u32": 4,
  "f64": 8,
  "s64": 8,
  "u64": 8,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """kind: one of KINDS.  count: runs a step.  size: bytes of the whole array on each participant.
  group: participants. crosses: whether some group spans slices, and so goes over the data-centre
  network.
  """

  kind: str
  count: int
  size: int
  group: int
  crosses: bool

  @property
  def traffic(self) -> float:
    """Bytes that one participant sends in all runs of a step, with the ring algorithms."""
    share = (self.group - 1) / self.group  # everything but one's own part
    if self.kind == "all-reduce":
      sent = 2 * share  # a reduce-scatter and an all-gather
    elif self.kind == "collective-permute":
      sent = 1.0
    else:
      sent = share
    return self.count * self.size * sent


def collectives(text: str, slice_of: Sequence[int] = ()) -> list[Collective]:
  """The collectives of a program. slice_of: slice of every device in the order of the mesh; empty:
  all in one.

  A collective in the body of a loop counts as often as the loop runs; the loop's known trip count
  is part of the optimised program.
  """
  # every instruction counts as often as its computation runs
  computations, entry = _computations(text)
  runs = _runs(computations, entry)
  # equal collectives are one entry: (kind, size, group, crosses) -> runs a step
  counts: dict[tuple[str, int, int, bool], int] = defaultdict(int)
  for name, lines in computations.items():
    if not runs[name]:
      continue
    for line in lines:
      one = _collective(line, name, slice_of)
      if one is not None:
        counts[one] += runs[name]
  found = []
  for (kind, size, group, crosses), count in counts.items():
    found.append(Collective(kind, count, size, group, crosses))
  return found


def summary(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """kind -> count, bytes (of the arrays) and traffic (sent by one chip) of a step; what leaves a
  slice apart, as `<kind>/dcn`.
  """
  out: dict[str, dict[str, float]] = {}
  for c in found:
    name = f"{c.kind}/dcn" if c.crosses else c.kind
    row = out.setdefault(name, {"count": 0, "bytes": 0, "traffic": 0.0})
    row["count"] += c.count
    row["bytes"] += c.count * c.size
    row["traffic"] += c.traffic
  return dict(sorted(out.items()))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Computation name -> its lines, and the name of the entry."""
  computations: dict[str, list[str]] = {}
  current, entry = None, ""
  for line in text.splitlines():
    # a computation begins, or an instruction of it follows
    header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
    if header and not line.startswith("HloModule"):
      is_entry, current = header.groups()
      computations[current] = []
      if is_entry:
        entry = current
    elif current is not None and " = " in line:
      computations[current].append(line)
  return computations, entry


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
  """How often each computation runs in one step."""
  runs: dict[str, int] = defaultdict(int)

  # from the entry down, loops within loops multiplied
  def visit(name: str, times: int) -> None:
    runs[name] += times
    for line in computations[name]:
      for callee, n in _calls(line, computations):
        if callee in computations:
          visit(callee, times * n)

  visit(entry, 1)
  return runs


def _calls(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
  """Computations that an instruction runs, and how often."""
  # a loop, a call or a fusion, a choice by a number
  body = re.search(r"\bbody=%?([\w.\-]+)", line)
  if body:
    yield body.group(1), _trips(line, computations)
  for callee in re.findall(r"\b(?:calls|true_computation|false_computation)=%?([\w.\-]+)", line):
    yield callee, 1
  for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
    for callee in group.split(","):
      yield callee.strip().lstrip("%"), 1


def _trips(line: str, computations: dict[str, list[str]]) -> int:
  """How often a loop runs: as the compiler noted it, else the constant that its condition compares
  with; 1 if it has none.
  """
  noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
  if noted:
    return int(noted.group(1))
  condition = re.search(r"\bcondition=%?([\w.\-]+)", line).group(1)
  limits = []
  for instruction in computations.get(condition, ()):
    constants = re.findall(r"= s32\[\]\S* constant\((\d+)\)", instruction)
    limits += map(int, constants)
  return max(limits, default=1)


def _collective(
  line: str, computation: str, slice_of: Sequence[int]
) -> tuple[str, int, int, bool] | None:
  """(kind, bytes, participants, whether it crosses slices) of an instruction; None if it is no
  collective, or one of every device with itself.
  """
  match = COLLECTIVE.search(line)
  if match is None:
    return None
  shape, kind, started = match.groups()
  # the result of a started all-reduce is its result alone
  with_operands = started is not None and kind != "all-reduce"
  size = _size(shape, started=with_operands)

  # Who takes part; no groups: everyone.
  groups = _groups(line)
  if groups:
    group = max(len(members) for members in groups)
  else:
    group = len(slice_of) or 1
  if group == 1 and kind != "collective-permute":
    return None
  crosses = bool(slice_of) and _crosses(groups or [range(len(slice_of))], slice_of)

  if kind == "reduce-scatter":
    size *= group
  elif kind == "all-reduce" and "all-reduce-scatter" in computation:
    # the TPU compiler fuses the reduction with the slice that each chip keeps
    kind = "reduce-scatter"
  return kind, size, group, crosses


def _crosses(groups: Iterable[Iterable[int]], slice_of: Sequence[int]) -> bool:
  """Whether some group has members in several slices."""
  for members in groups:
    slices = {slice_of[member] for member in members}
    if len(slices) > 1:
      return True
  return False


def _size(shape: str, *, started: bool) -> int:
  """Bytes of a result shape; the result tuple of a started operation also holds its operands, which
  are half of it or less.
  """
  sizes = []
  for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
    elements = math.prod(_numbers(dims))
    sizes.append(BYTES.get(dtype, 4) * elements)
  if started:
    sizes = [size for size in sizes if size > 16]  # without context words
    return sum(sizes[len(sizes) // 2 :])
  return sum(sizes)


def _numbers(text: str) -> list[int]:
  """'2,4' -> [2, 4], '' -> []."""
  return [int(number) for number in text.split(",") if number]


def _groups(line: str) -> list[list[int]]:
  """The groups of devices of a collective, in any of the ways that they are printed.

  `{{0,1},{2,3}}`, `[2,4]<=[8]`, `[2,4]<=[4,2]T(1,0)`, `mesh['a'=4,'b'=2] {'b'}` (groups along b;
  `'a':(2)2` is a part of an axis), or `source_target_pairs={{0,1}}`.
  """
  # the devices in order, reshaped, transposed and reshaped again
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
  if iota:
    shape, dims, order = iota.groups()
    ids = _in_order(_numbers(dims))
    if order:
      ids = ids.transpose(_numbers(order))
    return ids.reshape(_numbers(shape)).tolist()

  # some axes of a mesh
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line)
  if mesh:
    axes = re.findall(r"'([^']+)'=(\d+)", mesh.group(1))
    along = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh.group(2))
    return _mesh_groups(axes, along)

  # one by one
  listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
  if listed:
    groups = re.findall(r"\{([\d,]+)\}", listed.group(1))
    return [_numbers(group) for group in groups]
  return []


def _in_order(dims: Sequence[int]) -> np.ndarray:
  """The numbers of devices, counted up along the last dimension first."""
  return np.arange(math.prod(dims)).reshape(dims)


def _mesh_groups(axes: list[tuple[str, str]], along: list[tuple[str, str, str]]) -> list[list[int]]:
  """Groups along some axes, or parts of axes, of a mesh whose devices are numbered in order.

  axes: (name, size). along: (name, before, size), the last two empty where the whole axis is meant.
  """
  parts = {name: (before, size) for name, before, size in along}
  # Every axis is split in three: what lies before the part, the part, what lies behind it.
  dims, inside_dims = [], []
  for name, text in axes:
    size = int(text)
    if name not in parts:
      before, inside = size, 1
    elif not any(parts[name]):
      before, inside = 1, size
    else:
      before, inside = map(int, parts[name])
    inside_dims.append(len(dims) + 1)
    dims += [before, inside, size // (before * inside)]

  # Devices that differ in the parts alone are one group.
  outside_dims = [i for i in range(len(dims)) if i not in inside_dims]
  group = math.prod(dims[i] for i in inside_dims)
  ids = _in_order(dims).transpose(outside_dims + inside_dims)
  return ids.reshape(-1, group).tolist()
