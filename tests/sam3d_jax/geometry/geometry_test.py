"""Rotations, poses, layout latents, cameras, frames; the worked example of docs/conventions.md."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.geometry import cameras, grids, normalisers, pose, preprocessing, remap, rotations
from tests.support.poses import RNG, scene_poses

QUATERNIONS = RNG.standard_normal((50, 4))
MATRICES = rotations.quaternion_to_matrix(QUATERNIONS)
CAMERA = cameras.Camera(50.0, 60.0, 20.5, 14.0, 40, 30)


def random_pose(*lead):
  return pose.Pose(
    rotations.quaternion_to_matrix(RNG.standard_normal((*lead, 4))),
    RNG.standard_normal((*lead, 3)),
    np.repeat(RNG.uniform(0.2, 3, (*lead, 1)), 3, -1),
  )


def test_matrices_of_quaternions_are_rotations():
  np.testing.assert_allclose(
    MATRICES @ np.swapaxes(MATRICES, -1, -2), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12
  )
  np.testing.assert_allclose(np.linalg.det(MATRICES), 1, atol=1e-12)
  turned = rotations.quaternion_apply(rotations.normalise(QUATERNIONS), np.array([1.0, 2.0, 3.0]))
  np.testing.assert_allclose(turned, MATRICES @ [1, 2, 3], atol=1e-12)


def test_quaternions_are_w_x_y_z():
  quarter_turn_about_z = np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
  np.testing.assert_allclose(
    rotations.quaternion_to_matrix(quarter_turn_about_z) @ [1, 0, 0], [0, 1, 0], atol=1e-12
  )


def test_matrix_to_quaternion_inverts_for_every_angle():
  half_turns = np.array(
    [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0.6, 0.8, 0], [1e-9, 0.6, 0, -0.8]]
  )
  for q in (rotations.normalise(QUATERNIONS), half_turns):
    back = rotations.matrix_to_quaternion(rotations.quaternion_to_matrix(q))
    assert (back[:, 0] >= 0).all()
    np.testing.assert_allclose(np.abs((back * q).sum(-1)), 1, atol=1e-7)


def test_quaternion_product_composes_column_rotations():
  a, b = rotations.normalise(QUATERNIONS[:25]), rotations.normalise(QUATERNIONS[25:])
  product = rotations.quaternion_to_matrix(rotations.quaternion_multiply(a, b))
  np.testing.assert_allclose(product, MATRICES[:25] @ MATRICES[25:], atol=1e-12)
  identity = rotations.quaternion_multiply(a, rotations.quaternion_invert(a))
  np.testing.assert_allclose(identity, np.broadcast_to([1, 0, 0, 0], (25, 4)), atol=1e-12)


def test_six_d_is_the_first_two_columns_and_inverts_by_gram_schmidt():
  six = rotations.matrix_to_6d(MATRICES)
  np.testing.assert_array_equal(six[:, :3], MATRICES[:, :, 0])
  np.testing.assert_allclose(rotations.matrix_from_6d(six), MATRICES, atol=1e-12)
  stretched = np.concatenate([3 * six[:, :3], 0.5 * six[:, 3:] + 2 * six[:, :3]], -1)
  np.testing.assert_allclose(rotations.matrix_from_6d(stretched), MATRICES, atol=1e-12)
  np.testing.assert_allclose(rotations.denormalise_6d(rotations.normalise_6d(six)), six, atol=1e-12)


def test_gradients_stay_finite_at_degenerate_rotations():
  through = lambda six: rotations.matrix_to_quaternion(rotations.matrix_from_6d(six)).sum()
  degenerate = jnp.array([[0.0] * 6, [1.0, 0, 0, 1, 0, 0], [1.0, 0, 0, 0, 1, 0]])
  assert np.isfinite(jax.jit(jax.vmap(jax.grad(through)))(degenerate)).all()


def test_numpy_and_jax_agree_and_keep_their_array_type():
  given = random_pose(4)
  latents = pose.encode_latents(given, np.full(3, 2.0), np.ones(3))
  traced = jax.jit(lambda p: pose.encode_latents(p, np.full(3, 2.0), np.ones(3)))(
    jax.tree.map(jnp.float32, given)
  )
  for name, value in latents.items():
    assert isinstance(value, np.ndarray) and isinstance(traced[name], jax.Array)
    np.testing.assert_allclose(value, traced[name], atol=2e-5)


@pytest.mark.parametrize("convention", pose.CONVENTIONS)
def test_encode_then_decode_is_the_identity(convention):
  for given in (scene_poses(), scene_poses(1, 4), scene_poses(2, 3, channels=1)):
    back = pose.decode(pose.encode(given, convention), convention)
    # one shared scale may come back as three equal ones
    for field, value in given._asdict().items():
      found = getattr(back, field)
      np.testing.assert_allclose(
        found, np.broadcast_to(value, found.shape), atol=1e-9, err_msg=field
      )


@pytest.mark.parametrize("convention", pose.CONVENTIONS)
def test_latents_of_a_pose_decode_to_that_pose(convention):
  given = random_pose(2, 5)
  given = given._replace(translation=given.translation + [0, 0, 5])
  scale, shift = RNG.uniform(0.5, 2, (2, 5, 1)) * np.ones(3), RNG.standard_normal((2, 5, 3))
  latents = pose.encode_latents(given, scale, shift, convention=convention)
  assert {k: v.shape for k, v in latents.items()} == {
    "rotation": (2, 5, 1, 6),
    "translation": (2, 5, 1, 3),
    "scale": (2, 5, 1, 3),
    "translation_scale": (2, 5, 1, 1),
  }
  back = pose.decode_latents(latents, scale, shift, convention=convention)
  for field, value in given._asdict().items():
    np.testing.assert_allclose(getattr(back, field), value, atol=1e-6, err_msg=field)


def test_latents_are_the_published_formulas():
  given = random_pose()
  latents = pose.encode_latents(given, np.full(3, 2.0), np.array([1.0, 2, 3]))
  np.testing.assert_allclose(latents["translation"][0], (given.translation - [1, 2, 3]) / 2)
  np.testing.assert_allclose(latents["scale"][0], np.log(given.scale / 2))
  assert latents["translation_scale"] == 0
  # the first columns of R_rows
  rows = np.concatenate([given.rotation[0], given.rotation[1]])
  np.testing.assert_allclose(
    latents["rotation"][0], (rows - rotations.SIX_D_MEAN) / rotations.SIX_D_STD, atol=1e-6
  )


def test_decoding_averages_the_three_scales_unless_told_not_to():
  given = random_pose()._replace(scale=np.array([1.0, 2.0, 6.0]))
  latents = pose.encode_latents(given, np.ones(3), np.zeros(3))
  np.testing.assert_allclose(pose.decode_latents(latents, np.ones(3), np.zeros(3)).scale, [3, 3, 3])
  np.testing.assert_allclose(
    pose.decode_latents(latents, np.ones(3), np.zeros(3), isotropic=False).scale, [1, 2, 6]
  )


@pytest.mark.parametrize("batch, objects", [(1, 3), (3, 1)])
def test_published_tiling_changes_nothing_for_one_scene_or_one_object(batch, objects):
  given = scene_poses(batch, objects)
  right, quirk = (
    pose.encode(given, "ScaleShiftInvariant", published_tiling=tiling) for tiling in (False, True)
  )
  for a, b in zip(right, quirk, strict=True):
    np.testing.assert_array_equal(a, b)


def test_unknown_conventions_and_misplaced_whitening_are_refused():
  with pytest.raises(ValueError, match="'Metric' is not one of"):
    pose.encode(scene_poses(), "Metric")
  with pytest.raises(ValueError, match="ScaleShiftInvariant only"):
    pose.encode(scene_poses(), "Naive", whiten=True)


def test_whitening_inverts():
  given = scene_poses()
  back = pose.decode(
    pose.encode(given, "ScaleShiftInvariant", whiten=True), "ScaleShiftInvariant", whiten=True
  )
  np.testing.assert_allclose(back.translation, given.translation, atol=1e-6)
  np.testing.assert_allclose(back.scale, given.scale, atol=1e-6)


def test_transforming_points_inverts_and_equals_the_composed_matrix():
  given, points = random_pose(3), RNG.standard_normal((3, 7, 3))
  moved = pose.transform_points(points, given)
  np.testing.assert_allclose(pose.untransform_points(moved, given), points, atol=1e-9)
  rows = pose.transpose(given.rotation)
  matrix = pose.compose(given.scale, rows, given.translation)
  np.testing.assert_allclose(
    (np.concatenate([points, np.ones((3, 7, 1))], -1) @ matrix)[..., :3], moved, atol=1e-9
  )
  for part, value in zip(
    pose.decompose(matrix), (given.scale, rows, given.translation), strict=True
  ):
    np.testing.assert_allclose(part, value, atol=1e-9)


def test_a_poses_rotation_acts_on_columns_and_its_columns_are_the_objects_axes():
  given = random_pose()
  point = RNG.standard_normal(3)
  expected = given.rotation @ (given.scale * point) + given.translation
  np.testing.assert_allclose(pose.transform_points(point[None], given)[0], expected, atol=1e-12)
  unit = given._replace(scale=np.ones(3), translation=np.zeros(3))
  np.testing.assert_allclose(pose.transform_points(np.eye(3), unit).T, given.rotation, atol=1e-12)


def test_the_rotation_latent_decodes_to_the_rotation():
  given = random_pose(2, 5).rotation
  latent = pose.encode_rotation(given)
  assert latent.shape == (2, 5, 6)
  np.testing.assert_allclose(pose.decode_rotation(latent), given, atol=1e-6)
  whole = pose.Pose(given, np.ones((2, 5, 3)), np.ones((2, 5, 3)))
  same = pose.encode_latents(whole, np.ones(3), np.zeros(3))["rotation"][..., 0, :]
  np.testing.assert_allclose(latent, same, atol=1e-6)


def test_normalised_pose_and_normalised_points_agree():
  given, points = random_pose(), RNG.standard_normal((9, 3))
  scale, shift = np.full(3, 1.7), np.array([0.3, -0.2, 2.0])
  target = pose.decode_latents(pose.encode_latents(given, scale, shift), np.ones(3), np.zeros(3))
  expected = (pose.transform_points(points, given) - shift) / scale
  np.testing.assert_allclose(pose.transform_points(points, target), expected, atol=1e-6)


def test_projection_and_unprojection_are_inverse():
  points = np.concatenate([RNG.uniform(-1, 1, (20, 2)), RNG.uniform(0.5, 3, (20, 1))], -1)
  pixels, depth = cameras.project(points, CAMERA)
  np.testing.assert_allclose(cameras.unproject(pixels, depth, CAMERA), points, atol=1e-12)


def test_a_point_map_projects_back_onto_its_own_pixels():
  depth = RNG.uniform(1, 5, (30, 40))
  depth[3, 4], depth[5, 6] = np.inf, -1.0
  points = cameras.pointmap_from_depth(depth, CAMERA)
  known = np.isfinite(points).all(-1)
  assert not known[3, 4] and not known[5, 6] and known.sum() == 30 * 40 - 2
  pixels, _ = cameras.project(points[known], CAMERA)
  np.testing.assert_allclose(pixels, cameras.pixel_centres(CAMERA)[known], atol=1e-4)
  with pytest.raises(ValueError, match="30 high, 40 wide"):
    cameras.pointmap_from_depth(depth.T, CAMERA)


def test_left_of_the_image_is_positive_x_and_its_top_positive_y():
  points = cameras.pointmap_from_depth(np.ones((30, 40)), CAMERA)
  assert points[0, 0, 0] > 0 > points[0, -1, 0] and points[0, 0, 1] > 0 > points[-1, 0, 1]


@pytest.mark.parametrize(
  "frame, right, up, forward",
  [
    ("pytorch3d", [-1, 0, 0], [0, 1, 0], [0, 0, 1]),
    ("opencv", [1, 0, 0], [0, -1, 0], [0, 0, 1]),
    ("gltf", [1, 0, 0], [0, 1, 0], [0, 0, -1]),
  ],
)
def test_frames_have_their_documented_axes(frame, right, up, forward):
  for source, expected in (([-1, 0, 0], right), ([0, 1, 0], up), ([0, 0, 1], forward)):
    np.testing.assert_array_equal(
      cameras.convert_frame(np.array(source, float), "pytorch3d", frame), expected
    )
    np.testing.assert_array_equal(
      cameras.convert_frame(np.array(expected, float), frame, "pytorch3d"), source
    )


def test_unknown_frames_are_refused():
  with pytest.raises(ValueError, match="'blender'"):
    cameras.convert_frame(np.zeros(3), "blender", "opencv")


def test_y_up_meshes_become_z_up_objects():
  np.testing.assert_array_equal(np.array([[0, 1.0, 0]]) @ cameras.OBJECT_FROM_GLTF, [[0, 0, 1]])
  np.testing.assert_array_equal(cameras.OBJECT_FROM_GLTF @ cameras.GLTF_FROM_OBJECT, np.eye(3))
  assert np.linalg.det(cameras.OBJECT_FROM_GLTF) == 1


def test_field_of_view_spans_the_image():
  camera = cameras.camera_from_fov(64, 48, np.pi / 2)
  edges = cameras.unproject(np.array([[0, 24], [64, 24]]), np.ones(2), camera)
  np.testing.assert_allclose(edges[:, 0], [1, -1])


@pytest.mark.parametrize("kind", remap.REMAPS)
def test_remaps_invert(kind):
  points = np.concatenate([RNG.standard_normal((20, 2)), RNG.uniform(0.1, 5, (20, 1))], -1)
  np.testing.assert_allclose(remap.unmap(remap.remap(points, kind), kind), points, atol=1e-9)
  with pytest.raises(ValueError, match="'log'"):
    remap.remap(points, "log")


def test_nearest_index_rounds_the_ratio_to_fp32():
  assert grids.nearest_index(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  assert grids.nearest_index(7, 3).tolist() == [0, 2, 4]
  assert (
    max(grids.nearest_index(n, m).max() - (n - 1) for n in range(1, 40) for m in range(1, 40)) <= 0
  )


def test_the_worked_example_of_the_documentation_is_right():
  text = (pathlib.Path(__file__).parents[3] / "docs" / "conventions.md").read_text()
  block = re.search(r"```text worked-example\n(.*?)```", text, re.DOTALL)[1]
  stated = {}
  for line in block.splitlines():
    if line.count("=") == 1:
      name, value = line.split("=")
      stated[name.strip()] = np.array(
        [float(v) for v in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", value)]
      )
  camera = cameras.Camera(*stated["camera fx fy cx cy width height"])
  depth = stated["depth map, row by row"].reshape(int(camera.height), int(camera.width))
  mask = stated["mask, row by row"].reshape(depth.shape) > 0
  given = pose.Pose(stated["R"].reshape(3, 3), stated["t"], stated["s"])
  camera = camera._replace(width=int(camera.width), height=int(camera.height))
  points = cameras.pointmap_from_depth(depth, camera)
  moments = normalisers.ObjectCentric().scale_shift(points, mask)
  latents = pose.encode_latents(given, moments.scale, moments.shift)
  pixel, _ = cameras.project(pose.transform_points(stated["object point"][None], given), camera)
  computed = {
    "point of the top left pixel": points[0, 0],
    "shift": moments.shift,
    "scale": moments.scale,
    "point in the camera": pose.transform_points(stated["object point"][None], given)[0],
    "its pixel": pixel[0],
    "R_rows": given.rotation.T.ravel(),
    "quaternion of R_rows": pose.release_quaternion(given.rotation),
    "quaternion of R": rotations.matrix_to_quaternion(given.rotation),
    "latent translation": latents["translation"][0],
    "latent scale": latents["scale"][0],
    "latent rotation": latents["rotation"][0],
    "latent translation_scale": latents["translation_scale"][0],
    "crop box": np.array(preprocessing.mask_box(mask, 1.2)),
  }
  for name, value in computed.items():
    np.testing.assert_allclose(value, stated[name], atol=6e-5, err_msg=name)
