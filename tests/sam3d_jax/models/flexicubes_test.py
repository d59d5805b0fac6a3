"""FlexiCubes on bricks: closed fields give closed meshes; gradients; bad input is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from sam3d_jax.geometry import bricks as brick_grid
from sam3d_jax.geometry.bricks import SIDE
from sam3d_jax.models import flexicubes, flexicubes_surface, flexicubes_tables
from sam3d_jax.models.flexicubes_surface import Sizes
from sam3d_jax.models.flexicubes_tables import CORNERS, EDGES, NO_SLOT

RESOLUTION = 32
BRICKS = RESOLUTION // SIDE


def grid_points(coords_V3) -> np.ndarray:
  """Corners of all cubes of bricks in the object frame, (V, 4, 4, 4, 8, 3)."""
  axis = np.arange(SIDE)
  cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
  cubes = coords_V3[:, None, None, None] * SIDE + cells
  return (cubes[..., None, :] + CORNERS) / RESOLUTION - 0.5


def sphere(p):
  return np.linalg.norm(p, axis=-1) - 0.3


def torus(p):
  ring = np.linalg.norm(p[..., :2], axis=-1) - 0.28
  return np.hypot(ring, p[..., 2]) - 0.11


def boxes(p):
  """Two boxes that touch in an edge."""
  one = np.abs(p - np.array([-0.15, -0.15, 0.0])).max(axis=-1) - 0.15
  other = np.abs(p - np.array([0.15, 0.15, 0.0])).max(axis=-1) - 0.15
  return np.minimum(one, other)


def noise(p):
  """A random sign and distance at each corner, outside at the border of the grid."""
  index = np.rint((p + 0.5) * RESOLUTION).astype(int)
  side = RESOLUTION + 1
  table = np.random.default_rng(3).normal(size=(side, side, side))
  values = table[index[..., 0], index[..., 1], index[..., 2]]
  border = (index == 0) | (index == RESOLUTION)
  return np.where(border.any(axis=-1), 1.0, values)


def every_brick() -> np.ndarray:
  return np.argwhere(np.ones((BRICKS, BRICKS, BRICKS)))


def near(field, reach: float) -> np.ndarray:
  """Bricks whose corners come within `reach` of the surface."""
  coords_V3 = every_brick()
  distance = np.abs(field(grid_points(coords_V3))).reshape(len(coords_V3), -1)
  return coords_V3[distance.min(axis=1) < reach]


def features(coords_V3, field, seed=None) -> np.ndarray:
  """Features of cubes in a field; the rest zero, or random with a seed."""
  shape = (len(coords_V3), SIDE, SIDE, SIDE, flexicubes.CHANNELS)
  feats = np.zeros(shape, np.float32)
  if seed is not None:
    feats[:] = np.random.default_rng(seed).normal(size=shape)
  # the bias of the published model is added to it
  feats[..., :8] = field(grid_points(coords_V3)) + 1 / RESOLUTION
  return feats


def mesh_of(coords_V3, feats) -> trimesh.Trimesh:
  bricks = brick_grid.around(coords_V3, BRICKS, capacity=BRICKS**3 + 256)
  mesh = flexicubes.extract(feats, bricks, RESOLUTION)
  return trimesh.Trimesh(mesh.vertices_M3, mesh.faces_F3, process=False)


VOLUMES = {
  sphere: 4 / 3 * np.pi * 0.3**3,
  torus: 2 * np.pi**2 * 0.28 * 0.11**2,
  boxes: 2 * 0.3**3,
}


@pytest.mark.parametrize("field", VOLUMES)
def test_a_solid_gives_a_closed_mesh_with_outward_normals_and_its_volume(field):
  coords_V3 = every_brick()
  mesh = mesh_of(coords_V3, features(coords_V3, field))
  assert mesh.is_watertight
  assert mesh.is_winding_consistent
  # less what a coarse grid takes off edges; negative if normals pointed inwards
  assert mesh.volume == pytest.approx(VOLUMES[field], rel=0.08 if field is boxes else 0.04)
  if field is not boxes:
    assert np.abs(field(np.asarray(mesh.vertices))).max() < 0.3 / RESOLUTION


@pytest.mark.parametrize("seed", [None, 0])
def test_cubes_near_the_surface_alone_give_it_and_an_inner_shell_both_closed(seed):
  coords_V3 = near(sphere, 0.02)
  assert len(coords_V3) < 0.6 * BRICKS**3
  mesh = mesh_of(coords_V3, features(coords_V3, sphere, seed))
  assert mesh.is_watertight
  assert mesh.is_winding_consistent
  shells = [part.volume for part in mesh.split(only_watertight=False)]
  # the inside of the shell, where nothing is predicted, counts as outside
  assert len(shells) == 2
  assert max(shells) == pytest.approx(VOLUMES[sphere], rel=0.04)
  assert min(shells) < 0


def test_noise_gives_a_closed_mesh_in_which_every_edge_is_run_both_ways():
  coords_V3 = every_brick()
  mesh = mesh_of(coords_V3, features(coords_V3, noise, seed=1))
  assert np.isfinite(mesh.vertices).all()
  edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
  forward, times = np.unique(edges, axis=0, return_counts=True)
  backward, times_back = np.unique(edges[:, ::-1], axis=0, return_counts=True)
  np.testing.assert_array_equal(forward, backward)
  np.testing.assert_array_equal(times, times_back)
  assert len(forward) > 100_000


def test_tables_have_the_known_counts_and_every_crossed_edge_is_in_one_group():
  tables = flexicubes_tables.make()
  assert tables.problem.sum() == 36
  assert tables.count.max() == 4
  assert tables.count[[0, 255]].tolist() == [0, 0]
  inside = np.arange(256)[:, None] >> np.arange(8) & 1
  crossed = inside[:, EDGES[:, 0]] != inside[:, EDGES[:, 1]]
  np.testing.assert_array_equal(tables.slot != NO_SLOT, crossed)
  largest = max((tables.slot == slot).sum(axis=1).max() for slot in range(4))
  assert largest == 7
  # a vertex has at least three edges, and slots are used from the first on
  for slots, count in zip(tables.slot, tables.count, strict=True):
    sizes = np.bincount(slots[slots != NO_SLOT], minlength=count)
    assert len(sizes) == count
    assert (sizes >= 3).all()


def test_objects_of_a_row_and_padding_do_not_touch():
  first, second = near(sphere, 0.02), near(torus, 0.02)
  feats = [features(first, sphere, 0), features(second, torus, 1)]
  padding = np.full((5, *feats[0].shape[1:]), 7.0, np.float32)
  bricks = brick_grid.around(
    np.concatenate([first, np.zeros((5, 3), int), second]),
    BRICKS,
    valid_V=np.repeat([True, False, True], [len(first), 5, len(second)]),
    object_V=np.repeat([0, 0, 1], [len(first), 5, len(second)]),
  )
  both = flexicubes.extract(
    np.concatenate([feats[0], padding, feats[1]]),
    bricks,
    RESOLUTION,
  )
  for number, coords_V3 in enumerate((first, second)):
    alone = mesh_of(coords_V3, feats[number])
    faces = both.faces_F3[both.object_F == number]
    triangles = np.sort(both.vertices_M3[faces].reshape(-1, 9), axis=0)
    expected = np.sort(np.asarray(alone.vertices)[alone.faces].reshape(-1, 9), axis=0)
    # a list of another length is cut into other vectors: tanh differs in the last bit
    np.testing.assert_allclose(triangles, expected, atol=1e-6)


@pytest.fixture(scope="module")
def small():
  """A few bricks of noise, their training mesh and a gradient."""
  rng = np.random.default_rng(5)
  coords_V3 = np.array([[0, 0, 0], [0, 1, 0], [2, 1, 1]])
  bricks = brick_grid.around(coords_V3, 4)
  shape = (3, SIDE, SIDE, SIDE, flexicubes.CHANNELS)
  feats = rng.normal(size=shape).astype(np.float32)
  # one outside between two inside, all far from zero: a small step changes no sign
  means_V = np.array([-0.6, 1.6, -0.6])
  feats[..., :8] = means_V[:, None, None, None, None] + rng.normal(size=shape[:-1] + (8,)) * 0.1
  sizes = Sizes(cubes=400, corners=800, vertices=500, quads=500)

  @jax.jit
  def loss(feats):
    mesh = flexicubes.training_mesh(feats, bricks, 16, sizes)
    triangles = mesh.vertices_M3[mesh.faces_F3]
    waves = jnp.sin(jnp.arange(triangles.size, dtype=jnp.float32)).reshape(triangles.shape)
    drawn = jnp.where(mesh.valid_F[:, None, None], triangles * waves, 0).sum()
    return drawn + mesh.reg_loss.sum() + mesh.attributes_M6.mean(), mesh

  return feats, loss


def test_gradients_are_those_of_finite_differences(small):
  feats, loss = small
  value = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, mesh), gradient = value(feats)
  assert not mesh.overflow
  assert mesh.valid_F.sum() > 400
  direction = np.random.default_rng(6).normal(size=feats.shape).astype(np.float32)
  step = 2e-3
  (above, _), _ = value(feats + step * direction)
  (below, _), _ = value(feats - step * direction)
  expected = (gradient * direction).sum()
  assert (above - below) / (2 * step) == pytest.approx(float(expected), rel=0.01)


def test_room_in_the_lists_changes_no_mesh_and_few_lengths_serve_all():
  coords_V3 = near(sphere, 0.02)
  bricks = brick_grid.around(coords_V3, BRICKS)
  roomy = brick_grid.with_room(bricks, len(bricks.object_K) + 500)
  feats = features(coords_V3, sphere, 0)
  one = flexicubes.extract(feats, bricks, RESOLUTION)
  other = flexicubes.extract(feats, roomy, RESOLUTION)
  for name in ("faces_F3", "object_F"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  np.testing.assert_allclose(one.vertices_M3, other.vertices_M3, atol=1e-6)
  lengths = {brick_grid.rounded(count) for count in range(4000, 8000)}
  assert len(lengths) == 9
  assert all(count <= brick_grid.rounded(count) < 1.13 * count for count in range(4000, 8000))


def test_too_little_room_is_told_and_what_fits_is_found():
  with pytest.raises(ValueError, match="do not fit into 10"):
    brick_grid.around(np.array([[1, 1, 1]]), 4, capacity=10)
  bricks = brick_grid.around(np.array([[0, 0, 0], [0, 1, 0], [2, 1, 1]]), 4)
  inside = np.random.default_rng(0).random((4, 4, 4, len(bricks.object_K))) < 0.5
  whole = flexicubes_surface.find(np, inside, bricks, 16, None, inverse=True)
  room = Sizes(cubes=50, corners=4000, vertices=4000, quads=4000)
  found = flexicubes_surface.find(np, inside, bricks, 16, room, inverse=True)
  assert found.counts[0] == whole.counts[0] > 50
  np.testing.assert_array_equal(found.index_Q, whole.index_Q[:50])
  # nothing points beyond the lists
  assert found.vertex_4E.max() <= 4000
  assert found.inverse.cubes_8P.max() <= 8 * 50


def test_bad_voxels_are_errors_that_name_them():
  with pytest.raises(
    ValueError, match=r"1 voxels lie outside the grid 0..15, the first at \[0, 16"
  ):
    brick_grid.of_cubes([[0, 0, 0], [0, 16, 0]], 16)
  with pytest.raises(ValueError, match=r"given more than once, one at \[1, 2, 3\]"):
    brick_grid.of_cubes([[1, 2, 3], [0, 0, 0], [1, 2, 3]], 16)
  with pytest.raises(ValueError, match="there is no cube"):
    brick_grid.of_cubes(np.zeros((0, 3), int), 16)
  with pytest.raises(ValueError, match="not a multiple of 4"):
    brick_grid.of_cubes([[0, 0, 0]], 18)
  with pytest.raises(ValueError, match="outside the grid"):
    brick_grid.around([[-1, 0, 0]], 4)
  with pytest.raises(ValueError, match="more than once"):
    brick_grid.around([[1, 0, 0], [1, 0, 0]], 4)


def test_features_that_are_not_finite_or_of_another_model_are_errors():
  coords_V3 = every_brick()
  bricks = brick_grid.around(coords_V3, BRICKS, capacity=BRICKS**3 + 256)
  feats = features(coords_V3, sphere)
  for channel in (0, 8, 40, 60):
    damaged = feats.copy()
    damaged[..., channel] = np.nan
    with pytest.raises(ValueError, match="not finite"):
      flexicubes.extract(damaged, bricks, RESOLUTION)
  with pytest.raises(ValueError, match=r"features have shape .*100\), the bricks need"):
    flexicubes.extract(feats[..., :100], bricks, RESOLUTION)


def test_a_field_without_inside_gives_an_empty_mesh():
  coords_V3 = every_brick()
  feats = np.ones((len(coords_V3), SIDE, SIDE, SIDE, flexicubes.CHANNELS), np.float32)
  mesh = mesh_of(coords_V3, feats)
  assert len(mesh.vertices) == len(mesh.faces) == 0
