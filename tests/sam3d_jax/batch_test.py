"""The types that cross to the device: what their tables say of them."""

import inspect

from sam3d_jax import batch


def test_the_batch_types_that_say_who_has_which_latent_are_those_that_may_lack_one():
  types = [value for _, value in inspect.getmembers(batch, inspect.isclass)]
  with_presence = {t for t in types if "present" in getattr(t, "_fields", ())}
  assert with_presence == batch.MAY_LACK_LATENTS
