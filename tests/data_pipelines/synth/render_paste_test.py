"""The render-and-paste builders: what they write keeps to their thresholds and to physics, whoever
builds it.
"""

import hashlib
import io
import json
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image
import pytest
import scipy.stats
import trimesh

from data_pipelines.annotations import write
from data_pipelines.build import checks, shard_jobs
from data_pipelines.format import records, schema
from data_pipelines.synth import (
  assets,
  procedural,
  procedural_scenes,
  render_paste,
  scenes,
  sources,
  swap,
)
from launch import build_data
from launch.console import cli
from launch.planners import builders
from sam3d_jax.errors import ConfigError, InputError, Refused
from sam3d_jax.geometry import pose
from tests.support import synthetic_depth

ROOT = pathlib.Path(__file__).parents[3]
SMALL = (
  "procedural.count=6",
  "procedural.families=('mug','crate','chair')",
  "photos.count=4",
  "objects_per_shard=3",
  "workers=1",
  "test_fraction=0.0",
  "image_size=64",
  "samples=1",
)
FEW = {
  "rp_3do_fo": (*SMALL, "delit=True"),
  "rp_3do_osr": (*SMALL, "views=2", "image_size=96"),
  "rp_3do_osa": (*SMALL, "photos.count=3", "image_size=96", "objects_per_shard=2"),
}


def run(builder: str, *overrides: str) -> int:
  argv = [
    "--config",
    f"{ROOT}/configs/data/{builder}.py:tiny",
    *(f"--config.{o}" for o in (*FEW[builder], *overrides)),
  ]
  return cli.run_command(build_data.run, description="test", flags=build_data.flags, argv=argv)


def plan(builder: str, *overrides: str) -> shard_jobs.Plan:
  config = cli.load_config(
    f"{ROOT}/configs/data/{builder}.py:tiny", [f"--config.{o}" for o in (*FEW[builder], *overrides)]
  )
  return builders.PLANNERS[config.builder](config)


def examples(folder: pathlib.Path) -> list[dict]:
  split = records.open_split(folder, "train")
  return [split[i] for i in range(len(split))]


def mask(example, field="mask") -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(example[field]))) > 0


def image(example, field="image") -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(example[field])))


def lineage(example) -> dict:
  return json.loads(example["lineage"])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, pathlib.Path]:
  folders = {name: tmp_path_factory.mktemp("rp") / name for name in FEW}
  for name, folder in folders.items():
    assert run(name, f"out={folder}") == 0
  return folders


@pytest.fixture(scope="module")
def rooms(built) -> dict[str, scenes.Scene]:
  """The photos that the flying objects were pasted into."""
  return {f"room-{i}": procedural_scenes.make_room(0, i, 64).scene for i in range(4)}


@pytest.mark.parametrize("builder", FEW)
def test_every_example_agrees_with_its_mask_point_map_camera_and_voxels(built, builder):
  for example in examples(built[builder]):
    report = checks.check_example(example)
    assert report.findings == [] and report.silhouette_iou > 0.5, (example["lineage"], report)
    assert schema.is_present(example, "image_delit") == (builder != "rp_3do_osr")


def test_flying_pairs_keep_to_the_published_bounds_and_a_third_of_the_targets_is_in_front(built):
  found = examples(built["rp_3do_fo"])
  roles = [lineage(e)["role"] for e in found]
  assert len(found) == 18 and roles.count("front") == 6
  for example, role in zip(found, roles, strict=True):
    visible, whole = mask(example), mask(example, "mask_full")
    assert visible.mean() >= 0.002
    if role == "front":
      assert (visible == whole).all()
    else:
      assert 0.1 <= visible.sum() / whole.sum() <= 0.9
    assert (
      lineage(example)["partner"] != lineage(example)["mesh"]
      and lineage(example)["synthetic_photo"]
    )


def test_flying_objects_are_nearer_than_the_photo_which_stays_as_it_was_around_them(built, rooms):
  for example in examples(built["rp_3do_fo"]):
    photo = rooms[lineage(example)["photo"]]
    points = example["pointmap"].astype(np.float32)
    untouched = points[..., 2] == photo.pointmap_HW3[..., 2].astype(np.float16)
    pasted = ~untouched
    assert (points[pasted][:, 2] < photo.pointmap_HW3[pasted][:, 2]).all()
    assert (pasted[mask(example)]).all()
    same = (image(example) == photo.image_HW3).all(-1)
    # partly covered pixels
    soft = np.any([np.roll(pasted, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)
    assert same[~soft].all() and same[mask(example)].mean() < 0.2


def test_the_occluder_is_nearer_than_the_target_it_hides(built):
  hidden = [e for e in examples(built["rp_3do_fo"]) if lineage(e)["role"] == "hidden"]
  for example in hidden:
    depth = example["pointmap"].astype(np.float32)[..., 2]
    covered = mask(example, "mask_full") & ~mask(example)
    assert depth[covered].max() < depth[mask(example)].min()


def test_delit_images_differ_from_lit_ones_on_the_target_alone(built):
  for builder in ("rp_3do_fo", "rp_3do_osa"):
    changed = 0
    for example in examples(built[builder]):
      differs = (image(example) != image(example, "image_delit")).any(-1)
      whole = mask(example, "mask_full")
      border = np.any(
        [np.roll(whole, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0
      )
      assert not differs[~border].any()
      changed += differs[mask(example)].mean() > 0.5
    assert changed


def test_swapped_objects_are_seen_and_supported_or_partly_hidden(built):
  result = json.loads((built["rp_3do_osr"] / "build.json").read_text())["counts"]
  found = examples(built["rp_3do_osr"])
  assert (
    result["records"] == {"train": len(found)}
    and result["rejected_draws"]["neither_supported_nor_occluded"] > 0
  )
  for example in found:
    seen = mask(example).sum() / mask(example, "mask_full").sum()
    assert seen >= 0.2 and seen == pytest.approx(lineage(example)["visible"], abs=1e-3)
    assert lineage(example)["support"] > 0 or lineage(example)["hidden_contour"] >= 0.1


def test_what_hides_a_swapped_object_is_nearer_and_the_point_map_shows_the_new_surface(built):
  for example in examples(built["rp_3do_osr"]):
    depth = example["pointmap"].astype(np.float32)[..., 2]
    nearest = float((example["voxels"] @ example["rotation"][2].astype(float) / 64).min())
    assert depth[mask(example)].min() > example["translation"][2] + example["scale"][0] * (
      nearest - 1
    )
    hidden = mask(example, "mask_full") & ~mask(example)
    if hidden.any():  # by something that may be in front of it
      assert depth[hidden].max() < example["translation"][2] + 0.9 * example["scale"][0]


def test_a_swapped_mesh_stands_at_the_centroid_and_fits_the_box_of_what_was_there():
  scene, rules, rng = (
    procedural_scenes.make_room(0, 0, 160).scene,
    swap.SwapRules(min_object_share=0.01),
    np.random.default_rng(0),
  )
  assert len(swap.usable_objects(scene, rules)) >= 2
  subject = render_paste.subject_of(
    assets.from_scene(procedural.make_scene(0, 4), source="x", up="z")
  )
  for number in swap.usable_objects(scene, rules):
    cleared = swap.clear(scene, scene.masks[number], rules)
    points = scene.pointmap_HW3[scene.masks[number]]
    assert (np.abs(cleared.centroid_3 - points.mean(0)) < 0.2 * np.ptp(points, axis=0) + 0.01).all()
    seen = swap.fit(subject, render_paste.random_rotation(rng), cleared, scene)
    posed = seen.points(subject.asset.mesh.vertices)
    np.testing.assert_allclose((posed.min(0) + posed.max(0)) / 2, cleared.centroid_3, atol=1e-9)
    assert (np.ptp(posed, axis=0) / cleared.extent_3)[:2].max() == pytest.approx(1)


def test_annotated_swaps_lie_on_the_pixels_of_the_objects_they_replace(built):
  found = examples(built["rp_3do_osa"])
  assert len(found) >= 4
  assert np.mean([lineage(e)["mask_iou"] for e in found]) > 0.9


@pytest.mark.parametrize("builder", ["rp_3do_fo", "rp_3do_osr"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(built, builder, tmp_path):
  assert run(builder, f"out={tmp_path / 'two'}", "workers=2") == 0
  one, two = (
    {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for folder in (built[builder], tmp_path / "two")
  )
  assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []


def test_another_seed_gives_other_samples(built, tmp_path):
  assert run("rp_3do_fo", f"out={tmp_path}", "seed=1", "procedural.count=3") == 0
  assert {e["key"] for e in examples(tmp_path)}.isdisjoint(
    e["key"] for e in examples(built["rp_3do_fo"])
  )


def test_a_build_is_identified_by_what_changes_its_bytes(tmp_path):
  base = plan("rp_3do_osr").digest
  for override in (
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
  ):
    assert plan("rp_3do_osr", override).digest != base, override
  for override in (
    "workers=2",
    "out=elsewhere",
    "photos.depth_cache=elsewhere",
    "quarantine_budget=0.5",
  ):
    assert plan("rp_3do_osr", override).digest == base, override


def test_annotated_photos_of_a_folder_are_swapped_in_place(tmp_path):
  room = procedural_scenes.make_room(0, 2, 128)
  for i, (placed, seen) in enumerate(zip(room.objects, room.scene.masks, strict=True)):
    # y up by convention: turned, shifted and larger than the unit cube
    mesh = tmp_path / f"{i}.ply"
    trimesh.Trimesh(
      3 * placed.asset.mesh.vertices @ assets.Y_UP_TO_Z_UP + 7,
      placed.asset.mesh.faces,
      process=False,
    ).export(mesh)
    at = placed.viewpoint.pose
    points = room.scene.pointmap_HW3 if i else None
    write.from_arrays(
      tmp_path / "items" / f"{i}",
      room.scene.image_HW3,
      seen,
      {"a": write.Proposal("artist/x", mesh=mesh, pose=at)},
      [],
      pointmap_HW3=points,
      camera=tuple(room.scene.camera[:4]),
      license="CC0-1.0",
    )
  out = tmp_path / "out"
  assert run("rp_3do_osa", f"out={out}", f"source={tmp_path / 'items'}", "image_size=128") == 0
  refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
  assert ("0/annotation.json", "no_pointmap", False) in {
    (line["path"], line["reason"], line["fault"]) for line in refused
  }
  found = examples(out)
  assert (
    found
    and min(lineage(e)["mask_iou"] for e in found) > 0.85
    and all(checks.check_example(e).findings == [] for e in found)
  )


def test_annotated_photos_without_any_depth_end_with_code_2(tmp_path, capsys):
  mesh = tmp_path / "ball.ply"
  trimesh.creation.icosphere(1).export(mesh)
  at = pose.Pose(np.eye(3), np.array([0.0, 0, 2]), np.ones(3))
  write.from_arrays(
    tmp_path / "items" / "0",
    np.zeros((40, 40, 3), np.uint8),
    np.eye(40, dtype=bool),
    {"a": write.Proposal("artist/x", mesh=mesh, pose=at)},
    [],
  )
  assert run("rp_3do_osa", f"out={tmp_path / 'out'}", f"source={tmp_path / 'items'}") == 2
  assert "needs depth" in capsys.readouterr().err


def test_real_photographs_with_made_up_depth_build_and_pass(shared_dir, tmp_path):
  synthetic_depth.copy_scenes(shared_dir / "data" / "images", tmp_path / "photos")
  for builder in ("rp_3do_fo", "rp_3do_osr"):
    out = tmp_path / builder
    assert (
      run(
        builder,
        f"out={out}",
        f"photos.source={tmp_path / 'photos'}",
        "image_size=128",
        "name=synthetic_depth",
        "procedural.count=4",
      )
      == 0
    )
    for example in examples(out):
      assert checks.check_example(example).findings == [], example["lineage"]


def test_malformed_photos_are_quarantined_by_reason_and_odd_ones_used(shared_dir, tmp_path):
  bad, scene = shared_dir / "data" / "bad", tmp_path / "photos" / "scene"
  scene.mkdir(parents=True)
  for file in sorted(bad.glob("image_*")):
    shutil.copyfile(file, tmp_path / "photos" / file.name)
  shutil.copyfile(bad / "image_ok.jpg", scene / "image.jpg")
  for i, name in enumerate(("mask_ok", "mask_wrong_size", "mask_all_zero", "mask_all_one")):
    shutil.copyfile(bad / f"{name}.png", scene / f"{i}.png")
  out = tmp_path / "out"
  assert (
    run(
      "rp_3do_fo",
      f"out={out}",
      f"photos.source={tmp_path / 'photos'}",
      "views=5",
      "quarantine_budget=0.9",
    )
    == 0
  )
  lines = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
  refused = {pathlib.Path(line["path"]).name: line["reason"] for line in lines}
  assert refused == {
    "image_corrupt.png": "bad_image",
    "image_1x1.png": "bad_image",
    "1.png": "bad_mask",
    "2.png": "bad_mask",
    "3.png": "bad_mask",
  }
  used = {lineage(e)["photo"] for e in examples(out)}
  assert used == {
    "image_ok.jpg",
    "image_cmyk.jpg",
    "image_rgba.png",
    "image_16bit_gray.png",
    "image_16bit_rgb.png",
    "scene/image.jpg",
  }


# Photo folders.


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """One room written as a photo folder, one photo by itself."""
  procedural_scenes.write_room(
    tmp_path / "photos" / "house" / "kitchen", procedural_scenes.make_room(0, 1, 96)
  )
  Image.fromarray(np.full((50, 70, 3), 99, np.uint8)).save(
    tmp_path / "photos" / "house" / "sky.jpg"
  )
  return tmp_path / "photos"


def load(folder, name, **settings):
  reports = []
  config = scenes.PhotoConfig(str(folder), **{"image_size": 96} | settings)
  item = next(i for i in scenes.list_scenes(config) if i.name == name)
  return scenes.load(config, item, lambda *what: reports.append(what)), reports


def test_a_written_room_is_read_back_with_its_masks_points_and_camera(folder):
  room = procedural_scenes.make_room(0, 1, 96).scene
  scene, reports = load(folder, "house/kitchen/image.png")
  assert not reports and scene.license == "CC0-1.0" and len(scene.masks) == len(room.masks)
  np.testing.assert_array_equal(scene.image_HW3, room.image_HW3)
  np.testing.assert_array_equal(scene.masks, room.masks)
  np.testing.assert_allclose(scene.pointmap_HW3, room.pointmap_HW3, atol=1e-4)
  background, _ = load(folder, "house/sky.jpg", license="CC-BY-4.0")
  assert (
    background.size == (50, 70)
    and background.pointmap_HW3 is None
    and background.license == "CC-BY-4.0"
    and not background.masks
  )


def test_photos_are_reduced_and_their_points_still_project_to_their_own_pixels(folder):
  scene, _ = load(folder, "house/kitchen/image.png", image_size=40)
  assert scene.size == (30, 40) and scene.masks[0].shape == (30, 40)
  camera = scene.camera
  u = camera.cx - camera.fx * scene.pointmap_HW3[..., 0] / scene.pointmap_HW3[..., 2]
  np.testing.assert_allclose(u, np.broadcast_to(np.arange(40) + 0.5, (30, 40)), atol=1e-3)
  small = procedural_scenes.make_room(0, 1, 40).scene
  assert np.median(np.abs(scene.pointmap_HW3[..., 2] / small.pointmap_HW3[..., 2] - 1)) < 0.02


def test_masks_and_point_maps_that_cannot_be_used_are_named_and_left_out(folder):
  kitchen = folder / "house" / "kitchen"
  Image.fromarray(np.zeros((72, 96), np.uint8)).save(kitchen / "0.png")
  Image.fromarray(np.full((10, 10), 255, np.uint8)).save(kitchen / "1.png")
  np.savez(kitchen / "pointmap.npz", pointmap=np.full((72, 96, 3), np.nan))
  scene, reports = load(folder, "house/kitchen/image.png")
  assert scene.masks[:2] == (None, None) and scene.pointmap_HW3 is None
  assert [(pathlib.Path(path).name, reason) for path, reason, _ in reports] == [
    ("0.png", "bad_mask"),
    ("1.png", "bad_mask"),
    ("pointmap.npz", "bad_pointmap"),
  ]
  (kitchen / "image.png").write_bytes(b"broken")
  with pytest.raises(Refused, match="bad_image"):
    load(folder, "house/kitchen/image.png")


def test_swaps_without_depth_say_what_to_do_and_end_with_code_2(folder, tmp_path, capsys):
  (folder / "house" / "kitchen" / "pointmap.npz").unlink()
  assert run("rp_3do_osr", f"out={tmp_path / 'out'}", f"photos.source={folder}") == 2
  said = capsys.readouterr().err
  assert (
    "needs depth" in said and "pointmap.npz" in said and "--config.photos.depth_command" in said
  )
  assert not (tmp_path / "out").exists()
  with pytest.raises(ConfigError, match="must contain {image} and {out}"):
    plan("rp_3do_osr", f"photos.source={folder}", "photos.depth_command=estimate")


def test_an_estimator_makes_the_missing_point_maps_once(folder, tmp_path):
  points = folder / "house" / "kitchen" / "pointmap.npz"
  shutil.move(points, tmp_path / "truth.npz")
  script = tmp_path / "estimate.py"
  script.write_text(
    "import hashlib, shutil, sys\nfrom PIL import Image\n"
    "seen = hashlib.sha256(Image.open(sys.argv[1]).convert('RGB').tobytes()).hexdigest()\n"
    "print(seen, file=open(sys.argv[3], 'a'))\nshutil.copy(sys.argv[4], sys.argv[2])\n"
  )
  calls = tmp_path / "calls"
  command = f"{sys.executable} {script} {{image}} {{out}} {calls} {tmp_path}/truth.npz"
  settings = dict(depth_cache=str(tmp_path / "cache"), depth_command=command)
  for _ in range(2):
    scene, reports = load(folder, "house/kitchen/image.png", **settings)
    assert np.isfinite(scene.pointmap_HW3).all() and not reports
  with Image.open(folder / "house/kitchen/image.png") as photo:
    seen = hashlib.sha256(photo.convert("RGB").tobytes()).hexdigest()
  assert calls.read_text().splitlines() == [seen]
  (tmp_path / "truth.npz").unlink()
  with pytest.raises(
    InputError, match="(?s)depth_command failed with code 1 for .*image.png.*No such"
  ):
    load(folder, "house/kitchen/image.png", **settings | {"depth_cache": str(tmp_path / "other")})


def test_photographs_of_a_folder_are_used_and_broken_ones_quarantined(folder, tmp_path):
  (folder / "broken.jpg").write_bytes(b"no photo")
  Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "tiny.png")
  out = tmp_path / "out"
  few = ("quarantine_budget=0.4", "procedural.count=3", "objects_per_shard=2", "views=4")
  assert run("rp_3do_fo", f"out={out}", f"photos.source={folder}", *few) == 0
  lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
  assert {(line["path"], line["reason"]) for line in lines} == {
    ("broken.jpg", "bad_image"),
    ("tiny.png", "small_image"),
  }
  found = examples(out)
  assert {lineage(e)["photo"] for e in found} == {"house/kitchen/image.png", "house/sky.jpg"}
  for example in found:
    assert "synthetic_photo" not in lineage(example)
    assert example["license"] == (
      "CC0-1.0; unknown" if "sky" in lineage(example)["photo"] else "CC0-1.0"
    )
    known = np.isfinite(example["pointmap"].astype(np.float32)).all(-1)
    assert known[mask(example)].all() and known.all() == (
      lineage(example)["photo"] == "house/kitchen/image.png"
    )


def test_meshes_and_photos_of_the_two_splits_are_disjoint():
  jobs = plan("rp_3do_fo", "test_fraction=0.3", "photos.count=6").jobs
  for field in ("inputs", "partners", "photos"):
    train, test = (
      {i.name for job in jobs if job.split == split for i in getattr(job.spec, field)}
      for split in ("train", "test")
    )
    assert train and test and train.isdisjoint(test), field
  assert {job.split for job in plan("rp_3do_fo", "test_fraction=0.3", "photos.count=1").jobs} == {
    "train"
  }


def test_a_mesh_that_no_draw_can_place_is_set_aside_with_the_counts(tmp_path, capsys):
  impossible = ("rules.visible=(0.5,0.5)", "attempts=2", "views=1")
  assert run("rp_3do_fo", f"out={tmp_path}", *impossible) == 2
  assert "none of 6 inputs became an example (no_sample 6)" in capsys.readouterr().err
  line = json.loads((tmp_path / "quarantine.jsonl").read_text().splitlines()[0])
  assert line["reason"] == "no_sample" and "none of 2 draws" in line["detail"] and not line["fault"]


def test_bad_meshes_are_refused_by_their_own_shard_and_passed_over_as_partners(tmp_path):
  (tmp_path / "meshes").mkdir()
  for i in range(3):
    trimesh.creation.icosphere(1, radius=1).apply_scale([1, 1, 1 + 0.2 * i]).export(
      tmp_path / "meshes" / f"ball{i}.ply"
    )
  (tmp_path / "meshes" / "empty.obj").write_text("# nothing\n")
  out = tmp_path / "out"
  assert (
    run(
      "rp_3do_fo", f"out={out}", f"source={tmp_path / 'meshes'}", "quarantine_budget=0.3", "views=1"
    )
    == 0
  )
  lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
  assert [(line["path"], line["reason"]) for line in lines] == [("empty.obj", "empty")]
  assert len(examples(out)) == 3 and not any("empty.obj" in e["lineage"] for e in examples(out))


@pytest.mark.parametrize(
  "override, message",
  [
    ("photos.source=nowhere", "photos.source = 'nowhere' is not a folder"),
    ("photos.count=0", "photos.count = 0"),
    ("attempts=0", "attempts = 0"),
    ("rules.visible=(0.9,0.1)", r"rules.visible = \(0.9, 0.1\)"),
    ("rules.min_image_share=2.0", "rules.min_image_share = 2.0"),
  ],
)
def test_values_no_builder_can_use_are_configuration_errors(override, message):
  with pytest.raises(ConfigError, match=message):
    plan("rp_3do_fo", override)


def test_rooms_are_pure_functions_of_seed_and_index():
  one, again, other = (procedural_scenes.make_room(0, index, 48) for index in (3, 3, 4))
  np.testing.assert_array_equal(one.scene.image_HW3, again.scene.image_HW3)
  assert not np.array_equal(one.scene.image_HW3, other.scene.image_HW3)
  assert sources.PROCEDURAL == "procedural" and len(one.objects) == len(one.scene.masks)


@pytest.mark.parametrize("largest", [45.0, 120.0])
def test_turns_are_uniform_up_to_the_largest(largest):
  rng = np.random.default_rng(0)
  turns = [render_paste.random_rotation(rng, largest) @ render_paste.FRONT.T for _ in range(2000)]
  angles = np.arccos(np.clip([(np.trace(t) - 1) / 2 for t in turns], -1, 1))
  a = np.radians(largest)
  assert angles.max() <= a + 1e-6
  assert scipy.stats.kstest(angles, lambda x: (x - np.sin(x)) / (a - np.sin(a))).pvalue > 1e-3
  # about no axis more than about another
  assert np.abs(np.mean([t - t.T for t in turns], axis=0)).max() < 0.05


def test_any_orientation_is_uniform():
  rng = np.random.default_rng(0)
  angles = [
    np.arccos(np.clip((np.trace(render_paste.random_rotation(rng)) - 1) / 2, -1, 1))
    for _ in range(2000)
  ]
  assert scipy.stats.kstest(angles, lambda x: (x - np.sin(x)) / np.pi).pvalue > 1e-3
