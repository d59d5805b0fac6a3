"""Laws of the noise that an example draws."""

import jax
import numpy as np

from sam3d_jax.objectives import draws
from tests.support.tiny_objectives import (
  KEY,
  SHAPES,
  geometry_batch,
  quick_jit,
)


def noise(content, shapes):
  @quick_jit
  def draw(content):
    keys_B = draws.example_keys(KEY, content)
    return draws.noise(keys_B, shapes)

  return draw(content)


def test_noise_depends_on_key_and_name_but_not_on_order_position_or_other_latents():
  content = geometry_batch().key
  whole = noise(content, SHAPES)

  reversed_shapes = dict(reversed(SHAPES.items()))
  turned = noise(content[::-1], reversed_shapes)
  for name in SHAPES:
    np.testing.assert_array_equal(whole[name], turned[name][::-1])

  alone = noise(content[2:3], {"scale": SHAPES["scale"]})
  np.testing.assert_array_equal(whole["scale"][2:3], alone["scale"])


def test_noise_differs_between_steps_examples_halves_of_the_key_and_names():
  content = np.asarray([[1, 2], [2, 1], [1, 3]], np.uint32)

  @quick_jit
  def step(key):
    keys_B = draws.example_keys(key, content)
    return [draws.normal(keys_B, name, (4,)) for name in "ab"]

  every = []
  for number in (1, 2):
    every += step(jax.random.fold_in(KEY, number))
  rows = np.concatenate(every)
  assert len(np.unique(rows.round(6), axis=0)) == len(rows) == 12


def test_raw_keys_round_trip():
  keys_B = draws.example_keys(KEY, geometry_batch().key)
  back_B = draws.wrap_keys(draws.raw_keys(keys_B))
  np.testing.assert_array_equal(
    draws.uniform(back_B, "t"),
    draws.uniform(keys_B, "t"),
  )
