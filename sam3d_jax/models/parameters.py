"""A module's parameters as a flat mapping: path -> array, paths '/'-separated.

Flat parameters are what checkpoints hold, what rules of sharding and freezing match, and what the
bridge to published files converts. Modules may be abstract (`nnx.eval_shape`); then their
parameters are shape structs.
"""

from collections.abc import Callable, Iterator, Mapping
import hashlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.errors import InputError


class ParameterMismatch(InputError):
  """Parameters do not fit a model; the message lists every difference."""


class LazyParams(Mapping):
  """Flat parameters of known shapes, each array made when it is asked for; the last one is kept."""

  def __init__(self, shapes: Mapping[str, tuple[int, ...]], make: Callable[[str], np.ndarray]):
    self.shapes = dict(shapes)
    self._make = make
    # path and array
    self._last = (None, None)

  def __getitem__(self, path: str) -> np.ndarray:
    # As a dictionary would.
    if path not in self.shapes:
      raise KeyError(path)
    if self._last[0] != path:
      # let go of the last one before the next is made
      self._last = (None, None)
      array = self._make(path)
      self._last = (path, array)
    return self._last[1]

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def flat_params(module: nnx.Module) -> dict[str, jax.Array]:
  """Path -> parameter of a module: arrays or, for an abstract module, shape structs."""
  params = {}
  # Parameters only: other state is none of a model's arrays.
  state = nnx.state(module, nnx.Param)
  for path, leaf in nnx.to_flat_state(state):
    # An abstract module has shape structs, which cannot be indexed.
    value = leaf.get_value()
    if isinstance(value, jax.Array):
      value = leaf[...]
    params[_joined(path)] = value
  return params


def flat_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
  """Path -> shape of a module's parameters; the module may be abstract."""
  params = flat_params(module)
  return {path: tuple(leaf.shape) for path, leaf in params.items()}


def shapes_of(params: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
  """Path -> shape of flat parameters; lazy ones are not made for it."""
  # lazy parameters know theirs
  if isinstance(params, LazyParams):
    return params.shapes
  return {path: tuple(array.shape) for path, array in params.items()}


def check_shapes(
  given: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]]
) -> None:
  """Raises ParameterMismatch, listing every difference, unless paths and shapes are as needed."""
  # missing ones first, then those that the model does not have, then misshapen ones
  problems = []
  for path, shape in needed.items():
    if path not in given:
      problems.append(f"missing     {path} {shape}")
  for path, shape in given.items():
    if path not in needed:
      problems.append(f"unexpected  {path} {tuple(shape)}")
  for path, shape in needed.items():
    if path not in given:
      continue
    own = tuple(given[path])
    shape = tuple(shape)
    if own != shape:
      problems.append(f"misshapen   {path}: {own}, model needs {shape}")

  if problems:
    listed = "\n  ".join(problems)
    raise ParameterMismatch(f"parameters do not fit the model:\n  {listed}")


def load_params(module: nnx.Module, params: Mapping[str, np.ndarray]) -> None:
  """Writes flat parameters into a module in place, each cast to the dtype that it has there.

  Raises ParameterMismatch unless paths and shapes agree exactly.
  """
  check_shapes(shapes_of(params), flat_shapes(module))
  state = nnx.state(module, nnx.Param)
  for path, leaf in nnx.to_flat_state(state):
    array = params[_joined(path)]
    # Published files may hold half precision; the module keeps its own.
    dtype = leaf.get_value().dtype
    leaf.set_value(jnp.asarray(array, dtype))


def params_digest(params: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over names, types, shapes and values.

  It is what latents carry as the name of the autoencoder that made them.
  """
  digest = hashlib.sha256()
  # Sorted: the order of a mapping is no part of its content.
  for path in sorted(params):
    array = np.asarray(params[path])
    header = f"{path} {array.dtype} {array.shape}"
    digest.update(header.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def _joined(path: tuple) -> str:
  names = map(str, path)
  return "/".join(names)
