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


def test_noise_depends_on_key_and_name_but_not_on_order_position_or_other_latents():
  content = geometry_batch().key
  noise = lambda content, shapes: quick_jit(
    lambda c: draws.noise(draws.example_keys(KEY, c), shapes)
  )(content)
  whole, turned = noise(content, SHAPES), noise(content[::-1], dict(reversed(SHAPES.items())))
  alone = noise(content[2:3], {"scale": SHAPES["scale"]})
  for k in SHAPES:
    np.testing.assert_array_equal(whole[k], turned[k][::-1])
  np.testing.assert_array_equal(whole["scale"][2:3], alone["scale"])


def test_noise_differs_between_steps_examples_halves_of_the_key_and_names():
  content = np.asarray([[1, 2], [2, 1], [1, 3]], np.uint32)
  step = lambda key: [draws.normal(draws.example_keys(key, content), name, (4,)) for name in "ab"]
  every = np.concatenate(sum((quick_jit(step)(jax.random.fold_in(KEY, i)) for i in (1, 2)), []))
  assert len(np.unique(every.round(6), axis=0)) == len(every)


def test_raw_keys_round_trip():
  keys_B = draws.example_keys(KEY, geometry_batch().key)
  np.testing.assert_array_equal(
    draws.uniform(draws.wrap_keys(draws.raw_keys(keys_B)), "t"), draws.uniform(keys_B, "t")
  )
