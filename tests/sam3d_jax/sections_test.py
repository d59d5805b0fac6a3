"""Sections of a configuration become dataclasses, or an error with key, value and remedy."""

from collections.abc import Mapping, Sequence
import dataclasses

from ml_collections import ConfigDict
import pytest

from sam3d_jax import sections
from sam3d_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Rule:
  """One field of every kind."""

  needed: int
  size: float = 1.0
  name: str = "a"
  on: bool = True
  names: tuple[str, ...] = ()
  span: tuple[float, float] = (0.0, 1.0)
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  listed: Sequence[int] = ()
  maybe: float | None = None

  def __post_init__(self):
    sections.check_choice(self, "name", ("a", "bb"))
    sections.check_positive(self, "size")
    sections.check_divides(self, "needed", "whole")
    if self.span[0] > self.span[1]:
      raise ConfigError("the.whole.key is wrong")
    if self.on and self.names == ("odd",):
      raise ValueError("odd names")

  @property
  def whole(self) -> int:
    return 12


def test_a_section_is_its_dataclass_with_lists_for_tuples_and_whole_numbers_for_numbers():
  values = {"needed": 3, "size": 2, "names": ["x"], "span": [0, 1], "weights": {"a": 1}}
  assert sections.typed(Rule, values, "rule") == Rule(**values)
  config = ConfigDict({"needed": 3, "weights": {"a": 1.0}})
  assert sections.typed(Rule, config, "rule") == Rule(needed=3, weights={"a": 1.0})


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"sise": 1.0}, "rule.sise is not a key of Rule; the nearest is 'size'; its keys are"),
    ({"needed": 2.0}, "rule.needed = 2.0 is not a whole number"),
    ({"needed": True}, "rule.needed = True is not a whole number"),
    ({"size": "big"}, "rule.size = 'big' is not a number"),
    ({"on": 1}, "rule.on = 1 is not True or False"),
    ({"names": ("a", 1)}, r"rule.names = \('a', 1\) is not a tuple, each element text"),
    ({"names": "a"}, "rule.names = 'a' is not a tuple, each element text"),
    ({"span": (1.0,)}, r"rule.span = \(1.0,\) is not a tuple of 2 \(a number, a number\)"),
    ({"weights": {"a": "x"}}, "rule.weights = {'a': 'x'} is not a mapping, each value a number"),
    ({"listed": (1.5,)}, "rule.listed = .* is not a tuple, each element a whole number"),
    ({"maybe": "x"}, "rule.maybe = 'x' is not a number or None"),
    ({"name": "b"}, "rule.name = 'b' is not one of a, bb; the nearest is"),
    ({"size": float("nan")}, "rule.size = nan is not a positive number"),
    ({"needed": 0}, "rule.needed = 0 is not a positive number"),
    ({"needed": 5}, "rule.needed = 5 does not divide whole = 12; the nearest that does is 4"),
    ({"names": ("odd",)}, "rule: odd names"),
    ({"span": (1.0, 0.0)}, "^the.whole.key is wrong"),
  ],
)
def test_a_wrong_key_or_value_is_a_configuration_error_with_its_whole_key(changes, words):
  with pytest.raises(ConfigError, match=words):
    sections.typed(Rule, {"needed": 3, **changes}, "rule")


def test_a_key_that_is_needed_and_missing_is_named():
  with pytest.raises(ConfigError, match="rule.needed is missing"):
    sections.typed(Rule, {}, "rule")
