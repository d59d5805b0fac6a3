"""Arrays by path as an indented tree."""

from collections import Counter
from collections.abc import Iterator, Mapping
import math

import jax


def tree_lines(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[str]:
  """A tree of leaves with shape and dtype; every folder with its number of values, and the
  total."""
  # Values of every leaf, and below every folder.
  values = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
  below: Counter[str] = Counter()
  for path, count in values.items():
    for folder in _folders(path):
      below[folder] += count

  # Each folder above its first leaf.
  shown: set[str] = set()
  paths = sorted(leaves, key=lambda path: path.split("/"))
  for path in paths:
    folders = _folders(path)
    for depth, folder in enumerate(folders):
      if folder in shown:
        continue
      shown.add(folder)
      pad = "  " * depth
      count = count_text(below[folder])
      yield f"{pad}{_name(folder)}/  {count}"
    leaf = leaves[path]
    pad = "  " * len(folders)
    shape = tuple(leaf.shape)
    yield f"{pad}{_name(path)}  {shape} {leaf.dtype}"

  # The total.
  total = sum(values.values())
  size = sum(values[path] * leaf.dtype.itemsize for path, leaf in leaves.items())
  mebibytes = size / 2**20
  yield f"{len(leaves)} arrays, {count_text(total)} values, {mebibytes:.1f} MiB"


def _name(path: str) -> str:
  """a/b/c -> c."""
  return path.rpartition("/")[2]


def _folders(path: str) -> list[str]:
  """a/b/c -> a, a/b."""
  folders = []
  folder = ""
  for name in path.split("/")[:-1]:
    folder += name
    folders.append(folder)
    folder += "/"
  return folders


def count_text(n: int) -> str:
  """1234567 -> '1.235 M'."""
  if n >= 1e6:
    return f"{n / 1e6:.3f} M"
  if n >= 1e3:
    return f"{n / 1e3:.1f} K"
  return str(n)
