"""Evaluation sets read from files: a scene of known truth is written in each layout, read back, and
must project onto its masks.
"""

import json

import numpy as np
from PIL import Image
import pytest
from scipy.spatial.transform import Rotation
import trimesh

from data_pipelines.eval_sets import item as eval_item
from data_pipelines.eval_sets import reprojection
from data_pipelines.eval_sets.bop import BopSet
from data_pipelines.eval_sets.photo_folder import PhotoFolder
from data_pipelines.synth import benchmark, render
from data_pipelines.synth.camera import viewpoint
from launch import evaluate
from sam3d_jax.errors import InputError
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
  views = []
  for turn, place in (((20, 30, 10), (0.02, -0.03, 0.8)), ((200, -15, 70), (-0.05, 0.02, 1.1))):
    camera = Camera(150.0, 155.0, 82.3, 57.9, SIZE[1], SIZE[0])
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    seen = viewpoint(camera, rotation, np.array(place), 0.2)
    shown = render.render(
      render.Scene(asset.mesh),
      seen,
      render.Lights(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3))),
      samples=1,
    )
    views.append((seen, shown))
  return asset, views


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def picture(shown):
  return render.over(shown.delit_HW3, shown.alpha_HW, (90, 120, 150))


@pytest.fixture(scope="module")
def bop(scene, tmp_path_factory):
  """The views as a BOP dataset: millimetres, OpenCV frame, pixel centres at whole numbers, depth in
  tenths of a millimetre.
  """
  root = tmp_path_factory.mktemp("bop") / "tiny"
  asset, views = scene
  (root / "models_eval").mkdir(parents=True)
  trimesh.Trimesh(asset.mesh.vertices * 200, asset.mesh.faces, process=False).export(
    root / "models_eval" / "obj_000007.ply"
  )
  folder, truth, cameras, info = root / "test" / "000002", {}, {}, {}
  for i, (seen, shown) in enumerate(views):
    image = str(3 + i)
    save(folder / "rgb" / f"{3 + i:06d}.png", picture(shown))
    save(
      folder / "depth" / f"{3 + i:06d}.png",
      np.nan_to_num(shown.depth_HW * 10_000).round().astype(np.uint16),
    )
    save(folder / "mask_visib" / f"{3 + i:06d}_000000.png", shown.mask_HW.astype(np.uint8) * 255)
    entry = {
      "obj_id": 7,
      "cam_R_m2c": (OPENCV @ seen.pose.rotation).ravel().tolist(),
      "cam_t_m2c": (OPENCV @ seen.pose.translation * 1000).tolist(),
    }
    truth[image] = [entry, entry | {"obj_id": 8}]  # the second one is hidden
    cameras[image] = {
      "cam_K": [
        seen.camera.fx,
        0,
        seen.camera.cx - 0.5,
        0,
        seen.camera.fy,
        seen.camera.cy - 0.5,
        0,
        0,
        1,
      ],
      "depth_scale": 0.1,
    }
    info[image] = [
      {"visib_fract": 0.95 - i / 2, "bbox_visib": [0, 0, 50, 50]},
      {"visib_fract": 0.05, "bbox_visib": [0, 0, 9, 9]},
    ]
  for name, content in (("scene_gt", truth), ("scene_camera", cameras), ("scene_gt_info", info)):
    (folder / f"{name}.json").write_text(json.dumps(content))
  return root


@pytest.fixture(scope="module", params=["folder an object", "folder a kind"])
def folder(request, scene, tmp_path_factory):
  """The views as plain files in either layout; the second one in the published row form with a
  matrix.
  """
  root = tmp_path_factory.mktemp("photos")
  asset, views = scene
  for i, (seen, shown) in enumerate(views):
    path = (
      (lambda kind, suffix, i=i: root / f"view{i}" / f"{kind}{suffix}")
      if request.param == "folder an object"
      else (
        lambda kind, suffix, i=i: (
          root / {"mesh": "meshes"}.get(kind, kind + "s") / f"view{i}{suffix}"
        )
      )
    )
    save(path("image", ".png"), picture(shown))
    save(path("mask", ".png"), shown.mask_HW.astype(np.uint8) * 255)
    for kind in ("mesh", "pose", "pointmap"):
      path(kind, "").parent.mkdir(exist_ok=True)
    trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces, process=False).export(
      path("mesh", ".ply")
    )
    np.savez(path("pointmap", ".npz"), pointmap=shown.pointmap_HW3)
    pose = (
      {
        "rotation": [Rotation.from_matrix(seen.pose.rotation).as_quat(scalar_first=True).tolist()],
        "translation": [seen.pose.translation.tolist()],
        "scale": [[0.2, 0.2, 0.2]],
      }
      if request.param == "folder an object"
      else {
        "form": "rows",
        "rotation": seen.pose.rotation.T.tolist(),
        "translation": seen.pose.translation.tolist(),
        "scale": 0.2,
      }
    )
    path("pose", ".json").write_text(json.dumps(pose))
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
  assert [i.group for i in found] == ["visible 90-100 %", "visible 10-50 %"] and {
    i.subject for i in found
  } == {"object 7"}
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
  for path in folder.rglob("*.json"):
    pose = json.loads(path.read_text())
    path.write_text(
      json.dumps(pose | {"form": "rows" if pose.get("form") != "rows" else "columns"})
    )
  assert evaluate.main(["--photos", str(folder), "--out", str(tmp_path), "--dry_run"]) == 0
  for path in folder.rglob("*.json"):
    pose = json.loads(path.read_text())
    path.write_text(json.dumps(pose | {"form": "rows" if pose["form"] != "rows" else "columns"}))
  assert "WARNING: " in capsys.readouterr().out
  assert evaluate.main(["--photos", str(folder), "--out", str(tmp_path), "--dry_run"]) == 0
  assert "WARNING" not in capsys.readouterr().out


def test_a_subset_keeps_names_and_items_together(bop):
  some = eval_item.Subset(BopSet(bop), (1,))
  assert (
    some.names == [some[0].name] == ["000002-000004-000000-obj_000007"]
    and some.identity["chosen"] == 1
  )


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
  from data_pipelines.eval_sets.photo_folder import read_pose

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
