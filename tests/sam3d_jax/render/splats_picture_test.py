"""Splats as pictures: the compositing equation, its derivative, and what is left out."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.files import splat_files
from sam3d_jax.geometry import rotations
from sam3d_jax.geometry.cameras import Camera
from sam3d_jax.geometry.pose import Pose
from sam3d_jax.render import splats_picture, tiles
from sam3d_jax.render.splats import Splats
from sam3d_jax.render.splats_picture import Settings
from sam3d_jax.render.splats_projection import KERNELS
from tests.support import brute_splats

COUNT = 24
CAMERA = Camera(fx=40.0, fy=44.0, cx=18.5, cy=14.0, width=36, height=28)
# sizes that are no multiples of a tile, tiles of several blocks, fewer lanes than tiles
SETTINGS = Settings(36, 28, tile=8, block=4, lanes=3, slots=700)
BACKGROUND = np.array([0.2, 0.7, 0.4], np.float32)
# Weights of a scalar of the whole picture.
WEIGHTS = np.random.default_rng(5).standard_normal((28, 36, 5)).astype(np.float32)


def random_splats(seed=0, count=COUNT):
  draw = np.random.default_rng(seed)
  fields = Splats(
    centres_N3=draw.uniform(-0.45, 0.45, (count, 3)),
    scales_N3=draw.uniform(0.01, 0.12, (count, 3)),
    rotations_N4=draw.standard_normal((count, 4)),
    opacities_N=draw.uniform(0.2, 0.99, count),
    colours_N3=draw.uniform(0, 1, (count, 3)),
  )
  return Splats(*(field.astype(np.float32) for field in fields))


def viewpoint():
  quaternion = np.array([0.9, 0.2, -0.3, 0.25], np.float32)
  return Pose(
    rotation=rotations.quaternion_to_matrix(quaternion),
    translation=np.array([0.05, -0.03, 1.6], np.float32),
    scale=np.full(3, 1.1, np.float32),
  )


@functools.partial(jax.jit, static_argnames=("settings",))
def value_and_slopes(splats, where, background, settings=SETTINGS):
  """A scalar of colour, alpha and alpha times depth, its slopes, and the picture."""

  def scalar(splats, where, background):
    picture = splats_picture.render(
      splats, CAMERA, where, settings=settings, background_3=background
    )
    return weighted(picture.colour_HW3, picture.alpha_HW, picture.depth_HW, jnp), picture

  slopes = jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)
  return slopes(splats, where, background)


def weighted(colour, alpha, depth, xp):
  through = xp.where(alpha > 1e-6, alpha * xp.where(alpha > 1e-6, depth, 0), 0)
  return (
    (WEIGHTS[..., :3] * colour).sum()
    + (WEIGHTS[..., 3] * alpha).sum()
    + (WEIGHTS[..., 4] * through).sum()
  )


def brute(splats, where=None, background=BACKGROUND, kernel="mip"):
  rules = KERNELS[kernel]
  return brute_splats.render(
    splats,
    CAMERA,
    where or viewpoint(),
    blur=rules.blur,
    compensated=rules.compensated,
    background=background,
  )


def assert_alike(picture, expected, tolerance=2e-5):
  colour, alpha, depth = expected
  np.testing.assert_allclose(picture.colour_HW3, colour, atol=tolerance)
  np.testing.assert_allclose(picture.alpha_HW, alpha, atol=tolerance)
  np.testing.assert_array_equal(np.isnan(picture.depth_HW), np.isnan(depth))
  np.testing.assert_allclose(picture.depth_HW, depth, atol=10 * tolerance)


def test_a_picture_is_the_compositing_equation():
  splats = random_splats()
  _, picture = value_and_slopes(splats, viewpoint(), BACKGROUND)
  assert_alike(picture, brute(splats))
  assert 0 < int(picture.needed) < 700
  assert int(picture.lost) == int(picture.invalid) == 0


def test_slopes_are_those_of_finite_differences_of_the_equation():
  splats, where = random_splats(), viewpoint()
  slopes, _ = value_and_slopes(splats, where, BACKGROUND)

  def scalar(splats, where, background):
    return weighted(*brute(splats, where, background), np)

  inputs = (splats, where, BACKGROUND)
  leaves, shape = jax.tree.flatten(inputs)
  leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
  draw = np.random.default_rng(1)
  for number, found in enumerate(jax.tree.leaves(slopes)):
    # A direction in all entries of one input.
    direction = draw.standard_normal(leaves[number].shape)
    values = []
    for sign in (-1, 1):
      moved = list(leaves)
      moved[number] = leaves[number] + sign * 1e-6 * direction
      values.append(scalar(*jax.tree.unflatten(shape, moved)))
    expected = (values[1] - values[0]) / 2e-6
    size = np.linalg.norm(found) * np.linalg.norm(direction)
    assert abs((found * direction).sum() - expected) < 2e-4 * size + 1e-4, number


def test_behind_huge_tiny_and_broken_splats_leave_the_rest_alone():
  splats = random_splats()
  fields = [np.array(field) for field in splats]
  centres, scales, quaternions, opacities, colours = fields
  # In the object frame the camera looks along this axis.
  where = viewpoint()
  forward = where.rotation[2] / where.scale[0]
  centres[0] = -3 * forward  # behind
  scales[1] = 1e25  # overflows
  scales[2] = 30.0  # covers all of the picture
  opacities[2] = 0.3
  scales[3] = 1e-7  # thinner than the compensated kernel shows
  centres[4, 1] = np.nan
  scales[5, 0] = np.inf
  quaternions[6] = 0
  opacities[7] = np.nan
  colours[8, 2] = -np.inf
  quaternions[9, 3] = np.nan
  opacities[10] = 0.0  # padding

  slopes, picture = value_and_slopes(Splats(*fields), where, BACKGROUND)
  left = np.setdiff1d(np.arange(COUNT), [1, 6])
  assert_alike(picture, brute(Splats(*(field[left] for field in fields))))
  assert int(picture.invalid) == 7
  for found in map(np.asarray, slopes[0]):
    assert np.isfinite(found).all()
    assert not np.any(found[[0, 1, 3, 4, 5, 6, 7, 8, 9, 10]])
    assert np.any(found[2])


def test_what_lies_behind_an_opaque_wall_has_no_slope():
  splats = random_splats()
  where = viewpoint()
  forward = where.rotation[2] / where.scale[0]
  fields = [np.array(field) for field in splats]
  # Three wide splats before all others; the alpha of each is 0.99 where they are flat.
  for number in range(3):
    fields[0][number] = -0.9 * forward * (1 + 0.01 * number)
    fields[1][number] = 20.0
    fields[3][number] = 1.0
  slopes, picture = value_and_slopes(Splats(*fields), where, BACKGROUND)
  assert float(picture.alpha_HW.min()) > 0.99
  for found in slopes[0]:
    assert not np.any(found[3:])


def test_what_finds_no_room_is_counted_and_is_the_farthest():
  splats, where = random_splats(), viewpoint()
  _, whole = value_and_slopes(splats, where, BACKGROUND)
  few = Settings(36, 28, tile=8, block=4, lanes=3, slots=60)
  render = jax.jit(functools.partial(splats_picture.render, settings=few))
  picture = render(splats, CAMERA, where, background_3=BACKGROUND)
  assert int(picture.needed) == int(whole.needed)
  assert int(picture.lost) == int(whole.needed) - 60

  # The nearest splats alone are as they were.
  depth = splats.centres_N3 @ where.rotation[2]
  near = np.argsort(depth)[:3]
  opacities = np.zeros(COUNT, np.float32)
  opacities[near] = splats.opacities_N[near]
  alone = splats._replace(opacities_N=opacities)
  picture = render(alone, CAMERA, where, background_3=BACKGROUND)
  assert int(picture.lost) == 0
  assert_alike(picture, brute(alone))


def test_tiles_blocks_and_lanes_change_the_speed_alone():
  splats, where = random_splats(), viewpoint()
  slopes, picture = value_and_slopes(splats, where, BACKGROUND)
  other = Settings(36, 28, tile=16, block=16, lanes=64)
  other_slopes, other_picture = value_and_slopes(splats, where, BACKGROUND, settings=other)
  np.testing.assert_allclose(picture.colour_HW3, other_picture.colour_HW3, atol=2e-6)
  for found, expected in zip(slopes[0], other_slopes[0], strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_pixel_centres_are_at_halves():
  where = Pose(np.diag([-1.0, -1.0, 1.0]), np.array([0.0, 0.0, 2.0]), np.ones(3))
  # OpenCV axes: x to the right, y down; the splat at pixel (7.5, 3.5) of a centred camera.
  centre = [(7.5 - CAMERA.cx) / CAMERA.fx * 2, (3.5 - CAMERA.cy) / CAMERA.fy * 2, 0.0]
  splats = random_splats()
  opacities = np.zeros(COUNT, np.float32)
  opacities[0] = 0.8
  fields = splats._replace(opacities_N=opacities)
  fields.centres_N3[0] = centre
  fields.scales_N3[0] = 0.06
  fields.rotations_N4[0] = [1, 0, 0, 0]
  _, picture = value_and_slopes(fields, where, BACKGROUND)
  alpha = np.asarray(picture.alpha_HW)
  assert np.unravel_index(alpha.argmax(), alpha.shape) == (3, 7)
  # An ellipse is its own mirror image in its centre.
  around = alpha[0:7, 4:11]
  np.testing.assert_allclose(around, around[::-1, ::-1], atol=1e-6)


def test_sums_and_inverses_are_the_same_on_every_platform():
  draw = np.random.default_rng(0)
  grid = tiles.Grid(40, 40, 8)
  low = draw.uniform(-8, 40, (2, 50)).astype(np.float32)
  size = draw.uniform(0, 30, (2, 50)).astype(np.float32)
  touched = tiles.boxes(grid, low[0], low[0] + size[0], low[1], low[1] + size[1])
  # fewer slots than pairs
  slots = 150
  pairs = jax.jit(tiles.pair, static_argnums=(0, 2))(grid, touched, slots)
  assert int(pairs.lost) > 0
  expected = np.argsort(pairs.place_P)
  np.testing.assert_array_equal(jax.jit(tiles.inverse_by_sort)(pairs.place_P), expected)
  np.testing.assert_array_equal(jax.jit(tiles.inverse_by_scatter)(pairs.place_P), expected)

  values = draw.standard_normal((2, slots)).astype(np.float32)
  thing = np.asarray(pairs.thing_P)[expected]
  sums = np.zeros((2, 50))
  np.add.at(sums.T, thing, values.T)
  for way in (tiles.sums_by_doubling, tiles.sums_by_scatter):
    found = jax.jit(way, static_argnums=2)(values, pairs, grid.tiles)
    np.testing.assert_allclose(found, sums, atol=1e-5)


def test_wrong_settings_are_named():
  with pytest.raises(ValueError, match="kernel 'mipp' is not one of mip, classic"):
    Settings(8, 8, kernel="mipp")
  with pytest.raises(ValueError, match="tile = 0 is not a positive number"):
    Settings(8, 8, tile=0)
  with pytest.raises(ValueError, match=r"take larger tiles \(tile=32\)"):
    tiles.check(4_000_000, tiles.Grid(1024, 1024, 16))
  with pytest.raises(ValueError, match="no splats or triangles"):
    tiles.check(0, tiles.Grid(16, 16, 16))


# The other three agree as well; three programs are enough to compile here.
@pytest.mark.parametrize("name, kernel", (("one", "mip"), ("many", "classic"), ("deep", "mip")))
def test_pictures_of_an_independent_renderer(shared_dir, name, kernel):
  folder = shared_dir / "golden" / "render"
  if not folder.is_dir():
    pytest.skip(f"{folder} does not exist")
  splats = splat_files.read(folder / f"{name}.ply")
  stated = json.loads((folder / f"{name}.json").read_text())
  camera = Camera(**{field: stated[field] for field in Camera._fields})
  # From OpenCV's axes to the project's.
  matrix = np.array(stated["world_to_camera"])
  axes = np.diag([-1.0, -1.0, 1.0])
  where = Pose(axes @ matrix[:3, :3], axes @ matrix[:3, 3], np.ones(3))
  background = (1.0, 1.0, 1.0) if name == "many" else (0.0, 0.0, 0.0)

  settings = Settings(camera.width, camera.height, kernel=kernel)

  @jax.jit
  def render(splats):
    return splats_picture.render(splats, camera, where, settings=settings, background_3=background)

  picture = render(splats)
  expected = np.load(folder / f"{name}_{kernel}.npz")
  np.testing.assert_allclose(picture.colour_HW3, expected["colour"], atol=2e-5)
  np.testing.assert_allclose(picture.alpha_HW, expected["alpha"], atol=2e-5)
  np.testing.assert_allclose(picture.depth_HW, expected["depth"], atol=2e-4)
  assert int(picture.lost) == 0
