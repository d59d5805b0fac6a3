"""Laws of the flow model over packed objects."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.models import latent_statistics
from sam3d_jax.models.latent_statistics import LatentStatistics
from sam3d_jax.sections import FieldError
from tests.support import tiny_texture
from tests.support.tiny_texture import TINY, Object, Row, flow, forward, input_gradients

A, B, C = Object(1, 200), Object(2, 300), Object(3, 77)
# where A lies among others
ROWS = {"first": (Row(A, B), 0), "last": (Row(C, B, A), 2), "between": (Row(B, A, C), 1)}


@pytest.mark.parametrize("where", ROWS)
def test_neither_place_nor_neighbours_change_an_object_in_a_single_bit(where):
  alone = Row(A)
  row, number = ROWS[where]
  expected = alone.of(0, forward()(*alone.inputs))
  found = row.of(number, forward()(*row.inputs))
  np.testing.assert_array_equal(found, expected)
  assert np.abs(expected).mean() > 0.1


def test_nor_do_they_change_the_gradients_of_its_latents_and_tokens():
  alone = Row(A)
  row, number = ROWS["last"]
  x_bar, tokens_bar = input_gradients()(*alone.inputs)
  others_x_bar, others_tokens_bar = input_gradients()(*row.inputs)
  np.testing.assert_array_equal(row.of(number, others_x_bar), alone.of(0, x_bar))
  np.testing.assert_array_equal(others_tokens_bar[0, number], tokens_bar[0, 0])
  # places without an object have no part in anything
  assert not np.asarray(tokens_bar[0, 1:]).any()
  assert np.abs(tokens_bar[0, 0]).max() > 1e-3


def test_what_padding_and_empty_places_hold_is_never_read():
  row = Row(A)
  x_RVC, t_RK, tokens_RKSD, voxels = row.inputs
  expected = forward()(*row.inputs)
  padding_RV1 = ~voxels.fine.valid_RV[..., None]
  filled_RVC = np.where(padding_RV1, 1e3, x_RVC)
  times_RK, other_RKSD = t_RK.copy(), tokens_RKSD.copy()
  times_RK[:, 1:], other_RKSD[:, 1:] = 0.9, 7.0
  found = forward()(filled_RVC, times_RK, other_RKSD, voxels)
  np.testing.assert_array_equal(found, expected)
  assert not np.where(padding_RV1, found, 0).any()


def test_an_order_of_voxels_is_no_part_of_an_object():
  order = np.random.default_rng(0).permutation(len(A.x_VC))
  moved = Object(1, 200)
  coords_V3 = A.tables.coords_V3[order]
  moved.tables = tiny_texture.packing.object_tables(coords_V3, tiny_texture.TABLES)
  moved.x_VC = A.x_VC[order]
  one, other = Row(A), Row(moved)
  expected = one.of(0, forward()(*one.inputs))[order]
  found = other.of(0, forward()(*other.inputs))
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rematerialisation_changes_no_gradient():
  row = Row(A, C)
  expected = input_gradients()(*row.inputs)
  computed_again = dataclasses.replace(TINY, remat="full")
  found = input_gradients(computed_again)(*row.inputs)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_a_step_size_without_an_embedder_for_it_is_refused():
  graph, params = flow()
  row = Row(A)
  with pytest.raises(ValueError, match="shortcut=True"):
    nnx.merge(graph, params)(*row.inputs, d_RK=np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("name", latent_statistics.PUBLISHED)
def test_latents_are_normalised_there_and_back(name):
  statistics = latent_statistics.named(name)
  assert len(statistics.mean) == 8
  latents = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
  normalised = latent_statistics.normalise(latents, statistics)
  back = latent_statistics.denormalise(jnp.asarray(normalised), statistics)
  np.testing.assert_allclose(back, latents, atol=1e-5)
  at_mean = latent_statistics.normalise(np.asarray([statistics.mean], np.float32), statistics)
  np.testing.assert_array_equal(at_mean, np.zeros((1, 8)))


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: latent_statistics.named("trelis"), "'trellis'"),
    (lambda: LatentStatistics((0.0,), (1.0, 1.0)), "1 channels and std 2"),
    (lambda: LatentStatistics((0.0,), (0.0,)), "positive"),
  ],
)
def test_wrong_statistics_are_refused(make, words):
  with pytest.raises(FieldError, match=words):
    make()


@pytest.mark.parametrize(
  "dtype, tolerance",
  [("float16", 0.01), pytest.param("bfloat16", 0.05, marks=pytest.mark.slow)],
)
def test_half_precision_stays_near_and_finite_where_latents_are_large(dtype, tolerance):
  row = Row(A, C)
  half = forward(dataclasses.replace(TINY, dtype=dtype))
  expected = forward()(*row.inputs)
  found = half(*row.inputs)
  assert found.dtype == jnp.float32
  scale = float(jnp.abs(expected).max())
  np.testing.assert_allclose(found, expected, atol=tolerance * scale)

  # norms, modulation, softmax and the residual stream are fp32
  x_RVC, *others = row.inputs
  assert np.isfinite(half(1e4 * x_RVC, *others)).all()
