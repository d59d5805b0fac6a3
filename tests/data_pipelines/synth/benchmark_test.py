"""The frozen benchmark: what it claims of its photos, that it is made the same way again, and that
it refuses another one.
"""

import itertools
import json

import numpy as np
import pytest

from data_pipelines.build import shard_jobs
from data_pipelines.eval_sets.procedural import ProceduralSet
from data_pipelines.format import records
from data_pipelines.read import rows
from data_pipelines.synth import benchmark, render, room
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import cameras
from sam3d_jax.render.mesh import join

NAME = "procedural_1"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The first object of the benchmark, and where it was built."""
  folder = tmp_path_factory.mktemp("benchmark")
  chosen = benchmark.load(f"{NAME}:1")
  # checks every photo against its digest
  shard_jobs.build(benchmark.plan(chosen), folder, workers=1, quarantine_budget=0.0)
  return chosen, folder


@pytest.fixture(scope="module")
def photos(built):
  """The three photos of the object, as items of an evaluation set."""
  chosen = ProceduralSet(*built)
  return [chosen[i] for i in range(3)]


def test_every_object_has_one_photo_a_level_within_its_bounds():
  chosen = benchmark.load(NAME)
  found = [(photo["object"], photo["level"]) for photo in chosen.photos]
  assert found == list(itertools.product(chosen.objects, benchmark.LEVELS))
  for photo in chosen.photos:
    low, high = benchmark.LEVELS[photo["level"]]
    assert low <= photo["visible"] <= high


def test_the_truth_of_every_family_is_the_frozen_one():
  """Meshes, voxels, poses and occluders made here give the digests of the file; nothing is
  rendered.
  """
  chosen = benchmark.load(NAME)
  for photo in chosen.photos[2::21]:  # a heavy one of every seventh object
    subject = benchmark.make_subject(chosen.seed, photo["object"], chosen.image_size)
    truth = benchmark.truth_record(subject, chosen, photo)
    assert benchmark.record_digest(truth) == photo["digest"]


def test_levels_differ_by_the_occluder_alone(photos):
  none, light, heavy = photos
  for other in (light, heavy):
    np.testing.assert_array_equal(other.pose.translation, none.pose.translation)
    assert not (other.mask_HW & ~none.mask_HW).any()
    # What is seen of the object lies where it did.
    moved = np.abs(other.pointmap_HW3 - none.pointmap_HW3).max(-1)
    assert (moved[other.mask_HW] < 1e-6).all()
  assert none.mask_HW.sum() > light.mask_HW.sum() > heavy.mask_HW.sum()


def test_truth_placed_by_its_pose_covers_the_mask_and_meets_the_point_map(photos):
  # The box of the object where nothing hides it.
  down, across = np.nonzero(photos[0].mask_HW)
  first = [across.min(), down.min()]
  last = [across.max() + 1, down.max() + 1]
  for item in photos:
    pose = item.pose
    placed = item.truth.vertices * pose.scale @ pose.rotation.T + pose.translation
    pixels, _ = cameras.project(placed, item.camera)
    np.testing.assert_allclose(pixels.min(0), first, atol=1.5)
    np.testing.assert_allclose(pixels.max(0), last, atol=1.5)

    # The point map's points of the object lie in its voxels.
    seen = on_object(item.pointmap_HW3[item.mask_HW], pose)
    index = np.floor((seen + 0.5) * 64)
    index = np.clip(index, 0, 63).astype(int)
    grid = rows.occupancy(item.voxels_N3, 64)
    assert grid[tuple(index.T)].mean() > 0.95  # float16 moves a point by up to half a voxel


def on_object(points_P3, pose):
  """Camera-frame points in the object frame."""
  return (points_P3 - pose.translation) @ pose.rotation / pose.scale


def test_the_point_map_is_complete_and_a_floor_lies_under_the_object(photos):
  item = photos[0]
  assert np.isfinite(item.pointmap_HW3).all()
  heights = on_object(item.pointmap_HW3, item.pose)[..., 2]
  lowest = item.truth.vertices[:, 2].min()
  assert heights[~item.mask_HW].min() == pytest.approx(lowest, abs=0.02)


def test_another_truth_is_refused_by_name(built):
  chosen, folder = built
  example = records.open_split(folder, benchmark.SPLIT)[1]
  moved = example["translation"] + np.float32(1e-3)
  with pytest.raises(InputError, match="photo 0-light is not the frozen one"):
    benchmark.check(example | {"translation": moved}, chosen.photos[1])
  mask = rows.decode_image(example["mask"], "mask", mode="L") > 0
  nothing = render.encode(np.zeros_like(mask))
  with pytest.raises(InputError, match="0.000 visible"):
    benchmark.check(example | {"mask": nothing}, chosen.photos[1])


def test_a_damaged_file_and_unknown_names_are_refused(tmp_path, monkeypatch):
  with pytest.raises(InputError, match=f"there is {NAME}"):
    benchmark.load("procedural_0")
  with pytest.raises(InputError, match="number of objects from 1 to"):
    benchmark.load(f"{NAME}:9999")
  data = json.loads((benchmark.FOLDER / f"{NAME}.json").read_text())
  data["photos"][0]["candidate"] = 7
  data["photos"][0]["digest"] = "0" * 32
  (tmp_path / f"{NAME}.json").write_text(json.dumps(data))
  monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
  with pytest.raises(InputError, match="was changed"):
    benchmark.load(NAME)


def test_a_joined_mesh_keeps_every_face_with_its_material():
  one = benchmark.object_asset(0, 0).mesh
  two = benchmark.object_asset(0, 2).mesh
  both = join([one, two])
  assert len(both.faces) == len(one.faces) + len(two.faces)
  assert len(both.materials) == len(one.materials) + len(two.materials)
  last = both.vertices[both.faces[-1]]
  np.testing.assert_array_equal(last, two.vertices[two.faces[-1]])
  assert both.materials[both.material[-1]] == two.materials[two.material[-1]]


def test_standing_puts_the_lowest_point_on_the_floor_at_the_spot():
  mesh = benchmark.object_asset(0, 1).mesh
  spot = room.Spot(x=1.0, y=-2.0, size=0.5, yaw=0.7)
  placed = room.stand(mesh, spot, floor=-0.3)
  low = placed.vertices.min(0)
  high = placed.vertices.max(0)
  middle = (low + high) / 2
  np.testing.assert_allclose(middle[:2], [1.0, -2.0], atol=1e-12)
  assert low[2] == pytest.approx(-0.3)
  height = np.ptp(mesh.vertices[:, 2])
  assert high[2] - low[2] == pytest.approx(0.5 * height)
