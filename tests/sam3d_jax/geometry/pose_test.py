"""Poses, the published conventions, layout latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.geometry import pose, pose_targets, rotations
from tests.support.poses import RNG, scene_poses


def random_pose(*lead):
  quaternions = RNG.standard_normal((*lead, 4))
  translation = RNG.standard_normal((*lead, 3))
  scale = RNG.uniform(0.2, 3, (*lead, 1))
  return pose.Pose(
    rotation=rotations.quaternion_to_matrix(quaternions),
    translation=translation,
    scale=np.repeat(scale, 3, -1),
  )


def test_numpy_and_jax_agree_and_keep_their_array_type():
  given = random_pose(4)
  scale, shift = np.full(3, 2.0), np.ones(3)
  latents = pose.encode_latents(given, scale, shift)

  @jax.jit
  def encode(p):
    return pose.encode_latents(p, scale, shift)

  traced = encode(jax.tree.map(jnp.float32, given))
  for name, value in latents.items():
    assert isinstance(value, np.ndarray)
    assert isinstance(traced[name], jax.Array)
    np.testing.assert_allclose(value, traced[name], atol=2e-5)


@pytest.mark.parametrize("convention", pose_targets.CONVENTIONS)
def test_encode_then_decode_is_the_identity(convention):
  for given in (scene_poses(), scene_poses(1, 4), scene_poses(2, 3, channels=1)):
    target = pose_targets.encode(given, convention)
    back = pose_targets.decode(target, convention)
    for field, value in given._asdict().items():
      # one shared scale may come back as three equal ones
      found = getattr(back, field)
      expected = np.broadcast_to(value, found.shape)
      np.testing.assert_allclose(found, expected, atol=1e-9, err_msg=field)


@pytest.mark.parametrize("convention", pose_targets.CONVENTIONS)
def test_latents_of_a_pose_decode_to_that_pose(convention):
  given = random_pose(2, 5)
  given = given._replace(translation=given.translation + [0, 0, 5])
  scale = RNG.uniform(0.5, 2, (2, 5, 1)) * np.ones(3)
  shift = RNG.standard_normal((2, 5, 3))
  latents = pose.encode_latents(given, scale, shift, convention=convention)
  shapes = {name: latent.shape for name, latent in latents.items()}
  assert shapes == {
    "rotation": (2, 5, 1, 6),
    "translation": (2, 5, 1, 3),
    "scale": (2, 5, 1, 3),
    "translation_scale": (2, 5, 1, 1),
  }
  back = pose.decode_latents(latents, scale, shift, convention=convention)
  for field, value in given._asdict().items():
    found = getattr(back, field)
    np.testing.assert_allclose(found, value, atol=1e-6, err_msg=field)


def test_latents_are_the_published_formulas():
  given = random_pose()
  scale, shift = np.full(3, 2.0), np.array([1.0, 2, 3])
  latents = pose.encode_latents(given, scale, shift)
  np.testing.assert_allclose(latents["translation"][0], (given.translation - shift) / 2)
  np.testing.assert_allclose(latents["scale"][0], np.log(given.scale / 2))
  assert latents["translation_scale"] == 0
  # the first columns of R_rows
  columns = np.concatenate([given.rotation[0], given.rotation[1]])
  expected = (columns - rotations.SIX_D_MEAN) / rotations.SIX_D_STD
  np.testing.assert_allclose(latents["rotation"][0], expected, atol=1e-6)


def test_decoding_averages_the_three_scales_unless_told_not_to():
  one, zero = np.ones(3), np.zeros(3)
  given = random_pose()._replace(scale=np.array([1.0, 2.0, 6.0]))
  latents = pose.encode_latents(given, one, zero)
  mean = pose.decode_latents(latents, one, zero)
  np.testing.assert_allclose(mean.scale, [3, 3, 3])
  each = pose.decode_latents(latents, one, zero, isotropic=False)
  np.testing.assert_allclose(each.scale, [1, 2, 6])


@pytest.mark.parametrize("batch, objects", [(1, 3), (3, 1)])
def test_published_tiling_changes_nothing_for_one_scene_or_one_object(batch, objects):
  given = scene_poses(batch, objects)
  right = pose_targets.encode(given, "ScaleShiftInvariant")
  quirk = pose_targets.encode(given, "ScaleShiftInvariant", published_tiling=True)
  for a, b in zip(right, quirk, strict=True):
    np.testing.assert_array_equal(a, b)


def test_unknown_conventions_and_misplaced_whitening_are_refused():
  with pytest.raises(ValueError, match="'Metric' is not one of"):
    pose_targets.encode(scene_poses(), "Metric")
  with pytest.raises(ValueError, match="ScaleShiftInvariant only"):
    pose_targets.encode(scene_poses(), "Naive", whiten=True)


def test_whitening_inverts():
  given = scene_poses()
  target = pose_targets.encode(given, "ScaleShiftInvariant", whiten=True)
  back = pose_targets.decode(target, "ScaleShiftInvariant", whiten=True)
  np.testing.assert_allclose(back.translation, given.translation, atol=1e-6)
  np.testing.assert_allclose(back.scale, given.scale, atol=1e-6)


def test_transforming_points_inverts_and_equals_the_composed_matrix():
  given = random_pose(3)
  points = RNG.standard_normal((3, 7, 3))
  moved = pose.transform_points(points, given)
  back = pose.untransform_points(moved, given)
  np.testing.assert_allclose(back, points, atol=1e-9)

  rows = pose.transpose(given.rotation)
  matrix = pose.compose(given.scale, rows, given.translation)
  homogeneous = np.concatenate([points, np.ones((3, 7, 1))], -1)
  by_matrix = homogeneous @ matrix
  np.testing.assert_allclose(by_matrix[..., :3], moved, atol=1e-9)

  expected = (given.scale, rows, given.translation)
  for part, value in zip(pose.decompose(matrix), expected, strict=True):
    np.testing.assert_allclose(part, value, atol=1e-9)


def test_a_poses_rotation_acts_on_columns_and_its_columns_are_the_objects_axes():
  given = random_pose()
  point = RNG.standard_normal(3)
  expected = given.rotation @ (given.scale * point) + given.translation
  (found,) = pose.transform_points(point[None], given)
  np.testing.assert_allclose(found, expected, atol=1e-12)

  turn_only = given._replace(scale=np.ones(3), translation=np.zeros(3))
  axes = pose.transform_points(np.eye(3), turn_only)
  np.testing.assert_allclose(axes.T, given.rotation, atol=1e-12)


def test_the_rotation_latent_decodes_to_the_rotation():
  given = random_pose(2, 5).rotation
  latent = pose.encode_rotation(given)
  assert latent.shape == (2, 5, 6)
  np.testing.assert_allclose(pose.decode_rotation(latent), given, atol=1e-6)

  ones = np.ones((2, 5, 3))
  whole = pose.Pose(given, ones, ones)
  latents = pose.encode_latents(whole, np.ones(3), np.zeros(3))
  np.testing.assert_allclose(latent, latents["rotation"][..., 0, :], atol=1e-6)


def test_normalised_pose_and_normalised_points_agree():
  given = random_pose()
  points = RNG.standard_normal((9, 3))
  scale, shift = np.full(3, 1.7), np.array([0.3, -0.2, 2.0])
  latents = pose.encode_latents(given, scale, shift)
  normalised = pose.decode_latents(latents, np.ones(3), np.zeros(3))
  found = pose.transform_points(points, normalised)
  expected = (pose.transform_points(points, given) - shift) / scale
  np.testing.assert_allclose(found, expected, atol=1e-6)
