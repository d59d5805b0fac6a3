"""Where the time of an NVIDIA GPU goes: kernels of a trace of JAX's profiler, added up by kind and
by name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
import re

import jax

KINDS = (  # kind, what its kernels are called; the first that fits
  ("attention", r"fmha|flash|sdpa|cudnn.*(softmax|attn)"),
  ("matrix products", r"gemm|nvjet|cutlass|wgmma|xmma|cublas|matmul|splitk"),
  ("copies", r"memcpy|memset"),
  ("collectives", r"nccl"),
  ("reductions", r"reduce"),
  ("transposes", r"transpose"),
  ("element by element and other", r""),
)
SHOWN = 25  # kernels that are listed by name
# name, shape of the result, and path in the traced code
INSTRUCTION = re.compile(
  r'^\s+(?:ROOT )?%?([\w.-]+) = (\S+(?: \S+\))?) [^\n]*?op_name="([^"]*)"', re.MULTILINE
)
# parts of a path that say how an operation came to be, not what it is
TRANSFORMATION = re.compile(
  r"(jit|transpose|jvp|vmap)\(.*|rematted_computation|closed_call|while|body|checkpoint"
)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One execution."""

  name: str
  seconds: float

  @property
  def kind(self) -> str:
    fitting = [kind for kind, pattern in KINDS if re.search(pattern, self.name, re.IGNORECASE)]
    return fitting[0]


def read(folder: pathlib.Path) -> list[Kernel]:
  """All kernels of the newest trace under a folder, on all GPUs; none if it ran elsewhere."""
  files = list(folder.glob("**/*.xplane.pb"))
  if not files:
    return []
  newest = max(files, key=lambda file: file.stat().st_mtime)
  profile = jax.profiler.ProfileData.from_file(str(newest))
  # a plane a device, a line a stream, an event a kernel
  found = []
  for plane in profile.planes:
    if not plane.name.startswith("/device:GPU"):
      continue
    for line in plane.lines:
      if line.name.startswith("Stream"):
        found += [Kernel(event.name, event.duration_ns / 1e9) for event in line.events]
  return found


def sources(program: str) -> dict[str, str]:
  """Kernel name -> what it computes: shape of the result and the operation's path, from the text of
  a compiled program.

  Kernels that the compiler made are called as their instruction is, with underscores; those of
  libraries cannot be told apart.
  """
  found = {}
  for name, shape, path in INSTRUCTION.findall(program):
    # as the profiler shows it
    kernel = re.sub(r"[.-]", "_", name)
    without_layout = re.sub(r"{[^}]*}", "", shape)
    found[kernel] = f"{without_layout[:40]} {short(path)}"
  return found


def short(path: str) -> str:
  """An operation's path without the transformations that it went through."""
  scopes = [scope for scope in path.split("/") if not TRANSFORMATION.fullmatch(scope)]
  return "/".join(scopes[-4:])


def text(kernels: Iterable[Kernel], sources: Mapping[str, str], *, steps: int) -> str:
  """Tables of milliseconds a step. sources: what each kernel computes, as far as it is known."""
  # all of it, then by kind, then by name with what is known of where it comes from
  kernels = list(kernels)
  whole = sum(kernel.seconds for kernel in kernels)
  milliseconds = whole / steps * 1e3
  by_kind = [kernel.kind for kernel in kernels]
  by_name = []
  for kernel in kernels:
    source = sources.get(kernel.name, "")
    by_name.append(f"{kernel.name[:60]}  {source}")
  return "\n".join(
    [
      f"  {milliseconds:.1f} ms a step in {len(kernels) / steps:.0f} kernels",
      *_table("kind", by_kind, kernels, whole, steps),
      *_table("kernel", by_name, kernels, whole, steps),
    ]
  )


def _table(
  title: str, labels: list[str], kernels: list[Kernel], whole: float, steps: int
) -> list[str]:
  """Kernels with the same label added up, the longest first. whole: seconds of all of them."""
  seconds: dict[str, float] = defaultdict(float)
  counts: dict[str, int] = defaultdict(int)
  for label, kernel in zip(labels, kernels, strict=True):
    seconds[label] += kernel.seconds
    counts[label] += 1
  lines = [f"  by {title}:"]
  longest = sorted(seconds, key=seconds.get, reverse=True)
  for label in longest[:SHOWN]:
    milliseconds = seconds[label] / steps * 1e3
    share = seconds[label] / whole
    times = counts[label] / steps
    lines.append(f"    {milliseconds:8.2f} ms {share:6.1%} {times:6.0f} x  {label}")
  return lines
