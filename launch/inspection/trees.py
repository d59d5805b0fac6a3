"""Arrays by path as an indented tree."""

from collections.abc import Iterator, Mapping
import math

import jax


def tree_lines(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[str]:
  """A tree of leaves with shape and dtype; every folder with its number of values, and the
  total."""
  # Values below every folder.
  below: dict[str, int] = {}
  for path, leaf in leaves.items():
    for folder in _folders(path):
      below[folder] = below.get(folder, 0) + math.prod(leaf.shape)

  # Each folder above its first leaf.
  shown: set[str] = set()
  for path in sorted(leaves, key=lambda p: p.split("/")):
    folders = _folders(path)
    for depth, folder in enumerate(folders):
      if folder not in shown:
        shown.add(folder)
        yield f"{'  ' * depth}{folder.rpartition('/')[2]}/  {count_text(below[folder])}"
    leaf, name = leaves[path], path.rpartition("/")[2]
    yield f"{'  ' * len(folders)}{name}  {tuple(leaf.shape)} {leaf.dtype}"

  values = sum(math.prod(leaf.shape) for leaf in leaves.values())
  size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
  yield f"{len(leaves)} arrays, {count_text(values)} values, {size / 2**20:.1f} MiB"


def _folders(path: str) -> list[str]:
  """a/b/c -> a, a/b."""
  names = path.split("/")[:-1]
  return ["/".join(names[: depth + 1]) for depth in range(len(names))]


def count_text(n: int) -> str:
  """1234567 -> '1.235 M'."""
  if n >= 1e6:
    return f"{n / 1e6:.3f} M"
  return f"{n / 1e3:.1f} K" if n >= 1000 else str(n)
