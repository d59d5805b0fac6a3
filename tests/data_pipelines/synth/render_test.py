"""The renderer against analytic surfaces and projections; its conventions; its determinism."""

import numpy as np
from PIL import Image
import pytest
from scipy import spatial
import trimesh

from data_pipelines.synth import assets, procedural, render
from data_pipelines.synth import camera as camera_module
from data_pipelines.synth.camera import ViewConfig, Viewpoint, look_at, random_view, rays
from data_pipelines.synth.lighting import LightConfig, Lights, random_lights
from sam3d_jax.files.mesh_formats import surfaces
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.render.raycast import Caster

SIZE = 48
NO_LIGHT = Lights(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3)))


def _scene(mesh: trimesh.Trimesh) -> render.Scene:
  return render.Scene(assets.from_scene(trimesh.Scene(mesh), source="x", up="z").mesh)


def _viewpoint(
  azimuth_deg=20.0,
  elevation_deg=30.0,
  distance=2.0,
  scale=1.0,
  size=SIZE,
  offset=(0.0, 0.0),
  roll_deg=0.0,
) -> Viewpoint:
  rotation = look_at(*np.radians([azimuth_deg, elevation_deg, roll_deg]))
  camera = Camera(1.4 * size, 1.4 * size, size / 2, size / 2, size, size)
  return camera_module.viewpoint(camera, rotation, np.array([*offset, distance]), scale)


def _render(scene, viewpoint, lights=NO_LIGHT, samples=2) -> render.View:
  return render.render(scene, viewpoint, lights, samples=samples)


def _quad(image=None) -> trimesh.Trimesh:
  """An upright unit square in the plane y = 0, seen from -y with u to the right and v up."""
  mesh = trimesh.Trimesh(
    [[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]],
    [[0, 1, 2], [0, 2, 3]],
    process=False,
  )
  if image is not None:
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    mesh.visual = trimesh.visual.TextureVisuals(
      uv=[[0, 0], [1, 0], [1, 1], [0, 1]], material=material
    )
  return mesh


def test_depth_of_a_sphere_is_the_ray_sphere_distance():
  viewpoint = _viewpoint(scale=0.7, offset=(0.1, -0.05))
  view = _render(_scene(trimesh.creation.icosphere(6)), viewpoint)
  v, u = np.mgrid[:SIZE, :SIZE] + 0.5
  ray = rays(viewpoint.camera, u, v)
  b, a = ray @ viewpoint.pose.translation, (ray**2).sum(-1)
  root = b**2 - a * (viewpoint.pose.translation @ viewpoint.pose.translation - 0.35**2)
  inside = root > 1e-3  # away from the silhouette, where the polyhedron and the sphere part
  expected = (b - np.sqrt(np.maximum(root, 0))) / a
  assert view.mask_HW[inside].all() and not view.mask_HW[root < -1e-4].any()
  np.testing.assert_allclose(view.depth_HW[inside], expected[inside], atol=3e-4)


def test_depth_of_a_tilted_plane_is_exact():
  viewpoint = _viewpoint(azimuth_deg=-60, elevation_deg=10)
  view = _render(_scene(_quad()), viewpoint)
  # the plane y = 0 of the object passes through its origin
  normal = viewpoint.pose.rotation @ [0.0, 1.0, 0.0]
  v, u = np.mgrid[:SIZE, :SIZE] + 0.5
  expected = (normal @ viewpoint.pose.translation) / (rays(viewpoint.camera, u, v) @ normal)
  assert view.mask_HW.sum() > 100
  np.testing.assert_allclose(view.depth_HW[view.mask_HW], expected[view.mask_HW], rtol=1e-5)


def test_mask_is_the_projected_outline():
  rng = np.random.default_rng(0)
  scene = _scene(trimesh.creation.box((1, 0.6, 0.8)))
  for _ in range(5):
    viewpoint, _ = random_view(rng, ViewConfig(), image_size=SIZE, radius=0.72, scale=1.3)
    outline = spatial.ConvexHull(viewpoint.project(scene.mesh.vertices))
    centers = np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5), -1)
    side = (centers @ outline.equations[:, :2].T + outline.equations[:, 2]).max(-1)
    mask = _render(scene, viewpoint).mask_HW
    clear = np.abs(side) > 1e-3
    np.testing.assert_array_equal(mask[clear], (side < 0)[clear])


def test_point_map_projects_onto_the_pixel_centres_and_lies_on_the_surface():
  scene = _scene(procedural.make_parts(0, 1)[0].mesh)
  viewpoint = _viewpoint(scale=0.5, offset=(0.05, 0.1), roll_deg=10)
  view = _render(scene, viewpoint)
  on_object = (
    (view.pointmap_HW3[view.mask_HW] - viewpoint.pose.translation)
    @ viewpoint.pose.rotation
    / viewpoint.scale
  )
  v, u = np.nonzero(view.mask_HW)
  np.testing.assert_allclose(viewpoint.project(on_object), np.stack([u, v], -1) + 0.5, atol=1e-3)
  surface = trimesh.Trimesh(scene.mesh.vertices, scene.mesh.faces)
  assert trimesh.proximity.closest_point_naive(surface, on_object)[1].max() < 1e-4
  assert (
    np.isnan(view.pointmap_HW3[~view.mask_HW]).all()
    and np.isnan(view.depth_HW[~view.mask_HW]).all()
  )


def test_the_renderer_and_the_ray_caster_see_one_depth():
  scene = procedural.make_scene(0, 4)
  mesh = assets.from_scene(scene, source="x", up="z").mesh
  viewpoint = _viewpoint(scale=0.6, offset=(0.03, -0.02), roll_deg=5)
  depth = render.trace(render.Scene(mesh), viewpoint)
  hits = Caster(mesh).cast(viewpoint.pose, viewpoint.camera)
  assert np.isfinite(depth).sum() > 100
  np.testing.assert_allclose(hits.depth_HW, depth, rtol=1e-6)
  np.testing.assert_array_equal(hits.face_HW >= 0, np.isfinite(depth))


def test_camera_axes_are_left_up_forward():
  viewpoint = _viewpoint(azimuth_deg=-90, elevation_deg=0)  # from -y, the object's front
  # object right is camera -left
  np.testing.assert_allclose(viewpoint.pose.rotation @ [1, 0, 0], [-1, 0, 0], atol=1e-12)
  np.testing.assert_allclose(viewpoint.pose.rotation @ [0, 0, 1], [0, 1, 0], atol=1e-12)
  np.testing.assert_allclose(viewpoint.pose.rotation @ [0, 1, 0], [0, 0, 1], atol=1e-12)
  right, up = viewpoint.project(np.array([[0.5, 0, 0], [0, 0, 0.5]]))
  assert right[0] > SIZE / 2 and up[1] < SIZE / 2
  for azimuth, elevation, roll in ((0.3, 0.5, 0.1), (4.0, -1.2, -0.4)):
    r = look_at(azimuth, elevation, roll)
    np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(r) == pytest.approx(1.0)


def test_textures_are_the_right_way_round():
  image = Image.new("RGB", (64, 64))
  # left, top
  corners = {
    (0, 0): (255, 0, 0),
    (32, 0): (0, 255, 0),
    (0, 32): (0, 0, 255),
    (32, 32): (255, 255, 255),
  }
  for corner, colour in corners.items():
    image.paste(colour, (*corner, corner[0] + 32, corner[1] + 32))
  view = _render(_scene(_quad(image)), _viewpoint(azimuth_deg=-90, elevation_deg=0))
  shown = render.over(view.delit_HW3, view.alpha_HW, (0, 0, 0))
  for (left, top), colour in corners.items():
    row, column = (SIZE // 2 + (-8 if start == 0 else 8) for start in (top, left))
    np.testing.assert_allclose(shown[row, column], colour, atol=2)


def test_cut_out_texels_show_what_lies_behind():
  leaf = Image.new("RGBA", (64, 64), (0, 255, 0, 255))
  leaf.paste((0, 255, 0, 0), (32, 0, 64, 64))  # the right half has no surface
  front = _quad(leaf)
  front.visual.material.alphaMode = "MASK"
  red = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
  back = _quad()
  back.visual = trimesh.visual.TextureVisuals(uv=np.zeros((4, 2)), material=red)
  back.apply_translation([0, 0.5, 0])
  alone, both = (
    render.Scene(assets.from_scene(trimesh.Scene(g), source="x", up="z").mesh)
    for g in ([front], [front, back])
  )
  viewpoint = _viewpoint(azimuth_deg=-90, elevation_deg=0)
  shown = _render(alone, viewpoint).mask_HW[SIZE // 2]
  assert shown[SIZE // 2 - 10] and not shown[SIZE // 2 + 10]
  view = _render(both, viewpoint)
  left, right = view.delit_HW3[SIZE // 2, SIZE // 2 - 10], view.delit_HW3[SIZE // 2, SIZE // 2 + 10]
  np.testing.assert_allclose([left, right], [[0, 1, 0], [1, 0, 0]], atol=1e-6)
  depth = view.depth_HW[SIZE // 2]
  assert depth[SIZE // 2 + 10] - depth[SIZE // 2 - 10] == pytest.approx(0.5, abs=1e-3)


def test_small_textures_on_screen_are_averaged_not_aliased():
  checks = Image.fromarray(
    np.tile(np.kron(np.eye(2), np.ones((1, 1)))[..., None] * 255, (256, 256, 3)).astype(np.uint8)
  )
  view = _render(_scene(_quad(checks)), _viewpoint(azimuth_deg=-90, elevation_deg=0))
  inner = view.delit_HW3[SIZE // 2 - 10 : SIZE // 2 + 10, SIZE // 2 - 10 : SIZE // 2 + 10]
  assert inner.std() < 0.02 and 0.15 < inner.mean() < 0.55


def test_vertex_colours_are_interpolated():
  mesh = _quad()
  mesh.visual.vertex_colors = [
    [255, 0, 0, 255],
    [0, 0, 255, 255],
    [0, 0, 255, 255],
    [255, 0, 0, 255],
  ]
  view = _render(_scene(mesh), _viewpoint(azimuth_deg=-90, elevation_deg=0))
  np.testing.assert_allclose(view.delit_HW3[SIZE // 2, SIZE // 2], [0.5, 0, 0.5], atol=0.03)


def test_delit_colour_does_not_know_the_light():
  scene, viewpoint = _scene(trimesh.creation.icosphere(2)), _viewpoint()
  bright = Lights(np.full(3, 0.1), np.array([[0.0, 0.0, 1.0]]), np.full((1, 3), 0.9))
  one, two = _render(scene, viewpoint), _render(scene, viewpoint, bright)
  np.testing.assert_array_equal(one.delit_HW3, two.delit_HW3)
  assert np.abs(one.lit_HW3 - two.lit_HW3).max() > 0.2
  inside = one.alpha_HW == 1
  np.testing.assert_allclose(
    one.delit_HW3[inside],
    np.broadcast_to(surfaces.GREY.colour, one.delit_HW3[inside].shape),
    rtol=1e-5,
  )


def test_light_falls_with_the_cosine_and_is_blocked_by_what_stands_between():
  floor = trimesh.creation.box((1, 1, 0.02)).apply_translation([0, 0, -0.3])
  roof = trimesh.creation.box((0.4, 0.4, 0.02)).apply_translation([0, 0, 0.3])
  viewpoint = _viewpoint(elevation_deg=35)
  direction = np.array([0.0, 0.6, 0.8])
  light = Lights(np.zeros(3), direction[None], np.ones((1, 3)))
  open_sky = _render(_scene(floor), _viewpoint(elevation_deg=80), light)
  assert open_sky.lit_HW3[SIZE // 2, SIZE // 2, 0] == pytest.approx(
    0.8 * surfaces.GREY.colour[0], rel=1e-4
  )
  scene = _scene(trimesh.util.concatenate([floor, roof]))
  view = _render(scene, viewpoint, light)
  on_object = (view.pointmap_HW3 - viewpoint.pose.translation) @ viewpoint.pose.rotation
  ground = view.mask_HW & (on_object[..., 2] < 0) & (view.alpha_HW == 1)
  steps = (0.3 - 0.01 - on_object[..., 2]) / 0.8
  # where the ray to the light meets the roof
  under = np.abs(on_object[..., :2] + steps[..., None] * direction[:2]).max(-1)
  dark, lit = view.lit_HW3[ground & (under < 0.16), 0], view.lit_HW3[ground & (under > 0.26), 0]
  assert len(dark) and len(lit) and dark.max() == 0 and lit.min() > 0.1


def test_both_sides_of_a_face_are_lit():
  scene = _scene(_quad())
  for azimuth, toward in ((-90, -1.0), (90, 1.0)):
    light = Lights(np.zeros(3), np.array([[0.0, toward, 0.0]]), np.ones((1, 3)))
    view = _render(scene, _viewpoint(azimuth_deg=azimuth, elevation_deg=0), light)
    assert view.lit_HW3[SIZE // 2, SIZE // 2, 0] == pytest.approx(surfaces.GREY.colour[0], rel=1e-4)


def test_normals_are_flat_on_a_cube_and_radial_on_a_sphere():
  cube, sphere = _scene(trimesh.creation.box()), _scene(trimesh.creation.icosphere(3))
  np.testing.assert_allclose(
    cube.corner_normal_F33, np.repeat(cube.normal_F3[:, None], 3, 1), atol=1e-6
  )
  radial = sphere.mesh.vertices[sphere.mesh.faces] * 2
  np.testing.assert_allclose(sphere.corner_normal_F33, radial, atol=0.02)


def test_the_same_view_gives_the_same_bits():
  scene = _scene(procedural.make_parts(0, 3)[0].mesh)
  views = []
  for _ in range(2):
    rng = np.random.default_rng(7)
    viewpoint, azimuth = random_view(rng, ViewConfig(), image_size=SIZE, radius=0.8, scale=1.0)
    views.append(_render(scene, viewpoint, random_lights(rng, LightConfig(), azimuth)))
  for field, array in vars(views[0]).items():
    np.testing.assert_array_equal(array, getattr(views[1], field), err_msg=field)


def test_random_views_contain_the_whole_object():
  rng = np.random.default_rng(1)
  box = trimesh.creation.box()
  for _ in range(50):
    viewpoint, _ = random_view(
      rng, ViewConfig(), image_size=SIZE, radius=np.sqrt(0.75), scale=rng.uniform(0.2, 2)
    )
    uv = viewpoint.project(box.vertices)
    assert uv.min() >= 0 and uv.max() <= SIZE and viewpoint.points(box.vertices)[:, 2].min() > 0


def test_an_object_behind_the_camera_is_an_error():
  with pytest.raises(ValueError, match="behind the camera"):
    _render(_scene(trimesh.creation.box()), _viewpoint(distance=0.2))


def test_partly_visible_objects_are_cut_at_the_border():
  full = _render(_scene(trimesh.creation.icosphere(3)), _viewpoint(offset=(0.6, 0.0)))
  assert full.mask_HW[:, 0].any() and not full.mask_HW[:, -1].any()
  gone = _render(_scene(trimesh.creation.icosphere(3)), _viewpoint(offset=(5.0, 0.0)))
  assert not gone.mask_HW.any() and not gone.alpha_HW.any()


def test_compositing_blends_in_linear_light_and_codecs_are_checked():
  # half covered by white
  colour, alpha = np.full((1, 1, 3), 0.5, np.float32), np.full((1, 1), 0.5, np.float32)
  np.testing.assert_array_equal(render.over(colour, alpha, (0, 0, 0)), np.full((1, 1, 3), 188))
  nothing = render.over(
    np.zeros((1, 1, 3), np.float32), np.zeros((1, 1), np.float32), (37, 90, 255)
  )
  np.testing.assert_array_equal(nothing[0, 0], [37, 90, 255])
  with pytest.raises(ValueError, match="webp"):
    render.encode(np.zeros((2, 2, 3), np.uint8), "webp")
