"""What the render-and-paste builders write keeps to their thresholds and to physics; it depends on
what identifies the build and on nothing else.
"""

import json
import pathlib

import numpy as np
import pytest
import scipy.stats

from data_pipelines.build import checks
from data_pipelines.format import schema
from data_pipelines.synth import (
  assets,
  procedural,
  procedural_scenes,
  render_paste,
  scenes,
  swap,
)
from tests.support import pasting
from tests.support.pasting import examples, image, lineage, mask, points


def near(mask_HW: np.ndarray) -> np.ndarray:
  """The mask and its eight neighbours, over the image's border too."""
  shifted = []
  for rows in (-1, 0, 1):
    for columns in (-1, 0, 1):
      shifted.append(np.roll(mask_HW, (rows, columns), (0, 1)))
  return np.any(shifted, axis=0)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, pathlib.Path]:
  """A few examples of every builder."""
  folders = {}
  for name in pasting.FEW:
    folders[name] = tmp_path_factory.mktemp("rp") / name
    assert pasting.run(name, f"out={folders[name]}") == 0
  return folders


@pytest.fixture(scope="module")
def rooms(built) -> dict[str, scenes.Scene]:
  """The photos that the flying objects were pasted into."""
  return {f"room-{i}": procedural_scenes.make_room(0, i, 64).scene for i in range(4)}


@pytest.mark.parametrize("builder", pasting.FEW)
def test_every_example_agrees_with_its_mask_point_map_camera_and_voxels(built, builder):
  for example in examples(built[builder]):
    report = checks.check_example(example)
    assert report.findings == [], (example["lineage"], report)
    assert report.silhouette_iou > 0.5, (example["lineage"], report)
    assert schema.is_present(example, "image_delit") == (builder != "rp_3do_osr")


# --- Flying objects -------------------------------------------------------------------------------


def test_flying_pairs_keep_to_the_published_bounds_and_a_third_of_the_targets_is_in_front(built):
  found = examples(built["rp_3do_fo"])
  roles = [lineage(example)["role"] for example in found]
  assert len(found) == 18
  assert roles.count("front") == 6
  for example, role in zip(found, roles, strict=True):
    visible = mask(example)
    whole = mask(example, "mask_full")
    assert visible.mean() >= 0.002
    if role == "front":
      assert (visible == whole).all()
    else:
      assert 0.1 <= visible.sum() / whole.sum() <= 0.9
    made_of = lineage(example)
    assert made_of["partner"] != made_of["mesh"]
    assert made_of["synthetic_photo"]


def test_flying_objects_are_nearer_than_the_photo_which_stays_as_it_was_around_them(built, rooms):
  for example in examples(built["rp_3do_fo"]):
    photo = rooms[lineage(example)["photo"]]
    photo_depth = photo.pointmap_HW3[..., 2]
    depth = points(example)[..., 2]
    visible = mask(example)

    # Where the point map is another one than the photo's, an object is nearer.
    pasted = depth != photo_depth.astype(np.float16)
    assert (depth[pasted] < photo_depth[pasted]).all()
    assert pasted[visible].all()

    # Pixels that no object covers, not even in part, are the photo's.
    same = (image(example) == photo.image_HW3).all(-1)
    assert same[~near(pasted)].all()
    assert same[visible].mean() < 0.2


def test_the_occluder_is_nearer_than_the_target_it_hides(built):
  found = examples(built["rp_3do_fo"])
  hidden = [example for example in found if lineage(example)["role"] == "hidden"]
  assert hidden
  for example in hidden:
    depth = points(example)[..., 2]
    visible = mask(example)
    covered = mask(example, "mask_full") & ~visible
    assert depth[covered].max() < depth[visible].min()


@pytest.mark.parametrize("builder", ["rp_3do_fo", "rp_3do_osa"])
def test_delit_images_differ_from_lit_ones_on_the_target_alone(built, builder):
  changed = 0
  for example in examples(built[builder]):
    differs = (image(example) != image(example, "image_delit")).any(-1)
    target = near(mask(example, "mask_full"))
    assert not differs[~target].any()
    changed += differs[mask(example)].mean() > 0.5
  assert changed


# --- Swapped objects ------------------------------------------------------------------------------


def test_swapped_objects_are_seen_and_supported_or_partly_hidden(built):
  folder = built["rp_3do_osr"]
  counts = json.loads((folder / "build.json").read_text())["counts"]
  found = examples(folder)
  assert counts["records"] == {"train": len(found)}
  assert counts["rejected_draws"]["neither_supported_nor_occluded"] > 0
  for example in found:
    seen = mask(example).sum() / mask(example, "mask_full").sum()
    measured = lineage(example)
    assert seen >= 0.2
    assert seen == pytest.approx(measured["visible"], abs=1e-3)
    assert measured["support"] > 0 or measured["hidden_contour"] >= 0.1


def test_what_hides_a_swapped_object_is_nearer_and_the_point_map_shows_the_new_surface(built):
  for example in examples(built["rp_3do_osr"]):
    depth = points(example)[..., 2]
    visible = mask(example)
    distance = example["translation"][2]
    scale = example["scale"][0]
    forward = example["rotation"][2].astype(float)
    nearest = float((example["voxels"] @ forward / 64).min())
    assert depth[visible].min() > distance + scale * (nearest - 1)
    # Hidden by something that may be in front of it.
    hidden = mask(example, "mask_full") & ~visible
    if hidden.any():
      assert depth[hidden].max() < distance + 0.9 * scale


def test_a_swapped_mesh_stands_at_the_centroid_and_fits_the_box_of_what_was_there():
  scene = procedural_scenes.make_room(0, 0, 160).scene
  rules = swap.SwapRules(min_object_share=0.01)
  rng = np.random.default_rng(0)
  mug_scene = procedural.make_scene(0, 4)
  subject = render_paste.subject_of(assets.from_scene(mug_scene, source="x", up="z"))
  usable = swap.usable_objects(scene, rules)
  assert len(usable) >= 2
  for number in usable:
    # The centroid is about that of the points, strays apart.
    cleared = swap.clear(scene, scene.masks[number], rules)
    seen_points = scene.pointmap_HW3[scene.masks[number]]
    apart = np.abs(cleared.centroid_3 - seen_points.mean(0))
    assert (apart < 0.2 * np.ptp(seen_points, axis=0) + 0.01).all()

    # The mesh's box lies there, and touches that of what was there.
    rotation = render_paste.random_rotation(rng)
    viewpoint = swap.fit(subject, rotation, cleared, scene)
    posed = viewpoint.points(subject.asset.mesh.vertices)
    middle = (posed.min(0) + posed.max(0)) / 2
    np.testing.assert_allclose(middle, cleared.centroid_3, atol=1e-9)
    ratio = np.ptp(posed, axis=0) / cleared.extent_3
    assert ratio[:2].max() == pytest.approx(1)


def test_annotated_swaps_lie_on_the_pixels_of_the_objects_they_replace(built):
  found = examples(built["rp_3do_osa"])
  assert len(found) >= 4
  overlaps = [lineage(example)["mask_iou"] for example in found]
  assert np.mean(overlaps) > 0.9


# --- What a build depends on ----------------------------------------------------------------------


@pytest.mark.parametrize("builder", ["rp_3do_fo", "rp_3do_osr"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(built, builder, tmp_path):
  two = tmp_path / "two"
  assert pasting.run(builder, f"out={two}", "workers=2") == 0
  names = {path.name for path in built[builder].rglob("*") if path.is_file()}
  assert {path.name for path in two.rglob("*") if path.is_file()} == names
  for path in built[builder].rglob("*"):
    if path.is_file():
      other = two / path.relative_to(built[builder])
      assert path.read_bytes() == other.read_bytes(), path.name


def test_another_seed_gives_other_samples(built, tmp_path):
  assert pasting.run("rp_3do_fo", f"out={tmp_path}", "seed=1", "procedural.count=3") == 0
  keys = {example["key"] for example in examples(tmp_path)}
  assert keys
  assert keys.isdisjoint(example["key"] for example in examples(built["rp_3do_fo"]))


@pytest.mark.parametrize(
  "override",
  [
    "seed=1",
    "views=3",
    "image_size=41",
    "samples=2",
    "delit=True",
    "attempts=2",
    "partners=1",
    "photos_per_shard=2",
    "photos.count=5",
    "photos.frame=opencv",
    "photos.license=MIT",
    "rules.min_visible=0.5",
    "light.tint=0.0",
  ],
)
def test_what_changes_the_bytes_gives_a_build_another_identity(override):
  assert pasting.plan("rp_3do_osr", override).digest != pasting.plan("rp_3do_osr").digest


@pytest.mark.parametrize(
  "override",
  [
    "workers=2",
    "out=elsewhere",
    "photos.depth_cache=elsewhere",
    "quarantine_budget=0.5",
  ],
)
def test_what_changes_no_byte_leaves_a_build_its_identity(override):
  assert pasting.plan("rp_3do_osr", override).digest == pasting.plan("rp_3do_osr").digest


def test_rooms_are_pure_functions_of_seed_and_index():
  one = procedural_scenes.make_room(0, 3, 48)
  again = procedural_scenes.make_room(0, 3, 48)
  other = procedural_scenes.make_room(0, 4, 48)
  np.testing.assert_array_equal(one.scene.image_HW3, again.scene.image_HW3)
  assert not np.array_equal(one.scene.image_HW3, other.scene.image_HW3)
  assert len(one.objects) == len(one.scene.masks)


def test_meshes_and_photos_of_the_two_splits_are_disjoint():
  jobs = pasting.plan("rp_3do_fo", "test_fraction=0.3", "photos.count=6").jobs
  for field in ("inputs", "partners", "photos"):
    names = {"train": set(), "test": set()}
    for job in jobs:
      names[job.split].update(item.name for item in getattr(job.spec, field))
    assert names["train"] and names["test"], field
    assert names["train"].isdisjoint(names["test"]), field
  # One photo is not enough for two splits.
  jobs = pasting.plan("rp_3do_fo", "test_fraction=0.3", "photos.count=1").jobs
  assert {job.split for job in jobs} == {"train"}


# --- Orientations ---------------------------------------------------------------------------------


def angle_of(turn_33: np.ndarray) -> float:
  """The angle of a rotation, radians."""
  cosine = (np.trace(turn_33) - 1) / 2
  return np.arccos(np.clip(cosine, -1, 1))


@pytest.mark.parametrize("largest_deg", [45.0, 120.0])
def test_turns_are_uniform_up_to_the_largest(largest_deg):
  rng = np.random.default_rng(0)
  turns = []
  for _ in range(2000):
    rotation = render_paste.random_rotation(rng, largest_deg)
    turns.append(rotation @ render_paste.FRONT.T)
  angles = np.array([angle_of(turn) for turn in turns])
  largest = np.radians(largest_deg)

  def law(angle):
    return (angle - np.sin(angle)) / (largest - np.sin(largest))

  assert angles.max() <= largest + 1e-6
  assert scipy.stats.kstest(angles, law).pvalue > 1e-3
  # about no axis more than about another
  skew = np.mean([turn - turn.T for turn in turns], axis=0)
  assert np.abs(skew).max() < 0.05


def test_any_orientation_is_uniform():
  rng = np.random.default_rng(0)
  angles = [angle_of(render_paste.random_rotation(rng)) for _ in range(2000)]

  def law(angle):
    return (angle - np.sin(angle)) / np.pi

  assert scipy.stats.kstest(angles, law).pvalue > 1e-3
