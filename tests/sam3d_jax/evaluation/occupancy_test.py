"""Voxel IoU and the baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.evaluation import occupancy


def random_grids(count: int, share: float = 0.3, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).random((count, 4, 4, 4)) < share


def test_iou_counts_shared_over_joint_voxels():
  # four voxels each, two shared; the second pair is empty on both sides
  pred = np.zeros((2, 2, 2, 2), bool)
  truth = np.zeros((2, 2, 2, 2), bool)
  pred[0, 0] = True
  truth[0, :, 0] = True
  ious = occupancy.voxel_iou(pred, truth)
  assert ious.tolist() == [1 / 3, 1.0]


def test_iou_is_the_same_under_jit():
  pred = random_grids(3)
  truth = random_grids(3, seed=1)
  compiled = jax.jit(occupancy.voxel_iou)
  got = compiled(jnp.asarray(pred), jnp.asarray(truth))
  np.testing.assert_allclose(got, occupancy.voxel_iou(pred, truth), rtol=1e-6)


def test_no_constant_cut_of_the_mean_beats_the_best_constant():
  truth = random_grids(7)
  mean = random_grids(9, seed=2).mean(0)
  best, threshold = occupancy.best_constant(mean, truth)

  # every cut there is
  by_hand = {}
  for cut in np.unique(mean):
    constant = np.broadcast_to(mean >= cut, truth.shape)
    by_hand[cut] = occupancy.voxel_iou(constant, truth).mean()
  assert best == pytest.approx(max(by_hand.values()))
  assert best == pytest.approx(by_hand[threshold])


def test_the_constant_is_perfect_where_all_objects_are_alike():
  grid = random_grids(1)[0]
  assert occupancy.best_constant(grid.astype(float), np.stack([grid] * 3)) == (1.0, 1.0)


def test_shuffled_iou_is_the_mean_over_all_mismatched_pairs():
  pred = random_grids(5)
  truth = random_grids(5, seed=3)
  ious = []
  for i in range(5):
    for j in range(5):
      if i != j:
        (iou,) = occupancy.voxel_iou(pred[i : i + 1], truth[j : j + 1])
        ious.append(iou)
  assert occupancy.shuffled_iou(pred, truth) == pytest.approx(np.mean(ious))
  with pytest.raises(ValueError, match="at least 2"):
    occupancy.shuffled_iou(pred[:1], truth[:1])


def test_rotation_error_is_the_angle_and_ignores_the_sign_of_a_quaternion():
  half = np.radians(15)
  turned = np.array([[np.cos(half), np.sin(half), 0, 0]])
  identity = np.array([[1.0, 0, 0, 0]])
  assert occupancy.rotation_error_deg(turned, identity) == pytest.approx(30)
  assert occupancy.rotation_error_deg(-turned, turned) == pytest.approx(0, abs=1e-5)
