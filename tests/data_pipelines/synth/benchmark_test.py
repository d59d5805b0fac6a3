"""The frozen benchmark: what it claims of its photos, that it is made the same way again, and that
it refuses another one.
"""

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
  return list(map(ProceduralSet(*built).__getitem__, range(3)))


def test_every_object_has_one_photo_a_level_within_its_bounds():
  chosen = benchmark.load(NAME)
  assert [(p["object"], p["level"]) for p in chosen.photos] == [
    (o, level) for o in chosen.objects for level in benchmark.LEVELS
  ]
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
    assert (
      benchmark.record_digest(benchmark.truth_record(subject, chosen, photo)) == photo["digest"]
    )


def test_levels_differ_by_the_occluder_alone(photos):
  none, light, heavy = photos
  for other in (light, heavy):
    np.testing.assert_array_equal(other.pose.translation, none.pose.translation)
    assert not (other.mask_HW & ~none.mask_HW).any()
    both = other.mask_HW & (np.abs(other.pointmap_HW3 - none.pointmap_HW3).max(-1) < 1e-6)
    assert (both == other.mask_HW).all()
  assert none.mask_HW.sum() > light.mask_HW.sum() > heavy.mask_HW.sum()


def test_truth_placed_by_its_pose_covers_the_mask_and_meets_the_point_map(photos):
  for item in photos:
    points = item.pose.rotation @ (item.truth.vertices * item.pose.scale).T
    pixels, _ = cameras.project(points.T + item.pose.translation, item.camera)
    down, across = np.nonzero(photos[0].mask_HW)
    np.testing.assert_allclose(
      [pixels.min(0), pixels.max(0)],
      [[across.min(), down.min()], [across.max() + 1, down.max() + 1]],
      atol=1.5,
    )
    seen = (
      (item.pointmap_HW3[item.mask_HW] - item.pose.translation)
      @ item.pose.rotation
      / item.pose.scale
    )
    grid = rows.occupancy(item.voxels_N3, 64)
    index = np.clip(np.floor((seen + 0.5) * 64), 0, 63).astype(int)
    assert grid[tuple(index.T)].mean() > 0.95  # float16 moves a point by up to half a voxel


def test_the_point_map_is_complete_and_a_floor_lies_under_the_object(photos):
  item = photos[0]
  assert np.isfinite(item.pointmap_HW3).all()
  heights = ((item.pointmap_HW3 - item.pose.translation) @ item.pose.rotation)[
    ..., 2
  ] / item.pose.scale[2]
  assert heights[~item.mask_HW].min() == pytest.approx(item.truth.vertices[:, 2].min(), abs=0.02)


def test_another_truth_is_refused_by_name(built, tmp_path):
  chosen, folder = built
  example = records.open_split(folder, benchmark.SPLIT)[1]
  changed = example | {"translation": example["translation"] + np.float32(1e-3)}
  with pytest.raises(InputError, match="photo 0-light is not the frozen one"):
    benchmark.check(changed, chosen.photos[1])
  hidden = example | {
    "mask": render.encode(rows.decode_image(example["mask"], "mask", mode="L") > 255)
  }
  with pytest.raises(InputError, match="0.000 visible"):
    benchmark.check(hidden, chosen.photos[1])


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
  one, two = (benchmark.object_asset(0, i).mesh for i in (0, 2))
  both = join([one, two])
  assert len(both.faces) == len(one.faces) + len(two.faces)
  assert len(both.materials) == len(one.materials) + len(two.materials)
  last = both.vertices[both.faces[-1]]
  np.testing.assert_array_equal(last, two.vertices[two.faces[-1]])
  assert both.materials[both.material[-1]] == two.materials[two.material[-1]]


def test_standing_puts_the_lowest_point_on_the_floor_at_the_spot():
  mesh = benchmark.object_asset(0, 1).mesh
  placed = room.stand(mesh, room.Spot(1.0, -2.0, 0.5, 0.7), floor=-0.3)
  low, high = placed.vertices.min(0), placed.vertices.max(0)
  np.testing.assert_allclose([*((low + high) / 2)[:2], low[2]], [1.0, -2.0, -0.3], atol=1e-12)
  assert high[2] - low[2] == pytest.approx(0.5 * np.ptp(mesh.vertices[:, 2]))
