"""Examples packed into rows are trained on as if each had a row of its own."""

import functools

import jax
import numpy as np
import pytest

from sam3d_jax.batch import Conditioning, TextureBatch
from sam3d_jax.objectives import draws, examples
from sam3d_jax.objectives.flow_matching import flow_matching
from tests.support import tiny_texture
from tests.support.tiny_texture import Object, Row

A, B, C = Object(1, 200), Object(2, 300), Object(3, 77)


def batch_of(row: Row, absent: tuple[int, ...] = ()) -> TextureBatch:
  """A batch of one row."""
  has_RK = row.packed.voxels.fine.count_RK > 0
  has_RK[0, list(absent)] = False
  return TextureBatch(
    key=row.key_RK2,
    cond=Conditioning(image=row.tokens_RKSD),
    voxels=row.packed.voxels,
    latents={"slat": row.x_RVC},
    present={"slat": has_RK},
  )


class Linear:
  """A velocity of each voxel's own: latent, time and token, each with a factor."""

  step_conditioned = False

  def encode(self, cond, drop_pointmap_N=None):
    return cond.image

  def velocity(self, x, t_RK, tokens_RKSD, d_RK=None, *, voxels):
    told_RK1 = t_RK[..., None] + tokens_RKSD[..., 0, :1]
    told_RV1 = examples.sparse.per_slot(told_RK1, voxels.fine)
    return {"slat": 0.5 * x["slat"] + told_RV1}


@functools.cache
def compiled():
  def loss(batch, key, whole=None):
    return flow_matching(
      Linear(), None, batch, key, weights={"slat": 1.0}, drop_condition=0.3, whole=whole
    )

  return tiny_texture.jit(loss)


def loss_of(row: Row, absent: tuple[int, ...] = ()) -> tuple[float, dict]:
  value, metrics = compiled()(batch_of(row, absent), jax.random.key(7))
  return float(value), metrics


def test_noise_depends_on_object_and_voxel_alone():
  def noise(row):
    keys_RK = draws.wrap_keys(row.key_RK2)
    return examples.voxel_noise(keys_RK, row.packed.voxels.fine, {"slat": 3})["slat"]

  one, other = Row(A, B), Row(C, B, A)
  noise_A = one.of(0, noise(one))
  np.testing.assert_array_equal(other.of(2, noise(other)), noise_A)
  # two objects share voxels and no noise; the padding has none
  assert abs(noise_A.std() - 1) < 0.1 and abs(noise_A.mean()) < 0.1
  assert len(np.unique(np.concatenate([noise_A, one.of(1, noise(one))]))) == 3 * 500
  padding_RV = ~one.packed.voxels.fine.valid_RV
  assert not np.asarray(noise(one))[padding_RV].any()


def test_a_large_object_weighs_no_more_than_a_small_one():
  losses = [loss_of(Row(one))[0] for one in (A, B, C)]
  together, metrics = loss_of(Row(A, B, C))
  assert together == pytest.approx(np.mean(losses), rel=1e-5)
  assert len(set(losses)) == 3
  assert float(metrics["present/slat"]) == 1.0


def test_an_object_without_the_latent_is_left_out():
  without, metrics = loss_of(Row(A, B), absent=(1,))
  alone, _ = loss_of(Row(A))
  assert without == pytest.approx(alone, rel=1e-5)
  assert float(metrics["present/slat"]) == pytest.approx(1 / 3)
  # and so are empty places, in the losses by time too
  shares = [float(v) for k, v in metrics.items() if k.startswith("flow_time_share/")]
  assert sum(shares) == pytest.approx(1 / 3)


def test_a_batch_in_parts_has_the_loss_of_the_whole():
  row_a, row_b = Row(A, B), Row(C)
  parts = [batch_of(row_a), batch_of(row_b)]
  whole = {"slat": np.stack([part.present["slat"] for part in parts])}
  key = jax.random.key(7)
  both = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  together, _ = compiled()(both, key)
  losses = [float(compiled()(part, key, whole)[0]) for part in parts]
  assert np.mean(losses) == pytest.approx(float(together), rel=1e-5)
