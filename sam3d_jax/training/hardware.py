"""What one chip of each kind can do, by JAX's name of the device kind. Vendors' figures; the
sources stand beside them.
"""

import dataclasses

GB, GIB, TERA = 1e9, 2**30, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
  """peak: dense bf16 FLOP/s.  memory: bytes that a program may use.  bandwidth: of memory, bytes/s.
  link: between the chips of a slice, all links of a chip together in one direction, bytes/s.
  network: a chip's share of its host's network card, bytes/s.
  """

  peak: float
  memory: float
  bandwidth: float
  link: float
  network: float


# TPU: Google Cloud's system architecture pages (peak, bandwidth, inter-chip links); `memory` is
# what the compiler says is available. GPU: NVIDIA's data sheets (SXM; peak without sparsity, NVLink
# per direction); `network` is 400 Gbit/s a GPU, 200 on A100, and on TPU hosts of 4 chips 200
# Gbit/s.
CHIPS = {
  "TPU v4": Chip(275 * TERA, 31.75 * GIB, 1228 * GB, 150 * GB, 6.25 * GB),
  "TPU v5": Chip(459 * TERA, 95.74 * GIB, 2765 * GB, 300 * GB, 6.25 * GB),
  "TPU v5 lite": Chip(197 * TERA, 15.75 * GIB, 819 * GB, 100 * GB, 6.25 * GB),
  "TPU v6 lite": Chip(918 * TERA, 31.25 * GIB, 1640 * GB, 224 * GB, 6.25 * GB),
  "NVIDIA A100-SXM4-80GB": Chip(312 * TERA, 79 * GIB, 2039 * GB, 300 * GB, 25 * GB),
  "NVIDIA H100 80GB HBM3": Chip(989 * TERA, 79 * GIB, 3350 * GB, 450 * GB, 50 * GB),
  "NVIDIA H200": Chip(989 * TERA, 139 * GIB, 4800 * GB, 450 * GB, 50 * GB),
}


def full_rate(device_kind: str, flops_per_sample: float) -> float | None:
  """Samples/s of one chip at 100 % MFU; None where its peak is not known."""
  known = chip(device_kind)
  if known is None:
    return None
  return known.peak / flops_per_sample


def chip(device_kind: str) -> Chip | None:
  """The entry of a device kind; None if it has none (CPUs), so that no utilisation is quoted
  against an unknown peak.
  """
  return CHIPS.get(device_kind)
