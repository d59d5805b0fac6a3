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


def fastest(kind: str) -> Row | None:
  """The fastest measurement of a kind of device, or of one like it; None without any."""
  rows = [row for row in ROWS if row.kind == LIKE.get(kind, kind)]
  return max(rows, key=lambda row: row.mfu, default=None)


def utilisation(kind: str, remat: str) -> tuple[float, str] | None:
  """MFU of a kind of device with a policy, the lowest that was measured if not with that one, and
  where it comes from; None for a kind that was not measured.
  """
  measured_kind = LIKE.get(kind, kind)
  rows = [row for row in ROWS if row.kind == measured_kind]
  if not rows:
    return None
  same = [row for row in rows if row.remat == remat]
  lowest = min(same or rows, key=lambda row: row.mfu)
  source = "measured" if kind == measured_kind else f"as {measured_kind}"
  return lowest.mfu, source
