"""Meshes of the kinds that public reports told of, each with what is right for it.

The inputs lie in the shared folder; laws that need none of them are tested in mesh_formats.
"""

import shutil

import numpy as np
import pytest

from data_pipelines.synth import assets
from sam3d_jax.errors import Refused
from sam3d_jax.evaluation import surface
from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats import gltf_codecs
from tests.support import seen

SAME_SHAPE = (
  "glb-camera/glb_camera_child/case.glb",
  "glb-camera/glb_camera_mesh/case.glb",
  "glb-camera/glb_camera_ortho/case.glb",
  "glb-fan/glb_fan/case.glb",
  "glb-instances/glb_instances/case.glb",
  "glb-morph/glb_morph/case.glb",
  "glb-quantised/glb_quantised/case.glb",
  "glb-quantised/glb_quantised_mixed/case.glb",
  "glb-skin/glb_skin/case.glb",
  "glb-sparse/glb_sparse/case.glb",
  "obj-relative-blocks/obj_relative/case.obj",
  "polygons-concave/obj_concave/case.obj",
  "polygons-concave/off_concave/case.off",
  "polygons-concave/ply_concave/case.ply",
)
RED, ROSE, BRICK = (200, 0, 0), (231, 90, 90), (204, 26, 26)
COLOURS = {
  "glb-uv-integers/glb_uv_float/case.glb": RED,
  "glb-uv-integers/glb_uv_u16/case.glb": RED,
  "glb-uv-integers/glb_uv_u8/case.glb": RED,
  "glb-uv-transform-and-sets/glb_uv_only_second/case.glb": RED,
  "glb-uv-transform-and-sets/glb_uv_second/case.glb": RED,
  "glb-uv-transform-and-sets/glb_uv_transform/case.glb": RED,
  "glb-vertex-colours/glb_colour_float/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_float_plain/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_float_uv/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_u16/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_u16_plain/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_u16_uv/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_u8/case.glb": ROSE,
  "glb-vertex-colours/glb_colour_u8_uv/case.glb": ROSE,
  "glb-vertex-colours/obj_colour_255/case.obj": BRICK,
  "glb-vertex-colours/ply_colour_u16/case.ply": BRICK,
  "obj-textures-lost/mtl_backslash/case.obj": RED,
  "obj-textures-lost/mtl_comment/case.obj": RED,
  "obj-textures-lost/mtl_options/case.obj": RED,
  "obj-textures-lost/mtl_parent/models/case.obj": RED,
  "obj-textures-lost/mtl_plain/case.obj": RED,
  "obj-textures-lost/mtl_two_libs/case.obj": RED,
  "obj-textures-lost/mtl_two_libs_line/case.obj": RED,
}
LOST_TEXTURES = (
  "obj-textures-lost/mtl_lower_missing/case.obj",
  "obj-textures-lost/mtl_options_missing/case.obj",
  "obj-textures-lost/ply_texture_missing/case.ply",
)
HOSTILE = (
  "mesh_gltf_cycle/a.gltf",
  "mesh_gltf_deep_json/a.gltf",
  "mesh_gltf_huge_accessor_noview/a.gltf",
  "mesh_sidecar_badjson/a.obj",
  "mesh_sidecar_license_int/a.obj",
  "mesh_sidecar_list/a.obj",
)


@pytest.mark.parametrize("case", SAME_SHAPE)
def test_the_shape_is_that_of_the_plain_file_beside_it(field_dir, case):
  path = field_dir / case
  read, truth = assets.load(path), assets.load(path.with_name("truth.obj"))
  assert seen.voxel_iou(read, truth) == 1.0


@pytest.mark.parametrize("case", COLOURS)
def test_the_colour_is_the_one_that_the_file_states(field_dir, case):
  # the same colour is stored with 8 bits and with more: one step between them
  np.testing.assert_allclose(seen.colour(assets.load(field_dir / case)), COLOURS[case], atol=1)


@pytest.mark.parametrize("case", LOST_TEXTURES)
def test_a_texture_that_is_not_there_refuses_the_mesh_by_its_name(field_dir, case):
  with pytest.raises(Refused, match=r"missing_texture: case\.\w+ needs 'skin\.png'"):
    assets.load(field_dir / case)


@pytest.mark.parametrize("name", ["glb_alpha_palette", "glb_alpha_rgba"])
def test_the_transparent_half_of_a_card_is_neither_mask_nor_voxel(field_dir, name):
  asset = assets.load(field_dir / "glb-alpha" / name / "case.glb")
  view = seen.unlit_view(asset)
  low, high = asset.mesh.vertices.min(0), asset.mesh.vertices.max(0)
  # two crossed cards, 2 wide and high, are left with 1 x 1 x 2
  np.testing.assert_allclose(high - low, [0.5, 0.5, 1.0], atol=1e-6)
  area = surface.triangle_areas(asset.mesh.vertices[asset.mesh.faces]).sum()
  assert area == pytest.approx(2 * 0.5 * 1.0, rel=1e-5)
  # what is seen is all that there is: nothing is cut away from the mask alone
  assert view.mask_HW.any() and not asset.mesh.materials[0].cutout.all()


@pytest.mark.parametrize("name", ["glb_draco_all", "glb_draco_mixed"])
def test_compressed_parts_without_a_decoder_refuse_the_mesh_and_say_what_to_install(
  field_dir, monkeypatch, name
):
  monkeypatch.setattr(gltf_codecs, "_module", lambda extension: None)
  with pytest.raises(Refused, match="KHR_draco_mesh_compression.*pip install DracoPy"):
    assets.load(field_dir / "glb-draco" / name / "case.glb")


@pytest.mark.parametrize("name", ["glb_draco_all", "glb_draco_mixed"])
def test_compressed_parts_that_are_no_stream_refuse_the_mesh(field_dir, name):
  with pytest.raises(Refused, match="KHR_draco_mesh_compression"):
    assets.load(field_dir / "glb-draco" / name / "case.glb")


def test_solids_of_a_text_stl_are_all_read_whatever_they_are_called(field_dir):
  folder = field_dir / "stl-ascii"
  whole = meshes.read(folder / "stl_whole" / "case.stl").mesh
  assert len(whole.faces) == 72
  for name in ("stl_end_solid", "stl_named_vertex"):
    read = meshes.read(folder / name / "case.stl").mesh
    np.testing.assert_array_equal(read.vertices, whole.vertices)
  with pytest.raises(Refused, match="unreadable"):
    meshes.read(folder / "stl_cut" / "case.stl")


def test_side_files_are_used_or_refused_with_their_name(field_dir):
  folder = field_dir / "side-files"
  assert assets.load(folder / "side_license_latin1" / "a.obj").license == "© 2019 Atelier Séb"
  with_mark = assets.load(folder / "side_sources_bom" / "a.obj")
  assert (with_mark.license, with_mark.up) == ("CC-BY-4.0", "z")
  for name in ("side_sources_bad", "side_sources_list", "side_sources_other"):
    with pytest.raises(Refused, match=r"unreadable: .*sources\.json.*a\.obj"):
      assets.load(folder / name / "a.obj")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(hostile_dir, case):
  with pytest.raises(Refused, match="unreadable"):
    assets.load(hostile_dir / case)


def test_a_licence_that_is_no_utf8_and_a_blank_library_do_no_harm(hostile_dir, tmp_path):
  assert assets.load(hostile_dir / "mesh_license_latin1" / "a.obj").license.startswith("©")
  shutil.copy(hostile_dir / "mesh_obj_mtllib_blank" / "a.obj", tmp_path)
  assert len(meshes.read(tmp_path / "a.obj").mesh.faces) == 1


def test_evaluation_reads_the_same_shapes(field_dir):
  for case in SAME_SHAPE[:3]:
    path = field_dir / case
    scored = surface.load_surface(path).mesh
    truth = surface.load_surface(path.with_name("truth.obj")).mesh
    np.testing.assert_allclose(np.ptp(scored.vertices, axis=0), np.ptp(truth.vertices, axis=0))
  with pytest.raises(surface.SurfaceError, match="KHR_draco_mesh_compression"):
    surface.load_surface(field_dir / "glb-draco" / "glb_draco_mixed" / "case.glb")
