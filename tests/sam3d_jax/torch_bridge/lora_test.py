"""Laws of folding low-rank adapters into kernels for export."""

import numpy as np
import pytest

from sam3d_jax.errors import InputError
from sam3d_jax.torch_bridge import lora
from tests.support.tiny_release import normal_arrays


def test_merging_adapters_adds_their_product():
  shapes = {
    "plain/kernel": (4, 2, 3),
    "plain/lora_a": (4, 5),
    "plain/lora_b": (5, 2, 3),
    "plain/bias": (2, 3),
    "stack/kernel": (3, 2, 4, 6),
    "stack/lora_a": (3, 2, 4, 3),
    "stack/lora_b": (3, 3, 6),
  }
  params = normal_arrays(shapes, seed=0)
  merged = lora.merge(params, shapes, scale=0.5)
  assert set(merged) == {"plain/kernel", "plain/bias", "stack/kernel"}

  # one kernel
  delta = np.einsum("ir,rjk->ijk", params["plain/lora_a"], params["plain/lora_b"])
  expected = params["plain/kernel"] + 0.5 * delta
  np.testing.assert_allclose(merged["plain/kernel"], expected, rtol=1e-5, atol=1e-5)

  # a stack of layers
  delta = np.einsum("nijr,nrk->nijk", params["stack/lora_a"], params["stack/lora_b"])
  expected = params["stack/kernel"] + 0.5 * delta
  np.testing.assert_allclose(merged["stack/kernel"], expected, rtol=1e-5, atol=1e-5)

  # what has no adapter
  np.testing.assert_array_equal(merged["plain/bias"], params["plain/bias"])


@pytest.mark.parametrize(
  "shapes",
  [
    {"x/lora_a": (4, 2), "x/kernel": (4, 3)},
    {"x/lora_a": (4, 2), "x/lora_b": (2, 3)},
    {"x/lora_a": (4, 2), "x/lora_b": (2, 5), "x/kernel": (4, 3)},
  ],
  ids=["no_partner", "no_kernel", "another_width"],
)
def test_adapters_that_do_not_fit_are_named(shapes):
  with pytest.raises(InputError, match="x"):
    lora.merge({}, shapes, scale=1.0)
