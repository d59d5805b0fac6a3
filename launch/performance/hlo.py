"""Reads an optimised HLO program: which collectives it runs, how often, over how many bytes, and
which of them leave a slice.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
import dataclasses
import math
import re

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
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
    share = (self.group - 1) / self.group
    return (
      self.count
      * self.size
      * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
    )


def collectives(text: str, slice_of: Sequence[int] = ()) -> list[Collective]:
  """The collectives of a program. slice_of: slice of every device in the order of the mesh; empty:
  all in one.

  A collective in the body of a loop counts as often as the loop runs; the loop's known trip count
  is part of the optimised program.
  """
  computations, entry = _computations(text)
  runs = _runs(computations, entry)
  found: dict[tuple, int] = defaultdict(int)
  for name, lines in computations.items():
    for line in lines if runs[name] else ():
      one = _collective(line, name, slice_of)
      if one is not None:
        found[one] += runs[name]
  return [
    Collective(kind, n, size, group, crosses) for (kind, size, group, crosses), n in found.items()
  ]


def summary(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """kind -> count, bytes (of the arrays) and traffic (sent by one chip) of a step; what leaves a
  slice apart, as `<kind>/dcn`.
  """
  out: dict[str, dict[str, float]] = {}
  for c in found:
    row = out.setdefault(
      c.kind + ("/dcn" if c.crosses else ""), {"count": 0, "bytes": 0, "traffic": 0.0}
    )
    row["count"] += c.count
    row["bytes"] += c.count * c.size
    row["traffic"] += c.traffic
  return dict(sorted(out.items()))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Computation name -> its lines, and the name of the entry."""
  computations: dict[str, list[str]] = {}
  current, entry = None, ""
  for line in text.splitlines():
    header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
    if header and not line.startswith("HloModule"):
      current = header.group(2)
      computations[current] = []
      entry = current if header.group(1) else entry
    elif current is not None and " = " in line:
      computations[current].append(line)
  return computations, entry


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
  """How often each computation runs in one step."""
  runs: dict[str, int] = defaultdict(int)

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
  condition = computations.get(re.search(r"\bcondition=%?([\w.\-]+)", line).group(1), ())
  limits = [
    int(n) for text in condition for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
  ]
  return max(limits, default=1)


def _collective(
  line: str, computation: str, slice_of: Sequence[int]
) -> tuple[str, int, int, bool] | None:
  match = re.search(r" = (.*?) (" + "|".join(KINDS) + r")(-start)?\(", line)
  if match is None:
    return None
  kind, size = (
    match.group(2),
    _size(match.group(1), started=bool(match.group(3)) and match.group(2) != "all-reduce"),
  )
  groups = _groups(line)
  group = max((len(g) for g in groups), default=len(slice_of) or 1)
  if group == 1 and kind != "collective-permute":
    return None
  crosses = bool(slice_of) and any(
    len({slice_of[i] for i in g}) > 1 for g in groups or [range(len(slice_of))]
  )
  if kind == "reduce-scatter":
    size *= group
  elif kind == "all-reduce" and "all-reduce-scatter" in computation:
    # the TPU compiler fuses the reduction with the slice that each chip keeps
    kind = "reduce-scatter"
  return kind, size, group, crosses


def _size(shape: str, *, started: bool) -> int:
  """Bytes of a result shape; the result tuple of a started operation also holds its operands, which
  are half of it or less.
  """
  sizes = [
    BYTES.get(t, 4) * math.prod(int(n) for n in dims.split(",") if n)
    for t, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
  ]
  if started:
    sizes = [n for n in sizes if n > 16]  # without context words
    return sum(sizes[len(sizes) // 2 :])
  return sum(sizes)


def _groups(line: str) -> list[list[int]]:
  """The groups of devices of a collective, in any of the ways that they are printed.

  `{{0,1},{2,3}}`, `[2,4]<=[8]`, `[2,4]<=[4,2]T(1,0)`, `mesh['a'=4,'b'=2] {'b'}` (groups along b;
  `'a':(2)2` is a part of an axis), or `source_target_pairs={{0,1}}`.
  """
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
  if iota:
    shape, dims = ([int(n) for n in iota.group(i).split(",")] for i in (1, 2))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if iota.group(3):
      ids = ids.transpose([int(n) for n in iota.group(3).split(",")])
    return ids.reshape(shape).tolist()
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line)
  if mesh:
    return _mesh_groups(
      re.findall(r"'([^']+)'=(\d+)", mesh.group(1)),
      re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh.group(2)),
    )
  listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
  return (
    [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed.group(1))]
    if listed
    else []
  )


def _mesh_groups(axes: list[tuple[str, str]], along: list[tuple[str, str, str]]) -> list[list[int]]:
  """Groups along some axes, or parts of axes, of a mesh whose devices are numbered in order."""
  parts = {name: (int(before), int(size)) if size else None for name, before, size in along}
  dims, chosen = [], []
  for name, text in axes:
    size = int(text)
    before, inside = parts[name] or (1, size) if name in parts else (size, 1)
    chosen.append(len(dims) + 1)
    dims += [before, inside, size // (before * inside)]
  ids = np.arange(math.prod(dims)).reshape(dims)
  rest = [i for i in range(len(dims)) if i not in chosen]
  return ids.transpose(rest + chosen).reshape(-1, math.prod(dims[i] for i in chosen)).tolist()
