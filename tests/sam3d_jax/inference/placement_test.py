"""Objects in the photo: where they land, what the files say of it, and that refinement never makes
it worse.
"""

import io

import numpy as np
from PIL import Image
import pytest
from scipy import spatial
import trimesh

from data_pipelines.format import schema
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import cameras
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.inference import placement
from sam3d_jax.inference.rewards import Reward, mask_iou
from sam3d_jax.render import mesh, preview, raycast
from tests.support import tiny_dataset
from tests.support.placed import CAMERA, candidate_of, known_pose, photo_of, solid, write_results


@pytest.fixture(scope="module")
def shape():
  return mesh.from_occupancy(solid())


@pytest.fixture(scope="module")
def caster(shape):
  return raycast.Caster(shape)


def column_matrix(quaternion) -> np.ndarray:
  return trimesh.transformations.quaternion_matrix(quaternion)[:3, :3]


def test_a_known_pose_lands_on_its_mask_in_every_file(tmp_path, caster):
  where = known_pose()
  photo = photo_of(caster, where)
  layout = write_results(tmp_path, [candidate_of(photo, where)])
  thing = layout["objects"]["thing"]
  assert layout["frame"] == "camera"
  assert thing["mask_iou"] > 0.99
  np.testing.assert_allclose(thing["translation"], where.translation, atol=1e-4)
  np.testing.assert_allclose(thing["scale"], where.scale, rtol=1e-4)

  # The object's GLB, placed as layout.json says, is the scene's object ...
  glb = trimesh.load(tmp_path / "thing.glb", force="mesh").vertices
  rotation = column_matrix(thing["rotation_glb"])
  in_camera = (thing["scale"] * glb) @ rotation.T + thing["translation"]
  scene = trimesh.load_scene(tmp_path / "scene.glb")
  node, _ = scene.graph["thing"]
  in_scene = trimesh.transform_points(scene.geometry["thing"].vertices, node)
  converted = cameras.convert_frame(in_scene, "gltf", "pytorch3d")
  np.testing.assert_allclose(converted, in_camera, atol=1e-5)

  # ... and layout.json's camera sees it where the mask is.
  intrinsics = [layout["camera"][name] for name in ("fx", "fy", "cx", "cy")]
  camera = cameras.Camera(*intrinsics, layout["width"], layout["height"])
  pixels, depth = cameras.project(in_camera, camera)
  assert (depth > 0).all()
  rows, columns = np.nonzero(photo.masks["thing"])
  first_corner = [columns.min(), rows.min()]
  last_corner = [columns.max() + 1, rows.max() + 1]
  np.testing.assert_allclose(pixels.min(0), first_corner, atol=1.5)
  np.testing.assert_allclose(pixels.max(0), last_corner, atol=1.5)

  # The preview has the object's colour on the mask.
  sheet = np.asarray(Image.open(tmp_path / "preview.png"))
  drawn = sheet[24:224, 320 + 16 : 640 + 16].astype(int)
  coloured = np.abs(drawn - 60).max(-1) > 40
  assert raycast.iou(coloured, photo.masks["thing"]) > 0.95


def test_points_and_objects_share_the_scene_frame(tmp_path, caster):
  where = known_pose()
  photo = photo_of(caster, where)
  write_results(tmp_path, [candidate_of(photo, where)])
  cloud = trimesh.load(tmp_path / "points.ply").vertices
  scene = trimesh.load_scene(tmp_path / "scene.glb").to_geometry()

  # the object's points, in front of the wall
  near = cloud[cloud[:, 2] > -3.5]
  assert len(near) > 1000
  distance, _ = spatial.cKDTree(scene.vertices).query(near[::10])
  # an edge of the mesh is a voxel of 1/24, times the scale
  assert np.median(distance) < 0.8 / 24


def test_without_a_point_map_the_frame_is_normalised_and_the_object_covers_its_mask(
  tmp_path, caster
):
  where = known_pose()
  photo = photo_of(caster, where, pointmap=False)
  layout = write_results(tmp_path, [candidate_of(photo, where)])
  assert layout["frame"] == "normalised"
  assert layout["units"] is None
  assert layout["scene"]["units"] is None

  thing = layout["objects"]["thing"]
  assert thing["mask_iou"] > 0.85
  assert thing["placement"]["source"] == "fitted to the mask"
  _, _, depth = thing["placement"]["translation"]
  assert depth == pytest.approx(placement.ASSUMED_DEPTH)


def test_a_model_of_rotation_alone_is_placed_at_the_point_maps_depth(tmp_path, caster):
  where = known_pose()
  photo = photo_of(caster, where)
  layout = write_results(tmp_path, [candidate_of(photo, where, placed=False)])
  thing = layout["objects"]["thing"]
  assert layout["frame"] == "rotation only"
  assert thing["translation"] is None
  placed = thing["placement"]
  np.testing.assert_allclose(placed["translation"], where.translation, rtol=0.1, atol=0.05)
  np.testing.assert_allclose(placed["scale"], where.scale, rtol=0.1)


def disturbed(where: Pose) -> Pose:
  for coordinate, step in ((0, 0.15), (1, -0.1), (3, 0.1), (4, -0.08), (5, 0.2)):
    where = placement.moved(where, coordinate, step, 0.3)
  return where


def test_refinement_raises_the_iou_and_keeps_the_point_maps_depth(tmp_path, caster):
  where = known_pose()
  photo = photo_of(caster, where)
  drawn = [candidate_of(photo, disturbed(where))]
  layout = write_results(tmp_path, drawn, refine=True)
  thing = layout["objects"]["thing"]
  refined = thing["refined"]
  assert refined["accepted"]
  assert refined["mask_iou_after"] > max(0.93, refined["mask_iou_before"])
  assert thing["mask_iou"] == pytest.approx(refined["mask_iou_after"], abs=0.02)
  np.testing.assert_allclose(thing["translation"], where.translation, atol=0.15)
  assert thing["placement"]["source"] == "refined"
  assert thing["placement"]["translation"] == thing["translation"]


def test_refinement_that_does_not_raise_the_iou_is_not_taken(caster, monkeypatch):
  where = known_pose()
  photo = photo_of(caster, where)
  mask = photo.masks["thing"]
  worse = placement.moved(where, 3, 0.5, 0.3)
  monkeypatch.setattr(placement, "search", lambda *args: worse)
  found = placement.refine(caster, where, mask, CAMERA, photo.pointmap_HW3)
  assert not found.accepted
  assert found.pose is where
  assert found.iou_after < found.iou_before

  # an equal IoU is no rise
  monkeypatch.setattr(placement, "search", lambda *args: where)
  assert not placement.refine(caster, where, mask, CAMERA).accepted


def test_growing_about_the_cameras_centre_keeps_the_silhouette(caster):
  where = known_pose()
  grown = placement.rescaled(where, 1.7)
  before = caster.silhouette(where, CAMERA)
  after = caster.silhouette(grown, CAMERA)
  np.testing.assert_array_equal(before, after)


def test_a_fit_to_the_mask_has_the_masks_box(shape, caster):
  where = known_pose()
  mask = caster.silhouette(where, CAMERA)
  found = placement.fit_to_mask(shape.vertices, where.rotation, mask, CAMERA, 2.5)
  np.testing.assert_allclose(found.translation, where.translation, atol=0.02)
  np.testing.assert_allclose(found.scale, where.scale, rtol=0.02)


def test_the_search_window_sees_what_the_photo_sees(caster):
  where = known_pose()
  mask = caster.silhouette(where, CAMERA)
  crop, camera = placement.search_window(mask, CAMERA)
  seen = caster.silhouette(where, camera)
  assert raycast.iou(seen, crop) > 0.95


def test_of_several_samples_the_one_with_the_highest_reward_is_kept(tmp_path, caster):
  where = known_pose()
  photo = photo_of(caster, where)
  poses = [disturbed(where), where, placement.moved(where, 3, 0.3, 0.3)]
  drawn = [candidate_of(photo, p, index=i) for i, p in enumerate(poses)]
  layout = write_results(tmp_path, drawn, reward=Reward("mask_iou", mask_iou))
  thing = layout["objects"]["thing"]
  assert thing["sample"] == 1
  assert thing["rewards"][1] == max(thing["rewards"])
  assert thing["mask_iou"] > 0.99


@pytest.mark.parametrize("wrong", [[1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_a_reward_must_give_one_finite_number_each(wrong):
  reward = Reward("mine", lambda candidates: wrong)
  with pytest.raises(InputError, match="one finite number"):
    reward([None, None])


def test_an_empty_sample_has_no_mesh_and_hides_nothing(tmp_path, caster):
  where = known_pose()
  photo = photo_of(caster, where)
  photo.masks["nothing"] = photo.masks["thing"]
  empty = candidate_of(photo, where, name="nothing")
  empty.prediction.occupancy[:] = False
  layout = write_results(tmp_path, [candidate_of(photo, where), empty], refine=True)
  nothing = layout["objects"]["nothing"]
  assert nothing["file"] is None
  assert nothing["mask_iou"] == 0
  assert not (tmp_path / "nothing.glb").exists()
  scene = trimesh.load_scene(tmp_path / "scene.glb")
  assert set(scene.geometry) == {"thing"}

  # files of the earlier result are gone
  write_results(tmp_path, [empty])
  assert not (tmp_path / "thing.glb").exists()
  assert not (tmp_path / "scene.glb").exists()


def test_the_nearer_object_is_drawn_in_front(caster):
  near = known_pose()
  far = placement.rescaled(near, 2.0)
  red = (caster, near, np.array([255, 0, 0]))
  blue = (caster, far, np.array([0, 0, 255]))
  photo = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
  for objects in ([red, blue], [blue, red]):
    drawn = preview.overlay(photo, CAMERA, objects)
    assert drawn[..., 0].any()
    assert not drawn[..., 2].any()


def test_a_record_with_everything_lands_on_its_mask():
  """The example writer's pose, camera and mask agree with ours: the same conventions throughout."""
  example = tiny_dataset.make_example(4)
  grid = np.zeros((64, 64, 64), bool)
  x, y, z = example["voxels"].T
  grid[x, y, z] = True
  mask = np.asarray(Image.open(io.BytesIO(example["mask"]))) > 0

  where = Pose(*(np.asarray(part, np.float64) for part in schema.example_pose(example)))
  camera = cameras.Camera(**example["camera"])
  caster = raycast.Caster(mesh.from_occupancy(grid))
  assert raycast.mask_iou(caster, where, mask, camera) > 0.8
