"""Meshes as pictures: against ray casting, and their slopes against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import trimesh

from sam3d_jax.geometry import cameras, rotations
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose, transform_points
from sam3d_jax.render import mesh_picture, silhouettes
from sam3d_jax.render.mesh import Mesh
from sam3d_jax.render.mesh_picture import Settings, Shape
from sam3d_jax.render.raycast import Caster

CAMERA = Camera(fx=60.0, fy=62.0, cx=26.0, cy=19.5, width=50, height=42)
SETTINGS = Settings(50, 42, tile=8, block=16, lanes=5, slots=2000)
VERTICES, FACES = 364, 680  # of every shape here, with padding: one program
BLACK = np.zeros(3, np.float32)
STRAIGHT = Pose(np.diag([-1.0, -1.0, 1.0]), np.zeros(3), np.ones(3))  # OpenCV's axes
VALUE_WEIGHTS = np.random.default_rng(3).standard_normal((42, 50, 5)).astype(np.float32)


def viewpoint():
  quaternion = np.array([0.9, 0.2, -0.3, 0.25])
  return Pose(
    rotation=rotations.quaternion_to_matrix(quaternion),
    translation=np.array([0.05, 0.02, 1.9]),
    scale=np.full(3, 1.2),
  )


def two_ellipsoids():
  ball = trimesh.creation.icosphere(2, radius=0.4)
  first = ball.vertices * [1.0, 0.8, 0.6]
  # Partly before the other one.
  second = first * 0.5 - [0.1, 0.3, 0.2]
  vertices = np.concatenate([first, second])
  faces = np.concatenate([ball.faces, ball.faces + len(first)])
  return vertices, faces


def square(left, top, right, bottom, depth, cuts=1):
  """Facing a camera of OpenCV's axes, its sides at these pixels; 2 cuts^2 triangles."""
  # a grid of corners, where these pixels' rays have that depth
  columns = np.linspace(left, right, cuts + 1)
  rows = np.linspace(top, bottom, cuts + 1)
  u, v = np.meshgrid(columns, rows)
  x = (u - CAMERA.cx) / CAMERA.fx * depth
  y = (v - CAMERA.cy) / CAMERA.fy * depth
  z = np.full_like(x, depth)
  vertices = np.stack([x, y, z], axis=-1)

  # two triangles a cell, both of which begin at its first corner
  number = np.arange(u.size).reshape(u.shape)
  first = number[:-1, :-1]
  beside = number[:-1, 1:]
  across = number[1:, 1:]
  below = number[1:, :-1]
  upper = np.stack([first, beside, across], axis=-1)
  lower = np.stack([first, across, below], axis=-1)
  faces = np.concatenate([upper.reshape(-1, 3), lower.reshape(-1, 3)])
  return vertices.reshape(-1, 3), faces


def shape_of(vertices, faces, colours=None):
  colours = vertices if colours is None else colours
  padded = np.zeros((VERTICES, 3), np.float32)
  padded[: len(vertices)] = vertices
  padded_colours = np.zeros((VERTICES, 3), np.float32)
  padded_colours[: len(colours)] = colours
  padded_faces = np.full((FACES, 3), -1, np.int32)
  padded_faces[: len(faces)] = faces
  return Shape(padded, padded_faces, padded_colours)


@jax.jit
def picture_and_slopes(shape, where, background, weights):
  """The picture, and slopes of a weighted sum (H, W, 8) of mask, colour, normal and depth."""

  def scalar(vertices, colours):
    moved = Shape(vertices, shape.faces_F3, colours)
    picture = mesh_picture.render(moved, CAMERA, where, settings=SETTINGS, background_3=background)
    depth = jnp.where(picture.face_HW >= 0, picture.depth_HW, 0.0)
    parts = [
      picture.mask_HW[..., None],
      picture.colour_HW3,
      picture.normal_HW3,
      depth[..., None],
    ]
    values = jnp.concatenate(parts, -1)
    return (weights * values).sum(), picture

  slopes = jax.grad(scalar, argnums=(0, 1), has_aux=True)
  (of_vertices, of_colours), picture = slopes(shape.vertices_V3, shape.colours_V3)
  return picture, of_vertices, of_colours


def look(shape, where=STRAIGHT, background=BLACK, weights=None):
  if weights is None:
    weights = np.zeros((42, 50, 8), np.float32)
  where = Pose(*(np.asarray(field, np.float32) for field in where))
  return picture_and_slopes(shape, where, background, weights)


def interior(face_HW):
  """Pixels whose neighbourhood shows one object and nothing else."""
  owner = np.where(face_HW < 0, 0, 1 + (face_HW >= 320))
  around = [np.roll(owner, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
  same = np.all([owner == other for other in around], axis=0) & (owner > 0)
  same[[0, -1]] = False
  same[:, [0, -1]] = False
  return same


def test_faces_and_depths_are_those_of_ray_casting():
  vertices, faces = two_ellipsoids()
  picture, _, _ = look(shape_of(vertices, faces), viewpoint())
  hits = Caster(Mesh(vertices, faces)).cast(viewpoint(), CAMERA)
  assert (np.asarray(picture.face_HW) == hits.face_HW).all()
  np.testing.assert_allclose(picture.depth_HW, hits.depth_HW, rtol=2e-5)
  assert (hits.face_HW >= 320).sum() > 50
  assert int(picture.lost) == int(picture.left_out) == 0


def test_normals_and_colours_are_those_of_the_surface_in_perspective():
  vertices, faces = two_ellipsoids()
  # Colours that are places: what is seen must be the place that is seen.
  picture, _, _ = look(shape_of(vertices, faces), viewpoint())
  inside = interior(np.asarray(picture.face_HW))
  points = cameras.pointmap_from_depth(np.asarray(picture.depth_HW), CAMERA)
  in_camera = transform_points(vertices, viewpoint())
  places = transform_points(picture.colour_HW3, viewpoint())
  np.testing.assert_allclose(places[inside], points[inside], atol=2e-5)

  a, b, c = (in_camera[faces[picture.face_HW][inside][:, i]] for i in range(3))
  normal = np.cross(b - a, c - a)
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  normal *= -np.sign((normal * a).sum(1, keepdims=True))
  np.testing.assert_allclose(picture.normal_HW3[inside], normal, atol=2e-4)
  np.testing.assert_array_equal(picture.mask_HW[inside], 1.0)


def test_slopes_inside_are_those_of_finite_differences():
  vertices, faces = two_ellipsoids()
  shape = shape_of(vertices, faces)
  where = viewpoint()
  picture, _, _ = look(shape, where)
  face = np.asarray(picture.face_HW)
  inside = interior(face)
  weights = np.zeros((42, 50, 8), np.float32)
  weights[..., 1:4] = VALUE_WEIGHTS[..., :3]
  weights[..., 7] = VALUE_WEIGHTS[..., 3]
  weights[~inside] = 0
  _, of_vertices, of_colours = look(shape, where, weights=weights)

  rays = cameras.unproject(cameras.pixel_centres(CAMERA), np.ones((42, 50)), CAMERA)[inside]

  def scalar(vertices, colours):
    # A ray is a sum of the corners: its weights are barycentric over depth.
    corners = faces[face[inside]]
    in_camera = transform_points(vertices, where)[corners]
    shares = np.linalg.solve(in_camera.swapaxes(1, 2), rays[..., None])[..., 0]
    depth = 1 / shares.sum(1)
    colour = np.einsum("pk,pkd->pd", shares * depth[:, None], colours[corners])
    values = np.concatenate([colour, depth[:, None]], 1)
    return (values * weights[inside][:, [1, 2, 3, 7]]).sum()

  draw = np.random.default_rng(0)
  for number, found in enumerate((of_vertices, of_colours)):
    direction = draw.standard_normal(vertices.shape)
    values = []
    for sign in (-1, 1):
      inputs = [vertices, vertices]
      inputs[number] = vertices + sign * 1e-6 * direction
      values.append(scalar(*inputs))
    expected = (values[1] - values[0]) / 2e-6
    along = (np.asarray(found)[: len(vertices)] * direction).sum()
    assert abs(along - expected) < 2e-4 * np.linalg.norm(found) * np.linalg.norm(direction)


def test_the_slope_of_a_mask_is_that_of_the_area_that_rays_hit():
  vertices, faces = two_ellipsoids()
  where = viewpoint()
  weights = np.zeros((42, 50, 8), np.float32)
  weights[..., 0] = 1
  _, slopes, _ = look(shape_of(vertices, faces), where, weights=weights)
  slopes = np.asarray(slopes)[: len(vertices)]
  fine = cameras.resized(CAMERA, 50 * 8, 42 * 8)

  def area(vertices):
    return Caster(Mesh(vertices, faces)).silhouette(where, fine).sum() / 64

  # All of it grows, one of the two grows, all of it moves back.
  first = np.where(np.arange(len(vertices))[:, None] < 162, vertices, 0)
  back = np.broadcast_to(where.rotation[2], vertices.shape)
  for direction in (vertices, first, back):
    expected = (area(vertices + 0.01 * direction) - area(vertices - 0.01 * direction)) / 0.02
    assert abs((slopes * direction).sum() / expected - 1) < 0.1


def test_sides_of_a_square_cover_their_share_of_pixels_however_finely_it_is_cut():
  weights = np.zeros((42, 50, 8), np.float32)
  weights[..., 0] = 1
  for cuts in (1, 18):
    vertices, faces = square(5.7, 10.2, 20.3, 30.6, 2.0, cuts)
    picture, slopes, _ = look(shape_of(vertices, faces), weights=weights)
    # Beyond corners the two directions are mixed one after the other.
    rows = np.asarray(picture.mask_HW)[12:28]
    across = np.zeros(50)
    across[6:20] = 1
    across[[5, 20]] = 0.3
    np.testing.assert_allclose(rows, np.broadcast_to(across, rows.shape), atol=1e-4)
    columns = np.asarray(picture.mask_HW)[:, 8:18]
    down = np.zeros(42)
    down[11:30] = 1
    down[[10, 30]] = 0.8, 0.6
    np.testing.assert_allclose(columns, np.broadcast_to(down[:, None], columns.shape), atol=1e-4)

    # The right side is 20.4 pixels high: so much a pixel that it moves.
    right = np.isclose(vertices[:, 0], vertices[:, 0].max())
    moved = np.asarray(slopes)[: len(vertices)][right, 0].sum()
    np.testing.assert_allclose(moved * 2.0 / CAMERA.fx, 20.4, rtol=0.02)


def test_what_is_in_front_is_mixed_with_what_is_behind():
  # a red square before a green one
  front, faces = square(10.0, 10.0, 20.3, 30.0, 2.0)
  behind, _ = square(2.0, 2.0, 40.0, 40.0, 3.0)
  vertices = np.concatenate([front, behind])
  both = np.concatenate([faces, faces + len(front)])
  colours = np.repeat([[1.0, 0, 0], [0, 1.0, 0]], 4, axis=0)
  shape = shape_of(vertices, both, colours)

  # at the right side of the first one, inside the second, and beside both
  weights = np.zeros((42, 50, 8), np.float32)
  weights[15:25, 20, 1] = 1
  white = np.ones(3, np.float32)
  picture, slopes, _ = look(shape, background=white, weights=weights)
  np.testing.assert_allclose(picture.colour_HW3[20, 20], [0.3, 0.7, 0], atol=1e-4)
  np.testing.assert_allclose(picture.colour_HW3[20, 45], white)
  np.testing.assert_allclose(picture.mask_HW[20, 10:30], 1.0)

  # Ten rows have weight: red takes ten pixels from green for each that the right side moves.
  of_front = np.asarray(slopes)[: len(front)]
  right = np.isclose(front[:, 0], front[:, 0].max())
  per_length = of_front[right, 0].sum()
  pixels_per_length = CAMERA.fx / 2.0
  np.testing.assert_allclose(per_length / pixels_per_length, 10, rtol=1e-3)


def test_triangles_behind_the_camera_and_broken_ones_are_left_out_and_counted():
  vertices, faces = square(5.7, 10.2, 20.3, 30.6, 2.0)
  broken = np.array([[0, 0, -1.0], [np.nan, 0, 1], [0, 1, 1], [0.5, 0.5, 1]])
  vertices = np.concatenate([vertices, broken])
  more = np.array([[4, 6, 7], [5, 6, 7], [0, 1, 4]])
  weights = np.ones((42, 50, 8), np.float32)
  shape = shape_of(vertices, np.concatenate([faces, more]))
  picture, slopes, of_colours = look(shape, weights=weights)
  assert int(picture.left_out) == 3
  alone, _, _ = look(shape_of(vertices[:4], faces))
  np.testing.assert_array_equal(picture.face_HW, alone.face_HW)
  np.testing.assert_allclose(picture.mask_HW, alone.mask_HW)
  assert np.isfinite(slopes).all()
  assert np.isfinite(of_colours).all()


def test_what_finds_no_room_is_counted():
  vertices, faces = two_ellipsoids()
  few = Settings(50, 42, tile=8, block=16, lanes=5, slots=100)
  render = jax.jit(functools.partial(mesh_picture.render, settings=few))
  picture = render(shape_of(vertices, faces), CAMERA, viewpoint())
  assert int(picture.lost) == int(picture.needed) - 100 > 0


def test_half_edges_find_their_partners():
  _, faces = two_ellipsoids()
  padded = np.concatenate([faces, [[-1, -1, -1], [700, 701, 702]]]).astype(np.int32)
  partners = jax.jit(silhouettes.partners)
  found = np.asarray(partners(padded))
  np.testing.assert_array_equal(found[-2:], -1)
  half = np.arange(faces.size)
  partner = found[:-2].reshape(-1)
  assert (partner[partner] == half).all()

  def ends(number):
    face, corner = number // 3, number % 3
    both = [faces[face, (corner + step) % 3] for step in (1, 2)]
    return np.sort(np.stack(both, -1), -1)

  np.testing.assert_array_equal(ends(half), ends(partner))


def test_what_is_thinner_than_a_pixel_stays_within_zero_and_one():
  draw = np.random.default_rng(2)
  # slivers in all directions
  start = draw.uniform(-0.5, 0.5, (100, 3))
  along = draw.uniform(-0.3, 0.3, (100, 3))
  across = draw.uniform(-0.02, 0.02, (100, 3))
  vertices = np.concatenate([start, start + along, start + across])
  faces = np.arange(300).reshape(3, 100).T
  picture, _, _ = look(shape_of(vertices, faces), viewpoint())
  mask = np.asarray(picture.mask_HW)
  assert mask.min() >= -1e-6
  assert mask.max() <= 1 + 1e-6
  assert ((mask > 0.05) & (mask < 0.95)).sum() > 100
  hits = Caster(Mesh(vertices, faces)).cast(viewpoint(), CAMERA)
  assert (np.asarray(picture.face_HW) == hits.face_HW).all()
