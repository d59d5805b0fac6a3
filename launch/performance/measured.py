"""What training has been measured to reach: the rows of docs/benchmarks.md, "Measured steps", that
are of accelerators. A test holds the two together.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
  """One measurement of the Geometry model.

  kind: of device, as JAX calls it. remat, unroll: keys of `model.flow`. mfu: share of the peak.
  date: of its row.
  """

  kind: str
  remat: str
  unroll: bool
  mfu: float
  date: str


ROWS = (
  Row("NVIDIA H200", "operands", True, 0.443, "2026-11-26"),
  Row("NVIDIA H200", "attention", False, 0.376, "2026-11-26"),
)
# kinds with the same compute units and peak as a measured one
LIKE = {"NVIDIA H100 80GB HBM3": "NVIDIA H200"}


def rows_of(kind: str) -> list[Row]:
  """Measurements of a kind of device, or of the one that it is like."""
  measured_kind = LIKE.get(kind, kind)
  return [row for row in ROWS if row.kind == measured_kind]


def fastest(kind: str) -> Row | None:
  """The fastest measurement of a kind of device; None without any."""
  return max(rows_of(kind), key=mfu_of, default=None)


def utilisation(kind: str, remat: str) -> tuple[float, str] | None:
  """MFU of a kind of device with a policy, the lowest that was measured if not with that one, and
  where it comes from; None for a kind that was not measured.
  """
  rows = rows_of(kind)
  if not rows:
    return None
  same = [row for row in rows if row.remat == remat]
  lowest = min(same or rows, key=mfu_of)
  source = "measured" if kind == lowest.kind else f"as {lowest.kind}"
  return lowest.mfu, source


def mfu_of(row: Row) -> float:
  return row.mfu
