"""Sections of a configuration as frozen dataclasses: each value checked, each error with its key.

    flow = sections.typed(GeometryFlowConfig, values, "model.flow")

A dataclass states what it takes: the types of its fields are held against the values, and its
`__post_init__` calls the checks below for what types cannot say. They name the field; `typed`, the
one place where a section becomes a dataclass, puts the rest of the key before it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import difflib
import math
import numbers
import types
import typing
from typing import Any

from ml_collections import ConfigDict

from sam3d_jax.errors import ConfigError

# those that products of matrices are computed in
COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
NEAR = 0.5  # similarity from which a known word is offered for an unknown one


class FieldError(ValueError):
  """A field of a dataclass has a wrong value. The message begins with the field's name."""


def typed(cls: type, values: Mapping[str, Any] | ConfigDict, section: str):
  """The dataclass of a section.

  values: key -> value. section: dotted key of the section, as a user writes it. Raises ConfigError
  naming key, value and remedy for a key that `cls` does not have, one that it needs, a value of
  another type, and whatever its constructor refuses.
  """
  if isinstance(values, ConfigDict):
    values = values.to_dict()

  # Keys: all of them known, none that is needed missing.
  fields = {field.name: field for field in dataclasses.fields(cls)}
  unknown = sorted(set(values) - set(fields))
  if unknown:
    listed = ", ".join(sorted(fields))
    raise ConfigError(
      f"{section}.{unknown[0]} is not a key of {cls.__name__}{nearest(unknown[0], fields)}; its "
      f"keys are {listed}"
    )
  for name, field in fields.items():
    optional = field.default is not dataclasses.MISSING
    made = field.default_factory is not dataclasses.MISSING
    if name not in values and not optional and not made:
      raise ConfigError(f"{section}.{name} is missing: {cls.__name__} needs it")

  # Values: first by their types, then by what the dataclass knows of them.
  check_types(typing.get_type_hints(cls), values, section)
  try:
    return cls(**values)
  except FieldError as error:
    raise ConfigError(f"{section}.{error}") from error
  # one that is a ConfigError names its whole key
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"{section}: {error}") from error


def check_types(hints: Mapping[str, Any], values: Mapping[str, Any], section: str) -> None:
  """Raises ConfigError for the first value that is not of its type.

  hints: key -> type; a key without one may have any value.
  """
  for key, value in values.items():
    hint = hints.get(key, Any)
    if not fits(value, hint):
      raise ConfigError(f"{section}.{key} = {value!r} is not {described(hint)}")


def fits(value: Any, hint: Any) -> bool:
  """Whether a value, as configurations or JSON hold it, is of a type: lists are tuples, whole
  numbers are numbers, true and false are none.
  """
  parts = typing.get_args(hint)
  origin = typing.get_origin(hint)

  # one of several types
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, part) for part in parts)

  # what holds others
  is_listed = isinstance(value, (tuple, list))
  if origin is tuple:
    return is_listed and _fits_tuple(value, parts)
  if origin is Sequence:
    return is_listed and all_fit(value, parts[0])
  if origin is Mapping:
    return isinstance(value, Mapping) and all_fit(value.values(), parts[1])

  # to Python, true is a number
  if hint in NUMBERS:
    return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
  # what has no plain type is left to the constructor
  if not isinstance(hint, type):
    return True
  return isinstance(value, hint)


def all_fit(values: Iterable[Any], hint: Any) -> bool:
  """Whether every one of the values is of the type."""
  return all(fits(value, hint) for value in values)


def _fits_tuple(values: tuple | list, parts: tuple) -> bool:
  """Whether each element is of its type: `(X, ...)` is any number of one."""
  if parts[1:] == (Ellipsis,):
    return all_fit(values, parts[0])
  if len(values) != len(parts):
    return False
  pairs = zip(values, parts, strict=True)
  return all(fits(value, part) for value, part in pairs)


NUMBERS = {int: numbers.Integral, float: numbers.Real}
WORDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "text",
  type(None): "None",
}


def described(hint: Any) -> str:
  """A type in words."""
  parts = typing.get_args(hint)
  origin = typing.get_origin(hint)
  words = [described(part) for part in parts if part is not Ellipsis]

  # one of several types
  if origin in (typing.Union, types.UnionType):
    return " or ".join(words)

  # what holds others
  any_number = origin is Sequence or parts[1:] == (Ellipsis,)
  if any_number:
    return f"a tuple, each element {words[0]}"
  if origin is tuple:
    listed = ", ".join(words)
    return f"a tuple of {len(parts)} ({listed})"
  if origin is Mapping:
    return f"a mapping, each value {words[1]}"

  # a plain one
  name = getattr(hint, "__name__", str(hint))
  return WORDS.get(hint, name)


def differences(a, b, prefix: tuple[str, ...] = ()):
  """(key path, value in a, value in b) of every leaf that differs between nested dictionaries."""
  for key in sorted(set(a) | set(b)):
    path = (*prefix, key)
    x, y = a.get(key), b.get(key)
    if isinstance(x, dict) and isinstance(y, dict):
      yield from differences(x, y, path)
    elif as_recorded(x) != as_recorded(y):
      yield path, x, y


def as_recorded(value):
  """A value of a configuration as JSON gives it back: tuples are lists there."""
  if isinstance(value, tuple):
    return list(value)
  return value


def nearest(word: Any, known: Collection[str]) -> str:
  """'; the nearest is ...', or '' if none is near."""
  near = difflib.get_close_matches(
    str(word),
    known,
    n=1,
    cutoff=NEAR,
  )
  return f"; the nearest is {near[0]!r}" if near else ""


# Checks for `__post_init__`. cfg: the dataclass; names: of its fields.


def check_choice(cfg: Any, name: str, known: Collection[str]) -> None:
  """Raises FieldError unless the field is one of some words."""
  value = getattr(cfg, name)
  if value not in known:
    listed = ", ".join(known)
    near = nearest(value, known)
    raise FieldError(f"{name} = {value!r} is not one of {listed}{near}")


def check_dtype(cfg: Any, name: str = "dtype") -> None:
  """Raises FieldError unless the field is a type that matrix products are computed in."""
  check_choice(cfg, name, COMPUTE_DTYPES)


def check_positive(cfg: Any, *names: str) -> None:
  """Raises FieldError for a number that is not above 0 and finite."""
  for name in names:
    value = getattr(cfg, name)
    # written so that NaN does not pass
    if not 0 < value < math.inf:
      raise FieldError(f"{name} = {value} is not a positive number")


def check_not_negative(cfg: Any, *names: str) -> None:
  """Raises FieldError for a number below 0, or one that is not finite."""
  for name in names:
    value = getattr(cfg, name)
    if not 0 <= value < math.inf:
      raise FieldError(f"{name} = {value} is negative or not finite: give 0 or more")


def check_share(cfg: Any, *names: str) -> None:
  """Raises FieldError for a number outside [0, 1]."""
  for name in names:
    value = getattr(cfg, name)
    if not 0 <= value <= 1:
      raise FieldError(f"{name} = {value} is not a share: give a number from 0 to 1")


def check_range(cfg: Any, name: str, lowest: float, highest: float = math.inf) -> None:
  """Raises FieldError unless the field is a range (low, high) within these bounds."""
  low, high = getattr(cfg, name)
  inside = lowest <= low and high <= highest
  if low <= high and inside:
    return
  within = f"{lowest:g} upwards"
  if highest < math.inf:
    within = f"{lowest:g} to {highest:g}"
  raise FieldError(f"{name} = {(low, high)} is no range (low, high) within {within}")


def check_divides(cfg: Any, part: str, whole: str) -> None:
  """Raises FieldError unless the field `part` divides the field `whole`, both positive."""
  check_positive(cfg, part, whole)
  divisor = getattr(cfg, part)
  number = getattr(cfg, whole)
  if number % divisor:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    near = min(divisors, key=lambda n: abs(n - divisor))
    raise FieldError(
      f"{part} = {divisor} does not divide {whole} = {number}; the nearest that does is {near}"
    )
