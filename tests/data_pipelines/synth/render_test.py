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
MIDDLE = SIZE // 2
NO_LIGHT = Lights(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3)))


def _scene(*meshes: trimesh.Trimesh) -> render.Scene:
  asset = assets.from_scene(trimesh.Scene(list(meshes)), source="x", up="z")
  return render.Scene(asset.mesh)


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
  corners = [
    [-0.5, 0, -0.5],
    [0.5, 0, -0.5],
    [0.5, 0, 0.5],
    [-0.5, 0, 0.5],
  ]
  mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
  if image is not None:
    uv = [[0, 0], [1, 0], [1, 1], [0, 1]]
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
  return mesh


def _pixel_rays(viewpoint: Viewpoint) -> np.ndarray:
  """Camera-frame directions (SIZE, SIZE, 3) of depth 1 through the pixels' centres."""
  v, u = np.mgrid[:SIZE, :SIZE] + 0.5
  return rays(viewpoint.camera, u, v)


def _on_object(points_P3: np.ndarray, viewpoint: Viewpoint) -> np.ndarray:
  """Camera-frame points in the object frame."""
  centred = points_P3 - viewpoint.pose.translation
  return centred @ viewpoint.pose.rotation / viewpoint.scale


def test_depth_of_a_sphere_is_the_ray_sphere_distance():
  viewpoint = _viewpoint(scale=0.7, offset=(0.1, -0.05))
  view = _render(_scene(trimesh.creation.icosphere(6)), viewpoint)
  centre = viewpoint.pose.translation
  radius = 0.35

  # t ray meets the sphere where a t^2 - 2 b t + c = 0.
  ray = _pixel_rays(viewpoint)
  a = (ray**2).sum(-1)
  b = ray @ centre
  c = centre @ centre - radius**2
  root = b**2 - a * c
  expected = (b - np.sqrt(np.maximum(root, 0))) / a

  inside = root > 1e-3  # away from the silhouette, where the polyhedron and the sphere part
  outside = root < -1e-4
  assert view.mask_HW[inside].all()
  assert not view.mask_HW[outside].any()
  np.testing.assert_allclose(view.depth_HW[inside], expected[inside], atol=3e-4)


def test_depth_of_a_tilted_plane_is_exact():
  viewpoint = _viewpoint(azimuth_deg=-60, elevation_deg=10)
  view = _render(_scene(_quad()), viewpoint)
  # the plane y = 0 of the object passes through its origin
  normal = viewpoint.pose.rotation @ [0.0, 1.0, 0.0]
  offset = normal @ viewpoint.pose.translation
  expected = offset / (_pixel_rays(viewpoint) @ normal)
  assert view.mask_HW.sum() > 100
  np.testing.assert_allclose(view.depth_HW[view.mask_HW], expected[view.mask_HW], rtol=1e-5)


def test_mask_is_the_projected_outline():
  rng = np.random.default_rng(0)
  scene = _scene(trimesh.creation.box((1, 0.6, 0.8)))
  middles = np.arange(SIZE) + 0.5
  centres = np.stack(np.meshgrid(middles, middles), -1)
  for _ in range(5):
    viewpoint, _ = random_view(rng, ViewConfig(), image_size=SIZE, radius=0.72, scale=1.3)
    mask = _render(scene, viewpoint).mask_HW
    # Distance of each pixel from the outline, negative inside.
    outline = spatial.ConvexHull(viewpoint.project(scene.mesh.vertices))
    normals = outline.equations[:, :2]
    offsets = outline.equations[:, 2]
    side = (centres @ normals.T + offsets).max(-1)
    clear = np.abs(side) > 1e-3
    np.testing.assert_array_equal(mask[clear], (side < 0)[clear])


def test_point_map_projects_onto_the_pixel_centres_and_lies_on_the_surface():
  scene = _scene(procedural.make_parts(0, 1)[0].mesh)
  viewpoint = _viewpoint(scale=0.5, offset=(0.05, 0.1), roll_deg=10)
  view = _render(scene, viewpoint)
  on_object = _on_object(view.pointmap_HW3[view.mask_HW], viewpoint)
  v, u = np.nonzero(view.mask_HW)
  centres = np.stack([u, v], -1) + 0.5
  np.testing.assert_allclose(viewpoint.project(on_object), centres, atol=1e-3)
  surface = trimesh.Trimesh(scene.mesh.vertices, scene.mesh.faces)
  _, distance, _ = trimesh.proximity.closest_point_naive(surface, on_object)
  assert distance.max() < 1e-4
  # Beside the object nothing is known.
  assert np.isnan(view.pointmap_HW3[~view.mask_HW]).all()
  assert np.isnan(view.depth_HW[~view.mask_HW]).all()


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
  rotation = viewpoint.pose.rotation
  # object right is camera -left
  np.testing.assert_allclose(rotation @ [1, 0, 0], [-1, 0, 0], atol=1e-12)
  np.testing.assert_allclose(rotation @ [0, 0, 1], [0, 1, 0], atol=1e-12)
  np.testing.assert_allclose(rotation @ [0, 1, 0], [0, 0, 1], atol=1e-12)
  right, up = viewpoint.project(np.array([[0.5, 0, 0], [0, 0, 0.5]]))
  assert right[0] > SIZE / 2
  assert up[1] < SIZE / 2


@pytest.mark.parametrize("angles", [(0.3, 0.5, 0.1), (4.0, -1.2, -0.4)])
def test_looking_from_anywhere_is_a_rotation(angles):
  rotation = look_at(*angles)
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
  assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_textures_are_the_right_way_round():
  # (left, top) of each quarter of the image
  corners = {
    (0, 0): (255, 0, 0),
    (32, 0): (0, 255, 0),
    (0, 32): (0, 0, 255),
    (32, 32): (255, 255, 255),
  }
  image = Image.new("RGB", (64, 64))
  for (left, top), colour in corners.items():
    image.paste(colour, (left, top, left + 32, top + 32))
  view = _render(_scene(_quad(image)), _viewpoint(azimuth_deg=-90, elevation_deg=0))
  shown = render.over(view.delit_HW3, view.alpha_HW, (0, 0, 0))
  for (left, top), colour in corners.items():
    row = MIDDLE + (8 if top else -8)
    column = MIDDLE + (8 if left else -8)
    np.testing.assert_allclose(shown[row, column], colour, atol=2)


def test_cut_out_texels_show_what_lies_behind():
  # A green leaf whose right half has no surface, a red square half a metre behind it.
  leaf = Image.new("RGBA", (64, 64), (0, 255, 0, 255))
  leaf.paste((0, 255, 0, 0), (32, 0, 64, 64))
  front = _quad(leaf)
  front.visual.material.alphaMode = "MASK"
  red = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
  back = _quad()
  back.visual = trimesh.visual.TextureVisuals(uv=np.zeros((4, 2)), material=red)
  back.apply_translation([0, 0.5, 0])

  viewpoint = _viewpoint(azimuth_deg=-90, elevation_deg=0)
  left = (MIDDLE, MIDDLE - 10)
  right = (MIDDLE, MIDDLE + 10)
  alone = _render(_scene(front), viewpoint)
  assert alone.mask_HW[left]
  assert not alone.mask_HW[right]
  both = _render(_scene(front, back), viewpoint)
  np.testing.assert_allclose(both.delit_HW3[left], [0, 1, 0], atol=1e-6)
  np.testing.assert_allclose(both.delit_HW3[right], [1, 0, 0], atol=1e-6)
  assert both.depth_HW[right] - both.depth_HW[left] == pytest.approx(0.5, abs=1e-3)


def test_small_textures_on_screen_are_averaged_not_aliased():
  square = np.array([[255, 0], [0, 255]], np.uint8)
  pixels = np.tile(square[..., None], (256, 256, 3))
  image = Image.fromarray(pixels)
  view = _render(_scene(_quad(image)), _viewpoint(azimuth_deg=-90, elevation_deg=0))
  middle = slice(MIDDLE - 10, MIDDLE + 10)
  inner = view.delit_HW3[middle, middle]
  assert inner.std() < 0.02
  assert 0.15 < inner.mean() < 0.55


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
  scene = _scene(trimesh.creation.icosphere(2))
  viewpoint = _viewpoint()
  bright = Lights(np.full(3, 0.1), np.array([[0.0, 0.0, 1.0]]), np.full((1, 3), 0.9))
  one = _render(scene, viewpoint)
  two = _render(scene, viewpoint, bright)
  np.testing.assert_array_equal(one.delit_HW3, two.delit_HW3)
  assert np.abs(one.lit_HW3 - two.lit_HW3).max() > 0.2
  inside = one.delit_HW3[one.alpha_HW == 1]
  expected = np.broadcast_to(surfaces.GREY.colour, inside.shape)
  np.testing.assert_allclose(inside, expected, rtol=1e-5)


def test_light_falls_with_the_cosine():
  floor = trimesh.creation.box((1, 1, 0.02))
  light = Lights(np.zeros(3), np.array([[0.0, 0.6, 0.8]]), np.ones((1, 3)))
  view = _render(_scene(floor), _viewpoint(elevation_deg=80), light)
  expected = 0.8 * surfaces.GREY.colour[0]
  assert view.lit_HW3[MIDDLE, MIDDLE, 0] == pytest.approx(expected, rel=1e-4)


def test_light_is_blocked_by_what_stands_between():
  floor = trimesh.creation.box((1, 1, 0.02)).apply_translation([0, 0, -0.3])
  roof = trimesh.creation.box((0.4, 0.4, 0.02)).apply_translation([0, 0, 0.3])
  viewpoint = _viewpoint(elevation_deg=35)
  direction = np.array([0.0, 0.6, 0.8])
  light = Lights(np.zeros(3), direction[None], np.ones((1, 3)))
  view = _render(_scene(trimesh.util.concatenate([floor, roof])), viewpoint, light)
  on_object = _on_object(view.pointmap_HW3, viewpoint)
  ground = (on_object[..., 2] < 0) & (view.alpha_HW == 1)

  # Where the ray to the light meets the underside of the roof: within it, or clear of it.
  steps = (0.3 - 0.01 - on_object[..., 2]) / direction[2]
  met = on_object[..., :2] + steps[..., None] * direction[:2]
  aside = np.abs(met).max(-1)
  dark = view.lit_HW3[ground & (aside < 0.16), 0]
  lit = view.lit_HW3[ground & (aside > 0.26), 0]
  assert len(dark) and dark.max() == 0
  assert len(lit) and lit.min() > 0.1


@pytest.mark.parametrize("azimuth, toward", [(-90, -1.0), (90, 1.0)])
def test_both_sides_of_a_face_are_lit(azimuth, toward):
  light = Lights(np.zeros(3), np.array([[0.0, toward, 0.0]]), np.ones((1, 3)))
  view = _render(_scene(_quad()), _viewpoint(azimuth_deg=azimuth, elevation_deg=0), light)
  expected = surfaces.GREY.colour[0]
  assert view.lit_HW3[MIDDLE, MIDDLE, 0] == pytest.approx(expected, rel=1e-4)


def test_normals_are_flat_on_a_cube_and_radial_on_a_sphere():
  cube = _scene(trimesh.creation.box())
  flat = np.repeat(cube.normal_F3[:, None], 3, 1)
  np.testing.assert_allclose(cube.corner_normal_F33, flat, atol=1e-6)
  sphere = _scene(trimesh.creation.icosphere(3))
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
    scale = rng.uniform(0.2, 2)
    viewpoint, _ = random_view(
      rng, ViewConfig(), image_size=SIZE, radius=np.sqrt(0.75), scale=scale
    )
    pixels = viewpoint.project(box.vertices)
    depth = viewpoint.points(box.vertices)[:, 2]
    assert pixels.min() >= 0
    assert pixels.max() <= SIZE
    assert depth.min() > 0


def test_an_object_behind_the_camera_is_an_error():
  with pytest.raises(ValueError, match="behind the camera"):
    _render(_scene(trimesh.creation.box()), _viewpoint(distance=0.2))


def test_partly_visible_objects_are_cut_at_the_border():
  ball = _scene(trimesh.creation.icosphere(3))
  cut = _render(ball, _viewpoint(offset=(0.6, 0.0)))
  assert cut.mask_HW[:, 0].any()
  assert not cut.mask_HW[:, -1].any()
  gone = _render(ball, _viewpoint(offset=(5.0, 0.0)))
  assert not gone.mask_HW.any()
  assert not gone.alpha_HW.any()


def test_compositing_blends_in_linear_light():
  half_white = np.full((1, 1, 3), 0.5, np.float32)
  half = np.full((1, 1), 0.5, np.float32)
  blended = render.over(half_white, half, (0, 0, 0))
  np.testing.assert_array_equal(blended[0, 0], [188, 188, 188])
  black = np.zeros((1, 1, 3), np.float32)
  nothing = np.zeros((1, 1), np.float32)
  background = render.over(black, nothing, (37, 90, 255))
  np.testing.assert_array_equal(background[0, 0], [37, 90, 255])


def test_an_unknown_image_format_is_an_error():
  with pytest.raises(ValueError, match="webp"):
    render.encode(np.zeros((2, 2, 3), np.uint8), "webp")
