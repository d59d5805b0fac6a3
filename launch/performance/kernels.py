"""Where the time of an NVIDIA GPU goes: kernels of a trace of JAX's profiler, added up by kind and
by name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
import re

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


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One execution."""

  name: str
  seconds: float

  @property
  def kind(self) -> str:
    return next(kind for kind, pattern in KINDS if re.search(pattern, self.name, re.IGNORECASE))


def read(folder: pathlib.Path) -> list[Kernel]:
  """All kernels of the newest trace under a folder, on all GPUs; none if it ran elsewhere."""
  import jax

  files = sorted(folder.glob("**/*.xplane.pb"), key=lambda f: f.stat().st_mtime)
  if not files:
    return []
  planes = [
    plane
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes
    if plane.name.startswith("/device:GPU")
  ]
  lines = [line for plane in planes for line in plane.lines if line.name.startswith("Stream")]
  return [Kernel(event.name, event.duration_ns / 1e9) for line in lines for event in line.events]


def sources(program: str) -> dict[str, str]:
  """Kernel name -> what it computes: shape of the result and the operation's path, from the text of
  a compiled program.

  Kernels that the compiler made are called as their instruction is, with underscores; those of
  libraries cannot be told apart.
  """
  found = re.findall(
    r'^\s+(?:ROOT )?%?([\w.-]+) = (\S+(?: \S+\))?) [^\n]*?op_name="([^"]*)"', program, re.MULTILINE
  )
  return {
    re.sub(r"[.-]", "_", name): f"{re.sub(r'{[^}]*}', '', shape)[:40]} {short(path)}"
    for name, shape, path in found
  }


def short(path: str) -> str:
  """An operation's path without the transformations that it went through."""
  outer = r"(jit|transpose|jvp|vmap)\(.*|rematted_computation|closed_call|while|body|checkpoint"
  scopes = [s for s in path.split("/") if not re.fullmatch(outer, s)]
  return "/".join(scopes[-4:])


def text(kernels: Iterable[Kernel], sources: Mapping[str, str], *, steps: int) -> str:
  """Tables of milliseconds a step."""
  kernels = list(kernels)
  whole = sum(k.seconds for k in kernels)
  lines = [f"  {whole / steps * 1e3:.1f} ms a step in {len(kernels) / steps:.0f} kernels"]
  lines += _table("kind", kernels, lambda k: k.kind, whole, steps)
  lines += _table(
    "kernel", kernels, lambda k: f"{k.name[:60]}  {sources.get(k.name, '')}", whole, steps
  )
  return "\n".join(lines)


def _table(title: str, kernels, key, whole: float, steps: int) -> list[str]:
  seconds, counts = defaultdict(float), defaultdict(int)
  for kernel in kernels:
    seconds[key(kernel)] += kernel.seconds
    counts[key(kernel)] += 1
  row = lambda k: (
    f"    {seconds[k] / steps * 1e3:8.2f} ms {seconds[k] / whole:6.1%} {counts[k] / steps:6.0f} x  "
    f"{k}"
  )
  return [f"  by {title}:", *map(row, sorted(seconds, key=seconds.get, reverse=True)[:SHOWN])]
