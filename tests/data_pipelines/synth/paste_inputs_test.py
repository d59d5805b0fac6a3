"""What people bring to the render-and-paste builders: annotated photos, photographs, meshes. What
is wrong with them is quarantined by reason; wrong settings are configuration errors.
"""

import pathlib
import shutil

import numpy as np
import pytest
import trimesh

from data_pipelines.annotations import write
from data_pipelines.build import checks
from data_pipelines.synth import assets, procedural_scenes
from sam3d_jax.errors import ConfigError
from sam3d_jax.geometry import pose
from tests.support import pasting, synthetic_depth
from tests.support.pasting import examples, lineage, quarantine, run


def test_annotated_photos_of_a_folder_are_swapped_in_place(tmp_path):
  room = procedural_scenes.make_room(0, 2, 128)
  for i, (placed, seen) in enumerate(zip(room.objects, room.scene.masks, strict=True)):
    # y up by convention: turned, shifted and larger than the unit cube
    vertices = 3 * placed.asset.mesh.vertices @ assets.Y_UP_TO_Z_UP + 7
    mesh = trimesh.Trimesh(vertices, placed.asset.mesh.faces, process=False)
    file = tmp_path / f"{i}.ply"
    mesh.export(file)
    proposal = write.Proposal("artist/x", mesh=file, pose=placed.viewpoint.pose)
    write.from_arrays(
      tmp_path / "items" / f"{i}",
      room.scene.image_HW3,
      seen,
      {"a": proposal},
      [],
      pointmap_HW3=room.scene.pointmap_HW3 if i else None,
      camera=tuple(room.scene.camera[:4]),
      license="CC0-1.0",
    )
  out = tmp_path / "out"
  assert run("rp_3do_osa", f"out={out}", f"source={tmp_path / 'items'}", "image_size=128") == 0
  refused = [(line["path"], line["reason"], line["fault"]) for line in quarantine(out)]
  assert ("0/annotation.json", "no_pointmap", False) in refused
  found = examples(out)
  assert found
  for example in found:
    assert lineage(example)["mask_iou"] > 0.85
    assert checks.check_example(example).findings == []


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


@pytest.mark.parametrize("builder", ["rp_3do_fo", "rp_3do_osr"])
def test_real_photographs_with_made_up_depth_build_and_pass(shared_dir, tmp_path, builder):
  photos = tmp_path / "photos"
  synthetic_depth.copy_scenes(shared_dir / "data" / "images", photos)
  out = tmp_path / "out"
  code = run(
    builder,
    f"out={out}",
    f"photos.source={photos}",
    "image_size=128",
    "name=synthetic_depth",
    "procedural.count=4",
  )
  assert code == 0
  for example in examples(out):
    assert checks.check_example(example).findings == [], example["lineage"]


def test_malformed_photos_are_quarantined_by_reason_and_odd_ones_used(shared_dir, tmp_path):
  # Photos by themselves, and a scene with one good mask of four.
  bad = shared_dir / "data" / "bad"
  photos = tmp_path / "photos"
  scene = photos / "scene"
  scene.mkdir(parents=True)
  for file in sorted(bad.glob("image_*")):
    shutil.copyfile(file, photos / file.name)
  shutil.copyfile(bad / "image_ok.jpg", scene / "image.jpg")
  for i, name in enumerate(("mask_ok", "mask_wrong_size", "mask_all_zero", "mask_all_one")):
    shutil.copyfile(bad / f"{name}.png", scene / f"{i}.png")

  out = tmp_path / "out"
  code = run(
    "rp_3do_fo",
    f"out={out}",
    f"photos.source={photos}",
    "views=5",
    "quarantine_budget=0.9",
  )
  assert code == 0
  refused = {pathlib.Path(line["path"]).name: line["reason"] for line in quarantine(out)}
  assert refused == {
    "image_corrupt.png": "bad_image",
    "image_1x1.png": "bad_image",
    "1.png": "bad_mask",
    "2.png": "bad_mask",
    "3.png": "bad_mask",
  }
  used = {lineage(example)["photo"] for example in examples(out)}
  assert used == {
    "image_ok.jpg",
    "image_cmyk.jpg",
    "image_rgba.png",
    "image_16bit_gray.png",
    "image_16bit_rgb.png",
    "scene/image.jpg",
  }


def test_a_mesh_that_no_draw_can_place_is_set_aside_with_the_counts(tmp_path, capsys):
  impossible = ("rules.visible=(0.5,0.5)", "attempts=2", "views=1")
  assert run("rp_3do_fo", f"out={tmp_path}", *impossible) == 2
  assert "none of 6 inputs became an example (no_sample 6)" in capsys.readouterr().err
  line = quarantine(tmp_path)[0]
  assert line["reason"] == "no_sample"
  assert "none of 2 draws" in line["detail"]
  assert not line["fault"]


def test_bad_meshes_are_refused_by_their_own_shard_and_passed_over_as_partners(tmp_path):
  meshes = tmp_path / "meshes"
  meshes.mkdir()
  for i in range(3):
    ball = trimesh.creation.icosphere(1, radius=1)
    ball.apply_scale([1, 1, 1 + 0.2 * i])
    ball.export(meshes / f"ball{i}.ply")
  (meshes / "empty.obj").write_text("# nothing\n")
  out = tmp_path / "out"
  code = run(
    "rp_3do_fo",
    f"out={out}",
    f"source={meshes}",
    "quarantine_budget=0.3",
    "views=1",
  )
  assert code == 0
  assert [(line["path"], line["reason"]) for line in quarantine(out)] == [("empty.obj", "empty")]
  found = examples(out)
  assert len(found) == 3
  for example in found:
    assert "empty.obj" not in example["lineage"]


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
    pasting.plan("rp_3do_fo", override)
