"""Rotations, poses, layout latents, cameras, frames; the worked example of docs/conventions.md."""

import itertools
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
  quaternions = RNG.standard_normal((*lead, 4))
  translation = RNG.standard_normal((*lead, 3))
  scale = RNG.uniform(0.2, 3, (*lead, 1))
  return pose.Pose(
    rotation=rotations.quaternion_to_matrix(quaternions),
    translation=translation,
    scale=np.repeat(scale, 3, -1),
  )


def test_matrices_of_quaternions_are_rotations():
  products = MATRICES @ np.swapaxes(MATRICES, -1, -2)
  identities = np.broadcast_to(np.eye(3), (50, 3, 3))
  np.testing.assert_allclose(products, identities, atol=1e-12)
  np.testing.assert_allclose(np.linalg.det(MATRICES), 1, atol=1e-12)

  point = np.array([1.0, 2.0, 3.0])
  unit = rotations.normalise(QUATERNIONS)
  turned = rotations.quaternion_apply(unit, point)
  np.testing.assert_allclose(turned, MATRICES @ point, atol=1e-12)


def test_quaternions_are_w_x_y_z():
  quarter_turn_about_z = np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
  matrix = rotations.quaternion_to_matrix(quarter_turn_about_z)
  np.testing.assert_allclose(matrix @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_matrix_to_quaternion_inverts_for_every_angle():
  half_turns = np.array(
    [
      [0, 1, 0, 0],
      [0, 0, 1, 0],
      [0, 0, 0, 1],
      [1, 0, 0, 0],
      [0, 0.6, 0.8, 0],
      [1e-9, 0.6, 0, -0.8],
    ]
  )
  for q in (rotations.normalise(QUATERNIONS), half_turns):
    matrix = rotations.quaternion_to_matrix(q)
    back = rotations.matrix_to_quaternion(matrix)
    assert (back[:, 0] >= 0).all()
    cosine = (back * q).sum(-1)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-7)


def test_quaternion_product_composes_column_rotations():
  a = rotations.normalise(QUATERNIONS[:25])
  b = rotations.normalise(QUATERNIONS[25:])
  product = rotations.quaternion_multiply(a, b)
  matrix = rotations.quaternion_to_matrix(product)
  np.testing.assert_allclose(matrix, MATRICES[:25] @ MATRICES[25:], atol=1e-12)

  inverse = rotations.quaternion_invert(a)
  identity = rotations.quaternion_multiply(a, inverse)
  expected = np.broadcast_to([1, 0, 0, 0], (25, 4))
  np.testing.assert_allclose(identity, expected, atol=1e-12)


def test_six_d_is_the_first_two_columns_and_inverts_by_gram_schmidt():
  six = rotations.matrix_to_6d(MATRICES)
  first = six[:, :3]
  second = six[:, 3:]
  np.testing.assert_array_equal(first, MATRICES[:, :, 0])
  np.testing.assert_allclose(rotations.matrix_from_6d(six), MATRICES, atol=1e-12)

  # neither lengths nor what the second has of the first matter
  stretched = np.concatenate([3 * first, 0.5 * second + 2 * first], -1)
  np.testing.assert_allclose(rotations.matrix_from_6d(stretched), MATRICES, atol=1e-12)

  latent = rotations.normalise_6d(six)
  np.testing.assert_allclose(rotations.denormalise_6d(latent), six, atol=1e-12)


def test_gradients_stay_finite_at_degenerate_rotations():
  def through(six):
    matrix = rotations.matrix_from_6d(six)
    return rotations.matrix_to_quaternion(matrix).sum()

  zero = [0.0] * 6
  parallel = [1.0, 0, 0, 1, 0, 0]
  identity = [1.0, 0, 0, 0, 1, 0]
  gradient = jax.jit(jax.vmap(jax.grad(through)))
  found = gradient(jnp.array([zero, parallel, identity]))
  assert np.isfinite(found).all()


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


@pytest.mark.parametrize("convention", pose.CONVENTIONS)
def test_encode_then_decode_is_the_identity(convention):
  for given in (scene_poses(), scene_poses(1, 4), scene_poses(2, 3, channels=1)):
    target = pose.encode(given, convention)
    back = pose.decode(target, convention)
    for field, value in given._asdict().items():
      # one shared scale may come back as three equal ones
      found = getattr(back, field)
      expected = np.broadcast_to(value, found.shape)
      np.testing.assert_allclose(found, expected, atol=1e-9, err_msg=field)


@pytest.mark.parametrize("convention", pose.CONVENTIONS)
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
  right = pose.encode(given, "ScaleShiftInvariant")
  quirk = pose.encode(given, "ScaleShiftInvariant", published_tiling=True)
  for a, b in zip(right, quirk, strict=True):
    np.testing.assert_array_equal(a, b)


def test_unknown_conventions_and_misplaced_whitening_are_refused():
  with pytest.raises(ValueError, match="'Metric' is not one of"):
    pose.encode(scene_poses(), "Metric")
  with pytest.raises(ValueError, match="ScaleShiftInvariant only"):
    pose.encode(scene_poses(), "Naive", whiten=True)


def test_whitening_inverts():
  given = scene_poses()
  target = pose.encode(given, "ScaleShiftInvariant", whiten=True)
  back = pose.decode(target, "ScaleShiftInvariant", whiten=True)
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


def test_projection_and_unprojection_are_inverse():
  across = RNG.uniform(-1, 1, (20, 2))
  forward = RNG.uniform(0.5, 3, (20, 1))
  points = np.concatenate([across, forward], -1)
  pixels, depth = cameras.project(points, CAMERA)
  back = cameras.unproject(pixels, depth, CAMERA)
  np.testing.assert_allclose(back, points, atol=1e-12)


def test_a_point_map_projects_back_onto_its_own_pixels():
  depth = RNG.uniform(1, 5, (30, 40))
  depth[3, 4] = np.inf
  depth[5, 6] = -1.0
  points = cameras.pointmap_from_depth(depth, CAMERA)
  known = np.isfinite(points).all(-1)
  assert not known[3, 4]
  assert not known[5, 6]
  assert known.sum() == 30 * 40 - 2

  pixels, _ = cameras.project(points[known], CAMERA)
  expected = cameras.pixel_centres(CAMERA)[known]
  np.testing.assert_allclose(pixels, expected, atol=1e-4)
  with pytest.raises(ValueError, match="30 high, 40 wide"):
    cameras.pointmap_from_depth(depth.T, CAMERA)


def test_left_of_the_image_is_positive_x_and_its_top_positive_y():
  points = cameras.pointmap_from_depth(np.ones((30, 40)), CAMERA)
  top_left = points[0, 0]
  bottom_right = points[-1, -1]
  assert top_left[0] > 0 > bottom_right[0]
  assert top_left[1] > 0 > bottom_right[1]


@pytest.mark.parametrize(
  "frame, right, up, forward",
  [
    ("pytorch3d", [-1, 0, 0], [0, 1, 0], [0, 0, 1]),
    ("opencv", [1, 0, 0], [0, -1, 0], [0, 0, 1]),
    ("gltf", [1, 0, 0], [0, 1, 0], [0, 0, -1]),
  ],
)
def test_frames_have_their_documented_axes(frame, right, up, forward):
  axes = {
    "right": ([-1.0, 0, 0], right),
    "up": ([0, 1.0, 0], up),
    "forward": ([0, 0, 1.0], forward),
  }
  for name, (ours, theirs) in axes.items():
    ours = np.array(ours)
    theirs = np.array(theirs, float)
    there = cameras.convert_frame(ours, "pytorch3d", frame)
    back = cameras.convert_frame(theirs, frame, "pytorch3d")
    np.testing.assert_array_equal(there, theirs, err_msg=name)
    np.testing.assert_array_equal(back, ours, err_msg=name)


def test_unknown_frames_are_refused():
  with pytest.raises(ValueError, match="'blender'"):
    cameras.convert_frame(np.zeros(3), "blender", "opencv")


def test_y_up_meshes_become_z_up_objects():
  up = np.array([[0, 1.0, 0]])
  there = cameras.OBJECT_FROM_GLTF
  back = cameras.GLTF_FROM_OBJECT
  np.testing.assert_array_equal(up @ there, [[0, 0, 1]])
  np.testing.assert_array_equal(there @ back, np.eye(3))
  assert np.linalg.det(there) == 1


def test_field_of_view_spans_the_image():
  camera = cameras.camera_from_fov(64, 48, np.pi / 2)
  edges = np.array([[0, 24], [64, 24]])
  points = cameras.unproject(edges, np.ones(2), camera)
  np.testing.assert_allclose(points[:, 0], [1, -1])


@pytest.mark.parametrize("kind", remap.REMAPS)
def test_remaps_invert(kind):
  across = RNG.standard_normal((20, 2))
  forward = RNG.uniform(0.1, 5, (20, 1))
  points = np.concatenate([across, forward], -1)
  mapped = remap.remap(points, kind)
  np.testing.assert_allclose(remap.unmap(mapped, kind), points, atol=1e-9)
  with pytest.raises(ValueError, match="'log'"):
    remap.remap(points, "log")


def test_nearest_index_rounds_the_ratio_to_fp32():
  assert grids.nearest_index(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  assert grids.nearest_index(7, 3).tolist() == [0, 2, 4]
  for size_in, size_out in itertools.product(range(1, 40), repeat=2):
    assert grids.nearest_index(size_in, size_out).max() < size_in


def test_the_worked_example_of_the_documentation_is_right():
  text = (pathlib.Path(__file__).parents[3] / "docs" / "conventions.md").read_text()
  block = re.search(r"```text worked-example\n(.*?)```", text, re.DOTALL)[1]
  stated = {}
  for line in block.splitlines():
    if line.count("=") != 1:
      continue
    name, value = line.split("=")
    numbers = re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", value)
    stated[name.strip()] = np.array([float(number) for number in numbers])

  # what the example starts from
  camera = cameras.Camera(*stated["camera fx fy cx cy width height"])
  camera = camera._replace(width=int(camera.width), height=int(camera.height))
  depth = stated["depth map, row by row"].reshape(camera.height, camera.width)
  mask = stated["mask, row by row"].reshape(depth.shape) > 0
  given = pose.Pose(stated["R"].reshape(3, 3), stated["t"], stated["s"])
  point = stated["object point"]

  # what it says of that
  points = cameras.pointmap_from_depth(depth, camera)
  moments = normalisers.ObjectCentric().scale_shift(points, mask)
  latents = pose.encode_latents(given, moments.scale, moments.shift)
  (in_camera,) = pose.transform_points(point[None], given)
  pixel, _ = cameras.project(in_camera, camera)
  computed = {
    "point of the top left pixel": points[0, 0],
    "shift": moments.shift,
    "scale": moments.scale,
    "point in the camera": in_camera,
    "its pixel": pixel,
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
