"""Evaluation sets read from files: a scene of known truth is written in each layout, read back, and
must project onto its masks.
"""

import json
import shutil

import numpy as np
from PIL import Image
import pytest
from scipy.spatial.transform import Rotation
import trimesh

from data_pipelines.eval_sets import item as eval_item
from data_pipelines.eval_sets import reprojection
from data_pipelines.eval_sets.bop import BopSet
from data_pipelines.eval_sets.photo_folder import PhotoFolder, read_pose
from data_pipelines.synth import benchmark, render
from data_pipelines.synth.camera import viewpoint
from launch import evaluate
from sam3d_jax.errors import InputError, InputNote
from sam3d_jax.evaluation import layout
from sam3d_jax.geometry.cameras import Camera

SIZE = (120, 160)  # height, width
OPENCV = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def scene():
  """Two views of one object: mask, metric depth and the renderer's camera. The object is 0.2 m long
  and has no symmetry.
  """
  asset = benchmark.object_asset(0, 1)
  camera = Camera(150.0, 155.0, 82.3, 57.9, SIZE[1], SIZE[0])
  ambient = render.Lights(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3)))
  views = []
  for turn, place in (((20, 30, 10), (0.02, -0.03, 0.8)), ((200, -15, 70), (-0.05, 0.02, 1.1))):
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    seen = viewpoint(camera, rotation, np.array(place), 0.2)
    shown = render.render(render.Scene(asset.mesh), seen, ambient, samples=1)
    views.append((seen, shown))
  return asset, views


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def picture(shown):
  return render.over(shown.delit_HW3, shown.alpha_HW, (90, 120, 150))


def grey(mask):
  return mask.astype(np.uint8) * 255


def in_folder_of_object(root, i, kind, suffix):
  """The file of an object in the layout of a folder an object."""
  return root / f"view{i}" / f"{kind}{suffix}"


def in_folder_of_kind(root, i, kind, suffix):
  """The file of an object in the layout of a folder a kind."""
  folder = "meshes" if kind == "mesh" else f"{kind}s"
  return root / folder / f"view{i}{suffix}"


def pose_of_columns(seen):
  """A pose as a quaternion in lists of one element, as it is published."""
  quaternion = Rotation.from_matrix(seen.pose.rotation).as_quat(scalar_first=True)
  return {
    "rotation": [quaternion.tolist()],
    "translation": [seen.pose.translation.tolist()],
    "scale": [[0.2, 0.2, 0.2]],
  }


def pose_of_rows(seen):
  """A pose as a matrix for rows, as the published inference code writes it."""
  return {
    "form": "rows",
    "rotation": seen.pose.rotation.T.tolist(),
    "translation": seen.pose.translation.tolist(),
    "scale": 0.2,
  }


LAYOUTS = {
  "folder an object": (in_folder_of_object, pose_of_columns),
  "folder a kind": (in_folder_of_kind, pose_of_rows),
}


@pytest.fixture(scope="module")
def bop(scene, tmp_path_factory):
  """The views as a BOP dataset: millimetres, OpenCV frame, pixel centres at whole numbers, depth in
  tenths of a millimetre.
  """
  root = tmp_path_factory.mktemp("bop") / "tiny"
  asset, views = scene
  (root / "models_eval").mkdir(parents=True)
  mesh = trimesh.Trimesh(asset.mesh.vertices * 200, asset.mesh.faces, process=False)
  mesh.export(root / "models_eval" / "obj_000007.ply")

  folder = root / "test" / "000002"
  truth = {}
  cameras = {}
  info = {}
  for i, (seen, shown) in enumerate(views):
    number = 3 + i
    tenths = np.nan_to_num(shown.depth_HW * 10_000).round().astype(np.uint16)
    save(folder / "rgb" / f"{number:06d}.png", picture(shown))
    save(folder / "depth" / f"{number:06d}.png", tenths)
    save(folder / "mask_visib" / f"{number:06d}_000000.png", grey(shown.mask_HW))
    entry = {
      "obj_id": 7,
      "cam_R_m2c": (OPENCV @ seen.pose.rotation).ravel().tolist(),
      "cam_t_m2c": (OPENCV @ seen.pose.translation * 1000).tolist(),
    }
    # The second object is hidden.
    image = str(number)
    truth[image] = [entry, entry | {"obj_id": 8}]
    info[image] = [
      {"visib_fract": 0.95 - i / 2, "bbox_visib": [0, 0, 50, 50]},
      {"visib_fract": 0.05, "bbox_visib": [0, 0, 9, 9]},
    ]
    camera = seen.camera
    first_row = [camera.fx, 0, camera.cx - 0.5]
    second_row = [0, camera.fy, camera.cy - 0.5]
    cameras[image] = {"cam_K": [*first_row, *second_row, 0, 0, 1], "depth_scale": 0.1}
  for name, content in (("scene_gt", truth), ("scene_camera", cameras), ("scene_gt_info", info)):
    (folder / f"{name}.json").write_text(json.dumps(content))
  return root


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request, scene, tmp_path_factory):
  """The views as plain files in either layout; the second one in the published row form with a
  matrix.
  """
  root = tmp_path_factory.mktemp("photos")
  path_of, pose_of = LAYOUTS[request.param]
  asset, views = scene
  mesh = trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces, process=False)
  for i, (seen, shown) in enumerate(views):
    save(path_of(root, i, "image", ".png"), picture(shown))
    save(path_of(root, i, "mask", ".png"), grey(shown.mask_HW))
    for kind in ("mesh", "pose", "pointmap"):
      path_of(root, i, kind, "").parent.mkdir(exist_ok=True)
    mesh.export(path_of(root, i, "mesh", ".ply"))
    np.savez(path_of(root, i, "pointmap", ".npz"), pointmap=shown.pointmap_HW3)
    path_of(root, i, "pose", ".json").write_text(json.dumps(pose_of(seen)))
  return root


def check_items(found, views):
  for item, (seen, shown) in zip(found, views, strict=True):
    np.testing.assert_array_equal(item.mask_HW, shown.mask_HW)
    np.testing.assert_allclose(item.pose.translation, seen.pose.translation, atol=1e-6)
    np.testing.assert_allclose(item.pose.rotation, seen.pose.rotation, atol=1e-6)
    np.testing.assert_allclose(item.pointmap_HW3, shown.pointmap_HW3, atol=2e-4)
    np.testing.assert_allclose(
      [item.camera.fx, item.camera.cx, item.camera.cy],
      [seen.camera.fx, seen.camera.cx, seen.camera.cy],
      atol=0.1,
    )
    fit = reprojection.fit(item)
    assert fit.covered > 0.99 and abs(fit.depth) < 0.03  # a pixel is 0.03 diameters wide
    placed = layout.place(item.truth, item.pose).vertices
    assert np.ptp(placed, axis=0).max() < 0.4  # metres


def test_bop_scenes_are_read_in_metres_in_our_frame(bop, scene):
  chosen = BopSet(bop)
  # the hidden ones are left out
  assert chosen.names == ["000002-000003-000000-obj_000007", "000002-000004-000000-obj_000007"]
  found = list(eval_item.items(chosen))
  assert [item.group for item in found] == ["visible 90-100 %", "visible 10-50 %"]
  assert [item.subject for item in found] == ["object 7", "object 7"]
  check_items(found, scene[1])


def test_targets_restrict_a_bop_test_split(bop):
  targets = bop / "test_targets_bop19.json"
  targets.write_text(json.dumps([{"scene_id": 2, "im_id": 4, "obj_id": 7, "inst_count": 1}]))
  assert BopSet(bop).names == ["000002-000004-000000-obj_000007"]
  targets.unlink()


def test_photo_folders_are_read_in_both_layouts_and_both_pose_forms(folder, scene):
  chosen = PhotoFolder(folder, "sa3dao")
  assert chosen.names == ["view0", "view1"]
  check_items(list(eval_item.items(chosen)), scene[1])


def test_a_pose_in_the_wrong_form_is_seen_by_projecting_it(folder, scene, capsys, tmp_path):
  command = ["--photos", str(folder), "--out", str(tmp_path), "--dry_run"]
  exchange_forms(folder)
  assert evaluate.main(command) == 0
  exchange_forms(folder)
  assert "WARNING: " in capsys.readouterr().out
  assert evaluate.main(command) == 0
  assert "WARNING" not in capsys.readouterr().out


def exchange_forms(folder):
  """Every pose says the other form than it did."""
  for path in folder.rglob("*.json"):
    pose = json.loads(path.read_text())
    was_rows = pose.get("form") == "rows"
    pose["form"] = "columns" if was_rows else "rows"
    path.write_text(json.dumps(pose))


def test_a_subset_keeps_names_and_items_together(bop):
  some = eval_item.Subset(BopSet(bop), (1,))
  assert some.names == ["000002-000004-000000-obj_000007"]
  assert some[0].name == some.names[0]
  assert some.identity["chosen"] == 1


@pytest.mark.parametrize(
  "change, message",
  [
    ({"rotation": [1, 0, 0]}, "4 or 9 numbers"),
    ({"rotation": np.diag([1.0, 1, -1]).tolist()}, "determinant"),
    ({"scale": -1}, "positive"),
    ({"form": "matrix"}, "columns or rows"),
    ({"translation": None}, "translation 3|TypeError|ValueError|finite"),
  ],
)
def test_bad_poses_are_refused_by_file(tmp_path, change, message):
  path = tmp_path / "pose.json"
  path.write_text(
    json.dumps({"rotation": [1, 0, 0, 0], "translation": [0, 0, 1], "scale": 1} | change)
  )
  with pytest.raises(InputError, match=f"pose.json.*({message})"):
    read_pose(path)


def test_missing_parts_are_named(bop, tmp_path):
  with pytest.raises(InputError, match="no folder val; give --split, one of test"):
    BopSet(bop, "val")
  with pytest.raises(InputError, match="neither folders"):
    PhotoFolder(tmp_path, "sa3dao")
  save(tmp_path / "cup" / "image.png", np.zeros((8, 8, 3), np.uint8))
  with pytest.raises(InputError, match="object cup has no mask and no mesh"):
    PhotoFolder(tmp_path, "sa3dao")


def copied(bop, tmp_path):
  """A copy of the dataset, which a test may change, and its one scene."""
  root = tmp_path / "copy"
  shutil.copytree(bop, root)
  return root, root / "test" / "000002"


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_bop_depth_is_read_from_tiff_too(bop, scene, tmp_path, suffix, dtype):
  root, folder = copied(bop, tmp_path)
  (folder / "rgb").rename(folder / "gray")
  for path in [*folder.glob("depth/*"), *folder.glob("gray/*")]:
    with Image.open(path) as image:
      values = np.asarray(image)
    if path.parent.name == "depth":
      values = values.astype(dtype)
    save(path.with_suffix(suffix), values)
    path.unlink()
  check_items(list(eval_item.items(BopSet(root))), scene[1])


def test_bop_depth_of_another_form_is_refused_and_missing_depth_is_noted(bop, tmp_path):
  root, folder = copied(bop, tmp_path)
  (folder / "depth" / "000003.png").rename(folder / "depth" / "000003.raw")
  with pytest.raises(InputError, match=r"000003\.raw: depth is read from \.png, \.tif"):
    BopSet(root)[0]
  (folder / "depth" / "000003.raw").unlink()
  with pytest.warns(InputNote, match="no depth of image 000003"):
    assert BopSet(root)[0].pointmap_HW3 is None


def with_sensor(folder, sensor: str) -> None:
  """Gives the files and folders of a scene the names of one of several sensors."""
  for path in list(folder.iterdir()):
    path.rename(path.with_name(f"{path.stem}_{sensor}{path.suffix}"))


def test_one_sensor_of_a_bop_scene_of_several_is_read(bop, scene, tmp_path):
  root, folder = copied(bop, tmp_path)
  with_sensor(folder, "cam1")
  message = r"000002 has no scene_gt.json.* it has .*scene_gt_cam1.json.*--sensor cam1$"
  with pytest.raises(InputError, match=message):
    BopSet(root)
  with pytest.raises(InputError, match=r"has no scene_gt_cam2.json.*--sensor cam1$"):
    BopSet(root, sensor="cam2")
  chosen = BopSet(root, sensor="cam1")
  assert chosen.identity["sensor"] == "cam1"
  check_items(list(eval_item.items(chosen)), scene[1])

  # HOT3D names the folder of pictures after the sensor alone
  (folder / "rgb_cam1").rename(folder / "cam1")
  assert BopSet(root, sensor="cam1")[0].image_HW3.shape == (*SIZE, 3)


def test_bop_scenes_without_truth_are_named(bop, tmp_path):
  root, folder = copied(bop, tmp_path)
  shutil.copytree(folder, folder.with_name("000003"))
  (folder.with_name("000003") / "scene_gt.json").unlink()
  with pytest.warns(InputNote, match="for want of scene_gt.json: 000003"):
    assert len(BopSet(root).names) == 2
  (folder / "scene_gt.json").unlink()
  with pytest.raises(InputError, match=r"000002 has no scene_gt.json.*it has depth, .*\(--split\)"):
    BopSet(root)
  with pytest.raises(InputError, match="leave --sensor out|public truth"):
    BopSet(bop, sensor="cam1")


@pytest.mark.parametrize(
  "file, change, message",
  [
    ("scene_gt", {"3": [{"cam_t_m2c": [0, 0, 1]}]}, "image 3, instance 0 has no obj_id"),
    ("scene_gt", {"3": [{"obj_id": "7"}]}, "obj_id = '7'"),
    ("scene_gt", {"third": []}, "entry 'third' is not a number"),
    ("scene_gt", [], "no entries by number"),
    ("scene_gt_info", {"3": [{"px": 1}], "4": []}, "instance 0 has no visib_fract"),
    ("scene_gt_info", {"3": [{"visib_fract": 1}], "4": []}, "image 3 has 1 instances"),
    ("scene_camera", {"3": {"depth_scale": 1}}, "image 3 has no cam_K"),
    ("scene_camera", {"3": {"cam_K": [1, 2, 3]}}, "cam_K: 3 numbers"),
    ("scene_camera", {"4": {}}, "has no entry 3"),
  ],
)
def test_wrong_entries_of_bop_files_are_named(bop, tmp_path, file, change, message):
  root, folder = copied(bop, tmp_path)
  (folder / f"{file}.json").write_text(json.dumps(change))
  with pytest.raises(InputError, match=f"{file}.json.*{message}"):
    BopSet(root)[0]


def test_bop_sets_of_public_reports_are_read_or_named(field_dir, tmp_path, capsys):
  root = field_dir / "bop-itodd-and-modalities"
  (control,) = eval_item.items(BopSet(root / "bop_plain"))
  (itodd,) = eval_item.items(BopSet(root / "bop_tif"))
  np.testing.assert_array_equal(itodd.pointmap_HW3, control.pointmap_HW3)
  for case, message in (("no_gt", "has no scene_gt.json"), ("modalities", "--sensor cam1")):
    flags = ["--bop", str(root / f"bop_{case}"), "--out", str(tmp_path), "--dry_run"]
    assert evaluate.main(flags) == 2
    assert message in capsys.readouterr().err


def test_cameras_of_photo_folders_come_in_any_form_and_lenses_are_refused(folder, scene, tmp_path):
  root = tmp_path / "copy"
  shutil.copytree(folder, root)
  by_kind = (root / "images").is_dir()
  path = root / "cameras" / "view0.json" if by_kind else root / "view0" / "camera.json"
  path.parent.mkdir(exist_ok=True)
  camera = scene[1][0][0].camera
  twice = {"fl_x": 2 * camera.fx, "fl_y": 2 * camera.fy, "cx": 2 * camera.cx, "cy": 2 * camera.cy}
  stated = twice | {"w": 2 * SIZE[1], "h": 2 * SIZE[0]}
  path.write_text(json.dumps(stated))
  np.testing.assert_allclose(PhotoFolder(root, "photos")[0].camera, camera)
  path.write_text(json.dumps(stated | {"k1": 0.1}))
  with pytest.raises(InputError, match=f"{path.name}: k1 = 0.1 is lens distortion"):
    PhotoFolder(root, "photos")[0]
