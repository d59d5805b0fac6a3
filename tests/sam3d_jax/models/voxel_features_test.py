"""Features of voxels: where a view is read, and which views see a voxel."""

from flax import nnx
import jax
import numpy as np
import torch

from sam3d_jax.geometry import cameras, pose
from sam3d_jax.models import voxel_features
from sam3d_jax.models.voxel_features import Views
from tests.support import tiny_dino

SIZE = 32  # pixels
SIDE = 8  # of the grid of voxels
FOCAL = 44.0
WIDTH = 16  # channels of a token


def test_grids_are_read_as_published():
  rng = np.random.default_rng(0)
  grid_PPD = rng.standard_normal((5, 7, 3)).astype(np.float32)
  # some of them outside
  place_V2 = rng.uniform(-0.2, 1.2, (200, 2)).astype(np.float32)
  expected = torch.nn.functional.grid_sample(
    torch.from_numpy(grid_PPD).permute(2, 0, 1)[None],
    torch.from_numpy(2 * place_V2 - 1)[None, None],
    mode="bilinear",
    align_corners=False,
  )
  found = voxel_features.sample(grid_PPD, place_V2)
  np.testing.assert_allclose(found, expected[0, :, 0].T, atol=1e-5)


def looking(rotation_33: np.ndarray) -> pose.Pose:
  return pose.Pose(rotation_33, np.array([0.0, 0.0, 2.0], np.float32), np.ones(3, np.float32))


# from the front and from behind: x left, y up, z forward
FRONT = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
BACK = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32)


def test_projection_is_that_of_the_cameras():
  rng = np.random.default_rng(0)
  points_V3 = rng.uniform(-0.5, 0.5, (50, 3)).astype(np.float32)
  camera = cameras.Camera(FOCAL, 40.0, 15.0, 17.0, SIZE, SIZE)
  seen = looking(BACK)
  pixels, depth = cameras.project(pose.transform_points(points_V3, seen), camera)
  found, z_V = voxel_features.project(
    points_V3,
    seen.rotation,
    seen.translation,
    1.0,
    np.array([FOCAL, 40.0], np.float32),
    np.array([15.0, 17.0], np.float32),
  )
  np.testing.assert_allclose(found, pixels, atol=1e-4)
  np.testing.assert_allclose(z_V, depth, atol=1e-6)


def wall(rotations, **changes) -> tuple[np.ndarray, Views]:
  """Two walls of voxels, one behind the other, and views of them; pictures are noise."""
  along = np.arange(SIDE)
  cells = np.stack(np.meshgrid(along, [1, 6], along, indexing="ij"), -1)
  coords_V3 = cells.reshape(-1, 3).astype(np.int32)
  camera = cameras.Camera(FOCAL, FOCAL, SIZE / 2, SIZE / 2, SIZE, SIZE)
  centres_V3 = (coords_V3 + 0.5) / SIDE - 0.5

  depths = []
  for rotation_33 in rotations:
    points_V3 = pose.transform_points(centres_V3.astype(np.float32), looking(rotation_33))
    # the whole of the nearer wall
    depth_HW = np.full((SIZE, SIZE), np.nan, np.float32)
    pixels_V2, z_V = cameras.project(points_V3, camera)
    near = z_V < 2
    low, high = pixels_V2[near].min(0), pixels_V2[near].max(0)
    columns, rows = np.floor([low, high]).astype(int).T
    depth_HW[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = z_V[near].mean()
    depths.append(depth_HW)

  count = len(rotations)
  rng = np.random.default_rng(1)
  views = Views(
    image_BHW3=rng.random((count, SIZE, SIZE, 3)).astype(np.float32),
    depth_BHW=np.stack(depths),
    rotation_B33=np.stack(rotations),
    translation_B3=np.tile(np.array([0, 0, 2], np.float32), (count, 1)),
    scale_B=np.ones(count, np.float32),
    focal_B2=np.full((count, 2), FOCAL, np.float32),
    centre_B2=np.full((count, 2), SIZE / 2, np.float32),
    valid_B=np.ones(count, bool),
  )
  return coords_V3, views._replace(**changes)


@nnx.jit
def add(dino, sums, coords_V3, views):
  """Sums with a batch of views more."""
  return voxel_features.add_views(
    dino,
    sums,
    coords_V3,
    views,
    resolution=SIDE,
    tolerance=0.05,
  )


def sums(coords_V3, views, cut=2):
  """Sums over views, `cut` at a time."""
  found = voxel_features.no_features(len(coords_V3), WIDTH)
  for first in range(0, len(views.valid_B), cut):
    part = Views(*(array[first : first + cut] for array in views))
    found = add(tiny_dino.model(), found, coords_V3, part)
  return found


def test_a_voxel_has_the_features_of_the_views_that_see_it():
  coords_V3, views = wall([FRONT, BACK])
  both = sums(coords_V3, views)
  # each wall is seen from its own side
  assert both.count_V.tolist() == [1.0] * len(coords_V3)
  mean_VD = voxel_features.mean_features(both)

  # the front wall is nearest to the camera in front: y = 1 of 8
  alone = {}
  for number, name in enumerate(("front", "back")):
    valid_B = np.arange(2) == number
    one = sums(coords_V3, views._replace(valid_B=valid_B))
    assert float(one.views) == 1
    alone[name] = (one.count_V > 0, voxel_features.mean_features(one))
  for seen_V, of_view_VD in alone.values():
    assert seen_V.sum() == len(coords_V3) // 2
    np.testing.assert_allclose(mean_VD[seen_V], of_view_VD[seen_V], atol=1e-5)

  # the plain mean mixes in what stands before a voxel
  plain_VD = voxel_features.mean_features(both, depth_aware=False)
  halves_VD = (alone["front"][1] * 1 + alone["back"][1] * 1) / 2
  np.testing.assert_allclose(plain_VD, halves_VD, atol=1e-5)
  assert not np.allclose(plain_VD, mean_VD, atol=1e-2)


def test_a_voxel_that_no_view_sees_has_the_plain_mean():
  coords_V3, views = wall([FRONT])
  one = sums(coords_V3, views, cut=1)
  hidden_V = np.asarray(one.count_V) == 0
  assert hidden_V.any() and not hidden_V.all()
  mean_VD = voxel_features.mean_features(one)
  plain_VD = voxel_features.mean_features(one, depth_aware=False)
  np.testing.assert_array_equal(mean_VD, plain_VD)


def test_batches_of_views_do_not_matter():
  coords_V3, views = wall([FRONT, BACK])
  whole = sums(coords_V3, views, cut=2)
  parts = sums(coords_V3, views, cut=1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)
