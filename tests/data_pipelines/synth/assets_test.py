"""Ingest: every usual mesh file becomes a normalised asset; everything unusable is refused with its
reason.
"""

import json
import pathlib
import pickle
import re
import shutil

import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.synth import assets, filters
from data_pipelines.synth.camera import viewpoint
from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.geometry.cameras import Camera

REASONS = {
  "truncated.glb": "unreadable",
  "nan_vertices.obj": "non_finite",
  "empty.obj": "empty",
  "zero_area_faces.obj": "zero_area",
  "single_triangle.obj": "near_zero_volume",
  "huge_coords.obj": "huge_coordinates",
}


def _wedge() -> trimesh.Trimesh:
  """A mesh without any symmetry, extents 3 x 1 x 2."""
  vertices = [[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 2.0]]
  return trimesh.Trimesh(vertices, [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], process=False)


def _refusal(path: pathlib.Path) -> str:
  with pytest.raises(Refused) as caught:
    filters.check(assets.load(path), filters.FilterConfig())
  assert path.name in caught.value.detail
  return caught.value.reason


def test_every_mesh_of_the_sample_folder_is_ingested(shared_dir):
  paths = [
    p
    for p in sorted((shared_dir / "data" / "meshes").iterdir())
    if p.suffix.lower() in meshes.SUFFIXES
  ]
  assert len(paths) >= 20
  for path in paths:
    asset = assets.load(path)
    filters.check(asset, filters.FilterConfig())
    low, high = asset.mesh.vertices.min(0), asset.mesh.vertices.max(0)
    np.testing.assert_allclose(low + high, 0, atol=1e-9)
    assert (high - low).max() == pytest.approx(1.0), path.name


@pytest.mark.parametrize("name", sorted(REASONS))
def test_malformed_files_are_refused_with_their_reason(shared_dir, name):
  assert _refusal(shared_dir / "data" / "bad" / name) == REASONS[name]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl", ".off"])
def test_formats_agree_on_shape_and_up_axis(tmp_path, suffix):
  mesh = _wedge()
  path = tmp_path / f"wedge{suffix}"
  mesh.export(path)
  asset = assets.load(path)
  # y-up formats turn (x, y, z) to (x, -z, y): the height 1 along y becomes height along z.
  expected = [1.0, 1 / 3, 2 / 3] if suffix == ".stl" else [1.0, 2 / 3, 1 / 3]
  np.testing.assert_allclose(np.ptp(asset.mesh.vertices, axis=0), expected, atol=1e-6)
  signed = trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces, process=True).volume
  assert signed == pytest.approx(1 / 27, rel=1e-4)  # still facing outwards: 3 * 1 * 2 / 6 over 3^3


def test_gltf_y_up_becomes_z_up(tmp_path):
  mesh = trimesh.creation.cylinder(0.1, 2.0)  # along z
  scene = trimesh.Scene(mesh)
  # stands along y, as in glTF
  scene.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
  scene.export(tmp_path / "pole.glb")
  assert np.argmax(np.ptp(assets.load(tmp_path / "pole.glb").mesh.vertices, axis=0)) == 2


def test_sidecars_carry_licence_and_up_axis(tmp_path):
  for name in ("a.obj", "b.obj"):
    _wedge().export(tmp_path / name)
  (tmp_path / "sources.json").write_text(json.dumps({"a.obj": {"license": "CC-BY-4.0", "up": "z"}}))
  (tmp_path / "b.obj.license").write_text("MIT\n")
  a, b = (assets.load(tmp_path / name, license="unknown") for name in ("a.obj", "b.obj"))
  assert (a.license, b.license) == ("CC-BY-4.0", "MIT")
  assert np.ptp(a.mesh.vertices, axis=0)[2] == pytest.approx(2 / 3) and np.ptp(
    b.mesh.vertices, axis=0
  )[2] == pytest.approx(1 / 3)
  (tmp_path / "b.obj.license").unlink()
  assert assets.load(tmp_path / "b.obj", license="unknown").license == "unknown"


def test_scene_transforms_and_instances_are_applied(tmp_path):
  scene = trimesh.Scene()
  scene.add_geometry(trimesh.creation.box((1, 1, 1)), geom_name="cube", node_name="a")
  mirror = np.diag([-2.0, 2.0, 2.0, 1.0])
  mirror[0, 3] = 5.0
  scene.graph.update(frame_to="b", geometry="cube", matrix=mirror)
  scene.export(tmp_path / "two.glb")
  asset = assets.load(tmp_path / "two.glb")
  assert len(asset.mesh.faces) == 24
  np.testing.assert_allclose(
    np.ptp(asset.mesh.vertices, axis=0), np.array([6.5, 2, 2]) / 6.5, atol=1e-6
  )
  volume = trimesh.Trimesh(asset.mesh.vertices, asset.mesh.faces, process=True).volume
  assert volume == pytest.approx((1 + 8) / 6.5**3, rel=1e-4)  # the mirrored copy is not inside out


def test_textures_vertex_colours_and_material_colours_survive(tmp_path):
  box = trimesh.creation.box()
  image = Image.new("RGB", (8, 8), (255, 0, 0))
  textured = box.copy()
  red = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
  textured.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=red)
  painted = box.copy()
  painted.apply_translation([3, 0, 0])
  painted.visual.vertex_colors = np.tile([0, 255, 0, 255], (8, 1))
  trimesh.Scene([textured, painted]).export(tmp_path / "mixed.glb")
  asset = assets.load(tmp_path / "mixed.glb")
  textures = [m.texture for m in asset.mesh.materials if m.texture is not None]
  assert (
    len(asset.mesh.materials) == 2
    and len(textures) == 1
    and tuple(textures[0][0, 0]) == (255, 0, 0)
  )
  green = asset.mesh.colours[asset.mesh.vertices[:, 0] > 0]
  np.testing.assert_allclose(green, np.tile([0, 1, 0], (len(green), 1)), atol=1e-6)


def test_mtl_colours_are_read_as_srgb(tmp_path):
  (tmp_path / "m.mtl").write_text("newmtl a\nKd 0.5 0.5 0.5\n")
  tetrahedron = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n"
  (tmp_path / "m.obj").write_text("mtllib m.mtl\nusemtl a\n" + tetrahedron)
  np.testing.assert_allclose(
    assets.load(tmp_path / "m.obj").mesh.materials[0].colour, [0.2140] * 3, atol=2e-3
  )


def test_quads_are_triangulated(tmp_path):
  (tmp_path / "q.obj").write_text(
    "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
    + "f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n"
  )
  assert len(assets.load(tmp_path / "q.obj").mesh.faces) == 12


def test_the_key_depends_on_the_surface_not_on_how_it_is_stored(tmp_path):
  mesh = trimesh.creation.icosphere(1)
  mesh.apply_scale([1, 2, 3])
  rng = np.random.default_rng(0)
  order = rng.permutation(len(mesh.faces))
  soup = trimesh.Trimesh(
    mesh.vertices[mesh.faces[order]].reshape(-1, 3),
    np.arange(3 * len(order)).reshape(-1, 3),
    process=False,
  )
  bent = mesh.copy()
  bent.vertices[0] *= 1.001
  keys = [assets.from_scene(trimesh.Scene(m), source="x", up="z").key for m in (mesh, soup, bent)]
  assert keys[0] == keys[1] != keys[2]


def test_a_broken_embedded_texture_refuses_the_mesh(tmp_path, shared_dir):
  data = (shared_dir / "data" / "meshes" / "spot.glb").read_bytes()
  at = max(data.find(b"\xff\xd8\xff"), data.find(b"\x89PNG"))
  assert at > 0
  (tmp_path / "spot.glb").write_bytes(data[:at] + bytes(64) + data[at + 64 :])
  assert _refusal(tmp_path / "spot.glb") == "unreadable"


def test_what_a_mesh_names_must_be_there(tmp_path, shared_dir):
  source = shared_dir / "data" / "meshes"
  shutil.copy(source / "fuze.obj", tmp_path)
  # no material file: a shape without colours
  assert len(assets.load(tmp_path / "fuze.obj").mesh.faces) == 1000
  shutil.copy(source / "fuze.obj.mtl", tmp_path)
  assert _refusal(tmp_path / "fuze.obj") == "missing_texture"
  stl = (source / "wing_nut.stl").read_bytes()
  (tmp_path / "cut.stl").write_bytes(stl[: len(stl) // 2])
  assert _refusal(tmp_path / "cut.stl") == "unreadable"
  for name, data in trimesh.exchange.gltf.export_gltf(
    trimesh.load_scene(source / "spot.glb")
  ).items():
    (tmp_path / name).write_bytes(data)
  gltf = json.loads((tmp_path / "model.gltf").read_text())
  (tmp_path / "model.gltf").write_text(json.dumps(gltf | {"images": [{"uri": "a%20skin.png"}]}))
  assert _refusal(tmp_path / "model.gltf") == "missing_texture"
  Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "a skin.png")
  assert tuple(assets.load(tmp_path / "model.gltf").mesh.materials[0].texture[0, 0]) == (9, 8, 7)


@pytest.mark.parametrize("content", [b"", b"not a mesh", b"glTF\x02\x00\x00\x00\xff\xff\xff\x7f"])
def test_garbage_is_refused_not_raised(tmp_path, content):
  for suffix in meshes.SUFFIXES:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
      assets.load(path)
    assert caught.value.reason in ("unreadable", "empty"), suffix


def test_a_broken_texture_refuses_the_mesh(tmp_path, shared_dir):
  for name in ("fuze.obj", "fuze.obj.mtl"):
    shutil.copy(shared_dir / "data" / "meshes" / name, tmp_path / name)
  whole = (shared_dir / "data" / "meshes" / "fuze_uv.jpg").read_bytes()
  (tmp_path / "fuze_uv.jpg").write_bytes(whole[: len(whole) // 3])
  with pytest.raises(Refused, match="unreadable"):
    assets.load(tmp_path / "fuze.obj")


def _sheet(thickness: float) -> trimesh.Trimesh:
  return trimesh.creation.box((1, 1, thickness))


def test_filters_name_flat_sheets_and_stray_parts():
  def reason(mesh):
    with pytest.raises(Refused) as caught:
      filters.check(
        assets.from_scene(trimesh.Scene(mesh), source="x", up="z"), filters.FilterConfig()
      )
    return caught.value.reason

  tilt = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])
  assert reason(_sheet(1e-6).apply_transform(tilt)) == "near_zero_volume"
  assert reason(_sheet(3e-3).apply_transform(tilt)) == "flat_normals"
  speck = trimesh.creation.box((0.001, 0.001, 0.001)).apply_translation([20, 0, 0])
  assert reason(trimesh.util.concatenate([trimesh.creation.box(), speck])) == "spatial_outliers"
  filters.check(
    assets.from_scene(trimesh.Scene(_sheet(0.05)), source="x", up="z"), filters.FilterConfig()
  )


def test_normal_share_is_a_third_for_a_sphere_and_one_for_a_plane():
  sphere = trimesh.creation.icosphere(3)
  assert filters.normal_share(sphere.vertices, sphere.faces) == pytest.approx(1 / 3, abs=1e-3)
  assert filters.normal_share(
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]), np.array([[0, 1, 2]])
  ) == pytest.approx(1.0)


def test_refusals_survive_pickling():
  error = pickle.loads(pickle.dumps(Refused("empty", "a.obj: no triangles")))
  assert (error.reason, error.detail) == ("empty", "a.obj: no triangles")


def test_the_way_from_a_file_to_a_pixel_in_the_documentation_is_right(tmp_path):
  text = (pathlib.Path(__file__).parents[3] / "docs" / "conventions.md").read_text()
  block = re.search(r"```text mesh-example\n(.*?)```", text, re.DOTALL)[1]
  lines = (line.rpartition("=") for line in block.splitlines() if "=" in line)
  stated = {name.strip(): np.array(value.split(), float) for name, _, value in lines}
  low, high = (stated[f"box of the mesh in the file, {end}"] for end in ("low", "high"))
  vertices = np.array(
    [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
  )
  hull = trimesh.Trimesh(vertices).convex_hull
  hull.export(tmp_path / "box.glb")
  asset = assets.load(tmp_path / "box.glb")
  point = (assets.Y_UP_TO_Z_UP @ stated["point in the file"] - asset.centre_3) / asset.extent
  fx, fy, cx, cy = stated["camera fx fy cx cy"]
  camera = Camera(fx, fy, cx, cy, 518, 518)
  rotation = stated["rotation, row by row"].reshape(3, 3)
  seen = viewpoint(camera, rotation, stated["translation"], float(stated["scale"][0]))
  voxel = np.floor((point + 0.5) * 64)
  computed = {
    "turned to z up, (x, -z, y)": assets.Y_UP_TO_Z_UP @ stated["point in the file"],
    "box turned, centre": asset.centre_3,
    "box turned, longest side": asset.extent,
    "point in the unit cube": point,
    "voxel that holds it, floor((p + 0.5) 64)": voxel,
    "centre of that voxel, (i + 0.5) / 64 - 0.5": (voxel + 0.5) / 64 - 0.5,
    "point in the camera": seen.points(point[None])[0],
    "pixel": seen.project(point[None])[0],
  }
  for name, value in computed.items():
    np.testing.assert_allclose(value, np.squeeze(stated[name]), atol=1e-6, err_msg=name)


def test_what_a_file_holds_beside_its_mesh_goes_into_the_lineage_of_records(tmp_path):
  points = trimesh.PointCloud(np.arange(12.0).reshape(4, 3))
  trimesh.Scene([trimesh.creation.box(), points]).export(tmp_path / "both.glb")
  trimesh.creation.box().export(tmp_path / "whole.glb")
  both, whole = (assets.load(tmp_path / f"{name}.glb") for name in ("both", "whole"))
  assert assets.lineage(both) == {"dropped": ["4 points beside triangles"]}
  assert assets.lineage(whole) == {}
