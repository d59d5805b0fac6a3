"""Names: a bijection between the published PyTorch state dicts and our parameter paths.

A model's names are a list of `Rule`s, written beside the model they describe (`names_*.py`). A rule
ties one torch name to one of our paths; `{n}` in the torch name runs over the layers of a scanned
stack, whose parameters carry a leading layer axis here. Every torch entry and every parameter of
ours must be hit exactly once, both ways; anything else is reported, all at once.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from sam3d_jax.models.parameters import ParameterMismatch

SHOWN_SIZES = 3  # pairs of lengths that are named where a file does not fit
LAYOUTS = ("plain", "linear", "conv", "sparse_conv")


class KeyMismatch(ParameterMismatch):
  """State dict and model do not fit; the message lists every missing, unexpected, misshapen
  entry."""


@dataclasses.dataclass(frozen=True)
class Size:
  """A key of the configuration that shapes in a file tell.

  key: dotted. configured: its value. torch: published name of the entry whose length `axis` is the
  file's value; without an axis, what stands before the numbers of layers, which are counted.
  of_length: the value from that length, where it is not the length itself.
  """

  key: str
  configured: Any
  torch: str
  axis: int | None = None
  of_length: Callable[[int], Any] | None = None

  def in_file(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The value of a file with these entries; None if it has none that tells."""
    if self.axis is None:
      return layers_of(self.torch, shapes) or None
    shape = shapes.get(self.torch, ())
    if not -len(shape) <= self.axis < len(shape):
      return None
    length = shape[self.axis]
    return length if self.of_length is None else self.of_length(length)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One correspondence.

  torch: published name, with `{n}` where a layer index stands if `stacked`.
  ours: our parameter path, `/`-separated; None for a buffer that we compute (`buffer` makes it).
  layout: plain (same order, any reshape), linear (torch (out, in), ours (*in, *out)), conv (torch
    (O, I, *k), ours (*k, I, O)), sparse_conv (torch (O, *k, I), ours (*k, I, O)).
  dims_in: how many leading dimensions of our kernel (after the layer axis) are inputs, of `linear`.
  torch_shape: shape on the torch side where a plain reshape cannot tell it; otherwise derived.
  stacked: our leaf has a leading layer axis.
  buffer: makes the torch-side array of a buffer.
  half: the published fp16 storage keeps this entry in fp16 (norms, embeddings and output layers
    stay fp32).
  rows: of a table whose rows the published code numbers otherwise, which of ours each of its rows
    holds. One of ours that none holds comes back as zeros, which is how an unread row starts.
  """

  torch: str
  ours: str | None
  layout: str = "plain"
  dims_in: int = 1
  torch_shape: tuple[int, ...] | None = None
  stacked: bool = False
  buffer: Callable[[], np.ndarray] | None = None
  half: bool = False
  rows: tuple[int, ...] | None = None

  def __post_init__(self):
    if self.layout not in LAYOUTS:
      raise ValueError(f"{self.torch}: layout {self.layout!r} is not one of {LAYOUTS}")
    has_layer_index = "{n}" in self.torch
    if self.stacked != has_layer_index:
      raise ValueError(
        f"{self.torch}: a stacked rule, and only a stacked rule, has {{n}} in its name"
      )

  def shape_in_torch(self, our_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Torch-side shape of one entry, given our shape without the layer axis."""
    if self.torch_shape is not None:
      return self.torch_shape
    if self.layout == "linear":
      inputs = our_shape[: self.dims_in]
      outputs = our_shape[self.dims_in :]
      return math.prod(outputs), math.prod(inputs)
    if self.layout == "conv":
      *kernel, channels_in, channels_out = our_shape
      return channels_out, channels_in, *kernel
    if self.layout == "sparse_conv":
      *kernel, channels_in, channels_out = our_shape
      return channels_out, *kernel, channels_in
    return our_shape

  def to_ours(self, array: np.ndarray, our_shape: tuple[int, ...]) -> np.ndarray:
    """One torch entry in our layout."""
    if self.rows is not None:
      array = self._our_rows(array)
    # our axes in order, then split over several dimensions where ours are
    if self.layout == "linear":
      array = array.T
    elif self.layout == "conv":
      array = np.moveaxis(array, (0, 1), (-1, -2))
    elif self.layout == "sparse_conv":
      array = np.moveaxis(array, 0, -1)
    return array.reshape(our_shape)

  def _our_rows(self, published: np.ndarray) -> np.ndarray:
    """A published table with its rows where ours have them."""
    table = np.zeros_like(published)
    for row in set(self.rows):
      first = self.rows.index(row)  # of those that hold it, if several do
      table[row] = published[first]
    return table

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """One of our arrays (no layer axis) in torch's layout, contiguous."""
    shape = self.shape_in_torch(array.shape)
    if self.rows is not None:
      array = array[list(self.rows)]
    # the way back: one dimension a side, then torch's order
    if self.layout == "linear":
      outputs, inputs = shape
      array = array.reshape(inputs, outputs).T
    elif self.layout == "conv":
      array = np.moveaxis(array, (-1, -2), (0, 1))
    elif self.layout == "sparse_conv":
      array = np.moveaxis(array, -1, 0)
    return np.ascontiguousarray(array.reshape(shape))


class Entry(NamedTuple):
  """One published entry of a model."""

  name: str
  rule: Rule
  layer: int | None  # of a stacked rule
  shape: tuple[int, ...]  # in torch

  def array(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """The entry in torch's layout, of our flat parameters, or computed if it is a buffer."""
    if self.rule.ours is None:
      return self.rule.buffer()
    leaf = np.asarray(params[self.rule.ours])
    if self.layer is not None:
      leaf = leaf[self.layer]
    return self.rule.to_torch(leaf)


def prefixed(rules: Iterable[Rule], torch: str = "", ours: str = "") -> list[Rule]:
  """The rules with a prefix put before both kinds of name."""
  out = []
  for rule in rules:
    path = rule.ours
    if path is not None:
      path = ours + path
    out.append(dataclasses.replace(rule, torch=torch + rule.torch, ours=path))
  return out


def expand(rules: Iterable[Rule], our_shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
  """Every published entry of the model whose parameters have `our_shapes`, in rule order."""
  for rule in rules:
    # a buffer
    if rule.ours is None:
      shape = tuple(rule.buffer().shape)
      yield Entry(rule.torch, rule, None, shape)
      continue

    # one parameter
    our_shape = tuple(our_shapes[rule.ours])
    if not rule.stacked:
      yield Entry(rule.torch, rule, None, rule.shape_in_torch(our_shape))
      continue

    # every layer of a stack
    depth, *rest = our_shape
    shape = rule.shape_in_torch(tuple(rest))
    for layer in range(depth):
      yield Entry(rule.torch.format(n=layer), rule, layer, shape)


def torch_names(
  rules: Iterable[Rule], our_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
  """Published name -> shape of the model whose parameters have `our_shapes`. Takes no memory."""
  return {entry.name: entry.shape for entry in expand(rules, our_shapes)}


def to_ours(
  rules: list[Rule], state: Mapping[str, np.ndarray], our_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Converts a published state dict to our flat parameters (path -> array).

  Raises KeyMismatch naming every missing, unexpected and misshapen entry, before anything is
  converted.
  """
  torch_shapes = {name: tuple(array.shape) for name, array in state.items()}
  check(rules, torch_shapes, our_shapes)
  out: dict[str, np.ndarray] = {}
  for name, rule, layer, _ in expand(rules, our_shapes):
    # a buffer, which we compute
    path = rule.ours
    if path is None:
      continue

    # a whole parameter
    array = np.asarray(state[name])
    shape = our_shapes[path]
    if layer is None:
      out[path] = rule.to_ours(array, shape)
      continue

    # one layer of a stack
    if path not in out:
      out[path] = np.empty(shape, array.dtype)
    out[path][layer] = rule.to_ours(array, shape[1:])
  return out


def to_torch(rules: list[Rule], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Converts our flat parameters to the published state dict, buffers included.

  Raises KeyMismatch for paths that no rule names.
  """
  shapes = {path: tuple(array.shape) for path, array in params.items()}
  check_paths(rules, shapes)
  state = {}
  for entry in expand(rules, shapes):
    state[entry.name] = entry.array(params)
  return state


def check(
  rules: list[Rule],
  torch_shapes: Mapping[str, tuple[int, ...]],
  our_shapes: Mapping[str, tuple[int, ...]],
  sizes: Sequence[Size] = (),
) -> None:
  """Raises KeyMismatch unless the two sides fit exactly. sizes: what the message begins with."""
  check_paths(rules, our_shapes)
  expected = torch_names(rules, our_shapes)

  # What is missing, then what is too much, then what has another shape.
  problems = []
  for name, shape in expected.items():
    if name not in torch_shapes:
      problems.append(f"missing     {name} {shape}")
  for name, shape in torch_shapes.items():
    if name not in expected:
      problems.append(f"unexpected  {name} {shape}")
  for name, shape in expected.items():
    if name in torch_shapes and tuple(torch_shapes[name]) != tuple(shape):
      problems.append(f"misshapen   {name}: file has {torch_shapes[name]}, model needs {shape}")
  if problems:
    told = told_keys(sizes, torch_shapes)
    if not told:
      told = told_sizes(rules, torch_shapes, our_shapes)
    lines = "\n  ".join(problems)
    raise KeyMismatch(f"{told}{len(problems)} entries do not fit the model:\n  {lines}")


def told_keys(sizes: Sequence[Size], torch_shapes: Mapping[str, tuple[int, ...]]) -> str:
  """The keys of the configuration in which a file is of another model, as the beginning of a
  message; '' if its shapes tell of none.
  """
  told = []
  for size in sizes:
    theirs = size.in_file(torch_shapes)
    if theirs is not None and theirs != size.configured:
      told.append(f"file has {size.key} = {theirs}, the configuration {size.configured}")
  return "; ".join(told) + ": " if told else ""


def told_sizes(
  rules: list[Rule],
  torch_shapes: Mapping[str, tuple[int, ...]],
  our_shapes: Mapping[str, tuple[int, ...]],
) -> str:
  """The sizes in which a file and the configured model differ, as the beginning of a message; '' if
  names alone differ.
  """
  # Layers of each stack, which are numbered in the published names.
  depths = {}
  for rule in rules:
    if rule.stacked:
      stack, _, _ = rule.torch.partition("{n}")
      depths[stack] = our_shapes[rule.ours][0]
  told = []
  for stack, depth in depths.items():
    layers = layers_of(stack, torch_shapes)
    if layers and layers != depth:
      told.append(f"file has depth {layers} in {stack.rstrip('.')}, the configuration {depth}")

  # Widths: the pairs of lengths that stand in the same place.
  pairs: collections.Counter[tuple[int, int]] = collections.Counter()
  for name, shape in torch_names(rules, our_shapes).items():
    there = torch_shapes.get(name, ())
    if len(there) == len(shape):
      pairs.update({pair for pair in zip(there, shape, strict=True) if pair[0] != pair[1]})
  for (theirs, ours), entries in pairs.most_common(SHOWN_SIZES):
    told.append(f"file has size {theirs} where the configuration has {ours} ({entries} entries)")
  return "; ".join(told) + ": " if told else ""


def layers_of(stack: str, names: Iterable[str]) -> int:
  """How many layers the names number behind a stack's prefix; 0 if it has none."""
  numbers = set()
  for name in names:
    if not name.startswith(stack):
      continue
    number, _, _ = name.removeprefix(stack).partition(".")
    if number.isdigit():
      numbers.add(int(number))
  return max(numbers, default=-1) + 1


def check_paths(rules: list[Rule], our_shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Raises KeyMismatch unless every rule names a parameter, and each is named by exactly one."""
  # How often the rules name each path.
  named: collections.Counter[str] = collections.Counter()
  for rule in rules:
    if rule.ours is not None:
      named[rule.ours] += 1

  # What only the rules have, what only the model has, and what has two rules.
  problems = []
  for path in named:
    if path not in our_shapes:
      problems.append(f"no parameter   {path}")
  for path in our_shapes:
    if path not in named:
      problems.append(f"no rule for    {path}")
  for path, times in named.items():
    if times > 1:
      problems.append(f"named twice    {path}")
  if problems:
    lines = "\n  ".join(problems)
    raise KeyMismatch(f"the rules and the model's parameters do not fit:\n  {lines}")
